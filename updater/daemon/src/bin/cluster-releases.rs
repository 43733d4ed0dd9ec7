// SPDX-License-Identifier: Apache-2.0
//! See [`cluster_updater::releases`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cluster_updater::releases::main()
}
