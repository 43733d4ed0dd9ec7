// SPDX-License-Identifier: Apache-2.0
//! What is compared: how each is started, what it knows, and how it is stopped.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    net::Ipv4Addr,
};

use anyhow::{Context as _, Result, ensure};
use cluster_netns::{Node, StartingLine};

/// A key for serf's own encryption, as every production set-up has one; it protects nothing here.
const SERF_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// One program that keeps a membership.
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    /// Name of its process and log in the node's folder.
    pub(crate) process: &'static str,
    /// Processes that run for it, counted apart.
    pub(crate) beside: &'static [&'static str],
    pub(crate) start: fn(&Node, Option<&StartingLine>) -> Result<()>,
    pub(crate) stop: fn(&Node) -> Result<()>,
    /// How many live members its own command counts.
    pub(crate) members: fn(&Node) -> Result<usize>,
    /// The member that a log line says is alive.
    alive: fn(&str) -> Option<&str>,
}

pub(crate) const CONTESTANTS: &[Contestant] = &[
    Contestant {
        name: "cluster-agent",
        process: "agent",
        beside: &["wireguard-go"],
        start: Node::launch_agent,
        stop: Node::kill,
        members: |node| Ok(node.members()?.iter().filter(|member| member.state == "up").count()),
        alive: |line| {
            line.contains("member state changed").then_some(())?;
            line.contains("state=\"up\"").then_some(())?;
            line.split_once("member=\"")?.1.split('"').next()
        },
    },
    Contestant {
        name: "serf",
        process: "serf",
        beside: &[],
        start: start_serf,
        stop: |node| node.end_other("serf"),
        members: |node| {
            let output = node.output(&["serf", "members", "-status=alive", "-format=json"])?;
            ensure!(output.status.success(), "serf members: {}", String::from_utf8_lossy(&output.stderr));
            let members: serde_json::Value = serde_json::from_slice(&output.stdout)?;
            members["members"].as_array().map(Vec::len).context("serf printed no members")
        },
        alive: |line| line.split_once("EventMemberJoin: ")?.1.split_whitespace().next(),
    },
];

/// How many members were ever alive for a node, as its log says the moment it learns of one: asking each node again and again
/// would cost more than what is measured, and so would reading its whole log each time.
pub(crate) struct Follower {
    alive: BTreeSet<String>,
    /// Whole lines up to here were read.
    read: u64,
}

impl Follower {
    pub(crate) fn new() -> Self {
        Self { alive: BTreeSet::new(), read: 0 }
    }

    pub(crate) fn known(&mut self, contestant: &Contestant, node: &Node) -> Result<usize> {
        let mut log = match File::open(node.log_of(contestant.process)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            log => log?,
        };
        log.seek(SeekFrom::Start(self.read))?;
        let mut new = Vec::new();
        log.read_to_end(&mut new)?;
        // The last line may be half written.
        let whole = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.read += whole as u64;
        let text = String::from_utf8_lossy(&new[..whole]);
        self.alive.extend(text.lines().filter_map(contestant.alive).map(str::to_owned));
        Ok(self.alive.len())
    }
}

/// IPv4 address of a node on the LAN.
pub(crate) fn address(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

fn start_serf(node: &Node, line: Option<&StartingLine>) -> Result<()> {
    let number = u16::try_from(node.number)?;
    let name = format!("-node=node-{number}");
    let bind = format!("-bind={}", address(number));
    let seed = format!("-retry-join={}", address(1));
    // Its default waits half a minute when the first try comes before the seed is there.
    let retry = "-retry-interval=1s";
    let key = format!("-encrypt={SERF_KEY}");
    node.start_other_at(
        line,
        "serf",
        &["serf", "agent", "-profile=lan", "-log-level=info", &name, &bind, &key, &seed, retry],
    )
}
