// SPDX-License-Identifier: Apache-2.0
//! What members said of nodes that are no members yet, to our knowledge, and of boots whose record is not here. A packet has room for more liveness than signed
//! objects, so in a crowd one often hears that a node is up before one hears that it was let in. Without this it would be
//! known as a member and shown as down until some push-pull says the same again. And who speaks of nodes that we do not
//! know has what we lack: it only speaks of members.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use foca::State;

use super::Liveness;
use crate::consts::early::*;
use crate::id::NodeId;

/// What was heard of each node from each member: one that lies hides nothing that others say.
#[derive(Default)]
pub(super) struct Early(BTreeMap<(NodeId, NodeId), Heard>);

struct Heard {
    /// It is alive.
    what: Liveness,
    at: Duration,
    /// Who said it was asked since.
    asked: bool,
}

impl Heard {
    fn is_fresh(&self, now: Duration) -> bool {
        now.saturating_sub(self.at) < FRESH
    }
}

impl Early {
    /// Gives whether it is news that there is such a node.
    pub(super) fn hear(&mut self, what: Liveness, from: NodeId, now: Duration) -> bool {
        let (node, key) = (what.id.node, (what.id.node, from));
        if self.0.get(&key).is_some_and(|before| before.what.id > what.id && before.is_fresh(now)) {
            return false;
        }
        if what.state != State::Alive {
            self.0.remove(&key);
            return false;
        }
        if self.0.len() >= MOST {
            self.0.retain(|_, heard| heard.is_fresh(now));
        }
        let known = self.0.contains_key(&key);
        let fits = self.0.len() < MOST && (self.0.len() < MOST_OF_ONE || self.said_by(&from) < MOST_OF_ONE);
        let news = !known && fits && self.said_of(&node) == 0;
        if known || fits {
            self.0.insert(key, Heard { what, at: now, asked: false });
        }
        news
    }

    fn said_by(&self, member: &NodeId) -> usize {
        self.0.keys().filter(|(_, by)| by == member).count()
    }

    fn said_of(&self, node: &NodeId) -> usize {
        self.0.range((*node, NodeId([0; 32]))..=(*node, NodeId([0xff; 32]))).count()
    }

    /// What is still news of those that count now.
    pub(super) fn take(&mut self, now: Duration, counts: impl Fn(&Liveness) -> bool) -> Vec<Liveness> {
        let known = self.0.extract_if(.., |_, heard| counts(&heard.what)).map(|(_, heard)| heard);
        known.filter(|heard| heard.is_fresh(now)).map(|heard| heard.what).collect()
    }

    /// Who spoke of nodes that we do not know, and was not asked about them yet.
    pub(super) fn speakers(&self, now: Duration) -> BTreeSet<NodeId> {
        let open = self.0.iter().filter(|(_, heard)| heard.is_fresh(now) && !heard.asked);
        open.map(|((_, by), _)| *by).collect()
    }

    /// One of them is asked now. What it does not have cannot be had from it.
    pub(super) fn ask(&mut self, member: &NodeId) {
        for (_, heard) in self.0.iter_mut().filter(|((_, by), _)| by == member) {
            heard.asked = true;
        }
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn assert_bounded(&self) {
        assert!(self.0.len() <= MOST, "{} early ones", self.0.len());
    }
}

#[cfg(test)]
mod tests {
    use super::super::GossipId;
    use super::*;

    const NOW: Duration = Duration::from_secs(100);
    const FROM: NodeId = NodeId([7; 32]);

    fn said(node: u16, generation: u32, state: State) -> Liveness {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&node.to_be_bytes());
        Liveness { id: GossipId { node: NodeId(id), generation, bump: 0 }, incarnation: 0, state }
    }

    #[test]
    fn keeps_who_is_alive_until_it_is_a_member() {
        let mut early = Early::default();
        let (one, other) = (said(1, 1, State::Alive), said(2, 1, State::Alive));
        assert!(early.hear(one, FROM, NOW));
        assert!(early.hear(other, FROM, NOW));
        assert!(!early.hear(one, FROM, NOW), "it is known by now that it is there");
        assert_eq!(early.take(NOW, |said| said.id.node == one.id.node), [one]);
        assert_eq!(early.take(NOW, |_| true), [other]);
        assert_eq!(early.take(NOW, |_| true), []);
    }

    #[test]
    fn old_news_is_none_and_neither_is_who_was_heard_to_be_gone() {
        let mut early = Early::default();
        let one = said(1, 2, State::Alive);
        early.hear(one, FROM, NOW);
        assert_eq!(early.speakers(NOW + FRESH), BTreeSet::new());
        assert_eq!(early.take(NOW + FRESH, |_| true), []);
        early.hear(one, FROM, NOW);
        early.hear(said(1, 1, State::Down), FROM, NOW);
        assert_eq!(early.take(NOW, |_| true), [one], "its earlier boot ended");
        early.hear(one, FROM, NOW);
        early.hear(said(1, 2, State::Suspect), FROM, NOW);
        assert_eq!(early.take(NOW, |_| true), []);
    }

    #[test]
    fn who_was_asked_is_asked_again_only_when_it_speaks_again() {
        let mut early = Early::default();
        let other = NodeId([8; 32]);
        early.hear(said(1, 1, State::Alive), FROM, NOW);
        early.hear(said(2, 1, State::Alive), other, NOW);
        assert_eq!(early.speakers(NOW), [FROM, other].into());
        early.ask(&FROM);
        assert_eq!(early.speakers(NOW), [other].into());
        early.hear(said(1, 1, State::Alive), FROM, NOW);
        assert_eq!(early.speakers(NOW), [FROM, other].into());
    }

    #[test]
    fn a_lie_about_a_node_hides_nothing_that_others_say_of_it() {
        let mut early = Early::default();
        let (one, liar) = (said(1, 1, State::Alive), NodeId([8; 32]));
        early.hear(said(1, u32::MAX, State::Alive), liar, NOW);
        assert!(!early.hear(one, FROM, NOW), "that there is such a node is no news");
        early.hear(said(1, u32::MAX, State::Down), liar, NOW);
        assert_eq!(early.take(NOW, |said| said.id.generation == 1), [one]);
    }

    #[test]
    fn invented_nodes_do_not_pile_up() {
        let mut early = Early::default();
        for node in 0..2 * MOST as u16 {
            early.hear(said(node, 1, State::Alive), FROM, NOW);
        }
        early.assert_bounded();
        assert_eq!(early.0.len(), MOST_OF_ONE);
        let other = NodeId([8; 32]);
        assert!(early.hear(said(u16::MAX, 1, State::Alive), other, NOW), "one liar leaves room for others");
        early.ask(&FROM);
        early.hear(said(1, 1, State::Alive), FROM, NOW);
        assert!(early.speakers(NOW).contains(&FROM), "a known node is still updated when the table is full");
        for node in 0..2 * MOST as u16 {
            early.hear(said(MOST as u16 + node, 1, State::Alive), other, NOW);
        }
        early.assert_bounded();
        assert!(!early.hear(said(u16::MAX - 1, 1, State::Alive), NodeId([9; 32]), NOW));
        assert!(early.hear(said(u16::MAX - 1, 1, State::Alive), NodeId([9; 32]), NOW + FRESH));
        assert_eq!(early.0.len(), 1, "old ones made room");
    }
}
