// SPDX-License-Identifier: Apache-2.0
//! What a leader does by itself: who has a replica, and who of these a vote.
//!
//! [`decide`] is a pure function of what the leader knows. It names one step; the leader does it, and asks again when that is
//! agreed. A group never gets smaller because somebody is silent: a voter goes only in the step in which another comes, or
//! when its node leaves.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster_agent_proto::NodeId;

use crate::consts::{SLOW_FSYNC, VOTER_GRACE};
use crate::raft::{Change, Conf};
use crate::state::State;

/// A node that is silent for this long gets no replica.
const ABSENT: Duration = Duration::from_secs(5);
/// A learner that lacks no more entries than this has caught up.
const CAUGHT_UP: u64 = 16;

/// How a node is, as far as gossip and its record say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alive {
    /// Since it was heard last.
    pub silent: Duration,
    /// How long its disk takes for an fsync, from its record.
    pub fsync: Option<Duration>,
}

impl Alive {
    fn is_slow(&self) -> bool {
        self.fsync.is_some_and(|took| took > SLOW_FSYNC)
    }
}

/// What a leader knows.
pub(crate) struct View<'a> {
    pub(crate) state: &'a State,
    pub(crate) conf: &'a Conf,
    /// Its own raft id.
    pub(crate) me: u64,
    /// Index of the last entry.
    pub(crate) last: u64,
    /// What each replica has.
    pub(crate) progress: BTreeMap<u64, u64>,
    /// A member that is not in it was never heard.
    pub(crate) alive: &'a BTreeMap<NodeId, Alive>,
    /// Replicas whose nodes said that they have them no more.
    pub(crate) gone: &'a BTreeSet<u64>,
    /// Members that did not answer an invitation, and until when they are not asked again.
    pub(crate) unwilling: &'a BTreeMap<NodeId, Duration>,
    /// Members that go as soon as they have no vote.
    pub(crate) departing: &'a BTreeSet<NodeId>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Change the configuration.
    Change(Vec<Change>),
    /// Give leadership to this raft id.
    Transfer(u64),
    /// Ask this member to have a replica.
    Invite(NodeId),
    /// Forget this raft id.
    Drop(u64),
}

/// The next step, if there is one.
pub(crate) fn decide(view: &View<'_>) -> Option<Step> {
    if view.conf.is_joint() {
        return Some(Step::Change(Vec::new()));
    }
    let voters = &view.conf.voters;
    let wanted = view.wanted();
    let bad: Vec<u64> = voters.iter().copied().filter(|id| view.is_bad(*id)).collect();
    let good = voters.len() - bad.len();
    let missing = wanted.saturating_sub(good);

    if let Some(id) =
        view.conf.learners.iter().find(|id| !view.may_learn(**id) || view.is_outdone_learner(**id))
    {
        return Some(Step::Change(vec![Change::Remove(*id)]));
    }
    let mut ready: Vec<u64> = view.conf.learners.iter().copied().filter(|id| view.is_ready(*id)).collect();
    ready.sort_by_key(|id| (view.is_slow(*id), *id));

    // One for another: the others first, so that a leader that goes has somebody to lead after it.
    let others = bad.iter().copied().filter(|id| *id != view.me);
    let leaving = |id: &u64| view.node(*id).is_some_and(|node| view.departing.contains(&node));
    for id in others.chain(bad.iter().copied().filter(|id| *id == view.me)) {
        let surplus = good >= wanted || (leaving(&id) && view.replacement().is_none() && ready.is_empty());
        if id == view.me {
            let heir = voters.iter().copied().filter(|other| *other != id && !bad.contains(other));
            if let Some(heir) = heir.max_by_key(|other| view.progress.get(other)) {
                return Some(Step::Transfer(heir));
            }
            if let Some(new) = ready.first() {
                return Some(Step::Change(vec![Change::Vote(*new)]));
            }
        } else if let Some(new) = ready.first().filter(|_| good < wanted) {
            return Some(Step::Change(vec![Change::Vote(*new), Change::Remove(id)]));
        } else if surplus && good > 0 {
            return Some(Step::Change(vec![Change::Remove(id)]));
        }
    }
    if voters.len() > wanted && bad.is_empty() {
        let mut least: Vec<u64> = voters.iter().copied().filter(|id| *id != view.me).collect();
        least.sort_by_key(|id| (!view.is_slow(*id), std::cmp::Reverse(*id)));
        // Two at once where that keeps the number odd.
        let count = if (voters.len() - wanted).is_multiple_of(2) { 2 } else { 1 };
        return Some(Step::Change(least.into_iter().take(count).map(Change::Remove).collect()));
    }
    if voters.len() < wanted {
        // An even number of voters survives no more than one less.
        let mut count = ready.len().min(wanted - voters.len());
        if (voters.len() + count).is_multiple_of(2) {
            count = count.saturating_sub(1);
        }
        if count > 0 {
            return Some(Step::Change(ready.into_iter().take(count).map(Change::Vote).collect()));
        }
    }
    if missing > view.conf.learners.len()
        && let Some(node) = view.replacement()
    {
        let id = view.unused_of(node).filter(|id| view.may_learn(*id));
        return Some(id.map_or(Step::Invite(node), |id| Step::Change(vec![Change::Learn(id)])));
    }
    if missing == 0
        && let Some(id) = view.conf.learners.first()
    {
        return Some(Step::Change(vec![Change::Remove(*id)]));
    }
    view.unused().find(|id| missing == 0 || !view.may_learn(*id)).map(Step::Drop)
}

impl View<'_> {
    fn node(&self, id: u64) -> Option<NodeId> {
        self.state.node_of(id)
    }

    fn silent(&self, id: u64) -> Option<Duration> {
        if id == self.me {
            return Some(Duration::ZERO);
        }
        Some(self.alive.get(&self.node(id)?)?.silent)
    }

    fn is_slow(&self, id: u64) -> bool {
        self.node(id).is_some_and(|node| self.has_slow_disk(&node))
    }

    /// Members that stay decide how many voters there are.
    fn wanted(&self) -> usize {
        let staying = self.state.members().filter(|(node, _)| !self.departing.contains(node)).count();
        let by_size = match staying {
            0..3 => 1,
            3..7 => 3,
            _ => 5,
        };
        by_size.min(self.state.voters_wanted())
    }

    /// A voter that somebody else should replace.
    fn is_bad(&self, id: u64) -> bool {
        let Some(node) = self.node(id) else { return true };
        self.gone.contains(&id)
            || self.departing.contains(&node)
            || self.silent(id).is_none_or(|silent| silent >= VOTER_GRACE)
            || (self.is_slow(id) && self.has_better())
    }

    /// There, willing, and not on its way out.
    fn is_candidate(&self, node: &NodeId) -> bool {
        !self.departing.contains(node)
            && !self.unwilling.contains_key(node)
            && self.alive.get(node).is_some_and(|alive| alive.silent < ABSENT)
    }

    fn has_slow_disk(&self, node: &NodeId) -> bool {
        self.alive.get(node).is_some_and(Alive::is_slow)
    }

    /// A member without a vote whose disk is fast.
    fn has_better(&self) -> bool {
        self.state.members().any(|(node, member)| {
            let votes = member.replica.is_some_and(|replica| self.conf.votes(replica.id));
            !votes && self.is_candidate(node) && !self.has_slow_disk(node)
        })
    }

    /// Its disk is slow, and that of somebody who could be in its place is not.
    fn is_outdone_learner(&self, id: u64) -> bool {
        self.is_slow(id) && self.replacement().is_some_and(|node| !self.has_slow_disk(&node))
    }

    fn may_learn(&self, id: u64) -> bool {
        self.node(id).is_some_and(|node| !self.departing.contains(&node))
            && !self.gone.contains(&id)
            && self.silent(id).is_some_and(|silent| silent < VOTER_GRACE)
    }

    fn is_ready(&self, id: u64) -> bool {
        self.silent(id).is_some_and(|silent| silent < ABSENT)
            && self.progress.get(&id).is_some_and(|has| *has > 0 && has + CAUGHT_UP >= self.last)
    }

    /// Raft ids that members have and that are not in the configuration.
    fn unused(&self) -> impl Iterator<Item = u64> {
        let ids = self.state.members().filter_map(|(_, member)| member.replica.map(|replica| replica.id));
        ids.filter(move |id| !self.conf.ids().any(|other| other == *id))
    }

    fn unused_of(&self, node: NodeId) -> Option<u64> {
        let id = self.state.member(&node)?.replica?.id;
        self.unused().find(|unused| *unused == id)
    }

    /// The best member that has no replica, or one that is gone: a fast one, and one that need not be asked.
    fn replacement(&self) -> Option<NodeId> {
        let all = self.state.members().filter(|(node, member)| {
            let has = member.replica.is_some_and(|replica| {
                self.conf.ids().any(|id| id == replica.id) && !self.gone.contains(&replica.id)
            });
            !has && self.is_candidate(node)
        });
        all.map(|(node, _)| *node).min_by_key(|node| {
            let ready = self.unused_of(*node).is_some_and(|id| self.may_learn(id));
            (self.has_slow_disk(node), !ready, *node)
        })
    }
}
