// SPDX-License-Identifier: Apache-2.0
//! `clusterctl status`

use std::{fmt::Write as _, fs};

use super::{
    Failure,
    client::{Client, print_json},
    show::{age, out, problem, size, unprovisioned},
};
use crate::{bus::BusAddress, report::StatusReport};

/// Shows this node, its cluster, and what is wrong with line and fix.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  clusterctl status --json | jq -r .phase\n\n\
    phase is one of unprovisioned, searching, founding, waiting, member, left, quarantined.")]
pub(crate) struct Arguments {
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(bus: &BusAddress, arguments: &Arguments) -> Result<(), Failure> {
    let client = Client::connect(bus).await?;
    if arguments.json {
        return print_json(&client.agent.status().await?);
    }
    out(&text(&client.status().await?, &machine()))
}

fn text(report: &StatusReport, machine: &str) -> String {
    let status = &report.status;
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key:<10} {value}");
    };
    line("node", &format!("{} (id {})", status.name, status.short_id));
    let cluster = match (&status.cluster, &status.cluster_id) {
        (Some(name), Some(id)) => format!("{name} (id {id})"),
        (Some(name), None) => name.clone(),
        (None, _) => "none".to_owned(),
    };
    line("cluster", &cluster);
    line("state", &format!("{}: {}", status.phase.as_str(), status.detail));
    let members: Vec<String> = status
        .members
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    if !members.is_empty() {
        line("members", &members.join(", "));
    }
    let backend = report.mesh_backend.as_deref().map_or("not up", |backend| backend);
    line("mesh", &format!("{} ({backend})", status.address));
    if !status.endpoints.is_empty() {
        line("network", &status.endpoints.join(", "));
    }
    line("version", &format!("{} (agent {})", status.version, report.agent_version));
    line("machine", machine);
    line("running", &age(status.uptime_seconds));
    if !status.labels.is_empty() {
        let labels: Vec<String> = status.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        line("labels", &labels.join(", "));
    }
    for setting in &status.development {
        line("", "");
        line("development image:", setting);
    }
    let refused: u64 = status.rejects.values().sum();
    if refused > 0 {
        let reasons: Vec<String> =
            status.rejects.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        line("refused", &reasons.join(", "));
    }
    if !status.problems.is_empty() {
        text.push_str("\nproblems\n");
        for wrong in &status.problems {
            text.push_str(&problem(wrong));
        }
    }
    let how = unprovisioned(status);
    if !how.is_empty() {
        text.push('\n');
        text.push_str(how);
    }
    text
}

/// Of the machine this command runs on, which is the node's.
fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let kib: u64 = text
                .lines()
                .find_map(|line| line.strip_prefix("MemTotal:"))?
                .split_whitespace()
                .next()?
                .parse()
                .ok()?;
            Some(format!(", {} memory", size(kib * 1024)))
        })
        .unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|release| format!(", Linux {}", release.trim()))
        .unwrap_or_default();
    let plural = if cpus == 1 { "" } else { "s" };
    format!("{} {cpus} CPU{plural}{memory}{kernel}", std::env::consts::ARCH)
}
