// SPDX-License-Identifier: Apache-2.0
//! The mark on the old disk: which disk this node has moved to. While it is there, cluster-agent.service does not start.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use cluster_updater_core::{
    gpt::{GptError, Guid},
    install::{Ruling, Sight, State, settle, target::Target},
};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::disks::{self, Found};
use crate::{
    disk::BlockDisk,
    store::{unfinished, write_renamed},
    writer,
};

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// How far it came.
    pub state: State,
    /// For the console, one line. `clusterctl` shows it.
    pub text: String,
    /// UUID of the new disk's partition table.
    pub table: Guid,
    /// `/dev/nvme0n1`, then.
    pub path: String,
    /// To know the disk again: its model,
    pub model: String,
    /// its serial number,
    pub serial: String,
    /// its size,
    pub bytes: u64,
    /// and, where it has no serial number, its place in the machine.
    pub place: PathBuf,
}

impl Mark {
    /// Of a disk that the node moves to.
    #[must_use]
    pub fn new(disk: &Found, table: Guid) -> Self {
        let Target { path, model, serial, bytes, .. } = disk.target.clone();
        let mut mark = Self {
            state: State::Moving,
            text: String::new(),
            table,
            path,
            model,
            serial,
            bytes,
            place: disk.place.clone(),
        };
        mark.set(State::Moving);
        mark
    }

    /// Says something else.
    pub fn set(&mut self, state: State) {
        self.state = state;
        let target = Target {
            path: self.path.clone(),
            model: self.model.clone(),
            serial: self.serial.clone(),
            ..Target::default()
        };
        self.text = match state {
            State::Moving => format!(
                "this node was being installed to {target} when it was interrupted, and may be running from there: attach that \
                 disk and restart"
            ),
            State::Moved => {
                format!(
                    "this node was installed to {target} and runs from there: switch off, remove this disk, and switch on"
                )
            }
        };
    }

    fn is(&self, disk: &Found) -> bool {
        let target = &disk.target;
        let same = target.model == self.model && target.serial == self.serial && target.bytes == self.bytes;
        same && (!self.serial.is_empty() || disk.place == self.place)
    }

    /// What is seen of its disk; `table_of` reads the UUID of a disk's partition table, if it has a valid one. A disk that cannot
    /// be read says nothing: it may well be the one that the node runs from.
    fn sight(&self, disks: &[Found], table_of: impl Fn(&Found) -> Result<Option<Guid>>) -> Sight {
        let (mut there, mut unread) = (false, false);
        for disk in disks.iter().filter(|disk| !disk.target.is_running) {
            match table_of(disk) {
                Ok(Some(table)) if table == self.table => return Sight::Table,
                Ok(_) => there |= self.is(disk),
                Err(error) => {
                    warn!(disk = disk.target.path, error = format!("{error:#}"), "a disk cannot be read");
                    unread |= self.is(disk);
                }
            }
        }
        if there && !unread { Sight::NoTable } else { Sight::Absent }
    }
}

/// The mark at `path`, if there is one.
///
/// # Errors
/// When it is there and cannot be understood.
pub fn read(path: &Path) -> Result<Option<Mark>> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("failed to read `{}`", path.display()))?,
    };
    serde_json::from_slice(&text).map(Some).with_context(|| {
        format!(
            "`{0}` says that this node has moved to another disk, but not to which: remove it if it has not",
            path.display()
        )
    })
}

/// Writes the mark; it is on the medium when this returns.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, mark: &Mark) -> Result<()> {
    write_renamed(path, &serde_json::to_vec_pretty(mark)?)?;
    sync_folder(path)
}

/// Takes the mark away, if there is one.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    // What a full disk or a power cut left of writing it.
    let _ = fs::remove_file(unfinished(path));
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove `{}`", path.display()))
        }
        _ => sync_folder(path),
    }
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().context("a mark without a folder")?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("failed to flush `{}`", folder.display()))
}

/// At boot, before the agent (cluster-moved.service): whether this disk is the node. `running` is the disk that was booted.
///
/// # Errors
/// When disks cannot be listed or `/var` cannot be written. The agent does not start then.
pub fn settle_at_boot(path: &Path, running: &Path) -> Result<()> {
    let Some(mark) = read(path)? else { return Ok(()) };
    // A disk that nobody knows again decides nothing: what a mark says is final, or waits for that disk.
    let disks = if mark.state == State::Moved { Vec::new() } else { disks::attached(running)? };
    settle_by(path, mark, &disks, table_of)
}

fn settle_by(
    path: &Path,
    mut mark: Mark,
    disks: &[Found],
    table_of: impl Fn(&Found) -> Result<Option<Guid>>,
) -> Result<()> {
    match settle(mark.state, mark.sight(disks, table_of)) {
        Ruling::Stays => {
            info!(
                disk = mark.path,
                "the installation to another disk was interrupted; this node stays where it is"
            );
            remove(path)
        }
        Ruling::Moved => {
            warn!(
                disk = mark.path,
                "this node runs from another disk; its agent is not started from this one"
            );
            if mark.state == State::Moved {
                return Ok(());
            }
            mark.set(State::Moved);
            write(path, &mark)
        }
        Ruling::Unknown => {
            warn!(
                disk = mark.path,
                serial = mark.serial,
                "this node may run from a disk that is not attached; its agent is not started before that is known"
            );
            Ok(())
        }
    }
}

fn table_of(disk: &Found) -> Result<Option<Guid>> {
    let mut device = BlockDisk::open(Path::new(&disk.target.path), disk.target.sector)?;
    match writer::read_table(&mut device) {
        Ok(table) => Ok(Some(table.disk())),
        Err(error) if matches!(error.downcast_ref(), Some(GptError::Invalid)) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    fn disk(serial: &str, place: &str) -> Found {
        let target = Target {
            path: "/dev/sdb".into(),
            model: "Model".into(),
            serial: serial.into(),
            bytes: 1 << 40,
            sector: 512,
            ..Target::default()
        };
        Found { target, place: place.into(), partitions: Vec::new() }
    }

    const OURS: Guid = Guid([7; 16]);

    /// What becomes of a mark for `marked` where `seen` is attached, with this table.
    fn after(marked: &Found, seen: &Found, table: Option<Guid>) -> Option<State> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("moved");
        let mark = Mark::new(marked, OURS);
        write(&path, &mark).unwrap();
        settle_by(&path, read(&path).unwrap().unwrap(), std::slice::from_ref(seen), |_| Ok(table)).unwrap();
        read(&path).unwrap().map(|mark| mark.state)
    }

    #[test]
    fn an_interrupted_move_is_settled_by_the_other_disk() {
        let new = disk("S1", "/sys/a");
        assert_eq!(after(&new, &new, Some(OURS)), Some(State::Moved));
        assert_eq!(after(&new, &new, None), None);
        assert_eq!(after(&new, &new, Some(Guid([8; 16]))), None);
        // In another socket, and behind an adapter that gives it another serial number.
        assert_eq!(after(&new, &disk("S1", "/sys/b"), None), None);
        assert_eq!(after(&new, &disk("S2", "/sys/b"), Some(OURS)), Some(State::Moved));
        // Another disk is no proof of anything.
        assert_eq!(after(&new, &disk("S2", "/sys/a"), None), Some(State::Moving));
    }

    #[test]
    fn a_disk_that_cannot_be_read_settles_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("moved");
        let new = disk("S1", "/sys/a");
        write(&path, &Mark::new(&new, OURS)).unwrap();
        let mark = || read(&path).unwrap().unwrap();
        let another = disk("S1", "/sys/b");
        let fails =
            |seen: &Found| if seen.place == new.place { bail!("input/output error") } else { Ok(None) };
        for disks in [vec![new.clone()], vec![another, new.clone()]] {
            settle_by(&path, mark(), &disks, fails).unwrap();
            assert_eq!(mark().state, State::Moving);
        }
    }

    #[test]
    fn a_disk_without_a_serial_number_is_known_by_its_place() {
        let new = disk("", "/sys/a");
        assert_eq!(after(&new, &new, None), None);
        assert_eq!(after(&new, &disk("", "/sys/b"), None), Some(State::Moving));
    }

    #[test]
    fn a_mark_that_is_final_stays_and_names_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("moved");
        let mut mark = Mark::new(&disk("S1", "/sys/a"), OURS);
        mark.set(State::Moved);
        write(&path, &mark).unwrap();
        settle_by(&path, mark.clone(), &[disk("S1", "/sys/a")], |_| Ok(None)).unwrap();
        assert_eq!(read(&path).unwrap(), Some(mark.clone()));
        assert!(mark.text.contains("/dev/sdb (Model, serial S1)"), "{}", mark.text);
        fs::write(&path, "{").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("remove it if it has not"));
    }
}
