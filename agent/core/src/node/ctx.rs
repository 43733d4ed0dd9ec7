// SPDX-License-Identifier: Apache-2.0
//! What every owner acts with: the present, what else the machine has to do, randomness, and where effects and refusals go.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt};

use super::outbox::Outbox;
use crate::command::{Command, LogLevel};
use crate::consts::ctx::*;
use crate::input::Now;
use crate::limit::Rejects;

/// Passed to every owner that acts.
pub(super) struct Ctx {
    pub(super) now: Now,
    pub(super) load: Load,
    /// All randomness of the node is drawn from it.
    pub(super) rng: StdRng,
    pub(super) outbox: Outbox,
    pub(super) rejects: Rejects,
}

impl Ctx {
    pub(super) fn new(now: Now, rng: StdRng) -> Self {
        Self { now, load: Load::default(), rng, outbox: Outbox::default(), rejects: Rejects::default() }
    }

    /// `CLOCK_BOOTTIME`.
    pub(super) fn boottime(&self) -> Duration {
        self.now.boottime
    }

    pub(super) fn push(&mut self, command: impl Into<Command>) {
        self.outbox.push(command);
    }

    pub(super) fn log(&mut self, level: LogLevel, message: &str, fields: Vec<(&'static str, String)>) {
        self.outbox.log(level, message, fields);
    }

    /// A random duration around `around`, between three and five quarters of it.
    pub(super) fn jitter(&mut self, around: Duration) -> Duration {
        around.mul_f64(0.75 + f64::from(self.rng.next_u32()) / f64::from(u32::MAX) / 2.0).max(TICK)
    }

    /// Whether this node is one of about `few`, when `others` besides it draw too.
    pub(super) fn is_sampled(&mut self, others: u32, few: u32) -> bool {
        others < few || self.rng.random_range(0..=others) < few
    }
}

/// What else this machine has to do, as far as ticks that come late tell.
#[derive(Clone, Copy, Default)]
pub(super) struct Load {
    late: Duration,
}

impl Load {
    /// A tick came that was due then.
    pub(super) fn measure(&mut self, due: Duration, now: Duration) {
        self.late = now.saturating_sub(due).max(self.late * 7 / 8).min(MAX_LATE);
    }

    /// How late ticks were lately.
    pub(super) fn late(self) -> Duration {
        self.late
    }

    /// Whether this machine has too much to do.
    pub(super) fn is_busy(self) -> bool {
        self.late >= BUSY
    }
}
