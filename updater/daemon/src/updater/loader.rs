// SPDX-License-Identifier: Apache-2.0
//! The running image's boot loader goes to the ESP once this version is marked good.

use std::fs;

use anyhow::{Context as _, Result};
use cluster_updater_core::{
    Esp as _,
    loader::{Facts, Kept, Loader, Loaders as _, Plan},
};
use tracing::{debug, info, warn};

use super::Updater;
use crate::{
    esp::Folder as Entries,
    loader::{OnEsp, carry_out, look},
};

impl Updater {
    /// Puts the running image's boot loader on the ESP, if this version is marked good and another one is there. Asked when the
    /// updater starts and when a boot was marked good; waits for whoever writes.
    pub fn refresh_boot_loader(&self) {
        match self.refresh() {
            Ok(true) => {
                info!(version = %self.host.running, "the boot loader is that of this version now");
                let detail = "the boot loader on the ESP is this version's";
                self.store.tell(&self.host.boot, "boot-loader", &self.host.running, detail);
            }
            Ok(false) => {}
            Err(error) => match error.downcast_ref::<Kept>() {
                Some(Kept::Trial(_) | Kept::Newer(_)) => debug!(%error, "the boot loader stays"),
                _ => warn!(error = format!("{error:#}"), "the boot loader stays as it is"),
            },
        }
    }

    /// Whether anything was written.
    fn refresh(&self) -> Result<bool> {
        let path = &self.paths.boot_loader;
        let image = fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
        // Mostly there is nothing to do, and the ESP stays as it is.
        let plan = self.decide_loader(&mut OnEsp::of(&self.paths.efi), &image)?;
        for place in &plan.foreign {
            warn!(place, "this is no systemd-boot and is left alone");
        }
        if plan.effects.is_empty() {
            self.store.note_loader(&self.host.running)?;
            return Ok(false);
        }
        let _writing = self.claim();
        let mounted = self.mount()?;
        let mut esp = OnEsp::of(mounted.place());
        let plan = self.decide_loader(&mut esp, &image)?;
        // First: whoever is gone back to after this must not take it for an older one.
        self.store.note_loader(&self.host.running)?;
        carry_out(&plan.effects, &mut esp, &image)?;
        Ok(true)
    }

    fn decide_loader(&self, esp: &mut OnEsp, image: &[u8]) -> Result<Plan> {
        let entries = Entries::of(esp.path()).list().context("failed to list the boot entries")?;
        let entries: Vec<String> = entries.into_iter().map(|(name, _)| name).collect();
        let newest = self.store.loader();
        let facts = Facts {
            running: &self.host.running,
            given_up: self.paths.given_up.exists(),
            entries: &entries,
            newest: newest.as_ref(),
            image: Loader::of(image),
            files: &look(esp)?,
            free: esp.free()?,
        };
        Ok(Plan::new(&facts)?)
    }
}
