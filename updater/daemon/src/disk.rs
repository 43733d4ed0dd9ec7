// SPDX-License-Identifier: Apache-2.0
//! A disk, or an image of one in a file.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom},
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use cluster_updater_core::Disk;
use nix::{
    fcntl::{Flock, PosixFadviseAdvice, posix_fadvise},
    libc,
};

use crate::esp;

/// udev holds its own lock for moments only; whatever else holds it for longer must not block the updater.
const OTHERS: Duration = Duration::from_secs(30);

/// An open disk. While it is open for writing, udev keeps its hands off (systemd's block device locking), and so does a
/// second updater.
pub struct BlockDisk {
    file: File,
    _lock: Option<Flock<File>>,
    bytes: u64,
    sector: u64,
}

impl BlockDisk {
    /// Opens a disk for reading.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, sector: u64) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("failed to open disk `{}`", path.display()))?;
        Self::new(file, sector, None)
    }

    /// Opens a disk for writing, and locks it.
    ///
    /// # Errors
    /// When it cannot be opened or locked.
    pub fn open_to_write(path: &Path, sector: u64) -> Result<Self> {
        let failed = || format!("failed to open disk `{}` for writing", path.display());
        let file = File::options().read(true).write(true).open(path).with_context(failed)?;
        let lock = esp::lock(file.try_clone()?, OTHERS).with_context(|| {
            format!("failed to lock disk `{}`: does another program partition it?", path.display())
        })?;
        Self::new(file, sector, Some(lock))
    }

    /// The same for a disk that nobody may use meanwhile: the kernel refuses one that is mounted or part of something else.
    ///
    /// # Errors
    /// When it cannot be opened or locked, or is in use.
    pub fn open_alone(path: &Path, sector: u64) -> Result<Self> {
        let file = File::options().read(true).write(true).custom_flags(libc::O_EXCL).open(path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => {
                anyhow!("disk `{}` is in use (`lsblk` shows by what)", path.display())
            }
            _ => anyhow!(error).context(format!("failed to open disk `{}` for writing", path.display())),
        })?;
        let lock = esp::lock(file.try_clone()?, OTHERS).with_context(|| {
            format!("failed to lock disk `{}`: does another program partition it?", path.display())
        })?;
        Self::new(file, sector, Some(lock))
    }

    fn new(mut file: File, sector: u64, lock: Option<Flock<File>>) -> Result<Self> {
        let bytes = file.seek(SeekFrom::End(0)).context("failed to find the disk's size")?;
        Ok(Self { file, _lock: lock, bytes, sector })
    }
}

impl Disk for BlockDisk {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn sector(&self) -> u64 {
        self.sector
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        // What is read back must come from the medium, not from memory.
        posix_fadvise(self.file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok(())
    }
}
