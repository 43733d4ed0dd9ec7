// SPDX-License-Identifier: Apache-2.0
//! `cluster-update apply`

use cluster_updater_core::Version;

use super::{Failure, client::Client, show::out, stage};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The release; by default the newest that was imported here or is offered by a member, and was not given up.
    #[arg(value_name = "VERSION", value_parser = super::version)]
    version: Option<Version>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = Client::connect().await?;
    let json = stage::stage(&client, arguments.version.as_ref()).await?;
    out(&stage::text(&serde_json::from_str(&json)?))?;
    client.updater.reboot().await?;
    out("restarting\n")
}
