// SPDX-License-Identifier: Apache-2.0
//! `just bench members`: N real agents in N network namespaces of this machine, and beside them, in the same run, serf
//! (HashiCorp's SWIM agent, Debian's package) doing what of this serf does. Each has namespaces of its own, made for this one
//! round: what a kernel has learned of its neighbours spares whoever comes second thousands of questions to all.

mod contestant;
mod limits;
mod usage;

use std::{
    collections::BTreeSet,
    fs,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use cluster_netns::{Node, StartingLine, World};
use contestant::{CONTESTANTS, Contestant, Follower};
use limits::Limits;
use usage::Usage;

/// How often logs are looked at; the resolution of the times below.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How often it is looked whether all still run.
const CHECK: Duration = Duration::from_secs(1);

/// Starts N agents at once in network namespaces and measures: time to full membership, CPU, memory, traffic.
#[derive(Parser)]
#[command(name = "netns-bench")]
struct Arguments {
    /// How many nodes.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(2..=250))]
    nodes: u16,
    /// Seconds of a formed cluster that are measured.
    #[arg(long, default_value_t = 60)]
    quiet: u64,
    /// Seconds that forming may take.
    #[arg(long, default_value_t = 300)]
    limit: u64,
    /// How often all is done, each time with new identities: figures of one round differ from those of the next.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Only these (cluster-agent, serf).
    #[arg(long)]
    only: Vec<String>,
}

struct Figures {
    name: &'static str,
    full: Duration,
    forming: Usage,
    /// Packets that this machine lost while forming because it was busy, and that a hundred machines would not have lost.
    dropped: u64,
    quiet: Usage,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("netns-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    let contestants: Vec<_> = CONTESTANTS.iter().filter(|contestant| wanted(contestant.name)).collect();
    if contestants.is_empty() {
        bail!("nothing is called {:?}: there are cluster-agent and serf", arguments.only);
    }
    let _limits = Limits::raise(arguments.nodes)?;
    // In turn, so that what else the machine does meets both.
    let turns = (0..arguments.rounds).flat_map(|_| &contestants);
    let figures = turns.enumerate().map(|(turn, contestant)| {
        let world = World::named(&format!("bench-{}-{}", std::process::id(), turn + 1))?;
        world.create()?;
        let outcome = hang_nodes(&world, arguments.nodes)
            .and_then(|nodes| measure(contestant, &world, &nodes, arguments))
            .with_context(|| format!("measuring {}; logs are in {}", contestant.name, world.dir().display()));
        let ended = world.down();
        let figures = outcome?;
        ended.map(|()| figures)
    });
    print(&figures.collect::<Result<Vec<_>>>()?, arguments);
    Ok(())
}

fn hang_nodes(world: &World, count: u16) -> Result<Vec<Node>> {
    let cluster_toml = world.fresh_cluster_toml()?;
    let mut nodes = Vec::new();
    for number in 1..=count {
        let node = world.hang(Some(&cluster_toml))?;
        // What a DHCP server would have given; serf needs IPv4 here.
        node.give_address("eth0", &format!("{}/16", contestant::address(number)))?;
        nodes.push(node);
        if number % 20 == 0 {
            eprintln!("{number} of {count} namespaces");
        }
    }
    Ok(nodes)
}

fn measure(contestant: &Contestant, world: &World, nodes: &[Node], arguments: &Arguments) -> Result<Figures> {
    // Machines are the same for all, and none is given a shorter time between its making and its start.
    at_once(nodes, Node::start_wireguard)?;
    let line = StartingLine::in_dir(world.dir())?;
    let Some((seed, others)) = nodes.split_first() else { bail!("there are no nodes") };
    others.iter().try_for_each(|node| (contestant.start)(node, Some(&line)))?;
    line.await_all(others.len())?;
    (contestant.start)(seed, None)?;
    let deadline = Instant::now() + Duration::from_secs(arguments.limit);
    let mut followers: Vec<Follower> = nodes.iter().map(|_| Follower::new()).collect();
    while followers[0].known(contestant, seed)? < 1 {
        ensure!(Instant::now() < deadline, "the first one did not begin a cluster");
        thread::sleep(LOOK_AGAIN);
    }
    eprintln!("{}: one is there, {} begin", contestant.name, others.len());
    let before = Usage::of(contestant, nodes)?;
    let dropped_before = usage::dropped()?;
    let began = Instant::now();
    let _open = line.go()?;
    let deadline = began + Duration::from_secs(arguments.limit);
    let mut knows: Vec<usize> = vec![0; nodes.len()];
    let mut next_check = began;
    while knows.iter().any(|count| *count < nodes.len()) {
        for ((node, count), follower) in nodes.iter().zip(&mut knows).zip(&mut followers) {
            if *count < nodes.len() {
                *count = follower.known(contestant, node)?;
            }
        }
        if Instant::now() >= next_check {
            next_check += CHECK;
            nodes.iter().try_for_each(|node| runs(contestant, node))?;
        }
        ensure!(
            Instant::now() < deadline,
            "after {} s only {} of {} nodes know all; the least knows {}",
            arguments.limit,
            knows.iter().filter(|count| **count == nodes.len()).count(),
            nodes.len(),
            knows.iter().min().unwrap_or(&0)
        );
        thread::sleep(LOOK_AGAIN);
    }
    let full = began.elapsed();
    eprintln!(
        "{}: all know all after {:.1} s; listening {} s",
        contestant.name,
        full.as_secs_f64(),
        arguments.quiet
    );
    let formed = Usage::of(contestant, nodes)?;
    let dropped = usage::dropped()?.saturating_sub(dropped_before);
    thread::sleep(Duration::from_secs(arguments.quiet));
    let after = Usage::of(contestant, nodes)?;
    for node in [&nodes[0], &nodes[nodes.len() - 1]] {
        let members = (contestant.members)(node)?;
        ensure!(members == nodes.len(), "node {} counts {members} members itself", node.number);
    }
    // Several at a time; `World::down` ends one after the other.
    at_once(nodes, contestant.stop)?;
    let (forming, quiet) = (formed.since(&before), after.since(&formed));
    Ok(Figures { name: contestant.name, full, forming, dropped, quiet })
}

fn runs(contestant: &Contestant, node: &Node) -> Result<()> {
    ensure!(
        node.pid_of(contestant.process).is_some(),
        "node {} ended: {}",
        node.number,
        fs::read_to_string(node.log_of(contestant.process))?.lines().last().unwrap_or_default()
    );
    Ok(())
}

/// For several nodes at a time.
fn at_once(nodes: &[Node], each: fn(&Node) -> Result<()>) -> Result<()> {
    thread::scope(|scope| {
        let parts = nodes.chunks(nodes.len().div_ceil(4));
        let parts: Vec<_> = parts.map(|part| scope.spawn(move || part.iter().try_for_each(each))).collect();
        parts
            .into_iter()
            .try_for_each(|part| part.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })
}

fn print(figures: &[Figures], arguments: &Arguments) {
    println!(
        "{} nodes in network namespaces of this machine, one first and then the others at once; CPU and traffic while forming in \
         total, then per node over {} s",
        arguments.nodes, arguments.quiet
    );
    println!(
        "{:<16} {:>12} {:>12} {:>12} {:>12} {:>12} {:>12} {:>14}",
        "",
        "all know all",
        "CPU forming",
        "MB forming",
        "CPU quiet",
        "PSS mean",
        "PSS largest",
        "traffic quiet"
    );
    for it in figures {
        let (nodes, seconds) = (f64::from(arguments.nodes), arguments.quiet as f64);
        println!(
            "{:<16} {:>10.1} s {:>10.1} s {:>12.1} {:>9.3} % {:>9.1} MB {:>9.1} MB {:>10.0} B/s",
            it.name,
            it.full.as_secs_f64(),
            it.forming.cpu.as_secs_f64(),
            it.forming.sent as f64 / 1e6,
            it.quiet.cpu.as_secs_f64() / nodes / seconds * 100.0,
            it.quiet.pss_mean() / 1e6,
            it.quiet.pss_largest() as f64 / 1e6,
            it.quiet.sent as f64 / nodes / seconds,
        );
        if it.dropped > 0 {
            println!(
                "  this machine lost {} packets while forming, because its own queue was full (net.core.netdev_max_backlog)",
                it.dropped
            );
        }
        for (name, cpu, pss) in &it.quiet.beside {
            println!(
                "  beside it, {name}: {:.3} % CPU, {:.1} MB PSS a node",
                cpu.as_secs_f64() / nodes / seconds * 100.0,
                *pss as f64 / nodes / 1e6
            );
        }
    }
    if arguments.rounds > 1 {
        for name in figures.iter().map(|it| it.name).collect::<BTreeSet<_>>() {
            let mut full: Vec<_> = figures.iter().filter(|it| it.name == name).map(|it| it.full).collect();
            full.sort();
            println!(
                "{name}, {} rounds, all know all after: median {:.1} s, mean {:.1} s, {:.1} to {:.1} s",
                full.len(),
                median(&full).as_secs_f64(),
                full.iter().sum::<Duration>().as_secs_f64() / full.len() as f64,
                full[0].as_secs_f64(),
                full[full.len() - 1].as_secs_f64()
            );
        }
    }
}

/// Of an even number: halfway between the two in the middle.
fn median(sorted: &[Duration]) -> Duration {
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_even_rounds_lies_between_the_two_in_the_middle() {
        let seconds =
            |them: &[u64]| median(&them.iter().map(|it| Duration::from_secs(*it)).collect::<Vec<_>>());
        assert_eq!(seconds(&[3]), Duration::from_secs(3));
        assert_eq!(seconds(&[3, 4, 98]), Duration::from_secs(4));
        assert_eq!(seconds(&[3, 4, 94, 98]), Duration::from_secs(49));
    }
}
