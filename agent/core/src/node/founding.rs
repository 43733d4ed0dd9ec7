// SPDX-License-Identifier: Apache-2.0
//! Founding: when nobody answers who already has a cluster, the lowest node id among those who shook hands makes one.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::consts::founding::*;
use crate::id::NodeId;

/// What a node without a cluster knows of others like it.
#[derive(Default)]
pub(super) struct Founding {
    /// Since when there are a network and a join key.
    first_up: Option<Duration>,
    candidates: BTreeMap<NodeId, Candidate>,
    cluster_heard: Option<Duration>,
    /// When beacons named a cluster, first and last.
    cluster_named: Option<(Duration, Duration)>,
}

struct Candidate {
    name: String,
    shaken: Duration,
}

impl Founding {
    pub(super) fn interfaces(&mut self, up: bool, now: Duration) {
        if up {
            self.first_up.get_or_insert(now);
        }
    }

    /// Another join key: what was heard under the old one means nothing, and listening starts again.
    pub(super) fn reset(&mut self, now: Duration) {
        self.first_up = self.first_up.map(|_| now);
        self.candidates.clear();
        self.cluster_heard = None;
        self.cluster_named = None;
    }

    /// A node without a cluster proved itself.
    pub(super) fn shaken(&mut self, node: NodeId, name: String, now: Duration) {
        if self.candidates.len() < MAX_CANDIDATES || self.candidates.contains_key(&node) {
            self.candidates.insert(node, Candidate { name, shaken: now });
        }
    }

    /// Whether a node proved itself within the last `within`.
    pub(super) fn has_shaken(&self, node: &NodeId, within: Duration, now: Duration) -> bool {
        self.candidates.get(node).is_some_and(|candidate| now.saturating_sub(candidate.shaken) < within)
    }

    /// A member of a cluster proved itself.
    pub(super) fn heard_cluster(&mut self, node: &NodeId, now: Duration) {
        self.candidates.remove(node);
        self.cluster_heard = Some(now);
    }

    /// A beacon named a cluster. It proves nothing.
    pub(super) fn named_cluster(&mut self, now: Duration) {
        let before = self.cluster_named.filter(|(_, last)| now.saturating_sub(*last) < LONGEST_NAMED);
        self.cluster_named = Some((before.map_or(now, |(first, _)| first), now));
    }

    /// Whether a cluster is waited for that was only named.
    pub(super) fn waits_for_named(&self, now: Duration) -> bool {
        self.cluster_named.is_some_and(|(first, last)| {
            now.saturating_sub(first) < LONGEST_NAMED && now.saturating_sub(last) < CLUSTER_NAMED_FOR
        })
    }

    /// Whether a cluster was named for the first time only now: it may let us in before there is anything to found.
    pub(super) fn was_just_named(&self, now: Duration) -> bool {
        self.cluster_named.is_some_and(|(first, _)| now.saturating_sub(first) < JUST_NAMED)
    }

    /// Whether there have been a network and a join key for so long.
    pub(super) fn has_listened(&self, long: Duration, now: Duration) -> bool {
        self.first_up.is_some_and(|since| now.saturating_sub(since) >= long)
    }

    pub(super) fn has_network(&self) -> bool {
        self.first_up.is_some()
    }

    /// Number of nodes that shook hands, and the lowest of them with its name.
    pub(super) fn others(&self) -> (usize, Option<(NodeId, String)>) {
        let lowest = self.candidates.first_key_value().map(|(id, candidate)| (*id, candidate.name.clone()));
        (self.candidates.len(), lowest)
    }

    pub(super) fn knows_cluster(&self) -> bool {
        self.cluster_heard.is_some()
    }

    /// Forgets who was not heard for long.
    pub(super) fn tick(&mut self, now: Duration) {
        self.candidates.retain(|_, candidate| now.saturating_sub(candidate.shaken) < CANDIDATE_FOR);
        self.cluster_heard =
            self.cluster_heard.filter(|heard| now.saturating_sub(*heard) < CLUSTER_HEARD_FOR);
    }

    /// Whether it is a node's turn to found. `expect`: how many nodes are to be there.
    pub(super) fn is_turn_of(
        &self,
        me: &NodeId,
        expect: Option<u32>,
        is_introducing: bool,
        now: Duration,
    ) -> bool {
        let Some(first_up) = self.first_up else { return false };
        let complete = match expect {
            Some(expect) => self.candidates.len() + 1 >= expect as usize,
            None => {
                let listened = now.saturating_sub(first_up);
                listened >= FOUNDING_WINDOW && (!is_introducing || listened >= LONGEST_WINDOW)
            }
        };
        complete
            && self.cluster_heard.is_none()
            && !self.waits_for_named(now)
            && self.candidates.keys().all(|candidate| me < candidate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_is_named_again_and_again_is_waited_for_two_minutes_at_a_time() {
        let mut founding = Founding::default();
        let mut waited = Vec::new();
        for second in 0..400 {
            let now = Duration::from_secs(second);
            if second < 200 {
                founding.named_cluster(now);
            }
            waited.extend(founding.waits_for_named(now).then_some(second));
        }
        assert_eq!(waited, (0..120).collect::<Vec<_>>());
        founding.named_cluster(Duration::from_secs(400));
        let waits = |second| founding.waits_for_named(Duration::from_secs(second));
        assert!(waits(400) && waits(424) && !waits(425), "its members are gone");
    }
}
