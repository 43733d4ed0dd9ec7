// SPDX-License-Identifier: Apache-2.0
//! `cluster-updater`: see [`cluster_updater::daemon`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cluster_updater::daemon::main()
}
