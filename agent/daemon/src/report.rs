// SPDX-License-Identifier: Apache-2.0
//! What travels over the bus as JSON, made by the agent and read by `clusterctl`. The members' list is the core's own.

use cluster_agent_core::Status;
use serde::{Deserialize, Serialize};

/// What `Status` on the bus tells: the core's view and what only the daemon knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The core's view.
    #[serde(flatten)]
    pub status: Status,
    /// Version of the agent itself; differs from the system's in development only.
    pub agent_version: String,
    /// Who carries the mesh: `kernel`, `wireguard-go`, or nobody yet.
    pub mesh_backend: Option<String>,
}

/// What `Identity` on the bus tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityReport {
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
    /// Cluster this node belongs to.
    pub cluster_id: Option<String>,
}

impl From<Status> for IdentityReport {
    fn from(status: Status) -> Self {
        Self {
            name: status.name,
            id: status.id,
            short_id: status.short_id,
            address: status.address,
            wireguard_key: status.wireguard_key,
            cluster_id: status.cluster_id,
        }
    }
}
