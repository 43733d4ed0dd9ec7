// SPDX-License-Identifier: Apache-2.0
//! Which release is staged: the one that is asked for, or the newest that can be had. A member may announce what does not
//! exist, what it does not give, or what was given up here; none of that holds the others up.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use cluster_updater_core::{
    Digest, Manifest, Verified, Version, slot,
    sources::{Fault, GaveUp, Holder, Patience, Prefix, Sources},
};
use tracing::{info, warn};

use super::Updater;
use crate::{
    host::ARCHITECTURE,
    obtain::{Wanted, obtain},
    peers::{Taking, now},
    release::OpenRelease,
};

/// A release that can be staged.
pub(super) struct Found {
    pub(super) release: OpenRelease,
    pub(super) sources: Sources,
    /// Newer ones that cannot, and why.
    pub(super) passed_over: Vec<String>,
}

impl Updater {
    /// The version that is asked for, or the newest that can be had.
    pub(super) fn find(&self, asked: Option<Version>, holders: &[Holder]) -> Result<Found> {
        if let Some(version) = asked {
            self.with_job(|job| job.version = Some(version.clone()));
            let of_version = of_version(holders, &version);
            let (release, sources) = self.had(&version, &of_version, true, self.patience.long)?;
            return Ok(Found { release, sources, passed_over: Vec::new() });
        }
        let (mut versions, given_up) = self.newer(holders)?;
        let mut failed: BTreeMap<Version, anyhow::Error> = BTreeMap::new();
        let mut found = None;
        // Each version a short time, and only where none could be had a long one.
        let rounds: &[bool] = if versions.len() == 1 { &[true] } else { &[false, true] };
        for &is_last in rounds {
            found = self.first_of(&versions, holders, is_last, &mut failed);
            if found.is_some() {
                break;
            }
            // Of a release that is refused, or damaged here, nothing changes.
            versions.retain(|version| failed.get(version).is_some_and(|error| error.is::<GaveUp>()));
        }
        let mut passed_over: BTreeMap<&Version, String> =
            given_up.iter().map(|(version, why)| (version, format!("{version} {why}"))).collect();
        passed_over.extend(failed.iter().map(|(version, error)| (version, format!("{version}: {error:#}"))));
        if let Some((release, sources)) = found {
            let taken = &release.manifest.version;
            let newer = passed_over.into_iter().rev().filter(|(version, _)| *version > taken);
            let passed_over = newer.map(|(_, why)| why).collect();
            return Ok(Found { release, sources, passed_over });
        }
        let (version, error) = failed.into_iter().next_back().context("there is no release to stage")?;
        self.with_job(|job| job.version = Some(version));
        Err(error)
    }

    /// What is newer than what runs, newest first; and what of that is not taken without being named, with the reason.
    fn newer(&self, holders: &[Holder]) -> Result<(Vec<Version>, BTreeMap<Version, String>)> {
        let running = &self.host.running;
        let here = self.store.versions();
        let announced = holders.iter().map(|holder| &holder.version);
        let newer: BTreeSet<&Version> =
            here.iter().chain(announced).filter(|version| *version > running).collect();
        ensure!(
            !newer.is_empty(),
            "no release newer than the running one was imported here or is held by a member that can be reached: \
             `cluster-update import` takes one in"
        );
        let mut given_up = self.given_up();
        given_up.retain(|version, _| newer.contains(version));
        let versions: Vec<Version> =
            newer.into_iter().rev().filter(|version| !given_up.contains_key(*version)).cloned().collect();
        if versions.is_empty() {
            let why: Vec<String> =
                given_up.iter().rev().map(|(version, why)| format!("{version} {why}")).collect();
            anyhow::bail!("nothing newer is left to stage: {}", why.join("; "));
        }
        Ok((versions, given_up))
    }

    /// The first of these versions that can be had, and why those before it cannot.
    fn first_of(
        &self,
        versions: &[Version],
        holders: &[Holder],
        is_last: bool,
        failed: &mut BTreeMap<Version, anyhow::Error>,
    ) -> Option<(OpenRelease, Sources)> {
        let patience = if is_last { self.patience.long } else { self.patience.short };
        let mut tired = BTreeSet::new();
        for version in versions {
            self.with_job(|job| job.version = Some(version.clone()));
            let announced = of_version(holders, version);
            // Where there is nothing else, only liars are left out, and whoever gave nothing of another version in this round.
            let doubted = |holder: &Holder| match self.doubt(holder) {
                Some(fault) => !is_last || fault == Fault::Lied,
                None => false,
            };
            let asked: Vec<Holder> = announced
                .iter()
                .filter(|holder| !doubted(holder) && !tired.contains(&holder.address))
                .cloned()
                .collect();
            let is_here = self.store.folder_of(version).is_dir();
            if asked.is_empty() && !announced.is_empty() && !is_here {
                // What was wrong when somebody was asked says more.
                failed.entry(version.clone()).or_insert_with(|| self.nobody_trusted(&announced));
                continue;
            }
            match self.had(version, &asked, false, patience) {
                Ok(had) => return Some(had),
                Err(error) => {
                    warn!(%version, error = format!("{error:#}"), "a release cannot be had");
                    if error.is::<GaveUp>() && is_last {
                        tired.extend(asked.iter().map(|holder| holder.address));
                    }
                    failed.insert(version.clone(), error);
                }
            }
        }
        None
    }

    fn nobody_trusted(&self, announced: &[Holder]) -> anyhow::Error {
        let who = announced.iter().map(|holder| match self.doubt(holder) {
            Some(fault) => format!("{} {fault}", holder.name),
            None => holder.name.clone(),
        });
        let who = who.collect::<Vec<_>>().join("; ");
        GaveUp(format!("not asked again so soon, because of what they announced before: {who}")).into()
    }

    fn had(
        &self,
        version: &Version,
        holders: &[Holder],
        is_only: bool,
        patience: Patience,
    ) -> Result<(OpenRelease, Sources)> {
        if self.store.folder_of(version).is_dir() {
            self.kept(version, holders, is_only, patience)
        } else {
            self.obtain(version, holders, patience)
        }
    }

    /// A release that is in `/var`. Unless it is asked for, its root image must be there, in the other slot or at a member as
    /// well.
    fn kept(
        &self,
        version: &Version,
        holders: &[Holder],
        is_only: bool,
        patience: Patience,
    ) -> Result<(OpenRelease, Sources)> {
        let release = self.store.release(version, self.trusted()?)?;
        // What is refused needs no member.
        slot::may_follow(&release.manifest, &self.host.running, ARCHITECTURE)?;
        let sources = self.sources(holders, Prefix::of(&release.manifest.root.hash), patience);
        if !is_only && !self.store.has_image(version) && !self.slots()?.other.is_labelled(&release.manifest) {
            sources.current()?;
        }
        Ok((release, sources))
    }

    /// Everything but the root image, from members. Whoever can write a record can announce anything under a version: what
    /// most members hold is tried first.
    fn obtain(
        &self,
        version: &Version,
        holders: &[Holder],
        patience: Patience,
    ) -> Result<(OpenRelease, Sources)> {
        ensure!(
            !holders.is_empty(),
            "version {version} was not imported, and no member that can be reached holds it: `cluster-update import` \
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
        let accept = |manifest: &Verified<Manifest>| self.may_stage(manifest);
        let mut failed = None;
        let mut asked = BTreeSet::new();
        for (_, prefix) in prefixes.into_iter().rev() {
            // A member may announce one version several times, each with another hash: it is borne with once.
            let of_prefix = holders.iter().filter(|holder| holder.prefix == prefix);
            let holders: Vec<Holder> =
                of_prefix.filter(|holder| !asked.contains(&holder.address)).cloned().collect();
            if holders.is_empty() {
                continue;
            }
            asked.extend(holders.iter().map(|holder| holder.address));
            let mut sources = self.sources(&holders, prefix, patience);
            let wanted = Wanted {
                version,
                prefix,
                trusted: &trusted,
                accept: &accept,
                running_uki: self.running_uki(),
                running_leaves: self.running_leaves(),
                boot_loader: &self.paths.boot_loader,
            };
            let mut link = self.link()?;
            let told = |sources: &Sources| self.report_sources(sources);
            let mut taking = Taking { link: &mut link, sources: &mut sources, told: &told };
            let obtained = obtain(&self.store, &mut taking, &wanted, &mut |progress| self.report(progress));
            self.note_sources(&sources);
            match obtained {
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

    fn sources(&self, holders: &[Holder], prefix: Prefix, patience: Patience) -> Sources {
        let holders = holders.iter().filter(|holder| holder.prefix == prefix).cloned();
        // Not everybody begins with the same member.
        let [first, ..] = Digest::of(self.host.boot.as_bytes()).0;
        Sources::new(holders, first.into(), patience)
    }

    /// Who gave what it announced, and who did not.
    pub(super) fn note_sources(&self, sources: &Sources) {
        let mut state = self.state();
        if sources.have_given_up() {
            state.doubts.gave_nothing(sources.all(), now());
        } else {
            state.doubts.gave(sources.all(), now());
        }
    }

    fn doubt(&self, holder: &Holder) -> Option<Fault> {
        self.state().doubts.of(holder.address, now())
    }
}

fn of_version(holders: &[Holder], version: &Version) -> Vec<Holder> {
    holders.iter().filter(|holder| holder.version == *version).cloned().collect()
}
