// SPDX-License-Identifier: Apache-2.0
//! `cluster-update`, the command line of updates: see [`cluster_updater::ctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cluster_updater::ctl::main()
}
