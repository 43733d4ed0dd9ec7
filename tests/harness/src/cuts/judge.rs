// SPDX-License-Identifier: Apache-2.0
//! What boots from a medium, as firmware, systemd-boot and initrd decide it.
//!
//! - Firmware: the primary partition table if its check sums are right, else the backup; the first ESP; `BOOTX64.EFI` on it.
//! - systemd-boot 257 (`boot_entry_compare`): files `*.efi` of `EFI/Linux` that begin as a UKI does; those without tries left
//!   last, then the newest version, then the name, then the one with more tries left. Before a counted entry starts it loses a
//!   try: when it fails for good, the next in that order starts.
//! - initrd: the partitions whose UUIDs are the halves of the UKI's root hash, checked by dm-verity.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use cluster_updater_core::Digest;
use cluster_updater_core::Version;
use cluster_updater_core::entry::Entry;
use cluster_updater_core::gpt::{Guid, Partition, State, Table};
use cluster_updater_core::manifest::RootImage;
use cluster_updater_core::slot::{ROOT, ROOT_VERITY};
use cluster_updater_core::verity::{self, BLOCK_BYTES, Tree};

use super::{Fat, Medium, SECTOR, WriteLog};

const ESP: Guid = Guid(*b"\xc1\x2a\x73\x28\xf8\x1f\x11\xd2\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b");
const BOOT_LOADER: &str = "EFI/BOOT/BOOTX64.EFI";
const ENTRIES: &str = "EFI/Linux";
/// What systemd-boot looks at to know that a file is a UKI lies in here.
const HEAD: usize = 4096;
/// Bytes of the root image that are hashed at once.
const PIECE: usize = 256 * BLOCK_BYTES;

/// A version that may boot, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Which one.
    pub version: Version,
    /// Of its UKI.
    pub uki: Digest,
    /// The first bytes of its UKI.
    pub head: Vec<u8>,
    /// Root hash of its root image.
    pub root: Digest,
}

impl Whole {
    /// The version with this UKI and root hash.
    #[must_use]
    pub fn new(version: Version, uki: &[u8], root: Digest) -> Self {
        Self { version, uki: Digest::of(uki), head: uki[..uki.len().min(HEAD)].to_vec(), root }
    }

    /// The version on an image as it was built, and its boot loader.
    pub fn of_image(image: &Path) -> Result<(Self, Digest)> {
        let file =
            std::fs::File::open(image).with_context(|| format!("failed to open `{}`", image.display()))?;
        let log = WriteLog::empty(&file)?;
        let medium = Medium::new(&file, file.metadata()?.len(), &log)?;
        let table = table(&medium)?;
        let fat = open(&medium, &esp(&table)?)?;
        let names: Vec<String> = fat.list(ENTRIES)?;
        let [name] = names.as_slice() else { bail!("`{}` has the boot entries {names:?}", image.display()) };
        let uki = fat.read(&format!("{ENTRIES}/{name}"))?;
        let version =
            Entry::parse(name).with_context(|| format!("boot entry `{name}` is of no version"))?.version;
        let key = b"roothash=";
        let at =
            uki.windows(key.len()).position(|window| window == key).context("no root hash in the UKI")?;
        let hash = uki.get(at + key.len()..at + key.len() + 64).and_then(|hex| std::str::from_utf8(hex).ok());
        let root = hash.and_then(Digest::parse).context("no root hash in the UKI")?;
        Ok((Self::new(version, &uki, root), Digest::of(&fat.read(BOOT_LOADER)?)))
    }
}

/// What boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What boots first.
    pub version: Version,
    /// Its boot entry, and those that follow should it never come up.
    pub entries: Vec<String>,
    /// Which copies of the partition table are valid.
    pub table: State,
}

/// Knows the versions that may boot from a disk.
pub struct Judge {
    whole: Vec<Whole>,
    boot_loader: Digest,
    /// What was found of a slot's content, by root hash and origin.
    known: BTreeMap<(Digest, Digest, Digest), Result<(), String>>,
    /// The ESP that was looked at last, by origin, and its entries in the boot loader's order.
    last: Option<(Digest, Vec<Listed>)>,
}

#[derive(Clone)]
struct Listed {
    name: String,
    version: Option<Version>,
    tries: Option<(u32, u32)>,
    whole: Option<Whole>,
}

impl Judge {
    /// A judge for a disk from which only `whole` versions may boot, by this boot loader.
    #[must_use]
    pub fn new(whole: Vec<Whole>, boot_loader: Digest) -> Self {
        Self { whole, boot_loader, known: BTreeMap::new(), last: None }
    }

    /// What boots from `medium`: a whole version, and should that one be on trial and never come up, another whole one.
    ///
    /// # Errors
    /// When nothing boots, or something that is not whole, or nothing is left to fall back to.
    pub fn boots(&mut self, medium: &Medium<'_>) -> Result<Choice> {
        let table = table(medium)?;
        let listed = self.entries(medium, &table)?;
        let known = &mut self.known;
        let mut entries = Vec::new();
        let mut first = None;
        for entry in &listed {
            let name = &entry.name;
            let after = if entries.is_empty() { "" } else { ", once what is on trial is given up" };
            let whole = entry
                .whole
                .as_ref()
                .with_context(|| format!("`{name}` is started{after}, and is no whole UKI"))?;
            let opened = slot(&table.partitions(), whole.root).and_then(|(data, tree)| {
                let key = (
                    whole.root,
                    medium.origin(data.offset..data.offset + data.bytes),
                    medium.origin(tree.offset..tree.offset + tree.bytes),
                );
                let found = known.entry(key).or_insert_with(|| {
                    verify(medium, &data, &tree, whole.root).map_err(|error| format!("{error:#}"))
                });
                found.clone().map_err(anyhow::Error::msg)
            });
            opened.with_context(|| format!("`{name}` is started{after}, and its root is not whole"))?;
            entries.push(name.clone());
            first.get_or_insert_with(|| whole.version.clone());
            if entry.tries.is_none() {
                break;
            }
        }
        let version = first.context("the boot loader has no entry")?;
        let last = listed.get(entries.len() - 1).map(|entry| entry.tries);
        ensure!(last == Some(None), "{entries:?} are on trial, and there is nothing to fall back to");
        Ok(Choice { version, entries, table: table.state })
    }

    /// The boot loader's entries, in its order.
    fn entries(&mut self, medium: &Medium<'_>, table: &Table) -> Result<Vec<Listed>> {
        let esp = esp(table)?;
        let origin = medium.origin(esp.offset..esp.offset + esp.bytes);
        if let Some((known, listed)) = &self.last
            && *known == origin
        {
            return Ok(listed.clone());
        }
        let fat = open(medium, &esp)?;
        let loader = Digest::of(&fat.read(BOOT_LOADER)?);
        ensure!(loader == self.boot_loader, "the boot loader is not what it was");
        let mut listed = Vec::new();
        for name in fat.list(ENTRIES)? {
            if name.to_ascii_lowercase().ends_with(".efi") && !name.starts_with('.') {
                let content = fat.read(&format!("{ENTRIES}/{name}"))?;
                listed.extend(Listed::new(&self.whole, name, &content));
            }
        }
        listed.sort_by(|a, b| order(a).cmp(&order(b)));
        self.last = Some((origin, listed.clone()));
        Ok(listed)
    }
}

impl Listed {
    /// The entry that systemd-boot makes of a file; none where it passes over it.
    fn new(all: &[Whole], name: String, content: &[u8]) -> Option<Self> {
        let digest = Digest::of(content);
        let whole = all.iter().find(|whole| whole.uki == digest);
        if whole.is_none() && !all.iter().any(|whole| content.starts_with(&whole.head)) {
            return None;
        }
        let entry = Entry::parse(&name);
        let named = entry.as_ref().map(|entry| entry.version.clone());
        // The version is read from the UKI; where that cannot be told, it is the name's. Other names count as the newest.
        let version = whole.map(|whole| whole.version.clone()).or(named);
        Some(Self { name, version, tries: entry.and_then(|entry| entry.counter), whole: whole.cloned() })
    }
}

/// Smaller is started first.
fn order(entry: &Listed) -> impl Ord + use<'_> {
    let without_counter = entry.name.split('+').next().unwrap_or_default().trim_end_matches(".efi");
    // An entry without a counter is equal to all that are otherwise equal; here it is behind them, which is stricter.
    let (left, done) = entry.tries.unwrap_or((0, u32::MAX));
    (
        matches!(entry.tries, Some((0, _))),
        entry.version.is_some(),
        Reverse(entry.version.clone()),
        Reverse(without_counter),
        Reverse(left),
        done,
    )
}

fn table(medium: &Medium<'_>) -> Result<Table> {
    let read = |at, buffer: &mut [u8]| medium.read(at, buffer);
    Table::load(SECTOR, medium.bytes(), read).context("the firmware finds no partition table")
}

fn esp(table: &Table) -> Result<Partition> {
    let mut partitions = table.partitions().into_iter();
    partitions.find(|partition| partition.kind == ESP).context("the firmware finds no ESP")
}

fn open<'a>(medium: &'a Medium<'a>, esp: &Partition) -> Result<Fat<'a>> {
    Fat::open(medium, esp.offset, esp.bytes).context("the firmware cannot read the ESP")
}

/// Where the ESP of a medium lies.
pub(super) fn esp_range(medium: &Medium<'_>) -> Result<std::ops::Range<u64>> {
    let esp = esp(&table(medium)?)?;
    Ok(esp.offset..esp.offset + esp.bytes)
}

/// The partitions of root image and tree that belong to a root hash.
fn slot(partitions: &[Partition], root: Digest) -> Result<(Partition, Partition)> {
    let one = |kind: Guid, half: &[u8]| {
        let found: Vec<&Partition> = partitions
            .iter()
            .filter(|partition| partition.kind == kind && partition.uuid.0 == *half)
            .collect();
        match found.as_slice() {
            [one] => Ok((*one).clone()),
            [] => bail!("no partition has its UUID"),
            _ => bail!("several partitions have its UUID"),
        }
    };
    Ok((one(ROOT, &root.0[..16])?, one(ROOT_VERITY, &root.0[16..])?))
}

/// What dm-verity would find, reading every block.
fn verify(medium: &Medium<'_>, data: &Partition, tree: &Partition, hash: Digest) -> Result<()> {
    let mut superblock = [0; BLOCK_BYTES];
    medium.read(tree.offset, &mut superblock)?;
    let (data_blocks, salt, uuid) = verity::read_superblock(&superblock).context("there is no superblock")?;
    let tree_bytes = verity::tree_bytes(data_blocks);
    let data_bytes = data_blocks * BLOCK_BYTES as u64;
    ensure!(tree_bytes <= tree.bytes && data_bytes <= data.bytes, "it is larger than its partition");
    let mut bytes = vec![0; tree_bytes as usize];
    medium.read(tree.offset, &mut bytes)?;
    let root = RootImage { data_bytes, data_blocks, tree_bytes, hash, salt, uuid: Guid(uuid) };
    let tree = Tree::take(bytes, &root)?;
    let mut piece = vec![0; PIECE];
    let mut block = 0;
    while block < data_blocks {
        let blocks = (data_blocks - block).min((PIECE / BLOCK_BYTES) as u64);
        let buffer = &mut piece[..blocks as usize * BLOCK_BYTES];
        medium.read(data.offset + block * BLOCK_BYTES as u64, buffer)?;
        for (number, content) in (block..).zip(buffer.chunks(BLOCK_BYTES)) {
            ensure!(tree.matches(number, content), "block {number} is not what the tree says");
        }
        block += blocks;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(names: &[(&str, u8)]) -> String {
        let whole = |version: &str, of: u8| {
            Whole::new(Version::parse(version).expect("one"), &[of; 9], Digest([of; 32]))
        };
        let all = [whole("1.9", 1), whole("1.10", 2)];
        let mut listed: Vec<Listed> =
            names.iter().filter_map(|(name, of)| Listed::new(&all, (*name).to_owned(), &[*of; 9])).collect();
        listed.sort_by(|a, b| order(a).cmp(&order(b)));
        listed.first().map(|entry| entry.name.clone()).unwrap_or_default()
    }

    #[test]
    fn entries_are_in_the_boot_loaders_order() {
        let cases: [(&[(&str, u8)], &str); 6] = [
            (&[("cluster-os_1.9.efi", 1), ("cluster-os_1.10.efi", 2)], "cluster-os_1.10.efi"),
            (&[("cluster-os_1.9.efi", 1), ("cluster-os_1.10+3-0.efi", 2)], "cluster-os_1.10+3-0.efi"),
            (&[("cluster-os_1.9.efi", 1), ("cluster-os_1.10+0-3.efi", 2)], "cluster-os_1.9.efi"),
            (&[("cluster-os_1.9.efi", 2), ("cluster-os_1.10.efi", 1)], "cluster-os_1.9.efi"),
            (&[("cluster-os_1.9.efi", 1), ("CLUSTE~1.EFI", 2)], "CLUSTE~1.EFI"),
            (&[("cluster-os_1.9.efi", 1), ("cluster-os_1.10+3-0.efi", 7)], "cluster-os_1.9.efi"),
        ];
        for (names, wanted) in cases {
            assert_eq!(first(names), wanted, "{names:?}");
        }
    }

    #[test]
    fn a_uki_that_only_begins_well_is_started() {
        let uki = [5; 3 * HEAD];
        let whole = Whole::new(Version::parse("2").expect("one"), &uki, Digest([5; 32]));
        let all = [whole];
        let listed = |content: &[u8]| Listed::new(&all, "cluster-os_2+3-0.efi".to_owned(), content);
        assert!(listed(&uki).is_some_and(|entry| entry.whole.is_some()));
        assert!(listed(&uki[..2 * HEAD]).is_some_and(|entry| entry.whole.is_none()));
        assert!(listed(&uki[..HEAD - 1]).is_none() && listed(&[]).is_none());
    }
}
