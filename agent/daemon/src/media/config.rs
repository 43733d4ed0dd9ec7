// SPDX-License-Identifier: Apache-2.0
//! cluster.toml in the FAT of a `CLUSTER-OS` partition, without mounting it.
//!
//! FAT knows no atomic replacement, but a sector is written whole or not at all. The new file is first written beside the
//! old one, under another name; then one sector of the directory turns the names over; then the old file's space is
//! given back. A cut in between leaves one whole file under the right name, and at worst some space that `fsck.vfat` finds.

use std::io::{self, Read as _, Write as _};

use anyhow::{Context as _, Result};
use cluster_agent_core::{consts::MAX_CLUSTER_TOML, contents};
use fatfs::{Dir, FileSystem, FsOptions, ReadWriteSeek};

use super::{
    Storage,
    fat::{Clock, Window},
};
use crate::paths::CLUSTER_TOML;

/// Carries the new content until the names are turned over; what an earlier cut left there is removed.
const NEW: &str = "cluster.new";
/// What a person is told whose partition cannot be used.
const DAMAGED: &str = "the FAT of the CLUSTER-OS partition cannot be used: it is damaged, format the partition as FAT with the \
                       label CLUSTER-OS (`mkfs.vfat -n CLUSTER-OS`), or write the image again";

/// The FAT file system in `length` bytes of `storage` from `start`.
#[derive(Debug)]
pub struct Config<'a, S> {
    storage: &'a S,
    start: u64,
    length: u64,
    clock: &'static Clock,
}

impl<'a, S: Storage> Config<'a, S> {
    /// Nothing is read yet.
    pub fn new(storage: &'a S, start: u64, length: u64) -> Self {
        Self { storage, start, length, clock: Clock::SYSTEM }
    }

    /// What cluster.toml holds now, up to one byte more than it may have; `None` without a file.
    ///
    /// # Errors
    /// When the medium or its FAT cannot be read.
    pub fn read(&self) -> Result<Option<Vec<u8>>> {
        let read = || -> io::Result<Option<Vec<u8>>> {
            let filesystem = FileSystem::new(self.window(), FsOptions::new())?;
            let file = match filesystem.root_dir().open_file(CLUSTER_TOML) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            };
            let mut bytes = Vec::new();
            file.take(MAX_CLUSTER_TOML as u64 + 1).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        };
        self.check_kind()?;
        read().context(DAMAGED)
    }

    /// Other file systems are named: the partition is whole, and what is on it may be wanted.
    fn check_kind(&self) -> Result<()> {
        let mut begins = vec![0; contents::HEAD.min(usize::try_from(self.length).unwrap_or(contents::HEAD))];
        self.storage.read_at(&mut begins, self.start).context("failed to read the CLUSTER-OS partition")?;
        match contents::name(&begins) {
            Some(name) if name != "FAT" => anyhow::bail!(
                "the CLUSTER-OS partition holds {name}, not FAT: nothing was changed. Format it as FAT with the label CLUSTER-OS \
                 (`mkfs.vfat -n CLUSTER-OS`), or write the image again"
            ),
            _ => Ok(()),
        }
    }

    /// Replaces cluster.toml, or adds it, flushes, and reads back what the medium has.
    ///
    /// # Errors
    /// When something cannot be written, or is not what was written when it is read back.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        self.lay_beside(bytes).context("failed to write into the CLUSTER-OS partition")?;
        self.turn_over().context("failed to write into the CLUSTER-OS partition")?;
        let there = self.read()?;
        anyhow::ensure!(
            there.as_deref() == Some(bytes),
            "cluster.toml was written and reads back differently: do not use this stick or disk, it does not keep what is \
             written to it"
        );
        Ok(())
    }

    /// The tables first: a cut leaves space that belongs to no file.
    fn lay_beside(&self, bytes: &[u8]) -> io::Result<()> {
        let (mut window, end_of_tables) = self.change(|root| {
            remove(root, NEW)?;
            let mut file = root.create_file(NEW)?;
            file.write_all(bytes)?;
            file.flush()
        })?;
        window.commit_before(end_of_tables)?;
        window.commit_from(end_of_tables)
    }

    /// The directory first: a cut leaves both files' space taken.
    fn turn_over(&self) -> io::Result<()> {
        let (mut window, end_of_tables) = self.change(|root| {
            remove(root, CLUSTER_TOML)?;
            root.rename(NEW, root, CLUSTER_TOML)
        })?;
        window.commit_from(end_of_tables)?;
        window.commit_before(end_of_tables)
    }

    /// Changes the root directory in memory; nothing is written yet.
    fn change(
        &self,
        with: impl FnOnce(&Dir<'_, &mut Window<'a, S>>) -> io::Result<()>,
    ) -> io::Result<(Window<'a, S>, u64)> {
        let mut window = self.window();
        let end_of_tables = window.end_of_tables()?;
        let filesystem = FileSystem::new(&mut window, FsOptions::new().time_provider(self.clock))?;
        with(&filesystem.root_dir())?;
        filesystem.unmount()?;
        Ok((window, end_of_tables))
    }

    fn window(&self) -> Window<'a, S> {
        Window::new(self.storage, self.start, self.length)
    }
}

fn remove<T: ReadWriteSeek>(root: &Dir<'_, T>, name: &str) -> io::Result<()> {
    match root.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use fatfs::{DateTime, FatType, FormatVolumeOptions, format_volume};

    use super::{super::memory::Memory, *};

    const START: u64 = 4096;

    /// A partition among other bytes, with a README and, if asked, a cluster.toml.
    fn medium(kind: FatType, mebibytes: u64, there: Option<&[u8]>) -> (Memory, u64) {
        let length = mebibytes << 20;
        let mut partition = io::Cursor::new(vec![0; length as usize]);
        format_volume(&mut partition, FormatVolumeOptions::new().fat_type(kind)).unwrap();
        {
            let filesystem = FileSystem::new(&mut partition, FsOptions::new()).unwrap();
            let root = filesystem.root_dir();
            root.create_file("README.txt").unwrap().write_all(b"keep me").unwrap();
            if let Some(bytes) = there {
                root.create_file(CLUSTER_TOML).unwrap().write_all(bytes).unwrap();
            }
        }
        let mut bytes = vec![0xa5; START as usize];
        bytes.extend(partition.into_inner());
        bytes.extend([0xa5; 4096]);
        (Memory::new(bytes), length)
    }

    fn check(memory: &Memory, length: u64) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes = memory.bytes.borrow();
        fs::write(file.path(), &bytes[START as usize..(START + length) as usize]).unwrap();
        let output = Command::new("fsck.vfat").arg("-n").arg(file.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { String::new() } else { text }
    }

    fn readme(memory: &Memory, length: u64) -> Vec<u8> {
        let filesystem = FileSystem::new(Window::new(memory, START, length), FsOptions::new()).unwrap();
        let mut text = Vec::new();
        filesystem.root_dir().open_file("README.txt").unwrap().read_to_end(&mut text).unwrap();
        text
    }

    #[test]
    fn writes_into_every_kind_of_fat_and_touches_nothing_else() {
        for (kind, mebibytes) in [(FatType::Fat12, 4), (FatType::Fat16, 64), (FatType::Fat32, 64)] {
            let (memory, length) = medium(kind, mebibytes, None);
            let config = Config::new(&memory, START, length);
            assert_eq!(config.read().unwrap(), None);
            let long = vec![b'x'; MAX_CLUSTER_TOML];
            for content in [b"first".as_slice(), b"", &long, b"last"] {
                config.write(content).unwrap();
                assert_eq!(config.read().unwrap().as_deref(), Some(content));
                assert_eq!(check(&memory, length), "", "{kind:?}, {} bytes", content.len());
            }
            assert_eq!(readme(&memory, length), b"keep me");
            let bytes = memory.bytes.borrow();
            let outside = [&bytes[..START as usize], &bytes[(START + length) as usize..]].concat();
            assert!(
                outside.iter().all(|byte| *byte == 0xa5),
                "{kind:?}: bytes outside the partition changed"
            );
        }
    }

    #[test]
    fn the_file_is_dated_and_the_same_moment_gives_the_same_bytes() {
        let written = || {
            let (memory, length) = medium(FatType::Fat16, 64, Some(b"old"));
            // 2026-01-02 03:04:06
            let clock: &Clock = &Clock(|| 1_767_323_046);
            Config { clock, ..Config::new(&memory, START, length) }.write(b"new").unwrap();
            (memory, length)
        };
        let (memory, length) = written();
        let filesystem = FileSystem::new(Window::new(&memory, START, length), FsOptions::new()).unwrap();
        let entry =
            filesystem.root_dir().iter().map(Result::unwrap).find(|one| one.file_name() == CLUSTER_TOML);
        let entry = entry.unwrap();
        for DateTime { date, time } in [entry.modified(), entry.created()] {
            assert_eq!((date.year, date.month, date.day), (2026, 1, 2));
            assert_eq!((time.hour, time.min, time.sec), (3, 4, 6));
        }
        assert!(*memory.bytes.borrow() == *written().0.bytes.borrow());
    }

    #[test]
    fn pulled_at_any_write_it_holds_the_old_file_or_the_new_one() {
        let (old, new) = (vec![b'o'; 3000], vec![b'n'; 5000]);
        for kind in [FatType::Fat16, FatType::Fat32] {
            let (whole, length) = medium(kind, 64, Some(&old));
            let before = whole.bytes.borrow().clone();
            Config::new(&whole, START, length).write(&new).unwrap();
            let mut seen = [false; 2];
            for cut in 0..whole.writes.get() {
                whole.bytes.borrow_mut().copy_from_slice(&before);
                whole.writes_left.set(Some(cut));
                assert!(Config::new(&whole, START, length).write(&new).is_err(), "write {cut}");
                whole.writes_left.set(None);
                let there = Config::new(&whole, START, length).read().unwrap();
                assert!(there.as_deref() == Some(&old) || there.as_deref() == Some(&new), "{kind:?}, {cut}");
                seen[usize::from(there.as_deref() == Some(&new))] = true;
                // Whoever plugs it in again ends well.
                Config::new(&whole, START, length).write(&new).unwrap();
                assert_eq!(Config::new(&whole, START, length).read().unwrap().as_deref(), Some(&new[..]));
                assert_eq!(readme(&whole, length), b"keep me");
            }
            assert_eq!(seen, [true, true], "{kind:?}: both sides of the turn were met");
        }
    }

    #[test]
    fn a_damaged_or_foreign_file_system_is_named() {
        let blank = Memory::new(vec![0; 1 << 20]);
        let error = Config::new(&blank, 0, 1 << 20).read().unwrap_err();
        assert!(error.to_string().contains("write the image again"), "{error}");
        // A root directory that is its own continuation never ends.
        let (circle, length) = medium(FatType::Fat32, 64, None);
        let table = {
            let bytes = circle.bytes.borrow();
            let reserved = u16::from_le_bytes([bytes[START as usize + 14], bytes[START as usize + 15]]);
            START as usize + usize::from(reserved) * 512
        };
        circle.bytes.borrow_mut()[table + 8..table + 12].copy_from_slice(&2u32.to_le_bytes());
        let full = (START as usize..circle.bytes.borrow().len()).step_by(32);
        let root = {
            let mut window = Window::new(&circle, START, length);
            START as usize + window.end_of_tables().unwrap() as usize
        };
        // No entry of it is the last.
        for at in full.filter(|at| (root..root + 4096).contains(at)) {
            circle.bytes.borrow_mut()[at] = b'A';
        }
        let error = Config::new(&circle, START, length).read().unwrap_err();
        assert!(format!("{error:#}").contains("circles"), "{error:#}");
    }

    #[test]
    fn a_file_that_other_systems_wrote_is_found() {
        let (memory, length) = medium(FatType::Fat16, 64, None);
        {
            let mut window = Window::new(&memory, START, length);
            {
                let filesystem = FileSystem::new(&mut window, FsOptions::new()).unwrap();
                filesystem.root_dir().create_file("Cluster.TOML").unwrap().write_all(b"theirs").unwrap();
            }
            window.commit_from(0).unwrap();
        }
        let config = Config::new(&memory, START, length);
        assert_eq!(config.read().unwrap().as_deref(), Some(b"theirs".as_slice()));
        config.write(b"ours").unwrap();
        assert_eq!(config.read().unwrap().as_deref(), Some(b"ours".as_slice()));
        assert_eq!(check(&memory, length), "");
    }
}
