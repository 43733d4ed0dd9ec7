// SPDX-License-Identifier: Apache-2.0
//! Lists of digests by difference: the leaves of the new tree and the new UKI's block list, put together from what the running
//! version's are and what members give. Whoever calls this checks what comes out.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt as _, path::Path};

use anyhow::{Context as _, Result};
use cluster_updater_core::{
    Digest,
    outline::{DIGEST_BYTES, Known},
    serving::Range,
    slot::Slot,
    sources::MAX_RANGE,
    verity::{self, BLOCK_BYTES},
};

use crate::{
    folder::Part,
    peers::{Taking, in_ranges, now},
};

/// A list of digests that is here.
pub(crate) trait List {
    /// Fills `digests` from byte `at` of the list; whoever calls this checks them.
    fn read(&self, at: u64, digests: &mut [u8]) -> bool;
    /// Where its chunks lie.
    fn known(&self) -> io::Result<Known>;
}

/// Leaves on a disk.
impl List for Part {
    fn read(&self, at: u64, digests: &mut [u8]) -> bool {
        self.read_exact_at(digests, at).is_ok()
    }

    fn known(&self) -> io::Result<Known> {
        let mut known = Known::default();
        let mut piece = vec![0; MAX_RANGE as usize];
        for at in (0..self.bytes()).step_by(piece.len()) {
            let piece = &mut piece[..(self.bytes() - at).min(MAX_RANGE) as usize];
            self.read_exact_at(piece, at)?;
            known.add(at, piece);
        }
        Ok(known)
    }
}

/// The leaves of a slot's tree. Nothing in them is checked: a chunk that is wrong is fetched.
///
/// # Errors
/// When the disk cannot be read, or the slot has no tree of a kind that is known.
pub fn leaves(disk: &Path, slot: &Slot) -> Result<Part> {
    let file = File::open(disk).with_context(|| format!("failed to open disk `{}`", disk.display()))?;
    let mut superblock = vec![0; BLOCK_BYTES];
    file.read_exact_at(&mut superblock, slot.tree.offset)?;
    let (data_blocks, ..) = verity::read_superblock(&superblock)
        .context("the running slot has no superblock of a kind that is known")?;
    let (at, bytes) = verity::leaves(data_blocks);
    Ok(Part::new(file, slot.tree.offset + at, bytes))
}

/// The running UKI's blocks: in order, and where each lies.
pub(crate) struct RunningUki<'a> {
    file: &'a File,
    digests: Vec<u8>,
    blocks: BTreeMap<Digest, u64>,
}

impl<'a> RunningUki<'a> {
    pub(crate) fn index(file: &'a File) -> io::Result<Self> {
        let blocks = file.metadata()?.len().min(cluster_updater_core::uki::MAX_BYTES) / BLOCK_BYTES as u64;
        let mut block = [0; BLOCK_BYTES];
        let (mut digests, mut index) = (Vec::with_capacity(blocks as usize * DIGEST_BYTES), BTreeMap::new());
        for number in 0..blocks {
            file.read_exact_at(&mut block, number * BLOCK_BYTES as u64)?;
            let digest = Digest::of(&block);
            digests.extend(digest.0);
            index.insert(digest, number * BLOCK_BYTES as u64);
        }
        Ok(Self { file, digests, blocks: index })
    }

    /// Fills `block` with the one of this digest; whoever calls this hashes it again.
    pub(crate) fn block(&self, digest: Option<Digest>, block: &mut [u8]) -> bool {
        let at = digest.and_then(|digest| self.blocks.get(&digest));
        at.is_some_and(|&at| block.len() == BLOCK_BYTES && self.file.read_exact_at(block, at).is_ok())
    }
}

impl List for RunningUki<'_> {
    fn read(&self, at: u64, digests: &mut [u8]) -> bool {
        let here = usize::try_from(at).ok().and_then(|at| self.digests.get(at..at + digests.len()));
        here.map(|here| digests.copy_from_slice(here)).is_some()
    }

    fn known(&self) -> io::Result<Known> {
        let mut known = Known::default();
        known.add(0, &self.digests);
        Ok(known)
    }
}

/// Fills `list`, which lies in file `name` from byte `first` on. False when all of the list could be here by now, or whoever is
/// asked gave a wrong one before.
///
/// # Errors
/// When nobody is left to ask.
pub(crate) fn put_together(
    taking: &mut Taking<'_>,
    name: &str,
    first: u64,
    list: &mut [u8],
    here: &dyn List,
) -> Result<bool> {
    let Ok(known) = here.known() else { return Ok(false) };
    // For all of it: nothing that comes can be judged before the end.
    let until = now() + taking.sources.time_for(list.len() as u64, now());
    let mut first = first;
    for piece in list.chunks_mut(MAX_RANGE as usize) {
        let outline = taking.outline(name, Range { first, bytes: piece.len() as u64 }, until)?;
        let Some(outline) = outline else { return Ok(false) };
        let missing = known.fill(&outline, piece, |at, digests| here.read(at, digests));
        let ranges: Vec<Range> =
            missing.iter().flat_map(|part| in_ranges(first + part.start as u64, part.len() as u64)).collect();
        let Some(got) = taking.unproven_parts(name, &ranges, until)? else { return Ok(false) };
        let mut rest = &*got;
        for part in missing {
            let (digests, later) = rest.split_at(part.len());
            piece[part].copy_from_slice(digests);
            rest = later;
        }
        first += piece.len() as u64;
    }
    Ok(true)
}
