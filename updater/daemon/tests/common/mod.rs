// SPDX-License-Identifier: Apache-2.0
//! A small disk in a file, partitioned by sfdisk, and releases of random bytes for it.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]
#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod fat;
pub(crate) mod members;
pub(crate) mod web;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use cluster_updater::{
    disk::BlockDisk,
    esp::Folder as EspFolder,
    folder::Folder,
    host::Host,
    make::{self, About, Parts},
    paths::Paths,
    release::{OpenRelease, Source},
    writer::{self, Devices, Moved, Release},
};
use cluster_updater_core::{
    BlockSource, Digest, Disk, Esp, Manifest, TrustedRoot, Version,
    gpt::Guid,
    keys::SecretKey,
    manifest::{RootImage, Severity},
    slot::{Facts, Slots, Staging},
    verity::{self, BLOCK_BYTES, Tree, hash_block},
};

pub(crate) const SALT: [u8; 32] = [0x73; 32];
pub(crate) const RUNNING: &str = "1.0";
pub(crate) const MIB: u64 = 1 << 20;
/// Data blocks of the releases: more than one level of the tree, and no whole number of pieces.
pub(crate) const BLOCKS: u64 = 333;

pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) hash: Digest,
    pub(crate) image: Vec<u8>,
}

pub(crate) fn key() -> SecretKey {
    SecretKey::from_seed(&[1; 32])
}

pub(crate) fn version(text: &str) -> Version {
    Version::parse(text).unwrap()
}

/// Bytes that look random and are the same for the same seed (splitmix64).
pub(crate) fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed;
    let mut out = Vec::with_capacity(count + 8);
    while out.len() < count {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        out.extend((z ^ (z >> 31)).to_le_bytes());
    }
    out.truncate(count);
    out
}

fn os_release(number: &str) -> String {
    format!("ID=debian\nIMAGE_VERSION=\"{number}\"\n")
}

/// An image with its version in the first block.
fn with_version(image: &[u8], number: &str) -> Vec<u8> {
    let os_release = os_release(number);
    let mut image = image.to_vec();
    image[..os_release.len()].copy_from_slice(os_release.as_bytes());
    image
}

/// Tree and root hash of an image.
pub(crate) fn tree_of(image: &[u8]) -> (RootImage, Tree) {
    let leaves: Vec<Digest> = image.chunks(BLOCK_BYTES).map(|block| hash_block(&SALT, block)).collect();
    let (tree, hash) = Tree::build(&SALT, &leaves);
    let data_blocks = leaves.len() as u64;
    let root = RootImage {
        data_bytes: image.len() as u64,
        data_blocks,
        tree_bytes: verity::tree_bytes(data_blocks),
        hash,
        salt: SALT,
        uuid: Guid([4; 16]),
    };
    (root, tree)
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Lab {
    /// A disk whose slot A holds version 1.0 and runs, beside an empty slot B. Its boot entries are in a folder.
    pub(crate) fn new() -> Self {
        Self::with_esp(1)
    }

    /// The same with an ESP of so many MiB, in which nothing is.
    pub(crate) fn with_esp(mib: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = with_version(&bytes(1, BLOCKS as usize * BLOCK_BYTES), RUNNING);
        let (root, tree) = tree_of(&image);
        let lab = Self { dir, hash: root.hash, image };
        let hash = root.hash.to_string();
        let uuid = |half: &str| {
            format!("{}-{}-{}-{}-{}", &half[..8], &half[8..12], &half[12..16], &half[16..20], &half[20..])
        };
        let (data, hashes) = (uuid(&hash[..32]), uuid(&hash[32..]));
        let table = format!(
            "label: gpt\n\
             size={mib}MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=ESP\n\
             size=1MiB, type=2c7357ed-ebd2-46d9-aec1-23d437ec2bf5, name=cluster-os_1.0_verity, uuid={hashes}, attrs=\"GUID:60\"\n\
             size=2MiB, type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709, name=cluster-os_1.0, uuid={data}, attrs=\"GUID:60\"\n\
             size=1MiB, type=2c7357ed-ebd2-46d9-aec1-23d437ec2bf5, name=_empty\n\
             size=2MiB, type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709, name=_empty\n\
             size=1MiB, type=4d21b016-b534-45c2-a9fb-5c16e091fd2d, name=var\n"
        );
        File::create(lab.disk_path()).unwrap().set_len((11 + mib) * MIB).unwrap();
        let mut sfdisk =
            Command::new("sfdisk").arg("-q").arg(lab.disk_path()).stdin(Stdio::piped()).spawn().unwrap();
        sfdisk.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
        assert!(sfdisk.wait().unwrap().success());
        let slots = lab.slots();
        let mut disk = lab.disk();
        disk.write(slots.active.data.offset, &lab.image).unwrap();
        disk.write(slots.active.tree.offset, &verity::superblock(&root)).unwrap();
        disk.write(slots.active.tree.offset + BLOCK_BYTES as u64, tree.bytes()).unwrap();
        fs::create_dir_all(lab.entries()).unwrap();
        fs::write(lab.entries().join("cluster-os_1.0.efi"), bytes(2, 70_000)).unwrap();
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn disk_path(&self) -> PathBuf {
        self.path("disk")
    }

    pub(crate) fn entries(&self) -> PathBuf {
        self.path("esp/EFI/Linux")
    }

    /// A node that has no ESP to mount and nothing that serves.
    pub(crate) fn paths(&self) -> Paths {
        self.trusted();
        Paths {
            image_root: self.path("root"),
            state: self.path("state"),
            efi: self.path("esp"),
            esp_device: self.path("no-device"),
            esp_place: self.path("place"),
            root_device: self.path("root-device"),
            other_root: self.path("other-root"),
            releases: self.path("no-socket"),
            efivars: self.path("efivars"),
            esp_lock: self.path("esp.lock"),
            verdict: self.path("verdict"),
            given_up: self.path("given-up"),
            refunded: self.path("refunded"),
            pstore: self.path("pstore"),
            crashes: self.path("crashes"),
            watchdogs: self.path("watchdogs"),
            clock_set: self.path("clock-set"),
            moved: self.path("moved"),
            slots_lock: self.path("slots.lock"),
            boot_loader: self.path("image-loader.efi"),
        }
    }

    pub(crate) fn host(&self, boot: &str) -> Host {
        Host {
            running: version(RUNNING),
            root_hash: self.hash,
            disk: self.disk_path(),
            sector: 512,
            under_root: vec![2, 3],
            boot: boot.to_owned(),
            counted: false,
        }
    }

    pub(crate) fn esp(&self) -> EspFolder {
        EspFolder::of(&self.path("esp"))
    }

    pub(crate) fn disk(&self) -> BlockDisk {
        BlockDisk::open_to_write(&self.disk_path(), 512).unwrap()
    }

    pub(crate) fn slots(&self) -> Slots {
        Slots::find(&writer::read_table(&mut self.disk()).unwrap(), &[2, 3]).unwrap()
    }

    /// Signed by a development key, which is trusted here.
    pub(crate) fn trusted(&self) -> TrustedRoot {
        let root = self.path("root");
        if !root.exists() {
            make::next_root(&root, &[key().public()], 1, true, &[key()]).unwrap();
        }
        Folder::open(&root).unwrap().anchor().unwrap()
    }

    /// A signed release whose image is `image`, with its version in the first block.
    pub(crate) fn release(&self, number: &str, image: &[u8]) -> PathBuf {
        let os_release = os_release(number);
        let image = with_version(image, number);
        let image = image.as_slice();
        let (root, tree) = tree_of(image);
        let build = self.path("build");
        fs::create_dir_all(&build).unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = build.join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let cmdline = format!("roothash={} ro", root.hash);
        let uki = [&bytes(3, 1_500_001)[..], os_release.as_bytes(), cmdline.as_bytes()].concat();
        // As mkosi leaves it: a whole partition.
        let mut partition = [&verity::superblock(&root)[..], tree.bytes()].concat();
        partition.resize(MIB as usize, 0);
        let parts = Parts {
            root: write("root.raw", image),
            tree: write("tree.raw", &partition),
            uki: write("uki.efi", &uki),
            boot_loader: write("loader.efi", &bytes(5, 9000)),
        };
        let about = About {
            version: version(number),
            minimum_version: version(RUNNING),
            architecture: "x86-64".into(),
            created: 0,
            severity: Severity::Normal,
            notes: "a test".into(),
            components: Vec::new(),
        };
        let dir = self.path(number);
        make::release(&parts, about, &dir).unwrap();
        make::sign(&dir.join("manifest.json"), &key()).unwrap();
        dir
    }

    pub(crate) fn open(&self, dir: &Path) -> OpenRelease {
        OpenRelease::open(Folder::open(dir).unwrap(), self.trusted()).unwrap()
    }

    /// Decides and writes, with another disk or ESP where a test has one.
    pub(crate) fn stage_on(
        &self,
        release: &OpenRelease,
        disk: &mut dyn Disk,
        esp: &mut dyn Esp,
    ) -> anyhow::Result<Moved> {
        self.stage_from(release, disk, esp, &mut Source::new(release)?)
    }

    /// The same from any source.
    pub(crate) fn stage_from(
        &self,
        release: &OpenRelease,
        disk: &mut dyn Disk,
        esp: &mut dyn Esp,
        source: &mut dyn BlockSource,
    ) -> anyhow::Result<Moved> {
        let table = writer::read_table(disk)?;
        let facts = Facts {
            table: &table,
            under_root: &[2, 3],
            entries: &esp.list()?,
            esp_free: 100 * MIB,
            running: &version(RUNNING),
            architecture: "x86-64",
        };
        let mut staging = Staging::new(&facts, &release.manifest)?;
        let running = writer::running_tree(disk, &staging.slots.active, self.hash)?;
        let parts = Release { manifest: &release.manifest, tree: &release.tree, uki: &release.uki };
        writer::stage(&mut staging, &mut Devices { disk, esp }, &parts, source, Some(&running), &mut |_| {})
    }

    pub(crate) fn stage(&self, release: &OpenRelease) -> anyhow::Result<Moved> {
        self.stage_on(release, &mut self.disk(), &mut self.esp())
    }

    /// The firmware's and the boot loader's view: the table is valid, the running slot is whole and keeps its entry, and
    /// whatever entry there is beside it names a slot that is whole. Returns whether there is one.
    pub(crate) fn is_safe(&self, manifest: &Manifest) -> bool {
        let slots = self.slots();
        assert_eq!(slots.active.hash(), Some(self.hash), "the running slot lost its label");
        let mut disk = self.disk();
        let tree = writer::running_tree(&mut disk, &slots.active, self.hash).unwrap();
        let whole = |disk: &mut BlockDisk, at: u64, tree: &Tree| {
            (0..tree.data_blocks()).all(|number| {
                let mut block = [0; BLOCK_BYTES];
                disk.read(at + number * BLOCK_BYTES as u64, &mut block).unwrap();
                tree.matches(number, &block)
            })
        };
        assert!(whole(&mut disk, slots.active.data.offset, &tree), "the running slot was written to");
        assert_eq!(fs::read(self.entries().join("cluster-os_1.0.efi")).unwrap(), bytes(2, 70_000));
        let entry = self.entries().join(format!("cluster-os_{}+3-0.efi", manifest.version));
        if !entry.exists() {
            return false;
        }
        assert!(slots.other.is_labelled(manifest), "an entry without its slot");
        let tree = writer::running_tree(&mut disk, &slots.other, manifest.root.hash).unwrap();
        assert!(whole(&mut disk, slots.other.data.offset, &tree), "an entry whose slot is not whole");
        assert_eq!(fs::metadata(entry).unwrap().len(), manifest.uki.bytes);
        true
    }
}
