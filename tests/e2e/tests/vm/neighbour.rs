// SPDX-License-Identifier: Apache-2.0
//! A release on a stick for one of three nodes: the others take it from their neighbours, one after the other.

use anyhow::{Context, Result, ensure};
use cluster_e2e::{Alone, World, note, wait_all_up};
use cluster_harness::client::{Member, Seen, Vm};
use cluster_harness::cluster::{self, Provisioning};
use cluster_harness::timeouts;
use serde_json::Value;

use crate::stick::{Stick, version_of};
use crate::update::{identity, import, long, restart_nth, status};

pub(crate) fn by_neighbour(world: &mut World) -> Result<()> {
    let release = world.other_release()?;
    let (stick, next) = (Stick::new(&release)?, version_of(&release)?);
    let lab = stick.machine(world)?;
    for _ in 0..2 {
        cluster::add(lab, &Provisioning::Cluster, None)?;
    }
    for vm in lab.vms()? {
        vm.start()?;
    }
    let mut members = Vec::new();
    for vm in lab.vms()? {
        vm.wait_boot()?;
        members.push(wait_all_up(vm, 3)?);
    }
    for vm in lab.vms()? {
        vm.sh("echo kept >/var/lib/kept && sync")?;
    }
    let nobody = long(lab.nth(2), "cluster-update stage")?;
    ensure!(
        nobody.status == 1 && nobody.all().contains("was imported here or is held by a member"),
        "before anybody has it, stage says: {}",
        nobody.all()
    );
    import(lab.vm())?;
    hear(lab, 2, &next, 1)?;

    let first = take(lab, 2, &next, &members)?;
    ensure!(gave(&first, &members[0]) > 0, "VM 2 took nothing from VM 1: {first}");
    note(&moved(2, &first));
    // From now on the slot that VM 2 runs from is what there is.
    hear(lab, 3, &next, 2)?;
    lab.vm().sh("systemctl stop cluster-releases")?;
    let second = take(lab, 3, &next, &members)?;
    ensure!(
        gave(&second, &members[0]) == 0 && gave(&second, &members[1]) > 0,
        "VM 3 did not take it from VM 2 alone: {second}"
    );
    note(&moved(3, &second));
    lab.vm().sh("systemctl start cluster-releases")?;
    let third = take(lab, 1, &next, &members)?;
    ensure!(
        third["sources"] == serde_json::json!([]) || gave(&third, &members[1]) == 0,
        "VM 1 has it: {third}"
    );
    note(&moved(1, &third));
    for vm in lab.vms()? {
        let failed = vm.sh("systemctl --failed --no-legend --plain")?;
        ensure!(failed.trim().is_empty(), "units of VM {} failed: {failed}", vm.number());
    }
    Ok(())
}

/// Waits until VM `number` hears that so many others hold the release.
fn hear(lab: &Alone, number: u32, version: &str, holders: usize) -> Result<()> {
    let vm = lab.nth(number);
    lab.wait_for(&format!("VM {number} to hear who holds {version}"), timeouts::MEMBERS, || {
        let text = vm.sh("clusterctl nodes --json")?;
        let nodes: Vec<Value> = serde_json::from_str(&text).with_context(|| format!("nodes: {text}"))?;
        let holds = |node: &&Value| {
            let releases = node["releases"].as_array();
            node["self"] == false
                && releases.is_some_and(|all| all.iter().any(|release| release["version"] == version))
        };
        let found = nodes.iter().filter(holds).count();
        Ok(if found >= holders { Seen::Found(()) } else { Seen::NotYet(text) })
    })
}

/// Stages, restarts and waits until the new version is good; the node stays who it is, and the others stay up.
fn take(lab: &Alone, number: u32, version: &str, members: &[Member]) -> Result<Value> {
    let vm = lab.nth(number);
    let before = identity(vm)?;
    let staged = long(vm, "cluster-update stage --json 2>/run/progress")?;
    ensure!(staged.status == 0, "VM {number}, stage: {}{}", staged.all(), vm.sh("cat /run/progress")?);
    let report: Value = serde_json::from_str(&staged.text())?;
    restart_nth(lab, number)?;
    for other in lab.vms()?.into_iter().filter(|other| other.number() != number) {
        let up = other.members()?.into_iter().filter(|member| member.state == "up").count();
        ensure!(up >= 2, "VM {} sees {up} members up while VM {number} restarts", other.number());
    }
    vm.wait_boot()?;
    let now = wait_all_up(vm, 3)?;
    let known = members.iter().find(|member| member.id == now.id);
    ensure!(known.is_some_and(|known| known.address == now.address), "VM {number} is another node: {now:?}");
    lab.wait_for(&format!("{version} to be marked good on VM {number}"), timeouts::MEMBERS, || {
        let now = status(vm)?;
        ensure!(now["version"] == version, "VM {number} runs something else: {now}");
        Ok(if now["marked_good"] == true { Seen::Found(()) } else { Seen::NotYet(now.to_string()) })
    })?;
    ensure!(identity(vm)? == before, "VM {number} after the update: {}\nbefore: {before}", identity(vm)?);
    all_up(lab)?;
    Ok(report)
}

fn all_up(lab: &Alone) -> Result<()> {
    let vms: Vec<Vm<'_>> = lab.vms()?;
    vms.into_iter().try_for_each(|vm| wait_all_up(vm, 3).map(drop))
}

/// Bytes that a member gave.
fn gave(report: &Value, member: &Member) -> u64 {
    let sources = report["sources"].as_array().map(Vec::as_slice).unwrap_or_default();
    let its = sources.iter().filter(|source| source["name"] == member.name.as_str());
    its.filter_map(|source| source["bytes"].as_u64()).sum()
}

fn moved(number: u32, report: &Value) -> String {
    let kib = |key: &str| report["blocks"][key].as_u64().unwrap_or_default() * 4;
    let sources = report["sources"].as_array().map(Vec::as_slice).unwrap_or_default();
    let members: Vec<String> = sources
        .iter()
        .map(|source| {
            format!("{} KiB from {}", source["bytes"].as_u64().unwrap_or_default() >> 10, source["name"])
        })
        .collect();
    format!(
        "VM {number} runs it: root image {} KiB from its own slot, {} KiB from the release; over the mesh, kernel and tree \
         included: {}",
        kib("local"),
        kib("fetched"),
        if members.is_empty() { "nothing".to_owned() } else { members.join(", ") }
    )
}
