// SPDX-License-Identifier: Apache-2.0
//! `cluster-update stage`

use cluster_updater_core::Version;

use super::{
    Failure,
    client::Client,
    show::{out, print_json, size},
};
use crate::report::{SourceReport, StageReport};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The release; by default the newest that was imported here or is offered by a member, and was not given up.
    #[arg(value_name = "VERSION", value_parser = super::version)]
    version: Option<Version>,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let json = stage(&Client::connect().await?, arguments.version.as_ref()).await?;
    if arguments.json {
        return print_json(&json);
    }
    out(&text(&serde_json::from_str(&json)?))
}

/// Returns the updater's JSON.
pub(crate) async fn stage(client: &Client, version: Option<&Version>) -> Result<String, Failure> {
    let version = version.map_or_else(String::new, ToString::to_string);
    client.watch(client.updater.stage(&version)).await
}

pub(crate) fn text(report: &StageReport) -> String {
    let passed_over: String =
        report.passed_over.iter().map(|newer| format!("  passed over {newer}\n")).collect();
    if report.already {
        return format!(
            "{} is staged already; `cluster-update reboot` starts it\n{passed_over}",
            report.version
        );
    }
    let blocks = report.blocks;
    let mut text = format!(
        "staged {}; `cluster-update reboot` starts it\n  \
         root image: {} from the running slot, {} from the release, {} there before\n  \
         boot entry: {} from the release\n",
        report.version,
        size(blocks.local * 4096),
        size(blocks.fetched * 4096),
        size(blocks.kept * 4096),
        size(report.uki_bytes)
    );
    for source in &report.sources {
        text += &member(source);
    }
    text + &passed_over
}

/// A line about a member that was asked.
fn member(source: &SourceReport) -> String {
    let fault = source.fault.map_or_else(String::new, |fault| format!("; {fault}"));
    format!("  from {}: {}{fault}\n", source.name, size(source.bytes))
}
