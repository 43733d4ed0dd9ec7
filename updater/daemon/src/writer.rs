// SPDX-License-Identifier: Apache-2.0
//! Carries out what [`cluster_updater_core::slot`] decides: the one match over all effects.

use std::io;

use anyhow::{Context as _, Result, bail, ensure};
use cluster_updater_core::{
    BlockSource, Digest, Disk, Esp, Manifest, Verified,
    manifest::RootImage,
    plan::{BlockPlan, From, Run, plan},
    slot::{Effect, Slot, Staging, Steps},
    uki::BlockList,
    verity::{self, BLOCK_BYTES, Tree},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes that are read, hashed and written at once.
const PIECE: usize = 256 * BLOCK_BYTES;

/// What the writer works on.
pub struct Devices<'a> {
    /// The disk that this system runs from.
    pub disk: &'a mut dyn Disk,
    /// The boot entries on its ESP.
    pub esp: &'a mut dyn Esp,
}

/// A release whose signatures, tree and block list have been checked.
pub struct Release<'a> {
    /// What it is.
    pub manifest: &'a Verified<Manifest>,
    /// Leads to the manifest's root hash.
    pub tree: &'a Tree,
    /// The UKI's blocks.
    pub uki: &'a BlockList,
}

/// What the writer is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The release is read once more; then the other slot is closed, and the old entry removed.
    Preparing,
    /// Image and tree are written.
    Writing,
    /// They are read back and checked.
    Checking,
    /// The boot entry is written.
    Entry,
    /// A release is taken in from a folder.
    Importing,
    /// Everything of a release but its root image is fetched from members.
    Fetching,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is at.
    pub phase: Phase,
    /// Bytes done of this phase.
    pub done: u64,
    /// Bytes of this phase.
    pub total: u64,
    /// Where the root image's blocks came from so far.
    #[serde(default)]
    pub moved: Moved,
}

/// Where the blocks of the root image came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Blocks that were there already, from an attempt before.
    pub kept: u64,
    /// Blocks copied from the running slot.
    pub local: u64,
    /// Blocks that the source had to give.
    pub fetched: u64,
}

/// Writes a release into the other slot. `running` is the tree of the running slot, if it could be read.
///
/// # Errors
/// When anything fails or is not what it must be. What runs is untouched, and the release has no boot entry.
pub fn stage(
    staging: &mut Staging,
    devices: &mut Devices<'_>,
    release: &Release<'_>,
    source: &mut dyn BlockSource,
    running: Option<&Tree>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Moved> {
    let mut moved = Moved::default();
    let mut running_entry = None;
    let root = &release.manifest.root;
    let mut report = |phase, done, total, moved| progress(Progress { phase, done, total, moved });
    while let Some(effect) = staging.steps.current() {
        match effect {
            Effect::WriteSlot => {
                let plan = plan(release.tree, running);
                let mut writer = SlotWriter {
                    disk: devices.disk,
                    active: &staging.slots.active,
                    other: &staging.slots.other,
                    release,
                    missing: Vec::new(),
                };
                moved = writer.write(&plan, source, &mut |done, moved| {
                    report(Phase::Writing, done, root.data_bytes, moved);
                })?;
            }
            Effect::VerifySlot => {
                check_slot(devices.disk, &staging.slots.other, release, &mut |done| {
                    report(Phase::Checking, done, root.data_bytes, moved);
                })?;
            }
            Effect::WriteEntry(name) => write_entry(devices.esp, name, release, source, &mut |done| {
                report(Phase::Entry, done, release.manifest.uki.bytes, moved);
            })?,
            Effect::VerifyEntry(name) => check_entry(devices.esp, name, release)?,
            Effect::CheckRunning { name, bytes } => {
                let found = digest_of(devices.esp, name, *bytes)?;
                ensure!(
                    *running_entry.get_or_insert(found) == found,
                    "boot entry `{name}` of the running version changed while the other one was written: the ESP is damaged. \
                     Do not restart before `cluster-update stage` has succeeded"
                );
            }
            simple => {
                report(Phase::Preparing, 0, 0, moved);
                carry_out(simple, devices)?;
            }
        }
        staging.steps.done();
    }
    Ok(moved)
}

/// Carries out steps that need no release.
///
/// # Errors
/// When one fails.
pub fn finish(steps: &mut Steps, devices: &mut Devices<'_>) -> Result<()> {
    while let Some(effect) = steps.current() {
        carry_out(effect, devices)?;
        steps.done();
    }
    Ok(())
}

fn carry_out(effect: &Effect, devices: &mut Devices<'_>) -> Result<()> {
    match effect {
        Effect::RemoveEntry(name) => {
            devices.esp.remove(name).with_context(|| format!("failed to remove boot entry `{name}`"))
        }
        Effect::SyncEsp => devices.esp.sync().context("failed to flush the ESP"),
        Effect::WriteTable(writes) => {
            for (offset, bytes) in writes {
                devices.disk.write(*offset, bytes).context("failed to write the partition table")?;
            }
            Ok(())
        }
        Effect::FlushDisk => devices.disk.flush().context("failed to flush the disk"),
        Effect::RenameEntry { from, to } => devices
            .esp
            .rename(from, to)
            .with_context(|| format!("failed to rename boot entry `{from}` to `{to}`")),
        Effect::WriteSlot
        | Effect::VerifySlot
        | Effect::WriteEntry(_)
        | Effect::VerifyEntry(_)
        | Effect::CheckRunning { .. } => {
            bail!("{effect:?} needs a release")
        }
    }
}

struct SlotWriter<'a> {
    disk: &'a mut dyn Disk,
    active: &'a Slot,
    other: &'a Slot,
    release: &'a Release<'a>,
    /// Blocks that are still to be fetched (first, how many): many at once, because most are few in a row. Never more than a
    /// piece of them, and one more piece's.
    missing: Vec<(u64, u64)>,
}

impl SlotWriter<'_> {
    fn write(
        &mut self,
        plan: &BlockPlan,
        source: &mut dyn BlockSource,
        progress: &mut dyn FnMut(u64, Moved),
    ) -> Result<Moved> {
        let mut moved = Moved::default();
        let mut piece = vec![0; PIECE];
        for run in &plan.runs {
            let mut done = 0;
            while done < run.blocks {
                let blocks = (run.blocks - done).min((PIECE / BLOCK_BYTES) as u64);
                let buffer = &mut piece[..blocks as usize * BLOCK_BYTES];
                self.complete(run, done, buffer, &mut moved)?;
                done += blocks;
                if self.missing_blocks() >= (PIECE / BLOCK_BYTES) as u64 {
                    moved.fetched += self.fetch(source)?;
                }
                progress((run.to + done) * BLOCK_BYTES as u64, moved);
            }
        }
        moved.fetched += self.fetch(source)?;
        progress(self.release.manifest.root.data_bytes, moved);
        let offset = self.other.tree.offset;
        let superblock = verity::superblock(&self.release.manifest.root);
        self.disk
            .write(offset, &superblock)
            .and_then(|()| self.disk.write(offset + BLOCK_BYTES as u64, self.release.tree.bytes()))
            .context("failed to write the hash tree to the other slot")?;
        Ok(moved)
    }

    /// Brings those of a few blocks that the other slot does not hold, and the running one does: an attempt before may have been
    /// interrupted anywhere. What neither holds is missing.
    fn complete(&mut self, run: &Run, done: u64, buffer: &mut [u8], moved: &mut Moved) -> Result<()> {
        let to = run.to + done;
        let start = self.offset(to);
        let readable = self.disk.read(start, buffer).is_ok();
        let there: Vec<bool> = buffer
            .chunks(BLOCK_BYTES)
            .zip(to..)
            .map(|(block, number)| readable && self.are(number, block))
            .collect();
        let mut at = 0;
        for same in there.chunk_by(|one, next| one == next) {
            let (first, blocks) = (at as u64, same.len() as u64);
            let part = &mut buffer[at * BLOCK_BYTES..(at + same.len()) * BLOCK_BYTES];
            at += same.len();
            if same[0] {
                moved.kept += blocks;
                continue;
            }
            let local = match run.from {
                From::Local(from) => self.copy_local(from + done + first, to + first, part),
                From::Release => false,
            };
            if local {
                moved.local += blocks;
                self.put(to + first, part)?;
            } else {
                self.missing.push((to + first, blocks));
            }
        }
        Ok(())
    }

    /// Of a block in the other slot, on the disk.
    fn offset(&self, block: u64) -> u64 {
        self.other.data.offset + block * BLOCK_BYTES as u64
    }

    /// Reads blocks of the running slot; false if they are not what its tree says, or cannot be read.
    fn copy_local(&mut self, from: u64, to: u64, buffer: &mut [u8]) -> bool {
        let start = from * BLOCK_BYTES as u64;
        let inside = start + buffer.len() as u64 <= self.active.data.bytes;
        inside && self.disk.read(self.active.data.offset + start, buffer).is_ok() && self.are(to, buffer)
    }

    fn missing_blocks(&self) -> u64 {
        self.missing.iter().map(|(_, blocks)| blocks).sum()
    }

    /// Brings what is missing; returns how many blocks that were.
    fn fetch(&mut self, source: &mut dyn BlockSource) -> Result<u64> {
        let missing = std::mem::take(&mut self.missing);
        let Some((begin, _)) = missing.first() else { return Ok(0) };
        let blocks = missing.iter().map(|(_, blocks)| blocks).sum();
        let mut buffer = vec![0; blocks as usize * BLOCK_BYTES];
        source
            .root(&missing, &mut buffer)
            .with_context(|| format!("failed to read block {begin} of the release's root image"))?;
        let mut rest = &*buffer;
        for (to, blocks) in missing {
            let (part, later) = rest.split_at(blocks as usize * BLOCK_BYTES);
            ensure!(
                self.are(to, part),
                "a block from {to} on of the release's root image is not what the signed tree says: import the release again"
            );
            self.put(to, part)?;
            rest = later;
        }
        Ok(blocks)
    }

    fn put(&mut self, to: u64, blocks: &[u8]) -> Result<()> {
        let start = self.offset(to);
        self.disk.write(start, blocks).context("failed to write the root image to the other slot")
    }

    fn are(&self, to: u64, buffer: &[u8]) -> bool {
        are_blocks(self.release.tree, to, buffer)
    }
}

pub(crate) fn are_blocks(tree: &Tree, first: u64, buffer: &[u8]) -> bool {
    buffer.chunks(BLOCK_BYTES).zip(first..).all(|(block, number)| tree.matches(number, block))
}

fn check_slot(
    disk: &mut dyn Disk,
    slot: &Slot,
    release: &Release<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let what = "what was written to the other slot cannot be read back";
    let root = &release.manifest.root;
    let mut tree = vec![0; root.tree_bytes as usize];
    disk.read(slot.tree.offset, &mut tree).context(what)?;
    ensure!(
        tree[..BLOCK_BYTES] == verity::superblock(root) && tree[BLOCK_BYTES..] == *release.tree.bytes(),
        "the hash tree is not what was written to it: the disk is failing"
    );
    let mut piece = vec![0; PIECE];
    let mut block = 0;
    while block < root.data_blocks {
        let blocks = (root.data_blocks - block).min((PIECE / BLOCK_BYTES) as u64);
        let buffer = &mut piece[..blocks as usize * BLOCK_BYTES];
        disk.read(slot.data.offset + block * BLOCK_BYTES as u64, buffer).context(what)?;
        ensure!(
            are_blocks(release.tree, block, buffer),
            "a block from {block} on of the root image is not what was written to it: the disk is failing"
        );
        block += blocks;
        progress(block * BLOCK_BYTES as u64);
    }
    Ok(())
}

fn write_entry(
    esp: &mut dyn Esp,
    name: &str,
    release: &Release<'_>,
    source: &mut dyn BlockSource,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    in_pieces(release.manifest.uki.bytes, |offset, buffer| {
        source.uki(offset, buffer).context("failed to read the release's UKI")?;
        ensure!(
            release.uki.matches(offset / BLOCK_BYTES as u64, buffer),
            "the release's UKI is not what the manifest says from byte {offset} on: import the release again"
        );
        esp.write(name, offset, buffer).context("failed to write the UKI to the ESP")?;
        progress(offset + buffer.len() as u64);
        Ok(())
    })
}

fn check_entry(esp: &mut dyn Esp, name: &str, release: &Release<'_>) -> Result<()> {
    esp.sync_file(name).context("failed to flush the UKI")?;
    in_pieces(release.manifest.uki.bytes, |offset, buffer| {
        esp.read(name, offset, buffer).context("the UKI cannot be read back from the ESP")?;
        ensure!(
            release.uki.matches(offset / BLOCK_BYTES as u64, buffer),
            "the UKI on the ESP is not what was written to it from byte {offset} on: the disk is failing"
        );
        Ok(())
    })
}

/// The digest of a file of the ESP, as it is on the medium.
fn digest_of(esp: &mut dyn Esp, name: &str, bytes: u64) -> Result<Digest> {
    let failed = || format!("failed to read boot entry `{name}` of the running version");
    esp.sync_file(name).with_context(failed)?;
    let mut hash = Sha256::new();
    in_pieces(bytes, |offset, buffer| {
        esp.read(name, offset, buffer).with_context(failed)?;
        hash.update(&*buffer);
        Ok(())
    })?;
    Ok(Digest(hash.finalize().into()))
}

/// Calls `each` with offset and buffer of every piece of `total` bytes.
pub(crate) fn in_pieces(total: u64, mut each: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    while offset < total {
        let length = (total - offset).min(PIECE as u64) as usize;
        each(offset, &mut piece[..length])?;
        offset += length as u64;
    }
    Ok(())
}

/// The tree of the running slot, checked against the root hash that the kernel was started with.
///
/// # Errors
/// When the disk cannot be read or its tree is not that of `hash`.
pub fn running_tree(disk: &mut dyn Disk, slot: &Slot, hash: cluster_updater_core::Digest) -> Result<Tree> {
    let mut superblock = vec![0; BLOCK_BYTES];
    disk.read(slot.tree.offset, &mut superblock)?;
    let (data_blocks, salt, uuid) = verity::read_superblock(&superblock)
        .context("the running slot has no superblock of a kind that is known")?;
    let tree_bytes = verity::tree_bytes(data_blocks);
    ensure!(tree_bytes <= slot.tree.bytes, "the running slot's tree is larger than its partition");
    let root = RootImage {
        data_bytes: data_blocks * BLOCK_BYTES as u64,
        data_blocks,
        tree_bytes,
        hash,
        salt,
        uuid: cluster_updater_core::gpt::Guid(uuid),
    };
    let mut tree = vec![0; tree_bytes as usize];
    disk.read(slot.tree.offset, &mut tree)?;
    Ok(Tree::take(tree, &root)?)
}

/// Reads a partition table through a [`Disk`].
///
/// # Errors
/// When it cannot be read or neither copy is valid.
pub fn read_table(disk: &mut dyn Disk) -> Result<cluster_updater_core::gpt::Table> {
    let (sector, bytes) = (disk.sector(), disk.bytes());
    let read = |offset, buffer: &mut [u8]| -> io::Result<()> { disk.read(offset, buffer) };
    Ok(cluster_updater_core::gpt::Table::load(sector, bytes, read)?)
}
