// SPDX-License-Identifier: Apache-2.0
//! Each decision of a leader, from a state that calls for it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster_agent_proto::NodeId;

use super::{Alive, Step, View, decide};
use crate::raft::{Change, Conf};
use crate::state::State;
use crate::state::samples::{cluster, with_replicas};

/// A cluster in which the first members have the raft ids 1, 2, … in the order of their admission.
struct Case {
    state: State,
    nodes: Vec<NodeId>,
    conf: Conf,
    progress: BTreeMap<u64, u64>,
    alive: BTreeMap<NodeId, Alive>,
    gone: BTreeSet<u64>,
    unwilling: BTreeMap<NodeId, Duration>,
    departing: BTreeSet<NodeId>,
}

impl Case {
    fn new(members: usize, voters: &[u64], learners: &[u64]) -> Self {
        let (mut state, nodes) = cluster(members);
        let conf = Conf { voters: voters.to_vec(), learners: learners.to_vec(), ..Conf::default() };
        with_replicas(&mut state, &nodes, voters.len() + learners.len(), &conf);
        let alive = nodes.iter().map(|node| (*node, Alive { silent: Duration::ZERO, fsync: None })).collect();
        let progress = conf.ids().map(|id| (id, 100)).collect();
        Self {
            state,
            nodes,
            conf,
            progress,
            alive,
            gone: BTreeSet::new(),
            unwilling: BTreeMap::new(),
            departing: BTreeSet::new(),
        }
    }

    fn silent(&mut self, n: usize, seconds: u64) {
        let node = self.nodes[n];
        self.alive.entry(node).or_default().silent = Duration::from_secs(seconds);
    }

    fn slow(&mut self, n: usize) {
        let node = self.nodes[n];
        self.alive.entry(node).or_default().fsync = Some(Duration::from_millis(300));
    }

    fn decide(&self, me: u64) -> Option<Step> {
        decide(&View {
            state: &self.state,
            conf: &self.conf,
            me,
            last: 100,
            progress: self.progress.clone(),
            alive: &self.alive,
            gone: &self.gone,
            unwilling: &self.unwilling,
            departing: &self.departing,
        })
    }
}

fn change(changes: &[Change]) -> Option<Step> {
    Some(Step::Change(changes.to_vec()))
}

#[test]
fn two_members_have_one_voter_three_have_three_seven_have_five() {
    assert_eq!(Case::new(2, &[1], &[]).decide(1), None);
    assert!(matches!(Case::new(3, &[1], &[]).decide(1), Some(Step::Invite(_))));
    assert!(matches!(Case::new(3, &[1], &[2]).decide(1), Some(Step::Invite(_))));
    assert_eq!(Case::new(3, &[1], &[2, 3]).decide(1), change(&[Change::Vote(2), Change::Vote(3)]));
    assert_eq!(Case::new(6, &[1, 2, 3], &[]).decide(1), None);
    assert!(matches!(Case::new(7, &[1, 2, 3], &[]).decide(1), Some(Step::Invite(_))));
    assert_eq!(Case::new(7, &[1, 2, 3], &[4, 5]).decide(1), change(&[Change::Vote(4), Change::Vote(5)]));
    assert_eq!(Case::new(7, &[1, 2, 3, 4, 5], &[]).decide(1), None);
}

#[test]
fn a_learner_that_lacks_entries_gets_no_vote() {
    let mut case = Case::new(3, &[1], &[2, 3]);
    case.progress.insert(3, 50);
    assert_eq!(case.decide(1), None);
}

#[test]
fn a_voter_is_replaced_after_the_grace_period_and_not_before() {
    let mut case = Case::new(4, &[1, 2, 3], &[]);
    case.silent(2, 59);
    assert_eq!(case.decide(1), None);
    case.silent(2, 60);
    assert_eq!(case.decide(1), Some(Step::Invite(case.nodes[3])));
    let mut case = Case::new(4, &[1, 2, 3], &[4]);
    case.silent(2, 60);
    assert_eq!(case.decide(1), change(&[Change::Vote(4), Change::Remove(3)]));
}

#[test]
fn a_group_does_not_shrink_because_somebody_is_silent() {
    let mut case = Case::new(3, &[1, 2, 3], &[]);
    case.silent(2, 3600);
    assert_eq!(case.decide(1), None);
}

#[test]
fn who_lost_its_disk_is_asked_to_begin_anew() {
    let mut case = Case::new(3, &[1, 2, 3], &[]);
    case.gone.insert(3);
    assert_eq!(case.decide(1), Some(Step::Invite(case.nodes[2])));
}

#[test]
fn who_leaves_gives_its_vote_away_first_and_a_leader_its_leadership() {
    let mut case = Case::new(3, &[1, 2, 3], &[]);
    case.departing.insert(case.nodes[2]);
    // Two that stay want one voter: the other one goes next.
    assert_eq!(case.decide(1), change(&[Change::Remove(3)]));
    let mut case = Case::new(3, &[1, 2, 3], &[]);
    case.departing.insert(case.nodes[0]);
    case.progress.insert(2, 99);
    assert_eq!(case.decide(1), Some(Step::Transfer(3)));
    let mut alone = Case::new(2, &[1], &[]);
    alone.departing.insert(alone.nodes[0]);
    assert_eq!(alone.decide(1), Some(Step::Invite(alone.nodes[1])));
    let mut alone = Case::new(2, &[1], &[2]);
    alone.departing.insert(alone.nodes[0]);
    assert_eq!(alone.decide(1), change(&[Change::Vote(2)]));
}

#[test]
fn a_slow_disk_votes_only_if_there_is_nobody_better() {
    let mut case = Case::new(4, &[1, 2, 3], &[]);
    case.slow(1);
    assert_eq!(case.decide(1), Some(Step::Invite(case.nodes[3])));
    case.slow(3);
    assert_eq!(case.decide(1), None);
}

#[test]
fn a_slow_disk_is_not_exchanged_for_another_slow_one() {
    let mut case = Case::new(5, &[1, 2, 3], &[4]);
    case.slow(1);
    case.slow(3);
    assert_eq!(case.decide(1), change(&[Change::Remove(4)]));
    case.conf.learners.clear();
    assert_eq!(case.decide(1), Some(Step::Invite(case.nodes[4])), "not id 4, which its node still has");
    case.slow(4);
    assert_eq!(case.decide(1), Some(Step::Drop(4)), "nobody is better");
}

#[test]
fn a_slow_disk_learns_where_the_fast_ones_do_not_suffice() {
    let mut case = Case::new(7, &[1, 2, 3], &[4]);
    for n in [4, 5, 6] {
        case.slow(n);
    }
    let Some(Step::Invite(node)) = case.decide(1) else { panic!("nobody is invited") };
    assert!(case.nodes[4..].contains(&node));
    with_replicas(&mut case.state, &case.nodes, 5, &case.conf);
    assert_eq!(case.decide(1), change(&[Change::Learn(5)]), "it has a raft id: no second one");
    case.conf.learners.push(5);
    case.progress.insert(5, 100);
    assert_eq!(case.decide(1), change(&[Change::Vote(4), Change::Vote(5)]));
}

#[test]
fn who_does_not_answer_an_invitation_is_passed_over() {
    let mut case = Case::new(5, &[1, 2, 3], &[]);
    case.silent(2, 60);
    let Some(Step::Invite(first)) = case.decide(1) else { panic!("nobody is invited") };
    case.unwilling.insert(first, Duration::from_secs(60));
    let Some(Step::Invite(second)) = case.decide(1) else { panic!("nobody else is invited") };
    assert_ne!(first, second);
}

#[test]
fn a_change_that_was_left_half_done_is_ended_first() {
    let mut case = Case::new(4, &[1, 2, 4], &[]);
    case.conf.outgoing = vec![1, 2, 3];
    assert_eq!(case.decide(1), Some(Step::Change(Vec::new())));
}
