// SPDX-License-Identifier: Apache-2.0
//! Raft messages in our encoding, and raft's types from ours.
//!
//! Messages of peers only: no proposals (an empty one makes raft's leader panic), no reads, nothing that raft tells itself.
//! What raft would answer with a panic is refused here. protobuf's decoder reads what this process encoded, nothing else
//! (RUSTSEC-2024-0437): configuration changes are in our encoding on the wire and on the disk.

use ::raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType,
    Snapshot as RaftSnapshot,
};
use cluster_agent_proto::wire::{Malformed, Reader, Writer};
use protobuf::Message as _;

use super::store::{Conf, LogEntry, Snapshot};
use crate::consts::{MAX_CONF, MAX_ENTRIES};
use crate::wire::{take_flag, take_option};

/// Longest context: that of a read (16 bytes), or raft's own word for an election that the leader asked for.
const MAX_CONTEXT: usize = 32;

/// The messages of peers, and their numbers on the wire.
const KINDS: [(u8, MessageType); 10] = [
    (1, MessageType::MsgAppend),
    (2, MessageType::MsgAppendResponse),
    (3, MessageType::MsgRequestVote),
    (4, MessageType::MsgRequestVoteResponse),
    (5, MessageType::MsgSnapshot),
    (6, MessageType::MsgHeartbeat),
    (7, MessageType::MsgHeartbeatResponse),
    (8, MessageType::MsgTimeoutNow),
    (9, MessageType::MsgRequestPreVote),
    (10, MessageType::MsgRequestPreVoteResponse),
];

/// Appends a message. `None` for one that peers do not send.
pub(crate) fn write_message(w: &mut Writer, m: &Message) -> Option<()> {
    let (kind, _) = KINDS.iter().find(|(_, of)| *of == m.get_msg_type())?;
    w.u8(*kind).u64(m.from).u64(m.to).u64(m.term);
    w.u64(m.log_term).u64(m.index).u64(m.commit).u64(m.commit_term);
    w.u8(u8::from(m.reject)).u64(m.reject_hint).bytes(&m.context);
    w.u16(m.entries.len() as u16);
    for entry in &m.entries {
        entry_from_raft(entry).write(w);
    }
    if m.get_msg_type() == MessageType::MsgSnapshot {
        w.u8(1);
        snapshot_from_raft(m.get_snapshot()).write(w);
    } else {
        w.u8(0);
    }
    Some(())
}

/// Takes a message that raft can be given without fear.
pub(crate) fn read_message(r: &mut Reader<'_>) -> Result<Message, Malformed> {
    let kind = r.u8()?;
    let (_, of) = *KINDS.iter().find(|(one, _)| *one == kind).ok_or(r.malformed())?;
    let mut m = Message::default();
    m.set_msg_type(of);
    (m.from, m.to, m.term) = (r.u64()?, r.u64()?, r.u64()?);
    (m.log_term, m.index, m.commit, m.commit_term) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
    (m.reject, m.reject_hint) = (take_flag(r)?, r.u64()?);
    m.context = r.bytes(MAX_CONTEXT)?.to_vec().into();
    let count = usize::from(r.u16()?);
    if count > MAX_ENTRIES || (count > 0 && of != MessageType::MsgAppend) {
        return Err(r.malformed());
    }
    let entries = (0..count).map(|_| LogEntry::read(r)).collect::<Result<Vec<_>, _>>()?;
    let snapshot = take_option(r, Snapshot::read)?;
    let mut expected = (m.index, m.log_term);
    for entry in &entries {
        let next = expected.0.checked_add(1).ok_or(r.malformed())?;
        let sound = entry.index == next && entry.term >= expected.1 && entry.term <= m.term;
        if !sound || (entry.is_conf && read_change(&entry.data).is_err()) {
            return Err(r.malformed());
        }
        expected = (entry.index, entry.term);
    }
    let sound = m.from != 0
        && m.to != 0
        && m.from != m.to
        && m.term != 0
        // Indexes are added to.
        && [m.index, m.commit, m.reject_hint, m.term].iter().all(|number| *number < u64::MAX / 2)
        && snapshot.is_some() == (of == MessageType::MsgSnapshot)
        && snapshot.as_ref().is_none_or(|snapshot| snapshot.term <= m.term && snapshot.index < u64::MAX / 2);
    if !sound {
        return Err(r.malformed());
    }
    m.set_entries(entries.iter().map(entry_to_raft).collect::<Vec<_>>().into());
    if let Some(snapshot) = snapshot {
        m.set_snapshot(snapshot_to_raft(&snapshot));
    }
    Ok(m)
}

/// Kinds of a single change of the configuration.
const CHANGES: [(u8, ConfChangeType); 3] =
    [(1, ConfChangeType::AddNode), (2, ConfChangeType::AddLearnerNode), (3, ConfChangeType::RemoveNode)];

/// Our encoding of a change; empty is the end of a joint one.
fn write_change(change: &ConfChangeV2) -> Vec<u8> {
    let mut w = Writer::new();
    for one in change.get_changes() {
        let (kind, _) = CHANGES.iter().find(|(_, of)| *of == one.get_change_type()).unwrap_or(&CHANGES[0]);
        w.u8(*kind).u64(one.node_id);
    }
    w.finish()
}

pub(super) fn read_change(bytes: &[u8]) -> Result<ConfChangeV2, Malformed> {
    let mut r = Reader::new("configuration change", bytes);
    let mut singles = Vec::new();
    while r.remaining() > 0 {
        let kind = r.u8()?;
        let (_, of) = CHANGES.iter().find(|(one, _)| *one == kind).ok_or(r.malformed())?;
        let mut single = ConfChangeSingle::default();
        single.set_change_type(*of);
        single.node_id = r.u64()?;
        if single.node_id == 0 || singles.len() == MAX_CONF {
            return Err(r.malformed());
        }
        singles.push(single);
    }
    let mut change = ConfChangeV2::default();
    change.set_changes(singles.into());
    Ok(change)
}

/// What raft has in its log for a change: its own bytes, made here.
fn change_to_raft(bytes: &[u8]) -> Vec<u8> {
    read_change(bytes).ok().and_then(|change| change.write_to_bytes().ok()).unwrap_or_default()
}

/// The change in an entry of raft's log, whose bytes this process made.
pub(super) fn change_of(entry: &Entry) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    // Raft's own entry that ends a joint change is empty.
    change.merge_from_bytes(&entry.data).map(|()| change).unwrap_or_default()
}

pub(super) fn entry_to_raft(entry: &LogEntry) -> Entry {
    let mut of = Entry::default();
    (of.index, of.term) = (entry.index, entry.term);
    if entry.is_conf {
        of.set_entry_type(EntryType::EntryConfChangeV2);
        of.data = change_to_raft(&entry.data).into();
    } else {
        of.data = entry.data.clone().into();
    }
    of
}

pub(super) fn entry_from_raft(entry: &Entry) -> LogEntry {
    let is_conf = entry.get_entry_type() != EntryType::EntryNormal;
    let data = if is_conf { write_change(&change_of(entry)) } else { entry.data.to_vec() };
    LogEntry { index: entry.index, term: entry.term, is_conf, data }
}

pub(super) fn conf_to_raft(conf: &Conf) -> ConfState {
    ConfState {
        voters: conf.voters.clone(),
        learners: conf.learners.clone(),
        voters_outgoing: conf.outgoing.clone(),
        learners_next: conf.learners_next.clone(),
        auto_leave: conf.auto_leave,
        ..ConfState::default()
    }
}

pub(super) fn conf_from_raft(state: &ConfState) -> Conf {
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    Conf {
        voters: sorted(&state.voters),
        learners: sorted(&state.learners),
        outgoing: sorted(&state.voters_outgoing),
        learners_next: sorted(&state.learners_next),
        auto_leave: state.auto_leave,
    }
}

pub(super) fn snapshot_to_raft(snapshot: &Snapshot) -> RaftSnapshot {
    let mut of = RaftSnapshot { data: snapshot.state.clone().into(), ..RaftSnapshot::default() };
    let metadata = of.mut_metadata();
    (metadata.index, metadata.term) = (snapshot.index, snapshot.term);
    metadata.set_conf_state(conf_to_raft(&snapshot.conf));
    of
}

pub(super) fn snapshot_from_raft(snapshot: &RaftSnapshot) -> Snapshot {
    let metadata = snapshot.get_metadata();
    Snapshot {
        index: metadata.index,
        term: metadata.term,
        conf: conf_from_raft(metadata.get_conf_state()),
        state: snapshot.data.to_vec(),
    }
}

/// The snapshot that a message brings.
pub(crate) fn snapshot_in(message: &Message) -> Option<Snapshot> {
    (message.get_msg_type() == MessageType::MsgSnapshot).then(|| snapshot_from_raft(message.get_snapshot()))
}

/// One message of each kind that peers send, for fuzzing and tests.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn sample_messages(entry: &LogEntry, snapshot: &Snapshot) -> Vec<Message> {
    let sample = |(_, of): &(u8, MessageType)| {
        let mut m = Message::default();
        m.set_msg_type(*of);
        (m.from, m.to, m.term) = (2, 1, entry.term + 1);
        match of {
            MessageType::MsgAppend => {
                (m.index, m.log_term, m.commit) = (entry.index - 1, entry.term, entry.index - 1);
                m.set_entries(vec![entry_to_raft(entry)].into());
            }
            MessageType::MsgSnapshot => m.set_snapshot(snapshot_to_raft(snapshot)),
            MessageType::MsgAppendResponse => (m.reject, m.reject_hint, m.index) = (true, 4, 5),
            _ => (m.index, m.log_term) = (entry.index, entry.term),
        }
        m
    };
    KINDS.iter().map(sample).collect()
}
