// SPDX-License-Identifier: Apache-2.0
//! Programs of the image, and parts of a disk as file systems. All mounts are in this process's own mount namespace and go with
//! it; loop devices go with the mounts.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_updater_core::gpt::Partition;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// When it cannot be run, or fails: with what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("failed to run `{name}`"))?;
    if !output.status.success() {
        bail!("`{name}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{name}` printed something that is no text"))
}

/// From here on what this thread mounts is seen by it and its children only.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("failed to make a mount namespace")?;
    // What systemd mounts at /efi still comes in.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .context("failed to keep mounts to this process")
}

/// One file for each loop device that is held: nothing about a loop device says whose it is.
const HELD: &str = "/run/cluster-install-loops";

/// Where it is noted that a loop device is ours.
fn note(device: &Path) -> Option<PathBuf> {
    Some(Path::new(HELD).join(device.file_name()?))
}

/// Whether an installation made this loop device, and was killed before it could remove it.
pub(crate) fn is_ours(device: &Path) -> bool {
    note(device).is_some_and(|note| note.exists())
}

/// Lets go of parts of a disk that an earlier attempt held when it was killed.
///
/// # Errors
/// When losetup fails, or somebody else's loop device is over the disk.
pub(crate) fn let_go(disk: &Path) -> Result<()> {
    let mut list = Command::new("losetup");
    for device in output(list.args(["--noheadings", "--output", "NAME", "--associated"]).arg(disk))?.lines() {
        let device = Path::new(device.trim());
        ensure!(is_ours(device), "loop device {} came over {} meanwhile", device.display(), disk.display());
        output(Command::new("losetup").arg("--detach").arg(device))?;
    }
    match fs::remove_dir_all(HELD) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove `{HELD}`"))
        }
        _ => Ok(()),
    }
}

/// A part of a disk as a device of its own. The disk has no partition table yet, and is held open by nobody but us.
pub(crate) struct Part {
    device: PathBuf,
}

impl Part {
    pub(crate) fn new(disk: &Path, partition: &Partition) -> Result<Self> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--offset", &partition.offset.to_string()]);
        losetup.args(["--sizelimit", &partition.bytes.to_string()]).arg(disk);
        let device = output(&mut losetup)?;
        let device = device.trim();
        ensure!(device.starts_with("/dev/loop"), "losetup names no device: `{device}`");
        let part = Self { device: device.into() };
        if let Some(note) = note(&part.device) {
            fs::create_dir_all(HELD)
                .and_then(|()| fs::write(note, []))
                .with_context(|| format!("failed to note a loop device in `{HELD}`"))?;
        }
        Ok(part)
    }

    pub(crate) fn device(&self) -> &Path {
        &self.device
    }

    /// What was written to it is on the disk, whose own pages in memory are not flushed by this.
    pub(crate) fn close(self) -> Result<()> {
        let flushed = File::open(&self.device).and_then(|device| device.sync_all());
        flushed.with_context(|| format!("failed to flush `{}`", self.device.display()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Err(error) = output(Command::new("losetup").arg("--detach").arg(&self.device)) {
            tracing::warn!(error = format!("{error:#}"), "a loop device was left");
        } else if let Some(note) = note(&self.device) {
            let _ = fs::remove_file(note);
        }
    }
}

/// A mounted part of a disk.
pub(crate) struct Mounted {
    place: PathBuf,
    part: Option<Part>,
}

impl Mounted {
    /// Mounts `part` at `place`, which is made.
    pub(crate) fn new(part: Part, kind: &str, place: &Path, read_only: bool) -> Result<Self> {
        fs::create_dir_all(place).with_context(|| format!("failed to make `{}`", place.display()))?;
        let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        if read_only {
            flags |= MsFlags::MS_RDONLY;
        }
        mount(Some(part.device()), place, Some(kind), flags, None::<&str>)
            .with_context(|| format!("failed to mount the new {kind} file system"))?;
        Ok(Self { place: place.to_owned(), part: Some(part) })
    }

    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Unmounts it, which writes all of it to the disk.
    pub(crate) fn close(mut self) -> Result<()> {
        umount2(&self.place, MntFlags::empty())
            .with_context(|| format!("failed to unmount `{}`", self.place.display()))?;
        self.part.take().map_or(Ok(()), Part::close)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.part.is_some() {
            // It failed before; what is on it does not count any more.
            let _ = umount2(&self.place, MntFlags::MNT_DETACH);
        }
    }
}
