// SPDX-License-Identifier: Apache-2.0
//! What the kernel tells about a block device: what it is called, where it hangs, and who uses it. Nothing is opened.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Where the kernel shows devices and mounts; elsewhere in tests.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub(super) sys: PathBuf,
    /// Mount tables. Process 1 has the host's where this one lives in a namespace of its own (the toolbox).
    pub(super) mounts: Vec<PathBuf>,
    pub(super) swaps: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            sys: "/sys".into(),
            mounts: vec!["/proc/self/mountinfo".into(), "/proc/1/mountinfo".into()],
            swaps: "/proc/swaps".into(),
        }
    }
}

/// A whole disk, or one partition of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// As in `/dev`.
    pub(super) name: String,
    /// GPT name, if it is a partition that has one.
    pub(super) partition: Option<String>,
    /// The disk's vendor and model, for people; may be empty.
    pub(super) model: String,
    /// In bytes.
    pub(super) size: u64,
    /// Bytes of what the disk calls a sector; partition tables and file systems count in these.
    pub(super) sector: u64,
    pub(super) read_only: bool,
    /// A stick, a card, or something else on USB.
    pub(super) removable: bool,
    /// What uses it or another partition of the same disk: mount points and the like, with the device in front.
    pub(super) used: Vec<String>,
}

impl Kernel {
    /// The device with that number.
    pub(super) fn device(&self, major: u64, minor: u64) -> Result<Device> {
        let link = self.sys.join(format!("dev/block/{major}:{minor}"));
        let here = fs::canonicalize(&link)
            .with_context(|| format!("the kernel does not know block device {major}:{minor}"))?;
        let is_partition = here.join("partition").exists();
        let disk = if is_partition { here.parent().unwrap_or(&here).to_owned() } else { here.clone() };
        let sector = line(&disk.join("queue/logical_block_size"));
        let sector = sector.parse().with_context(|| {
            format!("the kernel does not say how large the sectors of `{}` are", disk.display())
        })?;
        let sectors: u64 = line(&here.join("size")).parse().unwrap_or_default();
        let model =
            [line(&disk.join("device/vendor")), line(&disk.join("device/model"))].join(" ").trim().to_owned();
        let on_usb = disk.components().any(|part| {
            part.as_os_str().to_str().is_some_and(|part| {
                part.strip_prefix("usb").is_some_and(|n| n.bytes().all(|c| c.is_ascii_digit()))
            })
        });
        Ok(Device {
            name: name(&here),
            partition: is_partition.then(|| uevent(&here, "PARTNAME").unwrap_or_default()),
            model,
            // In units of 512 bytes whatever the sectors are.
            size: sectors.saturating_mul(512),
            sector,
            read_only: line(&here.join("ro")) == "1" || line(&disk.join("ro")) == "1",
            removable: on_usb
                || line(&disk.join("removable")) == "1"
                // A card in a reader of its own; soldered eMMC says `MMC`.
                || line(&disk.join("device/type")) == "SD",
            used: self.users(&disk)?,
        })
    }

    /// The file system that is mounted at `place`; `None` where nothing is.
    pub(super) fn mounted_at(&self, place: &Path) -> Option<String> {
        let text = fs::read_to_string(self.mounts.first()?).ok()?;
        // The last one covers those before.
        text.lines().rev().find_map(|line| {
            let (mount, source) = line.split_once(" - ")?;
            let at = unescape(mount.split(' ').nth(4)?);
            (Path::new(&at) == place).then(|| source.split(' ').next().unwrap_or_default().to_owned())
        })
    }

    fn users(&self, disk: &Path) -> Result<Vec<String>> {
        let mut parts = vec![disk.to_owned()];
        let inside = fs::read_dir(disk).with_context(|| format!("failed to read `{}`", disk.display()))?;
        parts.extend(
            inside.flatten().map(|entry| entry.path()).filter(|path| path.join("partition").exists()),
        );
        parts.sort();
        let mounts: Vec<(String, String)> = self.mounts()?;
        let swaps = fs::read_to_string(&self.swaps).unwrap_or_default();
        let mut used = Vec::new();
        for part in parts {
            let device = name(&part);
            let number = line(&part.join("dev"));
            for (_, place) in mounts.iter().filter(|(at, _)| *at == number) {
                used.push(format!("/dev/{device} is mounted at {place}"));
            }
            for holder in fs::read_dir(part.join("holders")).into_iter().flatten().flatten() {
                used.push(format!("/dev/{device} is in use by {}", holder.file_name().to_string_lossy()));
            }
            if swaps.lines().any(|swap| swap.split_whitespace().next() == Some(&format!("/dev/{device}"))) {
                used.push(format!("/dev/{device} is swap space"));
            }
        }
        used.dedup();
        Ok(used)
    }

    /// Device number and mount point of all mounts; proc(5), mountinfo.
    fn mounts(&self) -> Result<Vec<(String, String)>> {
        let mut mounts = Vec::new();
        for (n, table) in self.mounts.iter().enumerate() {
            let text = match fs::read_to_string(table) {
                Ok(text) => text,
                // Another user's table is not everybody's to read; the exclusive open still notices its mounts.
                Err(_) if n > 0 => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("failed to read `{}`", table.display()));
                }
            };
            for line in text.lines() {
                let mut words = line.split(' ').skip(2);
                let (number, place) = (words.next(), words.nth(1));
                if let (Some(number), Some(place)) = (number, place) {
                    mounts.push((number.to_owned(), unescape(place)));
                }
            }
        }
        mounts.sort();
        mounts.dedup();
        Ok(mounts)
    }
}

fn name(path: &Path) -> String {
    // sysfs writes `!` where the name in /dev has a slash.
    path.file_name().unwrap_or_default().to_string_lossy().replace('!', "/")
}

fn line(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn uevent(device: &Path, key: &str) -> Option<String> {
    let text = fs::read_to_string(device.join("uevent")).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix('=')?.to_owned()))
}

/// Blanks and the like are octal in mount tables.
fn unescape(place: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(place.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A stick `sdb` on USB with two partitions, and a disk `nvme0n1` with one; as sysfs shows them.
    pub(crate) fn kernel(dir: &Path, mountinfo: &str) -> Kernel {
        let put = |path: &str, text: &str| {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let usb = "sys/devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0";
        let nvme = "sys/devices/pci0000:00/0000:00:1d.0/nvme/nvme0";
        for (disk, number, removable) in
            [(format!("{usb}/block/sdb"), "8:16", "1"), (format!("{nvme}/nvme0n1"), "259:0", "0")]
        {
            put(&format!("{disk}/dev"), &format!("{number}\n"));
            put(&format!("{disk}/size"), "30199808\n");
            put(&format!("{disk}/ro"), "0\n");
            put(&format!("{disk}/removable"), &format!("{removable}\n"));
            put(&format!("{disk}/queue/logical_block_size"), "512\n");
            fs::create_dir_all(dir.join("sys/dev/block")).unwrap();
            symlink(dir.join(&disk), dir.join(format!("sys/dev/block/{number}"))).unwrap();
        }
        put(&format!("{usb}/block/sdb/device/vendor"), "SanDisk \n");
        put(&format!("{usb}/block/sdb/device/model"), "Ultra           \n");
        for (partition, number, label) in [("sdb1", "8:17", "ESP"), ("sdb2", "8:18", "CLUSTER-OS")] {
            let path = format!("{usb}/block/sdb/{partition}");
            put(&format!("{path}/partition"), "1\n");
            put(&format!("{path}/dev"), &format!("{number}\n"));
            put(&format!("{path}/size"), "131072\n");
            put(&format!("{path}/ro"), "0\n");
            put(&format!("{path}/uevent"), &format!("DEVNAME={partition}\nPARTNAME={label}\n"));
            symlink(dir.join(path), dir.join(format!("sys/dev/block/{number}"))).unwrap();
        }
        put("mountinfo", mountinfo);
        put("swaps", "Filename Type Size Used Priority\n/dev/nvme0n1 partition 1 0 -2\n");
        Kernel { sys: dir.join("sys"), mounts: vec![dir.join("mountinfo")], swaps: dir.join("swaps") }
    }

    #[test]
    fn a_stick_is_described_with_all_that_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = "29 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw\n\
                      90 29 8:18 / /media/me/CLUSTER\\040OS rw,nosuid - vfat /dev/sdb2 rw\n";
        let kernel = kernel(dir.path(), mounts);
        let stick = kernel.device(8, 16).unwrap();
        assert_eq!(
            (stick.name.as_str(), stick.model.as_str(), stick.size),
            ("sdb", "SanDisk Ultra", 15_462_301_696)
        );
        assert!(stick.removable && !stick.read_only && stick.partition.is_none());
        assert_eq!(stick.sector, 512);
        assert_eq!(stick.used, ["/dev/sdb2 is mounted at /media/me/CLUSTER OS"]);
        let partition = kernel.device(8, 18).unwrap();
        assert_eq!(partition.partition.as_deref(), Some("CLUSTER-OS"));
        // Another partition of a disk is as much in use as the disk.
        assert_eq!(kernel.device(8, 17).unwrap().used, stick.used);
        assert_eq!(
            (partition.model.as_str(), partition.removable, partition.sector),
            ("SanDisk Ultra", true, 512)
        );
    }

    #[test]
    fn a_built_in_disk_is_not_removable_and_swap_is_use() {
        let dir = tempfile::tempdir().unwrap();
        let disk = kernel(dir.path(), "").device(259, 0).unwrap();
        assert!(!disk.removable);
        assert_eq!(disk.used, ["/dev/nvme0n1 is swap space"]);
        assert!(kernel(&dir.path().join("other"), "").device(7, 7).is_err());
    }
}
