// SPDX-License-Identifier: Apache-2.0
//! What the updater keeps in `/var`: imported releases, root documents newer than the image's, and what happened.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_updater_core::{
    Manifest, TrustedRoot, Version, manifest, root, signed::signature_name, uki::BlockList, verity,
};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::statvfs::statvfs,
};
use serde::{Deserialize, Serialize};

use crate::{
    folder::{Folder, Successor},
    release::OpenRelease,
    writer::{Phase, Progress},
};

/// Left free in /var for journal and agent.
const MARGIN: u64 = 256 << 20;
/// A release that is not whole yet.
const TEMPORARY: &str = ".import";
/// Holds the version of the newest root document that was accepted, beside those in [`Store::roots`].
const NEWEST: &str = "newest";
/// Whether an interface had a link when a release was staged.
const LINK: &str = "link";
/// Events that are kept.
const HISTORY: usize = 200;

/// A folder in `/var`.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// Something that happened to this node's releases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Seconds since 1970, as the clock of this node said.
    pub time: u64,
    /// The boot in which it happened.
    pub boot: String,
    /// imported, staged, failed, cancelled, given-up, booted, pass, fail, unknown.
    pub what: String,
    /// The release.
    pub version: String,
    /// For people.
    pub detail: String,
}

impl Store {
    /// The store in `dir`, which is made. What an interrupted import left is removed.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path) -> Result<Self> {
        let store = Self { dir: dir.to_owned() };
        for folder in [store.releases(), store.roots()] {
            fs::create_dir_all(&folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
        }
        store.remove_temporary();
        Ok(store)
    }

    /// The store in `dir`, beside the daemon that owns it: for notes only.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn attach(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("failed to make `{}`", dir.display()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn releases(&self) -> PathBuf {
        self.dir.join("releases")
    }

    fn roots(&self) -> PathBuf {
        self.dir.join("root")
    }

    fn remove_temporary(&self) {
        let _ = fs::remove_dir_all(self.releases().join(TEMPORARY));
    }

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

    /// Versions that are here, oldest first.
    #[must_use]
    pub fn versions(&self) -> Vec<Version> {
        let names = fs::read_dir(self.releases()).into_iter().flatten().flatten();
        let mut versions: Vec<Version> =
            names.filter_map(|entry| Version::parse(entry.file_name().to_str()?)).collect();
        versions.sort();
        versions
    }

    /// Opens a release that was imported.
    ///
    /// # Errors
    /// When it is not here or not whole.
    pub fn release(&self, version: &Version, trusted: TrustedRoot) -> Result<OpenRelease> {
        let path = self.releases().join(version.to_string());
        ensure!(path.is_dir(), "version {version} was not imported: `cluster-update import DIR` takes it in");
        let release = OpenRelease::open(Folder::open(&path)?, trusted)?;
        ensure!(
            release.manifest.version == *version,
            "`{}` holds version {}",
            path.display(),
            release.manifest.version
        );
        Ok(release)
    }

    /// Removes releases that are not newer than what runs: the running one is in its slot.
    pub fn remove_old(&self, running: &Version) {
        for version in self.versions().into_iter().filter(|version| version <= running) {
            match fs::remove_dir_all(self.releases().join(version.to_string())) {
                Ok(()) => {
                    tracing::info!(%version, "removed an imported release that is not newer than what runs")
                }
                Err(error) => tracing::warn!(%error, %version, "failed to remove an old release"),
            }
        }
    }

    /// Takes a release in: every block is checked, and it appears whole or not at all.
    ///
    /// # Errors
    /// When something in it is not as it must be, or `/var` is too full; nothing is left then.
    pub fn import(&self, release: &OpenRelease, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let manifest = &*release.manifest;
        let total = size(manifest);
        let state = statvfs(&self.dir)?;
        let free = state.blocks_available() * state.fragment_size();
        ensure!(
            free >= total + MARGIN,
            "/var is too full: the release needs {} MiB and {} MiB must stay free, {} MiB are free",
            total >> 20,
            MARGIN >> 20,
            free >> 20
        );
        self.remove_temporary();
        let imported = self.copy(release, total, progress);
        if imported.is_err() {
            self.remove_temporary();
        }
        imported?;
        // What is there was checked with the same care; its root documents lead further than before.
        self.keep_roots(release)
    }

    fn copy(&self, release: &OpenRelease, total: u64, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let manifest = &*release.manifest;
        let files = manifest.files();
        let temporary = self.releases().join(TEMPORARY);
        fs::create_dir(&temporary).with_context(|| format!("failed to make `{}`", temporary.display()))?;
        let mut file: Option<(String, File)> = None;
        let mut done = 0;
        release.check_all(|name, offset, bytes| {
            let failed = || format!("failed to write `{name}` to /var");
            if file.as_ref().is_none_or(|(open, _)| open != name) {
                if let Some((_, file)) = file.take() {
                    file.sync_all().with_context(failed)?;
                }
                file = Some((name.to_owned(), File::create_new(temporary.join(name)).with_context(failed)?));
            }
            if let Some((_, file)) = &file {
                file.write_all_at(bytes, offset).with_context(failed)?;
            }
            done += bytes.len() as u64;
            progress(Progress { phase: Phase::Importing, done, total });
            Ok(())
        })?;
        if let Some((name, file)) = file {
            file.sync_all().with_context(|| format!("failed to write `{name}` to /var"))?;
        }
        write_tree(&temporary.join(&files.tree), release)?;
        write_synced(&temporary.join(&files.uki_blocks), &release.uki.to_bytes())?;
        // For whoever takes it from here. Of those that this node follows, what it checked and nothing else.
        let known = release.root.document().version.saturating_sub(release.successors.len() as u32);
        let mut small = release.folder.root_files(known)?;
        small.extend(release.manifest.signers().iter().map(|key| signature_name(manifest::FILE_NAME, *key)));
        small.push(manifest::FILE_NAME.to_owned());
        for name in small {
            let bytes = release.folder.read(&name, manifest::MAX_BYTES.max(root::MAX_BYTES))?;
            write_synced(&temporary.join(&name), &bytes)?;
        }
        for step in &release.successors {
            write_successor(&temporary, step)?;
        }
        // It is read once more from where it will stay: what was read twice from a stick need not be the same.
        let copy = OpenRelease::open(Folder::open(&temporary)?, release.root.clone())?;
        ensure!(*copy.manifest == *manifest, "the release changed while it was read: import it again");
        File::open(&temporary)?.sync_all()?;
        let place = self.releases().join(manifest.version.to_string());
        if place.exists() {
            fs::remove_dir_all(&place).with_context(|| format!("failed to replace `{}`", place.display()))?;
        }
        fs::rename(&temporary, &place).with_context(|| format!("failed to name `{}`", place.display()))?;
        File::open(self.releases())?.sync_all()?;
        Ok(())
    }

    /// Only those that led from what was trusted to the one the release was checked with: none that was kept before is
    /// written again.
    fn keep_roots(&self, release: &OpenRelease) -> Result<()> {
        let newest = self.newest_root()?;
        for step in &release.successors {
            let version = step.root.document().version;
            if version <= newest {
                continue;
            }
            // Signatures that somebody left beside one that was never accepted would count towards the limit.
            let own = format!("{}.", root::file_name(version));
            for name in Folder::open(&self.roots())?.names()?.iter().filter(|name| name.starts_with(&own)) {
                fs::remove_file(self.roots().join(name))?;
            }
            write_successor(&self.roots(), step)?;
            File::open(self.roots())?.sync_all()?;
            // Last: a version that is noted and not there would end all imports.
            write_renamed(&self.roots(), NEWEST, version.to_string().as_bytes())?;
        }
        Ok(File::open(self.roots())?.sync_all()?)
    }

    /// Keeps whether an interface had a link when a release was staged, for the check of its boot.
    pub fn note_link(&self, linked: bool) {
        let text = if linked { "yes" } else { "no" };
        if let Err(error) = write_renamed(&self.dir, LINK, text.as_bytes()) {
            tracing::warn!(error = format!("{error:#}"), "the check of the next boot does not know of links");
        }
    }

    /// What was kept; no if nothing was.
    #[must_use]
    pub fn had_link(&self) -> bool {
        fs::read_to_string(self.dir.join(LINK)).is_ok_and(|text| text == "yes")
    }

    /// Adds to what happened in this boot.
    pub fn tell(&self, boot: &str, what: &str, version: &Version, detail: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.note(&Event {
            time: now,
            boot: boot.to_owned(),
            what: what.to_owned(),
            version: version.to_string(),
            detail: detail.to_owned(),
        });
    }

    /// Adds to what happened; the oldest is forgotten. A full disk loses the note, not the update.
    pub fn note(&self, event: &Event) {
        let written = || -> Result<()> {
            // The check of a boot notes its verdict, too.
            let lock = File::create(self.dir.join("history.lock"))?;
            let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
            let mut events = self.history();
            events.push(event.clone());
            let from = events.len().saturating_sub(HISTORY);
            let mut text = Vec::new();
            for event in &events[from..] {
                serde_json::to_writer(&mut text, event)?;
                text.push(b'\n');
            }
            let temporary = self.dir.join("history.new");
            write_synced(&temporary, &text)?;
            Ok(fs::rename(&temporary, self.dir.join("history"))?)
        };
        if let Err(error) = written() {
            tracing::warn!(error = format!("{error:#}"), what = event.what, "not noted in the history");
        }
    }

    /// What happened, oldest first.
    #[must_use]
    pub fn history(&self) -> Vec<Event> {
        let text = fs::read_to_string(self.dir.join("history")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

/// Bytes of a release on disk, but for its small files.
fn size(manifest: &Manifest) -> u64 {
    let list = BlockList::file_bytes(manifest.uki.bytes);
    manifest.root.data_bytes
        + manifest.root.tree_bytes
        + manifest.uki.bytes
        + list
        + manifest.boot_loader.bytes
}

/// In two writes: put together first, it would be in memory twice.
fn write_tree(path: &Path, release: &OpenRelease) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(&verity::superblock(&release.manifest.root))?;
        file.write_all(release.tree.bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("failed to write `{}`", path.display()))
}

/// The signatures first: a document without them would stand in the way of the real one.
fn write_successor(folder: &Path, step: &Successor) -> Result<()> {
    let name = root::file_name(step.root.document().version);
    for (key, signature) in &step.signatures {
        write_renamed(folder, &signature_name(&name, *key), signature)?;
    }
    write_renamed(folder, &name, &step.bytes)
}

/// Whole or not at all.
fn write_renamed(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let temporary = folder.join("new");
    write_synced(&temporary, bytes)?;
    let place = folder.join(name);
    fs::rename(&temporary, &place).with_context(|| format!("failed to name `{}`", place.display()))
}

/// Writes a file anew; it is on the disk when this returns.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let written =
        File::create(path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.with_context(|| format!("failed to write `{}`", path.display()))
}
