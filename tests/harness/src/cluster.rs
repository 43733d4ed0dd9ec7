// SPDX-License-Identifier: Apache-2.0
//! Making a cluster, and starting its daemon.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use cluster_agent_core::JoinKey;

use crate::accel;
use crate::client::Client;
use crate::daemon;
use crate::image;
use crate::protocol::Request;
use crate::qemu::FIRMWARE;
use crate::state::{ClusterDir, ClusterSpec, Shape, VmSpec};

/// First argument of a process that is to be a daemon, see [`daemon_main`].
const DAEMON: &str = "cluster-daemon";
/// What a VM's disk may grow to in everyday use: journal, state, and a snapshot of its memory.
const DISK_GROWTH_MIB: u64 = 1024;
/// How long a daemon may take to say that it is ready; on a busy machine it takes a second.
const DAEMON_STARTS: Duration = Duration::from_secs(60);
/// QEMU's own share of memory per VM, emulation's translation cache included.
const QEMU_MIB: u64 = 200;

/// What a new cluster is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The raw image.
    pub image: PathBuf,
    /// Hardware of each VM.
    pub shape: Shape,
    /// The cluster.toml of all VMs.
    pub cluster_toml: String,
    /// Decides which frames lossy links lose.
    pub seed: u64,
}

/// How a VM is provisioned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provisioning {
    /// As the others of its cluster.
    Cluster,
    /// Not at all.
    None,
    /// With this cluster.toml; the name is for people.
    File {
        /// Where it came from.
        name: String,
        /// What it says.
        text: String,
    },
}

/// A cluster.toml with a new join key.
pub fn new_cluster_toml(name: &str) -> Result<String> {
    let mut random = [0; 37];
    getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    let key = JoinKey::generate(&random).to_text();
    Ok(format!("# Made by vm-cluster.\n[cluster]\nname = \"{name}\"\njoin_key = \"{key}\"\n"))
}

/// Makes a new cluster without VMs and starts its daemon. The cluster ends when the connection that is returned does,
/// unless [`Request::Release`] is sent on it.
pub fn create(dir: &ClusterDir, plan: &Plan, vms: usize) -> Result<Client> {
    if dir.is_alive() {
        let name = dir.name();
        bail!(
            "cluster `{name}` is running already: see `vm-cluster status`, end it with `vm-cluster clean`, \
             or set CLUSTER=NAME for another one beside it"
        );
    }
    check_host(dir, plan, vms)?;
    let accel = accel::probe()?;
    dir.remove()?;
    fs::create_dir_all(dir.root()).with_context(|| format!("failed to make `{}`", dir.root().display()))?;
    dir.save(&ClusterSpec {
        image: fs::canonicalize(&plan.image)?,
        commit: commit(),
        cluster_toml: plan.cluster_toml.clone(),
        seed: plan.seed,
        accel,
        shape: plan.shape.clone(),
        vms: BTreeMap::new(),
        snapshot: None,
    })?;
    let client = open(dir)?;
    client.request(&Request::Hold)?;
    Ok(client)
}

/// Connects to a cluster that exists, starting its daemon if necessary.
pub fn open(dir: &ClusterDir) -> Result<Client> {
    if !dir.is_alive() && dir.load()?.is_some() {
        start_daemon(dir)?;
    }
    Client::connect(dir)
}

/// Adds a VM, switched off, and returns its number.
pub fn add(client: &Client, provisioning: &Provisioning, shape: Option<Shape>) -> Result<u32> {
    let cluster = client.spec()?;
    let vm = cluster.vms.keys().next_back().map_or(1, |last| last + 1);
    let (name, text) = match provisioning {
        Provisioning::Cluster => ("default".to_owned(), Some(cluster.cluster_toml.as_str())),
        Provisioning::None => ("none".to_owned(), None),
        Provisioning::File { name, text } => (name.clone(), Some(text.as_str())),
    };
    let base = image::base(&cluster.image, text, &client.dir().bases())?;
    let spec = VmSpec { base, shape: shape.unwrap_or(cluster.shape), provisioning: name };
    client.request(&Request::Define { vm, spec: Box::new(spec) })?;
    Ok(vm)
}

fn start_daemon(dir: &ClusterDir) -> Result<()> {
    let log = File::options().create(true).append(true).open(dir.daemon_log())?;
    let mut child = Command::new(env::current_exe()?)
        .args([DAEMON, dir.name()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        // Not in the terminal's foreground: Ctrl-C is for whoever holds the cluster.
        .process_group(0)
        .spawn()
        .context("failed to start the daemon")?;
    let output = child.stdout.take().context("no pipe")?;
    let (send, said) = std::sync::mpsc::channel();
    // Ends when the daemon writes its line, closes its output, or is killed below.
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(output).read_line(&mut line);
        let _ = send.send(line);
    });
    let line = said.recv_timeout(DAEMON_STARTS);
    if line.as_ref().is_ok_and(|line| line.trim() == "ready") {
        return Ok(());
    }
    // It may have ended by itself.
    let _ = child.kill();
    child.wait()?;
    let log = fs::read_to_string(dir.daemon_log()).unwrap_or_default();
    let last = log.lines().next_back().unwrap_or("it said nothing");
    match line {
        Ok(_) => bail!("the daemon did not start: {last}"),
        Err(_) => bail!("the daemon did not start within {} s: {last}", DAEMON_STARTS.as_secs()),
    }
}

/// To be called first in `main` of every program that starts clusters: the same program, called by [`create`] or
/// [`open`], is the daemon.
pub fn daemon_main() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != DAEMON {
        return None;
    }
    let name = arguments.next().and_then(|name| OsString::into_string(name).ok()).unwrap_or_default();
    let run = || {
        daemon::run(ClusterDir::new(&name)?, || {
            let mut out = std::io::stdout();
            // Whoever started the daemon may be gone.
            let _ = out.write_all(b"ready\n").and_then(|()| out.flush());
        })
    };
    Some(match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

/// Refuses, before anything is started, what this host cannot do.
fn check_host(dir: &ClusterDir, plan: &Plan, vms: usize) -> Result<()> {
    let image = &plan.image;
    ensure!(
        image.exists(),
        "there is no image `{}`: build it with `just image`, or name one with --image",
        image.display()
    );
    image::partition(image, image::CONFIG_PARTITION)?;
    ensure!(
        Path::new(FIRMWARE).exists(),
        "there is no firmware `{FIRMWARE}`: install Debian's package `ovmf`"
    );

    let vms = vms as u64;
    let needed = vms * (plan.shape.memory_mib + QEMU_MIB);
    let free = memory_available_mib()?;
    ensure!(
        needed <= free,
        "{vms} VMs of {} MiB need about {needed} MiB of memory, {free} MiB are available: \
         start fewer, or smaller ones with --memory",
        plan.shape.memory_mib
    );

    fs::create_dir_all(dir.root()).with_context(|| format!("failed to make `{}`", dir.root().display()))?;
    use std::os::unix::fs::MetadataExt;
    let image_mib = fs::metadata(image)?.blocks() * 512 / (1024 * 1024);
    let needed = image_mib + vms * DISK_GROWTH_MIB;
    let disk = nix::sys::statvfs::statvfs(dir.root())?;
    let free = disk.blocks_available() * disk.fragment_size() / (1024 * 1024);
    ensure!(
        needed <= free,
        "{vms} VMs need about {needed} MiB below `{}`, {free} MiB are free: \
         make room, or set XDG_CACHE_HOME to a folder that has it",
        dir.root().display()
    );
    Ok(())
}

fn memory_available_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|number| number.parse().ok())
        .context("/proc/meminfo does not say MemAvailable")?;
    Ok(kib / 1024)
}

fn commit() -> Option<String> {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster_agent_core::Settings;

    #[test]
    fn a_new_cluster_toml_is_valid_and_has_its_own_key() {
        let one = new_cluster_toml("lab").expect("made");
        assert_eq!(Settings::parse(&one).expect("valid").cluster_name, "lab");
        assert_ne!(one, new_cluster_toml("lab").expect("made"));
    }
}
