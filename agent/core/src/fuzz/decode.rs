// SPDX-License-Identifier: Apache-2.0
//! Decoders alone: what they take, they give back byte by byte.

use super::forge;
use crate::beacon::{Beacon, Seal};
use crate::gossip::{Gossip, GossipId, LIVENESS, Liveness, Word, packet_envelope};
use crate::id::NodeId;
use crate::join_key::JoinKey;
use crate::record::{NodeRecord, Sequence};
use crate::roster::{Admission, Genesis, Leave, Object};
use crate::signed::{Signed, Verified};
use crate::sync::Message;
use crate::wire::{Reader, Writer};
use rand::SeedableRng;
use std::time::Duration;

/// Kinds of input, in its first byte.
pub(super) const BEACON: u8 = 0;
pub(super) const GREETING: u8 = 1;
pub(super) const MESSAGE: u8 = 2;
pub(super) const RECORD: u8 = 3;
pub(super) const GENESIS: u8 = 4;
pub(super) const ADMISSION: u8 = 5;
pub(super) const LEAVE: u8 = 6;
pub(super) const OBJECT: u8 = 7;
pub(super) const GOSSIP: u8 = 8;
pub(super) const LIVENESS_LIST: u8 = 9;
pub(super) const JOIN_KEY: u8 = 10;
pub(super) const NODE_ID: u8 = 11;
const KINDS: u8 = 12;

pub(super) fn run(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    match kind % KINDS {
        BEACON => beacon(body),
        GREETING => {
            if let Ok(greeting) = crate::session::probe::read_greeting(body) {
                assert_eq!(crate::session::probe::write_greeting(&greeting), body);
            }
        }
        MESSAGE => {
            if let Ok(message) = Message::decode(body) {
                assert_eq!(message.encode(), body);
            }
        }
        RECORD => fields::<NodeRecord>(body),
        GENESIS => fields::<Genesis>(body),
        ADMISSION => fields::<Admission>(body),
        LEAVE => fields::<Leave>(body),
        OBJECT => {
            if let Ok(object) = Object::open(body) {
                assert_eq!(object.as_bytes(), body);
            }
        }
        GOSSIP => gossip(body),
        LIVENESS_LIST => {
            let mut r = Reader::new("fuzz", body);
            while let Ok(one) = Liveness::read(&mut r) {
                let mut w = Writer::new();
                one.write(&mut w);
                let at = body.len() - r.remaining();
                assert_eq!(w.finish(), body[at - LIVENESS..at]);
            }
        }
        JOIN_KEY => text(body, |text| {
            if let Ok(key) = JoinKey::parse(text) {
                assert_eq!(key.to_text(), text);
            }
        }),
        _ => text(body, |text| {
            if let Ok(id) = text.parse::<NodeId>() {
                assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
            }
        }),
    }
}

fn text(body: &[u8], check: impl FnOnce(&str)) {
    if let Ok(text) = std::str::from_utf8(body) {
        check(text);
    }
}

/// As a datagram, and as what an attacker with the join key may seal.
fn beacon(body: &[u8]) {
    let seal = Seal::new(&[7; 32]);
    assert!(Beacon::open(&seal, body).is_err(), "a beacon was forged without the join key");
    let datagram = [&[1, 1][..], &seal.seal([0; 24], &[1, 1], body)].concat();
    if let Ok(beacon) = Beacon::open(&seal, &datagram) {
        assert_eq!(Beacon::open(&seal, &beacon.to_datagram(&seal, [1; 24])), Ok(beacon));
    }
}

/// Fields without a signature: what can be read is written the same. Signed objects begin with the signer's key, so with a
/// signature only fixed keys could be tried.
fn fields<T: Signed>(body: &[u8]) {
    let mut r = Reader::new("fuzz", body);
    if let Ok(value) = T::read(&mut r) {
        let used = body.len() - r.remaining();
        let mut w = Writer::new();
        value.write(&mut w);
        assert_eq!(w.finish(), body[..used]);
    }
    assert!(Verified::<T>::open(body).is_err() || body.len() > 64);
}

/// A packet of a member, given to gossip that knows nobody yet.
fn gossip(body: &[u8]) {
    let id = |n| GossipId { node: forge::id(n), generation: 1, bump: 0 };
    let mut gossip = Gossip::new(id(forge::SUBJECT), rand::rngs::StdRng::from_seed([1; 32]));
    let Ok(envelope) = packet_envelope(body) else { return };
    let said = Word::Signed(Sequence { generation: u32::MAX, counter: u32::MAX });
    let _ = gossip.receive(Duration::ZERO, envelope.source.node, body, |_| said);
    for seconds in 0..12 {
        gossip.tick(Duration::from_secs(seconds));
        gossip.assert_bounded();
    }
    gossip.take_outcomes();
}
