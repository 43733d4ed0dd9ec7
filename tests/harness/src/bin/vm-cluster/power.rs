// SPDX-License-Identifier: Apache-2.0
//! `start`, `stop`, `kill`.

use anyhow::{Result, bail};
use clap::Args;
use cluster_harness::client::Client;
use cluster_harness::cluster;
use cluster_harness::protocol::{Power, Request};
use cluster_harness::state::ClusterDir;

use crate::terminal::Progress;

/// Switch VM N on, or all
#[derive(Args)]
pub(crate) struct Start {
    /// Number of the VM (default: all)
    vm: Option<u32>,
    /// Do not wait until it accepts commands
    #[arg(long)]
    no_wait: bool,
}

/// Shut VM N down, or all
#[derive(Args)]
pub(crate) struct Stop {
    /// Number of the VM (default: all, and the switch)
    vm: Option<u32>,
}

/// Cut the power of VM N
#[derive(Args)]
pub(crate) struct Kill {
    /// Numbers of the VMs, cut at once
    #[arg(required = true)]
    vms: Vec<u32>,
}

pub(crate) fn start(dir: &ClusterDir, verb: &Start) -> Result<()> {
    let client = cluster::open(dir)?;
    let vms = match verb.vm {
        Some(vm) => vec![vm],
        None => client.status()?.vms.into_keys().collect(),
    };
    for vm in &vms {
        if !client.vm(*vm).start()? {
            println!("VM {vm} was already on");
        }
    }
    if verb.no_wait {
        return Ok(());
    }
    let mut progress = Progress::new();
    for vm in &vms {
        progress.show(&format!("VM {vm} boots"));
        client.vm(*vm).wait_boot()?;
    }
    progress.show("ready");
    progress.end();
    Ok(())
}

pub(crate) fn stop(dir: &ClusterDir, verb: &Stop) -> Result<()> {
    let client = Client::connect(dir)?;
    if let Some(vm) = verb.vm {
        if !client.vm(vm).stop()? {
            println!("VM {vm} was already off");
        }
        return Ok(());
    }
    let on: Vec<u32> = client.running()?;
    let mut progress = Progress::new();
    progress.show(&format!("shutting down {} VMs", on.len()));
    let results: Vec<Result<bool>> = std::thread::scope(|scope| {
        let stop = |vm: u32| {
            let client = client.another();
            scope.spawn(move || client?.vm(vm).stop())
        };
        let threads: Vec<_> = on.iter().map(|vm| stop(*vm)).collect();
        let panicked = || Err(anyhow::anyhow!("stopping a VM panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
    });
    progress.end();
    let failed: Vec<String> =
        results.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    client.request(&Request::Shutdown)?;
    println!("cluster `{}` is switched off; its disks are kept", dir.name());
    Ok(())
}

pub(crate) fn kill(client: &Client, verb: &Kill) -> Result<()> {
    for vm in &verb.vms {
        if client.vm(*vm).status()?.power == Power::Off {
            println!("VM {vm} was already off");
        }
    }
    for vm in &verb.vms {
        client.vm(*vm).kill()?;
    }
    Ok(())
}
