// SPDX-License-Identifier: Apache-2.0
//! Leave and join, which take a while. Each is answered when it is done or known to fail, in the order in which they came; so
//! whoever asks for both gets both.

use std::{collections::VecDeque, time::Duration};

use cluster_agent_core::{Input, Phase, Status};
use tokio::sync::oneshot;

use crate::bus::Answer;

/// A request that takes longer is answered with what it waits for, before the bus gives up on it.
const LIMIT: Duration = Duration::from_secs(15);
/// Requests that wait at once. Only root can make them.
const MAX_WAITING: usize = 16;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Leave,
    Join,
}

struct Waiting {
    verb: Verb,
    reply: oneshot::Sender<Answer>,
    until: Duration,
    begun: bool,
}

/// Requests that were not answered yet.
#[derive(Default)]
pub(crate) struct Requests {
    waiting: VecDeque<Waiting>,
}

/// What comes next for a request.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// The node is told.
    Begin,
    /// It is under way.
    Wait,
    Answer(Answer),
}

impl Requests {
    /// One more, behind the others.
    pub(crate) fn add(&mut self, verb: Verb, reply: oneshot::Sender<Answer>, now: Duration) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(Waiting { verb, reply, until: now + LIMIT, begun: false });
        } else {
            let _ = reply.send(Err("too many requests wait already".to_owned()));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When the first is answered at the latest.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.waiting.iter().map(|request| request.until).min()
    }

    /// Answers those that are done, and gives what the node is to be told next. `settled`: nothing is under way in the node.
    pub(crate) fn next(&mut self, status: &Status, settled: bool, now: Duration) -> Option<Input> {
        while let Some(first) = self.waiting.front_mut() {
            let answer = match step(first.verb, first.begun, status, settled) {
                Step::Begin => {
                    first.begun = true;
                    return Some(match first.verb {
                        Verb::Leave => Input::Leave,
                        Verb::Join => Input::Join,
                    });
                }
                Step::Wait if now < first.until => return None,
                Step::Wait => Err(late(first.verb, first.begun, status)),
                Step::Answer(answer) => answer,
            };
            if let Some(first) = self.waiting.pop_front() {
                // Who went away is not interested any more.
                let _ = first.reply.send(answer);
            }
        }
        None
    }
}

fn step(verb: Verb, begun: bool, status: &Status, settled: bool) -> Step {
    let member = status.cluster_id.is_some();
    let fail = |why: &str| Step::Answer(Err(why.to_owned()));
    match (verb, status.phase) {
        (_, Phase::Quarantined) => Step::Answer(Err(status.detail.clone())),
        // It says so while it is leaving, too.
        (Verb::Leave, Phase::Left) if settled => Step::Answer(Ok(String::new())),
        (Verb::Leave, Phase::Left) => Step::Wait,
        (Verb::Leave, _) if begun => fail("this node did not leave; its log says why"),
        (Verb::Leave, _) if member => Step::Begin,
        (Verb::Leave, _) => fail("this node belongs to no cluster, there is nothing to leave"),
        (Verb::Join, Phase::Left) if settled && !begun => Step::Begin,
        (Verb::Join, Phase::Left) => Step::Wait,
        (Verb::Join, _) if (begun || member) && settled => Step::Answer(Ok(String::new())),
        (Verb::Join, _) if begun || member => Step::Wait,
        (Verb::Join, Phase::Unprovisioned) => fail("this node has no cluster.toml"),
        (Verb::Join, _) => fail(
            "this node has not left: it is on its way in by itself, `clusterctl status` says where it stands",
        ),
    }
}

fn late(verb: Verb, begun: bool, status: &Status) -> String {
    let what = match (verb, begun) {
        (Verb::Leave, _) => "the leave is under way and goes on, but is not done",
        (Verb::Join, true) => "this node looks for the cluster again, but that is not saved",
        (Verb::Join, false) => "not joined: a leave is still under way; try again when it is done",
    };
    let disk = status.problems.iter().find(|problem| problem.area == "disk");
    disk.map_or_else(|| what.to_owned(), |problem| format!("{what}: {}", problem.message))
}

#[cfg(test)]
mod tests {
    use cluster_agent_core::{Boot, Node, Now, Provisioning, Saved};

    use super::*;

    fn status(phase: Phase, member: bool) -> Status {
        let boot = Boot {
            seed: [1; 32],
            version: String::new(),
            build_time: Duration::ZERO,
            development: Vec::new(),
        };
        let now = Now { boottime: Duration::ZERO, wall: Duration::ZERO };
        let blank = Node::new(boot, Provisioning::default(), Saved::default(), now).status(now);
        Status { phase, cluster_id: member.then(|| "00".to_owned()), ..blank }
    }

    struct Story {
        requests: Requests,
        answers: Vec<oneshot::Receiver<Answer>>,
    }

    impl Story {
        fn of(verbs: &[Verb]) -> Self {
            let mut story = Self { requests: Requests::default(), answers: Vec::new() };
            for verb in verbs {
                let (reply, answer) = oneshot::channel();
                story.requests.add(*verb, reply, Duration::ZERO);
                story.answers.push(answer);
            }
            story
        }

        fn told(&mut self, status: &Status, settled: bool, seconds: u64) -> Option<&'static str> {
            self.requests.next(status, settled, Duration::from_secs(seconds)).map(|input| match input {
                Input::Leave => "leave",
                Input::Join => "join",
                other => panic!("{other:?}"),
            })
        }

        fn answer(&mut self, n: usize) -> Option<Answer> {
            self.answers[n].try_recv().ok()
        }
    }

    #[test]
    fn a_leave_is_answered_when_the_node_is_out_and_a_join_behind_it_is_done_then() {
        let mut story = Story::of(&[Verb::Leave, Verb::Leave, Verb::Join]);
        assert_eq!(story.told(&status(Phase::Member, true), true, 0), Some("leave"));
        assert_eq!(story.told(&status(Phase::Left, true), false, 1), None);
        assert_eq!(story.answer(0), None, "it is still telling the others");
        assert_eq!(story.told(&status(Phase::Left, false), false, 2), None);
        assert_eq!(story.answer(0), None, "it is not on the disk");
        assert_eq!(story.told(&status(Phase::Left, false), true, 2), Some("join"));
        assert_eq!((story.answer(0), story.answer(1)), (Some(Ok(String::new())), Some(Ok(String::new()))));
        assert_eq!(story.told(&status(Phase::Waiting, false), false, 2), None);
        assert_eq!(story.answer(2), None);
        assert_eq!(story.told(&status(Phase::Waiting, false), true, 2), None);
        assert_eq!(story.answer(2), Some(Ok(String::new())));
        assert!(story.requests.is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused_and_the_node_is_not_told() {
        for (verb, phase, member) in [
            (Verb::Leave, Phase::Searching, false),
            (Verb::Leave, Phase::Waiting, false),
            (Verb::Leave, Phase::Unprovisioned, false),
            (Verb::Leave, Phase::Quarantined, true),
            (Verb::Join, Phase::Searching, false),
            (Verb::Join, Phase::Waiting, false),
            (Verb::Join, Phase::Unprovisioned, false),
            (Verb::Join, Phase::Quarantined, true),
        ] {
            let mut story = Story::of(&[verb]);
            assert_eq!(story.told(&status(phase, member), true, 0), None, "{verb:?} {phase:?}");
            assert!(matches!(story.answer(0), Some(Err(_))), "{verb:?} {phase:?}");
        }
    }

    #[test]
    fn what_holds_already_is_no_failure() {
        for (verb, phase, member) in [
            (Verb::Leave, Phase::Left, false),
            (Verb::Join, Phase::Member, true),
            (Verb::Join, Phase::Waiting, true),
        ] {
            let mut story = Story::of(&[verb]);
            assert_eq!(story.told(&status(phase, member), true, 0), None);
            assert_eq!(story.answer(0), Some(Ok(String::new())), "{verb:?} {phase:?}");
        }
    }

    #[test]
    fn what_takes_too_long_is_told_with_what_it_waits_for() {
        let mut story = Story::of(&[Verb::Leave, Verb::Join]);
        assert_eq!(story.told(&status(Phase::Member, true), true, 0), Some("leave"));
        let mut full = status(Phase::Left, true);
        full.problems.push(cluster_agent_core::Problem::new("disk", "no room for membership", ""));
        assert_eq!(story.told(&full, false, 14), None);
        assert!(story.answer(0).is_none());
        assert_eq!(story.told(&full, false, 15), None);
        let said = story.answer(0).expect("it is answered").expect_err("it is not done");
        assert!(said.contains("no room for membership"), "{said}");
        assert!(story.answer(1).expect("so is the other").is_err());
    }

    #[test]
    fn a_leave_that_the_node_dropped_is_a_failure() {
        let mut story = Story::of(&[Verb::Leave]);
        assert_eq!(story.told(&status(Phase::Member, true), true, 0), Some("leave"));
        assert_eq!(story.told(&status(Phase::Member, true), true, 0), None);
        assert!(matches!(story.answer(0), Some(Err(_))));
    }
}
