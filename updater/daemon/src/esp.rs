// SPDX-License-Identifier: Apache-2.0
//! The folder of boot entries, and the ESP that it is on.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use cluster_updater_core::Esp;
use nix::{
    errno::Errno,
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statvfs::statvfs,
    unistd::syncfs,
};

/// Boot entries are in this folder of the ESP.
pub const ENTRIES: &str = "EFI/Linux";

/// The folder of boot entries.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder of the ESP that is mounted at `esp`.
    #[must_use]
    pub fn of(esp: &Path) -> Self {
        Self(esp.join(ENTRIES))
    }

    fn open(&self, name: &str, options: &mut fs::OpenOptions) -> io::Result<File> {
        options.custom_flags(libc::O_NOFOLLOW).open(self.0.join(name))
    }
}

impl Esp for Folder {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                files.push((name, metadata.len()));
            }
        }
        files.sort();
        Ok(files)
    }

    fn free(&mut self) -> io::Result<u64> {
        let state = statvfs(&self.0)?;
        Ok(state.blocks_available() * state.fragment_size())
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut options = File::options();
        options.write(true).create(offset == 0).truncate(offset == 0);
        self.open(name, &mut options)?.write_all_at(bytes, offset)
    }

    fn sync_file(&mut self, name: &str) -> io::Result<()> {
        let file = self.open(name, File::options().read(true))?;
        file.sync_all()?;
        posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok(())
    }

    fn read(&mut self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.open(name, File::options().read(true))?.read_exact_at(buffer, offset)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.0.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        let folder = File::open(&self.0)?;
        folder.sync_all()?;
        syncfs(&folder)?;
        // syncfs() of FAT writes and does not tell the drive to keep it; fsync() does.
        folder.sync_all()
    }
}

/// The ESP, writable for as long as this lives, in this process's mount namespace only. Everybody else keeps seeing `/efi`
/// read-only.
#[derive(Debug)]
pub struct Mounted {
    place: PathBuf,
    /// Keeps the automounted `/efi` from going and coming back while the file system is writable: it would be refused.
    _held: Option<File>,
}

impl Mounted {
    /// Mounts the ESP on `device` at `place`, which is made; `efi` is where everybody else sees it.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn new(device: &Path, place: &Path, efi: &Path) -> Result<Self> {
        fs::create_dir_all(place).with_context(|| format!("failed to make `{}`", place.display()))?;
        // Looking mounts it. Where nothing is to be mounted, nothing needs to be held.
        let held = File::open(efi.join("EFI")).ok();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let failed = || format!("failed to mount the ESP (`{}`)", device.display());
        // Read-only first, as it is at /efi: the kernel has one state for all mounts of a file system.
        let first = |flags| mount(Some(device), place, Some("vfat"), flags, Some("umask=0077"));
        match first(flags | MsFlags::MS_RDONLY) {
            // Writable still: an updater was killed while /efi was mounted.
            Err(Errno::EBUSY) => first(flags),
            outcome => outcome,
        }
        .with_context(failed)?;
        let mounted = Self { place: place.to_owned(), _held: held };
        mount(None::<&str>, place, None::<&str>, flags | MsFlags::MS_REMOUNT, Some("umask=0077"))
            .with_context(|| format!("failed to make the ESP (`{}`) writable", device.display()))?;
        Ok(mounted)
    }

    /// Its boot entries.
    #[must_use]
    pub fn folder(&self) -> Folder {
        Folder::of(&self.place)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let flags = MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV
            | MsFlags::MS_NOEXEC
            | MsFlags::MS_REMOUNT
            | MsFlags::MS_RDONLY;
        if let Err(error) = mount(None::<&str>, &self.place, None::<&str>, flags, Some("umask=0077")) {
            tracing::warn!(%error, "the ESP could not be made read-only again");
        }
        if let Err(error) = umount2(&self.place, MntFlags::empty()) {
            tracing::warn!(%error, "the ESP could not be unmounted");
        }
    }
}
