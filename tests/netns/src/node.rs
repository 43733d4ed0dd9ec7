// SPDX-License-Identifier: Apache-2.0
//! One node: its namespaces, its bus, its agent.

use std::{
    env, fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    Member, StartingLine,
    process::{Process, send},
    tools::{command, run},
};

const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A process of the node is there, or its log says why not.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// One node of a world.
#[derive(Clone, Debug)]
pub struct Node {
    /// 1, 2, …
    pub number: usize,
    dir: PathBuf,
    bin_dir: PathBuf,
    policy: PathBuf,
}

impl Node {
    pub(crate) fn new(number: usize, dir: PathBuf, bin_dir: PathBuf, policy: PathBuf) -> Self {
        Self { number, dir, bin_dir, policy }
    }

    /// Makes namespaces, cables and bus; the agent is not started. `switch` is the process that holds the switches, `lans`
    /// the bridge of each card.
    pub(crate) fn build(&self, switch: i32, lans: &[&str], cluster_toml: Option<&str>) -> Result<()> {
        fs::create_dir_all(self.dir.join("config"))?;
        fs::create_dir_all(self.dir.join("state"))?;
        if let Some(text) = cluster_toml {
            self.provision(text)?;
        }
        let mut holder = enter(switch)?;
        holder.args(["unshare", "--net", "--mount", "--uts", "sleep", "infinity"]);
        self.holder().start(holder, &self.dir.join("holder.log"))?;
        let holder = self.holder_pid()?;
        await_that("namespaces of its own", || Ok(is_settled(holder)))?;

        for (card, lan) in lans.iter().enumerate() {
            let port = self.port(card);
            for arguments in [
                format!("link add {port} type veth peer name eth{card} netns {holder}"),
                format!("link set {port} master {lan} up"),
            ] {
                let mut ip = enter(switch)?;
                ip.arg("ip").args(arguments.split(' '));
                run(ip)?;
            }
        }
        self.run(&["hostname", &format!("netns-{}", self.number)])?;
        self.run(&["mount", "-t", "tmpfs", "tmpfs", "/run"])?;
        self.run(&["mkdir", "-p", "/run/dbus", "/run/wireguard", "/run/clusteros/config"])?;
        let config = self.dir.join("config");
        self.run(&["mount", "--bind", path(&config)?, "/run/clusteros/config"])?;
        self.run(&["ip", "link", "set", "lo", "up"])?;
        for card in 0..lans.len() {
            self.run(&["ip", "link", "set", &format!("eth{card}"), "up"])?;
        }

        let bus_config = self.dir.join("bus.conf");
        fs::write(&bus_config, bus_config_text(&self.policy))?;
        let mut bus = self.enter()?;
        bus.args(["dbus-daemon", "--nofork", "--nopidfile"])
            .arg(format!("--config-file={}", path(&bus_config)?));
        self.bus().start(bus, &self.dir.join("bus.log"))?;
        await_that("its D-Bus socket", || {
            Ok(self.run(&["test", "-S", "/run/dbus/system_bus_socket"]).is_ok())
        })
    }

    /// Name of the switch's port that a card hangs on.
    pub(crate) fn port(&self, card: usize) -> String {
        format!("port{}x{card}", self.number)
    }

    /// Writes the node's `cluster.toml`, as a person would on the config partition.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn provision(&self, cluster_toml: &str) -> Result<()> {
        fs::write(self.config_file(), cluster_toml).context("failed to write cluster.toml")
    }

    /// The node's `cluster.toml`, existing or not.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("config/cluster.toml")
    }

    /// Starts WireGuard (where the kernel has none) and the agent; fine when they run.
    ///
    /// # Errors
    /// When one of them does not start; names its log.
    pub fn start(&self) -> Result<()> {
        self.start_wireguard()?;
        if self.agent().pid().is_none() {
            self.start_agent().with_context(|| format!("see {}", self.agent_log().display()))?;
        }
        Ok(())
    }

    /// Starts WireGuard where the kernel has none; fine when it runs.
    ///
    /// # Errors
    /// When it does not start; names its log.
    pub fn start_wireguard(&self) -> Result<()> {
        if self.wireguard().pid().is_none() && !self.kernel_has_wireguard()? {
            let mut go = self.enter()?;
            // The product's unit runs it the same way.
            go.args(["wireguard-go", "--foreground", "cluster0"]).env("LOG_LEVEL", "error");
            go.env("WG_PROCESS_FOREGROUND", "1");
            self.wireguard().start(go, &self.dir.join("wireguard-go.log"))?;
            await_that("wireguard-go's socket", || {
                Ok(self.run(&["test", "-S", "/run/wireguard/cluster0.sock"]).is_ok())
            })
            .with_context(|| format!("see {}", self.dir.join("wireguard-go.log").display()))?;
        }
        Ok(())
    }

    /// Starts the agent, at the line if there is one, and does not wait for its word.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch_agent(&self, line: Option<&StartingLine>) -> Result<()> {
        self.agent().start(self.agent_command(line)?, &self.agent_log())
    }

    fn agent_command(&self, line: Option<&StartingLine>) -> Result<Command> {
        let mut agent = self.enter_at(line)?;
        agent.arg(self.bin_dir.join("cluster-agent")).arg("--state-dir").arg(self.dir.join("state")).args([
            "--interface-pattern",
            "eth*",
            "--keep-clock",
        ]);
        Ok(agent)
    }

    /// Starts the agent as systemd does, and waits for its word that it is ready.
    fn start_agent(&self) -> Result<()> {
        let file = env::temp_dir().join(format!("netns-notify-{}-{}", std::process::id(), self.number));
        let socket =
            UnixDatagram::bind(&file).with_context(|| format!("failed to bind `{}`", file.display()))?;
        let outcome = self.start_agent_that_tells(&socket, &file);
        fs::remove_file(&file)?;
        outcome
    }

    fn start_agent_that_tells(&self, socket: &UnixDatagram, file: &Path) -> Result<()> {
        let mut agent = self.agent_command(None)?;
        agent.env("NOTIFY_SOCKET", file).env("WATCHDOG_USEC", "2000000");
        self.agent().start(agent, &self.agent_log())?;
        socket.set_read_timeout(Some(LOOK_AGAIN))?;
        // Ready, what it does, and that its loop turns: without one of these systemd would end it.
        let mut awaited = vec!["READY=1", "STATUS=", "WATCHDOG=1"];
        await_that("word from its agent", || {
            ensure!(self.is_running(), "the agent ended");
            let mut buffer = [0; 4096];
            if let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                awaited.retain(|word| !text.lines().any(|line| line.starts_with(word)));
            }
            Ok(awaited.is_empty())
        })
        .with_context(|| format!("it did not say {awaited:?}"))
    }

    /// Ends the agent as systemd does; the mesh interface stays.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn stop(&self) -> Result<()> {
        self.agent().end(Signal::SIGTERM)
    }

    /// A power cut, as far as others can see: everything of the node ends at once. Its disk stays.
    ///
    /// # Errors
    /// When something cannot be signalled.
    pub fn kill(&self) -> Result<()> {
        self.agent().end(Signal::SIGKILL)?;
        self.wireguard().end(Signal::SIGKILL)?;
        // What the kernel holds, or has not yet cleaned up after the process, goes with the power too.
        if self.has_interface() {
            // Already gone is as good.
            let _ = self.run(&["ip", "link", "delete", "cluster0"]);
        }
        await_that("end of the mesh interface", || Ok(!self.has_interface()))?;
        self.run(&["rm", "-f", "/run/wireguard/cluster0.sock"]).map(drop)
    }

    fn has_interface(&self) -> bool {
        self.run(&["ip", "link", "show", "dev", "cluster0"]).is_ok()
    }

    /// Ends everything, namespaces included.
    pub(crate) fn remove(&self) -> Result<()> {
        self.stop()?;
        self.wireguard().end(Signal::SIGTERM)?;
        self.bus().end(Signal::SIGTERM)?;
        if let Some(holder) = self.holder().pid() {
            end_all_in_network_of(holder)?;
        }
        self.holder().end(Signal::SIGKILL)
    }

    /// Starts another program in the node, ended with it; its output goes to `NAME.log` in the node's folder.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn start_other(&self, name: &str, arguments: &[&str]) -> Result<()> {
        self.start_other_at(None, name, arguments)
    }

    /// The same, at the line if there is one.
    ///
    /// # Errors
    /// As there.
    pub fn start_other_at(&self, line: Option<&StartingLine>, name: &str, arguments: &[&str]) -> Result<()> {
        let mut command = self.enter_at(line)?;
        command.args(arguments);
        self.other(name).start(command, &self.log_of(name))
    }

    /// Ends what [`Node::start_other`] started; fine when it does not run.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn end_other(&self, name: &str) -> Result<()> {
        self.other(name).end(Signal::SIGKILL)
    }

    /// Process id of `agent`, `wireguard-go` or what [`Node::start_other`] started, while it runs.
    #[must_use]
    pub fn pid_of(&self, name: &str) -> Option<i32> {
        self.other(name).pid()
    }

    /// Log of `agent`, `wireguard-go` or what [`Node::start_other`] started.
    #[must_use]
    pub fn log_of(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn other(&self, name: &str) -> Process {
        Process::at(self.dir.join(format!("{name}.pid")))
    }

    /// Whether the agent runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.agent().pid().is_some()
    }

    /// Runs a command in the node, to its end.
    ///
    /// # Errors
    /// When it cannot be run at all; its own failure is in the output's status.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.enter()?;
        command.args(arguments);
        command.output().with_context(|| format!("failed to run {arguments:?} in node {}", self.number))
    }

    /// A command ready to run in the node, with this terminal.
    ///
    /// # Errors
    /// When the node is not there.
    pub fn command(&self, arguments: &[String]) -> Result<Command> {
        let mut command = self.enter()?;
        match arguments.split_first() {
            Some((program, rest)) if program == "clusterctl" => {
                command.arg(self.bin_dir.join("clusterctl")).args(rest);
            }
            _ => {
                command.args(arguments);
            }
        }
        Ok(command)
    }

    /// Runs `clusterctl` in the node.
    ///
    /// # Errors
    /// As [`Node::output`].
    pub fn clusterctl(&self, arguments: &[&str]) -> Result<Output> {
        let clusterctl = self.bin_dir.join("clusterctl");
        let mut all = vec![path(&clusterctl)?];
        all.extend_from_slice(arguments);
        self.output(&all)
    }

    /// The members as this node sees them.
    ///
    /// # Errors
    /// With what `clusterctl` said.
    pub fn members(&self) -> Result<Vec<Member>> {
        let output = self.clusterctl(&["nodes", "--json"])?;
        ensure!(
            output.status.success(),
            "clusterctl nodes on node {}: {}",
            self.number,
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).context("clusterctl nodes --json printed something else")
    }

    /// `clusterctl VERB --json` as a value.
    ///
    /// # Errors
    /// With what `clusterctl` said.
    pub fn json(&self, verb: &str) -> Result<serde_json::Value> {
        let output = self.clusterctl(&[verb, "--json"])?;
        ensure!(
            output.status.success(),
            "clusterctl {verb} on node {}: {}",
            self.number,
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("clusterctl {verb} --json printed something else"))
    }

    /// Its address in the mesh.
    ///
    /// # Errors
    /// With what `clusterctl` said.
    pub fn address(&self) -> Result<String> {
        let identity = self.json("identity")?;
        identity["address"].as_str().map(str::to_owned).context("clusterctl identity has no `address`")
    }

    /// Pulls the network cable, or plugs it in.
    ///
    /// # Errors
    /// When the node is not there.
    pub fn set_link(&self, up: bool) -> Result<()> {
        self.run(&["ip", "link", "set", "eth0", if up { "up" } else { "down" }]).map(drop)
    }

    /// Adds an address with prefix length to an interface.
    ///
    /// # Errors
    /// When the node is not there.
    pub fn give_address(&self, interface: &str, address: &str) -> Result<()> {
        self.run(&["ip", "address", "add", address, "dev", interface]).map(drop)
    }

    /// Bytes that an interface has sent since it was made.
    ///
    /// # Errors
    /// When the node or the interface is not there.
    pub fn sent(&self, interface: &str) -> Result<u64> {
        let links: serde_json::Value =
            serde_json::from_str(&self.run(&["ip", "-json", "-stats", "link", "show", "dev", interface])?)?;
        links[0]["stats64"]["tx"]["bytes"].as_u64().context("ip(8) told no counters")
    }

    /// A file of the agent's state directory.
    #[must_use]
    pub fn state_file(&self, name: &str) -> PathBuf {
        self.dir.join("state").join(name)
    }

    /// What the agent logged so far.
    #[must_use]
    pub fn agent_log(&self) -> PathBuf {
        self.log_of("agent")
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.enter()?;
        command.args(arguments);
        run(command)
    }

    fn kernel_has_wireguard(&self) -> Result<bool> {
        let made = self.run(&["ip", "link", "add", "probe", "type", "wireguard"]).is_ok();
        if made {
            self.run(&["ip", "link", "delete", "probe"])?;
        }
        Ok(made)
    }

    fn enter(&self) -> Result<Command> {
        enter(self.holder_pid()?)
    }

    fn enter_at(&self, line: Option<&StartingLine>) -> Result<Command> {
        let mut command = self.enter()?;
        if let Some(line) = line {
            line.hold(&mut command);
        }
        Ok(command)
    }

    fn holder_pid(&self) -> Result<i32> {
        self.holder().pid().with_context(|| format!("node {} does not exist", self.number))
    }

    fn holder(&self) -> Process {
        self.other("holder")
    }

    fn bus(&self) -> Process {
        self.other("bus")
    }

    fn wireguard(&self) -> Process {
        self.other("wireguard-go")
    }

    fn agent(&self) -> Process {
        self.other("agent")
    }
}

/// A command prefix that runs in the namespaces of `pid`.
pub(crate) fn enter(pid: i32) -> Result<Command> {
    let mut command = command("nsenter")?;
    command.arg(format!("--target={pid}")).args(["--net", "--mount", "--uts"]);
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--preserve-credentials"]);
    }
    command.arg("--");
    Ok(command)
}

/// What was started by `exec` and still runs would keep the namespaces. Only this node's processes are in its network.
fn end_all_in_network_of(holder: i32) -> Result<()> {
    let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let ours = network(&holder.to_string()).context("the node's network is gone")?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some((name, pid)) = name.to_str().and_then(|name| Some((name, name.parse::<i32>().ok()?))) else {
            continue;
        };
        if pid != holder && network(name).as_ref() == Some(&ours) {
            send(pid, Signal::SIGKILL)?;
        }
    }
    Ok(())
}

/// A holder is started through nsenter(1) and unshare(1); once it has become sleep(1), its namespaces are its own.
pub(crate) fn is_settled(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("`{}` is not UTF-8", path.display()))
}

/// What is waited for is another process's doing and sends no event, so it is looked at often.
pub(crate) fn await_that(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while !holds()? {
        if Instant::now() > deadline {
            bail!("no {what} after {} s", START_TIMEOUT.as_secs());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// A system bus with the defaults of Debian's `system.conf`, plus the product's policy, which is thereby tested too.
fn bus_config_text(policy: &Path) -> String {
    format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus.Properties"/>
  </policy>
  <include>{}</include>
  <!-- No user of its own here: the agent is root of its namespace. -->
  <policy user="root">
    <allow own="org.clusteros.Agent1"/>
  </policy>
</busconfig>
"#,
        policy.display()
    )
}
