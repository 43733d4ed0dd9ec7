// SPDX-License-Identifier: Apache-2.0
//! `cluster-update history`

use super::{
    Failure,
    client::Client,
    show::{date, out, print_json},
};
use crate::store::Event;

/// Shows what happened to this node's releases, oldest first.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "An event is one of imported, staged, cancelled, given-up, failed (an import or stage), booted, refunded (a\n\
    try that a power cut had taken), and what became of a trial boot: pass, fail, unknown."
)]
pub(crate) struct Arguments {
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let json = Client::connect().await?.updater.history().await?;
    if arguments.json {
        return print_json(&json);
    }
    let events: Vec<Event> = serde_json::from_str(&json)?;
    let lines = events.iter().map(|event| {
        format!("{}  {:<9} {:<10} {}\n", date(event.time), event.what, event.version, event.detail)
    });
    out(&lines.collect::<String>())
}
