// SPDX-License-Identifier: Apache-2.0
//! `cluster-update`: one verb, one file. Some verbs ask the updater of this node over D-Bus; those that make and check
//! releases need nothing but files and run on any PC.

mod apply;
mod client;
mod failure;
mod fetch;
mod history;
mod import;
mod inspect;
mod install;
mod keygen;
mod manifest;
mod reboot;
mod rollback;
mod root;
mod show;
mod sign;
mod stage;
mod status;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cluster_updater_core::Version;

pub use self::failure::{Code, Failure};

/// Updates this Cluster-OS node from releases, and makes and checks releases on a PC.
#[derive(Debug, Parser)]
#[command(
    name = "cluster-update",
    version = crate::VERSION,
    arg_required_else_help = true,
    after_help = "An update from a stick, on a node, as root:\n  \
        cluster-update import /dev/sdX       check every block and keep it in /var\n  \
        cluster-update apply                 write it to the other slot and restart\n  \
        cluster-update status                what runs, and whether it is marked good\n  \
        cluster-update rollback              go back to the version before\n\n\
        From a stick to a disk of the same machine, on a node, as root:\n  \
        cluster-update install --list\n  \
        cluster-update install --disk /dev/nvme0n1\n\n\
        A release, on a PC:\n  \
        cluster-update keygen release.key\n  \
        cluster-update root roots/ --key release.key --sign-with release.key\n  \
        cluster-update sign release/manifest.json --key release.key\n  \
        cluster-update verify release/ --root roots/\n\n\
        Exit codes:\n  \
        0  done\n  \
        1  failed or refused; the message says why\n  \
        2  wrong usage\n  \
        3  the updater is not running on this node\n  \
        5  only root may do this"
)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what runs, what is in the other slot, and what is under way.
    Status(status::Arguments),
    /// Take in a release: from a folder, a file, a web server or a stick.
    Import(import::Arguments),
    /// Write an imported release to the other slot; the next boot starts it.
    Stage(stage::Arguments),
    /// Stage a release and restart.
    Apply(apply::Arguments),
    /// Restart this node, now or later.
    Reboot(reboot::Arguments),
    /// Cancel what is staged, or go back to the version before.
    Rollback(rollback::Arguments),
    /// Install this node to another disk of this machine.
    Install(install::Arguments),
    /// Show what happened to this node's releases.
    History(history::Arguments),
    /// Check a release in a folder or file, every byte of it.
    Verify(verify::Arguments),
    /// Show what a release says it is, without checking it.
    Inspect(inspect::Arguments),
    /// Make a release key.
    Keygen(keygen::Arguments),
    /// Sign a manifest or a root document.
    Sign(sign::Arguments),
    /// Write the next root document: who may sign releases.
    Root(root::Arguments),
    /// Make a release folder from what a build made.
    Manifest(manifest::Arguments),
    /// What `import` starts for one request to a web server.
    #[command(hide = true)]
    Fetch(fetch::Arguments),
}

/// Runs the verb that the command line names and says how it ended.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => {
            eprintln!("cluster-update: failed to start: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> ExitCode {
    let outcome = match arguments.verb {
        Verb::Status(arguments) => status::run(&arguments).await,
        Verb::Import(arguments) => import::run(&arguments).await,
        Verb::Stage(arguments) => stage::run(&arguments).await,
        Verb::Apply(arguments) => apply::run(&arguments).await,
        Verb::Reboot(arguments) => reboot::run(&arguments).await,
        Verb::Rollback(arguments) => rollback::run(&arguments).await,
        Verb::Install(arguments) => install::run(&arguments).await,
        Verb::History(arguments) => history::run(&arguments).await,
        Verb::Verify(arguments) => verify::run(&arguments),
        Verb::Inspect(arguments) => inspect::run(&arguments),
        Verb::Keygen(arguments) => keygen::run(&arguments),
        Verb::Sign(arguments) => sign::run(&arguments),
        Verb::Root(arguments) => root::run(&arguments),
        Verb::Manifest(arguments) => manifest::run(&arguments),
        Verb::Fetch(arguments) => return fetch::run(&arguments).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("cluster-update: {failure}");
            failure.code.into()
        }
    }
}

/// A version on the command line.
fn version(text: &str) -> Result<Version, String> {
    Version::parse(text).ok_or_else(|| "numbers with dots, such as 0.2.1, at most 18 characters".to_owned())
}
