// SPDX-License-Identifier: Apache-2.0
//! `clusterctl`: one verb, one file. Each asks the agent over D-Bus and prints: tables for people, `--json` for
//! programs.

mod client;
mod console;
mod failure;
mod identity;
mod join;
mod join_key;
mod leave;
mod node;
mod nodes;
mod provision;
mod show;
mod ssh_keys;
mod status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use self::failure::{Code, Failure};
use crate::bus::BusAddress;

/// Shows and controls a Cluster-OS cluster from any of its nodes, and prepares its sticks on a PC.
#[derive(Debug, Parser)]
#[command(
    name = "clusterctl",
    version = crate::version::AGENT,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        clusterctl status                 this node, its problems and their fixes\n  \
        clusterctl nodes                  all members\n  \
        clusterctl nodes --json           the same for programs\n  \
        clusterctl node node-a1b2c3d4     one member in detail\n  \
        clusterctl join-key generate      a cluster.toml for a new cluster\n  \
        clusterctl provision /dev/sdX --config cluster.toml   write it to a stick\n\n\
        Exit codes:\n  \
        0  done\n  \
        1  failed\n  \
        2  wrong usage\n  \
        3  the agent is not running on this node\n  \
        4  there is no such node\n  \
        5  only root may do this\n  \
        6  still in progress when the time was over"
)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// D-Bus address of the agent, for development.
    #[arg(long, global = true, value_name = "ADDRESS", hide_short_help = true)]
    bus_address: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show this node, its cluster and its problems.
    Status(status::Arguments),
    /// List the members of the cluster.
    Nodes(nodes::Arguments),
    /// Show one member in detail.
    Node(node::Arguments),
    /// Show this node's id, addresses and public key.
    Identity(identity::Arguments),
    /// Take this node out of its cluster.
    Leave(leave::Arguments),
    /// Join the cluster again after `leave`, and wait until this node is a member.
    Join(join::Arguments),
    /// Show this node on a console and keep the display up to date.
    Console(console::Arguments),
    /// Write cluster.toml to a stick, disk or image file, and the image first if asked.
    Provision(provision::Arguments),
    /// Make join keys.
    #[command(subcommand)]
    JoinKey(join_key::Verb),
    /// Put the SSH keys of cluster.toml in place (cluster-ssh-keys@.service).
    #[command(hide = true)]
    SshKeys(ssh_keys::Arguments),
}

/// Runs the verb that the command line names and says how it ended.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => {
            eprintln!("clusterctl: failed to start: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> ExitCode {
    let bus = arguments.bus_address.map_or(BusAddress::System, BusAddress::At);
    let outcome = match arguments.verb {
        Verb::Status(arguments) => status::run(&bus, &arguments).await,
        Verb::Nodes(arguments) => nodes::run(&bus, &arguments).await,
        Verb::Node(arguments) => node::run(&bus, &arguments).await,
        Verb::Identity(arguments) => identity::run(&bus, &arguments).await,
        Verb::Leave(arguments) => leave::run(&bus, &arguments).await,
        Verb::Join(arguments) => join::run(&bus, &arguments).await,
        Verb::Console(arguments) => console::run(&bus, &arguments).await,
        Verb::Provision(arguments) => provision::run(&arguments),
        Verb::JoinKey(verb) => join_key::run(&verb),
        Verb::SshKeys(arguments) => ssh_keys::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("clusterctl: {failure}");
            failure.code.into()
        }
    }
}
