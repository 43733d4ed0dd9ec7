// SPDX-License-Identifier: Apache-2.0
//! `cluster-update fetch`: what `import` starts, under another user, for one request to a web server.

use std::{process::ExitCode, time::Duration};

use crate::intake::child;

/// Writes what is at a URL to stdout.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    url: String,
    /// The first byte that is wanted.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// For a connection and the beginning of an answer, and again for each part of it.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    stall: u64,
}

pub(crate) async fn run(arguments: &Arguments) -> ExitCode {
    child::main(&arguments.url, arguments.from, Duration::from_secs(arguments.stall)).await
}
