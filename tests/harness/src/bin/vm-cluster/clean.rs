// SPDX-License-Identifier: Apache-2.0
//! `clean`: nothing is left.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use cluster_harness::client::Client;
use cluster_harness::protocol::Request;
use cluster_harness::state::ClusterDir;

/// Stop all VMs and delete their disks
#[derive(Args)]
pub(crate) struct Clean {}

/// The daemon has nothing left to do but to end.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn run(dir: &ClusterDir) -> Result<()> {
    if let Ok(client) = Client::connect(dir) {
        client.request(&Request::Shutdown)?;
    }
    dir.wait_until_free(LIMIT)?;
    dir.remove()?;
    println!("cluster `{}` was deleted", dir.name());
    Ok(())
}
