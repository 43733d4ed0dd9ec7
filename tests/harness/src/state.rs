// SPDX-License-Identifier: Apache-2.0
//! Where a cluster keeps its files, and what it remembers between runs of its daemon.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::accel::Accel;

/// `sun_path` of `struct sockaddr_un` holds 108 bytes with the final zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// The longest file name below a VM's folder.
const LONGEST_SOCKET: &str = "vm999/console.sock";

/// The folder of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterDir {
    name: String,
    root: PathBuf,
}

impl ClusterDir {
    /// The folder of the cluster called `name`, under `$XDG_CACHE_HOME` or `~/.cache`.
    pub fn new(name: &str) -> Result<Self> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            !name.is_empty() && name.len() <= 24 && name.chars().all(allowed),
            "cluster name `{name}` will not do: use up to 24 of a-z, 0-9 and -"
        );
        let root = cache_dir()?.join("vm").join(name);
        let longest = root.join(LONGEST_SOCKET).as_os_str().len();
        ensure!(
            longest <= SOCKET_PATH_MAX,
            "`{}` is too deep for Unix sockets ({longest} bytes, {SOCKET_PATH_MAX} allowed): \
             set XDG_CACHE_HOME to a shorter path",
            root.display()
        );
        Ok(Self { name: name.to_owned(), root })
    }

    /// All clusters that have a folder, by name.
    pub fn all() -> Result<Vec<Self>> {
        let Ok(entries) = fs::read_dir(cache_dir()?.join("vm")) else { return Ok(Vec::new()) };
        let mut names: Vec<_> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names.iter().filter_map(|name| Self::new(name).ok()).collect())
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// The daemon's control socket.
    pub fn control(&self) -> PathBuf {
        self.root.join("control.sock")
    }
    /// Locked by the daemon while it lives.
    pub fn lock(&self) -> PathBuf {
        self.root.join("daemon.lock")
    }
    /// What the daemon had to say.
    pub fn daemon_log(&self) -> PathBuf {
        self.root.join("daemon.log")
    }
    /// Images with their cluster.toml, shared by VMs.
    pub fn bases(&self) -> PathBuf {
        self.root.join("base")
    }
    /// The files of VM `vm`.
    pub fn vm(&self, vm: u32) -> VmDir {
        VmDir { root: self.root.join(format!("vm{vm}")) }
    }

    /// True while the cluster's daemon lives.
    pub fn is_alive(&self) -> bool {
        let Ok(file) = fs::File::open(self.lock()) else { return false };
        matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock))
    }

    /// Waits until a daemon that has been told to end has done so.
    pub fn wait_until_free(&self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while self.is_alive() {
            ensure!(
                start.elapsed() < limit,
                "cluster `{}` still runs after {} s (`{}`): end it with `vm-cluster clean`",
                self.name,
                limit.as_secs(),
                self.daemon_log().display()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Reads what the cluster consists of; `None` if it was never made.
    pub fn load(&self) -> Result<Option<ClusterSpec>> {
        let path = self.root.join("cluster.json");
        match fs::read(&path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(|| {
                format!("`{}` is damaged: remove it with `vm-cluster clean`", path.display())
            })?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("failed to read `{}`", path.display())),
        }
    }

    /// Writes what the cluster consists of.
    pub fn save(&self, spec: &ClusterSpec) -> Result<()> {
        let path = self.root.join("cluster.json");
        let temporary = self.root.join("cluster.json.new");
        fs::write(&temporary, serde_json::to_vec_pretty(spec)?)
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| format!("failed to write `{}`", path.display()))
    }

    /// Removes everything the cluster has on disk; refuses while its daemon lives.
    pub fn remove(&self) -> Result<()> {
        if self.is_alive() {
            bail!("cluster `{}` is running: stop it first with `vm-cluster stop`", self.name);
        }
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("failed to remove `{}`", self.root.display()))
            }
            _ => Ok(()),
        }
    }
}

/// The files of one VM.
#[derive(Debug, Clone)]
pub struct VmDir {
    root: PathBuf,
}

impl VmDir {
    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// The disk: a qcow2 overlay over a base.
    pub fn disk(&self) -> PathBuf {
        self.root.join("disk.qcow2")
    }
    /// The second disk, if there is one: an overlay too.
    pub fn second_disk(&self) -> PathBuf {
        self.root.join("disk2.qcow2")
    }
    /// The firmware's variables, qcow2 so that snapshots hold them.
    pub fn variables(&self) -> PathBuf {
        self.root.join("vars.qcow2")
    }
    /// Everything ttyS0 ever printed, over all boots.
    pub fn serial(&self) -> PathBuf {
        self.root.join("serial.log")
    }
    /// The same of ttyS1, if there is one.
    pub fn second_serial(&self) -> PathBuf {
        self.root.join("serial2.log")
    }
    /// The writes to the disk, if they are recorded.
    pub fn writes(&self) -> PathBuf {
        self.root.join("writes.log")
    }
    /// What QEMU printed.
    pub fn qemu_log(&self) -> PathBuf {
        self.root.join("qemu.log")
    }
    /// QEMU's machine protocol.
    pub fn qmp(&self) -> PathBuf {
        self.root.join("qmp.sock")
    }
    /// The guest agent's channel.
    pub fn guest(&self) -> PathBuf {
        self.root.join("guest.sock")
    }
    /// The cable from card `nic` to the switch.
    pub fn net(&self, nic: u8) -> PathBuf {
        match nic {
            1 => self.root.join("net.sock"),
            nic => self.root.join(format!("net{nic}.sock")),
        }
    }
    /// hvc0, for the interactive shell.
    pub fn console(&self) -> PathBuf {
        self.root.join("console.sock")
    }
}

/// What a cluster consists of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// The image it was made from, as given.
    pub image: PathBuf,
    /// The commit of the working tree when it was made, if known.
    pub commit: Option<String>,
    /// The cluster.toml that VMs get by default.
    pub cluster_toml: String,
    /// Decides which frames lossy links lose.
    pub seed: u64,
    /// How guests run here.
    pub accel: Accel,
    /// What a new VM gets.
    pub shape: Shape,
    /// The VMs by number.
    pub vms: BTreeMap<u32, VmSpec>,
    /// The VMs that were on when the snapshot was taken.
    pub snapshot: Option<Vec<u32>>,
}

/// The hardware of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// What the disk is attached to.
    pub bus: Bus,
    /// Another disk.
    #[serde(default)]
    pub second: Option<Second>,
    /// Its network cards, each by the number of the LAN that it is plugged into.
    #[serde(default = "one_card")]
    pub lans: Vec<u8>,
    /// SMBIOS UUID; none by default, because that is what cheap boards have.
    pub uuid: Option<String>,
    /// An i6300esb watchdog that resets the VM.
    pub watchdog: bool,
    /// What the hardware clock says at power on, as QEMU's `-rtc base=`.
    pub rtc: Option<String>,
    /// A second serial port, ttyS1.
    #[serde(default)]
    pub second_serial: bool,
    /// SMBIOS strings of type 11, which hypervisors and firmware give to a system.
    #[serde(default)]
    pub oem_strings: Vec<String>,
    /// Every write to the first disk is recorded, from power on ([`crate::cuts`]); such a VM cannot be saved.
    #[serde(default)]
    pub log_writes: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory_mib: 1024,
            disk_bytes: DISK_BYTES,
            bus: Bus::Virtio,
            second: None,
            lans: one_card(),
            uuid: None,
            watchdog: false,
            rtc: None,
            second_serial: false,
            oem_strings: Vec::new(),
            log_writes: false,
        }
    }
}

impl Shape {
    /// Its network cards: number, from 1, and LAN.
    pub fn nics(&self) -> impl Iterator<Item = (u8, u8)> {
        (1..=u8::MAX).zip(self.lans.iter().copied())
    }
}

fn one_card() -> Vec<u8> {
    vec![1]
}

/// A second disk that carries an image, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Second {
    /// What it is attached to.
    pub bus: Bus,
    /// Its size in bytes.
    pub bytes: u64,
    /// The raw image below it; none: the same as below the first.
    pub base: Option<PathBuf>,
    /// The firmware tries it before the first disk.
    pub boots: bool,
}

/// 14.4 GiB in whole sectors: the smallest disk that is sold as 16 GB, and the least that Cluster-OS needs.
pub const DISK_BYTES: u64 = 15_461_882_368;

/// What a disk is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Bus {
    Virtio,
    Sata,
    Nvme,
    /// USB 3.
    Usb,
    /// A USB 2 socket of the same controller, which firmware and Linux number differently. For a machine's only disk.
    Usb2,
}

/// One VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmSpec {
    /// The raw image below the VM's disk.
    pub base: PathBuf,
    /// Its hardware.
    pub shape: Shape,
    /// Where its cluster.toml came from, for people: `default`, `none` or a path.
    pub provisioning: String,
}

/// `$XDG_CACHE_HOME/cluster-os` or `~/.cache/cluster-os`.
pub fn cache_dir() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    Ok(base.join("cluster-os"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_names_that_leave_the_folder() {
        for name in ["", "..", "a/b", "Upper", "a-name-that-is-far-too-long-to-use"] {
            assert!(ClusterDir::new(name).is_err(), "{name}");
        }
        assert!(ClusterDir::new("default").is_ok());
    }
}
