// SPDX-License-Identifier: Apache-2.0
//! What foca holds, by node. foca has no look-up of one member and names no suspicion, so after each call its list is
//! compared with what it was: microseconds at a thousand members, and what follows from a change costs only the change.

use std::collections::BTreeMap;
use std::time::Duration;

use foca::Member;

use super::{GossipId, Liveness};
use crate::id::NodeId;
use crate::summary::Folded;

/// foca's members as they were last seen.
#[derive(Default)]
pub(super) struct Members {
    /// In foca's order.
    listed: Vec<Liveness>,
    by_node: BTreeMap<NodeId, Liveness>,
    /// When each was first heard of in this boot of its own.
    since: BTreeMap<NodeId, Duration>,
    folded: Folded,
}

impl Members {
    /// Takes over what is different now. Gives whether an identity or a state is. foca never drops a member.
    pub(super) fn follow<'a>(
        &mut self,
        at_time: Duration,
        members: impl Iterator<Item = &'a Member<GossipId>>,
    ) -> bool {
        let mut changed = false;
        for (at, member) in members.enumerate() {
            let now = Liveness::of(member);
            match self.listed.get_mut(at) {
                Some(before) if *before == now => continue,
                Some(before) => *before = now,
                None => self.listed.push(now),
            }
            changed |= self.take(at_time, now);
        }
        changed
    }

    fn take(&mut self, at_time: Duration, now: Liveness) -> bool {
        let before = self.by_node.insert(now.id.node, now);
        if before.is_none_or(|before| before.id.generation != now.id.generation) {
            self.since.insert(now.id.node, at_time);
        }
        if before.is_some_and(|before| (before.id, before.state) == (now.id, now.state)) {
            return false;
        }
        if let Some(before) = before {
            self.folded.alive(&before);
        }
        self.folded.alive(&now);
        true
    }

    /// Since when a node has been heard of in its present boot.
    pub(super) fn since(&self, node: &NodeId) -> Option<Duration> {
        self.since.get(node).copied()
    }

    /// Whether this is no news.
    pub(super) fn holds(&self, one: &Liveness) -> bool {
        self.by_node.get(&one.id.node) == Some(one)
    }

    pub(super) fn by_node(&self) -> &BTreeMap<NodeId, Liveness> {
        &self.by_node
    }

    /// All of them in short.
    pub(super) fn folded(&self) -> &Folded {
        &self.folded
    }
}
