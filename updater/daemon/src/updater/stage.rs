// SPDX-License-Identifier: Apache-2.0
//! Staging: from an imported folder, or from members of the cluster.
//!
//! What is in the other slot may be the only way back, and its boot entry is the first thing that goes. Before that, all this
//! is checked: manifest and signatures, the tree from the root hash down, UKI and boot loader byte by byte from `/var`, where
//! they stay; the root image too if it was imported. Where it comes from members, a block that this node lacks is fetched as
//! a sample; each of the others is checked against the tree when it comes, before it is written.

use std::fs::File;

use anyhow::{Context as _, Result, ensure};
use cluster_updater_core::{
    BlockSource, Esp as _, Manifest, Verified, Version,
    entry::Entry,
    gpt::Table,
    plan,
    slot::{Facts, Refusal, Slots, Staging},
    sources::{Holder, Sources},
    verity::{BLOCK_BYTES, Tree},
};
use tracing::warn;

use super::{STAGE, Updater, find::Found};
use crate::{
    disk::BlockDisk,
    esp::{self, ENTRIES, Folder as Entries},
    folder::Part,
    host::ARCHITECTURE,
    install, lists,
    peers::{PeerSource, Taking},
    release::{OpenRelease, Source},
    releases::seam::{FetchError, Link},
    report::{SourceReport, StageReport},
    writer::{self, Devices, Moved, Phase, Progress, Release},
};

/// What the disk shows before anything is written.
struct Ready {
    disk: BlockDisk,
    table: Table,
    slots: Slots,
    /// The tree of the running slot, if it could be read.
    running: Option<Tree>,
}

impl Updater {
    /// Writes a release into the other slot: an imported one, or one that `holders` announce; without a version the newest that
    /// can be had.
    ///
    /// # Errors
    /// When there is none, it must not be staged, or anything fails. What runs is untouched.
    pub fn stage(&self, version: Option<Version>, holders: Vec<Holder>) -> Result<StageReport> {
        self.alone(STAGE, |updater| {
            install::ensure_here(&updater.paths.moved)?;
            let Found { release, mut sources, passed_over } = updater.find(version, &holders)?;
            let version = release.manifest.version.clone();
            let uki_bytes = release.manifest.uki.bytes;
            let written = updater.write(&release, &mut sources);
            updater.with_job(|job| (job.writes, job.withdrawn) = (false, false));
            updater.offer();
            updater.note_sources(&sources);
            let sources = SourceReport::of(&sources);
            let report = |already, blocks, sources| StageReport {
                version: version.clone(),
                already,
                blocks,
                uki_bytes,
                sources,
                passed_over,
            };
            match written {
                Ok(blocks) => {
                    updater.store.tell(&updater.host.boot, "staged", &version, &detail(blocks, &sources));
                    updater.store.remove_overwritten(&[&updater.host.running, &version]);
                    Ok(report(false, blocks, sources))
                }
                Err(error) if matches!(error.downcast_ref(), Some(Refusal::Staged(_))) => {
                    Ok(report(true, Moved::default(), sources))
                }
                Err(error) => Err(error),
            }
        })
    }

    pub(super) fn link(&self) -> Result<Link> {
        Ok(Link::connect(&self.paths.releases).map_err(FetchError::Seam)?)
    }

    pub(super) fn running_uki(&self) -> Option<File> {
        let names = Entries::of(&self.paths.efi).list().ok()?;
        let is_running =
            |name: &str| Entry::parse(name).is_some_and(|entry| entry.version == self.host.running);
        let (name, _) = names.iter().find(|(name, _)| is_running(name))?;
        File::open(self.paths.efi.join(ENTRIES).join(name)).ok()
    }

    pub(super) fn running_leaves(&self) -> Option<Part> {
        let leaves = self.slots().and_then(|slots| lists::leaves(&self.host.disk, &slots.active));
        leaves.inspect_err(|error| warn!(error = format!("{error:#}"), "the whole tree will be fetched")).ok()
    }

    /// Whether it is worth fetching: what is refused later is refused before anything comes whose size the manifest gives.
    pub(super) fn may_stage(&self, manifest: &Verified<Manifest>) -> Result<()> {
        match self.ready(manifest, false) {
            Err(error) if matches!(error.downcast_ref(), Some(Refusal::Staged(_))) => Ok(()),
            ready => ready.map(drop),
        }
    }

    /// Looks and decides while the ESP is still read-only.
    fn ready(&self, manifest: &Verified<Manifest>, to_write: bool) -> Result<Ready> {
        let mut disk = self.open_disk(to_write)?;
        let table = writer::read_table(&mut disk)?;
        self.nothing_was_chosen()?;
        let slots = self.decide(&table, &mut Entries::of(&self.paths.efi), manifest)?.slots;
        ensure!(
            slots.active.hash() == Some(self.host.root_hash),
            "the slot under the root device is not labelled with the root hash that the kernel was started with"
        );
        Ok(Ready { disk, table, slots, running: None })
    }

    fn decide(&self, table: &Table, esp: &mut Entries, manifest: &Verified<Manifest>) -> Result<Staging> {
        let facts = Facts {
            table,
            under_root: &self.host.under_root,
            entries: &esp.list().context("failed to list the boot entries")?,
            esp_free: esp.free()?,
            running: &self.host.running,
            architecture: ARCHITECTURE,
        };
        Staging::new(&facts, manifest).map_err(|refusal| match refusal {
            Refusal::EspFull { needed, free, .. } => {
                Refusal::EspFull { needed, free, others: esp::others(&self.paths.efi) }.into()
            }
            refusal => refusal.into(),
        })
    }

    fn write(&self, release: &OpenRelease, sources: &mut Sources) -> Result<Moved> {
        let mut ready = self.ready(&release.manifest, true)?;
        let has_image = self.store.has_image(&release.manifest.version);
        self.check_whole(release, has_image)?;
        ready.running = writer::running_tree(&mut ready.disk, &ready.slots.active, self.host.root_hash)
            .inspect_err(|error| {
                warn!(error = format!("{error:#}"), "no blocks are taken from the running slot")
            })
            .ok();
        if has_image {
            return self.write_slot(ready, release, &mut Source::new(release)?);
        }
        let files = release.manifest.files();
        let told = |sources: &Sources| self.report_sources(sources);
        let mut link = self.link()?;
        let mut source = PeerSource {
            taking: Taking { link: &mut link, sources, told: &told },
            root: files.root,
            tree: &release.tree,
            uki: release.folder.file_of(&files.uki, release.manifest.uki.bytes)?,
        };
        take_sample(&ready, release, &mut source)?;
        self.write_slot(ready, release, &mut source)
    }

    /// What is in the other slot goes for a release that is whole, not for one that was damaged in `/var` since it came there.
    fn check_whole(&self, release: &OpenRelease, has_image: bool) -> Result<()> {
        let manifest = &*release.manifest;
        let image_bytes = if has_image { manifest.root.data_bytes } else { 0 };
        let total = image_bytes + manifest.uki.bytes + manifest.boot_loader.bytes;
        let mut done = 0;
        let each = |_: &str, _: u64, bytes: &[u8]| {
            done += bytes.len() as u64;
            self.report(Progress { phase: Phase::Preparing, done, total, moved: Moved::default() });
            Ok(())
        };
        if has_image { release.check_all(each) } else { release.check_rest(each) }
    }

    fn write_slot(
        &self,
        mut ready: Ready,
        release: &OpenRelease,
        source: &mut dyn BlockSource,
    ) -> Result<Moved> {
        // Members are not given what is about to be written over. Before anything is claimed: whoever serves may hang.
        self.with_job(|job| job.withdrawn = true);
        self.offer();
        self.with_job(|job| job.writes = true);
        let _writing = self.claim();
        let mounted = self.mount()?;
        let mut esp = mounted.folder();
        let mut staging = self.decide(&ready.table, &mut esp, &release.manifest)?;
        let parts = Release { manifest: &release.manifest, tree: &release.tree, uki: &release.uki };
        writer::stage(
            &mut staging,
            &mut Devices { disk: &mut ready.disk, esp: &mut esp },
            &parts,
            source,
            ready.running.as_ref(),
            &mut |progress| self.report(progress),
        )
    }
}

/// Fetches a block that must come from a member, where the other slot holds something else that it would be written over.
fn take_sample(ready: &Ready, release: &OpenRelease, source: &mut dyn BlockSource) -> Result<()> {
    let other = &ready.slots.other;
    if other.hash().is_none() || other.is_labelled(&release.manifest) {
        return Ok(());
    }
    let plan = plan::plan(&release.tree, ready.running.as_ref());
    let Some(run) = plan.runs.iter().find(|run| run.from == plan::From::Release) else { return Ok(()) };
    source.root(&[(run.to, 1)], &mut [0; BLOCK_BYTES]).with_context(|| {
        format!("failed to get block {} of the release's root image; nothing was changed", run.to)
    })
}

/// For the history.
fn detail(blocks: Moved, sources: &[SourceReport]) -> String {
    let members: Vec<String> = sources
        .iter()
        .filter(|source| source.bytes > 0)
        .map(|source| format!("{} KiB from {}", source.bytes >> 10, source.name))
        .collect();
    let members = if members.is_empty() {
        String::new()
    } else {
        format!(" ({}, UKI and tree included)", members.join(", "))
    };
    format!(
        "{} blocks from the running slot, {} from the release{members}, {} there before",
        blocks.local, blocks.fetched, blocks.kept
    )
}
