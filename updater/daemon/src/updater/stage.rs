// SPDX-License-Identifier: Apache-2.0
//! Staging: from an imported folder, or from members of the cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
};

use anyhow::{Context as _, Result, ensure};
use cluster_updater_core::{
    BlockSource, Digest, Esp as _, Manifest, Version,
    entry::Entry,
    slot::{self, Facts, Refusal, Staging},
    sources::{Holder, Prefix, Sources},
};
use tracing::{info, warn};

use super::Updater;
use crate::{
    esp::{ENTRIES, Folder as Entries},
    host::ARCHITECTURE,
    obtain::{Wanted, obtain},
    peers::{PeerSource, Taking},
    release::{OpenRelease, Source},
    releases::seam::{FetchError, Link},
    report::{SourceReport, StageReport},
    writer::{self, Devices, Moved, Release},
};

/// Versions that are tried where none is asked for: a member may announce what does not exist.
const CANDIDATES: usize = 4;

impl Updater {
    /// Writes a release into the other slot: an imported one, or one that `holders` announce; without a version the newest.
    ///
    /// # Errors
    /// When there is none, it must not be staged, or anything fails. What runs is untouched.
    pub fn stage(&self, version: Option<Version>, holders: Vec<Holder>) -> Result<StageReport> {
        self.alone("stage", |updater| {
            let (release, mut sources) = updater.find(updater.candidates(version, &holders)?, &holders)?;
            // What is refused needs no member.
            slot::may_follow(&release.manifest, &updater.host.running, ARCHITECTURE)?;
            let version = release.manifest.version.clone();
            let uki_bytes = release.manifest.uki.bytes;
            let written = updater.write_from(&release, &mut sources);
            updater.offer();
            let sources = SourceReport::of(&sources);
            match written {
                Ok(blocks) => {
                    updater.store.tell(&updater.host.boot, "staged", &version, &detail(blocks, &sources));
                    updater.store.remove_overwritten(&[&updater.host.running, &version]);
                    Ok(StageReport { version, already: false, blocks, uki_bytes, sources })
                }
                Err(error) if matches!(error.downcast_ref(), Some(Refusal::Staged(_))) => {
                    Ok(StageReport { version, already: true, blocks: Moved::default(), uki_bytes, sources })
                }
                Err(error) => Err(error),
            }
        })
    }

    /// The version that is asked for, or all that could be staged, newest first.
    fn candidates(&self, version: Option<Version>, holders: &[Holder]) -> Result<Vec<Version>> {
        if let Some(version) = version {
            return Ok(vec![version]);
        }
        let running = &self.host.running;
        let announced = holders.iter().map(|holder| holder.version.clone());
        let known = self.store.versions().into_iter().chain(announced);
        let newer: BTreeSet<Version> = known.filter(|version| version > running).collect();
        ensure!(
            !newer.is_empty(),
            "no release newer than the running one was imported here or is held by a member that can be reached: \
             `cluster-update import DIR` takes one in"
        );
        Ok(newer.into_iter().rev().take(CANDIDATES).collect())
    }

    /// The first of these versions that is here or comes from members.
    fn find(&self, candidates: Vec<Version>, holders: &[Holder]) -> Result<(OpenRelease, Sources)> {
        let mut failed = None;
        for version in candidates {
            self.with_job(|job| job.version = Some(version.clone()));
            let holders: Vec<Holder> =
                holders.iter().filter(|holder| holder.version == version).cloned().collect();
            let found = if self.store.folder_of(&version).is_dir() {
                self.trusted().and_then(|trusted| self.store.release(&version, trusted)).map(|release| {
                    let sources = self.sources(&holders, Prefix::of(&release.manifest.root.hash));
                    (release, sources)
                })
            } else {
                self.obtain(&version, &holders)
            };
            match found {
                Ok(found) => return Ok(found),
                Err(error) => {
                    warn!(%version, error = format!("{error:#}"), "a release cannot be had");
                    failed.get_or_insert(error);
                }
            }
        }
        Err(failed.context("there is no release to stage")?)
    }

    /// Everything but the root image, from members. Whoever can write a record can announce anything under a version: what
    /// most members hold is tried first.
    fn obtain(&self, version: &Version, holders: &[Holder]) -> Result<(OpenRelease, Sources)> {
        ensure!(
            !holders.is_empty(),
            "version {version} was not imported, and no member that can be reached holds it: `cluster-update import DIR` \
             takes it in"
        );
        let mut count: BTreeMap<Prefix, usize> = BTreeMap::new();
        for holder in holders {
            *count.entry(holder.prefix).or_default() += 1;
        }
        let mut prefixes: Vec<(usize, Prefix)> =
            count.into_iter().map(|(prefix, count)| (count, prefix)).collect();
        prefixes.sort_unstable();
        let trusted = self.trusted()?;
        let accept = |manifest: &Manifest| -> Result<()> {
            Ok(slot::may_follow(manifest, &self.host.running, ARCHITECTURE)?)
        };
        let mut failed = None;
        for (_, prefix) in prefixes.into_iter().rev() {
            let mut sources = self.sources(holders, prefix);
            let wanted = Wanted {
                version,
                prefix,
                trusted: &trusted,
                accept: &accept,
                running_uki: self.running_uki(),
            };
            let mut link = self.link()?;
            let told = |sources: &Sources| self.report_sources(sources);
            let mut taking = Taking { link: &mut link, sources: &mut sources, told: &told };
            match obtain(&self.store, &mut taking, &wanted, &mut |progress| self.report(progress)) {
                Ok(release) => {
                    info!(%version, %prefix, "a release was taken from members; its root image comes with the slot");
                    return Ok((release, sources));
                }
                Err(error) => {
                    warn!(%version, %prefix, error = format!("{error:#}"), "a release was not taken from members");
                    failed = Some(error);
                }
            }
        }
        Err(failed.context("no member holds it")?)
    }

    fn sources(&self, holders: &[Holder], prefix: Prefix) -> Sources {
        let holders = holders.iter().filter(|holder| holder.prefix == prefix).cloned();
        // Not everybody begins with the same member.
        let [first, ..] = Digest::of(self.host.boot.as_bytes()).0;
        Sources::new(holders, first.into())
    }

    fn link(&self) -> Result<Link> {
        Ok(Link::connect(&self.paths.releases).map_err(FetchError::Seam)?)
    }

    fn running_uki(&self) -> Option<File> {
        let names = Entries::of(&self.paths.efi).list().ok()?;
        let is_running =
            |name: &str| Entry::parse(name).is_some_and(|entry| entry.version == self.host.running);
        let (name, _) = names.iter().find(|(name, _)| is_running(name))?;
        File::open(self.paths.efi.join(ENTRIES).join(name)).ok()
    }

    fn write_from(&self, release: &OpenRelease, sources: &mut Sources) -> Result<Moved> {
        if self.store.has_image(&release.manifest.version) {
            return self.write(release, &mut Source::new(release)?);
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
        self.write(release, &mut source)
    }

    fn write(&self, release: &OpenRelease, source: &mut dyn BlockSource) -> Result<Moved> {
        let mounted = self.mount()?;
        let mut esp = mounted.folder();
        let mut disk = self.open_disk(true)?;
        let table = writer::read_table(&mut disk)?;
        let facts = Facts {
            table: &table,
            under_root: &self.host.under_root,
            entries: &esp.list().context("failed to list the boot entries")?,
            esp_free: esp.free()?,
            running: &self.host.running,
            architecture: ARCHITECTURE,
        };
        let mut staging = Staging::new(&facts, &release.manifest)?;
        ensure!(
            staging.slots.active.hash() == Some(self.host.root_hash),
            "the slot under the root device is not labelled with the root hash that the kernel was started with"
        );
        let running = writer::running_tree(&mut disk, &staging.slots.active, self.host.root_hash)
            .inspect_err(|error| {
                warn!(error = format!("{error:#}"), "no blocks are taken from the running slot")
            })
            .ok();
        self.withdraw_other();
        let parts = Release { manifest: &release.manifest, tree: &release.tree, uki: &release.uki };
        writer::stage(
            &mut staging,
            &mut Devices { disk: &mut disk, esp: &mut esp },
            &parts,
            source,
            running.as_ref(),
            &mut |progress| self.report(progress),
        )
    }
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
