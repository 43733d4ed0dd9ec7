// SPDX-License-Identifier: Apache-2.0
//! Root documents in `/var`: kept as they were checked, passed on with releases, and never gone back on.

use std::{
    fs::{self, File},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use cluster_updater_core::{TrustedRoot, root, signed::signature_name};

use super::{Store, write_renamed, write_synced};
use crate::{
    folder::{Folder, Successor},
    release::OpenRelease,
};

/// Holds the version of the newest root document that was accepted, beside those in [`Store::roots`].
const NEWEST: &str = "newest";

impl Store {
    /// The newest root document: the image's, or a successor that came with a release.
    ///
    /// # Errors
    /// When the image's own is missing or damaged, or what is in `/var` does not lead to the newest one that was accepted: by
    /// an older one, keys would count that do no more.
    pub fn trusted(&self, image: &Path) -> Result<TrustedRoot> {
        let anchor = Folder::open(image)?.anchor().context("this image's own root document")?;
        let newest = self.newest_root()?;
        let (mut steps, error) = Folder::open(&self.roots())?.successors_far(&anchor);
        let trusted = steps.pop().map_or(anchor, |last| last.root);
        let found = trusted.document().version;
        if found < newest {
            let cause =
                error.map_or_else(|| "the next one is missing".to_owned(), |error| format!("{error:#}"));
            bail!(
                "root document {newest} was accepted before, and only {found} is left ({cause}): keys that were replaced \
                 would count again. To go back to the image's own document, remove all files in `{}`",
                self.roots().display()
            );
        }
        if let Some(error) = error {
            tracing::warn!(error = format!("{error:#}"), "a kept root document is left aside");
        }
        Ok(trusted)
    }

    /// 0 where none was kept.
    fn newest_root(&self) -> Result<u32> {
        let path = self.roots().join(NEWEST);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            text => text.with_context(|| format!("failed to read `{}`", path.display()))?,
        };
        text.trim().parse().with_context(|| format!("`{}` holds no version", path.display()))
    }

    /// Keeps the image's own root document, which the next image may not carry any more: members that are behind need it.
    ///
    /// # Errors
    /// When it is damaged, or `/var` cannot be written.
    pub fn keep_anchor(&self, image: &Path) -> Result<()> {
        let anchor = Folder::open(image)?.anchor_document().context("this image's own root document")?;
        let name = root::file_name(anchor.root.document().version);
        if fs::read(self.roots().join(&name)).is_ok_and(|kept| kept == anchor.bytes) {
            return Ok(());
        }
        self.keep_root(&anchor)
    }

    /// Only those that led from what was trusted to the one the release was checked with: none that was kept before is
    /// written again.
    pub(super) fn keep_roots(&self, release: &OpenRelease) -> Result<()> {
        let newest = self.newest_root()?;
        for step in &release.successors {
            let version = step.root.document().version;
            if version <= newest {
                continue;
            }
            self.keep_root(step)?;
            // Last: a version that is noted and not there would end all imports.
            write_renamed(&self.roots().join(NEWEST), version.to_string().as_bytes())?;
        }
        Ok(File::open(self.roots())?.sync_all()?)
    }

    fn keep_root(&self, step: &Successor) -> Result<()> {
        // Signatures that somebody left beside one that was never accepted would count towards the limit.
        let own = format!("{}.", root::file_name(step.root.document().version));
        for name in Folder::open(&self.roots())?.names()?.iter().filter(|name| name.starts_with(&own)) {
            fs::remove_file(self.roots().join(name))?;
        }
        write_successor(&self.roots(), step)?;
        Ok(File::open(self.roots())?.sync_all()?)
    }

    /// Puts root documents into the folder of a release, for whoever takes it from here: those that this node has checked,
    /// now or before. What else came with the release nobody has checked, and whoever passed it on would be taken for a liar.
    pub(super) fn pass_on(&self, release: &OpenRelease, folder: &Path) -> Result<()> {
        let known = release.root.document().version.saturating_sub(release.successors.len() as u32);
        let kept = Folder::open(&self.roots())?;
        for name in kept.root_files(known)? {
            write_synced(&folder.join(&name), &kept.read(&name, root::MAX_BYTES)?)?;
        }
        release.successors.iter().try_for_each(|step| write_successor(folder, step))
    }
}

/// The signatures first: a document without them would stand in the way of the real one.
fn write_successor(folder: &Path, step: &Successor) -> Result<()> {
    let name = root::file_name(step.root.document().version);
    for (key, signature) in &step.signatures {
        write_renamed(&folder.join(signature_name(&name, *key)), signature)?;
    }
    write_renamed(&folder.join(&name), &step.bytes)
}
