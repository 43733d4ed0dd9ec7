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
    after_help = "A node has two slots, each with room for one version: one runs, the other takes the next. What was staged there \
        runs after the next restart, on trial. It is marked good once the node is a member of its cluster; when three boots \
        fail, it is given up and the version before runs again.\n\n\
        An update, on a node, as root:\n  \
        cluster-update import /dev/sdX       check a release and keep it in /var; also a file, folder or URL\n  \
        cluster-update apply                 write it to the other slot and restart\n  \
        cluster-update status                what runs, and whether it is marked good\n\
        On the other nodes `apply` alone is enough: they take the release from this one.\n\n\
        Back to the version before:\n  \
        cluster-update rollback\n  \
        cluster-update reboot\n\n\
        From a stick to a disk of the same machine:\n  \
        cluster-update install --list\n  \
        cluster-update install --disk /dev/nvme0n1\n\n\
        A release, on a PC (`./just release --key release.key` does all but the first two):\n  \
        cluster-update keygen release.key\n  \
        cluster-update root roots/ --key release.key.pub --sign-with release.key\n  \
        cluster-update manifest release/ …\n  \
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
    /// Check a release and keep it in /var: from a folder, a file, a web server or a stick.
    ///
    /// Every block is checked. Nothing changes on the slots: `stage` or `apply` comes next, here or on other members, which can
    /// take the release from this node.
    Import(import::Arguments),
    /// Write a release to the other slot; the next boot starts it.
    ///
    /// It was imported here, or comes from members that have it. What runs is not touched, and nothing restarts. The version that was
    /// in the other slot is overwritten.
    Stage(stage::Arguments),
    /// Stage a release and restart.
    ///
    /// The same as `stage`, then `reboot`. The release runs on trial: it is marked good when the node is a member of its cluster
    /// again, and given up when three boots fail.
    Apply(apply::Arguments),
    /// Restart this node, now or later.
    ///
    /// Refused while the updater writes. A scheduled restart that would come while it writes is put off until it has finished.
    Reboot(reboot::Arguments),
    /// Cancel what is staged, or go back to the version before.
    ///
    /// A staged release that has not run is cancelled. If there is none, the running version is given up, and the next boot starts
    /// the version before: `reboot` does that now.
    Rollback(rollback::Arguments),
    /// Move this node to another disk of this machine.
    ///
    /// What runs, cluster.toml, and everything in /var move there, and the node runs from there after the next start. The whole disk is
    /// overwritten.
    ///
    /// Until the last step the node stays where it is, and an interruption of any kind harms nothing: run it again. In the last
    /// step the node's agent stops; it never starts from the old disk again. Then switch the machine off, remove the old disk, and
    /// switch it on.
    Install(install::Arguments),
    /// Show what happened to this node's releases, oldest first.
    History(history::Arguments),
    /// Check a release in a folder or file, every byte of it.
    ///
    /// Signatures, hash tree, every block of the root image, UKI, boot loader. Works on any PC.
    Verify(verify::Arguments),
    /// Show what a release says it is, without checking it.
    Inspect(inspect::Arguments),
    /// Make a release key.
    ///
    /// FILE, readable by its owner only, and FILE.pub, both PEM as OpenSSL has them. Whoever has FILE can sign releases: keep it off
    /// the network. If the only key is lost, nodes never accept another release: make a second one, and keep it in a safe.
    Keygen(keygen::Arguments),
    /// Sign a manifest or a root document.
    ///
    /// Writes FILE.KEYID.sig beside FILE: 64 raw bytes of Ed25519. Where several keys must sign, run it once for each.
    Sign(sign::Arguments),
    /// Write the next root document: who may sign releases.
    ///
    /// Version 1, or the successor of the newest one in the folder. It must be signed by as many of its own keys, and of its
    /// predecessor's, as the threshold of each says; so nodes that know the predecessor follow.
    Root(root::Arguments),
    /// Make a release folder from what a build made.
    ///
    /// Copies the files under their names and writes manifest.json; `sign` comes next. `./just release` calls both.
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
