// SPDX-License-Identifier: Apache-2.0
//! `cluster-update reboot`

use super::{Failure, client::Client, show::out};

/// Restarts this node; refused while the updater writes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}

pub(crate) async fn run(_: &Arguments) -> Result<(), Failure> {
    Client::connect().await?.updater.reboot().await?;
    out("restarting\n")
}
