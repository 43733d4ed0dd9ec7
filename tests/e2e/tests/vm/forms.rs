// SPDX-License-Identifier: Apache-2.0
//! Three machines with one cluster.toml become one cluster, reach each other through the mesh, and tell the wire nothing.

use std::fs;

use anyhow::{Context, Result, ensure};
use cluster_e2e::{Formed, World, note};
use cluster_harness::client::Vm;
use cluster_harness::pcap;
use cluster_harness::protocol::Request;

/// Sixteen bytes, what ping(8) takes as a pattern.
const PAYLOAD: &str = "keep-this-secret";

pub(crate) fn three_become_one_cluster_and_nothing_is_readable(world: &mut World) -> Result<()> {
    let cluster = world.formed()?;
    for vm in cluster.vms() {
        let members = vm.members()?;
        ensure!(members.len() == 3, "VM {} knows {} members", vm.number(), members.len());
        for member in &members {
            let same = cluster
                .members
                .values()
                .any(|known| known.id == member.id && known.address == member.address);
            ensure!(same && member.state == "up", "VM {} sees {member:?}", vm.number());
        }
    }
    note("three members are up on each node, the same three");

    let capture = cluster.dir().root().join("pings.pcap");
    cluster.request(&Request::StartCapture { path: capture.clone() })?;
    for vm in cluster.vms() {
        for other in others(cluster, vm) {
            ping(vm, other)?;
        }
        let handshakes = handshakes(vm)?;
        ensure!(handshakes == 2, "VM {}: {handshakes} of 2 peers have shaken hands", vm.number());
    }
    note("each pings both others through the mesh, `wg show` has a handshake with each");

    ping(cluster.vm(1), &link_local(cluster.vm(2))?)?;
    cluster.request(&Request::StopCapture)?;
    let pings = fs::read(&capture)?;
    let frames = pcap::frames(&pings);
    let clear = frames.iter().filter(|frame| contains(frame, PAYLOAD.as_bytes())).count();
    // One ping on the LAN, request and answer, proves that the search finds what can be read.
    ensure!(clear == 2, "{clear} frames show the payload; only the 2 of the ping outside the mesh may");

    let formation = fs::read(&cluster.capture)?;
    let mut secrets = vec!["lighthouse-e2e".to_owned(), join_key(&cluster.cluster_toml)?];
    for member in cluster.members.values() {
        secrets.extend([member.name.clone(), member.id.clone()]);
    }
    let all: Vec<&[u8]> = pcap::frames(&formation).into_iter().chain(frames).collect();
    for secret in &secrets {
        let seen = all.iter().filter(|frame| contains(frame, secret.as_bytes())).count();
        ensure!(seen == 0, "{seen} frames show `{secret}` (`{}`)", cluster.capture.display());
    }
    note(&format!(
        "{} frames since power on show no cluster name, host name, node id, key or payload",
        all.len()
    ));
    Ok(())
}

fn others<'a>(cluster: &'a Formed, vm: Vm<'_>) -> impl Iterator<Item = &'a str> {
    let number = vm.number();
    cluster
        .members
        .iter()
        .filter(move |(other, _)| **other != number)
        .map(|(_, member)| member.address.as_str())
}

fn ping(vm: Vm<'_>, address: &str) -> Result<()> {
    let pattern: String = PAYLOAD.bytes().map(|byte| format!("{byte:02x}")).collect();
    vm.sh(&format!("ping -c 1 -w 20 -s 40 -p {pattern} {address}")).map(drop)
}

fn handshakes(vm: Vm<'_>) -> Result<usize> {
    let table = vm.sh("wg show cluster0 latest-handshakes")?;
    Ok(table.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|at| at != "0")).count())
}

/// Address of the VM on the switch, as its neighbour writes it.
fn link_local(vm: Vm<'_>) -> Result<String> {
    let shown = vm.sh("ip -6 -br address show up scope link | grep -v cluster0")?;
    let (interface, address) = shown
        .lines()
        .find_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.find(|word| word.starts_with("fe80:"))?))
        })
        .with_context(|| format!("no link-local address in: {shown}"))?;
    let address = address.split('/').next().unwrap_or_default();
    Ok(format!("{address}%{interface}"))
}

fn join_key(cluster_toml: &str) -> Result<String> {
    let line = cluster_toml.lines().find(|line| line.starts_with("join_key"));
    line.and_then(|line| line.split('"').nth(1)).map(str::to_owned).context("no join key in cluster.toml")
}

fn contains(frame: &[u8], text: &[u8]) -> bool {
    frame.windows(text.len()).any(|window| window == text)
}
