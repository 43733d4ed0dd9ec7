// SPDX-License-Identifier: Apache-2.0
//! Takes everything of a release but its root image from members into `/var`, from the signatures down. What an attempt
//! before left there and is right is not asked for again.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use cluster_updater_core::{
    Digest, Manifest, TrustedRoot, Verified, Version,
    keys::SIGNATURE_BYTES,
    manifest, root,
    serving::Range,
    signed::signature_of,
    sources::{Prefix, RANGE},
    uki::BlockList,
    verity::{self, BLOCK_BYTES, Tree},
};
use tracing::warn;

use crate::{
    folder::{Folder, Part},
    lists::{RunningUki, put_together},
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
    /// The running image's boot loader, which most often is the next one's.
    pub boot_loader: &'a Path,
    /// The leaves of the running slot's tree.
    pub running_leaves: Option<Part>,
}

/// Makes a file of what is here, if it can, and little else.
type Make<'a> = &'a mut dyn FnMut(&mut Taking<'_>) -> Result<Option<Vec<u8>>>;

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
    let running = wanted.running_uki.as_ref().and_then(|file| {
        let index = RunningUki::index(file);
        index.inspect_err(|error| warn!(%error, "nothing is taken from the running UKI")).ok()
    });
    let mut get = |name: &str, bytes: u64, right: &dyn Fn(&[u8]) -> bool, make: Make<'_>| -> Result<()> {
        let kept = Folder::open(&place)?.read(name, usize::try_from(bytes)?).ok();
        if !kept.is_some_and(|kept| right(&kept)) {
            let made = make(taking)?.filter(|made| right(made));
            taking.judged(made.is_some());
            let file = match made {
                Some(made) => made,
                None => taking.whole(name, bytes, right)?,
            };
            write_synced(&place.join(name), &file)?;
        }
        tell(bytes);
        Ok(())
    };
    let root = &manifest.root;
    get(&files.tree, root.tree_bytes, &|bytes| Tree::verify(bytes, root).is_ok(), &mut |taking| {
        let Some(here) = &wanted.running_leaves else { return Ok(None) };
        let mut tree = vec![0; usize::try_from(root.tree_bytes)?];
        let (at, bytes) = verity::leaves(root.data_blocks);
        let leaves = &mut tree[at as usize..(at + bytes) as usize];
        let is_whole =
            put_together(taking, &files.tree, at, leaves, here)? && verity::complete(&mut tree, root);
        Ok(is_whole.then_some(tree))
    })?;
    let uki_right = |bytes: &[u8]| BlockList::check(bytes, &manifest.uki).is_ok();
    get(&files.uki_blocks, list_bytes, &uki_right, &mut |taking| {
        let Some(here) = &running else { return Ok(None) };
        let mut list = vec![0; usize::try_from(list_bytes)?];
        Ok(put_together(taking, &files.uki_blocks, 0, &mut list, here)?.then_some(list))
    })?;
    let loader = manifest.boot_loader;
    get(&files.boot_loader, loader.bytes, &|bytes| Digest::of(bytes) == loader.sha256, &mut |_| {
        Ok(fs::read(wanted.boot_loader).ok())
    })?;
    // The superblock is not covered by the root hash: ours, not a member's.
    let tree = File::options().write(true).open(place.join(&files.tree))?;
    tree.write_all_at(&verity::superblock(&manifest.root), 0)?;
    let list = Folder::open(&place)?.read(&files.uki_blocks, usize::try_from(list_bytes)?)?;
    let list = BlockList::check(&list, &manifest.uki)?;
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

/// Completes the UKI in a file: what is right in it stays, then comes what the running UKI has, then what members give.
fn uki(
    path: &Path,
    name: &str,
    bytes: u64,
    list: &BlockList,
    running: Option<&RunningUki<'_>>,
    taking: &mut Taking<'_>,
    tell: &mut dyn FnMut(u64),
) -> Result<()> {
    let failed = || format!("failed to write `{name}` to /var");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let file = file.with_context(failed)?;
    file.set_len(bytes).with_context(failed)?;
    // Many at once: most are few in a row.
    let mut missing: Vec<Range> = Vec::new();
    let mut fetch = |missing: &mut Vec<Range>| -> Result<()> {
        let mut got = vec![0; missing.iter().map(|part| part.bytes as usize).sum()];
        taking.parts(name, missing, &mut got, |at, part| list.matches(at / BLOCK_BYTES as u64, part))?;
        let mut rest = &*got;
        for part in missing.drain(..) {
            let (blocks, later) = rest.split_at(part.bytes as usize);
            file.write_all_at(blocks, part.first).with_context(failed)?;
            rest = later;
        }
        Ok(())
    };
    let mut piece = vec![0; RANGE];
    let mut offset = 0;
    while offset < bytes {
        let length = (bytes - offset).min(RANGE as u64) as usize;
        let buffer = &mut piece[..length];
        file.read_exact_at(buffer, offset).with_context(|| format!("failed to read `{name}` in /var"))?;
        for (number, block) in (offset / BLOCK_BYTES as u64..).zip(buffer.chunks_mut(BLOCK_BYTES)) {
            if list.matches(number, block) {
                continue;
            }
            let part = Range { first: number * BLOCK_BYTES as u64, bytes: block.len() as u64 };
            if running.is_some_and(|running| running.block(list.digest(number), block))
                && list.matches(number, block)
            {
                file.write_all_at(block, part.first).with_context(failed)?;
                continue;
            }
            match missing.last_mut() {
                Some(last) if last.first + last.bytes == part.first && last.bytes < RANGE as u64 => {
                    last.bytes += part.bytes;
                }
                _ => missing.push(part),
            }
        }
        if missing.iter().map(|part| part.bytes).sum::<u64>() >= RANGE as u64 {
            fetch(&mut missing)?;
        }
        offset += length as u64;
        tell(length as u64);
    }
    fetch(&mut missing)?;
    file.sync_all().with_context(failed)
}
