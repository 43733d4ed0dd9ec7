// SPDX-License-Identifier: Apache-2.0
//! What the daemon does when it is asked, one thing at a time. Everything here blocks.

mod find;
mod loader;
mod look;
mod offer;
mod past;
mod stage;

use std::{
    fs,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError, TryLockError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_updater_core::{
    Disk as _, Esp as _, TrustedRoot, Version,
    doubts::Doubts,
    entry::Entry,
    slot::{self, Rollback, Slots},
    sources::{Patience, Prefix, Sources},
};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    disk::BlockDisk,
    esp::{self, Folder as Entries, Mounted},
    folder::Folder,
    host::{ARCHITECTURE, Host},
    install,
    paths::Paths,
    release::OpenRelease,
    report::{CheckReport, JobReport, OtherSlot, RollbackReport, SourceReport, StatusReport, TrustReport},
    slots_lock::{self, Held},
    store::{Event, Store, write_synced},
    writer::{self, Devices, Progress},
};

const IMPORT: &str = "import";
const STAGE: &str = "stage";
const ROLLBACK: &str = "rollback";
/// Users may ask for the status as often as they like; the disk is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// What is being written and has not come further for so long waits for a member, or for cluster-releases. A restart is not
/// refused for that: cut anywhere, a write leaves a disk that boots.
const STANDS_STILL: Duration = Duration::from_secs(10);

/// How long members are borne with.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// For each of several versions.
    short: Patience,
    /// For what is asked for, and where nothing else can be had.
    long: Patience,
}

/// The updater of this node.
pub struct Updater {
    paths: Paths,
    patience: Bounds,
    host: Host,
    store: Store,
    state: Mutex<State>,
    /// Held by who changes disk or ESP: a rollback may run beside an import or a fetch.
    writing: Mutex<()>,
    /// Whether somebody does.
    writes: watch::Sender<bool>,
    /// Held by who looks at disk and ESP: whoever asks meanwhile gets what that one sees.
    looking: Mutex<()>,
    /// Held by who tells `cluster-releases` what to serve: two at once would mix what they tell.
    offering: Mutex<()>,
    /// Counts what `Changed` tells.
    changes: watch::Sender<u64>,
    /// What this node serves, for the agent to announce.
    held: watch::Sender<Vec<(Version, Prefix)>>,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    last_failure: Option<String>,
    seen: Option<(Instant, Seen)>,
    /// Members that announced what they did not give.
    doubts: Doubts,
}

struct Job {
    what: &'static str,
    version: Option<Version>,
    progress: Option<Progress>,
    sources: Vec<SourceReport>,
    /// It changes disk or ESP. Before, it may hang for as long as a stick, a server or a member does.
    writes: bool,
    /// The other slot is not served any more.
    withdrawn: bool,
    since: Instant,
    phase_since: Instant,
    /// When it came further last.
    moved: Instant,
}

impl Job {
    fn new(what: &'static str) -> Self {
        let now = Instant::now();
        Self {
            what,
            version: None,
            progress: None,
            sources: Vec::new(),
            writes: what == ROLLBACK,
            withdrawn: false,
            since: now,
            phase_since: now,
            moved: now,
        }
    }
}

/// Somebody changes disk or ESP.
struct Writing<'a> {
    _lock: MutexGuard<'a, ()>,
    writes: &'a watch::Sender<bool>,
}

impl<'a> Writing<'a> {
    fn new(lock: MutexGuard<'a, ()>, writes: &'a watch::Sender<bool>) -> Self {
        writes.send_replace(true);
        Self { _lock: lock, writes }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.writes.send_replace(false);
    }
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
            patience: Bounds { short: Patience::SHORT, long: Patience::LONG },
            host,
            store,
            state: Mutex::default(),
            writing: Mutex::default(),
            writes: watch::Sender::new(false),
            looking: Mutex::default(),
            offering: Mutex::default(),
            changes: watch::Sender::new(0),
            held: watch::Sender::new(Vec::new()),
        };
        if let Err(error) = updater.store.keep_anchor(&updater.paths.image_root) {
            warn!(error = format!("{error:#}"), "this image's root document is not passed on with releases");
        }
        updater.note_boot();
        Ok(updater)
    }

    /// One that is less patient with members: for tests.
    #[must_use]
    pub fn with_patience(mut self, short: Patience, long: Patience) -> Self {
        self.patience = Bounds { short, long };
        self
    }

    /// Tells when something that `Status` shows has changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tells which releases this node serves, when that has changed.
    #[must_use]
    pub fn held(&self) -> watch::Receiver<Vec<(Version, Prefix)>> {
        self.held.subscribe()
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
                sources: job.sources.clone(),
                seconds: job.since.elapsed().as_secs(),
                phase_seconds: job.phase_since.elapsed().as_secs(),
            }),
            // logind is asked on the bus.
            scheduled: None,
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

    /// Takes the release in an open folder or archive in.
    ///
    /// # Errors
    /// When it may not follow what runs, is not whole or not signed, or `/var` is too full.
    pub fn import(&self, folder: OwnedFd) -> Result<Version> {
        self.alone(IMPORT, |updater| {
            let slots = updater.slots()?;
            let release = OpenRelease::open_if(Folder::from_fd(folder)?, updater.trusted()?, |manifest| {
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
            updater.offer();
            Ok(version)
        })
    }

    /// Cancels what is staged, or makes the previous version the next boot's.
    ///
    /// # Errors
    /// When there is nothing to go back to, or the ESP cannot be written.
    pub fn rollback(&self) -> Result<RollbackReport> {
        self.alone(ROLLBACK, |updater| {
            // The version before may know nothing of a node that has moved, and be it once more.
            install::ensure_here(&updater.paths.moved)?;
            let _writing = match updater.writing.try_lock() {
                Err(TryLockError::WouldBlock) => bail!("the updater is busy: wait until it is done"),
                Err(TryLockError::Poisoned(lock)) => Writing::new(lock.into_inner(), &updater.writes),
                Ok(lock) => Writing::new(lock, &updater.writes),
            };
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

    /// Whether a restart may be asked for now. The node is not installed to another disk while what is returned is held.
    ///
    /// # Errors
    /// While something is being written that the next boot could start, and goes on, or the node is installed to another disk.
    pub fn may_reboot(&self) -> Result<Held> {
        match &self.state().job {
            Some(job) if job.writes => ensure!(
                job.moved.elapsed() >= STANDS_STILL,
                "the updater is busy ({}): wait until it is done",
                job.what
            ),
            _ => ensure!(!*self.writes.borrow(), "the updater is busy: wait until it is done"),
        }
        slots_lock::share(&self.paths.slots_lock)
    }

    /// Whether a time server has set the clock in this boot: the jump is over.
    #[must_use]
    pub fn is_clock_set(&self) -> bool {
        self.paths.clock_set.exists()
    }

    /// Tells whether disk or ESP are being changed.
    #[must_use]
    pub fn writes(&self) -> watch::Receiver<bool> {
        self.writes.subscribe()
    }

    /// From here on disk or ESP change; whoever changes them now ends first.
    fn claim(&self) -> Writing<'_> {
        Writing::new(self.writing.lock().unwrap_or_else(PoisonError::into_inner), &self.writes)
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

    /// Runs `work` if nothing else is under way, and keeps how it ended. A rollback also runs beside what touches neither disk
    /// nor ESP: an import, and a release that is being fetched or checked.
    fn alone<T>(&self, what: &'static str, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        // An import touches no slot.
        let _held = (what != IMPORT).then(|| slots_lock::share(&self.paths.slots_lock)).transpose()?;
        let beside = {
            let mut state = self.state();
            match &state.job {
                Some(job) if !job.writes && what == ROLLBACK => true,
                Some(job) => bail!(
                    "the updater is busy ({}, for {} s): wait until it is done",
                    job.what,
                    job.since.elapsed().as_secs()
                ),
                None => {
                    state.job = Some(Job::new(what));
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
        self.with_job(|job| {
            if job.progress.is_none_or(|before| before.phase != progress.phase) {
                job.phase_since = Instant::now();
            }
            if job.progress != Some(progress) {
                job.moved = Instant::now();
            }
            job.progress = Some(progress);
        });
    }

    fn report_sources(&self, sources: &Sources) {
        self.with_job(|job| job.sources = SourceReport::of(sources));
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
}
