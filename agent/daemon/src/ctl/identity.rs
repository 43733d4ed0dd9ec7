// SPDX-License-Identifier: Apache-2.0
//! `clusterctl identity`

use std::fmt::Write as _;

use super::{
    Failure,
    client::{Client, print_json},
    show::out,
};
use crate::bus::BusAddress;

/// Shows this node's id, mesh address and public key. They never change; nothing here is secret.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(bus: &BusAddress, arguments: &Arguments) -> Result<(), Failure> {
    let client = Client::connect(bus).await?;
    if arguments.json {
        return print_json(&client.agent.identity().await?);
    }
    let identity = client.identity().await?;
    let mut text = String::new();
    for (key, value) in [
        ("name", identity.name.as_str()),
        ("id", &identity.id),
        ("short id", &identity.short_id),
        ("address", &identity.address),
        ("wireguard key", &identity.wireguard_key),
        ("cluster id", identity.cluster_id.as_deref().unwrap_or("none yet")),
    ] {
        let _ = writeln!(text, "{key:<13} {value}");
    }
    out(&text)
}
