// SPDX-License-Identifier: Apache-2.0
//! What shows that the boot before this one ended by a crash: a record of the kernel's, or a watchdog that says that it reset the
//! machine.
//!
//! systemd-pstore moves the kernel's records from the firmware to `/var` early in each boot, where they lie for two weeks; what it
//! does not know how to move stays. So which boot saw a record first is written down, and none counts in a later one. No clock is
//! asked, which may be wrong in any of these boots.

use std::{fs, io, path::Path, time::UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::{paths::Paths, store::Store};

/// WDIOF_CARDRESET of linux/watchdog.h.
const CARD_RESET: u32 = 0x20;
/// systemd-pstore makes a folder for each crash, and some of one for each part of it.
const DEPTH: u32 = 3;

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
    let new =
        store.note_crashes(boot, &records).context("failed to note which records of crashes there are")?;
    Ok(new.map(|record| format!("there is `{record}`")).or_else(|| reset(&paths.watchdogs)))
}

/// Files below a folder that may not be there, by their paths and times: the kernel uses some names again.
fn list(folder: &Path, depth: u32, found: &mut Vec<String>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if !metadata.is_dir() {
            let time = metadata.modified()?.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            found.push(format!("{} of {time}", entry.path().display().to_string().escape_debug()));
        } else if depth > 0 {
            list(&entry.path(), depth - 1, found)?;
        }
    }
    Ok(())
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

    #[test]
    fn what_cannot_be_noted_is_not_taken_for_a_power_cut() {
        let lab = Lab::new();
        write(lab.dir.path(), "pstore/dmesg-erst-1", b"Oops");
        fs::create_dir(lab.dir.path().join("state/crashes")).unwrap();
        assert!(trace(&lab.paths, &lab.store, "1").is_err());
    }
}
