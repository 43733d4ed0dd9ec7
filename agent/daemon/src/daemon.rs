// SPDX-License-Identifier: Apache-2.0
//! `cluster-agent`, the daemon: its flags, its log, its event loop. It is here and not in the program, so that the library
//! compiles it and the program is only linked.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use tracing::error;

use crate::{
    bus::BusAddress,
    eventloop::{self, Options},
    logging,
    net::interfaces::Physical,
    paths::{CONFIG_DIR, Paths, RUNTIME_DIR, STATE_DIR},
    version,
};

/// The cluster agent: finds the other nodes, joins or founds the cluster, keeps membership and mesh.
///
/// On a node it is run by cluster-agent.service with no flag at all; the flags are for tests and development.
#[derive(Debug, Parser)]
#[command(name = "cluster-agent", version = version::AGENT, after_help = "Environment:\n  \
    CLUSTER_AGENT_LOG   what to log, e.g. debug, or info,cluster_agent=debug\n\n\
    Look at it with `clusterctl status`.")]
struct Arguments {
    /// Where cluster.toml is.
    #[arg(long, value_name = "DIR", default_value = CONFIG_DIR)]
    config_dir: PathBuf,
    /// Where identity and membership are kept; must survive a reboot.
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    state_dir: PathBuf,
    /// Where the agent asks for what others do for it: host name, userspace WireGuard.
    #[arg(long, value_name = "DIR", default_value = RUNTIME_DIR)]
    runtime_dir: PathBuf,
    /// D-Bus to serve on; the system bus by default.
    #[arg(long, value_name = "ADDRESS")]
    bus_address: Option<String>,
    /// Speak over interfaces of this name; `*` at the end stands for anything. Default: those with a device behind.
    #[arg(long, value_name = "NAME", conflicts_with = "all_interfaces")]
    interface_pattern: Option<String>,
    /// Speak over all interfaces but loopback and the mesh.
    #[arg(long)]
    all_interfaces: bool,
    /// Never set the machine's clock.
    #[arg(long)]
    keep_clock: bool,
}

impl Arguments {
    fn into_options(self) -> Options {
        Options {
            paths: Paths {
                config_dir: self.config_dir,
                state_dir: self.state_dir,
                runtime_dir: self.runtime_dir,
            },
            bus: self.bus_address.map_or(BusAddress::System, BusAddress::At),
            physical: match self.interface_pattern {
                Some(pattern) => Physical::Named(pattern),
                None if self.all_interfaces => Physical::All,
                None => Physical::WithDevice,
            },
            keep_clock: self.keep_clock,
        }
    }
}

/// Runs the daemon until it is told to stop.
#[must_use]
pub fn main() -> ExitCode {
    let options = Arguments::parse().into_options();
    if let Err(error) = logging::init() {
        eprintln!("cluster-agent: {error:#}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // One turn of the loop may take a millisecond of datagrams; streams and the bus are looked at after so many turns.
        .event_interval(8)
        // For WireGuard, DNS and cluster.toml: a handful of calls at a time.
        .max_blocking_threads(8)
        .build()
        .context("failed to start the event loop");
    match runtime.and_then(|runtime| runtime.block_on(eventloop::run(options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("the agent cannot run: {error:#}");
            ExitCode::FAILURE
        }
    }
}
