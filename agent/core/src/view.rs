// SPDX-License-Identifier: Apache-2.0
//! What people and programs are shown: plain data, made on demand by [`Node::status`](crate::Node::status) and
//! [`Node::members`](crate::Node::members). `clusterctl --json` prints these as they are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::settings::Problem;

/// Where a node is on its way into a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// There is no usable `cluster.toml`.
    Unprovisioned,
    /// Looks for others with the same join key.
    Searching,
    /// This node is about to found the cluster.
    Founding,
    /// Belongs to a cluster and waits for its other members (`detail` says for whom).
    Waiting,
    /// Member of a cluster.
    Member,
    /// Left its cluster on request.
    Left,
    /// Stands aside: another live machine has the same identity.
    Quarantined,
}

impl Phase {
    /// The word shown for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unprovisioned => "unprovisioned",
            Self::Searching => "searching",
            Self::Founding => "founding",
            Self::Waiting => "waiting",
            Self::Member => "member",
            Self::Left => "left",
            Self::Quarantined => "quarantined",
        }
    }
}

/// State of a member as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Answers.
    Up,
    /// Did not answer; declared down soon unless it does.
    Suspect,
    /// Does not answer.
    Down,
    /// Left by its own decision.
    Left,
}

impl MemberState {
    /// The word shown for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
        }
    }
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the running system.
    pub version: String,
    /// Host name.
    pub name: String,
    /// Node id, 52 characters of base32.
    pub id: String,
    /// First 8 characters of the id.
    pub short_id: String,
    /// Mesh address.
    pub address: String,
    /// WireGuard public key, base64.
    pub wireguard_key: String,
    /// Cluster name, from `cluster.toml` or the genesis.
    pub cluster: Option<String>,
    /// Cluster id, hexadecimal; `None` before the node was admitted.
    pub cluster_id: Option<String>,
    /// Where the node stands.
    pub phase: Phase,
    /// One line for people: what the node does now, for whom it waits, what to do.
    pub detail: String,
    /// Addresses of the physical interfaces, without link-local ones unless there is nothing else.
    pub endpoints: Vec<String>,
    /// Number of members by state, this node included.
    pub members: BTreeMap<String, u32>,
    /// What is wrong, with line and fix.
    pub problems: Vec<Problem>,
    /// Development keys or settings in this image.
    pub development: Vec<String>,
    /// Labels of this node.
    pub labels: BTreeMap<String, String>,
    /// What was refused since boot, by reason.
    pub rejects: BTreeMap<String, u64>,
    /// Seconds since the node was started.
    pub uptime_seconds: u64,
}

/// A release that a node gives to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRelease {
    /// Its version.
    pub version: String,
    /// The first 8 bytes of its root hash, 16 hexadecimal digits.
    pub hash: String,
}

/// One member of the cluster, this node included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Host name.
    pub name: String,
    /// Node id, 52 characters of base32.
    pub id: String,
    /// State as this node sees it.
    pub state: MemberState,
    /// Mesh address.
    pub address: String,
    /// Whether it is this node.
    #[serde(rename = "self")]
    pub is_self: bool,
    /// Physical address on which it was last heard.
    pub endpoint: Option<String>,
    /// `false`: others reach it, this node does not, and the mesh passes nothing between the two. `None`: this node itself.
    pub reachable: Option<bool>,
    /// Seconds since it was last heard; `None`: not since this node started.
    pub last_seen_seconds: Option<u64>,
    /// Seconds since the last WireGuard handshake; `None`: none yet.
    pub handshake_age_seconds: Option<u64>,
    /// Bytes received through the mesh.
    pub rx_bytes: u64,
    /// Bytes sent through the mesh.
    pub tx_bytes: u64,
    /// Version it runs.
    pub version: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Releases that it gives to others, as it says.
    #[serde(default)]
    pub releases: Vec<HeldRelease>,
    /// WireGuard public key, base64.
    pub wireguard_key: Option<String>,
    /// Node that admitted it; the founder's own id for the founder.
    pub admitted_by: Option<String>,
}
