// SPDX-License-Identifier: Apache-2.0
//! How a trial boot went: pass, fail or unknown.
//!
//! Pass: the agent says that this node is a member, and what else a node cannot do without works. Fail: by the deadline one of
//! those does not, or the agent does not run, does not answer or keeps crashing. Unknown: it runs, and the node is not a member by the deadline; that may be the network's fault, and a release is not
//! given up for it. A version that `rollback` gave up while it ran is never passed: blessing it would undo the rollback.

use serde::{Deserialize, Serialize};

/// An agent that systemd has started again so often within one check keeps crashing; one crash may have other causes.
const CRASHES: u32 = 3;

/// What is seen of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agent {
    /// It is not on the bus, or does not answer; what systemd says of its unit.
    Silent(String),
    /// The same, and somebody stopped its unit.
    Stopped(String),
    /// It answers, and the node is not a member; what it says instead.
    Outside(String),
    /// It answers, and the node is a member of the cluster of this name.
    Member(String),
}

/// What is seen of a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Of the agent.
    pub agent: Agent,
    /// `rollback` gave the running version up.
    pub given_up: bool,
    /// How often systemd has started the agent again since the check began.
    pub restarts: u32,
    /// What does not work beside the agent; asked for when it can matter.
    pub broken: Vec<String>,
    /// An interface had a link when this release was staged, and none has one now. A node alone in its cluster is a member all
    /// the same. It may be the switch, so nothing fails for it.
    pub unplugged: bool,
}

/// How a trial boot went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The release is good.
    Pass,
    /// The release is bad.
    Fail,
    /// Nothing can be said: stay, and do not bless.
    Unknown,
}

/// When it is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before the deadline.
    Early,
    /// At the deadline.
    Due,
    /// Unknown was told.
    Later,
}

/// The verdict and its reason; none while nothing is to be told.
#[must_use]
pub fn judge(seen: &Seen, when: When) -> Option<(Verdict, String)> {
    let broken = !seen.broken.is_empty();
    match &seen.agent {
        _ if seen.given_up => Some((Verdict::Unknown, "this version was given up by hand".to_owned())),
        Agent::Member(cluster) if !broken && !seen.unplugged => {
            Some((Verdict::Pass, format!("this node is a member of `{cluster}`")))
        }
        _ if when == When::Early => None,
        // Whoever stops the agent days later does not want a restart of the machine.
        Agent::Stopped(_) if when == When::Later => None,
        Agent::Silent(unit) | Agent::Stopped(unit) => {
            Some((Verdict::Fail, format!("the agent does not answer: {unit}")))
        }
        _ if broken && when == When::Due => Some((Verdict::Fail, seen.broken.join("; "))),
        Agent::Outside(state) if seen.restarts >= CRASHES && when == When::Due => {
            Some((Verdict::Fail, format!("the agent was started again {} times, and {state}", seen.restarts)))
        }
        Agent::Member(_) if !broken => {
            Some((Verdict::Unknown, "no network interface has a link, and one had before".to_owned()))
        }
        // It was whole at the deadline: whatever came over it since, the release is not given up for it.
        Agent::Member(_) => None,
        Agent::Outside(state) => Some((Verdict::Unknown, format!("the agent runs, but {state}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHEN: [When; 3] = [When::Early, When::Due, When::Later];

    fn agents() -> [Agent; 3] {
        [Agent::Silent("dead".into()), Agent::Outside("waits".into()), Agent::Member("lab".into())]
    }

    fn verdict(agent: Agent, broken: &[&str], when: When) -> Option<Verdict> {
        let broken = broken.iter().map(|&what| what.to_owned()).collect();
        judge(&Seen { agent, given_up: false, restarts: 0, broken, unplugged: false }, when)
            .map(|(verdict, _)| verdict)
    }

    #[test]
    fn only_membership_passes_and_only_silence_fails() {
        let verdicts = |when| agents().map(|agent| verdict(agent, &[], when));
        assert_eq!(verdicts(When::Early), [None, None, Some(Verdict::Pass)]);
        for when in [When::Due, When::Later] {
            assert_eq!(verdicts(when), [Some(Verdict::Fail), Some(Verdict::Unknown), Some(Verdict::Pass)]);
        }
    }

    #[test]
    fn what_was_given_up_by_hand_never_passes() {
        for (agent, when) in agents().into_iter().flat_map(|agent| WHEN.map(|when| (agent.clone(), when))) {
            let seen = Seen { agent, given_up: true, restarts: 9, broken: Vec::new(), unplugged: false };
            assert_eq!(judge(&seen, when).map(|(verdict, _)| verdict), Some(Verdict::Unknown));
        }
    }

    #[test]
    fn what_else_does_not_work_is_waited_for_until_the_deadline_and_fails_then() {
        let broken = ["the updater does not answer"];
        let of_member = WHEN.map(|when| verdict(Agent::Member("lab".into()), &broken, when));
        assert_eq!(of_member, [None, Some(Verdict::Fail), None]);
        let outside = Agent::Outside("waits".into());
        let broken = vec!["no ssh".into()];
        let seen = Seen { agent: outside, given_up: false, restarts: 0, broken, unplugged: false };
        assert_eq!(judge(&seen, When::Due), Some((Verdict::Fail, "no ssh".into())));
    }

    #[test]
    fn an_agent_that_keeps_crashing_fails_unless_it_becomes_a_member() {
        let verdict = |agent: Agent, restarts, when| {
            let seen = Seen { agent, given_up: false, restarts, broken: Vec::new(), unplugged: false };
            judge(&seen, when).map(|(verdict, _)| verdict)
        };
        let outside = || Agent::Outside("waits".into());
        assert_eq!(verdict(outside(), 2, When::Due), Some(Verdict::Unknown));
        assert_eq!(verdict(outside(), 3, When::Early), None);
        assert_eq!(verdict(outside(), 3, When::Due), Some(Verdict::Fail));
        assert_eq!(verdict(Agent::Member("lab".into()), 3, When::Due), Some(Verdict::Pass));
    }

    #[test]
    fn a_node_alone_does_not_pass_without_the_link_that_it_had() {
        let verdict = |when| {
            let agent = Agent::Member("lab".into());
            let seen = Seen { agent, given_up: false, restarts: 0, broken: Vec::new(), unplugged: true };
            judge(&seen, when).map(|(verdict, _)| verdict)
        };
        assert_eq!(WHEN.map(verdict), [None, Some(Verdict::Unknown), Some(Verdict::Unknown)]);
    }

    #[test]
    fn an_agent_that_somebody_stops_after_the_verdict_is_no_failure() {
        let stopped = WHEN.map(|when| verdict(Agent::Stopped("inactive".into()), &[], when));
        assert_eq!(stopped, [None, Some(Verdict::Fail), None]);
    }
}
