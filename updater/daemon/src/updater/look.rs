// SPDX-License-Identifier: Apache-2.0
//! What disk, ESP and `/var` show, for the status.

use std::fs;

use anyhow::{Context as _, Result};
use cluster_updater_core::{Esp as _, Manifest, Version, entry::Entry, manifest};

use super::{Seen, Updater};
use crate::{
    esp::{self, Folder as Entries},
    install,
    report::{OtherSlot, OtherState, TrustReport},
};

impl Updater {
    pub(super) fn look(&self) -> Seen {
        let mut obstacles = esp::chosen(&self.paths.efivars);
        obstacles.extend(install::ensure_here(&self.paths.moved).err().map(|error| format!("{error:#}")));
        let mut seen = Seen { releases: self.imported(), obstacles, ..Seen::default() };
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

    /// Releases that could be staged from here alone.
    fn imported(&self) -> Vec<Version> {
        self.store.versions().into_iter().filter(|version| self.store.has_image(version)).collect()
    }

    fn look_at_slots(&self, seen: &mut Seen) -> Result<()> {
        let slots = self.slots()?;
        seen.slot = Some(slots.active_name);
        let files = Entries::of(&self.paths.efi)
            .list()
            .context("failed to list the boot entries in /efi/EFI/Linux")?;
        let entries = files.iter().filter_map(|(name, bytes)| Some((Entry::parse(name)?, *bytes)));
        let (own, others): (Vec<_>, Vec<_>) =
            entries.partition(|(entry, _)| entry.version == self.host.running);
        seen.boot_entry = own.into_iter().map(|(entry, _)| entry).min_by_key(Entry::order);
        let version = slots.other.version();
        let of_slot = others.into_iter().filter(|(entry, _)| Some(&entry.version) == version.as_ref());
        seen.other = match of_slot.min_by_key(|(entry, _)| entry.order()) {
            None => OtherSlot { version, ..OtherSlot::default() },
            Some((entry, bytes)) => {
                let state = match () {
                    () if entry.is_bad() => OtherState::Failed,
                    () if entry.version > self.host.running => OtherState::Staged,
                    () => OtherState::Previous,
                };
                let damage = self.damage(&entry.version, bytes);
                OtherSlot {
                    state,
                    boot_entry: Some(entry.to_string()),
                    tries_left: entry.counter.map(|(left, _)| left),
                    reason: match state {
                        OtherState::Failed => damage.or_else(|| Some(self.why_given_up(&entry.version))),
                        OtherState::Staged => damage.or_else(|| self.why_not_started(&entry.version)),
                        _ => None,
                    },
                    version: Some(entry.version),
                }
            }
        };
        Ok(())
    }

    /// What is wrong with a boot entry of this size: where the boot loader cannot read it, it passes it over without a word, and
    /// where the firmware cannot load it, nothing is left that could say why.
    fn damage(&self, version: &Version, bytes: u64) -> Option<String> {
        let manifest = fs::read(self.store.folder_of(version).join(manifest::FILE_NAME)).ok()?;
        let wanted = Manifest::parse(&manifest).ok()?.uki.bytes;
        (bytes != wanted).then(|| {
            format!(
                "its boot entry is damaged, it has {bytes} bytes instead of {wanted}; `cluster-update stage {version}` writes it again"
            )
        })
    }
}
