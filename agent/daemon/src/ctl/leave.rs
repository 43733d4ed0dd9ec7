// SPDX-License-Identifier: Apache-2.0
//! `clusterctl leave`

use std::io::{self, BufRead as _, IsTerminal as _};

use cluster_agent_core::Phase;

use super::{Code, Failure, client::Client, show::out};
use crate::bus::BusAddress;

/// Takes this node out of its cluster: the others are told, its tunnels go down, and it stays out until
/// `clusterctl join`, over restarts too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, from a script on the node:\n  clusterctl leave --yes")]
pub(crate) struct Arguments {
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

pub(crate) async fn run(bus: &BusAddress, arguments: &Arguments) -> Result<(), Failure> {
    let client = Client::connect(bus).await?;
    let status = client.status().await?.status;
    if status.phase == Phase::Left {
        return out("this node has left its cluster already; `clusterctl join` brings it back\n");
    }
    if status.cluster_id.is_none() {
        return Err(Failure::new(Code::Failed, "this node belongs to no cluster, there is nothing to leave"));
    }
    let cluster = status.cluster.as_deref().unwrap_or("its cluster");
    if !arguments.yes && !confirmed(&format!("Take {} out of {cluster}?", status.name))? {
        return Err(Failure::new(Code::Failed, "not left"));
    }
    client.agent.leave().await?;
    out(&format!("{} has left {cluster}; `clusterctl join` brings it back\n", status.name))
}

fn confirmed(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            Code::Usage,
            "nobody is there to ask: say `--yes` to leave without a question",
        ));
    }
    out(&format!("{question} Its jobs and tunnels end. Type `yes`: "))?;
    io::Write::flush(&mut io::stdout())?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("yes"))
}
