// SPDX-License-Identifier: Apache-2.0
//! `cluster-update install`: moves this node to another disk of this machine. Core says in which order
//! ([`cluster_updater_core::install`]); this is the one match over all effects.
//!
//! It is a program that root runs and that ends, not a part of the updater, which may write to one disk and stays that way
//! (docs/adr/0010-install.md).

mod copy;
pub mod disks;
pub mod mark;
mod raw;
mod tools;

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use cluster_updater_core::{
    Disk as _, Esp as _, Version,
    gpt::{Copy, Guid, Partition},
    install::{
        Effect, STEPS, State,
        layout::{self, Layout, PARTITIONS},
        target::judge,
    },
    slot::{Slots, good_entry},
};
use nix::sys::{
    signal::{SigSet, Signal},
    stat::stat,
    statvfs::statvfs,
};
use serde::Serialize;

use self::{
    copy::{Passes, Wanted},
    disks::Found,
    mark::Mark,
    tools::{Mounted, Part, let_go, output, own_mounts},
};
use crate::{
    disk::BlockDisk,
    esp::{ENTRIES, Folder as Entries},
    host::Host,
    paths::Paths,
    slots_lock::{self, Held},
    writer,
};

const AGENT: &str = "cluster-agent.service";
const CONFIG: &str = "/run/clusteros/config";
const VAR: &str = "/var";
/// What this node is: keys, membership, machine id, SSH host key. Below `/var`.
const IDENTITY: &str = "lib/clusteros";
/// For mounts, which nobody else sees.
const WORK: &str = "/run/cluster-install";
/// Folders of the ESP that go to the new one as they are, beside the boot entry.
const BOOT: [&str; 3] = ["EFI/BOOT", "EFI/systemd", "loader"];
/// What every firmware starts.
const BOOT_LOADER: &str = "EFI/BOOT/BOOTX64.EFI";
/// The boot loader's; nobody may use it twice.
const RANDOM_SEED: &str = "random-seed";

/// What is going to happen: nothing is written by making one.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The disk.
    pub disk: Found,
    /// Its partitions.
    pub layout: Layout,
    /// What runs, and moves.
    pub version: Version,
    /// The slot that it runs from, and will run from.
    pub slot: char,
    /// The version in the other slot, which does not move.
    pub left_behind: Option<Version>,
    /// Bytes in `/var`.
    pub used: u64,
    slots: Slots,
    entry: String,
    host: Host,
    paths: Paths,
}

/// What is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// What was on the disk is written over.
    Wiping,
    /// The root image is copied.
    Root,
    /// It is read back.
    CheckingRoot,
    /// File systems are made, boot files are copied and read back.
    Boot,
    /// `/var` is copied.
    Var,
    /// The agent is stopped, and what changed meanwhile is copied.
    Changes,
    /// `/var` is read back.
    CheckingVar,
    /// The partition table is written: the node moves.
    Table,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// What is under way.
    pub phase: Phase,
    /// Bytes done of this phase.
    pub done: u64,
    /// Bytes of this phase; 0 where nobody knows.
    pub total: u64,
}

impl Plan {
    /// Looks at everything and decides; `erase` gives up what is on the disk.
    ///
    /// # Errors
    /// When this node cannot move to the disk that is named.
    pub fn new(host: Host, paths: Paths, named: &Path, erase: bool) -> Result<Self> {
        ensure_here(&paths.moved)?;
        let disk = disks::choose(disks::list(&host.disk)?, named)?;
        let model = writer::read_table(&mut BlockDisk::open(&host.disk, host.sector)?)?;
        let slots = Slots::find(&model, &host.under_root)?;
        let used = statvfs(VAR).context("failed to look at /var")?;
        let used = (used.blocks() - used.blocks_free()) * used.fragment_size();
        judge(&disk.target, layout::needed(&model, used), erase)?;

        slots.holds(&host.running)?;
        ensure!(
            slots.active.hash() == Some(host.root_hash),
            "the slot under the root device is not labelled with the root hash that the kernel was started with"
        );
        let entries =
            Entries::of(&paths.efi).list().context("failed to list the boot entries in /efi/EFI/Linux")?;
        let (entry, _) = good_entry(&entries, &host.running)?;
        let loader = paths.efi.join(BOOT_LOADER);
        ensure!(loader.exists(), "there is no boot loader at `{}`", loader.display());
        ensure!(
            is_mounted(Path::new(CONFIG)),
            "the config partition is not mounted at {CONFIG}, so cluster.toml cannot be copied: `clusterctl status` says why"
        );
        let (bytes, sector) = (disk.target.bytes, disk.target.sector);
        let layout = layout::layout(&model, &slots, bytes, sector, used, &fresh()?)?;
        Ok(Self {
            layout,
            version: host.running.clone(),
            slot: slots.active_name,
            left_behind: slots.other.version(),
            used,
            slots,
            entry,
            disk,
            host,
            paths,
        })
    }

    /// Carries it out.
    ///
    /// # Errors
    /// When anything fails. Then this node stays where it is, or the error says that nobody knows.
    pub fn carry_out(&self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let mut work = Work::begin(self)?;
        for effect in STEPS {
            if let Err(error) = work.carry_out(effect, progress) {
                // Whoever boots the old disk finds out what its mark does not say yet.
                if effect == Effect::Mark(State::Moved) {
                    tracing::warn!(error = format!("{error:#}"), "the mark on the old disk is not final yet");
                    return Ok(());
                }
                return Err(work.give_up(error));
            }
        }
        Ok(())
    }
}

/// Holds for as long as a plan is looked at and carried out.
///
/// # Errors
/// While slots are changed or somebody else installs.
pub fn alone(paths: &Paths) -> Result<Held> {
    slots_lock::own(&paths.slots_lock)
}

/// Whether this node still runs from this disk.
///
/// # Errors
/// When it has moved; the error says where to.
pub fn ensure_here(moved: &Path) -> Result<()> {
    match mark::read(moved)? {
        Some(mark) => bail!("{}", mark.text),
        None => Ok(()),
    }
}

fn is_mounted(place: &Path) -> bool {
    let device = |path: &Path| stat(path).ok().map(|found| found.st_dev);
    place.parent().is_some_and(|parent| device(place).is_some() && device(place) != device(parent))
}

/// UUIDs that nobody has: of the disk, and of each partition.
fn fresh() -> Result<[Guid; PARTITIONS + 1]> {
    let mut fresh = [Guid([0; 16]); PARTITIONS + 1];
    for Guid(uuid) in &mut fresh {
        getrandom::fill(uuid).map_err(|error| anyhow!("no randomness: {error}"))?;
        // RFC 9562, version 4.
        uuid[6] = uuid[6] & 0x0f | 0x40;
        uuid[8] = uuid[8] & 0x3f | 0x80;
    }
    Ok(fresh)
}

struct Work<'a> {
    plan: &'a Plan,
    /// Nobody else can mount it, or write to it by a program that asks first.
    disk: BlockDisk,
    mark: Mark,
    work: PathBuf,
    is_marked: bool,
    is_stopped: bool,
    /// Keeps the ESP from being unmounted while it is read.
    _efi: File,
}

impl<'a> Work<'a> {
    fn begin(plan: &'a Plan) -> Result<Self> {
        let target = &plan.disk.target;
        let disk = BlockDisk::open_alone(Path::new(&target.path), target.sector)?;
        // It was looked at before somebody was asked. Meanwhile another disk may have come under its name, or somebody used it.
        let now = disks::choose(disks::list(&plan.host.disk)?, Path::new(&target.path))?;
        ensure!(
            now == plan.disk && disk.bytes() == target.bytes,
            "{target} is not what it was when it was looked at: run this again"
        );
        let efi = plan.paths.efi.join("EFI");
        let efi = File::open(&efi).with_context(|| format!("failed to open `{}`", efi.display()))?;
        own_mounts()?;
        let_go(Path::new(&target.path))?;
        let work = PathBuf::from(WORK);
        if work.exists() {
            fs::remove_dir_all(&work).with_context(|| format!("failed to remove `{WORK}`"))?;
        }
        fs::create_dir_all(&work).with_context(|| format!("failed to make `{WORK}`"))?;
        let mark = Mark::new(&plan.disk, plan.layout.table.disk());
        Ok(Self { plan, disk, mark, work, is_marked: false, is_stopped: false, _efi: efi })
    }

    fn carry_out(&mut self, effect: Effect, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let plan = self.plan;
        let (layout, hash) = (&plan.layout, plan.host.root_hash);
        let mut at =
            |phase, done: u64, total: u64| progress(Progress { phase, done: done.min(total), total });
        match effect {
            Effect::Wipe => {
                at(Phase::Wiping, 0, 0);
                raw::wipe(&mut self.disk, layout)
            }
            Effect::Flush => self.disk.flush().context("failed to flush the new disk"),
            Effect::WriteRoot => {
                let mut running = BlockDisk::open(&plan.host.disk, plan.host.sector)?;
                let (from, to) = (&plan.slots.active, &layout.slot);
                raw::write_root((&mut running, from), (&mut self.disk, to), hash, &mut |done, total| {
                    at(Phase::Root, done, total);
                })
            }
            Effect::CheckRoot => raw::check_root(&mut self.disk, &layout.slot, hash, &mut |done, total| {
                at(Phase::CheckingRoot, done, total);
            }),
            Effect::MakeFileSystems => {
                at(Phase::Boot, 0, 0);
                self.make(&layout.esp, &["mkfs.vfat", "-F", "32", "-S", "512", "-n", "ESP"])?;
                self.make(&layout.config, &["mkfs.vfat", "-F", "32", "-S", "512", "-n", "CLUSTER-OS"])?;
                self.make(&layout.var, &["mkfs.ext4", "-q", "-F", "-m", "0", "-L", "var"])
            }
            Effect::CopyBoot => self.boot_files(false, copy::files),
            Effect::CheckBoot => self.boot_files(true, copy::compare),
            Effect::CopyVar => self.copy_var(&mut |done| at(Phase::Var, done, plan.used)),
            Effect::StopAgent => {
                at(Phase::Changes, 0, 0);
                self.is_stopped = true;
                output(Command::new("systemctl").args(["stop", AGENT])).map(drop)
            }
            Effect::CopyChanges => self.copy_var(&mut |_| {}),
            Effect::CheckVar => {
                at(Phase::CheckingVar, 0, 0);
                self.check_var()
            }
            Effect::Mark(state) => {
                // Whoever loses patience now would leave a node whose agent does not start.
                hold_signals()?;
                self.mark.set(state);
                self.is_marked = true;
                mark::write(&plan.paths.moved, &self.mark)
            }
            Effect::PrepareTable => {
                at(Phase::Table, 0, 0);
                raw::prepare_table(&mut self.disk, layout)
            }
            Effect::Commit => raw::write_header(&mut self.disk, layout, Copy::Primary),
            Effect::CompleteTable => raw::write_header(&mut self.disk, layout, Copy::Backup),
            Effect::CheckTable => raw::check_table(&mut self.disk, layout),
        }
    }

    fn make(&self, partition: &Partition, mkfs: &[&str]) -> Result<()> {
        let part = self.part(partition)?;
        output(Command::new(mkfs[0]).args(&mkfs[1..]).arg(part.device()))?;
        part.close()
    }

    fn part(&self, partition: &Partition) -> Result<Part> {
        Part::new(Path::new(&self.plan.disk.target.path), partition)
    }

    fn mount(&self, partition: &Partition, kind: &str, read_only: bool) -> Result<Mounted> {
        Mounted::new(self.part(partition)?, kind, &self.work.join("place"), read_only)
    }

    /// Does `each` to every folder of the boot, its place on the new disk, and the names of what moves.
    fn boot_files(
        &self,
        read_only: bool,
        each: impl Fn(&Path, &Path, Wanted<'_>) -> Result<()>,
    ) -> Result<()> {
        let no_seed = |name: &OsStr| name != RANDOM_SEED;
        let efi = &self.plan.paths.efi;
        let esp = self.mount(&self.plan.layout.esp, "vfat", read_only)?;
        for folder in BOOT {
            if efi.join(folder).is_dir() {
                each(&efi.join(folder), &esp.place().join(folder), &no_seed)?;
            }
        }
        each(&efi.join(ENTRIES), &esp.place().join(ENTRIES), &|name| name == self.plan.entry.as_str())?;
        esp.close()?;
        let config = self.mount(&self.plan.layout.config, "vfat", read_only)?;
        each(Path::new(CONFIG), config.place(), &no_seed)?;
        config.close()
    }

    fn copy_var(&self, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let var = self.mount(&self.plan.layout.var, "ext4", false)?;
        Passes { from: Path::new(VAR), work: &self.work }.run(var.place(), progress)?;
        // A check of the file system asks for it.
        fs::create_dir_all(var.place().join("lost+found"))?;
        var.close()
    }

    fn check_var(&self) -> Result<()> {
        let part = self.part(&self.plan.layout.var)?;
        output(Command::new("e2fsck").args(["-f", "-n"]).arg(part.device()))
            .context("the new file system of /var is damaged: the new disk is failing")?;
        part.close()?;
        let var = self.mount(&self.plan.layout.var, "ext4", true)?;
        copy::compare(&Path::new(VAR).join(IDENTITY), &var.place().join(IDENTITY), &|name| {
            name != "moved" && name != "moved.new"
        })?;
        var.close()
    }

    /// Takes back what is more than a copy, and says what holds then.
    fn give_up(&mut self, error: anyhow::Error) -> anyhow::Error {
        if self.is_marked {
            let taken_back = raw::revoke(&mut self.disk, &self.plan.layout)
                .and_then(|()| mark::remove(&self.plan.paths.moved));
            if let Err(why) = taken_back {
                return error.context(format!(
                    "the installation failed at its last step, and could not be taken back ({why:#}). This node's agent is stopped; \
                     restart, and the node finds out from which disk it runs"
                ));
            }
        }
        if self.is_stopped
            && let Err(why) = output(Command::new("systemctl").args(["start", AGENT]))
        {
            return error
                .context(format!("the installation failed, and the agent did not start again ({why:#})"));
        }
        error.context("the installation failed; this node stays where it is, and can be installed again")
    }
}

/// The last steps take seconds. A terminal that goes, or an impatient key, does not end this between them: at most it ends a
/// program that one of them runs, and then all is taken back.
fn hold_signals() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("failed to hold signals off")
}
