// SPDX-License-Identifier: Apache-2.0
//! What this node's past says: which versions were given up, and whether the boot before was cut off by the power.

use std::{collections::BTreeMap, sync::PoisonError};

use anyhow::{Context as _, Result};
use cluster_updater_core::{
    Esp, Version,
    entry::{self, Entry},
    refund::{self, Happened},
};
use tracing::{info, warn};

use super::Updater;
use crate::{
    crash,
    date::date,
    esp::{self, Folder as Entries},
    store::{Event, write_synced},
    writer::{self, Devices},
};

/// Nobody's clock says so in earnest (2020-09-13): a machine without a battery begins in 1970.
const NO_CLOCK: u64 = 1_600_000_000;

impl Updater {
    /// Puts in order what the last boots left: notes what the boot loader gave up, and gives a try back that was lost to the
    /// power. Once a boot is enough.
    pub fn settle(&self) {
        // In every boot: what was seen in one that is not counted is old in the next.
        let trace = crash::trace(&self.paths, &self.store, &self.host.boot).inspect_err(|error| {
            warn!(error = format!("{error:#}"), "whether the boot before ended by a crash is not known");
        });
        if let Err(error) = self.note_given_up() {
            warn!(error = format!("{error:#}"), "whether the boot loader gave a release up is not noted");
        }
        // Not known, a crash is not taken for a power cut.
        if self.host.counted
            && let Ok(trace) = trace
            && let Err(error) = self.give_try_back(trace)
        {
            warn!(
                error = format!("{error:#}"),
                "a try that may have been lost to the power is not given back"
            );
        }
    }

    /// Versions that were given up and not staged since, and what is said of that.
    pub(super) fn given_up(&self) -> BTreeMap<Version, String> {
        let mut given_up = BTreeMap::new();
        let events = self.store.history();
        for event in &events {
            let Some(version) = Version::parse(&event.version) else { continue };
            match event.what.as_str() {
                "given-up" => drop(given_up.insert(version, event)),
                // By name, or it would not have been.
                "staged" => drop(given_up.remove(&version)),
                _ => {}
            }
        }
        let mut given_up: BTreeMap<Version, String> =
            given_up.into_iter().map(|(version, event)| (version, told(event))).collect();
        // A disk that was full, or a history that was lost, is no reason to try it again.
        let found = self.bad_entry().ok().flatten();
        if let Some(version) = found.filter(|version| !given_up.contains_key(version)) {
            let why = self.why_given_up(&version);
            given_up.insert(version, format!("was given up: {why}; name it to try it again"));
        }
        given_up
    }

    /// The boot loader gives up without a word.
    fn note_given_up(&self) -> Result<()> {
        let Some(version) = self.bad_entry()? else { return Ok(()) };
        let events = self.store.history();
        let told = |event: &&Event| matches!(event.what.as_str(), "staged" | "given-up");
        let last = events.iter().filter(|event| event.version == version.to_string()).rfind(told);
        if last.is_none_or(|event| event.what != "given-up") {
            let why = self.why_given_up(&version);
            self.store.tell(&self.host.boot, "given-up", &version, &why);
            warn!(%version, why, "the boot loader gave this version up, and it is not taken again unless it is named");
        }
        Ok(())
    }

    /// The version in the other slot, if its boot entry, the one that counts of several names, has no tries left.
    fn bad_entry(&self) -> Result<Option<Version>> {
        let files = Entries::of(&self.paths.efi).list().context("failed to list the boot entries")?;
        let entries: Vec<Entry> = files.iter().filter_map(|(name, _)| Entry::parse(name)).collect();
        let is_bad = |entry: &&Entry| entry.is_bad() && entry.version > self.host.running;
        Ok(entry::best(&entries).into_values().find(is_bad).map(|entry| entry.version.clone()))
    }

    /// Nothing is mounted where there is nothing to be given back.
    fn give_try_back(&self, crash: Option<String>) -> Result<()> {
        if self.paths.refunded.exists() || !self.was_cut_off() {
            return Ok(());
        }
        if let Some(trace) = crash {
            info!(trace, "the boot before ended by a crash: its try is spent");
            return Ok(());
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mounted = self.mount()?;
        self.refund(&mut mounted.folder()).map(drop)
    }

    fn was_cut_off(&self) -> bool {
        let events = self.store.history();
        let happened: Vec<Happened<'_>> = events
            .iter()
            .map(|event| Happened { boot: &event.boot, what: &event.what, version: &event.version })
            .collect();
        refund::was_cut_off(&happened, &self.host.boot, &self.host.running.to_string())
    }

    /// Gives a try back on an ESP that can be written to. Returns the new name of the boot entry.
    ///
    /// # Errors
    /// When the firmware does not say which entry was booted, or the ESP cannot be written.
    pub fn refund(&self, esp: &mut dyn Esp) -> Result<Option<String>> {
        let booted =
            esp::booted_entry(&self.paths.efivars).context("the boot loader names no counted entry")?;
        let entries = esp.list().context("failed to list the boot entries")?;
        let Some(mut refund) = refund::refund(&entries, &self.host.running, &booted) else { return Ok(None) };
        // First: systemd-bless-boot looks for the name that was booted, and mark-good gives it that one.
        write_synced(&self.paths.refunded, format!("{}\n{}\n", refund.from, refund.to).as_bytes())?;
        let mut disk = self.open_disk(false)?;
        writer::finish(&mut refund.steps, &mut Devices { disk: &mut disk, esp })?;
        let detail = format!("a try that was lost to the power: {} is now {}", refund.from, refund.to);
        self.store.tell(&self.host.boot, "refunded", &self.host.running, &detail);
        info!(from = refund.from, to = refund.to, "a try that was lost to the power is given back");
        Ok(Some(refund.to))
    }

    /// A staged release is what the next boot starts, whatever becomes of it then.
    pub(super) fn why_not_started(&self, version: &Version) -> Option<String> {
        let events = self.store.history();
        let staged =
            events.iter().rfind(|event| event.what == "staged" && event.version == version.to_string())?;
        (staged.boot != self.host.boot).then(|| {
            "it was staged before this boot, which is not of it: the boot loader passed it over, the firmware did not load it, or \
             somebody chose another entry"
                .to_owned()
        })
    }

    pub(super) fn why_given_up(&self, version: &Version) -> String {
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

fn told(event: &Event) -> String {
    let when = if event.time < NO_CLOCK { String::new() } else { format!(" on {}", date(event.time)) };
    format!("was given up{when}: {}; name it to try it again", event.detail)
}
