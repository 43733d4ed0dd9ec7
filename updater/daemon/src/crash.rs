// SPDX-License-Identifier: Apache-2.0
//! What shows that the boot before this one ended by a crash: a record of the kernel's, or a watchdog that says that it reset the
//! machine.
//!
//! systemd-pstore moves the kernel's records from the firmware to `/var` early in each boot, where they lie for two weeks; what it
//! does not know how to move, or had no room for, stays. So which boot saw a record first is written down, and none counts in a
//! later one, wherever it lies then. No clock is asked, which may be wrong in any of these boots.

use std::{collections::BTreeMap, fmt, fs, io, path::Path, time::UNIX_EPOCH};

use anyhow::{Context as _, Result};
use tracing::warn;

use crate::{paths::Paths, store::Store};

/// WDIOF_CARDRESET of linux/watchdog.h.
const CARD_RESET: u32 = 0x20;
/// systemd-pstore makes a folder for each crash, and some of one for each part of it.
const DEPTH: u32 = 3;
/// What systemd-pstore makes of the parts beside it.
const TEXT: &str = "dmesg.txt";

/// The trace that the boot before `boot` left of a crash. To be asked in every boot, or old records look new.
///
/// # Errors
/// When it cannot be known.
pub fn trace(paths: &Paths, store: &Store, boot: &str) -> Result<Option<String>> {
    let mut records = Vec::new();
    for folder in [&paths.pstore, &paths.crashes] {
        list(folder, DEPTH, &mut records)
            .with_context(|| format!("failed to look for records of crashes in `{}`", folder.display()))?;
    }
    let text = store.crashes();
    let known: BTreeMap<Record, &str> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(boot, record)| Some((Record::parse(record)?, boot)))
        .collect();
    let first = first_seen(&known, &records, &paths.pstore.display().to_string(), boot);
    let lines: String =
        records.iter().zip(&first).map(|(record, boot)| format!("{boot} {record}\n")).collect();
    // What is here now says enough of this boot, and in the next it looks new once more.
    if lines != text
        && let Err(error) = store.note_crashes(&lines)
    {
        warn!(error = format!("{error:#}"), "which records of crashes there are is not noted");
    }
    let new = records.iter().zip(&first).find(|(_, first)| **first == boot);
    Ok(new.map(|(record, _)| format!("there is `{record}`")).or_else(|| reset(&paths.watchdogs)))
}

/// A record by its path and its time: the kernel uses some names again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    path: String,
    time: u64,
}

impl Record {
    fn parse(text: &str) -> Option<Self> {
        let (path, time) = text.rsplit_once(" of ")?;
        Some(Self { path: path.to_owned(), time: time.parse().ok()? })
    }

    fn folder_and_name(&self) -> (&str, &str) {
        self.path.rsplit_once('/').unwrap_or(("", &self.path))
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.path, self.time)
    }
}

/// The boot that saw each of `records` first. systemd-pstore keeps the name of what it moves: what has gone from the firmware and
/// is new in `/var` was seen by the boot that saw it there.
fn first_seen<'a>(
    known: &BTreeMap<Record, &'a str>,
    records: &[Record],
    firmware: &str,
    boot: &'a str,
) -> Vec<&'a str> {
    let is_in_firmware = |record: &Record| Path::new(&record.path).starts_with(firmware);
    let gone = known.iter().filter(|(record, _)| is_in_firmware(record) && !records.contains(record));
    let gone: BTreeMap<&str, &str> = gone.map(|(record, boot)| (record.folder_and_name().1, *boot)).collect();
    let moved = |record: &Record| {
        let is_new = !is_in_firmware(record) && !known.contains_key(record);
        is_new.then(|| gone.get(record.folder_and_name().1).copied()).flatten()
    };
    let first = |record: &Record| {
        let (folder, name) = record.folder_and_name();
        let beside = || {
            let mut others = records.iter().filter(|other| other.folder_and_name().0 == folder);
            others.find_map(moved).filter(|_| name == TEXT)
        };
        known.get(record).copied().or_else(|| moved(record)).or_else(beside).unwrap_or(boot)
    };
    records.iter().map(first).collect()
}

/// Files below a folder that may not be there.
fn list(folder: &Path, depth: u32, found: &mut Vec<Record>) -> io::Result<()> {
    let Some(entries) = if_there(fs::read_dir(folder))? else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        // systemd-pstore may move it meanwhile.
        let Some(metadata) = if_there(entry.metadata())? else { continue };
        if !metadata.is_dir() {
            let time = metadata.modified()?.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            found.push(Record { path: entry.path().display().to_string().escape_debug().to_string(), time });
        } else if depth > 0 {
            list(&entry.path(), depth - 1, found)?;
        }
    }
    Ok(())
}

fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

fn reset(watchdogs: &Path) -> Option<String> {
    let has_reset = |watchdog: &fs::DirEntry| {
        let status = fs::read_to_string(watchdog.path().join("bootstatus")).unwrap_or_default();
        status.trim().parse::<u32>().is_ok_and(|status| status & CARD_RESET != 0)
    };
    let watchdog = fs::read_dir(watchdogs).into_iter().flatten().flatten().find(has_reset)?;
    Some(format!("{} reset the machine", watchdog.file_name().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, bytes: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    struct Lab {
        dir: tempfile::TempDir,
        paths: Paths,
        store: Store,
    }

    impl Lab {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            let paths = Paths {
                pstore: at("pstore"),
                crashes: at("crashes"),
                watchdogs: at("watchdogs"),
                ..Paths::default()
            };
            let store = Store::open(&at("state")).unwrap();
            Self { dir, paths, store }
        }

        fn trace(&self, boot: &str) -> Option<String> {
            trace(&self.paths, &self.store, boot).unwrap()
        }
    }

    #[test]
    fn a_crash_is_told_by_what_kernel_or_watchdog_left() {
        let lab = Lab::new();
        assert_eq!(lab.trace("1"), None, "there is neither");
        write(lab.dir.path(), "watchdogs/watchdog0/bootstatus", b"0\n");
        // Overheated is no reset by the watchdog.
        write(lab.dir.path(), "watchdogs/watchdog1/bootstatus", b"1\n");
        assert_eq!(lab.trace("1"), None);
        write(lab.dir.path(), "watchdogs/watchdog1/bootstatus", b"33\n");
        assert_eq!(lab.trace("1").as_deref(), Some("watchdog1 reset the machine"));
        write(lab.dir.path(), "pstore/dmesg-efi_pstore-1", b"Oops");
        let trace = lab.trace("1").unwrap();
        assert!(trace.contains("pstore/dmesg-efi_pstore-1 of "), "{trace}");
    }

    #[test]
    fn a_record_counts_in_the_boot_that_sees_it_first_and_in_no_later_one() {
        let lab = Lab::new();
        write(lab.dir.path(), "pstore/dmesg-erst-1", b"Oops");
        write(lab.dir.path(), "crashes/17/001/dmesg.txt", b"Oops");
        for again in 0..2 {
            assert!(lab.trace("1").is_some(), "asked {again} times before in this boot");
        }
        assert_eq!(lab.trace("2"), None);
        write(lab.dir.path(), "crashes/18/001/dmesg.txt", b"Oops");
        let trace = lab.trace("3").unwrap();
        assert!(trace.contains("crashes/18/001/dmesg.txt"), "{trace}");
        assert_eq!(lab.trace("4"), None);
    }

    /// `/var` was full when its boot began, say.
    #[test]
    fn a_record_that_is_moved_a_boot_later_does_not_count_again() {
        let lab = Lab::new();
        let file = "dmesg-efi_pstore-170000000001001";
        write(lab.dir.path(), &format!("pstore/{file}"), b"Oops");
        assert!(lab.trace("1").is_some());
        fs::remove_file(lab.dir.path().join("pstore").join(file)).unwrap();
        write(lab.dir.path(), &format!("crashes/170000000/001/{file}"), b"Oops");
        write(lab.dir.path(), "crashes/170000000/001/dmesg.txt", b"Oops");
        assert_eq!(lab.trace("2"), None);
        assert_eq!(lab.trace("3"), None);
        // Moved in the same boot, it still counts; and what is moved with it is new.
        write(lab.dir.path(), "pstore/dmesg-efi_pstore-180000000001001", b"Oops");
        assert!(lab.trace("4").is_some());
        fs::rename(
            lab.dir.path().join("pstore/dmesg-efi_pstore-180000000001001"),
            lab.dir.path().join("crashes/dmesg-efi_pstore-180000000001001"),
        )
        .unwrap();
        assert!(lab.trace("4").is_some());
        write(lab.dir.path(), "crashes/190000000/001/dmesg-efi_pstore-190000000001001", b"Oops");
        let trace = lab.trace("5").unwrap();
        assert!(trace.contains("190000000"), "{trace}");
    }

    #[test]
    fn where_nothing_can_be_noted_what_is_there_decides() {
        let lab = Lab::new();
        write(lab.dir.path(), "pstore/dmesg-erst-1", b"Oops");
        assert!(lab.trace("1").is_some());
        // Written under this name first.
        fs::create_dir(lab.dir.path().join("state/crashes.new")).unwrap();
        assert_eq!(lab.trace("2"), None, "it is old");
        write(lab.dir.path(), "pstore/dmesg-erst-2", b"Oops");
        assert!(lab.trace("2").is_some());
        fs::write(lab.dir.path().join("state/crashes"), [0xff]).unwrap();
        assert!(lab.trace("2").is_some(), "nobody knows what is old");
    }
}
