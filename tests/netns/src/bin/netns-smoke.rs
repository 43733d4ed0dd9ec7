// SPDX-License-Identifier: Apache-2.0
//! `netns-smoke`: what a cluster must do, on real daemons in network namespaces. Runs in CI.
//!
//! The checks are one story: each stands on the state the ones before left. A failed check does not end the story, but
//! the logs of all nodes are kept and named.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_netns::{
    Member, Node, World,
    story::{Report, no_errors, ping_each_other, tell},
};

/// Forming anew, or coming back together.
const FORM_LIMIT: Duration = Duration::from_secs(60);
/// From a power cut to every other member saying so.
const DEATH_LIMIT: Duration = Duration::from_secs(60);
/// How long an outsider is watched trying to get in.
const OUTSIDER_WATCH: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match tell("smoke", Report::default(), story) {
        Ok(report) => report.finish(),
        Err(error) => {
            eprintln!("netns-smoke: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn story(world: &World, report: &mut Report) -> Result<()> {
    let cluster_toml = world.fresh_cluster_toml()?;
    let nodes: Vec<Node> = (0..3).map(|_| world.add(Some(&cluster_toml))).collect::<Result<_>>()?;

    report.check("three nodes with only link-local addresses become one cluster", || all_up(&nodes));
    let before = identities(&nodes);
    report.check("all nodes tell the same members, with different ids, names and addresses", || {
        same_members(&nodes)
    });
    report.check("each pings both others over the mesh", || ping_each_other(&nodes));
    report.check("every tunnel had a handshake", || handshakes(&nodes));
    report.check("an agent restart keeps the tunnels and their sessions", || restart_keeps_sessions(&nodes));

    report.check("a node whose power is cut is seen suspect, then down", || {
        nodes[2].kill()?;
        let states = states_seen(&nodes[0], &id_of(&before, 3)?, "down", DEATH_LIMIT)?;
        ensure!(states.contains("suspect"), "it was seen as {states:?}, never suspect");
        World::await_members(&nodes[..2], 1, "down", DEATH_LIMIT, |_| {})
    });
    report.check("started again it is back with the same id and address", || {
        nodes[2].start()?;
        all_up(&nodes)?;
        same_identities(&before, &nodes)?;
        ping_each_other(&nodes)
    });
    report.check("all cut at once and started again are the same cluster", || {
        let cluster = cluster_id(&nodes[0])?;
        nodes.iter().try_for_each(Node::kill)?;
        nodes.iter().try_for_each(Node::start)?;
        all_up(&nodes)?;
        for node in &nodes {
            let now = cluster_id(node)?;
            ensure!(now == cluster, "node {} is in cluster {now}, not {cluster}", node.number);
        }
        same_identities(&before, &nodes)?;
        ping_each_other(&nodes)
    });

    report.check("a node whose cable is out is seen down, and is back by itself when it is in again", || {
        nodes[1].set_link(false)?;
        states_seen(&nodes[0], &id_of(&before, 2)?, "down", DEATH_LIMIT)?;
        nodes[1].set_link(true)?;
        all_up(&nodes)?;
        ping_each_other(&nodes)
    });
    report.check("a changed address is followed", || {
        nodes[1].stop()?;
        change_address(&nodes[1])?;
        nodes[1].start()?;
        change_address(&nodes[0])?;
        all_up(&nodes)?;
        ping_each_other(&nodes)
    });
    report.check("one torn copy of the identity costs nothing", || {
        nodes[0].kill()?;
        std::fs::write(nodes[0].state_file("identity"), b"")?;
        nodes[0].start()?;
        all_up(&nodes)?;
        same_identities(&before, &nodes)
    });
    report.check("only root changes the cluster, everybody may look", || only_root_changes(&nodes[0]));

    report.check("a node with another join key and one without stay outside and change nothing", || {
        let stranger = world.add(Some(&world.fresh_cluster_toml()?))?;
        let blank = world.add(None)?;
        stays_outside(&nodes, &[stranger, blank])
    });
    report.check("a mistake in cluster.toml is named with its line and how to fix it", || {
        let node = world.add(Some("# mine\n[cluster]\nname = \"x\"\njoin-key = \"nonsense\"\n"))?;
        let status = node.clusterctl(&["status"])?;
        let text = String::from_utf8_lossy(&status.stdout);
        ensure!(text.contains("line 4"), "status does not name line 4:\n{text}");
        Ok(())
    });
    report.check("errors of clusterctl say what to do", || helpful_errors(&nodes[0]));
    report.check("a node that leaves is out, and its tunnels are gone", || leaves(&nodes));
    report.check("it stays out over a restart and comes back with `join`, the same as before", || {
        nodes[2].stop()?;
        nodes[2].start()?;
        let phase = nodes[2].json("status")?["phase"].clone();
        ensure!(phase == "left", "after a restart it is {phase}");
        let output = nodes[2].clusterctl(&["join"])?;
        ensure!(output.status.success(), "join: {}", String::from_utf8_lossy(&output.stderr));
        // Its wireguard-go ended with its interface; in the image systemd starts it again.
        nodes[2].start()?;
        all_up(&nodes)?;
        same_identities(&before, &nodes)?;
        ping_each_other(&nodes)
    });
    report.check("no agent logged an error", || no_errors(&world.nodes()?));
    Ok(())
}

fn all_up(nodes: &[Node]) -> Result<()> {
    World::await_members(nodes, nodes.len(), "up", FORM_LIMIT, |_| {})
}

/// Id and mesh address by node number, from each node's own mouth.
fn identities(nodes: &[Node]) -> BTreeMap<usize, (String, String)> {
    nodes.iter().filter_map(|node| Some((node.number, identity(node).ok()?))).collect()
}

fn identity(node: &Node) -> Result<(String, String)> {
    let identity = node.json("identity")?;
    let text = |key: &str| {
        identity[key]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("clusterctl identity has no `{key}`"))
    };
    Ok((text("id")?, text("address")?))
}

fn id_of(identities: &BTreeMap<usize, (String, String)>, number: usize) -> Result<String> {
    identities
        .get(&number)
        .map(|(id, _)| id.clone())
        .with_context(|| format!("node {number} told no identity"))
}

fn same_identities(before: &BTreeMap<usize, (String, String)>, nodes: &[Node]) -> Result<()> {
    ensure!(before.len() == nodes.len(), "not every node told its identity at first");
    let now = identities(nodes);
    ensure!(&now == before, "identities were {before:?} and are {now:?}");
    Ok(())
}

fn same_members(nodes: &[Node]) -> Result<()> {
    let first = sorted_members(&nodes[0])?;
    for node in &nodes[1..] {
        let other = sorted_members(node)?;
        ensure!(other == first, "node {} tells {other:?}, node 1 {first:?}", node.number);
    }
    for (what, field) in [
        ("ids", (|member| &member.id) as fn(&Member) -> &String),
        ("names", |member| &member.name),
        ("addresses", |member| &member.address),
    ] {
        let distinct: BTreeSet<&String> = first.iter().map(field).collect();
        ensure!(distinct.len() == first.len(), "members share {what}: {first:?}");
    }
    Ok(())
}

/// The members that a node tells, as every node should tell them.
fn sorted_members(node: &Node) -> Result<Vec<Member>> {
    let mut members = node.members()?;
    members.iter_mut().for_each(|member| member.is_self = false);
    members.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(members)
}

/// Lines of `wg show cluster0 WHAT`, whose order means nothing.
fn wg(node: &Node, what: &str) -> Result<BTreeSet<String>> {
    let output = node.output(&["wg", "show", "cluster0", what])?;
    ensure!(output.status.success(), "wg show: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

fn handshakes(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        let lines = wg(node, "latest-handshakes")?;
        let done = lines.iter().filter(|line| !line.ends_with("\t0")).count();
        ensure!(done == nodes.len() - 1, "node {} shows {done} handshakes: {lines:?}", node.number);
    }
    Ok(())
}

/// Dropping the sessions of a device sets its counters to nothing; a kept one only counts on.
fn restart_keeps_sessions(nodes: &[Node]) -> Result<()> {
    let node = &nodes[0];
    let before = traffic(node)?;
    node.stop()?;
    let (_, address) = identity(&nodes[1])?;
    let ping = node.output(&["ping", "-6", "-n", "-c", "1", "-W", "2", &address])?;
    ensure!(ping.status.success(), "the tunnel is gone while the agent is stopped");
    node.start()?;
    all_up(nodes)?;
    let after = traffic(node)?;
    ensure!(before.len() == nodes.len() - 1, "there were {} tunnels", before.len());
    for (peer, bytes) in &before {
        let now = after.get(peer).with_context(|| format!("the tunnel to {peer} is gone"))?;
        ensure!(now >= bytes && *bytes > 0, "the session with {peer} was dropped: {bytes} bytes, then {now}");
    }
    Ok(())
}

/// Bytes received and sent, by peer.
fn traffic(node: &Node) -> Result<BTreeMap<String, u64>> {
    let lines = wg(node, "transfer")?;
    lines
        .iter()
        .map(|line| {
            let [peer, received, sent] = line.split('\t').collect::<Vec<_>>()[..] else {
                bail!("wg show transfer printed `{line}`")
            };
            Ok((peer.to_owned(), received.parse::<u64>()? + sent.parse::<u64>()?))
        })
        .collect()
}

/// A new hardware address gives a new link-local one, as another network card would.
fn change_address(node: &Node) -> Result<()> {
    node.set_link(false)?;
    let address = format!("02:00:00:00:01:{:02x}", node.number);
    let output = node.output(&["ip", "link", "set", "eth0", "address", &address])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    node.set_link(true)
}

fn only_root_changes(node: &Node) -> Result<()> {
    let as_nobody = |verb: &[&str]| {
        let mut words = vec!["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
        words.extend_from_slice(verb);
        node.output(&words)
    };
    let call = ["busctl", "call", "org.clusteros.Agent1", "/org/clusteros/Agent1", "org.clusteros.Agent1"];
    let with = |method| call.into_iter().chain([method]).collect::<Vec<_>>();
    for method in ["Status", "Members", "Identity"] {
        let output = as_nobody(&with(method))?;
        ensure!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for method in ["Leave", "Join", "Reload"] {
        let output = as_nobody(&with(method))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains("denied"), "{method} was not refused: {said}");
    }
    Ok(())
}

/// Watches one member until it is in `last`, and returns all states it was seen in.
fn states_seen(observer: &Node, id: &str, last: &str, limit: Duration) -> Result<BTreeSet<String>> {
    let deadline = Instant::now() + limit;
    let mut seen = BTreeSet::new();
    loop {
        if let Some(member) = observer.members()?.into_iter().find(|member| member.id == id) {
            let done = member.state == last;
            seen.insert(member.state);
            if done {
                return Ok(seen);
            }
        }
        ensure!(Instant::now() < deadline, "after {} s it was seen only as {seen:?}", limit.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn cluster_id(node: &Node) -> Result<String> {
    let status = node.json("status")?;
    match status["cluster_id"].as_str() {
        Some(id) if !id.is_empty() => Ok(id.to_owned()),
        _ => bail!("status of node {} names no cluster: {status}", node.number),
    }
}

fn stays_outside(members: &[Node], outsiders: &[Node]) -> Result<()> {
    let picture = |node: &Node| -> Result<(Vec<Member>, BTreeSet<String>)> {
        Ok((sorted_members(node)?, wg(node, "peers")?))
    };
    let before: Vec<_> = members.iter().map(picture).collect::<Result<_>>()?;
    let deadline = Instant::now() + OUTSIDER_WATCH;
    while Instant::now() < deadline {
        for (node, before) in members.iter().zip(&before) {
            let now = picture(node)?;
            ensure!(&now == before, "node {} changed from {before:?} to {now:?}", node.number);
        }
        for outsider in outsiders {
            let inside = outsider.members()?.len();
            ensure!(inside <= 1, "outsider {} sees {inside} members", outsider.number);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let blank = outsiders.last().context("no outsiders")?;
    let status = blank.clusterctl(&["status"])?;
    let text = String::from_utf8_lossy(&status.stdout);
    ensure!(
        text.contains("cluster.toml"),
        "the node without a file does not say how to provision it:\n{text}"
    );
    no_errors(members)
}

fn helpful_errors(node: &Node) -> Result<()> {
    let unknown = node.clusterctl(&["node", "no-such-node"])?;
    ensure!(unknown.status.code() == Some(4), "unknown node ends with {}", unknown.status);
    let flag = node.clusterctl(&["nodes", "--jsn"])?;
    ensure!(flag.status.code() == Some(2), "a bad flag ends with {}", flag.status);
    ensure!(String::from_utf8_lossy(&flag.stderr).contains("--json"), "a bad flag is not corrected");
    node.stop()?;
    let stopped = node.clusterctl(&["status"])?;
    node.start()?;
    ensure!(stopped.status.code() == Some(3), "without an agent it ends with {}", stopped.status);
    let text = String::from_utf8_lossy(&stopped.stderr);
    ensure!(text.contains("systemctl status cluster-agent"), "without an agent it says only: {text}");
    Ok(())
}

fn leaves(nodes: &[Node]) -> Result<()> {
    all_up(nodes)?;
    let (id, _) = identity(&nodes[2])?;
    let output = nodes[2].clusterctl(&["leave", "--yes"])?;
    ensure!(output.status.success(), "leave: {}", String::from_utf8_lossy(&output.stderr));
    for node in &nodes[..2] {
        states_seen(node, &id, "left", FORM_LIMIT)?;
        let deadline = Instant::now() + FORM_LIMIT;
        loop {
            let count = wg(node, "peers")?.len();
            if count == 1 {
                break;
            }
            ensure!(Instant::now() < deadline, "node {} still has {count} tunnels", node.number);
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    Ok(())
}
