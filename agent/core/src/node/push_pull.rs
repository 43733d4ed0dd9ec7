// SPDX-License-Identifier: Apache-2.0
//! When push-pulls begin, and with whom. Who learns something new asks again soon, which is how a thousand nodes that join
//! at once know each other after seconds; who learns nothing asks ever more rarely. What is said in one is in `exchange`.

use std::time::Duration;

use rand::seq::IndexedRandom;

use super::ctx::Ctx;
use super::membership::Membership;
use crate::command::{LogLevel, StreamId};
use crate::consts::push_pull::*;
use crate::id::NodeId;
use crate::session::Sessions;

/// The schedule.
pub(super) struct PushPull {
    next: Duration,
    wait: Duration,
    /// Push-pulls in a row with members that spoke of what we do not know.
    spoken_to: u32,
}

/// One to begin now.
pub(super) struct Begin {
    pub(super) with: NodeId,
    /// The stream that was kept for it.
    pub(super) on: Option<StreamId>,
}

impl PushPull {
    pub(super) fn new(now: Duration) -> Self {
        Self { next: now + SOON, wait: SOON, spoken_to: 0 }
    }

    /// When the next one begins.
    pub(super) fn next(&self) -> Duration {
        self.next
    }

    /// Since when those under way that began then or later count.
    pub(super) fn counts_since(ctx: &Ctx) -> Duration {
        ctx.boottime().saturating_sub(SLOW + ctx.load.late() * 2)
    }

    /// Whether there was something new lately.
    pub(super) fn is_learning(&self) -> bool {
        self.wait < PUSH_PULL_INTERVAL
    }

    /// Something new was learned from another member: there may be more, and others lack it.
    pub(super) fn hurry(&mut self, ctx: &mut Ctx) {
        // On a machine that has too much to do already, fewer exchanges bring more each.
        self.wait = SOON + ctx.load.late() * PER_LATE;
        self.next = self.next.min(ctx.boottime() + ctx.jitter(self.wait));
    }

    /// The last one did not come to its end.
    pub(super) fn again(&mut self, ctx: &mut Ctx) {
        self.next = self.next.min(ctx.boottime() + ctx.jitter(SOON));
    }

    /// Chooses a member when it is time. Suspects are asked too: who hears from us that it is suspected can say that it is
    /// not. `under_way`: push-pulls that we began lately. `kept`: streams that were kept, the one that rests longest first.
    pub(super) fn tick(
        &mut self,
        membership: &Membership,
        sessions: &Sessions,
        under_way: usize,
        mut kept: Vec<(StreamId, NodeId)>,
        ctx: &mut Ctx,
    ) -> Option<Begin> {
        let now = ctx.boottime();
        // Where each takes seconds, more at once would only make all of them slower.
        if under_way >= MAX_AT_ONCE {
            self.next = now + SOON;
            return None;
        }
        let gossip = membership.gossip();
        let there = gossip.states().keys().copied();
        let there: Vec<NodeId> =
            there.filter(|id| membership.is_there(id) && membership.roster().is_member(id)).collect();
        let (learning, enough) = (self.is_learning(), if ctx.load.is_busy() { ENOUGH_TO_ASK } else { 1 });
        kept.retain(|(_, with)| there.contains(with));
        // Who speaks of nodes that we do not know has what we lack, and a session with us, so it knows us.
        let speakers = gossip.speakers(now);
        let speakers: Vec<_> = speakers.iter().filter(|id| sessions.is_open(id)).collect();
        // One that always speaks of something new keeps us from nobody for long.
        let speaker = speakers.choose(&mut ctx.rng).map(|id| **id).filter(|_| self.spoken_to < IN_A_ROW);
        self.spoken_to = if speaker.is_some() { self.spoken_to + 1 } else { 0 };
        // While there is much to learn: who has a session with us knows us as a member, many others do not yet.
        let is_new = |id: &&NodeId| kept.iter().all(|(_, with)| with != *id);
        let open: Vec<_> = there.iter().filter(|id| sessions.is_open(id)).filter(is_new).collect();
        let again = match speaker {
            Some(speaker) => kept.iter().find(|(_, with)| *with == speaker),
            None => kept.first().filter(|_| learning && kept.len() >= KEPT),
        };
        let chosen = match open.choose(&mut ctx.rng).filter(|_| learning && open.len() >= enough) {
            _ if again.is_some() => again.map(|(_, with)| *with),
            _ if speaker.is_some() => speaker,
            Some(open) => Some(**open),
            None => there.choose(&mut ctx.rng).copied(),
        };
        let on = again.map(|(id, _)| *id);
        let wait = if chosen.is_some() { self.wait } else { NOBODY };
        self.wait = (self.wait * 2).min(PUSH_PULL_INTERVAL);
        self.next = now + ctx.jitter(wait);
        let with = chosen?;
        let fields = vec![("with", with.short()), ("kept", on.is_some().to_string())];
        ctx.log(LogLevel::Debug, "push-pull begins", fields);
        Some(Begin { with, on })
    }
}
