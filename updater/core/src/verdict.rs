// SPDX-License-Identifier: Apache-2.0
//! How a trial boot went: pass, fail or unknown.
//!
//! Pass: the agent says that this node is a member. Fail: the agent does not run or does not answer by the deadline.
//! Unknown: it runs, and the node is not a member by the deadline; that may be the network's fault, and a release is not
//! given up for it.

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
pub fn judge(agent: &Agent, deadline_is_over: bool) -> Option<(Verdict, String)> {
    match agent {
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
        let verdicts = |over| agents.each_ref().map(|agent| judge(agent, over).map(|(verdict, _)| verdict));
        assert_eq!(verdicts(false), [None, None, Some(Verdict::Pass)]);
        assert_eq!(verdicts(true), [Some(Verdict::Fail), Some(Verdict::Unknown), Some(Verdict::Pass)]);
    }
}
