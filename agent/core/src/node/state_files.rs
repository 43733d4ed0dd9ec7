// SPDX-License-Identifier: Apache-2.0
//! What is not on the disk yet, and when it is written. Where the node stands is written at once, and what depends on it waits;
//! what may be lost is written now and then.

use std::time::Duration;

use super::clock::Clock;
use super::ctx::Ctx;
use super::dialer::Dialer;
use super::files::{self, Pace, SavedPlaceRef};
use super::membership::Membership;
use crate::command::{StateItem, Ticket};
use crate::consts::state_files::*;
use crate::join_key::JoinKey;

/// Since when what is not on the disk.
pub(super) struct StateFiles {
    records: Option<Duration>,
    records_written: Pace,
    /// Admissions that others signed: nothing waits for them.
    membership: Option<Duration>,
    next_clock: Duration,
}

impl StateFiles {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            records: None,
            records_written: Pace::default(),
            membership: None,
            next_clock: now + CLOCK_SAVE_INTERVAL / 6,
        }
    }

    /// The node entered a cluster: none of its records is on the disk.
    pub(super) fn begin(&mut self, now: Duration) {
        *self = Self { records: Some(now), next_clock: self.next_clock, ..Self::new(now) };
    }

    pub(super) fn note_records(&mut self, now: Duration) {
        self.records.get_or_insert(now);
    }

    pub(super) fn note_membership(&mut self, now: Duration) {
        self.membership.get_or_insert(now);
    }

    pub(super) fn save_generation(&mut self, generation: u32, ctx: &mut Ctx) {
        ctx.outbox.persist(StateItem::Generation, files::write_generation(generation));
    }

    /// Writes where the node stands, before it says anything.
    pub(super) fn save_place(&mut self, place: &SavedPlaceRef<'_>, ctx: &mut Ctx) -> Ticket {
        self.membership = None;
        ctx.outbox.persist_before_all(StateItem::Membership, files::write_membership(place))
    }

    /// Writes who is a member.
    pub(super) fn save_members(&mut self, place: &SavedPlaceRef<'_>, ctx: &mut Ctx) -> Ticket {
        self.membership = None;
        ctx.outbox.persist(StateItem::Membership, files::write_membership(place))
    }

    /// Writes what has waited long enough.
    pub(super) fn tick(&mut self, membership: &Membership, dialer: &Dialer, key: &JoinKey, ctx: &mut Ctx) {
        let now = ctx.boottime();
        let delay = if membership.quiet_for(now) >= DELAY { DELAY } else { AT_LAST };
        let due = |since: Option<Duration>| since.is_some_and(|since| since + delay <= now);
        if due(self.records) && self.records_written.allows(now) {
            self.records = None;
            let records = files::write_records(membership.roster(), dialer.seen());
            ctx.outbox.persist(StateItem::Records, records);
        }
        if due(self.membership) {
            self.save_members(&SavedPlaceRef::Member(membership.roster(), key), ctx);
        }
    }

    /// Writes the time now and then; gives whether it did.
    pub(super) fn clock_tick(&mut self, clock: &mut Clock, ctx: &mut Ctx) -> bool {
        let due = ctx.boottime() >= self.next_clock;
        if due {
            self.next_clock = ctx.boottime() + CLOCK_SAVE_INTERVAL;
            ctx.outbox.persist(StateItem::Clock, files::write_clock(clock.advance(ctx.now)));
        }
        due
    }
}
