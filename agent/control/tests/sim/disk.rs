// SPDX-License-Identifier: Apache-2.0
//! A disk: writes take time, and what is not flushed can be lost.

use std::collections::VecDeque;
use std::time::Duration;

use cluster_agent_control::{HardState, Persist, Saved, Start};
use rand::RngExt;
use rand::rngs::StdRng;

use super::ms;

/// What the program does wrong, on purpose: the simulation must find each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutation {
    /// Nothing.
    #[default]
    None,
    /// It says that a write is on the disk before it is.
    SkipFsync,
    /// It does not write votes.
    ForgetVote,
    /// A wiped disk begins with the raft id that was on it.
    KeepWipedId,
}

#[derive(Clone, Debug)]
pub struct Disk {
    pub saved: Saved,
    pub kept: Option<Vec<u8>>,
    pub fsync: Duration,
    /// Writes under way.
    under_way: VecDeque<Persist>,
    /// As it was earlier.
    pub earlier: VecDeque<(Duration, Saved)>,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            saved: Saved::default(),
            kept: None,
            fsync: ms(5),
            under_way: VecDeque::new(),
            earlier: VecDeque::new(),
        }
    }
}

impl Disk {
    pub fn latency(&self, rng: &mut StdRng) -> Duration {
        self.fsync.mul_f64(rng.random_range(0.5..2.0))
    }

    pub fn begin(&mut self, write: Persist, _now: Duration) {
        self.under_way.push_back(write);
    }

    /// Replica and id of what the program says is on the disk.
    pub fn claimed(&self) -> Option<(u64, u64)> {
        self.under_way.back().map(|write| (write.replica, write.id))
    }

    /// The oldest write is done.
    pub fn written(&mut self, mutation: Mutation, now: Duration) -> Option<(u64, u64)> {
        let write = self.under_way.pop_front()?;
        self.put(&write, mutation);
        if self.earlier.back().is_none_or(|(at, _)| now >= *at + ms(500)) {
            self.earlier.push_back((now, self.saved.clone()));
            if self.earlier.len() > 8 {
                self.earlier.pop_front();
            }
        }
        Some((write.replica, write.id))
    }

    fn put(&mut self, write: &Persist, mutation: Mutation) {
        self.saved.apply(write);
        if mutation == Mutation::ForgetVote {
            self.saved.hard_state.vote = 0;
        }
    }

    /// Of the writes under way the first may have been done.
    pub fn crash(&mut self, keep: usize, mutation: Mutation) {
        let keep = if mutation == Mutation::SkipFsync { 0 } else { keep };
        for write in std::mem::take(&mut self.under_way).iter().take(keep) {
            self.put(write, mutation);
        }
    }

    /// A new disk.
    pub fn wipe(&mut self, mutation: Mutation) {
        let old = std::mem::take(&mut self.saved);
        self.earlier.clear();
        if mutation == Mutation::KeepWipedId {
            let hard_state = HardState::default();
            self.saved =
                Saved { replica: old.replica, sequence: old.sequence, hard_state, ..Saved::default() };
        }
    }

    pub fn start(&self) -> Start {
        Start {
            replica: Some(self.saved.clone()).filter(|saved| saved.replica != 0),
            kept: self.kept.clone(),
        }
    }
}
