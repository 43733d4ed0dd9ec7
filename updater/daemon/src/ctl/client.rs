// SPDX-License-Identifier: Apache-2.0
//! The updater, asked over D-Bus.

use std::{
    future::Future,
    io::{self, IsTerminal as _, Write as _},
    pin::pin,
};

use futures_util::StreamExt as _;
use zbus::{Connection, Fd, proxy};

use super::{Failure, show::size};
use crate::{
    report::{JobReport, StatusReport},
    writer::Phase,
};

#[proxy(
    interface = "org.clusteros.Updater1",
    default_service = "org.clusteros.Updater1",
    default_path = "/org/clusteros/Updater1"
)]
pub(crate) trait Updater {
    fn status(&self) -> zbus::Result<String>;
    fn history(&self) -> zbus::Result<String>;
    fn import(&self, release: Fd<'_>) -> zbus::Result<String>;
    fn stage(&self, version: &str) -> zbus::Result<String>;
    fn rollback(&self) -> zbus::Result<String>;
    fn reboot(&self) -> zbus::Result<()>;
    fn schedule_reboot(&self, at: u64, trust_clock: bool) -> zbus::Result<()>;
    fn cancel_reboot(&self) -> zbus::Result<bool>;
    #[zbus(signal)]
    fn changed(&self) -> zbus::Result<()>;
}

/// A connection to the updater of this node.
pub(crate) struct Client {
    pub(crate) updater: UpdaterProxy<'static>,
}

impl Client {
    /// Connects to the bus; whether an updater is there shows at the first question.
    pub(crate) async fn connect() -> Result<Self, Failure> {
        let bus = Connection::system()
            .await
            .map_err(|error| Failure::not_running(&format!("no connection to D-Bus: {error}")))?;
        let updater =
            UpdaterProxy::builder(&bus).cache_properties(zbus::proxy::CacheProperties::No).build().await?;
        Ok(Self { updater })
    }

    pub(crate) async fn status(&self) -> Result<StatusReport, Failure> {
        Ok(serde_json::from_str(&self.updater.status().await?)?)
    }

    /// Waits for a call that takes long, and shows on stderr how far the updater is.
    pub(crate) async fn watch<T>(&self, call: impl Future<Output = zbus::Result<T>>) -> Result<T, Failure> {
        let mut changes = self.updater.receive_changed().await?;
        let mut call = pin!(call);
        let mut line = Line::default();
        loop {
            tokio::select! {
                answer = &mut call => {
                    line.end();
                    return Ok(answer?);
                }
                Some(_) = changes.next() => {
                    // Whoever may not ask for it learns that from the call.
                    if let Ok(StatusReport { job: Some(job), .. }) = self.status().await {
                        line.show(&job);
                    }
                }
            }
        }
    }
}

/// One line that is written over on a terminal; elsewhere a line for every tenth.
#[derive(Default)]
pub(crate) struct Line {
    shown: String,
    on_terminal: bool,
}

impl Line {
    fn show(&mut self, job: &JobReport) {
        self.print(progress(job), tenths(job));
    }

    /// The same for what this process does itself; the size of all may not be known yet.
    pub(crate) fn bytes(&mut self, what: &str, done: u64, total: Option<u64>) {
        let (text, tenths) = match total.filter(|total| *total > 0) {
            None => (format!("{what}: {}", size(done)), String::new()),
            Some(total) => {
                let percent = percent(done, total).min(100);
                let text = format!("{what}: {} of {} ({percent} %)", size(done), size(total));
                (text, format!("{what}: {} %", percent / 10 * 10))
            }
        };
        self.print(text, tenths);
    }

    /// `tenths` is for where nothing can be written over.
    pub(crate) fn print(&mut self, text: String, tenths: String) {
        let mut stderr = io::stderr();
        let terminal = stderr.is_terminal();
        let text = if terminal { text } else { tenths };
        if text.is_empty() || text == self.shown {
            return;
        }
        // A terminal that is gone is no reason to stop.
        let _ = if terminal { write!(stderr, "\r\x1b[K{text}") } else { writeln!(stderr, "{text}") };
        let _ = stderr.flush();
        self.on_terminal |= terminal;
        self.shown = text;
    }

    pub(crate) fn end(&mut self) {
        if self.on_terminal {
            let _ = writeln!(io::stderr());
        }
        self.on_terminal = false;
    }
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Preparing => "preparing the other slot",
        Phase::Writing => "writing the other slot",
        Phase::Checking => "reading it back",
        Phase::Entry => "writing the boot entry",
        Phase::Importing => "importing",
        Phase::Fetching => "fetching kernel and hash tree",
    }
}

/// What is under way, for people: phase, bytes, where they come from, and how long it still takes.
pub(crate) fn progress(job: &JobReport) -> String {
    let Some(now) = job.progress else { return format!("{}: checking signatures", job.what) };
    if now.total == 0 {
        return phase(now.phase).to_owned();
    }
    let mut text = format!(
        "{}: {} of {} ({} %)",
        phase(now.phase),
        size(now.done),
        size(now.total),
        percent(now.done, now.total)
    );
    if let Some(source) = job.sources.iter().find(|source| source.current) {
        text += &format!(", from {}", source.name);
    }
    if let Some(left) = seconds_left(now.done, now.total, job.phase_seconds) {
        text += &format!(", {left} s left");
    }
    text
}

/// At the rate so far; a guess from a moment's progress is none.
pub(crate) fn seconds_left(done: u64, total: u64, seconds: u64) -> Option<u64> {
    (seconds >= 5 && done > 0).then(|| total.saturating_sub(done).saturating_mul(seconds) / done)
}

fn tenths(job: &JobReport) -> String {
    job.progress.filter(|now| now.total > 0).map_or_else(String::new, |now| {
        format!("{}: {} %", phase(now.phase), percent(now.done, now.total) / 10 * 10)
    })
}

pub(crate) fn percent(done: u64, total: u64) -> u64 {
    done.saturating_mul(100) / total.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_once_there_is_something_to_go_by() {
        assert_eq!(seconds_left(100, 300, 10), Some(20));
        assert_eq!(seconds_left(100, 300, 1), None);
        assert_eq!(seconds_left(0, 300, 100), None);
        assert_eq!(seconds_left(300, 300, 100), Some(0));
    }
}
