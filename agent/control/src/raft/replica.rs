// SPDX-License-Identifier: Apache-2.0
//! The replica: what it is told, what must be on its disk, and what then may leave it.
//!
//! Raft knows three kinds of messages. Heartbeats and what a leader appends wait for nothing but the disk write that holds
//! this term and vote. All others (votes, answers to appends) promise what all writes so far hold, and wait for them.

use std::collections::{BTreeMap, VecDeque};

use ::raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, EntryType, Message, MessageType,
};
use ::raft::{Config, ProgressState, RawNode, SnapshotStatus, StateRole};
use rand::RngExt;
use rand::rngs::StdRng;

use super::codec::{change_of, conf_from_raft, entry_from_raft, snapshot_from_raft, snapshot_to_raft};
use super::log::Log;
use super::store::{Conf, HardState, LogEntry, Persist, Saved, Snapshot};
use crate::consts::{
    COMPACT_AFTER, COMPACT_BYTES, COMPACT_KEEP, ELECTION_TICKS, HEARTBEAT_TICKS, MAX_APPEND, MAX_UNCOMMITTED,
    SNAPSHOT_TICKS,
};

/// Messages that wait for the disk. Raft takes lost ones for granted, so the oldest go first.
const MAX_HELD: usize = 4096;

/// What a replica is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Follows, or learns.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It contradicts what is known; its sender is mistaken or lies.
    Nonsense,
    /// A leader says that entries are committed which this replica confirmed and does not have: its disk lost them.
    LogLost,
}

/// What is agreed, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    Entry(LogEntry),
    Conf(LogEntry, Conf),
    Snapshot(Snapshot),
}

/// One part of a change of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Learn(u64),
    Vote(u64),
    Remove(u64),
}

pub(crate) struct Replica {
    node: RawNode<Log>,
    id: u64,
    /// Persist ids: given out, on the disk, and the one that holds the present term and vote.
    issued: u64,
    durable: u64,
    ballot: u64,
    hard_state: HardState,
    /// Writes under way, and raft's number of what is done with each.
    writes: VecDeque<(u64, u64)>,
    /// A snapshot of the leader is among them.
    installing: Option<u64>,
    held: VecDeque<(u64, Message)>,
    persists: VecDeque<Persist>,
    /// Told to the state machine.
    applied: u64,
    term_and_role: (u64, StateRole),
    /// Election timeout in ticks.
    timeout: usize,
    /// Ticks since a snapshot went to a follower.
    snapshots: BTreeMap<u64, u32>,
    /// A fresh store, which the first write makes.
    fresh: bool,
}

impl Replica {
    /// Goes on with what was saved. `None` when that is damaged: a tail is never cut off and voted with.
    pub(crate) fn start(saved: &Saved, rng: &mut StdRng) -> Option<Self> {
        if saved.replica == 0 || !saved.is_whole() {
            return None;
        }
        let applied = saved.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        let config = Config {
            id: saved.replica,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied,
            max_size_per_msg: MAX_APPEND,
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            max_uncommitted_size: MAX_UNCOMMITTED,
            max_committed_size_per_ready: MAX_UNCOMMITTED,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, Log::new(saved), &logger).ok()?;
        let mut replica = Self {
            id: saved.replica,
            issued: saved.sequence,
            durable: saved.sequence,
            ballot: saved.sequence,
            hard_state: saved.hard_state,
            writes: VecDeque::new(),
            installing: None,
            held: VecDeque::new(),
            persists: VecDeque::new(),
            applied,
            term_and_role: (node.raft.term, StateRole::Follower),
            timeout: 0,
            snapshots: BTreeMap::new(),
            fresh: false,
            node,
        };
        replica.draw_timeout(rng);
        Some(replica)
    }

    /// A replica that has nothing yet, and whose first write makes its store.
    pub(crate) fn fresh(id: u64, rng: &mut StdRng) -> Option<Self> {
        let mut replica = Self::start(&Saved { replica: id, ..Saved::default() }, rng)?;
        replica.fresh = true;
        Some(replica)
    }

    /// The first replica of a group: all that it has is its first write.
    pub(crate) fn begin(saved: &Saved, rng: &mut StdRng) -> Option<Self> {
        let mut replica = Self::start(saved, rng)?;
        replica.fresh = true;
        let mut write = replica.next_write();
        write.snapshot = saved.snapshot.clone();
        replica.ballot = write.id;
        replica.writes.push_back((write.id, 0));
        replica.persists.push_back(write);
        Some(replica)
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn role(&self) -> Role {
        match self.node.raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }

    pub(crate) fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// Raft id of the leader, if one is known.
    pub(crate) fn leader(&self) -> Option<u64> {
        Some(self.node.raft.leader_id).filter(|id| *id != 0)
    }

    /// Id of the last write that is on the disk.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    pub(crate) fn conf(&self) -> Conf {
        conf_from_raft(&self.node.raft.prs().conf().to_conf_state())
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    pub(crate) fn committed(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// A change of the configuration is under way.
    pub(crate) fn is_changing(&self) -> bool {
        self.node.raft.has_pending_conf()
    }

    /// Of each other replica what a leader knows it to have.
    pub(crate) fn progress(&self) -> BTreeMap<u64, u64> {
        self.node.raft.prs().iter().map(|(id, progress)| (*id, progress.matched)).collect()
    }

    /// Applied entries after this index, `None` when they are gone.
    pub(crate) fn entries_after(&self, index: u64) -> Option<Vec<LogEntry>> {
        let entries = self.node.raft.store().entries_after(index)?;
        Some(entries.iter().take_while(|entry| entry.index <= self.applied).map(entry_from_raft).collect())
    }

    pub(crate) fn tick(&mut self, rng: &mut StdRng) {
        // Whoever waits for its disk does not ask for votes: raft takes it for granted that a candidate's log is on the disk, and
        // cannot look behind a snapshot that is being installed.
        if self.node.raft.state == StateRole::Leader || self.writes.is_empty() {
            self.node.tick();
        }
        let mut lost = Vec::new();
        let raft = &self.node.raft;
        let sending = raft.prs().iter().filter(|(_, progress)| progress.state == ProgressState::Snapshot);
        let sending: Vec<u64> = sending.map(|(id, _)| *id).collect();
        self.snapshots.retain(|id, _| sending.contains(id));
        for id in sending {
            let ticks = self.snapshots.entry(id).or_default();
            *ticks += 1;
            if *ticks > SNAPSHOT_TICKS {
                *ticks = 0;
                lost.push(id);
            }
        }
        for id in lost {
            self.node.report_snapshot(id, SnapshotStatus::Failure);
        }
        self.draw_timeout(rng);
    }

    /// Takes a message that was read by [`super::read_message`] and comes from the node of its raft id.
    pub(crate) fn step(&mut self, message: Message, rng: &mut StdRng) -> Result<(), Fault> {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        let of = message.get_msg_type();
        let current = message.term == raft.term;
        if message.to != self.id || message.from == self.id {
            return Err(Fault::Nonsense);
        }
        let leads = current && raft.state == StateRole::Leader;
        match of {
            // Both would make raft panic, or go on without what it promised.
            MessageType::MsgHeartbeat if message.term >= raft.term && message.commit > last => {
                return Err(Fault::LogLost);
            }
            MessageType::MsgAppendResponse if leads && !message.reject && message.index > last => {
                return Err(Fault::Nonsense);
            }
            MessageType::MsgHeartbeat | MessageType::MsgAppend | MessageType::MsgSnapshot if leads => {
                return Err(Fault::Nonsense);
            }
            MessageType::MsgTimeoutNow
                if !current || message.from != raft.leader_id || self.installing.is_some() =>
            {
                return Err(Fault::Nonsense);
            }
            _ => {}
        }
        // An error says that the message came too late to mean anything.
        let _ = self.node.step(message);
        self.draw_timeout(rng);
        Ok(())
    }

    /// Proposes an entry; false when there is no leader here, or it has too much to do.
    #[must_use]
    pub(crate) fn propose(&mut self, data: Vec<u8>) -> bool {
        debug_assert!(!data.is_empty(), "raft takes an empty entry for one of its own");
        self.node.raft.state == StateRole::Leader && self.node.propose(Vec::new(), data).is_ok()
    }

    /// Proposes a change; none at all ends a joint one.
    #[must_use]
    pub(crate) fn change(&mut self, changes: &[Change]) -> bool {
        if self.node.raft.state != StateRole::Leader || self.is_changing() {
            return false;
        }
        let singles = changes.iter().map(|change| {
            let (of, id) = match change {
                Change::Learn(id) => (ConfChangeType::AddLearnerNode, id),
                Change::Vote(id) => (ConfChangeType::AddNode, id),
                Change::Remove(id) => (ConfChangeType::RemoveNode, id),
            };
            let mut single = ConfChangeSingle::default();
            single.set_change_type(of);
            single.node_id = *id;
            single
        });
        let singles = singles.collect::<Vec<_>>();
        let mut all = ConfChangeV2::default();
        all.set_transition(ConfChangeTransition::Auto);
        all.set_changes(singles.into());
        self.node.propose_conf_change(Vec::new(), all).is_ok()
    }

    /// Asks the voters whether this is still the leader. The answer, if one comes, names the context.
    pub(crate) fn read_index(&mut self, context: &[u8; 16]) {
        if self.node.raft.state == StateRole::Leader {
            self.node.read_index(context.to_vec());
        }
    }

    /// Gives leadership away.
    pub(crate) fn transfer(&mut self, to: u64) {
        self.node.transfer_leader(to);
    }

    /// Begins an election now: nobody else can.
    pub(crate) fn campaign(&mut self, rng: &mut StdRng) {
        let _ = self.node.campaign();
        self.draw_timeout(rng);
    }

    /// All writes up to this one are on the disk.
    pub(crate) fn persisted(&mut self, id: u64) {
        if id > self.issued || id <= self.durable {
            return;
        }
        self.durable = id;
        let mut number = 0;
        while let Some((write, of)) = self.writes.front().copied()
            && write <= id
        {
            self.writes.pop_front();
            number = of;
        }
        self.node.on_persist_ready(number);
        self.installing = self.installing.filter(|write| *write > id);
        self.advance();
    }

    /// Works until there is nothing to do: what is agreed is given to the caller in order.
    pub(crate) fn work(&mut self, rng: &mut StdRng) -> (Vec<Committed>, Vec<(u64, Vec<u8>)>) {
        let (mut agreed, mut reads) = (Vec::new(), Vec::new());
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            reads.extend(ready.take_read_states().into_iter().map(|read| (read.index, read.request_ctx)));
            if let Some(state) = ready.hs() {
                let now = HardState { term: state.term, vote: state.vote, commit: state.commit };
                if (now.term, now.vote) != (self.hard_state.term, self.hard_state.vote) {
                    self.ballot = self.issued + 1;
                }
                self.hard_state = now;
            }
            // A replica that forgot who votes may wait for those that are gone: what changes it is known to be agreed on the disk, too.
            let changes = ready
                .committed_entries()
                .iter()
                .any(|entry| entry.get_entry_type() != EntryType::EntryNormal);
            let mut write = None;
            if ready.must_sync() || changes {
                write = Some(self.next_write());
            }
            if let Some(write) = &mut write {
                if !ready.snapshot().is_empty() {
                    let snapshot = snapshot_from_raft(ready.snapshot());
                    self.node.raft.mut_store().install(ready.snapshot().clone());
                    self.applied = snapshot.index;
                    self.installing = Some(write.id);
                    agreed.push(Committed::Snapshot(snapshot.clone()));
                    (write.snapshot, write.drop_log) = (Some(snapshot), true);
                }
                write.entries = ready.entries().iter().map(entry_from_raft).collect();
                self.node.raft.mut_store().append(ready.entries());
            }
            for entry in ready.take_committed_entries() {
                self.applied = entry.index;
                let ours = entry_from_raft(&entry);
                if entry.get_entry_type() == EntryType::EntryNormal {
                    agreed.push(Committed::Entry(ours));
                } else if let Ok(state) = self.node.apply_conf_change(&change_of(&entry)) {
                    let conf = conf_from_raft(&state);
                    self.node.raft.mut_store().set_conf(state);
                    // Raft lets it lead on, and panics at the next entry that is agreed. The others elect somebody: a majority of them
                    // has this change, and who has a vote in it decides.
                    if self.node.raft.state == StateRole::Leader && !conf.votes(self.id) {
                        self.node.raft.become_follower(self.node.raft.term, ::raft::INVALID_ID);
                    }
                    agreed.push(Committed::Conf(ours, conf));
                } else {
                    // A change that makes no sense changes nothing; every replica finds the same.
                    let conf = self.conf();
                    agreed.push(Committed::Conf(ours, conf));
                }
            }
            let (early, late) = (ready.take_messages(), ready.take_persisted_messages());
            let number = ready.number();
            match write {
                Some(write) => {
                    self.writes.push_back((write.id, number));
                    self.persists.push_back(write);
                }
                None => {
                    if let Some((_, last)) = self.writes.back_mut() {
                        *last = number;
                    }
                }
            }
            self.node.advance_append_async(ready);
            if self.writes.is_empty() {
                self.node.on_persist_ready(number);
            }
            self.advance();
            for message in early.into_iter().chain(late) {
                self.hold(message);
            }
            self.draw_timeout(rng);
        }
        (agreed, reads)
    }

    /// The state as it is now, for replicas that are far behind, and to shorten the log.
    pub(crate) fn wants_snapshot(&self) -> bool {
        let store = self.node.raft.store();
        let applied = self.node.raft.raft_log.applied;
        let behind = store.snapshot_wanted();
        let long = store.len() > COMPACT_AFTER || store.bytes() > COMPACT_BYTES;
        self.installing.is_none() && applied == self.applied && applied > 0 && (behind || long)
    }

    /// The answer to [`Self::wants_snapshot`]: the encoded state after the last applied entry.
    pub(crate) fn give_snapshot(&mut self, state: Vec<u8>) {
        let (index, conf) = (self.applied, self.conf());
        let Ok(term) = self.node.raft.raft_log.term(index) else { return };
        let snapshot = Snapshot { index, term, conf, state };
        self.node.raft.mut_store().offer(snapshot_to_raft(&snapshot));
        let store = self.node.raft.store();
        if store.len() > COMPACT_AFTER || store.bytes() > COMPACT_BYTES {
            let keep = if store.bytes() > COMPACT_BYTES { 0 } else { COMPACT_KEEP as u64 };
            self.node.raft.mut_store().compact(index.saturating_sub(keep));
            let mut write = self.next_write();
            write.snapshot = Some(snapshot);
            let number = self.writes.back().map_or(0, |(_, number)| *number);
            self.writes.push_back((write.id, number));
            self.persists.push_back(write);
        }
    }

    pub(crate) fn poll_persist(&mut self) -> Option<Persist> {
        self.persists.pop_front()
    }

    /// The next message that may go out.
    pub(crate) fn poll_message(&mut self) -> Option<Message> {
        let durable = self.durable;
        let at = self.held.iter().position(|(write, _)| *write <= durable)?;
        self.held.remove(at).map(|(_, message)| message)
    }

    fn next_write(&mut self) -> Persist {
        self.issued += 1;
        Persist {
            id: self.issued,
            replica: self.id,
            fresh: std::mem::take(&mut self.fresh),
            hard_state: Some(self.hard_state),
            snapshot: None,
            drop_log: false,
            entries: Vec::new(),
        }
    }

    fn hold(&mut self, message: Message) {
        let write = match message.get_msg_type() {
            MessageType::MsgHeartbeat
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgAppend
            | MessageType::MsgSnapshot
            | MessageType::MsgTimeoutNow => self.ballot,
            _ => self.issued,
        };
        if self.held.len() >= MAX_HELD {
            self.held.pop_front();
        }
        self.held.push_back((write, message));
    }

    /// Tells raft what was applied, as soon as that is on the disk.
    fn advance(&mut self) {
        let log = &self.node.raft.raft_log;
        let applied = self.applied.min(log.persisted).min(log.committed);
        if applied > log.applied && self.installing.is_none() {
            self.node.advance_apply_to(applied);
        }
    }

    /// Raft draws its election timeout from randomness of its own whenever it resets; ours replaces it after every call.
    fn draw_timeout(&mut self, rng: &mut StdRng) {
        let now = (self.node.raft.term, self.node.raft.state);
        if now != self.term_and_role || self.timeout == 0 {
            self.term_and_role = now;
            self.timeout = rng.random_range(ELECTION_TICKS..2 * ELECTION_TICKS);
        }
        self.node.raft.set_randomized_election_timeout(self.timeout);
    }
}
