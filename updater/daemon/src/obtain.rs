// SPDX-License-Identifier: Apache-2.0
//! Takes everything of a release but its root image from members into `/var`, from the signatures down. What an attempt
//! before left there and is right is not asked for again.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use cluster_updater_core::{
    Digest, Manifest, TrustedRoot, Verified, Version,
    keys::SIGNATURE_BYTES,
    manifest, root,
    signed::signature_of,
    sources::{Prefix, RANGE},
    uki::BlockList,
    verity::{self, BLOCK_BYTES, Tree},
};

use crate::{
    folder::Folder,
    peers::Taking,
    release::OpenRelease,
    store::{Store, write_synced},
    writer::{Moved, Phase, Progress},
};

/// What is wanted.
pub struct Wanted<'a> {
    /// The release that members announce.
    pub version: &'a Version,
    /// Of its root hash.
    pub prefix: Prefix,
    /// Who may sign it.
    pub trusted: &'a TrustedRoot,
    /// Whether this node may take it.
    pub accept: &'a dyn Fn(&Verified<Manifest>) -> Result<()>,
    /// The running UKI: most of the next one is in it.
    pub running_uki: Option<File>,
}

/// Takes it, and returns it from where it stays.
///
/// # Errors
/// When no member gives it, this node may not take it, or `/var` is too full.
pub fn obtain(
    store: &Store,
    taking: &mut Taking<'_>,
    wanted: &Wanted<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<OpenRelease> {
    let place = store.fetching(wanted.prefix, 0)?;
    let manifest = small_files(&place, taking, wanted)?;
    (wanted.accept)(&manifest)?;
    let files = manifest.files();
    let list_bytes = BlockList::file_bytes(manifest.uki.bytes);
    let total = manifest.root.tree_bytes + list_bytes + manifest.boot_loader.bytes + manifest.uki.bytes;
    store.fetching(wanted.prefix, total)?;
    let mut done = 0;
    let mut tell = |bytes: u64| {
        done += bytes;
        progress(Progress { phase: Phase::Fetching, done, total, moved: Moved::default() });
    };
    let mut whole = |name: &str, bytes: u64, right: &dyn Fn(&[u8]) -> bool| -> Result<()> {
        let kept = Folder::open(&place)?.read(name, usize::try_from(bytes)?).ok();
        if !kept.is_some_and(|kept| right(&kept)) {
            write_synced(&place.join(name), &taking.whole(name, bytes, right)?)?;
        }
        tell(bytes);
        Ok(())
    };
    whole(&files.tree, manifest.root.tree_bytes, &|bytes| Tree::verify(bytes, &manifest.root).is_ok())?;
    whole(&files.uki_blocks, list_bytes, &|bytes| BlockList::check(bytes, &manifest.uki).is_ok())?;
    let loader = manifest.boot_loader;
    whole(&files.boot_loader, loader.bytes, &|bytes| Digest::of(bytes) == loader.sha256)?;
    // The superblock is not covered by the root hash: ours, not a member's.
    let tree = File::options().write(true).open(place.join(&files.tree))?;
    tree.write_all_at(&verity::superblock(&manifest.root), 0)?;
    let list = Folder::open(&place)?.read(&files.uki_blocks, usize::try_from(list_bytes)?)?;
    let list = BlockList::check(&list, &manifest.uki)?;
    let running = wanted.running_uki.as_ref().map(Running::index).transpose()?;
    uki(&place.join(&files.uki), &files.uki, manifest.uki.bytes, &list, running.as_ref(), taking, &mut tell)?;

    let release = OpenRelease::open(Folder::open(&place)?, wanted.trusted.clone())?;
    ensure!(*release.manifest == *manifest, "the release changed while it was fetched: stage again");
    store.adopt(&place, &release)?;
    // Two trees at a time would be one too many.
    drop(release);
    OpenRelease::open(Folder::open(&store.folder_of(wanted.version))?, wanted.trusted.clone())
}

/// Manifest, root documents and signatures: all from one member, and good together.
fn small_files(place: &Path, taking: &mut Taking<'_>, wanted: &Wanted<'_>) -> Result<Verified<Manifest>> {
    loop {
        let Some(files) = taking.small_files(small)? else { continue };
        for entry in fs::read_dir(place)? {
            let entry = entry?;
            if entry.file_name().to_str().is_none_or(|name| small(name).is_some()) {
                fs::remove_file(entry.path())?;
            }
        }
        for (name, bytes) in &files {
            write_synced(&place.join(name), bytes)?;
        }
        match check_small(place, wanted) {
            Ok(manifest) => return Ok(manifest),
            Err(error) => taking.lied(&format!("{error:#}"))?,
        }
    }
}

fn check_small(place: &Path, wanted: &Wanted<'_>) -> Result<Verified<Manifest>> {
    let folder = Folder::open(place)?;
    let root = folder.follow(wanted.trusted.clone())?;
    let bytes = folder.read(manifest::FILE_NAME, manifest::MAX_BYTES)?;
    let found = root.verify(&bytes, &folder.signatures(manifest::FILE_NAME)?)?;
    ensure!(
        found.version == *wanted.version && Prefix::of(&found.root.hash) == wanted.prefix,
        "its manifest is of version {}, root hash {}, not of what it announces",
        found.version,
        found.root.hash
    );
    Ok(found)
}

/// The longest that a manifest, root document or signature may be; `None` for other files.
pub(crate) fn small(name: &str) -> Option<usize> {
    let is_root = |name: &str| {
        let version = name.strip_prefix("root.").and_then(|rest| rest.strip_suffix(".json"));
        version.and_then(|version| version.parse::<u32>().ok()).is_some_and(|n| root::file_name(n) == name)
    };
    if name == manifest::FILE_NAME {
        return Some(manifest::MAX_BYTES);
    }
    if is_root(name) {
        return Some(root::MAX_BYTES);
    }
    let document = name.get(..name.find(".json")? + ".json".len())?;
    let is_signed = document == manifest::FILE_NAME || is_root(document);
    (is_signed && signature_of(document, name).is_some()).then_some(SIGNATURE_BYTES)
}

/// The blocks of the running UKI, wherever they lie.
struct Running<'a> {
    file: &'a File,
    blocks: BTreeMap<Digest, u64>,
}

impl<'a> Running<'a> {
    fn index(file: &'a File) -> io::Result<Self> {
        let blocks = file.metadata()?.len().min(cluster_updater_core::uki::MAX_BYTES) / BLOCK_BYTES as u64;
        let mut block = [0; BLOCK_BYTES];
        let mut index = BTreeMap::new();
        for number in 0..blocks {
            file.read_exact_at(&mut block, number * BLOCK_BYTES as u64)?;
            index.insert(Digest::of(&block), number * BLOCK_BYTES as u64);
        }
        Ok(Self { file, blocks: index })
    }

    /// Fills `block` with the one of this digest; whoever calls this hashes it again.
    fn read(&self, digest: Option<Digest>, block: &mut [u8]) -> bool {
        let at = digest.and_then(|digest| self.blocks.get(&digest));
        at.is_some_and(|&at| block.len() == BLOCK_BYTES && self.file.read_exact_at(block, at).is_ok())
    }
}

/// Completes the UKI in a file: what is right in it stays, then comes what the running UKI has, then what members give.
fn uki(
    path: &Path,
    name: &str,
    bytes: u64,
    list: &BlockList,
    running: Option<&Running<'_>>,
    taking: &mut Taking<'_>,
    tell: &mut dyn FnMut(u64),
) -> Result<()> {
    let failed = || format!("failed to write `{name}` to /var");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.with_context(failed)?;
    file.set_len(bytes).with_context(failed)?;
    let mut piece = vec![0; RANGE];
    let mut offset = 0;
    while offset < bytes {
        let length = (bytes - offset).min(RANGE as u64) as usize;
        let buffer = &mut piece[..length];
        file.read_exact_at(buffer, offset).with_context(|| format!("failed to read `{name}` in /var"))?;
        let first = offset / BLOCK_BYTES as u64;
        let here: Vec<bool> = buffer
            .chunks_mut(BLOCK_BYTES)
            .zip(first..)
            .map(|(block, number)| {
                list.matches(number, block)
                    || running.is_some_and(|running| running.read(list.digest(number), block))
                        && list.matches(number, block)
            })
            .collect();
        let mut at = 0;
        for same in here.chunk_by(|one, next| one == next) {
            let start = at * BLOCK_BYTES;
            at += same.len();
            let part = &mut buffer[start..(at * BLOCK_BYTES).min(length)];
            if !same[0] {
                let from = offset + start as u64;
                let number = from / BLOCK_BYTES as u64;
                taking.part(name, from, part, |got| list.matches(number, got))?;
            }
        }
        file.write_all_at(buffer, offset).with_context(failed)?;
        offset += length as u64;
        tell(length as u64);
    }
    file.sync_all().with_context(failed)
}
