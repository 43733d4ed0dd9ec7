// SPDX-License-Identifier: Apache-2.0
//! `cluster-updater`, the daemon: its flags, its log, its loop.

use std::{process::ExitCode, sync::Arc, thread, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tracing::error;
use zbus::Connection;

use crate::{
    bus,
    check::{self, Limits},
    guard::Guard,
    host::Host,
    install::mark,
    logging,
    paths::Paths,
    updater::Updater,
};

/// Puts releases into the slot that does not run. It is run by cluster-updater.service and asked by `cluster-update`.
#[derive(Debug, Parser)]
#[command(name = "cluster-updater", version = crate::VERSION)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Judge this boot (cluster-boot-check.service).
    CheckBoot {
        /// Seconds until a verdict is due.
        #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().deadline.as_secs())]
        within: u64,
    },
    /// Note that this boot failed, where its check did not (cluster-boot-failed.service, cluster-boot-late.service).
    NoteFailure {
        /// Why.
        reason: String,
    },
    /// Find out whether this node has moved to another disk (cluster-moved.service).
    SettleMove,
}

/// What there is to do.
enum Task {
    Serve,
    Check(Limits, Guard),
    NoteFailure(String),
    SettleMove,
}

/// Runs what the command line asks for.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let identifier = match &arguments.verb {
        None => "cluster-updater",
        Some(Verb::CheckBoot { .. } | Verb::NoteFailure { .. }) => "cluster-boot-check",
        Some(Verb::SettleMove) => "cluster-moved",
    };
    let run = || -> Result<()> {
        // Before anything that could hang, the journal included.
        let task = match arguments.verb {
            Some(Verb::CheckBoot { within }) => {
                let limits = Limits { deadline: Duration::from_secs(within), ..Limits::default() };
                Task::Check(limits, check::guard(&Paths::default(), limits)?)
            }
            Some(Verb::NoteFailure { reason }) => Task::NoteFailure(reason),
            Some(Verb::SettleMove) => Task::SettleMove,
            None => Task::Serve,
        };
        logging::init(identifier)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let host = Host::look().context("this system does not run from a slot")?;
        runtime.block_on(async {
            match task {
                Task::Check(limits, guard) => {
                    let connect = async || Connection::system().await;
                    check::run(&Paths::default(), &host, connect, limits, &guard).await
                }
                Task::NoteFailure(reason) => check::note_failure(&Paths::default(), &host, &reason),
                Task::SettleMove => mark::settle_at_boot(&Paths::default().moved, &host.disk),
                Task::Serve => {
                    let updater = Arc::new(Updater::new(Paths::default(), host)?);
                    let beside = Arc::clone(&updater);
                    // Beside: whatever the ESP and cluster-releases do, this answers on the bus.
                    thread::Builder::new().name("offer".to_owned()).spawn(move || {
                        beside.offer();
                        beside.settle();
                    })?;
                    let loading = Arc::clone(&updater);
                    thread::Builder::new()
                        .name("loader".to_owned())
                        .spawn(move || loading.refresh_boot_loader())?;
                    bus::serve(updater).await
                }
            }
        })
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure:#}");
            ExitCode::FAILURE
        }
    }
}
