// SPDX-License-Identifier: Apache-2.0
//! `snapshot` and `restore`: all VMs and the switch together, never one alone (that would rewind keys and votes).

use std::time::Instant;

use anyhow::Result;
use clap::Args;
use cluster_harness::client::Client;
use cluster_harness::protocol::Request;

/// Save the state of all VMs and the switch together
#[derive(Args)]
pub(crate) struct Snapshot {}

/// Restore all VMs and the switch from the snapshot
#[derive(Args)]
pub(crate) struct Restore {}

pub(crate) fn snapshot(client: &Client) -> Result<()> {
    let start = Instant::now();
    let answer = client.request(&Request::Snapshot)?;
    println!("{} VMs saved in {:.1} s", answer["vms"], start.elapsed().as_secs_f64());
    Ok(())
}

pub(crate) fn restore(client: &Client) -> Result<()> {
    let start = Instant::now();
    let answer = client.request(&Request::Restore)?;
    println!("{} VMs restored in {:.1} s", answer["vms"], start.elapsed().as_secs_f64());
    for vm in answer["switched_off"].as_array().into_iter().flatten() {
        println!("VM {vm} is not in the snapshot and was switched off");
    }
    Ok(())
}
