// SPDX-License-Identifier: Apache-2.0
//! `status`: the VMs and what they are in their cluster.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use cluster_harness::client::{Client, Member};
use cluster_harness::console::Stage;
use cluster_harness::protocol::Power;
use cluster_harness::state::ClusterDir;
use cluster_harness::switch::{Faults, PortId, PortView};
use serde_json::{Value, json};

use crate::terminal::{commands, table};

/// Table of VMs and members
#[derive(Args)]
pub(crate) struct Status {
    /// For programs
    #[arg(long)]
    json: bool,
}

struct Row {
    vm: u32,
    stage: Stage,
    uptime: u64,
    member: Option<Member>,
    link: String,
    provisioning: String,
}

pub(crate) fn run(dir: &ClusterDir, verb: &Status) -> Result<()> {
    if verb.json {
        let rows: Vec<Value> = rows(&Client::connect(dir)?)?.iter().map(row_json).collect();
        println!("{}", serde_json::to_string_pretty(&json!({"cluster": dir.name(), "vms": rows}))?);
        return Ok(());
    }
    if !dir.is_alive() {
        println!("cluster `{}`: not running", dir.name());
        let next = if dir.load()?.is_some() {
            "`vm-cluster start` switches it on"
        } else {
            "`vm-cluster up` makes it"
        };
        println!("{}", commands(next));
        return Ok(());
    }
    show_table(&Client::connect(dir)?)
}

/// Prints the table.
pub(crate) fn show_table(client: &Client) -> Result<()> {
    let head = ["VM", "NAME", "STATE", "MESH ADDRESS", "POWER", "LINK", "CLUSTER.TOML"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for row in rows(client)? {
        let (name, state, address) = match &row.member {
            Some(member) => (member.name.clone(), member.state.clone(), member.address.clone()),
            None => ("-".to_owned(), "-".to_owned(), "-".to_owned()),
        };
        let power = if row.stage == Stage::Off {
            "off".to_owned()
        } else {
            format!("{} ({} s)", row.stage, row.uptime)
        };
        lines.push(vec![row.vm.to_string(), name, state, address, power, row.link, row.provisioning]);
    }
    print!("{}", table(&lines));
    Ok(())
}

fn rows(client: &Client) -> Result<Vec<Row>> {
    let status = client.status()?;
    let spec = client.spec()?;
    let mut rows = Vec::new();
    let mut views = Vec::new();
    for (number, vm) in &status.vms {
        if vm.guest_agent
            && let Ok(members) = client.vm(*number).members()
        {
            views.push((*number, vm.uptime, members));
        }
    }
    for (number, vm) in &status.vms {
        let stage = if vm.power == Power::Off { Stage::Off } else { client.vm(*number).stage()? };
        rows.push(Row {
            vm: *number,
            stage,
            uptime: vm.uptime.as_secs(),
            member: own_member(&views, *number),
            link: links(&status.ports, *number),
            provisioning: spec.vms.get(number).map(|vm| vm.provisioning.clone()).unwrap_or_default(),
        });
    }
    Ok(rows)
}

/// Number of a VM, how long it has been on, and what it sees.
type View = (u32, Duration, Vec<Member>);

/// The VM's entry, as that of the others sees it which has been on for longest; as itself where there are no others.
fn own_member(views: &[View], vm: u32) -> Option<Member> {
    let (_, _, members) = views.iter().find(|(number, ..)| *number == vm)?;
    let own = members.iter().find(|member| member.is_self)?;
    // Who has just been switched on does not know yet who else is up.
    let mut others: Vec<&View> = views.iter().filter(|(other, ..)| *other != vm).collect();
    others.sort_by_key(|(_, uptime, _)| Reverse(*uptime));
    let seen = others.iter().flat_map(|(_, _, members)| members).find(|member| member.id == own.id);
    Some(seen.unwrap_or(own).clone())
}

/// The links of a VM; numbered if there are several that differ.
fn links(ports: &BTreeMap<PortId, PortView>, vm: u32) -> String {
    let mut texts: Vec<String> =
        ports.iter().filter(|(port, _)| port.vm == vm).map(|(_, view)| link(view)).collect();
    if texts.iter().all(|text| *text == texts[0]) {
        texts.truncate(1);
        return texts.concat();
    }
    let numbered = (1..).zip(&texts).map(|(nic, text): (usize, _)| format!("{vm}.{nic} {text}"));
    numbered.collect::<Vec<_>>().join(", ")
}

fn link(port: &PortView) -> String {
    let direction = |faults: &Faults| {
        let mut words = Vec::new();
        if faults.off {
            words.push("off".to_owned());
        }
        if faults.loss_ppm > 0 {
            words.push(format!("loss {}%", f64::from(faults.loss_ppm) / 10_000.0));
        }
        if faults.delay_us > 0 {
            words.push(format!("delay {}ms", faults.delay_us as f64 / 1000.0));
        }
        words.join(" ")
    };
    let (sent, received) = (direction(&port.sent), direction(&port.received));
    let mut text = match (sent.as_str(), received.as_str()) {
        ("", "") => "ok".to_owned(),
        (sent, received) if sent == received => sent.to_owned(),
        (sent, "") => format!("sent: {sent}"),
        ("", received) => format!("received: {received}"),
        (sent, received) => format!("sent: {sent}, received: {received}"),
    };
    if !port.opens_after.is_zero() {
        text.push_str(&format!(", opens {} s late", port.opens_after.as_secs_f64()));
    }
    if let Some(group) = port.group {
        text.push_str(&format!(", part {}", group + 1));
    }
    text
}

fn row_json(row: &Row) -> Value {
    json!({
        "vm": row.vm,
        "stage": row.stage.to_string(),
        "uptime_seconds": row.uptime,
        "link": row.link,
        "cluster_toml": row.provisioning,
        "member": row.member,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_just_been_switched_on_is_not_asked_about_the_others() {
        let member = |id: &str, state: &str, is_self| Member {
            name: id.to_owned(),
            id: id.to_owned(),
            state: state.to_owned(),
            address: String::new(),
            is_self,
        };
        let secs = Duration::from_secs;
        let views = [
            (
                1,
                secs(300),
                vec![member("a", "up", true), member("b", "down", false), member("c", "up", false)],
            ),
            (
                2,
                secs(10),
                vec![member("a", "down", false), member("b", "up", true), member("c", "down", false)],
            ),
            (
                3,
                secs(299),
                vec![member("a", "up", false), member("b", "down", false), member("c", "up", true)],
            ),
        ];
        let states = [1, 2, 3].map(|vm| own_member(&views, vm).expect("a member").state);
        assert_eq!(states, ["up", "down", "up"]);
        assert_eq!(own_member(&views[1..2], 2).expect("a member").state, "up", "nobody else is there to ask");
    }

    #[test]
    fn links_are_described() {
        let lossy = Faults { loss_ppm: 50_000, ..Faults::default() };
        let port = PortView { sent: lossy, received: lossy, ..PortView::default() };
        assert_eq!(link(&port), "loss 5%");
        let off = Faults { off: true, ..Faults::default() };
        assert_eq!(
            link(&PortView { received: off, group: Some(1), ..PortView::default() }),
            "received: off, part 2"
        );
        assert_eq!(link(&PortView::default()), "ok");
        let late = PortView { opens_after: Duration::from_secs(60), ..PortView::default() };
        assert_eq!(link(&late), "ok, opens 60 s late");
        let one = PortView { received: off, sent: off, ..PortView::default() };
        let both = |second: PortView| {
            links(&[(PortId::new(2, 1), PortView::default()), (PortId::new(2, 2), second)].into(), 2)
        };
        assert_eq!(both(PortView::default()), "ok");
        assert_eq!(both(one), "2.1 ok, 2.2 off");
    }
}
