// SPDX-License-Identifier: Apache-2.0
//! The state as bytes: in snapshots, on disks, and for nodes that follow.

use std::collections::{BTreeMap, BTreeSet};

use cluster_agent_proto::NodeId;
use cluster_agent_proto::consts::WIRE_VERSION;
use cluster_agent_proto::wire::{Malformed, Reader, Writer};

use super::{
    Change, Departed, Digest, JoinRequest, Member, Outcome, Refusal, RequestId, Setting, SettingKind, State,
    StoredJoinKey, Versioned,
};
use crate::consts::{
    MAX_DEPARTED, MAX_EVICTED, MAX_HISTORY, MAX_JOIN_KEYS, MAX_MEMBERS, MAX_REMEMBERED, MAX_REQUESTS,
    MAX_STATE,
};
use crate::genesis::Genesis;
use crate::raft::Conf;
use crate::wire::{put_option, take_option};

const KIND: u8 = 0x22;

pub(super) fn encode(state: &State) -> Vec<u8> {
    let mut w = Writer::new();
    w.u8(WIRE_VERSION).u8(KIND);
    state.genesis.write(&mut w);
    w.u32(state.incarnation).u64(state.index).raw(&state.digest.0).u64(state.time);
    state.conf.write(&mut w);
    w.u64(state.next_replica);
    w.u32(state.members.len() as u32);
    for member in state.members.values() {
        member.write(&mut w);
    }
    w.u32(state.departed.len() as u32);
    for (node, departed) in &state.departed {
        departed.write(w.raw(&node.0));
    }
    w.u32(state.settings.len() as u32);
    for (kind, setting) in &state.settings {
        w.u8(kind.number()).u64(setting.version);
        put_option(&mut w, setting.value.as_ref(), |w, value| value.write(w));
    }
    w.u32(state.history.len() as u32);
    for change in &state.history {
        change.write(&mut w);
    }
    w.u32(state.join_keys.len() as u32);
    for key in state.join_keys.values() {
        key.write(&mut w);
    }
    w.u32(state.requests.len() as u32);
    for request in state.requests.values() {
        request.write(&mut w);
    }
    w.u32(state.remembered.len() as u32);
    for (request, outcome) in &state.remembered {
        w.raw(&request.0);
        write_outcome(&mut w, *outcome);
    }
    w.finish()
}

pub(super) fn decode(bytes: &[u8]) -> Result<State, Malformed> {
    let mut r = Reader::new("control state", bytes);
    if bytes.len() > MAX_STATE || r.u8()? != WIRE_VERSION || r.u8()? != KIND {
        return Err(r.malformed());
    }
    let genesis = Genesis::read(&mut r)?;
    let (incarnation, index, digest, time) = (r.u32()?, r.u64()?, Digest(r.array()?), r.u64()?);
    let conf = Conf::read(&mut r)?;
    let next_replica = r.u64()?;
    let members = map(&mut r, MAX_MEMBERS, |r| {
        let member = Member::read(r)?;
        Ok((member.node(), member))
    })?;
    let departed =
        map(&mut r, MAX_DEPARTED + MAX_EVICTED + 1, |r| Ok((NodeId(r.array()?), Departed::read(r)?)))?;
    let settings = map(&mut r, SettingKind::ALL.len(), |r| {
        let kind = SettingKind::of_number(r.u8()?).ok_or(r.malformed())?;
        let setting = Versioned { version: r.u64()?, value: take_option(r, Setting::read)? };
        if setting.value.as_ref().is_some_and(|value| value.kind() != kind) {
            return Err(r.malformed());
        }
        Ok((kind, setting))
    })?;
    let history = list(&mut r, MAX_HISTORY, Change::read)?.into();
    let join_keys = map(&mut r, MAX_JOIN_KEYS, |r| {
        let key = StoredJoinKey::read(r)?;
        Ok((key.id, key))
    })?;
    let requests = map(&mut r, MAX_REQUESTS, |r| {
        let request = JoinRequest::read(r)?;
        Ok((request.candidate.node(), request))
    })?;
    let remembered = list(&mut r, MAX_REMEMBERED, |r| Ok((RequestId(r.array()?), read_outcome(r)?)))?.into();
    let malformed = r.malformed();
    r.end()?;
    let state = State {
        genesis,
        incarnation,
        index,
        digest,
        time,
        conf,
        next_replica,
        members,
        departed,
        settings,
        history,
        join_keys,
        requests,
        remembered,
    };
    if is_sound(&state) { Ok(state) } else { Err(malformed) }
}

/// What `apply` keeps true.
fn is_sound(state: &State) -> bool {
    let mut names = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    let mut replicas = BTreeSet::new();
    let all = state.members.iter();
    all.clone().all(|(_, member)| names.insert(&member.name) && addresses.insert(member.ipv4))
        && all
            .clone()
            .filter_map(|(_, member)| member.replica)
            .all(|replica| replicas.insert(replica.id) && replica.id != 0 && replica.id < state.next_replica)
        && all.clone().all(|(node, _)| !state.departed.contains_key(node))
        && state.conf.ids().all(|id| id < state.next_replica)
        && state.index > 0
        && state.index < u64::MAX / 2
        && state.incarnation > 0
}

pub(crate) fn write_outcome(w: &mut Writer, outcome: Outcome) {
    match outcome {
        Outcome::Done => w.u8(0).u8(0),
        Outcome::Waiting => w.u8(1).u8(0),
        Outcome::Refused(refusal) => w.u8(2).u8(refusal as u8),
    };
}

pub(crate) fn read_outcome(r: &mut Reader<'_>) -> Result<Outcome, Malformed> {
    match (r.u8()?, r.u8()?) {
        (0, 0) => Ok(Outcome::Done),
        (1, 0) => Ok(Outcome::Waiting),
        (2, number) => Refusal::of_number(number).map(Outcome::Refused).ok_or(r.malformed()),
        _ => Err(r.malformed()),
    }
}

fn list<T>(
    r: &mut Reader<'_>,
    max: usize,
    mut read: impl FnMut(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = r.u32()? as usize;
    if count > max {
        return Err(r.malformed());
    }
    (0..count).map(|_| read(r)).collect()
}

/// Keys ascend: one state has one encoding.
fn map<K: Ord, V>(
    r: &mut Reader<'_>,
    max: usize,
    read: impl FnMut(&mut Reader<'_>) -> Result<(K, V), Malformed>,
) -> Result<BTreeMap<K, V>, Malformed> {
    let all = list(r, max, read)?;
    if all.windows(2).all(|two| two[0].0 < two[1].0) {
        Ok(all.into_iter().collect())
    } else {
        Err(r.malformed())
    }
}
