// SPDX-License-Identifier: Apache-2.0
//! Fixed nodes and the objects that they sign. Whoever attacks signs whatever he likes, but only with his own keys.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::script::Script;
use crate::gossip::{GossipId, Liveness};
use crate::id::{ClusterId, NodeId};
use crate::input::Saved;
use crate::join_key::JoinKey;
use crate::keys::Keys;
use crate::node::probe;
use crate::one_of_each::one_of_each;
use crate::record::{NodeRecord, Sequence};
use crate::roster::{Admission, Genesis, Leave, Object, Roster};
use crate::settings::Settings;
use crate::signed::Verified;

/// The node under test.
pub(super) const SUBJECT: u8 = 0;
/// The member that attacks, or speaks honestly while an outsider attacks.
pub(super) const PEER: u8 = 1;
/// A member that is never there.
pub(super) const ABSENT: u8 = 2;
/// Was a member once; makes a cluster one that does not dissolve.
const GONE: u8 = 3;
/// Has the join key and nothing else.
pub(super) const STRANGER: u8 = 4;

/// Fixed nodes that a script can name.
const NODES: usize = 8;

/// Signing and deriving keys would be most of the time of a run: what never changes is made once.
fn nodes() -> &'static [(Keys, NodeId)] {
    static NODES_MADE: OnceLock<Vec<(Keys, NodeId)>> = OnceLock::new();
    NODES_MADE.get_or_init(|| {
        let make = |n: u8| Keys::generate(&std::array::from_fn(|i| n.wrapping_mul(97).wrapping_add(i as u8)));
        (0..NODES as u8).map(|n| (make(n), make(n).node_id())).collect()
    })
}

pub(super) fn keys(n: u8) -> &'static Keys {
    &nodes()[usize::from(n) % NODES].0
}

pub(super) fn id(n: u8) -> NodeId {
    nodes()[usize::from(n) % NODES].1
}

pub(super) fn join_key() -> JoinKey {
    JoinKey::generate(&std::array::from_fn(|i| 7 + i as u8))
}

pub(super) fn settings() -> Settings {
    let text = format!("[cluster]\nname = \"lab\"\njoin_key = \"{}\"\n", join_key().to_text());
    Settings::parse(&text).expect("the file is valid")
}

pub(crate) fn cluster_id() -> ClusterId {
    ClusterId([0x55; 16])
}

pub(super) fn genesis() -> Verified<Genesis> {
    let genesis = Genesis {
        cluster: cluster_id(),
        incarnation: 1,
        name: "lab".into(),
        join_key: join_key().fingerprint(),
        founder: keys(SUBJECT).public(),
        created: 1_800_000_000,
        admin_keys: Vec::new(),
    };
    Verified::sign(genesis, keys(SUBJECT))
}

pub(super) fn record(n: u8) -> Verified<NodeRecord> {
    record_at(n, 1, 1)
}

#[cfg(test)]
pub(super) fn record_of_boot(n: u8, generation: u32) -> Verified<NodeRecord> {
    record_at(n, generation, 1)
}

pub(super) fn record_at(n: u8, generation: u32, counter: u32) -> Verified<NodeRecord> {
    let keys = keys(n);
    let record = NodeRecord {
        public_key: keys.public(),
        sequence: Sequence { generation, counter },
        session_key: keys.session_public(),
        wireguard_key: keys.wireguard_public(),
        feature_level: 1,
        hostname: format!("node-{n}"),
        version: "1.2.3".into(),
        endpoints: vec![super::subject::address(n)],
        labels: BTreeMap::new(),
        releases: Vec::new(),
    };
    Verified::sign(record, keys)
}

fn admission(subject: u8) -> Verified<Admission> {
    let admission = Admission {
        cluster: cluster_id(),
        subject: keys(subject).public(),
        round: 1,
        admitter: keys(SUBJECT).public(),
        at: 1_800_000_000,
    };
    Verified::sign(admission, keys(SUBJECT))
}

/// Subject, peer and absent member; `blank`: nobody has left yet, so the cluster may dissolve into another.
pub(super) fn roster(blank: bool) -> &'static Roster {
    static MADE: OnceLock<[Roster; 2]> = OnceLock::new();
    &MADE.get_or_init(|| [make_roster(false), make_roster(true)])[usize::from(blank)]
}

fn make_roster(blank: bool) -> Roster {
    let mut roster = Roster::new(genesis());
    for n in [PEER, ABSENT] {
        roster.add(Object::Admission(admission(n)));
    }
    if !blank {
        roster.add(Object::Admission(admission(GONE)));
        let leave =
            Leave { cluster: cluster_id(), subject: keys(GONE).public(), round: 1, at: 1_800_000_001 };
        roster.add(Object::Leave(Verified::sign(leave, keys(GONE))));
    }
    for n in [SUBJECT, PEER, ABSENT] {
        roster.add(Object::Record(record(n)));
    }
    roster
}

/// State files of a member.
pub(super) fn member_files(n: u8, blank: bool) -> Saved {
    let (membership, records) = probe::member_files(roster(blank), &join_key());
    Saved {
        identity: Some(keys(n).to_file()),
        membership: Some(membership),
        records: Some(records),
        ..Saved::default()
    }
}

/// A signed object as the script wants it, signed by `signer`.
pub(super) fn object(script: &mut Script<'_>, signer: u8) -> Vec<u8> {
    let kinds: [fn(&mut Script<'_>, u8) -> Vec<u8>; 3] = one_of_each!(Object:
        Object::Record(_) => |script, signer| signed_record(script, signer).as_bytes().to_vec(),
        Object::Admission(_) => |script, signer| signed_admission(script, signer).as_bytes().to_vec(),
        Object::Leave(_) => |script, signer| signed_leave(script, signer).as_bytes().to_vec(),
    );
    match kinds.get(usize::from(script.u8() % 4)) {
        Some(make) => make(script, signer),
        // Not an object that members pass on, but signed as they are.
        None => signed_genesis(script, signer).as_bytes().to_vec(),
    }
}

fn any_cluster(script: &mut Script<'_>) -> ClusterId {
    if script.flag() { ClusterId(script.array()) } else { cluster_id() }
}

fn signed_admission(script: &mut Script<'_>, signer: u8) -> Verified<Admission> {
    let admission = Admission {
        cluster: any_cluster(script),
        subject: match script.u8() {
            n @ 0..8 => keys(n).public(),
            _ => script.array(),
        },
        round: script.u32(),
        admitter: keys(signer).public(),
        at: script.u64(),
    };
    Verified::sign(admission, keys(signer))
}

fn signed_leave(script: &mut Script<'_>, signer: u8) -> Verified<Leave> {
    let leave = Leave {
        cluster: any_cluster(script),
        subject: keys(signer).public(),
        round: script.u32(),
        at: script.u64(),
    };
    Verified::sign(leave, keys(signer))
}

pub(super) fn signed_genesis(script: &mut Script<'_>, signer: u8) -> Verified<Genesis> {
    let keys = keys(signer);
    let genesis = Genesis {
        cluster: if script.flag() { ClusterId(script.array()) } else { cluster_id() },
        incarnation: script.u32(),
        name: script.text(),
        join_key: if script.flag() { script.array() } else { join_key().fingerprint() },
        founder: keys.public(),
        created: script.u64(),
        admin_keys: (0..script.u8() % 20).map(|n| [n; 32]).collect(),
    };
    Verified::sign(genesis, keys)
}

pub(super) fn signed_record(script: &mut Script<'_>, signer: u8) -> Verified<NodeRecord> {
    let mine = keys(signer);
    // Other nodes' keys in one's own record are what the roster must refuse.
    let key_of = |script: &mut Script<'_>, own: [u8; 32], of: fn(&Keys) -> [u8; 32]| match script.u8() {
        0..128 => own,
        n @ 128..136 => of(keys(n - 128)),
        _ => script.array(),
    };
    let record = NodeRecord {
        public_key: mine.public(),
        sequence: Sequence { generation: script.u32(), counter: script.u32() },
        session_key: key_of(script, mine.session_public(), Keys::session_public),
        wireguard_key: key_of(script, mine.wireguard_public(), Keys::wireguard_public),
        feature_level: script.u16(),
        hostname: script.text(),
        version: script.text(),
        endpoints: (0..script.u8() % 10).map(|_| script.socket()).collect(),
        labels: (0..script.u8() % 18).map(|_| (script.text(), script.text())).collect(),
        releases: Vec::new(),
    };
    Verified::sign(record, mine)
}

/// What gossip might say of somebody.
pub(super) fn liveness(script: &mut Script<'_>) -> Liveness {
    use foca::State;
    let node = match script.u8() {
        n @ 0..8 => id(n),
        _ => NodeId(script.array()),
    };
    let id = GossipId { node, generation: script.u32(), bump: script.u32() };
    let state = [State::Alive, State::Suspect, State::Down][usize::from(script.u8() % 3)];
    Liveness { id, incarnation: script.u16(), state }
}
