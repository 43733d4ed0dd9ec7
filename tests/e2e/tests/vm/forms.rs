// SPDX-License-Identifier: Apache-2.0
//! Three machines with one cluster.toml become one cluster, reach each other through the mesh, and tell the wire nothing.

use std::fs;
use std::net::Ipv6Addr;

use anyhow::{Context, Result, ensure};
use cluster_e2e::{CLUSTER_NAME, Formed, World, note};
use cluster_harness::client::Vm;
use cluster_harness::pcap;
use cluster_harness::protocol::Request;
use cluster_harness::secrets::{Secrets, contains, decode_base32};
use cluster_harness::timeouts;

/// Sixteen bytes, what ping(8) takes as a pattern.
const PAYLOAD: &[u8; 16] = b"keep-this-secret";

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
            ping(vm, other, PAYLOAD)?;
        }
        let handshakes = handshakes(vm)?;
        ensure!(handshakes == 2, "VM {}: {handshakes} of 2 peers have shaken hands", vm.number());
    }
    note("each pings both others through the mesh, `wg show` has a handshake with each");

    let outside = link_local(cluster.vm(2))?;
    ping(cluster.vm(1), &outside, PAYLOAD)?;
    cluster.request(&Request::StopCapture)?;
    let pings = fs::read(&capture)?;
    let frames = pcap::frames(&pings);
    let clear = frames.iter().filter(|frame| contains(frame, PAYLOAD)).count();
    // One ping on the LAN, request and answer, proves that the search finds what can be read.
    ensure!(clear == 2, "{clear} frames show the payload; only the 2 of the ping outside the mesh may");

    let secrets = secrets_of(cluster)?;
    let formation = fs::read(&cluster.capture)?;
    let all: Vec<&[u8]> = pcap::frames(&formation).into_iter().chain(frames).collect();
    for frame in &all {
        let shown = secrets.shown_in(frame);
        ensure!(shown.is_none(), "a frame shows {shown:?} (`{}`): {frame:02x?}", cluster.capture.display());
    }
    note(&format!("{} frames since power on show no name, id, key or payload, in no encoding", all.len()));

    // Half a node id, as bytes, on the LAN: the search finds it where it is planted.
    let planted = cluster.dir().root().join("planted.pcap");
    cluster.request(&Request::StartCapture { path: planted.clone() })?;
    let id = decode_base32(&cluster.members[&2].id).context("the node id is not base32")?;
    ping(cluster.vm(1), &outside, &id[16..])?;
    cluster.request(&Request::StopCapture)?;
    let planted = fs::read(&planted)?;
    let found = pcap::frames(&planted).into_iter().filter_map(|frame| secrets.shown_in(frame)).count();
    ensure!(found == 2, "{found} frames show half a node id that was planted in 2");
    note("half a node id that was planted is found");
    Ok(())
}

/// Names, ids and keys of the cluster, private ones too.
fn secrets_of(cluster: &Formed) -> Result<Secrets> {
    let mut secrets = Secrets::default();
    secrets.text("cluster name", CLUSTER_NAME);
    let key = join_key(&cluster.cluster_toml)?;
    secrets.base32("join key", key.strip_prefix("cos1-").context("the join key has no prefix")?);
    for vm in cluster.vms() {
        let member = &cluster.members[&vm.number()];
        let name = |what: &str| format!("{what} of VM {}", vm.number());
        secrets.text(&name("host name"), &member.name);
        secrets.base32(&name("node id"), &member.id);
        secrets.text(&name("mesh address"), &member.address);
        secrets.bytes(&name("mesh address"), &member.address.parse::<Ipv6Addr>()?.octets());
        let status = vm.cluster_status()?;
        let shown = |key: &str| status[key].as_str().with_context(|| format!("no {key} in: {status}"));
        secrets.base64(&name("WireGuard key"), shown("wireguard_key")?);
        secrets.hex("cluster id", shown("cluster_id")?);
        for private in private_keys(vm)? {
            secrets.bytes(&name("private key"), &private);
        }
    }
    Ok(secrets)
}

/// Private keys of a node for signing, sessions and WireGuard (docs/protocol.md says where).
fn private_keys(vm: Vm<'_>) -> Result<[Vec<u8>; 3]> {
    const HEAD: usize = 37 + 2;
    let file = vm.exec(&["cat", "/var/lib/clusteros/agent/identity"], None, Some(timeouts::COMMAND))?;
    ensure!(file.status == 0 && file.stdout.len() == HEAD + 96 + 8, "VM {}: {}", vm.number(), file.all());
    Ok([0, 32, 64].map(|at| file.stdout[HEAD + at..][..32].to_vec()))
}

fn others<'a>(cluster: &'a Formed, vm: Vm<'_>) -> impl Iterator<Item = &'a str> {
    let number = vm.number();
    cluster
        .members
        .iter()
        .filter(move |(other, _)| **other != number)
        .map(|(_, member)| member.address.as_str())
}

/// A ping that carries sixteen bytes of ours.
fn ping(vm: Vm<'_>, address: &str, payload: &[u8]) -> Result<()> {
    let pattern: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
    vm.sh(&format!("ping -c 1 -w 20 -s 40 -p {pattern} {address}")).map(drop)
}

fn handshakes(vm: Vm<'_>) -> Result<usize> {
    let table = vm.sh("wg show cluster0 latest-handshakes")?;
    Ok(table.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|at| at != "0")).count())
}

/// Address of the VM on the switch, as its neighbour writes it.
fn link_local(vm: Vm<'_>) -> Result<String> {
    let shown = vm.sh("ip -6 -br address show up scope link")?;
    let (interface, address) = shown
        .lines()
        .filter(|line| !line.starts_with("cluster0"))
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
