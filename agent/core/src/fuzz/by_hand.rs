// SPDX-License-Identifier: Apache-2.0
//! Members of our own making that do what real ones rarely do at the right moment.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use foca::State;

use super::attack::{SEARCHING, SETTLED, subject};
use super::attacker::Attacker;
use super::forge::{self, ABSENT, PEER};
use super::script::Script;
use super::subject::{Subject, address};
use crate::command::{Command, NetCommand, StreamId};
use crate::consts::AGENT_PORT;
use crate::gossip::{GossipId, Liveness};
use crate::id::NodeId;
use crate::input::Input;
use crate::stream::Kind;
use crate::sync::{Hello, Message};
use crate::view::MemberState;
use crate::wire::Writer;

/// A node that this cluster does not know.
const NEW: u8 = 5;

pub(super) fn member(n: u8) -> (Attacker, Subject) {
    let mut peer = Attacker::new(n, false);
    let (mut node, first) = subject(SETTLED);
    peer.carry_out(&mut node, first);
    (peer, node)
}

/// A stream of the peer's on which nothing is under way.
fn resting(peer: &mut Attacker, node: &mut Subject) -> StreamId {
    peer.open(node, Kind::Member);
    let id = peer.last_stream().expect("it was opened");
    peer.say(node, id, &Message::Done.encode(), 1);
    assert_eq!(peer.last_stream(), Some(id), "the node keeps it");
    id
}

pub(super) fn closed(commands: &[Command]) -> Vec<StreamId> {
    let closed = commands.iter().filter_map(|command| match command {
        Command::Net(NetCommand::StreamClose { stream }) => Some(*stream),
        _ => None,
    });
    closed.collect()
}

fn begun(commands: &[Command]) -> Vec<(StreamId, SocketAddr)> {
    let begun = commands.iter().filter_map(|command| match command {
        Command::Net(NetCommand::Connect { stream, to }) => Some((*stream, *to)),
        _ => None,
    });
    begun.collect()
}

pub(super) fn rejects(node: &Subject, reason: &str) -> u64 {
    node.node.status(node.present()).rejects.get(reason).copied().unwrap_or(0)
}

pub(super) fn state(node: &Subject, n: u8) -> Option<MemberState> {
    let id = forge::id(n).to_string();
    node.node.members(node.present()).into_iter().find(|member| member.id == id).map(|member| member.state)
}

/// Says in gossip that others are alive. The node says who it is itself once there is a session.
fn speak(who: u8, peer: &mut Attacker, node: &mut Subject, of: &[NodeId]) {
    if peer.heard_packets.is_empty() {
        peer.payload(node, &[]);
    }
    let gossip = peer.heard_packets.iter().find(|packet| packet.first() == Some(&1));
    let announced = gossip.expect("the node announces itself");
    let node_id = announced[2..][..40].to_vec();
    let mut w = Writer::new();
    w.u8(1).u8(1).raw(&forge::id(who).0).u32(1).u32(0).u16(0).raw(&node_id).u8(9).u16(of.len() as u16);
    for node in of {
        let id = GossipId { node: *node, generation: 1, bump: 0 };
        Liveness { id, incarnation: 0, state: State::Alive }.write(&mut w);
    }
    peer.payload(node, &w.finish());
    assert_eq!(state(node, who), Some(MemberState::Up));
}

/// An admission of `NEW` that the peer signed.
fn admission_at(seconds: u64) -> Vec<u8> {
    let script = [&[1, 0, NEW, 0, 0, 0, 1][..], &seconds.to_be_bytes()].concat();
    forge::object(&mut Script::new(&script), PEER)
}

/// One whose date says nothing.
fn admission() -> Vec<u8> {
    admission_at(0)
}

fn record() -> Vec<u8> {
    forge::record(NEW).as_bytes().to_vec()
}

fn pass_on(peer: &mut Attacker, node: &mut Subject, object: &[u8]) {
    peer.payload(node, &[&[2], object].concat());
}

/// Begins a push-pull with somebody who has something else.
pub(super) fn begin(peer: &mut Attacker, node: &mut Subject) -> StreamId {
    peer.open(node, Kind::Member);
    let id = peer.last_stream().expect("it was opened");
    for message in [Message::Clock(1_800_000_000_000), Message::Summary(Box::default())] {
        peer.say(node, id, &message.encode(), 1);
    }
    id
}

/// Objects in a push-pull.
fn give(peer: &mut Attacker, node: &mut Subject, objects: &[Vec<u8>]) {
    let id = begin(peer, node);
    peer.say(node, id, &Message::Objects(objects.to_vec()).encode(), 1);
    peer.close(node, id);
}

#[test]
fn a_stream_that_nobody_uses_gives_way_to_one_that_is_wanted() {
    let one_source: fn(usize) -> SocketAddr = |_| address(PEER);
    let many: fn(usize) -> SocketAddr =
        |n| SocketAddr::from((Ipv4Addr::from(0x0a00_0100 + n as u32), AGENT_PORT));
    for (sources, limit) in [(one_source, 16), (many, 128)] {
        let (mut peer, mut node) = member(PEER);
        let longest = resting(&mut peer, &mut node);
        node.alone(Duration::from_millis(200));
        let shorter = resting(&mut peer, &mut node);
        let mut used = |n| {
            peer.open_from(&mut node, Kind::Member, sources(n));
            let id = peer.last_stream().expect("it was opened");
            peer.say(&mut node, id, &Message::Clock(1_800_000_000_000).encode(), 1);
            (peer.has_stream(longest), peer.has_stream(shorter), peer.has_stream(id))
        };
        for n in 2..limit {
            assert_eq!(used(n), (true, true, true), "stream {n} of {limit}");
        }
        assert_eq!(used(limit), (false, true, true), "{limit}");
        assert_eq!(used(limit + 1), (false, false, true), "{limit}");
        assert_eq!(used(limit + 2), (false, false, false), "one that is used does not give way");
        assert_eq!(rejects(&node, "stream over limit"), 1);
    }
}

#[test]
fn each_push_pull_on_a_kept_stream_counts_as_a_stream_of_its_source() {
    let (mut peer, mut node) = member(PEER);
    let id = resting(&mut peer, &mut node);
    let mut begun = 1;
    while peer.last_stream() == Some(id) {
        begun += 1;
        assert!(begun < 100, "there is no end to them");
        peer.say(&mut node, id, &Message::Clock(1_800_000_000_000).encode(), 1);
        peer.say(&mut node, id, &Message::Done.encode(), 1);
    }
    assert_eq!(rejects(&node, "stream over limit"), 1, "after {begun}");
    peer.open(&mut node, Kind::Member);
    assert_eq!(peer.last_stream(), None, "streams and push-pulls are counted together");
    assert_eq!(rejects(&node, "stream over limit"), 2);
}

#[test]
fn a_push_pull_on_a_kept_stream_begins_as_one_on_a_new_stream_does() {
    for odd in [Message::Done, Message::Want(Vec::new(), true), Message::Have(Vec::new(), true)] {
        let (mut peer, mut node) = member(PEER);
        let id = resting(&mut peer, &mut node);
        peer.say(&mut node, id, &odd.encode(), 1);
        assert_eq!(peer.last_stream(), None, "{odd:?}");
        assert_eq!(rejects(&node, "stream message out of place"), 1, "{odd:?}");
    }
}

#[test]
fn a_stream_that_nobody_uses_is_closed_after_ten_seconds() {
    let (mut peer, mut node) = member(PEER);
    let kept = resting(&mut peer, &mut node);
    let start = node.now;
    let end = loop {
        let commands = node.advance(node.now + Duration::from_millis(100));
        if closed(&commands).contains(&kept) {
            break node.now - start;
        }
        assert!(node.now < start + Duration::from_secs(15), "it is never closed");
    };
    assert!(end > Duration::from_secs(10) && end < Duration::from_secs(11), "{end:?}");
}

/// When a member that knows one other begins push-pulls, while `closes` says that the other does not know it.
fn begins(closes: bool) -> Vec<Duration> {
    let (mut peer, mut node) = member(PEER);
    speak(PEER, &mut peer, &mut node, &[]);
    let (start, mut when) = (node.now, Vec::new());
    while node.now < start + Duration::from_secs(20) {
        let next = node.next(node.now + Duration::from_secs(1)).max(node.now + Duration::from_millis(1));
        for (stream, _) in begun(&node.advance(next)) {
            when.push(node.now - start);
            if closes {
                node.tell(Input::StreamClosed { stream });
            }
        }
    }
    when
}

#[test]
fn who_is_turned_away_tries_again_soon_but_not_for_ever() {
    let (answered, turned_away) = (begins(false), begins(true));
    println!("{answered:?}, turned away {turned_away:?}");
    let within = |when: &[Duration], seconds| when.iter().filter(|at| at.as_secs() < seconds).count();
    assert!(within(&turned_away, 3) >= 6, "{turned_away:?}");
    assert!(within(&answered, 3) < 5, "{answered:?}");
    assert_eq!(within(&turned_away, 10), within(&turned_away, 3), "{turned_away:?}");
}

/// The next stream that the node begins, and when.
fn next_begun(node: &mut Subject) -> (SocketAddr, Duration) {
    let start = node.now;
    loop {
        let next = node.next(node.now + Duration::from_secs(1)).max(node.now + Duration::from_millis(1));
        if let Some((stream, to)) = begun(&node.advance(next)).first() {
            node.tell(Input::StreamClosed { stream: *stream });
            return (*to, node.now - start);
        }
    }
}

#[test]
fn who_speaks_of_nodes_that_are_not_known_is_asked_next() {
    let (mut silent, mut node) = member(ABSENT);
    let mut speaker = Attacker::new(PEER, false);
    speak(PEER, &mut speaker, &mut node, &[]);
    speak(ABSENT, &mut silent, &mut node, &[]);
    for n in 0..12 {
        speak(PEER, &mut speaker, &mut node, &[NodeId([0x80 | n; 32])]);
        speak(ABSENT, &mut silent, &mut node, &[]);
        let (asked, wait) = next_begun(&mut node);
        assert_eq!(asked, address(PEER), "round {n}, {wait:?} later");
        assert!(wait < Duration::from_secs(1), "round {n}, {wait:?} later");
    }
}

#[test]
fn who_speaks_once_is_asked_once() {
    let (mut silent, mut node) = member(ABSENT);
    let mut speaker = Attacker::new(PEER, false);
    speak(ABSENT, &mut silent, &mut node, &[]);
    speak(PEER, &mut speaker, &mut node, &[NodeId([0x80; 32])]);
    let asked: Vec<_> = (0..7).map(|_| next_begun(&mut node)).collect();
    assert_eq!(asked[0].0, address(PEER));
    assert!(asked.iter().map(|(_, wait)| *wait).sum::<Duration>() < Duration::from_secs(4), "{asked:?}");
    assert!(asked.iter().any(|(to, _)| *to == address(ABSENT)), "{asked:?}");
}

#[test]
fn who_hears_of_a_node_that_is_not_known_does_not_wait_as_long_as_those_who_learn_nothing() {
    let quiet = |of: &[NodeId]| {
        let (mut peer, mut node) = member(PEER);
        speak(PEER, &mut peer, &mut node, &[]);
        node.alone(Duration::from_secs(6));
        speak(PEER, &mut peer, &mut node, of);
        speak(PEER, &mut peer, &mut node, of);
        next_begun(&mut node).1
    };
    let (nothing, unknown) = (quiet(&[]), quiet(&[NodeId([0x80; 32])]));
    println!("{nothing:?} without news, {unknown:?} after a node that is not known");
    assert!(nothing > Duration::from_secs(2) && unknown < Duration::from_secs(1), "{nothing:?} {unknown:?}");
}

#[test]
fn who_was_let_in_just_now_is_up_as_soon_as_its_record_is_here() {
    let (mut peer, mut node) = member(PEER);
    pass_on(&mut peer, &mut node, &admission());
    assert_eq!(state(&node, NEW), Some(MemberState::Down), "without its record nobody can speak to it");
    give(&mut peer, &mut node, &[record()]);
    assert_eq!(state(&node, NEW), Some(MemberState::Up));

    let (mut peer, mut node) = member(PEER);
    give(&mut peer, &mut node, &[admission()]);
    pass_on(&mut peer, &mut node, &record());
    assert_eq!(state(&node, NEW), Some(MemberState::Up), "a record that goes round was signed just now");
}

#[test]
fn a_push_pull_says_by_the_date_who_was_let_in_just_now() {
    for (seconds, expected) in [
        (-60, MemberState::Down),
        (-2, MemberState::Up),
        (0, MemberState::Up),
        (2, MemberState::Up),
        (60, MemberState::Down),
    ] {
        let (mut peer, mut node) = member(PEER);
        let at = node.present().wall.as_secs().saturating_add_signed(seconds);
        give(&mut peer, &mut node, &[admission_at(at), record()]);
        assert_eq!(state(&node, NEW), Some(expected), "{seconds} s");
    }
}

/// In a crowd that would make each speak to many that cannot answer yet (ADR 0006).
#[test]
fn the_answer_to_who_asks_to_be_let_in_does_not() {
    let mut peer = Attacker::new(PEER, false);
    let (mut node, first) = subject(SEARCHING);
    peer.carry_out(&mut node, first);
    peer.open(&mut node, Kind::Stranger);
    let id = peer.last_stream().expect("it was opened");
    let wall = node.present().wall;
    let hello = Message::Hello(Hello {
        record: forge::record(PEER).as_bytes().to_vec(),
        instance: [1; 8],
        uptime: 1000,
        wall: wall.as_millis() as u64,
        genesis: forge::genesis().as_bytes().to_vec(),
        blank: false,
    });
    peer.say(&mut node, id, &hello.encode(), 1);
    assert!(matches!(peer.heard_messages.last(), Some(Message::Join)));
    let mut objects: Vec<_> = forge::roster(false).objects().map(|(_, bytes)| bytes.to_vec()).collect();
    objects.extend([admission_at(wall.as_secs()), record()]);
    for message in [Message::Objects(objects), Message::Alive(Vec::new()), Message::Admitted] {
        peer.say(&mut node, id, &message.encode(), 1);
    }
    assert_eq!(state(&node, NEW), Some(MemberState::Down));
}

#[test]
fn who_was_let_in_some_time_ago_may_be_gone_again() {
    let (mut peer, mut node) = member(PEER);
    give(&mut peer, &mut node, &[admission(), record()]);
    assert_eq!(state(&node, NEW), Some(MemberState::Down), "a push-pull brings what is old, too");

    let (mut peer, mut node) = member(PEER);
    pass_on(&mut peer, &mut node, &admission());
    node.alone(Duration::from_secs(6));
    give(&mut peer, &mut node, &[record()]);
    assert_eq!(state(&node, NEW), Some(MemberState::Down), "its admission came six seconds ago");
}
