// SPDX-License-Identifier: Apache-2.0
//! Whether the `CLUSTER-OS` partition is there and cannot be read: formatted as something else, or damaged. That is not the
//! same as having no file, and has another fix.
//!
//! The agent opens no disk. It goes by what others found: udev's database, which every user may read, says which partition
//! it is and what file system it has; the mount table says whether it is mounted; and where mounting failed,
//! `cluster-config-unreadable.service` has left a mark beside the mount point, where the agent watches.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cluster_agent_core::{PARTITION_AREA, Problem};

use crate::textfile;

/// The link that udev gives the partition of the disk that was booted (65-cluster-os-disk.rules).
const LINK: &str = "S:disk/cluster-os/config";
/// The mark beside the mount point.
const MARK: &str = "config-unreadable";
/// Largest file of the database that is read.
const MAX_ENTRY: usize = 64 * 1024;
const FIX: &str = "on another computer copy cluster.toml from it, if it can still be read there; format the partition as FAT (not exFAT, \
                   not NTFS) with the name CLUSTER-OS, put cluster.toml on it, and start the node again";

/// Where the kernel and udev tell about disks and mounts; elsewhere in tests.
#[derive(Clone, Debug)]
pub struct Host {
    /// udev's database.
    pub udev: PathBuf,
    /// sysfs.
    pub sys: PathBuf,
    /// The mount table (proc(5), mountinfo).
    pub mounts: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self { udev: "/run/udev/data".into(), sys: "/sys".into(), mounts: "/proc/self/mountinfo".into() }
    }
}

/// What keeps the partition that belongs at `config_dir` from being read; `None` when it is mounted, not there, or about to be
/// mounted.
#[must_use]
pub fn problem(config_dir: &Path, host: &Host) -> Option<Problem> {
    if is_mounted(config_dir, &host.mounts) {
        return None;
    }
    let (number, filesystem) = find(&host.udev)?;
    let has_failed = config_dir.with_file_name(MARK).exists();
    let holds = match filesystem.as_deref() {
        Some("vfat") | None if !has_failed => return None,
        Some("vfat") => "has a damaged FAT".to_owned(),
        None => "holds no file system that can be told".to_owned(),
        Some(other) => format!("holds {}, not FAT", shown(other)),
    };
    let device = device(&host.sys, &number);
    Some(Problem::new(
        PARTITION_AREA,
        format!("{device} {holds}, so cluster.toml cannot be read from it"),
        FIX,
    ))
}

/// Number of the partition (`8:2`) and the file system that udev found on it.
fn find(udev: &Path) -> Option<(String, Option<String>)> {
    fs::read_dir(udev).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let number = name.strip_prefix('b')?.to_owned();
        let text = String::from_utf8(textfile::read(&entry.path(), MAX_ENTRY).ok()?).ok()?;
        text.lines().any(|line| line == LINK).then_some(())?;
        let filesystem = text.lines().find_map(|line| line.strip_prefix("E:ID_FS_TYPE="));
        Some((number, filesystem.filter(|name| !name.is_empty()).map(str::to_owned)))
    })
}

fn is_mounted(place: &Path, mounts: &Path) -> bool {
    let Some(place) = place.to_str() else { return false };
    fs::read_to_string(mounts).unwrap_or_default().lines().any(|line| line.split(' ').nth(4) == Some(place))
}

/// Its name in /dev, or its number where the kernel says none.
fn device(sys: &Path, number: &str) -> String {
    let uevent = fs::read_to_string(sys.join("dev/block").join(number).join("uevent")).unwrap_or_default();
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| format!("block device {number}"), |name| format!("/dev/{name}"))
}

/// What came from a disk goes to consoles: names alone.
fn shown(filesystem: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+.".contains(c);
    match filesystem {
        "exfat" => "exFAT".to_owned(),
        "ntfs" => "NTFS".to_owned(),
        name if name.chars().all(plain) && name.len() <= 32 => name.to_owned(),
        _ => "another file system".to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const EMPTY: &str = "29 1 259:1 / / rw - ext4 /dev/root rw\n";

    /// A node with a config partition as udev shows it, not mounted.
    pub(crate) fn host(dir: &Path, filesystem: Option<&str>) -> Host {
        let host = Host { udev: dir.join("udev"), sys: dir.join("sys"), mounts: dir.join("mountinfo") };
        fs::create_dir_all(&host.udev).unwrap();
        fs::create_dir_all(host.sys.join("dev/block/8:2")).unwrap();
        fs::write(
            host.sys.join("dev/block/8:2/uevent"),
            "MAJOR=8\nMINOR=2\nDEVNAME=sda2\nPARTNAME=CLUSTER-OS\n",
        )
        .unwrap();
        fs::write(&host.mounts, EMPTY).unwrap();
        let filesystem = filesystem
            .map(|name| format!("E:ID_FS_USAGE=filesystem\nE:ID_FS_TYPE={name}\n"))
            .unwrap_or_default();
        let other = "S:disk/cluster-os/esp\nE:ID_FS_TYPE=vfat\nV:1\n";
        let config = format!(
            "S:disk/by-partlabel/CLUSTER-OS\nS:disk/cluster-os/config\nI:123\n{filesystem}G:systemd\nV:1\n"
        );
        for (name, text) in
            [("b8:1", other), ("b8:2", &config), ("n2", "junk"), ("c10:1", LINK), ("+usb:1", "\u{fffd}")]
        {
            fs::write(host.udev.join(name), text).unwrap();
        }
        fs::write(host.udev.join("b8:3"), [0xff; 100]).unwrap();
        host
    }

    #[test]
    fn a_partition_with_another_file_system_is_named_with_the_fix() {
        for (filesystem, named) in [
            ("ext4", "ext4"),
            ("exfat", "exFAT"),
            ("ntfs", "NTFS"),
            ("btrfs", "btrfs"),
            ("crypto_LUKS", "crypto_LUKS"),
            ("\u{1b}[2J", "another file system"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let config = dir.path().join("clusteros/config");
            let problem = problem(&config, &host(dir.path(), Some(filesystem))).unwrap();
            assert_eq!(problem.area, PARTITION_AREA);
            assert!(problem.message.starts_with(&format!("/dev/sda2 holds {named}, not FAT")), "{problem}");
            assert!(problem.fix.contains("format the partition as FAT"), "{problem}");
        }
    }

    #[test]
    fn a_damaged_one_is_named_once_mounting_failed_and_not_before() {
        for (filesystem, named) in [(Some("vfat"), "has a damaged FAT"), (None, "holds no file system")] {
            let dir = tempfile::tempdir().unwrap();
            let config = dir.path().join("clusteros/config");
            let host = host(dir.path(), filesystem);
            assert_eq!(problem(&config, &host), None, "it may only be late");
            fs::create_dir_all(config.with_file_name(MARK)).unwrap();
            let found = problem(&config, &host).unwrap();
            assert!(found.message.contains(named), "{found}");
            // Mounted after all, and the mark of the earlier try still there.
            fs::write(
                &host.mounts,
                format!("{EMPTY}90 29 8:2 / {} ro - vfat /dev/sda2 ro\n", config.display()),
            )
            .unwrap();
            assert_eq!(problem(&config, &host), None);
        }
    }

    #[test]
    fn without_such_a_partition_there_is_nothing_to_say() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("clusteros/config");
        let host = host(dir.path(), Some("ext4"));
        fs::create_dir_all(config.with_file_name(MARK)).unwrap();
        fs::remove_file(host.udev.join("b8:2")).unwrap();
        assert_eq!(problem(&config, &host), None);
        let nowhere = Host { udev: dir.path().join("none"), ..host };
        assert_eq!(problem(&config, &nowhere), None);
    }
}
