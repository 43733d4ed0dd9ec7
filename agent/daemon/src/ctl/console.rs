// SPDX-License-Identifier: Apache-2.0
//! `clusterctl console`

use std::{env, fmt::Write as _, time::Duration};

use futures_util::StreamExt as _;
use tokio::time::{sleep, timeout};

use super::{
    Failure,
    client::Client,
    show::{out, problem, unprovisioned},
};
use crate::{bus::BusAddress, paths::OS_RELEASE, report::StatusReport, version};

/// A console without an agent asks again this often.
const RETRY: Duration = Duration::from_secs(2);
/// Changes come in bursts while a cluster forms.
const SETTLE: Duration = Duration::from_millis(300);

/// Shows this node on a console and keeps that up to date: on a screen it is drawn anew, on a serial line each change
/// is printed once. It runs on tty1 and the serial console of every node, where no login is.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Print once and end.
    #[arg(long)]
    once: bool,
}

pub(crate) async fn run(bus: &BusAddress, arguments: &Arguments) -> Result<(), Failure> {
    if arguments.once {
        let client = Client::connect(bus).await?;
        return out(&text(&client.status().await?));
    }
    // systemd gives virtual terminals this TERM and serial lines another.
    let screen = env::var_os("TERM").is_some_and(|term| term == "linux");
    let mut shown = String::new();
    loop {
        // Ends when the agent or the bus goes away.
        let Err(failure) = follow(bus, screen, &mut shown).await;
        let first_line = failure.message.lines().next().unwrap_or_default().to_owned();
        draw(
            screen,
            &mut shown,
            &format!("{}\n{first_line}\n", title(&version::of_system(OS_RELEASE.as_ref()))),
        )?;
        sleep(RETRY).await;
    }
}

async fn follow(
    bus: &BusAddress,
    screen: bool,
    shown: &mut String,
) -> Result<std::convert::Infallible, Failure> {
    let client = Client::connect(bus).await?;
    let mut changes = client.agent.receive_changed().await?;
    loop {
        draw(screen, shown, &text(&client.status().await?))?;
        // Ages are not shown, so nothing else need be asked; but an agent that died sends no signal.
        if let Ok(None) = timeout(RETRY, changes.next()).await {
            return Err(Failure::not_running("D-Bus closed the connection"));
        }
        sleep(SETTLE).await;
    }
}

fn draw(screen: bool, shown: &mut String, text: &str) -> Result<(), Failure> {
    if shown == text {
        return Ok(());
    }
    text.clone_into(shown);
    if screen {
        // Home, clear: also removes what the kernel wrote over it.
        return out(&format!("\x1b[H\x1b[2J{text}"));
    }
    // A raw serial line does not return the carriage by itself.
    out(&format!("\r\n{}", text.replace('\n', "\r\n")))
}

fn title(version: &str) -> String {
    format!("Cluster-OS {version}")
}

fn text(report: &StatusReport) -> String {
    let status = &report.status;
    let mut text = format!("{}  {}\n", title(&status.version), status.name);
    let cluster = status.cluster.as_deref().unwrap_or("none");
    let up = status.members.get("up").copied().unwrap_or(0);
    let all: u32 = status.members.iter().filter(|(state, _)| *state != "left").map(|(_, count)| count).sum();
    let _ = writeln!(text, "cluster    {cluster}: {}", status.phase.as_str());
    if !status.detail.is_empty() {
        let _ = writeln!(text, "           {}", status.detail);
    }
    if all > 0 {
        let _ = writeln!(text, "members    {up} of {all} up");
    }
    let network =
        if status.endpoints.is_empty() { "no link".to_owned() } else { status.endpoints.join(", ") };
    let _ = writeln!(text, "network    {network}");
    let _ = writeln!(text, "mesh       {}", status.address);
    for setting in &status.development {
        let _ = writeln!(text, "development image: {setting}");
    }
    for wrong in &status.problems {
        text.push_str(&problem(wrong));
    }
    text.push_str(unprovisioned(status));
    text
}
