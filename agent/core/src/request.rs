// SPDX-License-Identifier: Apache-2.0
//! What people and programs ask of a [`Node`](crate::Node), and how it answers. Each request has a number and gets one
//! [`Answer`](crate::Command::Answer).

use crate::view::HeldRelease;

/// Number of a request, chosen by the caller and given back in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `clusterctl leave`. Done when the node is out and that is on its disk.
    Leave,
    /// `clusterctl join`: come back after a leave, also one that is under way. Done when the node looks for the cluster again
    /// and that is on its disk.
    Join,
    /// The releases that this node gives to others, newest first; told again whenever that changes. Done when its record
    /// names them.
    Releases(Vec<HeldRelease>),
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The node stands aside for another one with its identity.
    #[error("{0}")]
    Quarantined(String),
    /// A leave of a node without a cluster.
    #[error("this node belongs to no cluster, there is nothing to leave")]
    NoCluster,
    /// A leave that ended without the node being out.
    #[error("this node did not leave; its log says why")]
    StillMember,
    /// A join of a node that did not leave.
    #[error(
        "this node has not left: it is on its way in by itself, `clusterctl status` says where it stands"
    )]
    NotLeft,
    /// A join of a node that knows no cluster to join.
    #[error("this node has no cluster.toml")]
    Unprovisioned,
    /// It takes longer than the caller waits; what it is, and what the disk says.
    #[error("{what}{}", disk.as_ref().map(|error| format!("; the disk does not take it: {error}")).unwrap_or_default())]
    Unfinished {
        /// Where the request stands.
        what: &'static str,
        /// Why the disk does not take it, if it does not.
        disk: Option<String>,
    },
    /// Too many requests wait already.
    #[error("too many requests wait already")]
    TooMany,
    /// Releases that the node's record cannot name; it names the others.
    #[error("not announced, because malformed or beyond what a record holds: {}", .0.join(", "))]
    Releases(Vec<String>),
}
