// SPDX-License-Identifier: Apache-2.0
//! What the updater keeps in `/var`: imported releases, root documents, and what happened.

mod roots;

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use cluster_updater_core::{
    Manifest, TrustedRoot, Verified, Version, manifest, signed::signature_name, sources::Prefix, verity,
};
use nix::sys::statvfs::{Statvfs, statvfs};
use serde::{Deserialize, Serialize};

use crate::{
    esp,
    folder::Folder,
    release::OpenRelease,
    writer::{Moved, Phase, Progress},
};

/// Left free in /var for journal and agent.
const MARGIN: u64 = 256 << 20;
/// A release that is not whole yet.
const TEMPORARY: &str = ".import";
/// A release that is being fetched; its prefix follows. It stays when that is interrupted.
const FETCHED: &str = ".fetch-";
/// How the name of a root image ends.
const IMAGE: &str = ".root.raw";
/// Whether an interface had a link when a release was staged.
const LINK: &str = "link";
/// The newest version whose boot loader was put on the ESP.
const LOADER: &str = "boot-loader";
/// Records of crashes that were seen, and the boot that saw each first.
const CRASHES: &str = "crashes";
/// Events that are kept.
const HISTORY: usize = 200;
/// Whoever notes an event is done in moments. The check of a boot must not wait for one that hangs.
const OTHERS: Duration = Duration::from_secs(10);

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
    /// imported, staged, failed, cancelled, given-up, booted, refunded, pass, fail, unknown, boot-loader.
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
        ensure!(path.is_dir(), "version {version} was not imported: `cluster-update import` takes it in");
        let release = OpenRelease::open(Folder::open(&path)?, trusted)?;
        ensure!(
            release.manifest.version == *version,
            "`{}` holds version {}",
            path.display(),
            release.manifest.version
        );
        Ok(release)
    }

    /// Whether a release's root image is here too; of one that came from members, or runs, it is in a slot only.
    #[must_use]
    pub fn has_image(&self, version: &Version) -> bool {
        let files = fs::read_dir(self.folder_of(version)).into_iter().flatten().flatten();
        files.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().ends_with(IMAGE))
    }

    /// Where a release is, if it is here.
    #[must_use]
    pub fn folder_of(&self, version: &Version) -> PathBuf {
        self.releases().join(version.to_string())
    }

    /// Removes releases that are older than what runs. Of the running one the image goes, which is in its slot; the rest
    /// stays, for the members that take it from here.
    pub fn remove_old(&self, running: &Version) {
        for version in self.versions().into_iter().filter(|version| version <= running) {
            let removed = if version == *running {
                self.remove_image(&version)
            } else {
                fs::remove_dir_all(self.folder_of(&version)).map(|()| true)
            };
            match removed {
                Ok(true) => {
                    tracing::info!(%version, "removed what is not needed of a release that is not newer than what runs")
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, %version, "failed to remove an old release"),
            }
        }
    }

    /// Removes releases whose root image was in a slot that has been written over.
    pub fn remove_overwritten(&self, in_slots: &[&Version]) {
        for version in self.versions().into_iter().filter(|version| !in_slots.contains(&version)) {
            if !self.has_image(&version)
                && let Err(error) = fs::remove_dir_all(self.folder_of(&version))
            {
                tracing::warn!(%error, %version, "failed to remove a release that is in no slot any more");
            }
        }
    }

    fn remove_image(&self, version: &Version) -> std::io::Result<bool> {
        let mut removed = false;
        for entry in fs::read_dir(self.folder_of(version))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(IMAGE) {
                fs::remove_file(entry.path())?;
                removed = true;
            }
        }
        Ok(removed)
    }

    /// The folder into which a release is fetched, with what an interrupted attempt left in it. What was fetched of others
    /// is removed.
    ///
    /// # Errors
    /// When it cannot be made, or `/var` has not `needed` bytes left beside those that must stay free.
    pub fn fetching(&self, prefix: Prefix, needed: u64) -> Result<PathBuf> {
        let own = format!("{FETCHED}{prefix}");
        for entry in fs::read_dir(self.releases())?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(FETCHED) && name != own {
                fs::remove_dir_all(entry.path()).with_context(|| format!("failed to remove `{name}`"))?;
            }
        }
        ensure_room(&statvfs(&self.dir)?, needed)?;
        let place = self.releases().join(own);
        fs::create_dir_all(&place).with_context(|| format!("failed to make `{}`", place.display()))?;
        Ok(place)
    }

    /// Names the folder of a release that was fetched and checked; its root documents lead further than before. Whatever else
    /// a member gave is removed.
    ///
    /// # Errors
    /// When `/var` cannot be written.
    pub fn adopt(&self, fetched: &Path, release: &OpenRelease) -> Result<()> {
        let files = release.manifest.files();
        let mut checked = signed_files(&release.manifest);
        checked.extend([files.tree, files.uki, files.uki_blocks, files.boot_loader]);
        for name in Folder::open(fetched)?.names()?.iter().filter(|name| !checked.contains(name)) {
            fs::remove_file(fetched.join(name)).with_context(|| format!("failed to remove `{name}`"))?;
        }
        self.pass_on(release, fetched)?;
        for entry in fs::read_dir(fetched)? {
            File::open(entry?.path())?.sync_all()?;
        }
        File::open(fetched)?.sync_all()?;
        let place = self.folder_of(&release.manifest.version);
        if place.exists() {
            fs::remove_dir_all(&place).with_context(|| format!("failed to replace `{}`", place.display()))?;
        }
        fs::rename(fetched, &place).with_context(|| format!("failed to name `{}`", place.display()))?;
        File::open(self.releases())?.sync_all()?;
        self.keep_roots(release)
    }

    /// Takes a release in: every block is checked, and it appears whole or not at all.
    ///
    /// # Errors
    /// When something in it is not as it must be, or `/var` is too full; nothing is left then.
    pub fn import(&self, release: &OpenRelease, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let manifest = &*release.manifest;
        let total = manifest.bytes();
        ensure_room(&statvfs(&self.dir)?, total)?;
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
            progress(Progress { phase: Phase::Importing, done, total, moved: Moved::default() });
            Ok(())
        })?;
        if let Some((name, file)) = file {
            file.sync_all().with_context(|| format!("failed to write `{name}` to /var"))?;
        }
        write_tree(&temporary.join(&files.tree), release)?;
        write_synced(&temporary.join(&files.uki_blocks), &release.uki.to_bytes())?;
        for name in signed_files(&release.manifest) {
            let bytes = release.folder.read(&name, manifest::MAX_BYTES)?;
            write_synced(&temporary.join(&name), &bytes)?;
        }
        self.pass_on(release, &temporary)?;
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

    /// Keeps whether an interface had a link when a release was staged, for the check of its boot.
    pub fn note_link(&self, linked: bool) {
        let text = if linked { "yes" } else { "no" };
        if let Err(error) = write_renamed(&self.dir.join(LINK), text.as_bytes()) {
            tracing::warn!(error = format!("{error:#}"), "the check of the next boot does not know of links");
        }
    }

    /// What was kept; no if nothing was.
    #[must_use]
    pub fn had_link(&self) -> bool {
        fs::read_to_string(self.dir.join(LINK)).is_ok_and(|text| text == "yes")
    }

    /// What was kept of records of crashes; nothing if that cannot be read.
    #[must_use]
    pub(crate) fn crashes(&self) -> String {
        fs::read_to_string(self.dir.join(CRASHES)).unwrap_or_default()
    }

    /// Keeps which records of crashes there are.
    ///
    /// # Errors
    /// When `/var` cannot be written.
    pub(crate) fn note_crashes(&self, text: &str) -> Result<()> {
        write_renamed(&self.dir.join(CRASHES), text.as_bytes())
    }

    /// Keeps that this version's boot loader is the one on the ESP.
    ///
    /// # Errors
    /// When `/var` cannot be written.
    pub fn note_loader(&self, version: &Version) -> Result<()> {
        if self.loader().as_ref() == Some(version) {
            return Ok(());
        }
        write_renamed(&self.dir.join(LOADER), version.to_string().as_bytes())
    }

    /// What was kept.
    #[must_use]
    pub fn loader(&self) -> Option<Version> {
        Version::parse(fs::read_to_string(self.dir.join(LOADER)).ok()?.trim())
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
            let _lock = esp::lock(lock, OTHERS).context("somebody else holds it")?;
            let mut events = self.history();
            events.push(event.clone());
            while events.len() > HISTORY {
                // What was given up is not taken again as long as that is known.
                let oldest = events.iter().position(|event| event.what != "given-up").unwrap_or(0);
                events.remove(oldest);
            }
            let mut text = Vec::new();
            for event in &events {
                serde_json::to_writer(&mut text, event)?;
                text.push(b'\n');
            }
            write_renamed(&self.dir.join("history"), &text)
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

/// Space that must be in `/var` before anything is written.
///
/// # Errors
/// When it is not there.
pub(crate) fn ensure_room(var: &Statvfs, needed: u64) -> Result<()> {
    let free = var.blocks_available() * var.fragment_size();
    ensure!(
        free >= needed.saturating_add(MARGIN),
        "/var is too full: {} MiB are needed to take the release in and {} MiB must stay free, {} MiB are free",
        needed >> 20,
        MARGIN >> 20,
        free >> 20
    );
    Ok(())
}

/// The manifest and those signatures of it that counted.
fn signed_files(manifest: &Verified<Manifest>) -> Vec<String> {
    let signatures = manifest.signers().iter().map(|key| signature_name(manifest::FILE_NAME, *key));
    signatures.chain([manifest::FILE_NAME.to_owned()]).collect()
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

/// Writes a file whole or not at all, under another name of its own first: others may write beside it at the same time.
pub(crate) fn write_renamed(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = unfinished(path);
    write_synced(&temporary, bytes)?;
    fs::rename(&temporary, path).with_context(|| format!("failed to name `{}`", path.display()))
}

/// What a file is called while it is written.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Writes a file anew; it is on the disk when this returns.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let written =
        File::create(path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.with_context(|| format!("failed to write `{}`", path.display()))
}
