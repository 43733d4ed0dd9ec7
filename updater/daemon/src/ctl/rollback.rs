// SPDX-License-Identifier: Apache-2.0
//! `cluster-update rollback`

use super::{
    Failure,
    client::Client,
    show::{out, print_json},
};
use crate::report::RollbackReport;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = Client::connect().await?;
    let json = client.watch(client.updater.rollback()).await?;
    if arguments.json {
        return print_json(&json);
    }
    let report: RollbackReport = serde_json::from_str(&json)?;
    out(&match report.cancelled {
        Some(version) => format!("{version} will not be started; {} stays\n", report.next_boot),
        None => format!("the next boot starts {}; `cluster-update reboot` does that now\n", report.next_boot),
    })
}
