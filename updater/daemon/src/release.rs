// SPDX-License-Identifier: Apache-2.0
//! A release in a folder or an archive: checked from the signatures down before anything in it is used.

use std::io;

use anyhow::{Context as _, Result, ensure};
use cluster_updater_core::{
    BlockSource, Digest, Manifest, TrustedRoot, Verified, manifest,
    uki::BlockList,
    verity::{BLOCK_BYTES, Tree},
};

use crate::{
    folder::{Folder, Part, Successor},
    writer::in_pieces,
};

/// A release whose manifest, tree and block list are checked. Root image, UKI and boot loader are checked when they are
/// read.
pub struct OpenRelease {
    /// What it is in.
    pub folder: Folder,
    /// What it is.
    pub manifest: Verified<Manifest>,
    /// Leads to the manifest's root hash.
    pub tree: Tree,
    /// The UKI's blocks.
    pub uki: BlockList,
    /// The root document that it was checked with: what was trusted, or a successor that came with it.
    pub root: TrustedRoot,
    /// The successors that came with it.
    pub successors: Vec<Successor>,
}

impl OpenRelease {
    /// Opens the release in `folder`.
    ///
    /// # Errors
    /// When it is not signed as `trusted` or a successor that came with it asks, is cut off, or its parts do not belong
    /// together.
    pub fn open(folder: Folder, trusted: TrustedRoot) -> Result<Self> {
        Self::open_if(folder, trusted, |_| Ok(()))
    }

    /// The same, if `wanted` agrees: it is asked when the manifest is known to be signed, and before anything is read whose
    /// size the manifest gives.
    ///
    /// # Errors
    /// Those of [`Self::open`] and of `wanted`.
    pub fn open_if(
        folder: Folder,
        trusted: TrustedRoot,
        wanted: impl FnOnce(&Verified<Manifest>) -> Result<()>,
    ) -> Result<Self> {
        let successors = folder.successors(&trusted)?;
        let root = successors.last().map_or(trusted, |last| last.root.clone());
        let bytes = folder.read(manifest::FILE_NAME, manifest::MAX_BYTES)?;
        let manifest = root.verify(&bytes, &folder.signatures(manifest::FILE_NAME)?)?;
        wanted(&manifest)?;
        let files = manifest.files();
        let mut tree = vec![0; manifest.root.tree_bytes as usize];
        folder.file_of(&files.tree, manifest.root.tree_bytes)?.read_exact_at(&mut tree, 0)?;
        let tree = Tree::take(tree, &manifest.root).with_context(|| format!("`{}`", files.tree))?;
        let length = BlockList::file_bytes(manifest.uki.bytes);
        let mut list = vec![0; length as usize];
        folder.file_of(&files.uki_blocks, length)?.read_exact_at(&mut list, 0)?;
        let uki =
            BlockList::check(&list, &manifest.uki).with_context(|| format!("`{}`", files.uki_blocks))?;
        Ok(Self { folder, manifest, tree, uki, root, successors })
    }

    /// Reads every byte of it and checks it; `each` gets name, offset and bytes of what is good.
    ///
    /// # Errors
    /// When something is missing, cut off or not what the manifest says, or `each` fails.
    pub fn check_all(&self, mut each: impl FnMut(&str, u64, &[u8]) -> Result<()>) -> Result<()> {
        let manifest = &*self.manifest;
        let files = manifest.files();
        let root = self.folder.file_of(&files.root, manifest.root.data_bytes)?;
        in_pieces(manifest.root.data_bytes, |offset, buffer| {
            root.read_exact_at(buffer, offset).with_context(|| format!("failed to read `{}`", files.root))?;
            let first = offset / BLOCK_BYTES as u64;
            for (block, number) in buffer.chunks(BLOCK_BYTES).zip(first..) {
                ensure!(
                    self.tree.matches(number, block),
                    "block {number} of `{}` is not what the signed tree says: it was damaged or changed",
                    files.root
                );
            }
            each(&files.root, offset, buffer)
        })?;
        self.check_rest(each)
    }

    /// The same for everything but the root image: of a release that comes from members it is nowhere yet.
    ///
    /// # Errors
    /// Those of [`Self::check_all`].
    pub fn check_rest(&self, mut each: impl FnMut(&str, u64, &[u8]) -> Result<()>) -> Result<()> {
        let manifest = &*self.manifest;
        let files = manifest.files();
        let uki = self.folder.file_of(&files.uki, manifest.uki.bytes)?;
        in_pieces(manifest.uki.bytes, |offset, buffer| {
            uki.read_exact_at(buffer, offset).with_context(|| format!("failed to read `{}`", files.uki))?;
            ensure!(
                self.uki.matches(offset / BLOCK_BYTES as u64, buffer),
                "`{}` is not what the manifest says from byte {offset} on: it was damaged or changed",
                files.uki
            );
            each(&files.uki, offset, buffer)
        })?;
        let mut loader = vec![0; manifest.boot_loader.bytes as usize];
        self.folder.file_of(&files.boot_loader, manifest.boot_loader.bytes)?.read_exact_at(&mut loader, 0)?;
        ensure!(
            Digest::of(&loader) == manifest.boot_loader.sha256,
            "`{}` is not what the manifest says: it was damaged or changed",
            files.boot_loader
        );
        each(&files.boot_loader, 0, &loader)
    }
}

/// The blocks of a release in a folder.
pub struct Source {
    root: Part,
    uki: Part,
}

impl Source {
    /// Opens root image and UKI.
    ///
    /// # Errors
    /// When they are missing or have another size.
    pub fn new(release: &OpenRelease) -> Result<Self> {
        let files = release.manifest.files();
        Ok(Self {
            root: release.folder.file_of(&files.root, release.manifest.root.data_bytes)?,
            uki: release.folder.file_of(&files.uki, release.manifest.uki.bytes)?,
        })
    }
}

impl BlockSource for Source {
    fn root(&mut self, runs: &[(u64, u64)], buffer: &mut [u8]) -> io::Result<()> {
        let mut rest = buffer;
        for (first, blocks) in runs {
            let (part, later) = rest.split_at_mut(*blocks as usize * BLOCK_BYTES);
            self.root.read_exact_at(part, first * BLOCK_BYTES as u64)?;
            rest = later;
        }
        Ok(())
    }

    fn uki(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.uki.read_exact_at(buffer, offset)
    }
}
