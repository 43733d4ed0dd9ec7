// SPDX-License-Identifier: Apache-2.0
//! `clusterctl`, the command line of the cluster. Everything is in [`cluster_agent::ctl`].

use std::process::ExitCode;

use clap::Parser as _;
use cluster_agent::ctl;

fn main() -> ExitCode {
    let arguments = ctl::Arguments::parse();
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(ctl::run(arguments)),
        Err(error) => {
            eprintln!("clusterctl: failed to start: {error}");
            ExitCode::FAILURE
        }
    }
}
