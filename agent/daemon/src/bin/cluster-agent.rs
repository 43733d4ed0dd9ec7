// SPDX-License-Identifier: Apache-2.0
//! `cluster-agent`: see [`cluster_agent::daemon`].

use std::process::ExitCode;

fn main() -> ExitCode {
    cluster_agent::daemon::main()
}
