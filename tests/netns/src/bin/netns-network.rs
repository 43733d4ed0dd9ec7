// SPDX-License-Identifier: Apache-2.0
//! `netns-network`: networks that are not what one wants, with real daemons in network namespaces. `just test` runs those
//! that take seconds (`--ci`), `just campaign net` all of them.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use cluster_netns::{
    Node, World,
    story::{Report, no_errors, ping_each_other, tell},
};

/// Forming, or coming back together.
const FORM_LIMIT: Duration = Duration::from_secs(60);
/// A fault of the network is noticed, named, or no longer so.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);
/// A stream through the mesh may stand still for so long when a cable is pulled.
const GAP: Duration = Duration::from_secs(5);
/// How late the ports of the switch open.
const LATE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Port of the stream.
const PORT: &str = "7000";

type Story = fn(&World, &mut Report) -> Result<()>;

/// Name, whether CI runs it, and the story.
const STORIES: [(&str, bool, Story); 7] = [
    ("two-lans", true, |world, report| cables(world, report, &[0, 1])),
    ("one-lan-twice", true, |world, report| cables(world, report, &[0, 0])),
    ("apart", true, apart),
    ("narrow", true, narrow),
    ("copied-disk", true, copied_disk),
    ("late-ports", false, late_ports),
    ("late-power", false, late_power),
];

/// Tells stories of bad networks.
#[derive(Parser)]
#[command(name = "netns-network")]
struct Arguments {
    /// Only those that take seconds.
    #[arg(long)]
    ci: bool,
    /// Only these.
    #[arg(value_parser = STORIES.map(|(name, _, _)| name))]
    stories: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut report = Report::default();
    for (name, ci, story) in STORIES {
        let wanted = arguments.stories.is_empty() || arguments.stories.iter().any(|wanted| wanted == name);
        if !wanted || (arguments.ci && !ci) {
            continue;
        }
        println!("story {name}");
        report = match tell(name, report, story) {
            Ok(report) => report,
            Err(error) => {
                eprintln!("netns-network: {name}: {error:#}");
                return ExitCode::FAILURE;
            }
        };
    }
    report.finish()
}

/// Two nodes with two cards each: each port dies and each cable is pulled in turn, under a stream of ten lines a second.
fn cables(world: &World, report: &mut Report, lans: &[usize]) -> Result<()> {
    let toml = world.fresh_cluster_toml()?;
    let nodes: Vec<Node> = (0..2).map(|_| world.hang_on(lans, Some(&toml))).collect::<Result<_>>()?;
    // What a machine without a DHCP server may give itself: on both cards alike, so the second one is not reached by it.
    for (number, node) in nodes.iter().enumerate() {
        node.give_address("eth0", &format!("169.254.10.{}/16", number + 1))?;
        node.give_address("eth1", &format!("169.254.11.{}/16", number + 1))?;
    }
    nodes.iter().try_for_each(Node::start)?;
    report.check("two nodes with two cards each become one cluster", || all_up(&nodes));
    let stream = Stream::start(&nodes[0], &nodes[1])?;
    // So long that the agents have seen that the mesh is busy.
    stream.grow(70)?;
    // Each of these takes the way that is in use then.
    for (node, card, fault) in
        [(0, 0, Fault::Port), (0, 1, Fault::Cable), (1, 0, Fault::Port), (1, 1, Fault::Cable)]
    {
        let node = &nodes[node];
        let name = format!("{}, node {}, card {card}: the stream goes on", fault.name(), node.number);
        report.check(&name, || {
            fault.set(world, node, card, None)?;
            let broken = stream.last()?;
            stream.watch(GAP + Duration::from_secs(3))?;
            fault.set(world, node, card, Some(lans[card]))?;
            let gap = stream.longest_gap_since(broken)?;
            println!("      longest gap {:.2} s", gap.as_secs_f64());
            ensure!(gap <= GAP, "it stood still for {:.1} s", gap.as_secs_f64());
            stream.grow(20)
        });
    }
    report.check("every line came through once and in order, and nobody was declared down", || {
        stream.end()?;
        for node in &nodes {
            let log = fs::read_to_string(node.agent_log())?;
            let fell = log.lines().find(|line| line.contains(" WARN ") && line.contains("state=\"down\""));
            ensure!(fell.is_none(), "node {}: {fell:?}", node.number);
        }
        all_up(&nodes)
    });
    report.check("no agent logged an error", || no_errors(&nodes));
    Ok(())
}

#[derive(Clone, Copy)]
enum Fault {
    /// Nothing passes, but the carrier stays.
    Port,
    Cable,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Port => "port dead",
            Self::Cable => "cable pulled",
        }
    }

    fn set(self, world: &World, node: &Node, card: usize, lan: Option<usize>) -> Result<()> {
        match self {
            Self::Port => world.set_port(node, card, lan),
            Self::Cable => world.set_cable(node, card, lan.is_some()),
        }
    }
}

/// One and two are on LANs of their own, three is on both: the pair is named by both, and by nobody else.
fn apart(world: &World, report: &mut Report) -> Result<()> {
    let toml = world.fresh_cluster_toml()?;
    let between = started(world, &[&[0, 1]], &toml)?;
    report.check("the node between founds the cluster", || {
        World::await_members(&between, 1, "up", FORM_LIMIT, |_| {})
    });
    let nodes = [between, started(world, &[&[0], &[1]], &toml)?].concat();
    report.check("two LANs become one cluster through the node between", || all_up(&nodes));
    report.check("the pair without a way is named by both, in status and in the list", || {
        for (one, other) in [(1, 2), (2, 1)] {
            let name = name_of(&nodes[other])?;
            await_that(&format!("word of {name} on node {}", nodes[one].number), || {
                Ok(problem(&nodes[one])?.is_some_and(|problem| problem.contains(&name)))
            })?;
            let list = nodes[one].clusterctl(&["nodes"])?;
            let list = String::from_utf8_lossy(&list.stdout).into_owned();
            let line = list.lines().find(|line| line.contains(&name)).unwrap_or_default();
            ensure!(line.contains("up") && line.contains("unreachable"), "nodes says:\n{list}");
        }
        Ok(())
    });
    report.check("the node between names nobody, and reaches both", || {
        ensure!(problem(&nodes[0])?.is_none(), "it says {:?}", problem(&nodes[0])?);
        for (from, to) in [(0, 1), (0, 2), (1, 0), (2, 0)] {
            ping_each_other(&[nodes[from].clone(), nodes[to].clone()])?;
        }
        Ok(())
    });
    report.check("when a port moves to the other LAN the two find each other, and nobody is named", || {
        world.set_port(&nodes[2], 0, Some(0))?;
        await_that("end of the problems", || {
            Ok(nodes.iter().map(problem).collect::<Result<Vec<_>>>()?.iter().all(Option::is_none))
        })?;
        all_up(&nodes)?;
        ping_each_other(&nodes)
    });
    report.check("no agent logged an error", || no_errors(&nodes));
    Ok(())
}

/// Links that carry 1400 bytes, as tunnels and PPPoE do.
fn narrow(world: &World, report: &mut Report) -> Result<()> {
    let toml = world.fresh_cluster_toml()?;
    let nodes = [world.hang(Some(&toml))?, world.hang(Some(&toml))?];
    for node in &nodes {
        node.output(&["ip", "link", "set", "eth0", "mtu", "1400"])?;
        node.start()?;
    }
    report.check("two nodes behind links of 1400 bytes become one cluster", || {
        all_up(&nodes)?;
        ping_each_other(&nodes)
    });
    report.check("a full packet of the mesh passes", || {
        // 1320 bytes with the headers of IPv6 and ICMP.
        let address = nodes[1].address()?;
        let ping = nodes[0].output(&["ping", "-6", "-n", "-c", "3", "-M", "do", "-s", "1272", &address])?;
        ensure!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
        Ok(())
    });
    report.check("a switch that drops full packets in between is named by both while they are used", || {
        let about = |node: &Node| -> Result<Option<String>> {
            let status = node.json("status")?;
            let problems = status["problems"].as_array().context("no problems in status")?;
            Ok(problems
                .iter()
                .find(|problem| problem["area"] == "mtu")
                .map(|found| found["message"].to_string()))
        };
        let address = nodes[1].address()?;
        // Small packets in large number make the mesh busy; agents and WireGuard go on.
        nodes[0].start_other("pings", &["ping", "-6", "-n", "-q", "-i", "0.05", "-s", "200", &address])?;
        world.set_port_mtu(&nodes[1], 0, 1280)?;
        for (one, other) in [(0, 1), (1, 0)] {
            let name = name_of(&nodes[other])?;
            await_that(&format!("word of {name} on node {}", nodes[one].number), || {
                Ok(about(&nodes[one])?.is_some_and(|said| said.contains(&name)))
            })?;
        }
        all_up(&nodes)?;
        world.set_port_mtu(&nodes[1], 0, 1500)?;
        await_that("end of the problems", || Ok(about(&nodes[0])?.is_none() && about(&nodes[1])?.is_none()))?;
        nodes[0].end_other("pings")
    });
    report.check("no agent logged an error", || no_errors(&nodes));
    Ok(())
}

/// A disk is copied after its first boot, and the copy is switched on beside the machine it was made of.
fn copied_disk(world: &World, report: &mut Report) -> Result<()> {
    let toml = world.fresh_cluster_toml()?;
    let nodes = started(world, &[&[0], &[0]], &toml)?;
    report.check("two nodes become one cluster", || all_up(&nodes));
    let copy = world.hang(Some(&toml))?;
    let state = |node: &Node| node.state_file("identity").parent().map(Path::to_owned).context("no folder");
    for entry in fs::read_dir(state(&nodes[1])?)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), state(&copy)?.join(entry.file_name()))?;
        }
    }
    copy.start()?;
    report.check("the copy stands aside and says why", || {
        await_that("quarantine of the copy", || Ok(copy.json("status")?["phase"] == "quarantined"))?;
        let status = copy.json("status")?;
        ensure!(status["id"] == nodes[1].json("status")?["id"], "it has another id: {status}");
        let said = status["problems"].to_string();
        ensure!(said.contains("stands aside") && said.contains("write the image"), "{said}");
        // wireguard-go may have made the interface; the agent gives it no address, or takes it away.
        let mesh = copy.output(&["ip", "-6", "-oneline", "address", "show", "dev", "cluster0"])?.stdout;
        ensure!(mesh.is_empty(), "it has a mesh: {}", String::from_utf8_lossy(&mesh));
        Ok(())
    });
    report.check("the machine that it was made of names it, and the cluster stays what it was", || {
        await_that("word of the copy", || {
            Ok(nodes[1].json("status")?["problems"].to_string().contains("copy of this node's identity"))
        })?;
        all_up(&nodes)?;
        ping_each_other(&nodes)
    });
    report.check("no agent of the cluster logged an error", || no_errors(&nodes));
    Ok(())
}

/// Ten new machines are switched on together; the switch opens its ports a minute later.
fn late_ports(world: &World, report: &mut Report) -> Result<()> {
    let toml = world.fresh_cluster_toml()?;
    let nodes: Vec<Node> = (0..10).map(|_| world.hang(Some(&toml))).collect::<Result<_>>()?;
    for node in &nodes {
        world.set_port(node, 0, None)?;
    }
    nodes.iter().try_for_each(Node::start)?;
    report.check("behind closed ports nobody finds anybody", || {
        sleep(LATE);
        for node in &nodes {
            ensure!(node.members()?.len() <= 1, "node {} found somebody", node.number);
        }
        Ok(())
    });
    for node in &nodes {
        world.set_port(node, 0, Some(0))?;
    }
    report.check("the ports open: ten nodes are one cluster", || {
        let began = Instant::now();
        all_up(&nodes)?;
        println!("      {:.1} s after the ports opened", began.elapsed().as_secs_f64());
        one_cluster(&nodes).map(drop)
    });
    report.check("they stay one, and each reaches each", || {
        ping_each_other(&nodes[..4])?;
        sleep(Duration::from_secs(10));
        all_up(&nodes)?;
        one_cluster(&nodes).map(drop)
    });
    report.check("no agent logged an error", || no_errors(&nodes));
    Ok(())
}

/// A cluster loses its power; the machines are back a minute before the switch.
fn late_power(world: &World, report: &mut Report) -> Result<()> {
    let toml = world.fresh_cluster_toml()?;
    let nodes = started(world, &[&[0], &[0], &[0]], &toml)?;
    report.check("three nodes become one cluster", || all_up(&nodes));
    let cluster = one_cluster(&nodes)?;
    for node in &nodes {
        node.kill()?;
        world.set_port(node, 0, None)?;
    }
    nodes.iter().try_for_each(Node::start)?;
    report.check("behind closed ports each waits for the others, and founds nothing", || {
        sleep(LATE);
        for node in &nodes {
            let status = node.json("status")?;
            ensure!(status["phase"] == "waiting" && status["cluster_id"] == *cluster, "{status}");
        }
        Ok(())
    });
    for node in &nodes {
        world.set_port(node, 0, Some(0))?;
    }
    report.check("the ports open: it is the same cluster", || {
        all_up(&nodes)?;
        let now = one_cluster(&nodes)?;
        ensure!(now == cluster, "it was {cluster} and is {now}");
        ping_each_other(&nodes)
    });
    report.check("no agent logged an error", || no_errors(&nodes));
    Ok(())
}

/// Nodes with cards on these LANs, started.
fn started(world: &World, lans: &[&[usize]], toml: &str) -> Result<Vec<Node>> {
    let nodes: Vec<Node> = lans.iter().map(|lans| world.hang_on(lans, Some(toml))).collect::<Result<_>>()?;
    nodes.iter().try_for_each(Node::start)?;
    Ok(nodes)
}

fn all_up(nodes: &[Node]) -> Result<()> {
    World::await_members(nodes, nodes.len(), "up", FORM_LIMIT, |_| {})
}

/// The id of the one cluster that all are in.
fn one_cluster(nodes: &[Node]) -> Result<String> {
    let mut ids = Vec::new();
    for node in nodes {
        let status = node.json("status")?;
        ids.push(status["cluster_id"].as_str().context("no cluster_id in status")?.to_owned());
    }
    ensure!(ids.iter().all(|id| *id == ids[0]), "they are in clusters {ids:?}");
    Ok(ids.swap_remove(0))
}

fn name_of(node: &Node) -> Result<String> {
    let status = node.json("status")?;
    status["name"].as_str().map(str::to_owned).context("no name in status")
}

/// What status says of members without a way.
fn problem(node: &Node) -> Result<Option<String>> {
    let status = node.json("status")?;
    let problems = status["problems"].as_array().context("no problems in status")?;
    let found = problems.iter().find(|problem| problem["area"] == "path");
    Ok(found.map(|problem| problem["message"].to_string()))
}

fn await_that(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + NOTICE_LIMIT;
    while !holds()? {
        ensure!(Instant::now() < deadline, "no {what} after {} s", NOTICE_LIMIT.as_secs());
        sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// A TCP connection through the mesh with ten lines a second.
struct Stream<'a> {
    from: &'a Node,
    to: &'a Node,
}

impl<'a> Stream<'a> {
    fn start(from: &'a Node, to: &'a Node) -> Result<Self> {
        let address = to.address()?;
        ping_each_other(&[from.clone(), to.clone()])?;
        let receive = format!(
            "socat -u TCP6-LISTEN:{PORT} STDOUT | while read -r line; do echo \"$EPOCHREALTIME $line\"; done"
        );
        to.start_other("receiver", &["bash", "-c", &receive])?;
        await_that("receiver", || {
            let sockets = to.output(&["ss", "-Hltn"])?;
            Ok(String::from_utf8_lossy(&sockets.stdout).contains(&format!(":{PORT}")))
        })?;
        // Waits for a pipe that says nothing: on a slow machine ten starts of `sleep` take longer than a second.
        let send = format!(
            "exec 3<>/dev/tcp/{address}/{PORT} 4<> <(:); n=0; \
             while echo $n >&3; do n=$((n + 1)); read -rt 0.1 -u 4; done"
        );
        from.start_other("sender", &["bash", "-c", &send])?;
        let stream = Self { from, to };
        stream.grow(20)?;
        Ok(stream)
    }

    /// When each line came; they must be numbered without a hole.
    fn times(&self) -> Result<Vec<f64>> {
        let log = fs::read_to_string(self.to.log_of("receiver"))?;
        let mut times = Vec::new();
        // The last line may be half written.
        for line in log.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let (time, number) = line.trim().split_once(' ').with_context(|| format!("odd line {line}"))?;
            ensure!(number == times.len().to_string(), "line {number} came as number {}", times.len());
            times.push(time.parse()?);
        }
        Ok(times)
    }

    /// Number of the last line that came.
    fn last(&self) -> Result<usize> {
        self.times()?.len().checked_sub(1).context("nothing came")
    }

    /// Waits for so many more lines.
    fn grow(&self, lines: usize) -> Result<()> {
        let wanted = self.times()?.len() + lines;
        await_that("more lines of the stream", || Ok(self.times()?.len() >= wanted))
    }

    /// Lets it run on: a stream that does not go on shows a gap longer than is allowed.
    fn watch(&self, duration: Duration) -> Result<()> {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            sleep(LOOK_AGAIN);
            self.times()?;
        }
        Ok(())
    }

    /// Between two lines from that one on, or since the last one.
    fn longest_gap_since(&self, line: usize) -> Result<Duration> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
        let times = self.times()?;
        let later = times.iter().skip(line + 1).chain([&now]);
        let gap = times.iter().skip(line).zip(later).map(|(start, end)| end - start).fold(0.0, f64::max);
        Ok(Duration::from_secs_f64(gap))
    }

    fn end(&self) -> Result<()> {
        self.times()?;
        self.from.end_other("sender")?;
        self.to.end_other("receiver")
    }
}
