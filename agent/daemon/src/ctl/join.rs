// SPDX-License-Identifier: Apache-2.0
//! `clusterctl join`

use std::time::Duration;

use cluster_agent_core::{Phase, Status};
use futures_util::StreamExt as _;
use tokio::time::{Instant, timeout};

use super::{Code, Failure, client::Client, show::out};
use crate::bus::BusAddress;

/// A change that no signal told is seen after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Joins the cluster again after `leave`, and waits until this node is a member. A node that never left joins by itself.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 it is a member, now or before; 1 it cannot join, and the message says why;\n\
    6 it is not a member when the time is over, and keeps trying."
)]
pub(crate) struct Arguments {
    /// How long to wait until it is a member.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u32,
}

pub(crate) async fn run(bus: &BusAddress, arguments: &Arguments) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout.into());
    let client = Client::connect(bus).await?;
    let mut changes = client.agent.receive_changed().await?;
    let before = client.status().await?.status;
    if let Outcome::Member = outcome(&before) {
        return out("this node is already a member\n");
    }
    let has_left = before.phase == Phase::Left;
    if has_left {
        client.agent.join().await?;
    }
    let mut shown = String::new();
    loop {
        let status = client.status().await?.status;
        match outcome(&status) {
            Outcome::Member => {
                let cluster = status.cluster.as_deref().unwrap_or("its cluster");
                return out(&format!("{} is a member of {cluster}\n", status.name));
            }
            Outcome::Never(why) => return Err(Failure::new(Code::Failed, why)),
            Outcome::NotYet => {}
        }
        if status.detail != shown {
            eprintln!("{}", status.detail);
            shown.clone_from(&status.detail);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let message = format!(
                "not a member after {} s; this node keeps trying: {}",
                arguments.timeout, status.detail
            );
            return Err(Failure::new(Code::NotInTime, message));
        }
        // A bus that is gone shows at the next question.
        let _ = timeout(LOOK_AGAIN.min(left), changes.next()).await;
    }
}

/// Where a node stands on its way in.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Member,
    NotYet,
    /// It will not get in by waiting.
    Never(String),
}

fn outcome(status: &Status) -> Outcome {
    match status.phase {
        Phase::Member => Outcome::Member,
        // Of a member that hears no other one.
        Phase::Waiting if status.cluster_id.is_some() => Outcome::Member,
        Phase::Searching | Phase::Founding | Phase::Waiting | Phase::Left => Outcome::NotYet,
        Phase::Unprovisioned => Outcome::Never(
            "this node has no cluster.toml: `clusterctl status` says how to provision it".to_owned(),
        ),
        Phase::Quarantined => Outcome::Never(status.detail.clone()),
    }
}
