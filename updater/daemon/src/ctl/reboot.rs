// SPDX-License-Identifier: Apache-2.0
//! `cluster-update reboot`

use std::process::Command;

use anyhow::{Context as _, bail};

use super::{
    Code, Failure,
    client::Client,
    show::{date, out},
};
use crate::logind::now;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cluster-update reboot --at 02:00                   the next 02:00 UTC: nodes keep UTC\n  \
    cluster-update reboot --at +2h\n  \
    cluster-update reboot --at '2026-12-24 02:00 Europe/Berlin'\n  \
    cluster-update reboot --cancel\n\n\
    Times are those of systemd.time(7), at most 31 days ahead; `status` shows the one that is set. A new time replaces it, \
    and any restart before it clears it.\n\
    A scheduled restart goes by the clock, `+2h` too, so none is scheduled before a time server has set it in this boot. Where \
    none can be reached, check that `date` is right, and add --trust-clock. A clock that is set forward after that brings the \
    restart at the jump: a time server sets it, and so does the agent, once a boot, by up to 24 hours, from the other members.")]
pub(crate) struct Arguments {
    /// When; now by default.
    #[arg(long, value_name = "TIME", conflicts_with = "cancel")]
    at: Option<String>,
    /// The clock is right, although no time server has set it.
    #[arg(long, requires = "at")]
    trust_clock: bool,
    /// Cancel the scheduled restart.
    #[arg(long)]
    cancel: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = Client::connect().await?;
    if arguments.cancel {
        let there = client.updater.cancel_reboot().await?;
        return out(if there {
            "the scheduled restart is cancelled\n"
        } else {
            "no restart was scheduled\n"
        });
    }
    let Some(text) = &arguments.at else {
        client.updater.reboot().await?;
        return out("restarting\n");
    };
    let at = time(text, now()).map_err(|error| Failure::new(Code::Usage, format!("{error:#}")))?;
    client.updater.schedule_reboot(at, arguments.trust_clock).await?;
    out(&format!("restarting at {} UTC; `cluster-update reboot --cancel` takes that back\n", date(at)))
}

/// Seconds since 1970 that people mean by `text`, as systemd reads it. A time of day that is over today is tomorrow's.
fn time(text: &str, now: u64) -> anyhow::Result<u64> {
    let at = systemd(text)?.0;
    let digits = |part: &str| (1..=2).contains(&part.len()) && part.bytes().all(|c| c.is_ascii_digit());
    let is_time_of_day = text.split(':').count() >= 2 && text.split(':').all(digits);
    if at <= now && is_time_of_day {
        // Not 24 hours later: where the clocks are changed tonight, that is another time.
        let (_, tomorrow) = systemd("tomorrow")?;
        return Ok(systemd(&format!("{tomorrow} {text}"))?.0);
    }
    Ok(at)
}

/// Seconds since 1970, and the date.
fn systemd(text: &str) -> anyhow::Result<(u64, String)> {
    let output = Command::new("systemd-analyze")
        .args(["timestamp", "--", text])
        .env("LC_ALL", "C.UTF-8")
        .output()
        .context("failed to start systemd-analyze, which reads times")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = |key: &str| said.lines().find_map(|line| line.trim().strip_prefix(key));
    let seconds = line("UNIX seconds: @").and_then(|seconds| seconds.split('.').next()?.trim().parse().ok());
    // `Wed 2026-12-02 00:00:00 UTC`
    let date = line("Normalized form: ").and_then(|form| form.split_whitespace().nth(1));
    match (seconds, date) {
        (Some(seconds), Some(date)) if output.status.success() => Ok((seconds, date.to_owned())),
        _ => bail!("`{text}` is no time: write 02:00, +2h or 2026-12-24 02:00"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_what_people_mean_by_them() {
        let now = now();
        let in_two_hours = time("+2h", now).unwrap();
        assert!((now + 7199..now + 7260).contains(&in_two_hours));
        assert_eq!(time("2026-12-24 02:00 UTC", now).unwrap(), 1_798_077_600);
        assert_eq!(time("2026-12-24T02:00:00Z", now).unwrap(), 1_798_077_600);
        // Whenever this runs, each is at most a day ahead (25 hours, once a year).
        for text in ["00:00", "02:00", "23:59", "12:30:15"] {
            let at = time(text, now).unwrap();
            assert!(now < at && at <= now + 25 * 3600, "{text}: {at} after {now}");
        }
        // What is over and no time of day stays what it is: the updater refuses it.
        assert!(time("2020-01-01", now).unwrap() < now);
        for text in ["", "soon", "25:00", "--help", "02:00; reboot", "1:2:3:4"] {
            let error = time(text, now).unwrap_err().to_string();
            assert!(error.contains("is no time"), "{text}: {error}");
        }
    }
}
