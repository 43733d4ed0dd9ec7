// SPDX-License-Identifier: Apache-2.0
//! `clusterctl nodes`

use cluster_agent_core::Member;

use super::{
    Failure,
    client::{Client, print_json},
    show::{age, colour, out, state, table},
};
use crate::bus::BusAddress;

/// Lists the members of the cluster as this node sees them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    clusterctl nodes\n  \
    clusterctl nodes --json | jq -r '.[] | select(.state != \"up\") | .name'\n\n\
    States: up; suspect (did not answer, declared down soon); down; left (by its own decision).\n\
    REACHED AT \"no way\": others reach it, this node does not (`clusterctl status` says more).\n\
    The member marked * is this node.")]
pub(crate) struct Arguments {
    /// Print a JSON array of objects with name, id, state, address and more.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(bus: &BusAddress, arguments: &Arguments) -> Result<(), Failure> {
    let client = Client::connect(bus).await?;
    if arguments.json {
        return print_json(&client.agent.members().await?);
    }
    let mut members = client.members().await?;
    if members.is_empty() {
        return out("no members: this node belongs to no cluster yet (see `clusterctl status`)\n");
    }
    members.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    out(&members_table(&members, colour()))
}

fn members_table(members: &[Member], colour: bool) -> String {
    let rows: Vec<Vec<String>> = members
        .iter()
        .map(|member| {
            let dash = || "-".to_owned();
            let handshake = match member.handshake_age_seconds {
                _ if member.is_self => dash(),
                Some(seconds) => format!("{} ago", age(seconds)),
                None => "none yet".to_owned(),
            };
            vec![
                format!("{}{}", member.name, if member.is_self { " *" } else { "" }),
                member.id.chars().take(8).collect(),
                state(member.state, colour),
                member.address.clone(),
                match &member.endpoint {
                    _ if member.reachable == Some(false) => "no way".to_owned(),
                    endpoint => endpoint.clone().unwrap_or_else(dash),
                },
                handshake,
                member.version.clone().unwrap_or_else(dash),
            ]
        })
        .collect();
    table(&["NAME", "ID", "STATE", "ADDRESS", "REACHED AT", "HANDSHAKE", "VERSION"], &rows)
}
