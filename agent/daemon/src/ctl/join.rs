// SPDX-License-Identifier: Apache-2.0
//! `clusterctl join`

use cluster_agent_core::Phase;

use super::{Code, Failure, client::Client, show::out};
use crate::bus::BusAddress;

/// Brings this node back after a leave. A node that never left needs no join: cluster.toml is enough.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}

pub(crate) async fn run(bus: &BusAddress, _arguments: &Arguments) -> Result<(), Failure> {
    let client = Client::connect(bus).await?;
    match client.status().await?.status.phase {
        Phase::Left => {}
        Phase::Member => return out("this node is a member already\n"),
        Phase::Unprovisioned => {
            return Err(Failure::new(
                Code::Failed,
                "this node has no cluster.toml: `clusterctl status` says how to provision it",
            ));
        }
        Phase::Searching | Phase::Founding | Phase::Waiting | Phase::Quarantined => {
            return Err(Failure::new(
                Code::Failed,
                "this node has not left: it is on its way in by itself, `clusterctl status` says where it stands",
            ));
        }
    }
    client.agent.join().await?;
    out("asking to be let in again; `clusterctl status` shows how it goes\n")
}
