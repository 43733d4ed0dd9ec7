// SPDX-License-Identifier: Apache-2.0
//! What runs here, and from which partitions: from the kernel, not from labels.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use cluster_updater_core::{Digest, Version};
use nix::sys::stat::{major, minor};

/// As systemd names it. Images are built for this one only.
pub const ARCHITECTURE: &str = "x86-64";
/// systemd-boot's variables (Boot Loader Interface).
pub(crate) const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// The running system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// IMAGE_VERSION of os-release.
    pub running: Version,
    /// What dm-verity was started with.
    pub root_hash: Digest,
    /// The disk under the root device.
    pub disk: PathBuf,
    /// Its sectors.
    pub sector: u64,
    /// The partitions of it that are under the root device.
    pub under_root: Vec<u32>,
    /// This boot's id.
    pub boot: String,
    /// The boot loader counts this boot.
    pub counted: bool,
}

impl Host {
    /// Looks.
    ///
    /// # Errors
    /// When this is no installed Cluster-OS: root is not on dm-verity, or os-release names no version.
    pub fn look() -> Result<Self> {
        let device = fs::metadata("/usr").context("failed to look at /usr")?.dev();
        Self::look_in(Path::new("/"), (major(device), minor(device)))
    }

    /// The same below `root`, where the root device is number `device`.
    fn look_in(root: &Path, device: (u64, u64)) -> Result<Self> {
        let read = |path: &str| {
            fs::read_to_string(root.join(path)).with_context(|| format!("failed to read `/{path}`"))
        };
        let release = read("usr/lib/os-release")?;
        let version = release.lines().find_map(|line| line.strip_prefix("IMAGE_VERSION="));
        let version = version.context("/usr/lib/os-release has no IMAGE_VERSION")?.trim_matches('"');
        let running = Version::parse(version).with_context(|| format!("`{version}` is no version"))?;

        let cmdline = read("proc/cmdline")?;
        let hash = cmdline.split_whitespace().find_map(|word| word.strip_prefix("roothash="));
        let root_hash = hash.and_then(Digest::parse).context("the kernel's command line has no root hash")?;

        let sys = root.join("sys");
        let slaves = sys.join(format!("dev/block/{}:{}/slaves", device.0, device.1));
        let mut under_root = Vec::new();
        let mut disks = Vec::new();
        for slave in fs::read_dir(&slaves).context("the root device lies on no other")? {
            let place = fs::canonicalize(slave?.path())?;
            let number = fs::read_to_string(place.join("partition"))
                .with_context(|| format!("`{}` under the root device is no partition", place.display()))?;
            under_root.push(number.trim().parse()?);
            disks.push(place.parent().context("a partition without a disk")?.to_owned());
        }
        under_root.sort_unstable();
        disks.dedup();
        ensure!(disks.len() == 1, "the root device lies on {} disks", disks.len());
        let sector = fs::read_to_string(disks[0].join("queue/logical_block_size"))
            .context("the kernel does not say how large the disk's sectors are")?;
        let name = disks[0].file_name().context("a disk without a name")?.to_string_lossy().replace('!', "/");
        let counted = root.join(format!("sys/firmware/efi/efivars/LoaderBootCountPath-{LOADER}")).exists();
        Ok(Self {
            running,
            root_hash,
            disk: Path::new("/dev").join(name),
            sector: sector.trim().parse()?,
            under_root,
            boot: read("proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            counted,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn tree(root: &Path) {
        let hash = "9f".repeat(32);
        write(root, "usr/lib/os-release", "ID=debian\nIMAGE_VERSION=\"0.1.0\"\n");
        write(root, "proc/cmdline", &format!("roothash={hash} ro\n"));
        write(root, "proc/sys/kernel/random/boot_id", "an-id\n");
        let disk = "sys/devices/pci/virtio/block/vda";
        write(root, &format!("{disk}/queue/logical_block_size"), "512\n");
        for number in [3, 4] {
            write(root, &format!("{disk}/vda{number}/partition"), &format!("{number}\n"));
        }
        fs::create_dir_all(root.join("sys/dev/block/254:0/slaves")).unwrap();
        for number in [4, 3] {
            let link = root.join(format!("sys/dev/block/254:0/slaves/vda{number}"));
            symlink(format!("../../../../devices/pci/virtio/block/vda/vda{number}"), link).unwrap();
        }
    }

    #[test]
    fn finds_disk_and_partitions_under_the_root_device() {
        let dir = tempfile::tempdir().unwrap();
        tree(dir.path());
        let host = Host::look_in(dir.path(), (254, 0)).unwrap();
        assert_eq!(host.disk, Path::new("/dev/vda"));
        assert_eq!((host.under_root, host.sector, host.counted), (vec![3, 4], 512, false));
        assert_eq!(host.running.to_string(), "0.1.0");
        assert!(Host::look_in(dir.path(), (254, 1)).is_err());
    }
}
