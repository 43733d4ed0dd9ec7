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
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use cluster_updater_core::{Esp, entry};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, PosixFadviseAdvice, posix_fadvise},
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statvfs::statvfs,
    unistd::syncfs,
};

use crate::host::LOADER;

/// systemd-bless-boot.service holds the lock for moments only.
const OTHERS: Duration = Duration::from_secs(30);
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
        sync(&self.0)
    }
}

/// Everything that was done in a folder of the ESP is on the medium when this returns.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    let folder = File::open(folder)?;
    folder.sync_all()?;
    syncfs(&folder)?;
    // syncfs() of FAT writes and does not tell the drive to keep it; fsync() does.
    folder.sync_all()
}

/// Opens a file that is there to be locked. On a node systemd-tmpfiles has made it, and the updater could not.
pub(crate) fn lock_file(path: &Path) -> io::Result<File> {
    File::open(path).or_else(|_| File::create(path))
}

/// Locks a file that others hold for a short while. flock(2) waits without a limit or not at all.
pub(crate) fn lock(file: File, limit: Duration) -> io::Result<Flock<File>> {
    let begin = Instant::now();
    let mut file = file;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EAGAIN)) if begin.elapsed() < limit => file,
            Err((_, error)) => return Err(error.into()),
        };
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A variable of the boot loader (Boot Loader Interface): attributes and a string of UTF-16.
fn loader_variable(efivars: &Path, variable: &str) -> Option<String> {
    let bytes = fs::read(efivars.join(format!("{variable}-{LOADER}"))).ok()?;
    let text = bytes.get(4..).unwrap_or_default().as_chunks::<2>().0;
    let text: Vec<u16> = text.iter().map(|unit| u16::from_le_bytes(*unit)).collect();
    Some(String::from_utf16_lossy(&text).trim_end_matches('\0').to_owned())
}

/// The boot entry that runs, by the name that the boot loader gave it when it counted this boot.
#[must_use]
pub fn booted_entry(efivars: &Path) -> Option<String> {
    let path = loader_variable(efivars, "LoaderBootCountPath")?;
    path.rsplit(['\\', '/']).next().map(str::to_owned)
}

/// Folders below the ESP that are looked into, and files that are counted: a FAT may hold anything.
const DEPTH: usize = 5;
const MAX_OTHERS: usize = 1000;

/// Files on the ESP that are none of ours, by their paths, with their sizes.
#[must_use]
pub fn others(esp: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![(esp.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
            if metadata.is_dir() && depth < DEPTH {
                folders.push((path, depth + 1));
            } else if metadata.is_file() && found.len() < MAX_OTHERS {
                let name = path.strip_prefix(esp).unwrap_or(&path).to_string_lossy().into_owned();
                // FAT knows no case.
                if !entry::belongs(&name.to_lowercase()) {
                    found.push((name, metadata.len()));
                }
            }
        }
    }
    found
}

/// What was chosen by hand for the boot loader, past its own order: neither a trial nor the way back would be what it starts.
#[must_use]
pub fn chosen(efivars: &Path) -> Vec<String> {
    let mut chosen = Vec::new();
    for variable in ["LoaderEntryDefault", "LoaderEntryOneShot", "LoaderEntryPreferred"] {
        let Some(entry) = loader_variable(efivars, variable) else { continue };
        if !entry.is_empty() {
            let verb = if variable == "LoaderEntryOneShot" { "set-oneshot" } else { "set-default" };
            chosen.push(format!(
                "the boot loader is told to start `{entry}` whatever is staged ({variable}); \
                 `bootctl {verb} ''` takes that back"
            ));
        }
    }
    chosen
}

/// The ESP, writable for as long as this lives, in this process's mount namespace only. Everybody else keeps seeing `/efi`
/// read-only.
#[derive(Debug)]
pub struct Mounted {
    place: PathBuf,
    /// Unlocked after it was made read-only again.
    _lock: Flock<File>,
    /// Keeps the automounted `/efi` from going and coming back while the file system is writable: it would be refused.
    _held: Option<File>,
}

impl Mounted {
    /// Mounts the ESP on `device` at `place`, which is made; `efi` is where everybody else sees it. `lock` is held meanwhile:
    /// whether it is read-only is one state of all its mounts.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn new(device: &Path, place: &Path, efi: &Path, path: &Path) -> Result<Self> {
        let lock = lock_file(path).and_then(|file| self::lock(file, OTHERS)).with_context(|| {
            format!("failed to lock the ESP (`{}`): is it being written?", path.display())
        })?;
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
        let mounted = Self { place: place.to_owned(), _lock: lock, _held: held };
        mount(None::<&str>, place, None::<&str>, flags | MsFlags::MS_REMOUNT, Some("umask=0077"))
            .with_context(|| format!("failed to make the ESP (`{}`) writable", device.display()))?;
        Ok(mounted)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
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

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, bytes: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn files_of_others_are_found_wherever_they_lie() {
        let dir = tempfile::tempdir().unwrap();
        for ours in ["EFI/Linux/cluster-os_1.efi", "EFI/BOOT/BOOTX64.EFI", "loader/loader.conf"] {
            write(dir.path(), ours, b"ours");
        }
        write(dir.path(), "EFI/Linux/arch.efi", &[0; 10]);
        write(dir.path(), "System Volume Information/x", &[0; 3]);
        let mut found = others(dir.path());
        found.sort();
        let wanted = [("EFI/Linux/arch.efi".to_owned(), 10), ("System Volume Information/x".to_owned(), 3)];
        assert_eq!(found, wanted);
    }
}
