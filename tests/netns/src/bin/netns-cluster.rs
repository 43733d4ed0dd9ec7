// SPDX-License-Identifier: Apache-2.0
//! `netns-cluster`: a cluster of network namespaces to work on the agent with.

use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use cluster_netns::{Node, World, forbid_starts, gate};

/// Formed within a minute, or something is wrong.
const FORM_LIMIT: Duration = Duration::from_secs(60);

/// Real agents in network namespaces on this machine, without VMs.
#[derive(Parser)]
#[command(
    name = "netns-cluster",
    subcommand_precedence_over_arg = true,
    after_help = "Examples:\n  netns-cluster            start three nodes and show the members\n  \
        netns-cluster 5          start five\n  \
        netns-cluster exec 2 clusterctl status\n  \
        netns-cluster exec 1 wg show\n  \
        netns-cluster kill 3     a power cut; `start 3` brings it back\n  \
        netns-cluster down       end everything\n\n\
        Several clusters run side by side: CLUSTER=name netns-cluster …\n\
        State and logs are in build/netns/NAME."
)]
struct Arguments {
    /// How many nodes.
    #[arg(default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    nodes: u16,
    /// Name of the cluster.
    #[arg(long, env = "CLUSTER", default_value = "default", global = true)]
    cluster: String,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Show the nodes of this machine and the members as the first running one sees them.
    Status,
    /// Run a command in a node; exits with the command's status.
    Exec {
        /// Node number.
        node: usize,
        /// Command and arguments; `clusterctl` is the one just built.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Print a node's agent log.
    Logs {
        /// Node number.
        node: usize,
    },
    /// Add a node of the same cluster, or with another cluster.toml.
    Add {
        /// Its cluster.toml; `none` for a node without one.
        cluster_toml: Option<PathBuf>,
    },
    /// Stop a node's agent as systemd does (without a number: of all nodes).
    Stop {
        /// Node number.
        node: Option<usize>,
    },
    /// Cut a node's power (without a number: of all nodes).
    Kill {
        /// Node number.
        node: Option<usize>,
    },
    /// Start a stopped or killed node (without a number: all nodes).
    Start {
        /// Node number.
        node: Option<usize>,
    },
    /// Serve later commands of a user without root (started by this program itself).
    #[command(hide = true)]
    Gate,
    /// Stop everything; logs stay in build/netns until the next start.
    Down,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netns-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let world = World::named(&arguments.cluster)?;
    if arguments.verb.is_some() && gate::is_needed(&world)? {
        return Ok(ExitCode::from(gate::pass(&world)?));
    }
    match &arguments.verb {
        Some(Verb::Gate) => gate::keep(&world)?,
        None => return up(&world, usize::from(arguments.nodes)),
        Some(Verb::Status) => status(&world)?,
        Some(Verb::Exec { node, command }) => {
            let status = world.node(*node)?.command(command)?.status().context("failed to run it")?;
            return Ok(status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .map_or(ExitCode::FAILURE, ExitCode::from));
        }
        Some(Verb::Logs { node }) => {
            let log = fs::read(world.node(*node)?.agent_log()).context("the node has no log yet")?;
            std::io::stdout().write_all(&log)?;
        }
        Some(Verb::Add { cluster_toml }) => {
            let text = match cluster_toml {
                None => Some(world.dir().join("cluster.toml")),
                Some(path) if path.as_os_str() == "none" => None,
                Some(path) => Some(path.clone()),
            }
            .map(|path| {
                fs::read_to_string(&path).with_context(|| format!("failed to read `{}`", path.display()))
            })
            .transpose()?;
            let node = world.add(text.as_deref())?;
            println!("node {} is running", node.number);
        }
        Some(Verb::Stop { node }) => each(&world, *node, "stopped", Node::stop)?,
        Some(Verb::Kill { node }) => each(&world, *node, "power cut", Node::kill)?,
        Some(Verb::Start { node }) => each(&world, *node, "running", Node::start)?,
        Some(Verb::Down) => {
            world.down()?;
            println!("ended; logs are in {}", world.dir().display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts, with Ctrl-C ending what was started so far.
fn up(world: &World, count: usize) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let start = {
            let world = world.clone();
            tokio::task::spawn_blocking(move || form(&world, count))
        };
        tokio::select! {
            outcome = start => {
                match outcome.context("the start panicked")? {
                    Ok(()) => Ok(ExitCode::SUCCESS),
                    Err(error) if world.exists() => {
                        Err(error.context(format!(
                            "left running so that you can look at it: `netns-cluster logs 1`, `netns-cluster down` (logs in {})",
                            world.dir().display()
                        )))
                    }
                    Err(error) => Err(error),
                }
            }
            signal = tokio::signal::ctrl_c() => {
                signal?;
                eprintln!("\ninterrupted: stopping what was started");
                forbid_starts();
                world.down()?;
                eprintln!("nothing is left running");
                // The starting thread may be inside a wait; it can start nothing any more.
                std::process::exit(130);
            }
        }
    })
}

fn form(world: &World, count: usize) -> Result<()> {
    let began = Instant::now();
    if world.exists() {
        bail!(
            "this cluster is already running: `netns-cluster status` shows it, `netns-cluster down` stops it"
        );
    }
    let cluster_toml = {
        world.create()?;
        let text = world.fresh_cluster_toml()?;
        fs::write(world.dir().join("cluster.toml"), &text)?;
        text
    };
    let mut nodes = Vec::new();
    for number in 1..=count {
        show(&format!("starting node {number} of {count}"));
        nodes.push(world.add(Some(&cluster_toml))?);
    }
    World::await_members(&nodes, count, "up", FORM_LIMIT, |seen| {
        let done = seen.iter().filter(|&&number| number == count).count();
        show(&format!("forming: {done} of {count} nodes see all {count} members up"));
    })?;
    show(&format!("{count} nodes are one cluster after {:.1} s", began.elapsed().as_secs_f64()));
    println!();
    members_table(&nodes[0])?;
    println!("\nnext: netns-cluster exec 1 clusterctl status · exec 1 wg show · kill 3 · start 3 · down");
    Ok(())
}

fn status(world: &World) -> Result<()> {
    let nodes = world.nodes()?;
    if !world.exists() || nodes.is_empty() {
        bail!("no cluster is running: start one with `netns-cluster`");
    }
    for node in &nodes {
        println!("node {}  {}", node.number, if node.is_running() { "running" } else { "stopped" });
    }
    println!();
    match nodes.iter().find(|node| node.is_running()) {
        Some(node) => members_table(node),
        None => Ok(()),
    }
}

fn members_table(node: &Node) -> Result<()> {
    let output = node.clusterctl(&["nodes"])?;
    std::io::stdout().write_all(&output.stdout)?;
    std::io::stderr().write_all(&output.stderr)?;
    Ok(())
}

fn each(world: &World, number: Option<usize>, done: &str, act: impl Fn(&Node) -> Result<()>) -> Result<()> {
    let nodes = match number {
        Some(number) => vec![world.node(number)?],
        None => world.nodes()?,
    };
    if nodes.is_empty() {
        bail!("no cluster is running: start one with `netns-cluster`");
    }
    for node in &nodes {
        act(node)?;
        println!("node {} {done}", node.number);
    }
    Ok(())
}

/// One line that is written over on a terminal, and a line per change elsewhere.
fn show(text: &str) {
    use std::sync::Mutex;
    static LAST: Mutex<String> = Mutex::new(String::new());
    let Ok(mut last) = LAST.lock() else { return };
    if *last == text {
        return;
    }
    if std::io::stdout().is_terminal() {
        print!("\r\x1b[K{text}");
        let _ = std::io::stdout().flush();
    } else {
        println!("{text}");
    }
    text.clone_into(&mut last);
}
