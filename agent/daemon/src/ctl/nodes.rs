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
    STATE: up; suspect (does not answer, declared down soon); down; left (by its own decision).\n\
    HANDSHAKE: time since the last WireGuard handshake with this node. \"unreachable\": other members\n\
    reach it, this node does not (`clusterctl status` says what to do).\n\
    The member marked * is this node. Long names are cut; --wide shows them whole.")]
pub(crate) struct Arguments {
    /// Also show id, endpoint and version; wider than 80 columns.
    #[arg(long, conflicts_with = "json")]
    wide: bool,
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
        return out("this node is not in a cluster yet (see `clusterctl status`)\n");
    }
    members.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    let show = if arguments.wide { wide_table } else { narrow_table };
    out(&show(&members, colour()))
}

/// What fits into 80 columns beside state, mesh address and handshake.
const NAME_COLUMNS: usize = 21;

/// Name, state, address and handshake, in 80 columns whatever the members are called.
fn narrow_table(members: &[Member], colour: bool) -> String {
    let row = |member: &Member| {
        let mark = if member.is_self { " *" } else { "" };
        let name = shortened(&member.name, NAME_COLUMNS - mark.len());
        vec![format!("{name}{mark}"), state(member.state, colour), member.address.clone(), handshake(member)]
    };
    let rows: Vec<Vec<String>> = members.iter().map(row).collect();
    table(&["NAME", "STATE", "ADDRESS", "HANDSHAKE"], &rows)
}

/// Everything about a member that fits on a line.
fn wide_table(members: &[Member], colour: bool) -> String {
    let dash = || "-".to_owned();
    let row = |member: &Member| {
        vec![
            format!("{}{}", member.name, if member.is_self { " *" } else { "" }),
            member.id.chars().take(8).collect(),
            state(member.state, colour),
            member.address.clone(),
            handshake(member),
            member.endpoint.clone().unwrap_or_else(dash),
            member.version.clone().unwrap_or_else(dash),
        ]
    };
    let rows: Vec<Vec<String>> = members.iter().map(row).collect();
    table(&["NAME", "ID", "STATE", "ADDRESS", "HANDSHAKE", "ENDPOINT", "VERSION"], &rows)
}

fn handshake(member: &Member) -> String {
    match member.handshake_age_seconds {
        _ if member.is_self => "-".to_owned(),
        _ if member.reachable == Some(false) => "unreachable".to_owned(),
        Some(seconds) => format!("{} ago", age(seconds)),
        None => "none yet".to_owned(),
    }
}

/// At most `columns` characters: the beginning and the end, which tell names of a series apart.
fn shortened(name: &str, columns: usize) -> String {
    let characters: Vec<char> = name.chars().collect();
    if characters.len() <= columns {
        return name.to_owned();
    }
    let (head, tail) = ((columns - 1).div_ceil(2), (columns - 1) / 2);
    let end = &characters[characters.len() - tail..];
    characters[..head].iter().chain(&['…']).chain(end).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cluster_agent_core::MemberState;

    use super::*;

    fn member(name: &str, state: MemberState) -> Member {
        Member {
            name: name.to_owned(),
            id: "s35vn26sabcdefgh".to_owned(),
            state,
            address: "fdc1:505:0:4442:368c:5afb:46de:b78b".to_owned(),
            is_self: false,
            endpoint: Some("[fe80::5054:ff:fe12:3456%enp0s31f6]:41410".to_owned()),
            reachable: Some(true),
            last_seen_seconds: Some(1),
            handshake_age_seconds: Some(119),
            rx_bytes: 0,
            tx_bytes: 0,
            version: Some("0.1.0".to_owned()),
            labels: BTreeMap::new(),
            releases: Vec::new(),
            wireguard_key: None,
            admitted_by: None,
        }
    }

    fn all_kinds() -> Vec<Member> {
        let long = format!("{}{}", "compute".repeat(8), "-rack-7");
        let mut members = vec![member(&long, MemberState::Suspect), member("a", MemberState::Up)];
        members.push(Member { is_self: true, ..member(&long, MemberState::Up) });
        members.push(Member { reachable: Some(false), ..member(&long, MemberState::Down) });
        members.push(Member { handshake_age_seconds: None, ..member("b", MemberState::Left) });
        members.push(Member {
            handshake_age_seconds: Some(u64::from(u32::MAX)),
            ..member("c", MemberState::Down)
        });
        members
    }

    #[test]
    fn fits_into_80_columns_whatever_the_members_are_called() {
        let text = narrow_table(&all_kinds(), false);
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= 80), "{widest:?}\n{text}");
        assert!(text.contains("unreachable") && text.contains("-rack-7 *"), "{text}");
    }

    #[test]
    fn the_wide_table_shows_names_ids_and_endpoints_whole() {
        let members = all_kinds();
        let text = wide_table(&members, false);
        for member in members {
            assert!(
                text.contains(&member.name) && text.contains(member.endpoint.as_deref().unwrap()),
                "{text}"
            );
        }
        assert!(text.contains("s35vn26s  suspect"), "{text}");
    }

    #[test]
    fn a_long_name_keeps_its_beginning_and_its_end() {
        assert_eq!(shortened("node-a1b2c3d4", 13), "node-a1b2c3d4");
        assert_eq!(shortened("node-a1b2c3d4", 7), "nod…3d4");
        assert_eq!(shortened("knoten-äöü", 6), "kno…öü");
    }
}
