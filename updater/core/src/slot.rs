// SPDX-License-Identifier: Apache-2.0
//! The two slots of a disk, and the order in which a release gets into the one that does not run.
//!
//! What must hold after a power cut anywhere: the firmware finds a valid partition table, the boot loader finds the entry of
//! the running version, and an entry of the new version exists only when its slot is whole, labelled and verified. So:
//! the other slot's entry goes first (renamed, then removed), then its labels, then its content; labels come back when the content has been read
//! back, and the entry comes last, by a rename. Of the two copies of the partition table the backup is written first, each
//! between flushes; where only one is valid, the other is made from it before that.

use std::collections::BTreeSet;

pub use crate::refusal::Refusal;
use crate::{
    digest::Digest,
    entry::{self, Entry},
    gpt::{Copy, Guid, Partition, State, Table},
    manifest::Manifest,
    signed::Verified,
    version::Version,
};

/// Partition type of a root image (x86-64; Discoverable Partitions Specification).
pub const ROOT: Guid = Guid(*b"\x4f\x68\xbc\xe3\xe8\xcd\x4d\xb1\x96\xe7\xfb\xca\xf9\x84\xb7\x09");
/// Partition type of its hash tree.
pub const ROOT_VERITY: Guid = Guid(*b"\x2c\x73\x57\xed\xeb\xd2\x46\xd9\xae\xc1\x23\xd4\x37\xec\x2b\xf5");
/// PARTLABEL of what holds nothing, as systemd-sysupdate knows it.
pub const EMPTY: &str = "_empty";
/// Left free on the ESP for directories and whatever else is written there.
const ESP_MARGIN: u64 = 1 << 20;

/// A slot: a root image and its hash tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Holds the root image.
    pub data: Partition,
    /// Holds the hash tree.
    pub tree: Partition,
}

impl Slot {
    /// Labels and UUIDs are those of the release with this version and root hash.
    #[must_use]
    pub fn is_labelled(&self, manifest: &Manifest) -> bool {
        let (data, tree) = manifest.root.partition_uuids();
        self.data.uuid == data && self.tree.uuid == tree && self.data.name == label(&manifest.version)
    }

    /// The root hash that its UUIDs give, if it is not empty.
    #[must_use]
    pub fn hash(&self) -> Option<Digest> {
        let mut hash = [0; 32];
        hash[..16].copy_from_slice(&self.data.uuid.0);
        hash[16..].copy_from_slice(&self.tree.uuid.0);
        (self.data.name != EMPTY).then_some(Digest(hash))
    }

    /// The version that its label names.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        Version::parse(self.data.name.strip_prefix("cluster-os_")?)
    }
}

/// Both slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    /// The one that runs.
    pub active: Slot,
    /// The other one.
    pub other: Slot,
    /// `a` or `b`: the one that runs.
    pub active_name: char,
}

impl Slots {
    /// The slots of a disk. The active one is what lies under the root device, whatever labels say.
    ///
    /// # Errors
    /// When the disk has not exactly two slots, or the root device lies on something else.
    pub fn find(table: &Table, under_root: &[u32]) -> Result<Self, Refusal> {
        let partitions = table.partitions();
        let of_kind = |kind: Guid| partitions.iter().filter(move |partition| partition.kind == kind);
        let pair = |kind| -> Result<(Partition, Partition), Refusal> {
            let (active, other): (Vec<_>, Vec<_>) =
                of_kind(kind).cloned().partition(|partition| under_root.contains(&partition.number));
            match (<[_; 1]>::try_from(active), <[_; 1]>::try_from(other)) {
                (Ok([active]), Ok([other])) => Ok((active, other)),
                (Err(_), _) => Err(Refusal::Disk("the root device lies on other partitions")),
                (_, Err(_)) => Err(Refusal::Disk("there are not two partitions of a kind")),
            }
        };
        let (data, other_data) = pair(ROOT)?;
        let (tree, other_tree) = pair(ROOT_VERITY)?;
        if under_root.len() != 2 {
            return Err(Refusal::Disk("the root device lies on more than image and tree"));
        }
        let active_name = if data.number < other_data.number { 'a' } else { 'b' };
        Ok(Self {
            active: Slot { data, tree },
            other: Slot { data: other_data, tree: other_tree },
            active_name,
        })
    }

    /// Whether the other slot is large enough for the release.
    ///
    /// # Errors
    /// When it is not.
    pub fn fit(&self, manifest: &Manifest) -> Result<(), Refusal> {
        fits("the root image", manifest.root.data_bytes, &self.other.data)?;
        fits("its hash tree", manifest.root.tree_bytes, &self.other.tree)
    }

    /// Whether entries, which go by versions, and slots, which go by what lies under the root device, mean the same.
    ///
    /// # Errors
    /// When the running slot is labelled with another version.
    pub fn holds(&self, running: &Version) -> Result<(), Refusal> {
        if self.active.version().as_ref() != Some(running) {
            return Err(Refusal::Label { label: self.active.data.name.clone(), running: running.clone() });
        }
        Ok(())
    }
}

/// What is known before anything is written.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The disk's partition table.
    pub table: &'a Table,
    /// Numbers of the partitions under the root device.
    pub under_root: &'a [u32],
    /// Files in `EFI/Linux/` with their sizes.
    pub entries: &'a [(String, u64)],
    /// Bytes free on the ESP.
    pub esp_free: u64,
    /// What runs.
    pub running: &'a Version,
    /// As systemd names it.
    pub architecture: &'a str,
}

/// One thing to do. Its writes need not be in order until the next flush or sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Remove a boot entry.
    RemoveEntry(String),
    /// Flush the ESP.
    SyncEsp,
    /// Write these bytes at these offsets of the disk: one copy of the partition table.
    WriteTable(Vec<(u64, Vec<u8>)>),
    /// Flush the disk.
    FlushDisk,
    /// Write image and tree of the release to the other slot.
    WriteSlot,
    /// Read them back and check every block.
    VerifySlot,
    /// Write the UKI under this name.
    WriteEntry(String),
    /// Flush that file, read it back and check every block.
    VerifyEntry(String),
    /// Read the running version's boot entry from the medium: it must be what it was when this was done first. A power cut
    /// during a rename may have left two names for one file, of which each seems to be another.
    CheckRunning {
        /// Its name.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// Rename a file on the ESP.
    RenameEntry {
        /// Its name.
        from: String,
        /// Its new name.
        to: String,
    },
}

/// What is to be done, in order. An effect that fails ends it; beginning anew is always safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps {
    effects: Vec<Effect>,
    at: usize,
}

impl Steps {
    pub(crate) fn new(effects: Vec<Effect>) -> Self {
        Self { effects, at: 0 }
    }

    /// What is to be done now; `None` when all is done.
    #[must_use]
    pub fn current(&self) -> Option<&Effect> {
        self.effects.get(self.at)
    }

    /// The current effect has been carried out.
    pub fn done(&mut self) {
        self.at += 1;
    }
}

/// A release that is to go into the other slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staging {
    /// Where everything is.
    pub slots: Slots,
    /// What to do.
    pub steps: Steps,
}

/// Whether this machine may go from `running` to the release.
///
/// # Errors
/// When it is for other machines, not newer, or needs a release in between.
pub fn may_follow(manifest: &Manifest, running: &Version, architecture: &str) -> Result<(), Refusal> {
    let found = &manifest.version;
    if manifest.architecture != architecture {
        return Err(Refusal::Architecture {
            found: manifest.architecture.clone(),
            wanted: architecture.to_owned(),
        });
    }
    if found == running {
        return Err(Refusal::Runs(running.clone()));
    }
    if found < running {
        return Err(Refusal::Older { found: found.clone(), running: running.clone() });
    }
    if *running < manifest.minimum_version {
        let minimum = manifest.minimum_version.clone();
        return Err(Refusal::Minimum { found: found.clone(), minimum, running: running.clone() });
    }
    Ok(())
}

impl Staging {
    /// Decides how the release gets into the other slot.
    ///
    /// # Errors
    /// When it must not or cannot.
    pub fn new(facts: &Facts<'_>, manifest: &Verified<Manifest>) -> Result<Self, Refusal> {
        may_follow(manifest, facts.running, facts.architecture)?;
        let slots = Slots::find(facts.table, facts.under_root)?;
        slots.holds(facts.running)?;
        let (own, others) = sort_entries(facts.entries, facts.running)?;
        let running = &own[0];
        if running.entry.counter.is_some() {
            return Err(Refusal::Trial(facts.running.clone()));
        }
        let is_ready = |listed: &Listed| {
            let same = listed.entry.version == manifest.version && listed.bytes == manifest.uki.bytes;
            same && !listed.entry.is_bad()
        };
        if slots.other.is_labelled(manifest) && others.iter().any(is_ready) {
            return Err(Refusal::Staged(manifest.version.clone()));
        }
        slots.fit(manifest)?;
        let stale: Vec<(String, u64)> = facts
            .entries
            .iter()
            .filter(|(name, _)| {
                // The running version's may be its boot entry under a second name: removed, it would free that one's clusters.
                (entry::is_temporary(name) && *name != entry::temporary_name(facts.running))
                    || others.iter().any(|listed| listed.name == *name)
            })
            .cloned()
            .collect();
        let free = facts.esp_free.saturating_add(stale.iter().map(|(_, bytes)| bytes).sum());
        let needed = manifest.uki.bytes.saturating_add(ESP_MARGIN);
        if needed > free {
            return Err(Refusal::EspFull { needed, free, others: Vec::new() });
        }
        let stale = removal(stale.into_iter().map(|(name, _)| name), facts.entries);
        let steps = Steps::new(stage_effects(facts.table, &slots, running, stale, manifest));
        Ok(Self { slots, steps })
    }
}

fn stage_effects(
    table: &Table,
    slots: &Slots,
    running: &Listed,
    removal: Vec<Effect>,
    manifest: &Manifest,
) -> Vec<Effect> {
    let (data, tree) = (slots.other.data.number, slots.other.tree.number);
    let mut effects = Vec::new();
    // Whatever is written next must not be the only valid copy.
    let missing = match table.state {
        State::Whole => None,
        State::NoPrimary => Some(Copy::Primary),
        State::NoBackup => Some(Copy::Backup),
    };
    effects.extend(missing.map(|copy| Effect::WriteTable(table.writes(copy))));
    effects.extend(missing.map(|_| Effect::FlushDisk));

    let check = Effect::CheckRunning { name: running.name.clone(), bytes: running.bytes };
    effects.push(check.clone());
    // What others did there, such as a rename by systemd-bless-boot, is on the disk before anything is removed.
    effects.push(Effect::SyncEsp);
    effects.extend(removal);

    let mut empty = table.clone();
    for number in [data, tree] {
        empty.relabel(number, EMPTY, table.unused_uuid(number), 0);
    }
    write_both(&mut effects, &empty);
    effects.extend([Effect::WriteSlot, Effect::FlushDisk, Effect::VerifySlot]);

    let mut full = empty;
    let (data_uuid, tree_uuid) = manifest.root.partition_uuids();
    let name = label(&manifest.version);
    full.relabel(data, &name, data_uuid, slots.active.data.attributes);
    full.relabel(tree, &format!("{name}_verity"), tree_uuid, slots.active.tree.attributes);
    write_both(&mut effects, &full);

    let from = entry::temporary_name(&manifest.version);
    let to = Entry::on_trial(&manifest.version).to_string();
    effects.extend([
        Effect::WriteEntry(from.clone()),
        Effect::VerifyEntry(from.clone()),
        check,
        Effect::RenameEntry { from, to },
        Effect::SyncEsp,
    ]);
    effects
}

/// Removes files of the ESP. Those that the boot loader sees are renamed first: FAT frees a file's clusters and deletes its name
/// in any order, and a cut in between would leave a boot entry without content, which may be what boots next.
fn removal(names: impl Iterator<Item = String>, entries: &[(String, u64)]) -> Vec<Effect> {
    let mut taken: BTreeSet<String> = entries.iter().map(|(name, _)| name.clone()).collect();
    let (mut effects, mut removals) = (Vec::new(), Vec::new());
    for name in names {
        let mut last = name.clone();
        if !entry::is_temporary(&name) {
            // None may fall on another, whose content would go with it.
            while !taken.insert(last.clone()) {
                last = entry::hidden_name(&last);
            }
            effects.push(Effect::RenameEntry { from: name, to: last.clone() });
        }
        removals.push(Effect::RemoveEntry(last));
    }
    if !effects.is_empty() {
        effects.push(Effect::SyncEsp);
    }
    effects.extend(removals);
    effects.push(Effect::SyncEsp);
    effects
}

fn write_both(effects: &mut Vec<Effect>, table: &Table) {
    for copy in [Copy::Backup, Copy::Primary] {
        effects.extend([Effect::WriteTable(table.writes(copy)), Effect::FlushDisk]);
    }
}

/// Name and size of the running version's boot entry, which is marked good.
///
/// # Errors
/// When there is none, or the running version is on trial.
pub fn good_entry(entries: &[(String, u64)], running: &Version) -> Result<(String, u64), Refusal> {
    let (own, _) = sort_entries(entries, running)?;
    let listed = &own[0];
    if listed.entry.counter.is_some() {
        return Err(Refusal::Unjudged(running.clone()));
    }
    Ok((listed.name.clone(), listed.bytes))
}

/// What `rollback` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rollback {
    /// A staged release is not started after all.
    Cancel(Version, Steps),
    /// The next boot is the previous version.
    Return(Version, Steps),
}

/// Decides how this machine gets back: a staged release that has not run is cancelled, else the running version is given
/// up in favour of the previous one.
///
/// # Errors
/// When there is nothing to cancel, and the other slot holds no version with an entry that works.
pub fn rollback(slots: &Slots, entries: &[(String, u64)], running: &Version) -> Result<Rollback, Refusal> {
    slots.holds(running)?;
    let (own, others) = sort_entries(entries, running)?;
    let best = entry::best(others.iter().map(|listed| &listed.entry));
    let usable = || best.values().filter(|entry| !entry.is_bad()).map(|entry| &entry.version);
    if let Some(staged) = usable().find(|version| *version > running) {
        // Each name that it has, also one without tries: another may lead to what is freed.
        let names = others.iter().filter(|listed| listed.entry.version == *staged);
        let steps = Steps::new(removal(names.map(|listed| listed.name.clone()), entries));
        return Ok(Rollback::Cancel(staged.clone(), steps));
    }
    let there = slots.other.version();
    let previous = usable().find(|version| there.as_ref() == Some(*version)).cloned();
    let Some(previous) = previous else {
        return Err(Refusal::NoWayBack("the other slot has no boot entry that works"));
    };
    // Each name that it has, or the boot loader would take the other one. None may fall on another: the file under it would be
    // removed.
    let mut taken: BTreeSet<String> = entries.iter().map(|(name, _)| name.clone()).collect();
    let mut effects = Vec::new();
    for listed in own {
        let mut to = listed.entry.given_up();
        while !taken.insert(to.to_string()) {
            to = to.given_up();
        }
        effects.push(Effect::RenameEntry { from: listed.name, to: to.to_string() });
    }
    effects.push(Effect::SyncEsp);
    Ok(Rollback::Return(previous, Steps::new(effects)))
}

/// A boot entry of ours as it lies on the ESP. The boot loader also reads names that nobody here gives (`+2`, `+03-0`).
#[derive(Debug)]
struct Listed {
    entry: Entry,
    name: String,
    bytes: u64,
}

/// The running version's entries, at least one, and all others of ours. A power cut during a rename may have left several names
/// for one file: the one that counts comes first ([`Entry::order`]). None of the running version's is ever removed, which would free
/// the content of all.
fn sort_entries(entries: &[(String, u64)], running: &Version) -> Result<(Vec<Listed>, Vec<Listed>), Refusal> {
    let listed = |(name, bytes): &(String, u64)| {
        Some(Listed { entry: Entry::parse(name)?, name: name.clone(), bytes: *bytes })
    };
    let ours = entries.iter().filter_map(listed);
    let (mut own, others): (Vec<_>, Vec<_>) = ours.partition(|listed| listed.entry.version == *running);
    own.sort_by_key(|listed| listed.entry.order());
    if own.is_empty() {
        return Err(Refusal::Entries(format!(
            "none of them is of version {running}, which runs: {}",
            entries.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
        )));
    }
    Ok((own, others))
}

fn fits(what: &'static str, needed: u64, partition: &Partition) -> Result<(), Refusal> {
    if needed > partition.bytes {
        return Err(Refusal::SlotTooSmall { what, needed, has: partition.bytes });
    }
    Ok(())
}

/// PARTLABEL of a root image, as mkosi and systemd-sysupdate name it.
fn label(version: &Version) -> String {
    format!("cluster-os_{version}")
}

#[cfg(test)]
#[path = "slot_tests.rs"]
mod tests;
