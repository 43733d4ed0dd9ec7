// SPDX-License-Identifier: Apache-2.0
//! Gossip by itself: two or three nodes whose packets are carried by hand.

use super::*;
use proptest::prelude::*;
use rand::SeedableRng;

use crate::record::Sequence;

fn id(n: u8) -> GossipId {
    GossipId { node: NodeId([n; 32]), generation: 1, bump: 0 }
}

fn gossip(n: u8) -> Gossip {
    Gossip::new(id(n), StdRng::from_seed([n; 32]))
}

/// All are members with a record of their first boot.
fn said(_: &NodeId) -> Word {
    Word::Signed(Sequence { generation: 1, counter: 9 })
}

/// Lets packets flow between two nodes until both are quiet.
fn flow(a: &mut Gossip, b: &mut Gossip, now: Duration) {
    for _ in 0..20 {
        let (from_a, from_b) = (a.take_outcomes(), b.take_outcomes());
        for outcome in from_a {
            if let Outcome::Send(_, packet) | Outcome::Spread(_, packet) = outcome {
                b.receive(now, a.me().node, &packet, said).unwrap();
            }
        }
        for outcome in from_b {
            if let Outcome::Send(_, packet) | Outcome::Spread(_, packet) = outcome {
                a.receive(now, b.me().node, &packet, said).unwrap();
            }
        }
    }
}

fn joined() -> (Gossip, Gossip) {
    let (mut a, mut b) = (gossip(1), gossip(2));
    a.announce(Duration::ZERO, id(2));
    flow(&mut a, &mut b, Duration::ZERO);
    assert_eq!(a.state(&NodeId([2; 32])), Some(MemberState::Up));
    (a, b)
}

#[test]
fn silence_is_suspect_first_and_down_later() {
    let (mut a, _) = joined();
    let mut seen = Vec::new();
    for ms in (0..25_000).step_by(100) {
        a.tick(Duration::from_millis(ms));
        let state = a.state(&NodeId([2; 32])).unwrap();
        if seen.last().map(|(_, last)| *last) != Some(state) {
            seen.push((ms, state));
        }
    }
    let states: Vec<_> = seen.iter().map(|(_, state)| *state).collect();
    assert_eq!(states, [MemberState::Up, MemberState::Suspect, MemberState::Down]);
    assert!((10_000..=13_000).contains(&seen[1].0) && seen[2].0 <= 20_000, "{seen:?}");
}

#[test]
fn who_did_not_run_for_a_while_judges_nobody_by_that_while() {
    let (mut a, mut b) = joined();
    for ms in (0..10_100).step_by(50) {
        a.tick(Duration::from_millis(ms));
    }
    // A ping is under way, and for a minute this node does not run. Then it reads what was answered.
    let away = Duration::from_secs(60);
    a.tick(away);
    assert_eq!(a.state(&NodeId([2; 32])), Some(MemberState::Up));
    flow(&mut a, &mut b, away);
    for ms in (60_000..70_000).step_by(50) {
        let now = Duration::from_millis(ms);
        a.tick(now);
        b.tick(now);
        flow(&mut a, &mut b, now);
        assert_eq!(a.state(&NodeId([2; 32])), Some(MemberState::Up), "after {ms} ms");
    }
}

#[test]
fn a_node_that_is_always_late_still_does_its_work() {
    let (mut a, _) = joined();
    for ms in (0..90_000).step_by(900) {
        a.tick(Duration::from_millis(ms));
    }
    assert_eq!(a.state(&NodeId([2; 32])), Some(MemberState::Down));
}

#[test]
fn the_short_form_follows_what_gossip_knows() {
    let (mut a, _) = joined();
    for ms in (0..25_000).step_by(100) {
        let now = Duration::from_millis(ms);
        a.tick(now);
        let others = [Liveness { id: id(3), incarnation: 0, state: State::Alive }];
        let earlier = [Liveness { id: GossipId { generation: 0, ..id(1) }, ..others[0] }];
        a.apply(now, others.into_iter().chain(earlier));
        for gone in [BTreeSet::new(), [id(1).node, id(2).node].into()] {
            let mut folded = Folded::default();
            a.liveness().filter(|one| !gone.contains(&one.id.node)).for_each(|one| folded.alive(&one));
            assert_eq!(a.folded(&gone), folded, "after {ms} ms");
        }
    }
    assert_eq!(a.state(&id(1).node), Some(MemberState::Down), "our earlier identity");
    assert_eq!(a.state(&id(2).node), Some(MemberState::Down));
}

/// In a crowd one hears that a node is up before one hears that it was let in.
#[test]
fn what_was_said_of_a_node_counts_once_it_is_a_member() {
    let (mut a, mut b) = joined();
    let third = Liveness { id: id(3), incarnation: 0, state: State::Alive };
    a.vouch(Duration::ZERO, third);
    let stranger = |node: &NodeId| if *node == third.id.node { Word::Stranger } else { said(node) };
    let unsigned = |node: &NodeId| if *node == third.id.node { Word::Missing } else { said(node) };
    for ms in (0..2000).step_by(50) {
        let now = Duration::from_millis(ms);
        a.tick(now);
        for outcome in a.take_outcomes() {
            if let Outcome::Send(to, packet) | Outcome::Spread(to, packet) = outcome
                && to == b.me().node
            {
                b.receive(now, a.me().node, &packet, stranger).unwrap();
            }
        }
    }
    let now = Duration::from_secs(2);
    assert_eq!(b.state(&third.id.node), None, "nobody let it in");
    assert_eq!(b.speakers(now), [a.me().node].into(), "who speaks of it knows more");
    b.ask(&a.me().node);
    assert_eq!(b.speakers(now), BTreeSet::new());
    b.recall(now, stranger);
    b.recall(now, unsigned);
    assert_eq!(b.state(&third.id.node), None);
    b.recall(now, said);
    assert_eq!(b.state(&third.id.node), Some(MemberState::Up));
}

#[test]
fn an_unanswered_ping_is_sent_again_and_an_answered_one_is_not() {
    let (mut a, mut b) = joined();
    let pings = |a: &mut Gossip, until: u64| {
        let mut pings = Vec::new();
        for ms in (0..until).step_by(50) {
            a.tick(Duration::from_millis(ms));
            let sent = a.take_outcomes().into_iter().filter_map(|outcome| match outcome {
                Outcome::Send(_, packet) | Outcome::Spread(_, packet) | Outcome::Again(_, packet) => {
                    Some((ms, packet))
                }
                _ => None,
            });
            let ping = |packet: &[u8]| matches!(envelope(packet).unwrap().probe, Probe::Ping(_));
            pings.extend(sent.filter(|(_, packet)| ping(packet)));
        }
        pings
    };
    let sent = pings(&mut a, 11_500);
    let times: Vec<_> = sent.iter().map(|(at, _)| *at).collect();
    assert_eq!(times, [10_000, 10_300, 10_600], "and none while the other is new");
    assert!(sent.iter().all(|(_, packet)| *packet == sent[0].1));
    let (mut a, _) = joined();
    for ms in (0..=10_900).step_by(50) {
        a.tick(Duration::from_millis(ms));
    }
    assert!(
        a.take_outcomes().iter().any(|outcome| matches!(outcome, Outcome::Silent(NodeId(id)) if id[0] == 2))
    );

    let (mut a, _) = joined();
    let ping = pings(&mut a, 10_001).remove(0).1;
    b.receive(Duration::from_secs(10), a.me().node, &ping, said).unwrap();
    flow(&mut a, &mut b, Duration::from_secs(10));
    assert_eq!(pings(&mut a, 11_500).len(), 0);
}

#[test]
fn news_reads_the_same_for_another_hearer() {
    let (mut a, _) = joined();
    let news = (0..2_000).step_by(50).find_map(|ms| {
        a.tick(Duration::from_millis(ms));
        a.take_outcomes().into_iter().find_map(|outcome| match outcome {
            Outcome::Spread(_, packet) => Some(packet),
            _ => None,
        })
    });
    let mut c = gossip(3);
    let packet = readdressed(&news.unwrap(), id(3)).unwrap();
    c.receive(Duration::ZERO, a.me().node, &packet, said).unwrap();
    assert_eq!(c.state(&NodeId([1; 32])), Some(MemberState::Up), "who spoke");
    assert_eq!(c.state(&NodeId([2; 32])), Some(MemberState::Up), "of whom it spoke");
}

#[test]
fn nobody_speaks_for_another() {
    let (mut a, mut b) = joined();
    b.announce(Duration::ZERO, id(1));
    let packet = b.take_outcomes().into_iter().find_map(|outcome| match outcome {
        Outcome::Send(_, packet) | Outcome::Spread(_, packet) => Some(packet),
        _ => None,
    });
    let refused = a.receive(Duration::ZERO, NodeId([3; 32]), &packet.unwrap(), said);
    assert_eq!(refused, Err("gossip in the name of another node"));
}

#[test]
fn a_broadcast_is_handed_over_and_not_passed_on_by_itself() {
    let (mut a, mut b) = joined();
    a.broadcast(Duration::ZERO, b"object");
    let mut heard = Vec::new();
    for ms in (0..3_000).step_by(50) {
        let now = Duration::from_millis(ms);
        a.tick(now);
        for outcome in a.take_outcomes() {
            if let Outcome::Send(_, packet) | Outcome::Spread(_, packet) = outcome {
                b.receive(now, NodeId([1; 32]), &packet, said).unwrap();
            }
        }
        for outcome in b.take_outcomes() {
            if let Outcome::Heard(from, bytes) = outcome {
                heard.push((from, bytes));
            }
        }
    }
    assert!(heard.len() > 1 && heard.iter().all(|one| *one == (NodeId([1; 32]), b"object".to_vec())));
    assert_eq!(b.foca.custom_broadcast_backlog(), 0);
}

proptest! {
    /// A member is who it says, but its packets may be anything.
    #[test]
    fn no_packet_of_a_member_panics(tail: Vec<u8>, message in 0u8..13, cut in 0usize..200) {
        let (mut a, b) = joined();
        let mut w = crate::wire::Writer::new();
        w.u8(1);
        for (node, rest) in [(b.me(), Some(0)), (a.me(), None)] {
            w.raw(&node.node.0).u32(node.generation).u32(node.bump);
            if let Some(incarnation) = rest {
                w.u16(incarnation);
            }
        }
        let mut packet = w.u8(message).raw(&tail).finish();
        packet.truncate(packet.len().saturating_sub(cut % 3));
        let _ = a.receive(Duration::ZERO, NodeId([2; 32]), &packet, said);
        for ms in (0..12_000).step_by(500) {
            a.tick(Duration::from_millis(ms));
        }
    }
}
