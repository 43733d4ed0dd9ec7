// SPDX-License-Identifier: Apache-2.0
//! A release on a stick or another disk. Its file systems are mounted nowhere: the kernel gives an open mount that is in no
//! namespace, read-only, without devices, programs or links, and gone when it is closed.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_updater_core::{
    Manifest, TrustedRoot, Verified, Version, manifest,
    slot::{self, ROOT},
};
use nix::sys::stat::{major, minor};
use rustix::{
    fs::{Mode, OFlags, openat},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
        fsmount, fsopen,
    },
};

use crate::{disk::BlockDisk, folder::Folder, host::ARCHITECTURE, writer};

/// Entries of a folder that are looked at. A stick full of photographs is searched for its first ones only.
const MAX_ENTRIES: usize = 1000;
/// Releases that are looked into.
const MAX_RELEASES: usize = 32;
/// How the name of a release in one file ends.
const ARCHIVE: &str = ".tar";

/// A release that was found.
pub struct Found {
    /// Where, for people.
    pub place: String,
    /// What is open.
    pub folder: Folder,
    /// What it is, or why it cannot be taken.
    pub manifest: Result<Verified<Manifest>>,
}

/// What decides between several.
pub struct Wanted<'a> {
    /// The version that was asked for.
    pub version: Option<&'a Version>,
    /// What runs.
    pub running: &'a Version,
    /// Who may sign.
    pub trusted: &'a TrustedRoot,
}

/// A disk or partition, as the kernel describes it.
#[derive(Debug)]
struct Device {
    name: String,
    disk: String,
    partitions: Vec<String>,
    sector: u64,
}

/// Finds the release on a disk, stick or partition.
///
/// # Errors
/// When there is none that may be taken, or it cannot be read.
pub fn find(path: &Path, own_disk: &Path, wanted: &Wanted<'_>) -> Result<Found> {
    let device = Device::look(path, Path::new("/sys"))?;
    let name = format!("/dev/{}", device.name);
    ensure!(
        Path::new("/dev").join(&device.disk) != own_disk,
        "`{name}` is the disk that this node runs from, and holds no release to import. On its partition CLUSTER-OS there is no \
         room for one: copy it to /var, or use a stick"
    );
    refuse_installation(&device)?;
    let mut found = Vec::new();
    let mut passed_over = Vec::new();
    let places = if device.partitions.is_empty() { vec![device.name] } else { device.partitions };
    for place in &places {
        let place = format!("/dev/{place}");
        match kind(Path::new(&place)).and_then(|kind| mount(Path::new(&place), &kind)) {
            Ok(root) => found.extend(search(root, &place, wanted.trusted)?),
            Err(error) => passed_over.push(format!("{error:#}")),
        }
    }
    if found.is_empty() {
        let seen = if passed_over.is_empty() {
            "a release is a folder with manifest.json or a file that ends in .tar, at the top of its file system or in a folder there".to_owned()
        } else {
            passed_over.join("; ")
        };
        bail!("there is no release on `{name}`: {seen}");
    }
    choose(found, wanted)
}

/// The one that was asked for, or the newest that may follow what runs.
///
/// # Errors
/// When there is none.
pub fn choose(found: Vec<Found>, wanted: &Wanted<'_>) -> Result<Found> {
    let mut best: Option<(Version, Found)> = None;
    let mut refused = Vec::new();
    let mut number = 0;
    for one in found {
        number += 1;
        let manifest = match &one.manifest {
            Ok(manifest) => manifest,
            Err(error) => {
                refused.push(format!("{}: {error:#}", one.place));
                continue;
            }
        };
        let version = manifest.version.clone();
        if wanted.version.is_some_and(|wanted| *wanted != version) {
            refused.push(format!("{}: version {version}", one.place));
            continue;
        }
        if let Err(error) = slot::may_follow(manifest, wanted.running, ARCHITECTURE) {
            refused.push(format!("{}: {error}", one.place));
            continue;
        }
        if best.as_ref().is_none_or(|(best, _)| *best < version) {
            best = Some((version, one));
        }
    }
    if let Some((_, found)) = best {
        return Ok(found);
    }
    let what = match (wanted.version, number) {
        (Some(version), _) => format!("version {version} is not there or cannot be taken"),
        (None, 1) => "the release cannot be taken".to_owned(),
        (None, _) => "none of the releases can be taken".to_owned(),
    };
    bail!("{what}: {}", refused.join("; "))
}

/// What lies in a file system's root or one level below.
///
/// # Errors
/// When the root cannot be read.
pub fn search(root: OwnedFd, place: &str, trusted: &TrustedRoot) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    look_into(&root, "", place, trusted, &mut found)?;
    for name in names(&root)? {
        if let Ok(folder) = open(&root, &name, OFlags::DIRECTORY) {
            // One that cannot be read is another's business.
            let _ = look_into(&folder, &name, place, trusted, &mut found);
        }
    }
    Ok(found)
}

fn look_into(
    folder: &OwnedFd,
    name: &str,
    place: &str,
    trusted: &TrustedRoot,
    found: &mut Vec<Found>,
) -> Result<()> {
    for file in names(folder)? {
        if found.len() >= MAX_RELEASES {
            break;
        }
        let release = if file == manifest::FILE_NAME {
            open(folder, ".", OFlags::DIRECTORY)
        } else if file.ends_with(ARCHIVE) {
            open(folder, &file, OFlags::empty())
        } else {
            continue;
        };
        let inner = if file == manifest::FILE_NAME { "" } else { &file };
        let path: Vec<&str> = [name, inner].into_iter().filter(|part| !part.is_empty()).collect();
        let place = format!("{place}: /{}", path.join("/"));
        let opened = release.map_err(anyhow::Error::from).and_then(Folder::from_fd);
        match opened {
            Ok(folder) => {
                let manifest = check(&folder, trusted);
                found.push(Found { place, folder, manifest });
            }
            // Not every archive is a release.
            Err(error) => tracing::debug!(place, error = format!("{error:#}"), "no release"),
        }
    }
    Ok(())
}

fn check(folder: &Folder, trusted: &TrustedRoot) -> Result<Verified<Manifest>> {
    let root = folder.follow(trusted.clone())?;
    let bytes = folder.read(manifest::FILE_NAME, manifest::MAX_BYTES)?;
    Ok(root.verify(&bytes, &folder.signatures(manifest::FILE_NAME)?)?)
}

/// Whatever is in a folder, the first ones by their names.
fn names(folder: &OwnedFd) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))?.take(MAX_ENTRIES);
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// No link is followed, and no pipe waited for.
fn open(folder: &OwnedFd, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat(folder.as_fd(), name, flags, Mode::empty())?)
}

impl Device {
    fn look(path: &Path, sys: &Path) -> Result<Self> {
        let failed = || format!("failed to look at `{}`", path.display());
        let metadata = fs::metadata(path).with_context(failed)?;
        ensure!(metadata.file_type().is_block_device(), "`{}` is no disk", path.display());
        let number = metadata.rdev();
        Self::of(&sys.join(format!("dev/block/{}:{}", major(number), minor(number)))).with_context(failed)
    }

    fn of(link: &Path) -> Result<Self> {
        let place = fs::canonicalize(link)?;
        let base = |path: &Path| -> Result<String> {
            let name = path.file_name().and_then(|name| name.to_str()).context("it has no name")?;
            Ok(name.replace('!', "/"))
        };
        let is_partition = |path: &Path| path.join("partition").exists();
        let disk: PathBuf = if is_partition(&place) {
            place.parent().context("a partition without a disk")?.to_owned()
        } else {
            place.clone()
        };
        let mut partitions = Vec::new();
        if disk == place {
            for entry in fs::read_dir(&place)?.flatten().filter(|entry| is_partition(&entry.path())) {
                let number: u32 = fs::read_to_string(entry.path().join("partition"))?.trim().parse()?;
                partitions.push((number, base(&entry.path())?));
            }
            partitions.sort();
        }
        let sector = fs::read_to_string(disk.join("queue/logical_block_size")).unwrap_or_default();
        Ok(Self {
            name: base(&place)?,
            disk: base(&disk)?,
            partitions: partitions.into_iter().map(|(_, name)| name).collect(),
            sector: sector.trim().parse().unwrap_or(512),
        })
    }
}

/// A stick that Cluster-OS was written to has an image on it, and no release: the manifest is not there.
fn refuse_installation(device: &Device) -> Result<()> {
    let disk = Path::new("/dev").join(&device.disk);
    let table = BlockDisk::open(&disk, device.sector).and_then(|mut disk| writer::read_table(&mut disk));
    // Most sticks have no such table.
    let Ok(table) = table else { return Ok(()) };
    let version = table
        .partitions()
        .iter()
        .filter(|partition| partition.kind == ROOT)
        .find_map(|partition| Version::parse(partition.name.strip_prefix("cluster-os_")?));
    match version {
        None => Ok(()),
        Some(version) => bail!(
            "`{}` is a stick or disk that Cluster-OS {version} runs from, and holds no release to import. To bring {version} to \
             this node, put cluster-os_{version}.update.tar on another stick; to install it anew, boot from `{0}`",
            disk.display()
        ),
    }
}

/// The file system on a partition, as libblkid names it.
fn kind(place: &Path) -> Result<String> {
    let output = Command::new("/usr/sbin/blkid")
        .args(["--probe", "--output", "value", "--match-tag", "TYPE", "--"])
        .arg(place)
        .env_clear()
        .output()
        .context("failed to start blkid")?;
    let kind = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.code() {
        Some(0) if !kind.is_empty() => Ok(kind),
        Some(8) => bail!("`{}` has traces of several file systems", place.display()),
        _ => bail!("`{}` has no file system", place.display()),
    }
}

/// What a stick may carry. Others are larger targets than a stick is worth, or not in this image.
fn driver(kind: &str) -> Option<(&'static str, &'static [&'static str])> {
    match kind {
        "vfat" => Some(("vfat", &[])),
        "exfat" => Some(("exfat", &[])),
        // A journal is not replayed: nothing is written.
        "ext2" | "ext3" | "ext4" => Some(("ext4", &["noload"])),
        "iso9660" => Some(("iso9660", &[])),
        _ => None,
    }
}

/// The root of the file system, in a mount that nobody else sees and that ends with it.
fn mount(place: &Path, kind: &str) -> Result<OwnedFd> {
    let (driver, flags) = driver(kind).with_context(|| {
        format!("`{}` has {kind}, which is not read here: use FAT, exFAT or ext4", place.display())
    })?;
    let mount = || -> io::Result<OwnedFd> {
        let context = fsopen(driver, FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "source", place)?;
        fsconfig_set_flag(context.as_fd(), "ro")?;
        for flag in flags {
            fsconfig_set_flag(context.as_fd(), *flag)?;
        }
        fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW;
        Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
    };
    let mounted = mount().map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => anyhow::anyhow!(
            "`{}` is mounted already, and writable: import from where it is mounted",
            place.display()
        ),
        _ => anyhow::Error::new(error).context(format!("failed to read the {kind} on `{}`", place.display())),
    })?;
    // The mount itself is a path only: files are opened through an open folder.
    Ok(open(&mounted, ".", OFlags::DIRECTORY)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_disk_is_looked_at_partition_by_partition_and_a_partition_alone() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("devices/usb/block/sdb");
        for (name, number) in [("sdb10", "10"), ("sdb2", "2")] {
            fs::create_dir_all(disk.join(name)).unwrap();
            fs::write(disk.join(name).join("partition"), format!("{number}\n")).unwrap();
        }
        for folder in ["queue", "holders"] {
            fs::create_dir(disk.join(folder)).unwrap();
        }
        fs::write(disk.join("queue/logical_block_size"), "4096\n").unwrap();
        let link = |name: &str, to: &Path| {
            let link = dir.path().join(name);
            symlink(to, &link).unwrap();
            link
        };
        let whole = Device::of(&link("8:16", &disk)).unwrap();
        assert_eq!((whole.name.as_str(), whole.disk.as_str(), whole.sector), ("sdb", "sdb", 4096));
        assert_eq!(whole.partitions, ["sdb2", "sdb10"]);
        let part = Device::of(&link("8:18", &disk.join("sdb2"))).unwrap();
        assert_eq!((part.name.as_str(), part.disk.as_str()), ("sdb2", "sdb"));
        assert!(part.partitions.is_empty());
        let error = Device::look(Path::new("/usr"), Path::new("/sys")).unwrap_err();
        assert!(error.to_string().contains("is no disk"));
    }

    #[test]
    fn file_systems_that_are_not_for_sticks_are_named() {
        for known in ["vfat", "exfat", "ext2", "ext4", "iso9660"] {
            assert!(driver(known).is_some());
        }
        for kind in ["ntfs", "btrfs", "crypto_LUKS", "LVM2_member", "erofs"] {
            let error = format!("{:#}", mount(Path::new("/dev/sdb1"), kind).unwrap_err());
            assert!(error.contains(&format!("`/dev/sdb1` has {kind}")), "{error}");
        }
    }

    #[test]
    fn what_has_no_file_system_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let blank = dir.path().join("blank");
        fs::write(&blank, vec![0; 1 << 20]).unwrap();
        let error = format!("{:#}", kind(&blank).unwrap_err());
        assert!(error.contains("has no file system"), "{error}");
        let fat = dir.path().join("fat");
        fs::write(&fat, vec![0; 1 << 20]).unwrap();
        let made = Command::new("/usr/sbin/mkfs.vfat").arg(&fat).output().unwrap();
        assert!(made.status.success());
        assert_eq!(kind(&fat).unwrap(), "vfat");
    }
}
