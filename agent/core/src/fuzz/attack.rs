// SPDX-License-Identifier: Apache-2.0
//! Somebody who gets through a handshake and then says anything: with the join key only, or as an admitted member.

use std::time::Duration;

use super::attacker::Attacker;
use super::forge;
use super::script::Script;
use super::subject::Subject;
use crate::command::StateItem;
use crate::input::Saved;
use crate::node::probe;
use crate::one_of_each::one_of_each;
use crate::session::Greeting;
use crate::signed::ObjectDigest;
use crate::stream::Kind;
use crate::summary::{Folded, PARTS, Summary};
use crate::sync::{Hello, Message};
use crate::view::Phase;
use crate::wire::Writer;

/// What the node under test is, in the first byte of a script.
pub(super) const SETTLED: u8 = 0;
pub(super) const BLANK: u8 = 1;
pub(super) const SEARCHING: u8 = 2;
pub(super) const LEFT: u8 = 3;

/// Codes of steps.
pub(super) const TIME: u8 = 0;
pub(super) const PAYLOAD: u8 = 1;
pub(super) const GOSSIP: u8 = 2;
pub(super) const OBJECT: u8 = 3;
pub(super) const OPEN: u8 = 4;
pub(super) const SAY_RAW: u8 = 5;
pub(super) const HELLO: u8 = 6;
pub(super) const SAY: u8 = 7;
const RAW: u8 = 8;
const CLOSE: u8 = 9;
pub(super) const BEACON: u8 = 10;
const RESTART: u8 = 11;
pub(super) const ODD_GREETING: u8 = 12;
const STEPS: u8 = 14;
/// Kinds of stream messages.
pub(super) const KINDS: usize = 11;

/// With the join key only.
pub(super) fn stranger(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let place = script.u8() % 4;
    attack(script, place, forge::STRANGER);
}

/// As a member.
pub(super) fn member(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let place = script.u8() % 2;
    attack(script, place, forge::PEER);
}

/// The node under test, and its first commands.
pub(super) fn subject(place: u8) -> (Subject, Vec<crate::command::Command>) {
    let saved = match place {
        SETTLED | BLANK => forge::member_files(forge::SUBJECT, place == BLANK),
        SEARCHING => Saved { identity: Some(forge::keys(forge::SUBJECT).to_file()), ..Saved::default() },
        _ => Saved {
            identity: Some(forge::keys(forge::SUBJECT).to_file()),
            membership: Some(probe::left_file(forge::roster(false))),
            ..Saved::default()
        },
    };
    Subject::start(forge::SUBJECT, saved, true)
}

fn attack(mut script: Script<'_>, place: u8, who: u8) {
    let mut attacker = Attacker::new(who, place == BLANK);
    let (mut node, first) = subject(place);
    attacker.carry_out(&mut node, first);
    while let Some(code) = script.step() {
        step(code % STEPS, &mut script, &mut attacker, &mut node, who);
    }
    attacker.pass(&mut node, Duration::from_secs(2));
    check(&node, place);
}

/// What nobody may bring about, whatever he says.
fn check(node: &Subject, place: u8) {
    let status = node.node.status(node.present());
    assert_eq!(status.id, forge::id(forge::SUBJECT).to_string());
    assert_ne!(status.phase, Phase::Quarantined, "stands aside without another node of its identity");
    assert!(!node.disk.contains_key(&StateItem::Identity), "the identity was written again");
    assert_eq!(node.errors, Vec::<String>::new());
    match place {
        SETTLED => {
            // Waiting: the other members are not there, or the attacker is not.
            assert!(matches!(status.phase, Phase::Member | Phase::Waiting), "{:?}", status.phase);
            assert_eq!(status.cluster_id, Some(forge::cluster_id().to_string()));
            let members = node.node.members(node.present());
            for n in [forge::SUBJECT, forge::ABSENT] {
                let id = forge::id(n).to_string();
                let member =
                    members.iter().find(|member| member.id == id).expect("only a member itself can leave");
                assert_ne!(member.state.as_str(), "left");
            }
            let plan = node.mesh.as_ref();
            let peers = plan.map(|plan| {
                plan.peers.iter().map(|peer| (peer.id, peer)).collect::<std::collections::BTreeMap<_, _>>()
            });
            if let Some(peers) = peers {
                let absent =
                    peers.get(&forge::id(forge::ABSENT)).expect("the absent member stays in the mesh");
                assert_eq!(absent.public_key, forge::keys(forge::ABSENT).wireguard_public());
                for (id, peer) in peers {
                    let own = [(id.mesh_address().into(), 128)];
                    assert_eq!(peer.allowed_ips, own, "a peer with addresses of others");
                }
            }
        }
        LEFT => assert_eq!(status.phase, Phase::Left),
        _ => {}
    }
}

fn step(code: u8, script: &mut Script<'_>, attacker: &mut Attacker, node: &mut Subject, who: u8) {
    match code {
        TIME => attacker.pass(node, Duration::from_millis(25) * u32::from(script.u8())),
        PAYLOAD => {
            let payload = script.bytes();
            attacker.payload(node, payload);
        }
        GOSSIP => {
            let packet = gossip(script, attacker.greeting, who);
            attacker.payload(node, &packet);
        }
        OBJECT => {
            let mut payload = vec![2];
            payload.extend(forge::object(script, who));
            attacker.payload(node, &payload);
        }
        OPEN => attacker.open(node, if script.flag() { Kind::Member } else { Kind::Stranger }),
        BEACON => attacker.beacon(node, script),
        RESTART => attacker.restart(Greeting {
            instance: script.array(),
            generation: script.u32(),
            bump: script.u32(),
            wall: script.u64(),
        }),
        ODD_GREETING => {
            attacker.restart(attacker.greeting);
            attacker.odd_greeting = Some(script.bytes().to_vec());
        }
        SAY_RAW | HELLO | SAY | RAW | CLOSE => {
            let Some(id) = attacker.stream(script.u8()) else { return };
            match code {
                CLOSE => attacker.close(node, id),
                RAW => attacker.raw(node, id, script.bytes().to_vec()),
                SAY_RAW => attacker.say(node, id, script.bytes(), 1),
                HELLO => {
                    let hello = Message::Hello(hello(script, who)).encode();
                    attacker.say(node, id, &hello, 1);
                }
                _ => {
                    let message = message(script, who).encode();
                    attacker.say(node, id, &message, script.u8());
                }
            }
        }
        _ => attacker.datagram(node, script.bytes().to_vec()),
    }
}

fn hello(script: &mut Script<'_>, who: u8) -> Hello {
    Hello {
        record: match script.flag() {
            false => forge::record(who).as_bytes().to_vec(),
            true => forge::signed_record(script, who).as_bytes().to_vec(),
        },
        instance: script.array(),
        uptime: script.u64(),
        wall: script.u64(),
        genesis: match script.u8() % 4 {
            0 => Vec::new(),
            1 => forge::genesis().as_bytes().to_vec(),
            2 => forge::signed_genesis(script, who).as_bytes().to_vec(),
            _ => script.bytes().to_vec(),
        },
        blank: script.flag(),
    }
}

/// How messages are made, one for each kind. Scripts name them by their place: new ones go to the end.
type Make = fn(&mut Script<'_>, u8) -> Message;

fn message(script: &mut Script<'_>, who: u8) -> Message {
    let kinds: [Make; KINDS] = one_of_each!(Message:
        Message::Join => |_, _| Message::Join,
        Message::Admitted => |_, _| Message::Admitted,
        Message::Refused(_) => |script, _| Message::Refused(script.text()),
        Message::Have(..) => |script, _| Message::Have(digests(script), script.flag()),
        Message::Want(..) => |script, _| Message::Want(digests(script), script.flag()),
        Message::Objects(_) =>
            |script, who| Message::Objects((0..script.u8() % 8).map(|_| forge::object(script, who)).collect()),
        Message::Alive(_) =>
            |script, _| Message::Alive((0..script.u8() % 32).map(|_| forge::liveness(script)).collect()),
        Message::Done => |_, _| Message::Done,
        Message::Clock(_) => |script, _| Message::Clock(script.u64()),
        Message::Summary(_) => |script, _| Message::Summary(Box::new(summary(script))),
        Message::Hello(_) => |script, who| Message::Hello(hello(script, who)),
    );
    kinds[usize::from(script.u8()) % KINDS](script, who)
}

/// A summary that differs from what the subject may hold in some parts, in all or in none.
fn summary(script: &mut Script<'_>) -> Summary {
    let mut summary =
        Summary { objects: forge::roster(script.flag()).folded().clone(), alive: Folded::default() };
    for _ in 0..script.u8() % 8 {
        let (part, value) = (usize::from(script.u8()) % PARTS, script.u64());
        let of = if script.flag() { &mut summary.alive } else { &mut summary.objects };
        of.0[part] ^= value;
    }
    summary
}

fn digests(script: &mut Script<'_>) -> Vec<ObjectDigest> {
    let count = script.u8();
    let known: Vec<_> = forge::roster(false).digests().collect();
    (0..count).map(|n| known.get(usize::from(n)).copied().unwrap_or(ObjectDigest([n; 8]))).collect()
}

/// A gossip packet in the attacker's own name: header, members, and the rest as the script has it.
fn gossip(script: &mut Script<'_>, greeting: Greeting, who: u8) -> Vec<u8> {
    let mut w = Writer::new();
    w.u8(1).u8(1).raw(&forge::id(who).0).u32(greeting.generation).u32(greeting.bump).u16(script.u16());
    let to = if script.flag() { [script.u32(), script.u32()] } else { [1, 0] };
    w.raw(&forge::id(forge::SUBJECT).0).u32(to[0]).u32(to[1]);
    let kind = script.u8() % 13;
    w.u8(kind);
    if (3..7).contains(&kind) {
        let n = script.u8() % 6;
        w.raw(&forge::id(n).0).u32(script.u32()).u32(script.u32());
    }
    if (1..7).contains(&kind) {
        w.u8(script.u8());
    }
    let members: Vec<_> = (0..script.u8() % 20).map(|_| forge::liveness(script)).collect();
    w.u16(members.len() as u16);
    for member in members {
        member.write(&mut w);
    }
    w.raw(script.bytes());
    w.finish()
}
