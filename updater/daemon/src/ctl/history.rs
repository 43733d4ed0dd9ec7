// SPDX-License-Identifier: Apache-2.0
//! `cluster-update history`

use super::{
    Failure,
    client::Client,
    show::{date, out, print_json},
};
use crate::store::Event;

#[derive(Debug, clap::Args)]
#[command(after_help = "Events:\n  \
    imported, staged, cancelled\n  \
    failed             an import or a stage\n  \
    booted             on trial or marked good\n  \
    pass, fail         how a trial boot ended\n  \
    unknown            the node is not a member of its cluster: the trial goes on\n  \
    refunded           the boot before was cut off by the power, and does not count as a try\n  \
    given-up           after three tries, or by `rollback`\n  \
    boot-loader        the boot loader was replaced by this version's")]
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
