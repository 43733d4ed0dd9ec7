// SPDX-License-Identifier: Apache-2.0
//! What a person named as a target: an image file, a stick or disk, a partition, or a mounted folder. Whatever must not be
//! written to is refused here, before anything is.

use std::{
    fmt, fs,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_agent_core::{
    consts::MAX_CLUSTER_TOML,
    gpt::{GptPartitionType, Table, TableError},
};
use nix::libc::O_EXCL;

use super::{
    CONFIG_PARTITION, Storage as _,
    config::Config,
    device::{Device, Kernel},
};
use crate::{paths::CLUSTER_TOML, store::write_atomically};

/// Bytes of a sector of the disks that the image is made for.
const SECTOR: u64 = 512;
/// First word of the README that the image puts on the partition.
const README: &str = "Cluster-OS";

/// Something that may be written to.
#[derive(Debug)]
pub enum Target {
    /// A folder where a `CLUSTER-OS` partition is mounted.
    Folder(PathBuf),
    /// A disk, an image of one, or a partition.
    Medium(Medium),
}

/// An opened disk, image file or partition.
#[derive(Debug)]
pub struct Medium {
    /// As it was named.
    pub path: PathBuf,
    /// Open for reading and writing, and for nobody else if it is a device.
    pub file: File,
    /// In bytes.
    pub size: u64,
    device: Option<Device>,
}

/// What there is to read and write of cluster.toml at a target.
#[derive(Debug)]
pub enum Place {
    /// A file of a mounted folder.
    File(PathBuf),
    /// In the FAT of a partition.
    Fat {
        /// What holds it.
        medium: Medium,
        /// Where the partition starts.
        start: u64,
        /// How long it is.
        length: u64,
    },
}

impl Target {
    /// Opens what is at `path`.
    ///
    /// # Errors
    /// Says why it is no target, and what would be.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, &Kernel::default())
    }

    fn open_with(path: &Path, kernel: &Kernel) -> Result<Self> {
        let shown = path.display();
        let metadata = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!(
                    "there is no `{shown}`: name an image file, a stick like /dev/sdX (`lsblk` lists them), or a mounted folder"
                )
            }
            metadata => metadata.with_context(|| format!("`{shown}` cannot be looked at"))?,
        };
        if metadata.is_dir() {
            check_mounted(path, kernel)?;
            return Ok(Self::Folder(path.to_owned()));
        }
        let kind = metadata.file_type();
        if !kind.is_block_device() {
            ensure!(kind.is_file(), "`{shown}` is neither an image file, a block device nor a folder");
            let file = open(path, 0)?;
            return Ok(Self::Medium(Medium::of_file(path, file, metadata.len())));
        }
        let number = metadata.rdev();
        let device = kernel.device(nix::sys::stat::major(number), nix::sys::stat::minor(number))?;
        check_unused(&device)?;
        check_sectors(&device)?;
        // Exclusive: the kernel refuses what is mounted or in use anywhere, and lets nobody mount it meanwhile.
        let file = open(path, O_EXCL)?;
        Ok(Self::Medium(Medium { path: path.to_owned(), file, size: device.size, device: Some(device) }))
    }

    /// Finds the `CLUSTER-OS` partition.
    ///
    /// # Errors
    /// When the target does not carry Cluster-OS.
    pub fn place(self) -> Result<Place> {
        match self {
            Self::Folder(folder) => Ok(Place::File(folder_place(&folder)?)),
            Self::Medium(medium) => medium.place(),
        }
    }
}

impl Medium {
    /// An image in an opened file.
    pub fn of_file(path: &Path, file: File, size: u64) -> Self {
        Self { path: path.to_owned(), file, size, device: None }
    }

    /// Name, model and size for people; `None` for a file.
    pub fn described(&self) -> Option<String> {
        let device = self.device.as_ref()?;
        let model = if device.model.is_empty() { "unknown model" } else { &device.model };
        Some(format!("/dev/{}: {model}", device.name))
    }

    /// The last part of its name, which a person types to show that this one is meant.
    pub fn short_name(&self) -> String {
        match &self.device {
            Some(device) => device.name.clone(),
            None => self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }

    /// A stick, a card, something on USB, or a file: nothing that a machine was built with.
    pub fn is_removable(&self) -> bool {
        self.device.as_ref().is_none_or(|device| device.removable)
    }

    /// A partition of a disk, not a disk.
    pub fn is_partition(&self) -> bool {
        self.device.as_ref().is_some_and(|device| device.partition.is_some())
    }

    /// What its partition table says.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn table(&self) -> Result<Table, TableError<io::Error>> {
        Table::load(self.size, |buffer, at| self.file.read_at(buffer, at))
    }

    /// Finds the `CLUSTER-OS` partition.
    ///
    /// # Errors
    /// When it does not carry Cluster-OS.
    pub fn place(self) -> Result<Place> {
        let shown = self.path.display();
        if let Some(label) = self.device.as_ref().and_then(|device| device.partition.as_ref()) {
            ensure!(
                label == CONFIG_PARTITION,
                "`{shown}` is partition `{label}`, not `{CONFIG_PARTITION}`: name the whole disk, or its {CONFIG_PARTITION} partition"
            );
            let length = self.size;
            return Ok(Place::Fat { medium: self, start: 0, length });
        }
        let table = match self.table() {
            Ok(table) => table,
            Err(TableError::None) => {
                bail!("`{shown}` is not a raw Cluster-OS image: {}; nothing was changed", self.guess())
            }
            Err(TableError::Other(name)) => bail!(
                "`{shown}` does not carry Cluster-OS: it holds {name} now; nothing was changed. {}",
                way_out(name)
            ),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("`{shown}` cannot be used, write the image again"));
            }
        };
        let found = table.partitions.iter().find(|partition| {
            partition.name == CONFIG_PARTITION && partition.kind == GptPartitionType::BASIC_DATA
        });
        let (Some(found), true) =
            (found, table.partitions.iter().any(|partition| partition.kind == GptPartitionType::EFI_SYSTEM))
        else {
            let names: Vec<String> =
                table.partitions.iter().map(|partition| format!("`{}`", partition.name)).collect();
            let has = if names.is_empty() { "no partitions".to_owned() } else { names.join(", ") };
            bail!(
                "`{shown}` does not carry Cluster-OS (it has {has}): nothing was changed; write the image first, or name another"
            );
        };
        ensure!(
            table.sector == SECTOR,
            "the partition table of `{shown}` counts in sectors of {} bytes, Cluster-OS in {SECTOR}: nothing was changed; write the \
             image again, or name another",
            table.sector
        );
        let (start, length) = (found.offset, found.length);
        Ok(Place::Fat { medium: self, start, length })
    }

    /// What a thing without a partition table may be.
    fn guess(&self) -> &'static str {
        if self.size == 0 {
            return "it is empty";
        }
        "it has no partition table (GPT); `just image` says where the image is"
    }
}

/// What to do with something that holds `name` instead of Cluster-OS.
fn way_out(name: &str) -> &'static str {
    match name {
        "a zstd archive" => "It is compressed: unpack it first with `zstd -d`",
        "a gzip archive" => "It is compressed: unpack it first with `gunzip`",
        "an xz archive" => "It is compressed: unpack it first with `unxz`",
        "a bzip2 archive" => "It is compressed: unpack it first with `bunzip2`",
        "a zip archive" | "a 7z archive" => "It is compressed: unpack it first",
        "a qcow2 image" | "a VMDK image" | "a VHDX image" | "a VDI image" => {
            "Use the raw image (`qemu-img convert -O raw` makes one)"
        }
        _ => {
            "To make it a disk of Cluster-OS, write the image to it (`--image`); all that is on it will be lost"
        }
    }
}

impl Place {
    /// What cluster.toml holds now, at most one byte more than it may have.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<Option<Vec<u8>>> {
        match self {
            Self::File(path) => match File::open(path) {
                Ok(file) => {
                    let mut bytes = Vec::new();
                    io::Read::read_to_end(&mut io::Read::take(file, MAX_CLUSTER_TOML as u64 + 1), &mut bytes)
                        .with_context(|| format!("failed to read `{}`", path.display()))?;
                    Ok(Some(bytes))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error).with_context(|| format!("failed to read `{}`", path.display())),
            },
            Self::Fat { medium, start, length } => Config::new(&medium.file, *start, *length).read(),
        }
    }

    /// Replaces or adds it, flushes, and compares what is there with what was written.
    ///
    /// # Errors
    /// When the target does not take or keep it.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::File(path) => {
                write_atomically(path, bytes, 0o600).map_err(|error| {
                    let folder = path.parent().unwrap_or(path).display().to_string();
                    match error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind) {
                        Some(io::ErrorKind::ReadOnlyFilesystem) => error.context(format!(
                            "`{folder}` is mounted read-only: `mount -o remount,rw {folder}` makes it writable"
                        )),
                        Some(io::ErrorKind::PermissionDenied) => {
                            error.context(format!("`{folder}` may not be written to by this user: use sudo"))
                        }
                        _ => error,
                    }
                })?;
                let there = self.read()?;
                ensure!(there.as_deref() == Some(bytes), "`{}` reads back differently", path.display());
                Ok(())
            }
            Self::Fat { medium, start, length } => Config::new(&medium.file, *start, *length).write(bytes),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Fat { medium, .. } => {
                write!(f, "{CLUSTER_TOML} on {CONFIG_PARTITION} of {}", medium.path.display())
            }
        }
    }
}

fn check_unused(device: &Device) -> Result<()> {
    ensure!(
        device.used.is_empty(),
        "/dev/{} is in use, nothing was changed: {}. Unmount it first (`umount`), or name the folder where its \
         {CONFIG_PARTITION} partition is mounted",
        device.name,
        device.used.join(", ")
    );
    ensure!(
        !device.read_only,
        "/dev/{} is write-protected: sticks and cards may have a switch for it",
        device.name
    );
    Ok(())
}

/// A node mounts its partition as FAT and as nothing else. A folder where nothing is mounted is a person's own affair.
fn check_mounted(folder: &Path, kernel: &Kernel) -> Result<()> {
    let place = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    match kernel.mounted_at(&place).as_deref() {
        Some("vfat" | "msdos" | "tmpfs") | None => Ok(()),
        Some(other) => bail!(
            "at `{}` a file system of type {other} is mounted, and a node reads FAT only: nothing was changed. Format the \
             {CONFIG_PARTITION} partition as FAT (`mkfs.vfat -n {CONFIG_PARTITION}`), or name the folder where it is mounted",
            folder.display()
        ),
    }
}

/// The image counts in sectors of this size. On a disk with others the kernel sees no partition, and firmware nothing to boot.
fn check_sectors(device: &Device) -> Result<()> {
    ensure!(
        device.sector == SECTOR,
        "/dev/{} has sectors of {} bytes, Cluster-OS needs {SECTOR}: nothing was changed, it would not boot. Use another disk, \
         or switch this one to {SECTOR}-byte sectors if it can (`nvme format --lbaf`, `sg_format --size`; that erases it)",
        device.name,
        device.sector
    );
    Ok(())
}

fn open(path: &Path, flags: i32) -> Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).map_err(|error| {
        let shown = path.display();
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "may not be written to by this user: use sudo",
            io::ErrorKind::ReadOnlyFilesystem => "is write-protected, or lies on something that is",
            io::ErrorKind::ResourceBusy => "is in use: unmount it first (`lsblk` shows where)",
            _ => "cannot be opened for writing",
        };
        anyhow::Error::new(error).context(format!("`{shown}` {hint}"))
    })
}

/// A folder is the partition's if it has the partition's README, or a cluster.toml already.
fn folder_place(folder: &Path) -> Result<PathBuf> {
    let file = folder.join(CLUSTER_TOML);
    let readme = fs::read_to_string(folder.join("README.txt")).is_ok_and(|text| text.starts_with(README));
    ensure!(
        readme || file.exists(),
        "`{0}` does not look like a mounted {CONFIG_PARTITION} partition (no README.txt of Cluster-OS, no {CLUSTER_TOML}): \
         name the folder where it is mounted, or the stick itself",
        folder.display()
    );
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::{super::device::tests::kernel, *};

    fn refusal(path: &Path) -> String {
        let refused = Target::open(path).and_then(Target::place).expect_err("refused");
        format!("{refused:#}")
    }

    #[test]
    fn what_is_no_image_is_refused_and_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        assert!(refusal(&file).contains("there is no"));
        for (bytes, says) in [
            (b"".as_slice(), "empty"),
            (b"\x28\xb5\x2f\xfdrest", "zstd -d"),
            (b"\x1f\x8brest...", "gunzip"),
            (b"QFI\xfbrest", "qcow2"),
            (&[0; 65536], "no partition table"),
        ] {
            fs::write(&file, bytes).unwrap();
            assert!(refusal(&file).contains(says), "{}", refusal(&file));
        }
        assert!(refusal(Path::new("/dev/null")).contains("neither"));
    }

    #[test]
    fn a_folder_where_something_else_than_fat_is_mounted_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = fs::canonicalize(dir.path()).unwrap().join("CLUSTER OS");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("README.txt"), "Cluster-OS\n").unwrap();
        let shown = folder.display().to_string().replace(' ', "\\040");
        let mount = |kind: &str| format!("90 29 8:18 / {shown} rw,nosuid shared:7 - {kind} /dev/sdb2 rw\n");
        for (n, (mounts, refused)) in [
            (String::new(), None),
            (mount("vfat"), None),
            (mount("ext4"), Some("ext4")),
            (mount("exfat"), Some("exfat")),
            (mount("fuseblk"), Some("fuseblk")),
            (mount("ext4") + &mount("vfat"), None),
            (mount("vfat") + &mount("ntfs3"), Some("ntfs3")),
        ]
        .into_iter()
        .enumerate()
        {
            let kernel = kernel(&dir.path().join(n.to_string()), &mounts);
            let opened = Target::open_with(&folder, &kernel).and_then(Target::place);
            match (opened, refused) {
                (Ok(_), None) => {}
                (Err(error), Some(named)) => assert!(error.to_string().contains(named), "{error:#}"),
                (opened, _) => panic!("{mounts}: {opened:?}"),
            }
        }
    }

    #[test]
    fn a_disk_with_other_sectors_is_refused_before_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        for (size, refused) in [("512", false), ("4096", true), ("520", true), ("2048", true)] {
            let dir = dir.path().join(size);
            let kernel = kernel(&dir, "");
            for disk in ["sdb", "nvme0n1"] {
                let number = if disk == "sdb" { "8:16" } else { "259:0" };
                let queue = dir.join(format!("sys/dev/block/{number}/queue/logical_block_size"));
                fs::write(queue, format!("{size}\n")).unwrap();
            }
            // The disk, and a partition of it.
            for device in [kernel.device(8, 16), kernel.device(8, 18), kernel.device(259, 0)] {
                let checked = check_sectors(&device.unwrap());
                assert_eq!(checked.is_err(), refused, "{size}");
                if let Err(error) = checked {
                    let said = error.to_string();
                    assert!(
                        said.contains(&format!("{size} bytes")) && said.contains("nothing was changed"),
                        "{said}"
                    );
                }
            }
        }
        // A kernel that does not say is no proof that it would work.
        let silent = kernel(&dir.path().join("silent"), "");
        fs::remove_file(dir.path().join("silent/sys/dev/block/8:16/queue/logical_block_size")).unwrap();
        assert!(silent.device(8, 16).is_err());
    }

    #[test]
    fn a_folder_must_look_like_the_partition() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refusal(dir.path()).contains("does not look like"));
        fs::write(dir.path().join("README.txt"), "Cluster-OS\n==========\n").unwrap();
        let place = Target::open(dir.path()).and_then(Target::place).unwrap();
        assert_eq!(place.read().unwrap(), None);
        place.write(b"text").unwrap();
        assert_eq!(place.read().unwrap().as_deref(), Some(b"text".as_slice()));
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "nothing temporary is left: {names:?}");
    }

    #[test]
    fn a_device_in_use_or_protected_is_refused_before_it_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let mounted = kernel(dir.path(), "90 29 8:17 / /boot/efi rw - vfat /dev/sdb1 rw\n");
        let refused = check_unused(&mounted.device(8, 16).unwrap()).unwrap_err().to_string();
        assert!(refused.contains("/dev/sdb1 is mounted at /boot/efi"), "{refused}");
        let free = kernel(&dir.path().join("free"), "");
        let mut stick = free.device(8, 16).unwrap();
        check_unused(&stick).unwrap();
        stick.read_only = true;
        assert!(check_unused(&stick).unwrap_err().to_string().contains("write-protected"));
    }
}
