// SPDX-License-Identifier: Apache-2.0
//! What this node holds and serves: small files from `/var`, the root image from there or from the slot that has it.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    sync::PoisonError,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use cluster_updater_core::{
    Manifest, Version, manifest,
    serving::{MAX_FILES, is_name},
    slot::Slots,
    sources::Prefix,
};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tracing::{debug, warn};

use super::{STAGE, Updater};
use crate::{
    folder::Folder,
    releases::{
        seam::{ANSWER, Link, Offer},
        shelf::MAX_RELEASES,
    },
};

/// A release and its open files.
struct Held {
    version: Version,
    offer: Offer,
    open: Vec<File>,
}

impl Updater {
    /// Hands what this node holds to `cluster-releases`. Where that does not run, nothing is served and nothing announced;
    /// it asks for this when it starts; one that hangs is waited for for moments. The other slot is left out while it is written.
    pub fn offer(&self) {
        let _one = self.offering.lock().unwrap_or_else(PoisonError::into_inner);
        let with_other = !self.state().job.as_ref().is_some_and(|job| job.what == STAGE && job.withdrawn);
        let slots = self.slots().inspect_err(|error| {
            warn!(error = format!("{error:#}"), "nothing is served from the slots");
        });
        let slots = slots.ok();
        let mut held = Vec::new();
        for version in self.store.versions().into_iter().rev() {
            match self.held_release(version.clone(), slots.as_ref(), with_other) {
                Ok(Some(release)) if held.len() < MAX_RELEASES => held.push(release),
                Ok(_) => {}
                Err(error) => warn!(%version, error = format!("{error:#}"), "a release is not served"),
            }
        }
        let given = self.give(&held);
        if let Err(error) = &given {
            debug!(%error, "nothing is served: cluster-releases.service does not run");
            held.clear();
        }
        let now: Vec<(Version, Prefix)> =
            held.into_iter().map(|release| (release.version, release.offer.prefix)).collect();
        self.held.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }

    fn give(&self, held: &[Held]) -> io::Result<()> {
        let mut link = Link::connect(&self.paths.releases)?;
        let begun = Instant::now();
        link.clear()?;
        for release in held {
            // For all together: whoever answers each at the last moment would hold up what comes after this.
            link.limit(ANSWER.saturating_sub(begun.elapsed()));
            let files: Vec<BorrowedFd<'_>> = release.open.iter().map(|file| file.as_fd()).collect();
            link.serve(&release.offer, &files)?;
        }
        Ok(())
    }

    fn held_release(
        &self,
        version: Version,
        slots: Option<&Slots>,
        with_other: bool,
    ) -> Result<Option<Held>> {
        let folder = Folder::open(&self.store.folder_of(&version))?;
        // It was verified before it got here.
        let manifest = Manifest::parse(&folder.read(manifest::FILE_NAME, manifest::MAX_BYTES)?)?;
        let mut files = Vec::new();
        let mut open = Vec::new();
        if !self.store.has_image(&version) {
            let Some(device) = self.device_of(&manifest, slots, with_other)? else { return Ok(None) };
            files.push((manifest.files().root, manifest.root.data_bytes));
            open.push(device);
        }
        for name in folder.names()?.into_iter().filter(|name| is_name(name)) {
            let file = folder.file(&name)?;
            files.push((name, file.metadata()?.len()));
            open.push(file);
        }
        ensure!(open.len() <= MAX_FILES, "its folder has more than {MAX_FILES} files");
        let prefix = Prefix::of(&manifest.root.hash);
        Ok(Some(Held { version, offer: Offer { prefix, files }, open }))
    }

    /// The device of the slot that holds this root image.
    fn device_of(
        &self,
        manifest: &Manifest,
        slots: Option<&Slots>,
        with_other: bool,
    ) -> Result<Option<File>> {
        let Some(slots) = slots else { return Ok(None) };
        let open =
            |path: &Path| File::open(path).with_context(|| format!("failed to open `{}`", path.display()));
        if slots.active.hash() == Some(manifest.root.hash) {
            return open(&self.paths.root_device).map(Some);
        }
        if !with_other || !slots.other.is_labelled(manifest) {
            return Ok(None);
        }
        let device = open(&self.paths.other_root)?;
        // It was written through the whole disk, whose pages in memory are others.
        posix_fadvise(device.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok(Some(device))
    }
}
