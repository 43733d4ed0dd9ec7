// SPDX-License-Identifier: Apache-2.0
//! The switches and everything on them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    gate,
    node::{Node, enter, is_settled},
    process::Process,
    tools::{self, command, run},
};

const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The switches.
const LANS: [&str; 2] = ["switch", "switch1"];

/// A cluster of namespaces by its name.
#[derive(Clone, Debug)]
pub struct World {
    name: String,
    dir: PathBuf,
    executable: PathBuf,
    bin_dir: PathBuf,
    policy: PathBuf,
}

impl World {
    /// The world called `name`, existing or not.
    ///
    /// # Errors
    /// When this program does not know where it lies.
    pub fn named(name: &str) -> Result<Self> {
        ensure!(
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
            "`{name}` is no name for a cluster: use letters, digits and `-`"
        );
        // Not where it was compiled: two checkouts share one cache of compiled programs.
        let repository = match env::var_os("CLUSTER_OS_REPOSITORY") {
            Some(checkout) => PathBuf::from(checkout),
            None => env::current_dir()?,
        };
        let policy = repository.join("mkosi.extra/usr/share/dbus-1/system.d/org.clusteros.Agent1.conf");
        ensure!(policy.is_file(), "`{}` is missing: the D-Bus policy of the agent", policy.display());
        let executable = env::current_exe().context("failed to find out where this program is")?;
        let bin_dir = executable.parent().context("this program lies nowhere")?.to_owned();
        let dir = repository.join("build/netns").join(name);
        Ok(Self { name: name.to_owned(), dir, executable, bin_dir, policy })
    }

    /// Makes the switch, without nodes.
    ///
    /// # Errors
    /// When the world exists, a program is missing, or the kernel refuses.
    pub fn create(&self) -> Result<()> {
        if self.exists() {
            bail!("this cluster runs already: `netns-cluster status` shows it, `netns-cluster down` ends it");
        }
        tools::check()?;
        for binary in ["cluster-agent", "clusterctl"] {
            ensure!(
                self.bin_dir.join(binary).is_file(),
                "`{binary}` is not built: run `tests/toolbox/enter tests/toolbox/cargo-debug --bin {binary}` first"
            );
        }
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir)
                .with_context(|| format!("failed to clear `{}`", self.dir.display()))?;
        }
        fs::create_dir_all(&self.dir)?;
        let mut holder = command("unshare")?;
        if !nix::unistd::geteuid().is_root() {
            holder.args(["--user", "--map-root-user"]);
        }
        holder.args(["--net", "--mount", "--uts", "sleep", "infinity"]);
        self.holder().start(holder, &self.dir.join("switch.log"))?;
        let holder = self.holder_pid()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_settled(holder) {
            ensure!(
                self.holder().pid().is_some() && Instant::now() < deadline,
                "the kernel gives no namespaces: {}",
                fs::read_to_string(self.dir.join("switch.log")).unwrap_or_default().trim()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        if gate::is_root_of_namespace_only() || !nix::unistd::geteuid().is_root() {
            fs::write(self.dir.join("user-namespace"), gate::user_namespace()?)?;
            self.gate().start(gate::keeper(&self.executable, &self.name), &self.dir.join("gate.log"))?;
        }
        // Dumb switches: snooping needs a querier, which a cable box at home does not have.
        LANS.iter().try_for_each(|lan| {
            self.switch(&["link", "add", lan, "up", "type", "bridge", "mcast_snooping", "0"])
        })
    }

    /// ip(8) where the switches are.
    fn switch(&self, arguments: &[&str]) -> Result<()> {
        let mut ip = enter(self.holder_pid()?)?;
        ip.arg("ip").args(arguments);
        run(ip).map(drop)
    }

    /// Opens the port of a node's card (and moves it to a LAN), or closes it: nothing passes, but the carrier stays.
    ///
    /// # Errors
    /// When the node or the card is not there.
    pub fn set_port(&self, node: &Node, card: usize, lan: Option<usize>) -> Result<()> {
        let port = node.port(card);
        match lan {
            Some(lan) => self.switch(&["link", "set", &port, "master", LANS[lan]]),
            None => self.switch(&["link", "set", &port, "nomaster"]),
        }
    }

    /// Has the switch drop what is larger on the port of a node's card, in both directions and without a word; the node's own
    /// card stays as it is.
    ///
    /// # Errors
    /// When the node or the card is not there.
    pub fn set_port_mtu(&self, node: &Node, card: usize, mtu: u32) -> Result<()> {
        self.switch(&["link", "set", &node.port(card), "mtu", &mtu.to_string()])
    }

    /// Plugs the cable of a node's card in at the switch's end, or pulls it: the node sees the carrier come or go.
    ///
    /// # Errors
    /// When the node or the card is not there.
    pub fn set_cable(&self, node: &Node, card: usize, plugged: bool) -> Result<()> {
        self.switch(&["link", "set", &node.port(card), if plugged { "up" } else { "down" }])
    }

    /// Hangs one more node on the switch and starts it. Without `cluster_toml` it is unprovisioned.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn add(&self, cluster_toml: Option<&str>) -> Result<Node> {
        let node = self.hang(cluster_toml)?;
        node.start().with_context(|| format!("failed to start node {}", node.number))?;
        Ok(node)
    }

    /// Hangs one more node on the switch; nothing runs in it yet but its bus.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hang(&self, cluster_toml: Option<&str>) -> Result<Node> {
        self.hang_on(&[0], cluster_toml)
    }

    /// The same with a card for each of `lans`, which are 0 and 1.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hang_on(&self, lans: &[usize], cluster_toml: Option<&str>) -> Result<Node> {
        let lans: Vec<&str> = lans.iter().map(|lan| LANS[*lan]).collect();
        let number = self.nodes()?.last().map_or(1, |node| node.number + 1);
        let node = self.node_at(number);
        node.build(self.holder_pid()?, &lans, cluster_toml)
            .with_context(|| format!("failed to make node {number}"))?;
        Ok(node)
    }

    /// All nodes, by number.
    ///
    /// # Errors
    /// When the world's directory cannot be read.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        let mut numbers: Vec<usize> = fs::read_dir(&self.dir)?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        Ok(numbers.into_iter().map(|number| self.node_at(number)).collect())
    }

    /// One node.
    ///
    /// # Errors
    /// When there is none of that number; says which there are.
    pub fn node(&self, number: usize) -> Result<Node> {
        let nodes = self.nodes()?;
        let count = nodes.len();
        nodes.into_iter().find(|node| node.number == number).with_context(|| {
            if count == 0 {
                "no cluster runs: start one with `netns-cluster`".to_owned()
            } else {
                format!("there is no node {number}: the nodes are 1 to {count}")
            }
        })
    }

    /// Ends every process of this world; logs and state stay until the next [`World::create`].
    ///
    /// # Errors
    /// When one cannot be ended.
    pub fn down(&self) -> Result<()> {
        let nodes = self.nodes()?;
        let mut outcome = Ok(());
        for node in nodes {
            let removed = node.remove().with_context(|| format!("failed to end node {}", node.number));
            outcome = outcome.and(removed);
        }
        outcome = outcome.and(self.holder().end(Signal::SIGKILL));
        // The gate's keeper may be what runs this very command: then it goes by itself once it has handed back its status.
        if self.gate().pid() != Some(nix::unistd::getppid().as_raw()) {
            outcome = outcome.and(self.gate().end(Signal::SIGTERM));
        }
        outcome
    }

    /// Whether the switch is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.holder().pid().is_some()
    }

    /// A fresh join key with a `cluster.toml` around it, from the real `clusterctl`.
    ///
    /// # Errors
    /// With what `clusterctl` said.
    pub fn fresh_cluster_toml(&self) -> Result<String> {
        let mut clusterctl = std::process::Command::new(self.bin_dir.join("clusterctl"));
        clusterctl.args(["join-key", "generate", "--json"]);
        let printed: serde_json::Value = serde_json::from_str(&run(clusterctl)?)?;
        printed["cluster_toml"].as_str().map(str::to_owned).context("clusterctl printed no cluster.toml")
    }

    /// Waits until each of `nodes` sees exactly `count` members in `state`; `progress` is told at every look.
    ///
    /// # Errors
    /// After `limit`, with what each node saw last.
    pub fn await_members(
        nodes: &[Node],
        count: usize,
        state: &str,
        limit: Duration,
        mut progress: impl FnMut(&[usize]),
    ) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let seen: Vec<usize> = nodes
                .iter()
                .map(|node| {
                    node.members()
                        .map_or(0, |members| members.iter().filter(|member| member.state == state).count())
                })
                .collect();
            progress(&seen);
            if seen.iter().all(|&number| number == count) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "after {} s the nodes see {seen:?} members {state}, not {count} each",
                limit.as_secs()
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Where state and logs are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn node_at(&self, number: usize) -> Node {
        Node::new(number, self.dir.join(format!("node{number}")), self.bin_dir.clone(), self.policy.clone())
    }

    fn holder_pid(&self) -> Result<i32> {
        self.holder().pid().context("no cluster runs: start one with `netns-cluster`")
    }

    fn gate(&self) -> Process {
        Process::at(self.dir.join("gate.pid"))
    }

    fn holder(&self) -> Process {
        Process::at(self.dir.join("switch.pid"))
    }
}
