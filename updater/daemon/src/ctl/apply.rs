// SPDX-License-Identifier: Apache-2.0
//! `cluster-update apply`

use cluster_updater_core::Version;

use super::{Failure, client::Client, show::out, stage};

/// Stages an imported release and restarts this node. The release is tried; it is marked good when the node is a member of
/// its cluster again, and given up when it does not come up three times.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The release; by default the newest that can be had and was not given up: imported, or held by a member.
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
