// SPDX-License-Identifier: Apache-2.0
//! Leave and join, which take a while. Each is answered when it is done or known to fail, in the order in which they came; so
//! whoever asks for both gets both.

use std::collections::VecDeque;
use std::time::Duration;

use crate::consts::requests::*;
use crate::request::{Refusal, RequestId};

/// What takes a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Leave,
    Join,
}

/// Where the node stands, as far as that decides about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Quarantined(String),
    Unprovisioned,
    Outside,
    Member,
    Leaving,
    Left,
}

/// Requests that were not answered yet.
#[derive(Default)]
pub(super) struct Requests {
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    id: RequestId,
    verb: Verb,
    until: Duration,
    begun: bool,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Begin(Verb),
    Answer(RequestId, Result<(), Refusal>),
}

impl Requests {
    /// One more, behind the others.
    pub(super) fn add(&mut self, id: RequestId, verb: Verb, now: Duration) -> Result<(), Refusal> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(Refusal::TooMany);
        }
        self.waiting.push_back(Waiting { id, verb, until: now + LIMIT, begun: false });
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// What is to be done for the first request. `saved`: where the node stands is on the disk; `disk`: why it cannot be.
    pub(super) fn next(
        &mut self,
        standing: &Standing,
        saved: bool,
        disk: Option<&str>,
        now: Duration,
    ) -> Option<Step> {
        let first = self.waiting.front_mut()?;
        let result = match (first.verb, standing) {
            (_, Standing::Quarantined(why)) => Err(Refusal::Quarantined(why.clone())),
            (Verb::Leave, Standing::Left) if saved => Ok(()),
            (Verb::Leave, Standing::Member) if !first.begun => {
                first.begun = true;
                return Some(Step::Begin(Verb::Leave));
            }
            (Verb::Join, Standing::Left) if saved && !first.begun => {
                first.begun = true;
                return Some(Step::Begin(Verb::Join));
            }
            (_, Standing::Leaving | Standing::Left) => first.unfinished(disk, now)?,
            (Verb::Leave, _) if first.begun => Err(Refusal::StillMember),
            (Verb::Leave, _) => Err(Refusal::NoCluster),
            (Verb::Join, standing) if first.begun || *standing == Standing::Member => {
                if saved {
                    Ok(())
                } else {
                    first.unfinished(disk, now)?
                }
            }
            (Verb::Join, Standing::Unprovisioned) => Err(Refusal::Unprovisioned),
            (Verb::Join, _) => Err(Refusal::NotLeft),
        };
        self.waiting.pop_front().map(|first| Step::Answer(first.id, result))
    }
}

impl Waiting {
    /// What a request is answered that takes too long. None: it waits on.
    fn unfinished(&self, disk: Option<&str>, now: Duration) -> Option<Result<(), Refusal>> {
        let what = match (self.verb, self.begun) {
            (Verb::Leave, _) => "the leave is under way and goes on, but is not done",
            (Verb::Join, true) => "this node looks for the cluster again, but that is not saved",
            (Verb::Join, false) => "not joined: a leave is still under way; try again when it is done",
        };
        (now >= self.until).then(|| Err(Refusal::Unfinished { what, disk: disk.map(str::to_owned) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(verbs: &[Verb]) -> Requests {
        let mut requests = Requests::default();
        for (n, verb) in (0..).zip(verbs) {
            requests.add(RequestId(n), *verb, Duration::ZERO).unwrap();
        }
        requests
    }

    fn next(requests: &mut Requests, standing: &Standing, saved: bool, seconds: u64) -> Option<Step> {
        requests.next(standing, saved, Some("no room for membership"), Duration::from_secs(seconds))
    }

    fn done(n: u64) -> Option<Step> {
        Some(Step::Answer(RequestId(n), Ok(())))
    }

    #[test]
    fn a_leave_is_answered_when_the_node_is_out_and_a_join_behind_it_is_done_then() {
        let mut requests = of(&[Verb::Leave, Verb::Leave, Verb::Join]);
        assert_eq!(next(&mut requests, &Standing::Member, true, 0), Some(Step::Begin(Verb::Leave)));
        assert_eq!(next(&mut requests, &Standing::Leaving, true, 1), None, "it is still telling the others");
        assert_eq!(next(&mut requests, &Standing::Left, false, 2), None, "it is not on the disk");
        assert_eq!(next(&mut requests, &Standing::Left, true, 2), done(0));
        assert_eq!(next(&mut requests, &Standing::Left, true, 2), done(1));
        assert_eq!(next(&mut requests, &Standing::Left, true, 2), Some(Step::Begin(Verb::Join)));
        assert_eq!(next(&mut requests, &Standing::Outside, false, 2), None);
        assert_eq!(next(&mut requests, &Standing::Outside, true, 2), done(2));
        assert!(requests.is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_begins() {
        let aside = || Standing::Quarantined("a copy".to_owned());
        for (verb, standing, refusal) in [
            (Verb::Leave, Standing::Outside, Refusal::NoCluster),
            (Verb::Leave, Standing::Unprovisioned, Refusal::NoCluster),
            (Verb::Leave, aside(), Refusal::Quarantined("a copy".to_owned())),
            (Verb::Join, Standing::Outside, Refusal::NotLeft),
            (Verb::Join, Standing::Unprovisioned, Refusal::Unprovisioned),
            (Verb::Join, aside(), Refusal::Quarantined("a copy".to_owned())),
        ] {
            let answer = next(&mut of(&[verb]), &standing, true, 0);
            assert_eq!(answer, Some(Step::Answer(RequestId(0), Err(refusal))), "{verb:?} {standing:?}");
        }
    }

    #[test]
    fn what_holds_already_is_no_failure() {
        for (verb, standing) in [(Verb::Leave, Standing::Left), (Verb::Join, Standing::Member)] {
            assert_eq!(next(&mut of(&[verb]), &standing, true, 0), done(0), "{verb:?} {standing:?}");
        }
    }

    #[test]
    fn what_takes_too_long_is_answered_with_what_it_waits_for() {
        let mut requests = of(&[Verb::Leave, Verb::Join]);
        assert_eq!(next(&mut requests, &Standing::Member, true, 0), Some(Step::Begin(Verb::Leave)));
        assert_eq!(next(&mut requests, &Standing::Left, false, 14), None);
        for n in 0..2 {
            let Some(Step::Answer(id, Err(refusal))) = next(&mut requests, &Standing::Left, false, 15) else {
                panic!("request {n} is not refused")
            };
            assert_eq!(id, RequestId(n));
            assert!(refusal.to_string().contains("no room for membership"), "{refusal}");
        }
    }

    #[test]
    fn a_leave_that_the_node_dropped_is_a_failure() {
        let mut requests = of(&[Verb::Leave]);
        assert_eq!(next(&mut requests, &Standing::Member, true, 0), Some(Step::Begin(Verb::Leave)));
        let refused = Some(Step::Answer(RequestId(0), Err(Refusal::StillMember)));
        assert_eq!(next(&mut requests, &Standing::Member, true, 0), refused);
    }
}
