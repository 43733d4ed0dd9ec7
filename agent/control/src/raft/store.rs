// SPDX-License-Identifier: Apache-2.0
//! What a replica keeps on its disk, and how it asks for it.

use cluster_agent_proto::wire::{Malformed, Reader, Writer};

use crate::consts::{MAX_CONF, MAX_ENTRY, MAX_STATE};
use crate::wire::{put_large, take_large};

/// Term, vote and commit index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The last term that was seen.
    pub term: u64,
    /// Raft id that got the vote of this term, or 0.
    pub vote: u64,
    /// What was known to be committed; an older value does no harm.
    pub commit: u64,
}

/// Which raft ids vote and which learn. Sorted lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conf {
    /// Voters.
    pub voters: Vec<u64>,
    /// Replicas without a vote.
    pub learners: Vec<u64>,
    /// Voters until the change under way is done.
    pub outgoing: Vec<u64>,
    /// Of these, who then learns.
    pub learners_next: Vec<u64>,
    /// Whether raft ends the change by itself.
    pub auto_leave: bool,
}

impl Conf {
    /// All ids.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.voters.iter().chain(&self.learners).chain(&self.outgoing).copied()
    }

    /// Whether an id has a vote now.
    pub fn votes(&self, id: u64) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }

    /// Whether a change is under way.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether it is one that raft takes: what comes from outside must not make it panic.
    fn is_sound(&self) -> bool {
        let ascending = |ids: &[u64]| ids.windows(2).all(|two| two[0] < two[1]) && ids.first() != Some(&0);
        let lists = [&self.voters, &self.learners, &self.outgoing, &self.learners_next];
        !self.voters.is_empty()
            && lists.iter().all(|ids| ids.len() <= MAX_CONF && ascending(ids))
            && self.learners.iter().all(|id| !self.votes(*id))
            && self.learners_next.iter().all(|id| self.outgoing.contains(id) && !self.voters.contains(id))
            && (self.is_joint() || !self.auto_leave)
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        for ids in [&self.voters, &self.learners, &self.outgoing, &self.learners_next] {
            w.u8(ids.len() as u8);
            for id in ids {
                w.u64(*id);
            }
        }
        w.u8(u8::from(self.auto_leave));
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut list = || {
            let count = r.u8()?;
            (0..count).map(|_| r.u64()).collect::<Result<Vec<_>, _>>()
        };
        let (voters, learners, outgoing, learners_next) = (list()?, list()?, list()?, list()?);
        let auto_leave = match r.u8()? {
            0 => false,
            1 => true,
            _ => return Err(r.malformed()),
        };
        let conf = Self { voters, learners, outgoing, learners_next, auto_leave };
        if conf.is_sound() { Ok(conf) } else { Err(r.malformed()) }
    }
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its place.
    pub index: u64,
    /// The term of the leader that made it.
    pub term: u64,
    /// Whether it changes who votes.
    pub is_conf: bool,
    /// A command, a change of the configuration in our encoding, or nothing.
    pub data: Vec<u8>,
}

impl LogEntry {
    pub(crate) fn write(&self, w: &mut Writer) {
        w.u64(self.index).u64(self.term).u8(u8::from(self.is_conf));
        put_large(w, &self.data);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (index, term) = (r.u64()?, r.u64()?);
        let is_conf = match r.u8()? {
            0 => false,
            1 => true,
            _ => return Err(r.malformed()),
        };
        let data = take_large(r, MAX_ENTRY)?.to_vec();
        if index == 0 || term == 0 { Err(r.malformed()) } else { Ok(Self { index, term, is_conf, data }) }
    }

    /// For the store.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        self.write(&mut w);
        w.finish()
    }

    /// From the store.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new("log entry", bytes);
        let entry = Self::read(&mut r)?;
        r.end()?;
        Ok(entry)
    }
}

/// The state as it was after one entry, in place of all entries up to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Of the last entry that is in it.
    pub index: u64,
    /// Of the same.
    pub term: u64,
    /// Who voted after it.
    pub conf: Conf,
    /// The encoded state.
    pub state: Vec<u8>,
}

impl Snapshot {
    pub(crate) fn write(&self, w: &mut Writer) {
        w.u64(self.index).u64(self.term);
        self.conf.write(w);
        put_large(w, &self.state);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (index, term, conf) = (r.u64()?, r.u64()?, Conf::read(r)?);
        let state = take_large(r, MAX_STATE)?.to_vec();
        if index == 0 || term == 0 { Err(r.malformed()) } else { Ok(Self { index, term, conf, state }) }
    }

    /// For the store.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        self.write(&mut w);
        w.finish()
    }

    /// From the store.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new("snapshot", bytes);
        let snapshot = Self::read(&mut r)?;
        r.end()?;
        Ok(snapshot)
    }
}

/// A write. All of it is one transaction, in the order of the ids, and flushed before
/// [`Input::Persisted`](crate::Input::Persisted) is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// One more than that of the write before. It is stored too: a store that has an older one than others have heard of was
    /// rolled back.
    pub id: u64,
    /// Raft id that the store belongs to.
    pub replica: u64,
    /// Forget all that was stored before.
    pub fresh: bool,
    /// Replaces the old one.
    pub hard_state: Option<HardState>,
    /// Replaces the old one; entries up to its index go.
    pub snapshot: Option<Snapshot>,
    /// With the snapshot all entries go, also later ones: it came from a leader that has others.
    pub drop_log: bool,
    /// Replace all entries from the first of these on.
    pub entries: Vec<LogEntry>,
}

/// What the store holds: the sum of all [`Persist`]s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Raft id; 0: none.
    pub replica: u64,
    /// Id of the last write.
    pub sequence: u64,
    /// Term, vote, commit.
    pub hard_state: HardState,
    /// `None` in a learner that has not heard from its leader.
    pub snapshot: Option<Snapshot>,
    /// Without a gap, from any index at or below the snapshot's successor.
    pub entries: Vec<LogEntry>,
}

impl Saved {
    /// What a store does with a write.
    pub fn apply(&mut self, write: &Persist) {
        if write.fresh {
            *self = Self::default();
        }
        (self.replica, self.sequence) = (write.replica, write.id);
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(snapshot) = &write.snapshot {
            self.entries.retain(|entry| !write.drop_log && entry.index > snapshot.index);
            self.snapshot = Some(snapshot.clone());
        }
        if let Some(first) = write.entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
            self.entries.extend_from_slice(&write.entries);
        }
    }

    /// Whether a replica can go on with it: no gap, nothing committed that is not there.
    pub fn is_whole(&self) -> bool {
        let base = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        let first = self.entries.first().map_or(base + 1, |entry| entry.index);
        let last = self.entries.last().map_or(base, |entry| entry.index);
        first <= base + 1
            && self
                .entries
                .windows(2)
                .all(|two| two[0].index + 1 == two[1].index && two[0].term <= two[1].term)
            && self.hard_state.commit <= last.max(base)
    }
}
