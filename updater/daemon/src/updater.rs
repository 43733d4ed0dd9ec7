// SPDX-License-Identifier: Apache-2.0
//! What the daemon does when it is asked, one thing at a time. Everything here blocks.

use std::{
    fs,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_updater_core::{
    Disk as _, Esp as _, TrustedRoot, Version,
    entry::Entry,
    gpt::Table,
    slot::{self, Facts, Refusal, Rollback, Slots, Staging},
};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    disk::BlockDisk,
    esp::{self, Folder as Entries, Mounted},
    folder::Folder,
    host::{ARCHITECTURE, Host},
    paths::Paths,
    release::{OpenRelease, Source},
    report::{
        CheckReport, JobReport, OtherSlot, OtherState, RollbackReport, StageReport, StatusReport, TrustReport,
    },
    store::{Event, Store, write_synced},
    writer::{self, Devices, Moved, Phase, Progress, Release},
};

const IMPORT: &str = "import";
const ROLLBACK: &str = "rollback";
/// Users may ask for the status as often as they like; the disk is looked at this often.
const LOOK: Duration = Duration::from_secs(1);

/// The updater of this node.
pub struct Updater {
    paths: Paths,
    host: Host,
    store: Store,
    state: Mutex<State>,
    /// Held by a rollback: it may run beside an import.
    rollback: Mutex<()>,
    /// Held by who looks at disk and ESP: whoever asks meanwhile gets what that one sees.
    looking: Mutex<()>,
    /// Counts what `Changed` tells.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    last_failure: Option<String>,
    seen: Option<(Instant, Seen)>,
}

struct Job {
    what: &'static str,
    version: Option<Version>,
    progress: Option<Progress>,
    since: Instant,
}

/// What disk, ESP and `/var` show.
#[derive(Clone, Default)]
struct Seen {
    slot: Option<char>,
    boot_entry: Option<Entry>,
    other: OtherSlot,
    releases: Vec<Version>,
    trust: TrustReport,
    problems: Vec<String>,
    obstacles: Vec<String>,
}

impl Updater {
    /// The updater of the running system.
    ///
    /// # Errors
    /// When `/var` cannot be written.
    pub fn new(paths: Paths, host: Host) -> Result<Self> {
        let store = Store::open(&paths.state)?;
        store.remove_old(&host.running);
        let updater = Self {
            paths,
            host,
            store,
            state: Mutex::default(),
            rollback: Mutex::default(),
            looking: Mutex::default(),
            changes: watch::Sender::new(0),
        };
        updater.note_boot();
        Ok(updater)
    }

    /// Tells when something that `Status` shows has changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Everything one wants to know.
    #[must_use]
    pub fn status(&self) -> StatusReport {
        let looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = self.state().seen.clone().filter(|(when, _)| when.elapsed() < LOOK);
        let seen = recent.map_or_else(
            || {
                let seen = self.look();
                self.state().seen = Some((Instant::now(), seen.clone()));
                seen
            },
            |(_, seen)| seen,
        );
        drop(looking);
        let boot_check = fs::read(&self.paths.verdict)
            .ok()
            .and_then(|text| serde_json::from_slice::<CheckReport>(&text).ok());
        let state = self.state();
        StatusReport {
            version: self.host.running.clone(),
            slot: seen.slot,
            root_hash: self.host.root_hash.to_string(),
            marked_good: seen.boot_entry.as_ref().map(|entry| entry.counter.is_none()),
            boot_entry: seen.boot_entry.as_ref().map(ToString::to_string),
            boot_check,
            other: seen.other,
            releases: seen.releases,
            trust: seen.trust,
            job: state.job.as_ref().map(|job| JobReport {
                what: job.what.to_owned(),
                version: job.version.clone(),
                progress: job.progress,
                seconds: job.since.elapsed().as_secs(),
            }),
            last_failure: state.last_failure.clone(),
            problems: seen.problems,
            obstacles: seen.obstacles,
        }
    }

    /// Keeps whether an interface has a link, for the check of what is staged now.
    pub fn note_link(&self, linked: bool) {
        self.store.note_link(linked);
    }

    /// What happened, oldest first.
    #[must_use]
    pub fn history(&self) -> Vec<Event> {
        self.store.history()
    }

    /// Takes the release in an open folder in.
    ///
    /// # Errors
    /// When it may not follow what runs, is not whole or not signed, or `/var` is too full.
    pub fn import(&self, folder: OwnedFd) -> Result<Version> {
        self.alone(IMPORT, |updater| {
            let slots = updater.slots()?;
            let release = OpenRelease::open_if(Folder::from_fd(folder), updater.trusted()?, |manifest| {
                updater.with_job(|job| job.version = Some(manifest.version.clone()));
                slot::may_follow(manifest, &updater.host.running, ARCHITECTURE)?;
                Ok(slots.fit(manifest)?)
            })?;
            let version = release.manifest.version.clone();
            updater.store.import(&release, &mut |progress| updater.report(progress))?;
            let signers: Vec<String> = release.manifest.signers().iter().map(ToString::to_string).collect();
            updater.store.tell(
                &updater.host.boot,
                "imported",
                &version,
                &format!("signed by {}", signers.join(", ")),
            );
            Ok(version)
        })
    }

    /// Writes an imported release into the other slot; without a version the newest.
    ///
    /// # Errors
    /// When there is none, it must not be staged, or anything fails. What runs is untouched.
    pub fn stage(&self, version: Option<Version>) -> Result<StageReport> {
        self.alone("stage", |updater| {
            let version = match version {
                Some(version) => version,
                None => updater
                    .store
                    .versions()
                    .pop()
                    .context("no release was imported: `cluster-update import DIR` takes one in")?,
            };
            updater.with_job(|job| job.version = Some(version.clone()));
            let release = updater.store.release(&version, updater.trusted()?)?;
            let uki_bytes = release.manifest.uki.bytes;
            match updater.write(&release) {
                Ok(blocks) => {
                    let detail = format!(
                        "{} blocks from the running slot, {} from the release, {} there before",
                        blocks.local, blocks.fetched, blocks.kept
                    );
                    updater.store.tell(&updater.host.boot, "staged", &version, &detail);
                    Ok(StageReport { version, already: false, blocks, uki_bytes })
                }
                Err(error) if matches!(error.downcast_ref(), Some(Refusal::Staged(_))) => {
                    Ok(StageReport { version, already: true, blocks: Moved::default(), uki_bytes })
                }
                Err(error) => Err(error),
            }
        })
    }

    /// Cancels what is staged, or makes the previous version the next boot's.
    ///
    /// # Errors
    /// When there is nothing to go back to, or the ESP cannot be written.
    pub fn rollback(&self) -> Result<RollbackReport> {
        let _one = self.rollback.lock().unwrap_or_else(PoisonError::into_inner);
        self.alone(ROLLBACK, |updater| {
            let running = &updater.host.running;
            let mut disk = updater.open_disk(false)?;
            let slots = updater.slots()?;
            let decide = |mut entries: Entries| -> Result<Rollback> {
                let entries = entries.list().context("failed to list the boot entries")?;
                Ok(slot::rollback(&slots, &entries, running)?)
            };
            // What is refused is refused before the ESP becomes writable.
            if matches!(decide(Entries::of(&updater.paths.efi))?, Rollback::Return(..)) {
                updater.nothing_was_chosen()?;
                // First: a check that passes now would have the boot marked good.
                write_synced(&updater.paths.given_up, &[])?;
            }
            let mounted = updater.mount()?;
            let mut esp = mounted.folder();
            let plan = decide(mounted.folder())?;
            let mut devices = Devices { disk: &mut disk, esp: &mut esp };
            Ok(match plan {
                Rollback::Cancel(version, mut steps) => {
                    writer::finish(&mut steps, &mut devices)?;
                    updater.store.tell(&updater.host.boot, "cancelled", &version, "before it was started");
                    RollbackReport { cancelled: Some(version), next_boot: running.clone() }
                }
                Rollback::Return(previous, mut steps) => {
                    writer::finish(&mut steps, &mut devices)?;
                    let detail = format!("by hand, in favour of {previous}");
                    updater.store.tell(&updater.host.boot, "given-up", running, &detail);
                    RollbackReport { cancelled: None, next_boot: previous }
                }
            })
        })
    }

    /// Whether a restart may be asked for now.
    ///
    /// # Errors
    /// While something is being written that the next boot could start.
    pub fn may_reboot(&self) -> Result<()> {
        match &self.state().job {
            Some(job) if job.what != IMPORT => {
                bail!("the updater is busy ({}): wait until it is done", job.what)
            }
            _ => Ok(()),
        }
    }

    fn write(&self, release: &OpenRelease) -> Result<Moved> {
        let mut disk = self.open_disk(true)?;
        let table = writer::read_table(&mut disk)?;
        self.nothing_was_chosen()?;
        // What is refused is refused before the ESP becomes writable.
        self.decide(&table, &mut Entries::of(&self.paths.efi), release)?;
        self.check_whole(release)?;
        let mounted = self.mount()?;
        let mut esp = mounted.folder();
        let mut staging = self.decide(&table, &mut esp, release)?;
        ensure!(
            staging.slots.active.hash() == Some(self.host.root_hash),
            "the slot under the root device is not labelled with the root hash that the kernel was started with"
        );
        let running = writer::running_tree(&mut disk, &staging.slots.active, self.host.root_hash)
            .inspect_err(|error| {
                warn!(error = format!("{error:#}"), "no blocks are taken from the running slot")
            })
            .ok();
        let parts = Release { manifest: &release.manifest, tree: &release.tree, uki: &release.uki };
        writer::stage(
            &mut staging,
            &mut Devices { disk: &mut disk, esp: &mut esp },
            &parts,
            &mut Source::new(release)?,
            running.as_ref(),
            &mut |progress| self.report(progress),
        )
    }

    /// What is in the other slot may be the only way back: it goes for a release that is whole, not for one that was damaged in
    /// `/var` since it was imported.
    fn check_whole(&self, release: &OpenRelease) -> Result<()> {
        let manifest = &*release.manifest;
        let total = manifest.root.data_bytes + manifest.uki.bytes + manifest.boot_loader.bytes;
        let mut done = 0;
        release.check_all(|_, _, bytes| {
            done += bytes.len() as u64;
            self.report(Progress { phase: Phase::Preparing, done, total });
            Ok(())
        })
    }

    fn decide(&self, table: &Table, esp: &mut Entries, release: &OpenRelease) -> Result<Staging> {
        let facts = Facts {
            table,
            under_root: &self.host.under_root,
            entries: &esp.list().context("failed to list the boot entries")?,
            esp_free: esp.free()?,
            running: &self.host.running,
            architecture: ARCHITECTURE,
        };
        Ok(Staging::new(&facts, &release.manifest)?)
    }

    fn nothing_was_chosen(&self) -> Result<()> {
        let chosen = esp::chosen(&self.paths.efivars);
        ensure!(chosen.is_empty(), "{}", chosen.join("; "));
        Ok(())
    }

    fn mount(&self) -> Result<Mounted> {
        let paths = &self.paths;
        Mounted::new(&paths.esp_device, &paths.esp_place, &paths.efi, &paths.esp_lock)
    }

    fn open_disk(&self, to_write: bool) -> Result<BlockDisk> {
        let open = if to_write { BlockDisk::open_to_write } else { BlockDisk::open };
        let disk = open(&self.host.disk, self.host.sector)?;
        ensure!(disk.bytes() > 0, "disk `{}` has no size", self.host.disk.display());
        Ok(disk)
    }

    fn slots(&self) -> Result<Slots> {
        let table = writer::read_table(&mut self.open_disk(false)?)?;
        Ok(Slots::find(&table, &self.host.under_root)?)
    }

    fn trusted(&self) -> Result<TrustedRoot> {
        self.store.trusted(&self.paths.image_root)
    }

    /// Runs `work` if nothing else is under way, and keeps how it ended. A rollback also runs beside an import, which touches
    /// neither disk nor ESP, and may hang for as long as a stick or a server does.
    fn alone<T>(&self, what: &'static str, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let beside = {
            let mut state = self.state();
            match &state.job {
                Some(job) if job.what == IMPORT && what == ROLLBACK => true,
                Some(job) => bail!(
                    "the updater is busy ({}, for {} s): wait until it is done",
                    job.what,
                    job.since.elapsed().as_secs()
                ),
                None => {
                    state.job = Some(Job { what, version: None, progress: None, since: Instant::now() });
                    false
                }
            }
        };
        self.changed();
        info!(what, "begun");
        let outcome = work(self);
        let mut state = self.state();
        let job = if beside { None } else { state.job.take() };
        state.seen = None;
        state.last_failure = outcome.as_ref().err().map(|error| format!("{what}: {error:#}"));
        drop(state);
        match &outcome {
            Ok(_) => info!(what, "done"),
            Err(error) => {
                warn!(what, error = format!("{error:#}"), "failed");
                if let Some(version) = job.and_then(|job| job.version) {
                    self.store.tell(&self.host.boot, "failed", &version, &format!("{what}: {error:#}"));
                }
            }
        }
        self.changed();
        outcome
    }

    fn with_job(&self, change: impl FnOnce(&mut Job)) {
        if let Some(job) = &mut self.state().job {
            change(job);
        }
        self.changed();
    }

    fn report(&self, progress: Progress) {
        self.with_job(|job| job.progress = Some(progress));
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once a boot.
    fn note_boot(&self) {
        let known =
            self.store.history().iter().any(|event| event.boot == self.host.boot && event.what == "booted");
        if !known {
            let how = if self.host.counted { "on trial" } else { "marked good" };
            self.store.tell(&self.host.boot, "booted", &self.host.running, how);
        }
    }

    fn look(&self) -> Seen {
        let obstacles = esp::chosen(&self.paths.efivars);
        let mut seen = Seen { releases: self.store.versions(), obstacles, ..Seen::default() };
        match self.trusted() {
            Ok(root) => {
                let document = root.document();
                seen.trust = TrustReport {
                    root_version: document.version,
                    development: document.development,
                    keys: document.keys.iter().map(|key| key.id.to_string()).collect(),
                    threshold: document.threshold,
                };
            }
            Err(error) => seen.problems.push(format!("no release can be accepted: {error:#}")),
        }
        if let Err(error) = self.look_at_slots(&mut seen) {
            seen.problems.push(format!("{error:#}"));
        }
        seen
    }

    fn look_at_slots(&self, seen: &mut Seen) -> Result<()> {
        let slots = self.slots()?;
        seen.slot = Some(slots.active_name);
        let files = Entries::of(&self.paths.efi)
            .list()
            .context("failed to list the boot entries in /efi/EFI/Linux")?;
        let entries: Vec<Entry> = files.iter().filter_map(|(name, _)| Entry::parse(name)).collect();
        let own = entries.iter().filter(|entry| entry.version == self.host.running);
        seen.boot_entry = own.min_by_key(|entry| entry.counter.is_some()).cloned();
        let version = slots.other.version();
        let other = entries
            .into_iter()
            .filter(|entry| entry.version != self.host.running)
            .find(|entry| Some(&entry.version) == version.as_ref());
        seen.other = match other {
            None => OtherSlot { version, ..OtherSlot::default() },
            Some(entry) => OtherSlot {
                state: match () {
                    () if entry.is_bad() => OtherState::Failed,
                    () if entry.version > self.host.running => OtherState::Staged,
                    () => OtherState::Previous,
                },
                boot_entry: Some(entry.to_string()),
                tries_left: entry.counter.map(|(left, _)| left),
                reason: entry.is_bad().then(|| self.why_given_up(&entry.version)),
                version: Some(entry.version),
            },
        };
        Ok(())
    }

    fn why_given_up(&self, version: &Version) -> String {
        let version = version.to_string();
        let events = self.store.history();
        let ended = events.iter().rev().filter(|event| event.version == version);
        let told = ended
            .take_while(|event| event.what != "staged")
            .find(|event| matches!(event.what.as_str(), "fail" | "unknown" | "given-up"));
        told.map_or_else(
            || "it did not come up far enough to say why".to_owned(),
            |event| event.detail.clone(),
        )
    }
}
