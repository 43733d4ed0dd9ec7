// SPDX-License-Identifier: Apache-2.0
//! What disk, ESP and `/var` show, for the status.

use anyhow::{Context as _, Result};
use cluster_updater_core::{Esp as _, Version, entry::Entry};

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
        let entries: Vec<Entry> = files.iter().filter_map(|(name, _)| Entry::parse(name)).collect();
        let own = entries.iter().filter(|entry| entry.version == self.host.running);
        seen.boot_entry = own.min_by_key(|entry| entry.order()).cloned();
        let version = slots.other.version();
        let other = entries
            .into_iter()
            .filter(|entry| entry.version != self.host.running && Some(&entry.version) == version.as_ref())
            .min_by_key(Entry::order);
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
}
