// SPDX-License-Identifier: Apache-2.0
//! `clusterctl leave`

use std::io::{self, BufRead as _, IsTerminal as _};

use cluster_agent_core::{MemberState, Phase};

use super::{Code, Failure, client::Client, show::out};
use crate::bus::BusAddress;

/// Takes this node out of its cluster: the others are told, its tunnels go down, and it stays out until
/// `clusterctl join`, over restarts too. Returns when that is done.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, from a script on the node:\n  clusterctl leave --yes\n\n\
    Exit codes: 0 it has left, now or before; 1 it has not, the message says why.")]
pub(crate) struct Arguments {
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(bus: &BusAddress, arguments: &Arguments) -> Result<(), Failure> {
    let client = Client::connect(bus).await?;
    let status = client.status().await?.status;
    if status.phase == Phase::Left {
        // It may be under way still.
        client.agent.leave().await?;
        return out("this node already left its cluster; `clusterctl join` joins it again\n");
    }
    if status.cluster_id.is_none() {
        return Err(Failure::new(Code::Failed, "this node is not in a cluster"));
    }
    let cluster = status.cluster.as_deref().unwrap_or("its cluster");
    if !arguments.yes && !confirmed(&format!("Take {} out of {cluster}?", status.name))? {
        return Err(Failure::new(Code::Failed, "cancelled; this node is still a member"));
    }
    eprintln!("telling the other members");
    client.agent.leave().await?;
    let count = |state: MemberState| status.members.get(state.as_str()).copied().unwrap_or(0);
    if count(MemberState::Down) > 0 && count(MemberState::Up) + count(MemberState::Suspect) <= 1 {
        eprintln!("no other member could be reached: they show {} as down, not as left", status.name);
    }
    out(&format!("{} left {cluster}; `clusterctl join` joins it again\n", status.name))
}

fn confirmed(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            Code::Usage,
            "standard input is not a terminal: use `--yes` to leave without a prompt",
        ));
    }
    out(&format!("{question} Its tunnels stop. Type `yes` to confirm: "))?;
    io::Write::flush(&mut io::stdout())?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("yes"))
}
