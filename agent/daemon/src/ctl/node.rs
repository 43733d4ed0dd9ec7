// SPDX-License-Identifier: Apache-2.0
//! `clusterctl node NAME`

use std::fmt::Write as _;

use cluster_agent_core::Member;

use super::{
    Code, Failure,
    client::{Client, print_json},
    show::{age, colour, out, size, state},
};
use crate::bus::BusAddress;

/// Shows one member in detail.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    clusterctl node node-a1b2c3d4      by name\n  \
    clusterctl node a1b2               by the start of its id\n  \
    clusterctl node fdc1:505::1        by its mesh address")]
pub(crate) struct Arguments {
    /// Name, id (or its start) or mesh address.
    name: String,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(bus: &BusAddress, arguments: &Arguments) -> Result<(), Failure> {
    let client = Client::connect(bus).await?;
    let members = client.members().await?;
    let member = find(&members, &arguments.name)?;
    if arguments.json {
        return print_json(&serde_json::to_string(member)?);
    }
    out(&text(member, colour()))
}

/// A name or address must fit wholly, an id by its start; whatever fits more than one member is refused.
fn find<'a>(members: &'a [Member], wanted: &str) -> Result<&'a Member, Failure> {
    let unknown = |message| Err(Failure::new(Code::UnknownNode, message));
    let by_name: Vec<&Member> =
        members.iter().filter(|member| member.name == wanted || member.address == wanted).collect();
    let found = if by_name.is_empty() {
        members.iter().filter(|member| !wanted.is_empty() && member.id.starts_with(wanted)).collect()
    } else {
        by_name
    };
    match found[..] {
        [member] => Ok(member),
        [] => unknown(format!("there is no node `{wanted}`{}", suggestion(members, wanted))),
        [..] => {
            let ids: Vec<&str> = found.iter().map(|member| &member.id[..member.id.len().min(12)]).collect();
            unknown(format!(
                "`{wanted}` matches {} nodes: use more of the id ({})",
                found.len(),
                ids.join(", ")
            ))
        }
    }
}

fn suggestion(members: &[Member], wanted: &str) -> String {
    let mut near: Vec<(usize, &str)> = members
        .iter()
        .map(|member| (strsim::damerau_levenshtein(&member.name, wanted), member.name.as_str()))
        .filter(|(distance, name)| *distance <= 3.max(name.len() / 3) || name.contains(wanted))
        .collect();
    near.sort_unstable();
    let names: Vec<&str> = near.into_iter().take(3).map(|(_, name)| name).collect();
    if names.is_empty() {
        "; `clusterctl nodes` lists all".to_owned()
    } else {
        format!("; did you mean {}?", names.join(" or "))
    }
}

fn text(member: &Member, colour: bool) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key:<13} {value}");
    };
    line("name", &format!("{}{}", member.name, if member.is_self { " (this node)" } else { "" }));
    line("id", &member.id);
    line("state", &state(member.state, colour));
    line("address", &member.address);
    match &member.endpoint {
        _ if member.reachable == Some(false) => {
            line("endpoint", "unreachable: other members reach it, this node does not")
        }
        Some(endpoint) => line("endpoint", endpoint),
        None => {}
    }
    if let Some(seconds) = member.last_seen_seconds
        && !member.is_self
    {
        line("last heard", &format!("{} ago", age(seconds)));
    }
    if !member.is_self {
        let handshake = member
            .handshake_age_seconds
            .map_or("none yet".to_owned(), |seconds| format!("{} ago", age(seconds)));
        line("handshake", &handshake);
        line("traffic", &format!("{} received, {} sent", size(member.rx_bytes), size(member.tx_bytes)));
    }
    if let Some(version) = &member.version {
        line("version", version);
    }
    if let Some(key) = &member.wireguard_key {
        line("wireguard key", key);
    }
    if let Some(admitted_by) = &member.admitted_by {
        line("admitted by", admitted_by);
    }
    for (key, value) in &member.labels {
        line("label", &format!("{key}={value}"));
    }
    for release in &member.releases {
        line("release", &release.version);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cluster_agent_core::MemberState;

    use super::*;

    fn member(name: &str, id: &str) -> Member {
        Member {
            name: name.to_owned(),
            id: id.to_owned(),
            state: MemberState::Up,
            address: format!("fdc1:505::{}", name.len()),
            is_self: false,
            endpoint: None,
            reachable: Some(true),
            last_seen_seconds: None,
            handshake_age_seconds: None,
            rx_bytes: 0,
            tx_bytes: 0,
            version: None,
            labels: BTreeMap::new(),
            releases: Vec::new(),
            wireguard_key: None,
            admitted_by: None,
        }
    }

    #[test]
    fn finds_by_name_address_and_start_of_id() {
        let members = [member("alpha", "aaaa2222"), member("beta", "aabb3333")];
        assert_eq!(find(&members, "beta").unwrap().id, "aabb3333");
        assert_eq!(find(&members, "fdc1:505::5").unwrap().name, "alpha");
        assert_eq!(find(&members, "aab").unwrap().name, "beta");
    }

    #[test]
    fn an_unknown_name_ends_in_4_with_the_nearest_names() {
        let members = [member("node-alpha", "aaaa2222"), member("node-beta", "aabb3333")];
        let failure = find(&members, "node-bta").unwrap_err();
        assert_eq!(failure.code, Code::UnknownNode);
        assert!(failure.message.contains("did you mean node-beta"), "{failure}");
        let failure = find(&members, "zzzzzzzzzzzzzzzz").unwrap_err();
        assert!(failure.message.contains("clusterctl nodes"), "{failure}");
        assert_eq!(find(&members, "").unwrap_err().code, Code::UnknownNode);
    }

    #[test]
    fn an_ambiguous_start_is_refused_and_names_both() {
        let members = [member("alpha", "aaaa2222"), member("beta", "aabb3333")];
        let failure = find(&members, "aa").unwrap_err();
        assert!(failure.message.contains("aaaa2222") && failure.message.contains("aabb3333"), "{failure}");
    }
}
