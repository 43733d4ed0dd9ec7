// SPDX-License-Identifier: Apache-2.0
//! The log in memory, as raft reads it. What of it is on the disk only [`super::Replica`] knows.

use std::cell::Cell;

use ::raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use ::raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

use super::codec::{conf_to_raft, entry_to_raft, snapshot_to_raft};
use super::store::Saved;

/// Entries in memory, and the newest snapshot.
pub(super) struct Log {
    hard_state: HardState,
    conf: ConfState,
    /// Index and term of the entry before the first.
    base: (u64, u64),
    entries: Vec<Entry>,
    snapshot: Option<Snapshot>,
    /// A follower needs a snapshot, and the one at hand is too old.
    snapshot_wanted: Cell<bool>,
}

impl Log {
    pub(super) fn new(saved: &Saved) -> Self {
        let base = saved.snapshot.as_ref().map_or((0, 0), |snapshot| (snapshot.index, snapshot.term));
        let mut hard_state = HardState::default();
        (hard_state.term, hard_state.vote) = (saved.hard_state.term, saved.hard_state.vote);
        // Written lazily, so it may be older than the snapshot.
        hard_state.commit = saved.hard_state.commit.max(base.0);
        let later = saved.entries.iter().filter(|entry| entry.index > base.0);
        Self {
            hard_state,
            conf: saved.snapshot.as_ref().map(|snapshot| conf_to_raft(&snapshot.conf)).unwrap_or_default(),
            base,
            entries: later.map(entry_to_raft).collect(),
            snapshot: saved.snapshot.as_ref().map(snapshot_to_raft),
            snapshot_wanted: Cell::new(false),
        }
    }

    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        self.entries.truncate(first.index.saturating_sub(self.base.0 + 1) as usize);
        self.entries.extend_from_slice(entries);
    }

    /// A leader's snapshot replaces everything.
    pub(super) fn install(&mut self, snapshot: Snapshot) {
        self.base = (snapshot.get_metadata().index, snapshot.get_metadata().term);
        self.conf = snapshot.get_metadata().get_conf_state().clone();
        self.entries.clear();
        self.snapshot = Some(snapshot);
    }

    pub(super) fn set_conf(&mut self, conf: ConfState) {
        self.conf = conf;
    }

    /// A snapshot for followers that are far behind.
    pub(super) fn offer(&mut self, snapshot: Snapshot) {
        self.snapshot = Some(snapshot);
        self.snapshot_wanted.set(false);
    }

    pub(super) fn snapshot_wanted(&self) -> bool {
        self.snapshot_wanted.get()
    }

    /// Forgets entries up to this index.
    pub(super) fn compact(&mut self, index: u64) {
        if let Ok(term) = self.term(index)
            && index > self.base.0
        {
            self.base = (index, term);
            self.entries.retain(|entry| entry.index > index);
        }
    }

    pub(super) fn entries_after(&self, index: u64) -> Option<&[Entry]> {
        let at = usize::try_from(index.checked_sub(self.base.0)?).ok()?;
        self.entries.get(at..)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.data.len()).sum()
    }
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let (from, to) = ((low - self.base.0 - 1) as usize, (high - self.base.0 - 1) as usize);
        let range = self.entries.get(from..to).ok_or(Error::Store(StorageError::Unavailable))?;
        let max = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let fits = range.iter().take_while(|entry| {
            let first = size == 0;
            size += entry.data.len() as u64 + 32;
            first || size <= max
        });
        Ok(fits.cloned().collect())
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        let at = index.checked_sub(self.base.0 + 1).ok_or(Error::Store(StorageError::Compacted))?;
        let entry = self.entries.get(at as usize).ok_or(Error::Store(StorageError::Unavailable))?;
        Ok(entry.term)
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.base.0 + self.entries.len() as u64)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        let knows = |conf: &ConfState| {
            conf.voters.iter().chain(&conf.learners).chain(&conf.voters_outgoing).any(|id| *id == to)
        };
        match &self.snapshot {
            // A replica refuses a snapshot that does not name it.
            Some(snapshot)
                if snapshot.get_metadata().index >= request_index.max(self.base.0)
                    && knows(snapshot.get_metadata().get_conf_state()) =>
            {
                Ok(snapshot.clone())
            }
            _ => {
                self.snapshot_wanted.set(true);
                Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}
