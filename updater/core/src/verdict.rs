// SPDX-License-Identifier: Apache-2.0
//! How a trial boot went: pass, fail or unknown.
//!
//! Pass: the agent says that this node is a member. Fail: the agent does not run or does not answer by the deadline.
//! Unknown: it runs, and the node is not a member by the deadline; that may be the network's fault, and a release is not
//! given up for it. A version that `rollback` gave up while it ran is never passed: blessing it would undo the rollback.

use serde::{Deserialize, Serialize};

/// What is seen of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agent {
    /// It is not on the bus, or does not answer; what systemd says of its unit.
    Silent(String),
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

/// The verdict and its reason; none while it is too early for one.
#[must_use]
pub fn judge(seen: &Seen, deadline_is_over: bool) -> Option<(Verdict, String)> {
    match &seen.agent {
        _ if seen.given_up => Some((Verdict::Unknown, "this version was given up by hand".to_owned())),
        Agent::Member(cluster) => Some((Verdict::Pass, format!("this node is a member of `{cluster}`"))),
        _ if !deadline_is_over => None,
        Agent::Outside(state) => Some((Verdict::Unknown, format!("the agent runs, but {state}"))),
        Agent::Silent(unit) => Some((Verdict::Fail, format!("the agent does not answer: {unit}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_membership_passes_and_only_silence_fails() {
        let agents =
            [Agent::Silent("dead".into()), Agent::Outside("waits".into()), Agent::Member("lab".into())];
        let verdicts = |given_up, over| {
            agents.clone().map(|agent| judge(&Seen { agent, given_up }, over).map(|(verdict, _)| verdict))
        };
        assert_eq!(verdicts(false, false), [None, None, Some(Verdict::Pass)]);
        assert_eq!(verdicts(false, true), [Some(Verdict::Fail), Some(Verdict::Unknown), Some(Verdict::Pass)]);
        for over in [false, true] {
            assert_eq!(verdicts(true, over), [Some(Verdict::Unknown); 3]);
        }
    }
}
