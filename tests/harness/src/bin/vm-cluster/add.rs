// SPDX-License-Identifier: Apache-2.0
//! `add`: one more VM.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use cluster_harness::client::Client;
use cluster_harness::cluster::{self, Provisioning};

use crate::terminal::{Progress, commands};
use crate::up::Hardware;

/// Add a VM
#[derive(Args)]
pub(crate) struct Add {
    /// Its cluster.toml (default: that of the cluster)
    #[arg(conflicts_with = "none")]
    cluster_toml: Option<PathBuf>,
    /// Without any cluster.toml
    #[arg(long)]
    none: bool,
    #[command(flatten)]
    hardware: Hardware,
}

pub(crate) fn run(client: &Client, verb: &Add) -> Result<()> {
    let provisioning = match &verb.cluster_toml {
        Some(path) => Provisioning::File {
            name: path.display().to_string(),
            text: fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()))?,
        },
        None if verb.none => Provisioning::None,
        None => Provisioning::Cluster,
    };
    let mut progress = Progress::new();
    progress.show("making the disk");
    let vm = cluster::add(client, &provisioning, Some(verb.hardware.shape()))?;
    client.vm(vm).start()?;
    progress.show(&format!("VM {vm} boots"));
    client.vm(vm).wait_boot()?;
    progress.show(&format!("VM {vm} is up"));
    progress.end();
    println!("{}", commands(&format!("see it with `vm-cluster status`, or `vm-cluster shell {vm}`")));
    Ok(())
}
