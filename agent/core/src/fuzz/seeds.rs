// SPDX-License-Identifier: Apache-2.0
//! First inputs: what nodes really say and save, and one short script for each thing a target can do.

use std::time::Duration;

use super::attacker::Attacker;
use super::outsider::{self, Pair};
use super::{attack, decode, forge, gpt, state};
use crate::keys::Keys;
use crate::roster::Object;
use crate::signed::Verified;
use crate::stream::Kind;
use crate::sync::Message;
use crate::wire::Writer;

pub(super) fn all() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds: Vec<(&'static str, Vec<u8>)> =
        decoders().into_iter().map(|seed| ("decode", seed)).collect();
    seeds.extend(files().into_iter().map(|text| ("settings", text.into_bytes())));
    seeds.extend(gpt::seeds().into_iter().map(|seed| ("gpt", seed)));
    seeds.extend(states().into_iter().map(|seed| ("state", seed)));
    seeds.extend(outsiders().into_iter().map(|seed| ("outsider", seed)));
    for place in 0..4 {
        for script in attacks() {
            let script = [&[place][..], &script].concat();
            seeds.push(("stranger", script.clone()));
            if place < 2 {
                seeds.push(("member", script));
            }
        }
    }
    seeds
}

/// A settled node and a member that talks with it for a while.
fn conversation() -> Attacker {
    let (mut node, first) = attack::subject(attack::SETTLED);
    let mut peer = Attacker::new(forge::PEER, false);
    peer.carry_out(&mut node, first);
    peer.payload(&mut node, &[]);
    peer.pass(&mut node, Duration::from_secs(4));
    for kind in [Kind::Member, Kind::Stranger] {
        peer.open(&mut node, kind);
        if let Some(id) = peer.stream(0) {
            for message in [Message::Join, Message::Have(Vec::new(), true)] {
                peer.say(&mut node, id, &message.encode(), 1);
            }
            peer.close(&mut node, id);
        }
    }
    peer
}

fn decoders() -> Vec<Vec<u8>> {
    let kind = |kind: u8, body: &[u8]| [&[kind][..], body].concat();
    let fields = |of: u8, signed: &[u8]| kind(of, &signed[2..signed.len() - 64]);
    let talk = conversation();
    let mut seeds: Vec<Vec<u8>> =
        talk.heard_messages.iter().map(|one| kind(decode::MESSAGE, &one.encode())).collect();
    seeds.extend(Message::samples().iter().map(|one| kind(decode::MESSAGE, &one.encode())));
    for packet in talk.heard_packets.iter().filter(|packet| packet.first() == Some(&1)).take(24) {
        seeds.push(kind(decode::GOSSIP, &packet[1..]));
    }
    seeds.push(kind(decode::GREETING, &crate::session::probe::write_greeting(&talk.greeting)));
    let roster = forge::roster(false);
    for (_, object) in roster.objects() {
        seeds.push(kind(decode::OBJECT, object));
        let of = match Object::open(object).expect("the roster holds no others") {
            Object::Record(_) => decode::RECORD,
            Object::Admission(_) => decode::ADMISSION,
            Object::Leave(_) => decode::LEAVE,
        };
        seeds.push(fields(of, object));
    }
    seeds.push(fields(decode::GENESIS, forge::genesis().as_bytes()));
    let mut labelled = (*forge::record(forge::PEER)).clone();
    labelled.labels = [("rack".to_owned(), "a1".to_owned())].into();
    labelled.endpoints.push("[2001:db8::7]:41410".parse().expect("an address"));
    let labelled = Verified::sign(labelled, forge::keys(forge::PEER));
    seeds.push(fields(decode::RECORD, labelled.as_bytes()));
    seeds.push(kind(decode::BEACON, &[3; 96]));
    seeds.push(kind(decode::JOIN_KEY, forge::join_key().to_text().as_bytes()));
    seeds.push(kind(
        decode::JOIN_KEY,
        forge::join_key().for_cluster(forge::cluster_id()).to_text().as_bytes(),
    ));
    seeds.push(kind(decode::NODE_ID, forge::id(1).to_string().as_bytes()));
    let mut alive = Writer::new();
    for message in &talk.heard_messages {
        if let Message::Alive(known) = message {
            known.iter().for_each(|one| one.write(&mut alive));
        }
    }
    seeds.push(kind(decode::LIVENESS_LIST, &alive.finish()));
    seeds
}

fn files() -> Vec<String> {
    let key = forge::join_key().to_text();
    let ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB me@desk";
    vec![
        format!("[cluster]\nname = \"lab\"\njoin_key = \"{key}\"\n"),
        format!(
            "# all\n[cluster]\nname = \"lab\"\njoin_key = \"{key}\"\nexpect = 3\nseeds = [\"192.0.2.7\", \"[2001:db8::1]:41410\", \
             \"head.example.org\"]\n\n[node]\nhostname = \"alpha\"\nlabels = {{ rack = \"a1\", gpu = \"no\" }}\n\n\
             [ssh]\nauthorized_keys = [\"{ssh}\"]\n\n[admin]\nkeys = [\"{ssh}\"]\n"
        ),
        "[cluster]\nname = 7\njoin_key = \"cos1-abc\"\nexpect = \"many\"\nseeds = 1\n[wifi]\nssid = \"x\"\n".to_owned(),
        "[cluser]\nnmae = \"lab\"\n[node.labels]\n\"a b\" = 'c'\n".to_owned(),
        "cluster = { name = 'l', join_key = '''k''' }\r\nssh.authorized_keys = [ 0x1F, 1e9, 1979-05-27 ]\n[[node]]\n".to_owned(),
        "\"\\u001b[2J\" = 1\n[cluster]\n\"\t\t\" = 2\nname = \"\\u0007\"\n".to_owned(),
        "[cluster\nname = \"\\u00e9\"\n".to_owned(),
        format!("\u{feff}# mine\r\n{ssh}\r\n\r\nrestrict {ssh}\rssh-rsa AAAA me\n"),
        format!("[cluster]\nname = “lab”\njoin_key = \"{}\n{}\"\nseeds = [\n[ssh]\n", &key[..20], &key[20..]),
        "PuTTY-User-Key-File-3: ssh-ed25519\r\n".to_owned(),
        "f\0i\0l\0e\0".to_owned(),
    ]
}

fn states() -> Vec<Vec<u8>> {
    let body = |file: &[u8]| file[2..file.len() - 8].to_vec();
    let saved = forge::member_files(forge::SUBJECT, false);
    let (membership, records) = (saved.membership.unwrap_or_default(), saved.records.unwrap_or_default());
    let none = [state::ABSENT; 5];
    let mut seeds = vec![
        none.to_vec(),
        vec![state::FORGED, state::FORGED, 0, 0, 0, 9, state::FORGED, 0, 0, 0, 0, 1, 2, 3, 4],
    ];
    // identity, generation, clock, membership, records
    for (kind, membership, records) in
        [(state::SEALED, body(&membership), body(&records)), (state::RAW, membership, records)]
    {
        let mut w = Writer::new();
        w.u8(state::FORGED).u8(state::SEALED).bytes(&7u32.to_be_bytes()).u8(state::SEALED).bytes(&[0; 8]);
        w.u8(kind).bytes(&membership).u8(kind).bytes(&records);
        seeds.push(w.finish());
    }
    // The last boot that can be counted.
    seeds.push([&[state::FORGED, state::FORGED][..], &[0xff; 4]].concat());
    for first in 0..3 {
        let forged =
            [state::FORGED, state::ABSENT, state::ABSENT, state::FORGED, first, 0, 4, 0, 1, 2, 3, 4, 5, 6, 7];
        seeds.push(forged.to_vec());
    }
    let identity = Keys::to_file(forge::keys(forge::STRANGER));
    let mut w = Writer::new();
    w.u8(state::RAW).bytes(&identity[..60]).raw(&none[1..]);
    seeds.push(w.finish());
    seeds
}

fn outsiders() -> Vec<Vec<u8>> {
    let pair = Pair::formed();
    let mut seeds = Vec::new();
    // What was heard, sent again as a datagram of one's own and as a replay, from each address.
    for (n, (to, bytes)) in pair.datagrams.iter().enumerate().take(40) {
        let mut w = Writer::new();
        w.u8(outsider::REPLAY).u8(*to as u8).u8(n as u8 % 4).u16(n as u16).u16(0).u8(n as u8 / 4 % 4);
        w.u8(outsider::TIME).u8(0).u8(20).u8(outsider::DATAGRAM).u8(*to as u8).u8(n as u8 % 4).bytes(bytes);
        seeds.push(w.finish());
    }
    for (n, bytes) in pair.pieces.iter().enumerate().take(12) {
        let mut w = Writer::new();
        w.u8(outsider::ACCEPT)
            .u8(n as u8 & 1)
            .u8(outsider::REPLAY_STREAM)
            .u8(n as u8 & 1)
            .u8(1)
            .u16(n as u16)
            .u16(0)
            .u8(0);
        w.u8(outsider::STREAM).u8(n as u8 & 1).u8(1).bytes(bytes).u8(outsider::TIME).u8(0).u8(200);
        seeds.push(w.finish());
    }
    seeds
}

/// Steps after the first byte, which says what the node is.
fn attacks() -> Vec<Vec<u8>> {
    use crate::session::{PAYLOAD_ANSWER, PAYLOAD_ASK};
    use attack::{BEACON, GOSSIP, HELLO, OBJECT, OPEN, PAYLOAD, SAY, SAY_RAW, TIME};
    let hello = |w: &mut Writer, genesis: u8| {
        w.u8(OPEN).u8(0).u8(HELLO).u8(0).u8(0).raw(&[5; 8]).u64(9).u64(1_800_000_000_000).u8(genesis).u8(0);
    };
    let mut seeds = Vec::new();
    let mut add = |build: &dyn Fn(&mut Writer)| {
        let mut w = Writer::new();
        build(&mut w);
        seeds.push(w.finish());
    };
    // Introductions: without a cluster, of the same cluster, and then each message.
    for genesis in 0..3 {
        for said in 0..attack::KINDS as u8 {
            add(&|w| {
                hello(w, genesis);
                w.u8(SAY).u8(0).u8(said).u8(3).u8(1).u8(2).u8(TIME).u8(30);
            });
        }
    }
    add(&|w| {
        hello(w, 0);
        w.u8(SAY).u8(0).u8(0).u8(200).u8(TIME).u8(30);
    });
    // Streams between members.
    for said in 3..attack::KINDS as u8 {
        add(&|w| {
            w.u8(OPEN).u8(1).u8(SAY).u8(0).u8(said).u8(3).u8(1).u8(1).u8(TIME).u8(40);
        });
    }
    // A push-pull begins with the clock and a summary.
    add(&|w| {
        w.u8(OPEN)
            .u8(1)
            .u8(SAY_RAW)
            .u8(0)
            .bytes(&Message::Clock(1_800_000_000_000).encode())
            .u8(SAY)
            .u8(0)
            .u8(9);
        w.u8(0).u8(3).u8(1).u64(5).u8(0).u8(2).u64(6).u8(1).u8(3).u64(7).u8(0).u8(1).u8(TIME).u8(40);
    });
    add(&|w| {
        w.u8(OPEN).u8(1).u8(SAY_RAW).u8(0).bytes(&Message::Have(Vec::new(), true).encode());
    });
    add(&|w| {
        w.u8(OPEN).u8(1).u8(SAY).u8(0).u8(3).u8(0).u8(1).u8(200);
    });
    // An answer to the node's handshake that is no greeting, once it dials again.
    add(&|w| {
        w.u8(TIME).u8(80).u8(attack::ODD_GREETING).bytes(b"odd");
        (0..6).for_each(|_| {
            w.u8(TIME).u8(255);
        });
    });
    // Sessions: objects and gossip of each kind.
    for object in 0..4 {
        add(&|w| {
            w.u8(OBJECT).u8(object).u8(0).u8(0).u8(0).u8(2).u8(TIME).u8(60);
        });
    }
    for kind in 1..12 {
        add(&|w| {
            w.u8(GOSSIP)
                .u16(0)
                .u8(0)
                .u8(kind)
                .u8(2)
                .u32(1)
                .u32(0)
                .u8(1)
                .u8(1)
                .u8(2)
                .u32(1)
                .u32(0)
                .u8(1)
                .u16(0);
            w.bytes(&[]).u8(TIME).u8(200);
        });
    }
    for packet in conversation().heard_packets.iter().take(6) {
        add(&|w| {
            w.u8(PAYLOAD).bytes(packet).u8(TIME).u8(30);
        });
    }
    // Questions, and answers to what nobody asked; then a silence in which the node asks by itself.
    for kind in [PAYLOAD_ASK, PAYLOAD_ANSWER] {
        add(&|w| {
            let mut payload = vec![kind];
            payload.extend(7u64.to_be_bytes());
            w.u8(PAYLOAD).bytes(&payload).u8(PAYLOAD).bytes(&payload[..4]);
            (0..4).for_each(|_| {
                w.u8(TIME).u8(255);
            });
        });
    }
    // A later boot of the node itself than it knows of, and the last one there can be.
    for generation in [9, u32::MAX] {
        add(&|w| {
            w.u8(GOSSIP).u16(0).u8(0).u8(9).u8(1).u8(forge::SUBJECT).u32(generation).u32(0).u8(0).u16(0);
            w.bytes(&[]).u8(TIME).u8(200);
        });
    }
    // Beacons: of the attacker, of the node itself, with and without a cluster.
    for node in [0, 1, 2, 20, 200] {
        for cluster in 0..3 {
            add(&|w| {
                w.u8(BEACON).u8(node);
                if node == 200 {
                    w.raw(&[8; 32]);
                }
                w.raw(&[1; 8]).u8(cluster);
                if cluster == 2 {
                    w.raw(&[3; 16]);
                }
                w.u8(1).raw(&[2; 24]).u8(TIME).u8(30);
            });
        }
    }
    seeds
}
