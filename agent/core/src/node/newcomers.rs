// SPDX-License-Identifier: Apache-2.0
//! Who was let in a moment ago. What goes round about a node that gossip has not heard of is news: it was let in or signed its
//! record just now, so it is up. That somebody says so besides need not have come to us, and until a push-pull brings it the
//! newcomer would be shown as down.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Node, Place};
use crate::gossip::Liveness;
use crate::id::NodeId;

/// More are not remembered.
const MOST: usize = 512;
/// After that it may be gone again.
const FRESH: Duration = Duration::from_secs(5);

/// Members that others told us of, and when, while gossip has not heard of them.
#[derive(Default)]
pub(super) struct Newcomers(BTreeMap<NodeId, Duration>);

impl Newcomers {
    fn hear(&mut self, node: NodeId, now: Duration) {
        if self.0.len() >= MOST {
            self.0.retain(|_, heard| now.saturating_sub(*heard) < FRESH);
        }
        if self.0.len() < MOST {
            self.0.insert(node, now);
        }
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn assert_bounded(&self) {
        assert!(self.0.len() <= MOST, "{} newcomers", self.0.len());
    }
}

impl Node {
    /// A member passed on something about a node that was new to us, as everybody does once.
    pub(super) fn heard_news_of(&mut self, node: NodeId) {
        self.hear_newcomers(std::iter::once(node));
    }

    /// A push-pull brought these together with what is older. Dates tell them apart, if the clocks here and there agree; if
    /// not, it takes longer until they are up. What a node is told when it is let in itself does not count: in a crowd all
    /// would speak to those that were let in with them and cannot answer yet.
    pub(super) fn heard_of_admitted(&mut self, dated: &[(NodeId, u64)]) {
        let wall = self.now.wall_secs();
        let recent = dated.iter().filter(|(_, at)| wall.abs_diff(*at) < FRESH.as_secs());
        self.hear_newcomers(recent.map(|(node, _)| *node));
    }

    fn hear_newcomers(&mut self, nodes: impl Iterator<Item = NodeId>) {
        let now = self.now.boottime;
        let Place::Member(cluster) = &mut self.place else { return };
        for node in nodes {
            if cluster.roster.is_member(&node) && cluster.gossip.state(&node).is_none() {
                cluster.newcomers.hear(node, now);
            }
        }
        self.count_newcomers();
    }

    /// Newcomers whose record is here are up. It may have come in any way.
    fn count_newcomers(&mut self) {
        let now = self.now.boottime;
        let Place::Member(cluster) = &mut self.place else { return };
        let (roster, gossip) = (&cluster.roster, &mut cluster.gossip);
        let mut up = Vec::new();
        cluster.newcomers.0.retain(|node, heard| {
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
        if !up.is_empty() {
            gossip.apply(now, up.into_iter());
        }
    }
}
