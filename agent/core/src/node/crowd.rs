// SPDX-License-Identifier: Apache-2.0
//! Which nodes are about that are not known as members: how many, and those without a cluster, to invite some.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::consts::discovery::{INVITED_AFTER, MAX_REMEMBERED, MAX_STRANGERS, SEARCHING_MAX};
use crate::id::NodeId;
use crate::session::Path;

#[derive(Default)]
pub(super) struct Crowd {
    heard: BTreeSet<NodeId>,
    since: Duration,
    before: usize,
    /// Nodes without a cluster, where each was heard last, under which instance, and when.
    strangers: BTreeMap<NodeId, (Path, [u8; 8], Duration)>,
}

impl Crowd {
    pub(super) fn hear(&mut self, node: NodeId, now: Duration) {
        if now.saturating_sub(self.since) > SEARCHING_MAX {
            self.before = std::mem::take(&mut self.heard).len();
            self.since = now;
        }
        if self.heard.len() < MAX_REMEMBERED {
            self.heard.insert(node);
        }
    }

    pub(super) fn size(&self) -> usize {
        self.heard.len().max(self.before)
    }

    /// A node without a cluster was heard.
    pub(super) fn hear_stranger(&mut self, node: NodeId, path: Path, instance: [u8; 8], now: Duration) {
        if self.strangers.len() >= MAX_STRANGERS {
            self.strangers.retain(|_, (_, _, heard)| now.saturating_sub(*heard) < INVITED_AFTER);
        }
        if self.strangers.len() < MAX_STRANGERS {
            self.strangers.insert(node, (path, instance, now));
        }
    }

    /// Takes those without a cluster that were heard lately.
    pub(super) fn take_strangers(
        &mut self,
        now: Duration,
    ) -> impl Iterator<Item = (NodeId, Path, [u8; 8])> + use<> {
        let heard = std::mem::take(&mut self.strangers).into_iter();
        let fresh = heard.filter(move |(_, (_, _, heard))| now.saturating_sub(*heard) < INVITED_AFTER);
        fresh.map(|(node, (path, instance, _))| (node, path, instance))
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn assert_bounded(&self) {
        assert!(self.heard.len() <= MAX_REMEMBERED && self.strangers.len() <= MAX_STRANGERS);
    }
}
