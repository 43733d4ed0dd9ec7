// SPDX-License-Identifier: Apache-2.0
//! What the agent tells systemd: ready, one line of status, alive.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

/// The manager's end of `Type=notify`. Does nothing outside systemd.
#[derive(Debug, Default)]
pub struct Service {
    ready: bool,
    status: String,
}

impl Service {
    /// How often [`Service::alive`] must be called; `None` without a watchdog.
    #[must_use]
    pub fn watchdog_interval() -> Option<Duration> {
        // Half of the limit, as sd_watchdog_enabled(3) recommends.
        sd_notify::watchdog_enabled().map(|limit| limit / 2)
    }

    /// Everything is bound and answers; said once.
    pub fn ready(&mut self) {
        if !self.ready {
            self.ready = true;
            tell(&[NotifyState::Ready]);
        }
    }

    /// The line `systemctl status` shows; said when it changed.
    pub fn status(&mut self, line: &str) {
        if self.status != line {
            line.clone_into(&mut self.status);
            tell(&[NotifyState::Status(line)]);
        }
    }

    /// The event loop turns.
    pub fn alive(&self) {
        tell(&[NotifyState::Watchdog]);
    }

    /// The end has begun, by request.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "systemd does not listen");
    }
}
