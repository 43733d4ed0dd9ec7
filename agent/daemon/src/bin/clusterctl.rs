// SPDX-License-Identifier: Apache-2.0
//! `clusterctl`, the command line of the cluster: see [`cluster_agent::ctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cluster_agent::ctl::main()
}
