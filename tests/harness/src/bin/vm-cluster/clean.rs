// SPDX-License-Identifier: Apache-2.0
//! `clean`: nothing is left.

use anyhow::{Result, ensure};
use clap::Args;
use cluster_harness::client::Client;
use cluster_harness::protocol::Request;
use cluster_harness::state::ClusterDir;
use std::time::{Duration, Instant};

/// Cut all power and delete the VMs' disks
#[derive(Args)]
pub(crate) struct Clean {}

/// The daemon has nothing left to do but to end.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn run(dir: &ClusterDir) -> Result<()> {
    if let Ok(client) = Client::connect(dir) {
        client.request(&Request::Shutdown)?;
    }
    let start = Instant::now();
    while dir.is_alive() {
        ensure!(start.elapsed() < LIMIT, "the daemon does not end (`{}`)", dir.daemon_log().display());
        std::thread::sleep(Duration::from_millis(20));
    }
    dir.remove()?;
    println!("cluster `{}` is gone", dir.name());
    Ok(())
}
