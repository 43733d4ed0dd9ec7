// SPDX-License-Identifier: Apache-2.0
//! Members that lie in gossip: about third parties, about the node under test, about themselves.

use std::time::Duration;

use foca::State;

use super::attack::{SETTLED, subject};
use super::attacker::Attacker;
use super::forge::{self, ABSENT, PEER};
use super::subject::Subject;
use crate::command::StateItem;
use crate::gossip::{GossipId, Liveness};
use crate::view::MemberState;
use crate::wire::{Reader, Writer};

/// Bytes of an identity on the wire.
const IDENTITY: usize = 40;
/// Where the source stands in a payload: behind the payload's kind and the wire version.
const SOURCE: usize = 2;

/// A liar and the node that it lies to, which speak to each other already.
fn liar() -> (Attacker, Subject) {
    let mut peer = Attacker::new(PEER, false);
    let (mut node, first) = subject(SETTLED);
    peer.carry_out(&mut node, first);
    peer.payload(&mut node, &[]);
    (peer, node)
}

/// The identity under which the node spoke last.
fn identity(peer: &Attacker) -> GossipId {
    let packet = peer.heard_packets.iter().rev().find(|packet| packet.first() == Some(&1));
    let source = &packet.expect("the node spoke")[SOURCE..][..IDENTITY];
    let mut r = Reader::new("identity", source);
    GossipId {
        node: crate::id::NodeId(r.array().expect("32 bytes")),
        generation: r.u32().expect("4 bytes"),
        bump: r.u32().expect("4 bytes"),
    }
}

fn claim(id: GossipId, state: State) -> Liveness {
    Liveness { id, incarnation: 0, state }
}

fn absent(generation: u32, bump: u32) -> GossipId {
    GossipId { node: forge::id(ABSENT), generation, bump }
}

/// The peer says this in gossip, under this identity of its own.
fn say_as(source: GossipId, peer: &mut Attacker, node: &mut Subject, claims: &[Liveness]) {
    packet(source, identity(peer), peer, node, claims);
}

/// The same, for another identity of the node.
fn say_to(to: GossipId, peer: &mut Attacker, node: &mut Subject, claims: &[Liveness]) {
    packet(GossipId { node: forge::id(PEER), generation: 1, bump: 0 }, to, peer, node, claims);
}

fn packet(source: GossipId, to: GossipId, peer: &mut Attacker, node: &mut Subject, claims: &[Liveness]) {
    // It answers no pings, so it is suspected again and again and says each time that it is not gone.
    let incarnation = node.now.as_secs() as u16;
    let mut w = Writer::new();
    w.u8(1).u8(1);
    for (id, incarnation) in [(source, Some(incarnation)), (to, None)] {
        w.raw(&id.node.0).u32(id.generation).u32(id.bump);
        if let Some(incarnation) = incarnation {
            w.u16(incarnation);
        }
    }
    w.u8(9).u16(claims.len() as u16);
    for one in claims {
        one.write(&mut w);
    }
    peer.payload(node, &w.finish());
}

fn say(peer: &mut Attacker, node: &mut Subject, claims: &[Liveness]) {
    say_as(GossipId { node: forge::id(PEER), generation: 1, bump: 0 }, peer, node, claims);
}

fn state(node: &Subject, n: u8) -> Option<MemberState> {
    let id = forge::id(n).to_string();
    node.node.members(node.present()).into_iter().find(|member| member.id == id).map(|member| member.state)
}

#[test]
fn no_member_is_down_for_an_identity_that_it_never_signed() {
    let (mut peer, mut node) = liar();
    say(&mut peer, &mut node, &[claim(absent(1, 0), State::Alive)]);
    assert_eq!(state(&node, ABSENT), Some(MemberState::Up));
    for id in [absent(u32::MAX - 1, u32::MAX), absent(2, 0), absent(1, u32::MAX), absent(1, 2)] {
        say(&mut peer, &mut node, &[claim(id, State::Down), claim(id, State::Suspect)]);
        assert_eq!(state(&node, ABSENT), Some(MemberState::Up), "{id:?}");
        say(&mut peer, &mut node, &[claim(id, State::Alive)]);
    }
    say(&mut peer, &mut node, &[claim(absent(1, 0), State::Down)]);
    assert_eq!(state(&node, ABSENT), Some(MemberState::Down), "what its record covers is believed");
}

#[test]
fn a_push_pull_makes_nobody_down_for_an_identity_that_it_never_signed() {
    let (mut peer, mut node) = liar();
    say(&mut peer, &mut node, &[claim(absent(1, 0), State::Alive)]);
    peer.open(&mut node, crate::stream::Kind::Member);
    let id = peer.last_stream().expect("it was opened");
    let lies = [absent(u32::MAX - 1, u32::MAX), absent(2, 0), absent(1, 2)].map(|id| claim(id, State::Down));
    peer.say(&mut node, id, &crate::sync::Message::Alive(lies.to_vec()).encode(), 1);
    assert_eq!(state(&node, ABSENT), Some(MemberState::Up));
}

#[test]
fn nobody_uses_up_the_generations_of_another() {
    let (mut peer, mut node) = liar();
    let (before, saved) = (identity(&peer), node.disk.get(&StateItem::Generation).cloned());
    for generation in [before.generation + 1, u32::MAX - 1, u32::MAX] {
        for state in [State::Alive, State::Suspect, State::Down] {
            let id = GossipId { generation, ..before };
            say(&mut peer, &mut node, &[claim(id, state)]);
            node.alone(Duration::from_secs(2));
        }
    }
    peer.payload(&mut node, &[]);
    peer.pass(&mut node, Duration::from_secs(5));
    assert_eq!(identity(&peer), before);
    assert_eq!(node.disk.get(&StateItem::Generation).cloned(), saved);
}

#[test]
fn who_is_declared_down_again_and_again_renews_itself_ever_more_rarely() {
    let (mut peer, mut node) = liar();
    let (start, before) = (node.now, node.bytes_out);
    let (mut identities, mut lines) = (vec![identity(&peer)], node.lines);
    while node.now < start + Duration::from_secs(30) {
        for _ in 0..20 {
            let down = claim(identity(&peer), State::Down);
            say(&mut peer, &mut node, &[down]);
        }
        peer.pass(&mut node, Duration::from_millis(100));
        // Packets of the identity before may come later.
        if identities.last() < Some(&identity(&peer)) {
            identities.push(identity(&peer));
        }
    }
    lines = node.lines - lines;
    let bytes = node.bytes_out - before;
    println!("{} identities, {lines} lines, {bytes} bytes", identities.len());
    assert!((2..=7).contains(&identities.len()), "{identities:?}");
    assert!(lines <= 30, "{lines} lines of log in 30 s");
    assert!(bytes <= 30 * 20_000, "{bytes} bytes in 30 s");
    for _ in 0..61 {
        peer.pass(&mut node, Duration::from_secs(1));
        say(&mut peer, &mut node, &[]);
    }
    let last = identity(&peer);
    say(&mut peer, &mut node, &[claim(last, State::Down)]);
    assert_ne!(identity(&peer), last, "after a calm it comes back at once");
}

#[test]
fn the_last_incarnation_is_no_way_around_that() {
    let (mut peer, mut node) = liar();
    let start = node.now;
    let mut identities = vec![identity(&peer)];
    while node.now < start + Duration::from_secs(30) {
        for incarnation in [u16::MAX - 1, u16::MAX] {
            let suspect = Liveness { incarnation, ..claim(identity(&peer), State::Suspect) };
            say(&mut peer, &mut node, &[suspect]);
        }
        peer.pass(&mut node, Duration::from_millis(200));
        if identities.last() < Some(&identity(&peer)) {
            identities.push(identity(&peer));
        }
    }
    assert!((2..=7).contains(&identities.len()), "{identities:?}");
}

#[test]
fn a_liar_that_speaks_all_the_time_keeps_nobody_from_coming_back() {
    let (mut peer, mut node) = liar();
    let before = identity(&peer);
    // Not for this identity, so foca does not hear it; then somebody honest says so.
    for _ in 0..200 {
        let elsewhere = GossipId { bump: before.bump + 7, ..before };
        say_to(elsewhere, &mut peer, &mut node, &[claim(before, State::Down)]);
        peer.pass(&mut node, Duration::from_millis(20));
    }
    let down = claim(identity(&peer), State::Down);
    say(&mut peer, &mut node, &[down]);
    peer.pass(&mut node, Duration::from_secs(17));
    assert!(identity(&peer) > down.id, "{:?} is still {:?}", identity(&peer), down.id);
}

#[test]
fn all_that_a_record_covers_is_gone_beyond_at_once() {
    let (mut peer, mut node) = liar();
    let before = identity(&peer);
    let signed = node.node.record_sequence();
    let named = GossipId { bump: signed.counter, ..before };
    say(&mut peer, &mut node, &[claim(named, State::Down)]);
    peer.pass(&mut node, Duration::from_secs(1));
    assert!(identity(&peer) > named, "{:?} after {named:?}", identity(&peer));
}

#[test]
fn members_that_come_and_go_leave_no_timers() {
    let (mut peer, mut node) = liar();
    for bump in 0..300 {
        let me = GossipId { node: forge::id(PEER), generation: 1, bump };
        let record = forge::record_at(PEER, 1, bump + 1);
        peer.payload(&mut node, &[&[2], record.as_bytes()].concat());
        say_as(me, &mut peer, &mut node, &[claim(me, State::Down)]);
    }
}

#[test]
fn a_member_that_changes_all_the_time_does_not_fill_the_journal() {
    let (mut peer, mut node) = liar();
    let lines = node.lines;
    for incarnation in 0..100 {
        let suspect = Liveness { incarnation, ..claim(absent(1, 0), State::Suspect) };
        let alive = Liveness { incarnation: incarnation + 1, ..claim(absent(1, 0), State::Alive) };
        for one in [suspect, alive] {
            say(&mut peer, &mut node, &[one]);
            peer.pass(&mut node, Duration::from_millis(100));
        }
    }
    assert!(node.lines - lines < 30, "{} lines", node.lines - lines);
}

#[test]
fn suspicions_are_answered_at_a_limited_rate() {
    let (mut peer, mut node) = liar();
    let before = node.bytes_out;
    for incarnation in 0..2000 {
        let suspect = Liveness { incarnation, ..claim(identity(&peer), State::Suspect) };
        say(&mut peer, &mut node, &[suspect]);
    }
    let bytes = node.bytes_out - before;
    assert!(bytes < 20_000, "{bytes} bytes for 2000 suspicions within a moment");
}

#[test]
fn who_was_named_by_a_later_identity_of_its_own_goes_beyond_it() {
    let (mut peer, mut node) = liar();
    let before = identity(&peer);
    let named = GossipId { bump: before.bump + 1, ..before };
    say(&mut peer, &mut node, &[claim(named, State::Down)]);
    peer.pass(&mut node, Duration::from_secs(2));
    let after = identity(&peer);
    assert!(after > named && after.generation == before.generation, "{before:?} became {after:?}");
    let signed = node.node.record_sequence();
    assert!((after.generation, after.bump) <= (signed.generation, signed.counter), "{after:?}, {signed:?}");
}

#[test]
fn a_member_is_not_heard_under_an_identity_beyond_its_record() {
    let (mut peer, mut node) = liar();
    let me = GossipId { node: forge::id(PEER), generation: 1, bump: 0 };
    for id in [GossipId { bump: 2, ..me }, GossipId { generation: 2, ..me }] {
        say_as(id, &mut peer, &mut node, &[claim(absent(1, 0), State::Alive)]);
        assert_ne!(state(&node, ABSENT), Some(MemberState::Up), "{id:?}");
    }
    let record = forge::record_of_boot(PEER, 2);
    peer.payload(&mut node, &[&[2], record.as_bytes()].concat());
    say_as(GossipId { generation: 2, ..me }, &mut peer, &mut node, &[claim(absent(1, 0), State::Alive)]);
    assert_eq!(state(&node, ABSENT), Some(MemberState::Up), "its record of that boot is here");
}
