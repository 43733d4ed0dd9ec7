// SPDX-License-Identifier: Apache-2.0
//! Nodes that were let in a moment ago. What goes round about a node that gossip has not heard of is news: it was let in or
//! signed its record just now, so it is up. That somebody says so besides need not have come to us, and until a push-pull
//! brings it the newcomer would be shown as down.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::consts::newcomers::*;
use crate::gossip::{Gossip, Liveness};
use crate::id::NodeId;
use crate::input::Now;
use crate::roster::Roster;

/// Members that others told us of, and when, while gossip has not heard of them.
#[derive(Default)]
pub(super) struct Newcomers(BTreeMap<NodeId, Duration>);

impl Newcomers {
    pub(super) fn hear(&mut self, node: NodeId, now: Duration) {
        if self.0.len() >= MOST {
            self.0.retain(|_, heard| now.saturating_sub(*heard) < FRESH);
        }
        if self.0.len() < MOST {
            self.0.insert(node, now);
        }
    }

    /// A push-pull brings new admissions together with older ones. Dates tell them apart, if the clocks here and there
    /// agree; if not, it takes longer until they are up. What a node is told when it is let in itself does not count: in a
    /// crowd all would speak to those that were let in with them and cannot answer yet.
    pub(super) fn recent(dated: &[(NodeId, u64)], now: Now) -> impl Iterator<Item = NodeId> {
        let recent = dated.iter().filter(move |(_, at)| now.wall_secs().abs_diff(*at) < FRESH.as_secs());
        recent.map(|(node, _)| *node)
    }

    /// Newcomers whose record is here are up, in whatever way it came. What is no news any more is forgotten.
    pub(super) fn take_up(&mut self, roster: &Roster, gossip: &Gossip, now: Duration) -> Vec<Liveness> {
        let mut up = Vec::new();
        self.0.retain(|node, heard| {
            let news =
                roster.is_member(node) && gossip.state(node).is_none() && now.saturating_sub(*heard) < FRESH;
            match roster.record(node).filter(|_| news) {
                Some(record) => {
                    up.push(Liveness::since_boot(*node, record.sequence.generation));
                    false
                }
                None => news,
            }
        });
        up
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn assert_bounded(&self) {
        assert!(self.0.len() <= MOST, "{} newcomers", self.0.len());
    }
}
