// SPDX-License-Identifier: Apache-2.0
//! `cluster-update status`

use std::fmt::Write as _;

use cluster_updater_core::verdict::Verdict;
use futures_util::StreamExt as _;

use super::{
    Failure,
    client::{Client, progress},
    show::{date, out, print_json, size},
};
use crate::{
    report::{OtherSlot, OtherState, StatusReport},
    writer::Moved,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example, from a PC that has jq:\n  ssh root@ADDRESS cluster-update status --json | jq -r .other.state\n\n\
    other.state is one of empty, staged, previous, failed (given up); boot_check.verdict, of a boot on trial, one of pass, \
    fail, unknown (not a member yet). `signed by` names the keys whose releases this node accepts."
)]
pub(crate) struct Arguments {
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    /// Show it again whenever it changes, until interrupted.
    #[arg(long)]
    watch: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = Client::connect().await?;
    if !arguments.watch {
        return show(&client, arguments.json).await;
    }
    let mut changes = client.updater.receive_changed().await?;
    loop {
        show(&client, arguments.json).await?;
        if changes.next().await.is_none() {
            return Err(Failure::not_running("the connection to D-Bus is gone"));
        }
        if !arguments.json {
            out("\n")?;
        }
    }
}

async fn show(client: &Client, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&client.updater.status().await?);
    }
    out(&text(&client.status().await?))
}

fn text(status: &StatusReport) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key:<10} {value}");
    };
    let slot = status.slot.map_or_else(String::new, |slot| format!(", slot {slot}"));
    let good = match status.marked_good {
        Some(true) => ", marked good",
        Some(false) => ", on trial",
        None => "",
    };
    line("running", &format!("{}{slot}{good}", status.version));
    if let Some(check) = &status.boot_check {
        let verdict = match check.verdict {
            Verdict::Pass => "good",
            Verdict::Fail => "failed",
            Verdict::Unknown => "not known yet",
        };
        line("this boot", &format!("{verdict}: {}", check.reason));
    }
    line("other slot", &other(&status.other));
    let releases: Vec<String> = status.releases.iter().map(ToString::to_string).collect();
    line("imported", if releases.is_empty() { "none".to_owned() } else { releases.join(", ") }.as_str());
    let trust = &status.trust;
    let kind = if trust.development {
        "DEVELOPMENT key, made in a checkout; whoever has the checkout can sign"
    } else {
        "release keys"
    };
    line("signed by", &format!("{} ({kind}; root document {})", trust.keys.join(", "), trust.root_version));
    if let Some(next) = &status.scheduled {
        let what = if next.what == "reboot" { "restart" } else { &next.what };
        line(
            "scheduled",
            &format!("{what} at {} UTC; `cluster-update reboot --cancel` takes that back", date(next.at)),
        );
    }
    if let Some(job) = &status.job {
        line("under way", &format!("{}, for {} s", progress(job), job.seconds));
        if let Some(now) = job.progress.filter(|now| now.moved != Moved::default()) {
            let (local, members) = (size(now.moved.local * 4096), size(now.moved.fetched * 4096));
            line("root image", &format!("{local} from the running slot, {members} from the release"));
        }
        for source in &job.sources {
            let fault = source.fault.map_or_else(String::new, |fault| format!("; {fault}"));
            line("member", &format!("{} gave {}{fault}", source.name, size(source.bytes)));
        }
    }
    if let Some(failure) = &status.last_failure {
        line("failed", failure);
    }
    for problem in status.problems.iter().chain(&status.obstacles) {
        line("problem", problem);
    }
    text
}

fn other(slot: &OtherSlot) -> String {
    let version = slot.version.as_ref().map_or_else(String::new, ToString::to_string);
    match slot.state {
        OtherState::Empty => "empty".to_owned(),
        OtherState::Staged => {
            let tries = slot.tries_left.map_or_else(String::new, |left| format!(", {left} tries"));
            match &slot.reason {
                Some(reason) => format!("{version}, staged{tries}, but {reason}"),
                None => format!("{version}, staged: `cluster-update reboot` starts it{tries}"),
            }
        }
        OtherState::Previous => {
            format!("{version}, the version before: `cluster-update rollback` goes back to it")
        }
        OtherState::Failed => {
            format!("{version}, given up: {}", slot.reason.as_deref().unwrap_or("nobody knows why"))
        }
    }
}

#[cfg(test)]
mod tests {
    use cluster_updater_core::Version;

    use super::*;

    #[test]
    fn what_keeps_a_staged_release_from_starting_is_told() {
        let slot = |reason: Option<&str>| OtherSlot {
            state: OtherState::Staged,
            version: Version::parse("1.1"),
            tries_left: Some(3),
            reason: reason.map(str::to_owned),
            ..OtherSlot::default()
        };
        assert_eq!(other(&slot(None)), "1.1, staged: `cluster-update reboot` starts it, 3 tries");
        assert_eq!(other(&slot(Some("it is damaged"))), "1.1, staged, 3 tries, but it is damaged");
    }
}
