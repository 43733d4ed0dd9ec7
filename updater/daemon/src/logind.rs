// SPDX-License-Identifier: Apache-2.0
//! Restarts at a later time: logind keeps them, over a restart of the updater, and `shutdown -c` takes them back as well.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use cluster_updater_core::restart;
use tokio::time::{sleep, timeout};
use tracing::warn;
use zbus::{Connection, connection, proxy};

use crate::{date::date, report::ScheduledReport, slots_lock::Held, updater::Updater};

/// What of logind's kinds is a restart.
const REBOOT: &str = "reboot";
/// logind answers at once or not at all.
const ANSWER: Duration = Duration::from_secs(5);

#[proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Logind {
    fn schedule_shutdown(&self, kind: &str, at: u64) -> zbus::Result<()>;
    fn cancel_scheduled_shutdown(&self) -> zbus::Result<bool>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn scheduled_shutdown(&self) -> zbus::Result<(String, u64)>;
}

/// A connection to a bus.
///
/// # Errors
/// When there is none, or it does not answer.
pub async fn connect(to: connection::Builder<'_>) -> Result<Connection> {
    timeout(ANSWER, to.build()).await.context("D-Bus does not answer")?.context("no connection to D-Bus")
}

async fn logind(bus: &Connection) -> zbus::Result<LogindProxy<'static>> {
    LogindProxy::builder(bus).cache_properties(zbus::proxy::CacheProperties::No).build().await
}

/// The clock of this node.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What logind will do by itself, if anything.
///
/// # Errors
/// When it does not answer.
pub async fn scheduled(bus: &Connection) -> Result<Option<ScheduledReport>> {
    let ask = async { logind(bus).await?.scheduled_shutdown().await };
    let (kind, at) = timeout(ANSWER, ask).await.context("logind does not answer")??;
    // An empty kind, or a time that is none, says that there is nothing.
    let is_some = !kind.is_empty() && at != 0 && at != u64::MAX;
    Ok(is_some.then_some(ScheduledReport { what: kind, at: at / 1_000_000 }))
}

/// Whether something that takes minutes may begin: logind will do nothing by itself.
///
/// # Errors
/// When it will, or does not answer.
pub async fn nothing_is_scheduled(bus: &Connection) -> Result<()> {
    match scheduled(bus).await? {
        Some(ScheduledReport { what, at }) => bail!(
            "a {what} is scheduled for {} UTC: wait until it is over, or take it back (`cluster-update reboot --cancel`)",
            date(at)
        ),
        None => Ok(()),
    }
}

/// Restarts this node at `at`, seconds since 1970, whatever was scheduled before. `is_trusted` says that the clock will not jump;
/// while `held`, no installation to another disk begins, which asks first what is scheduled.
///
/// # Errors
/// When the time makes no sense, or logind refuses.
pub async fn schedule(bus: &Connection, at: u64, is_trusted: bool, _held: &Held) -> Result<()> {
    restart::may_schedule(at, now(), is_trusted)?;
    set(bus, at).await
}

async fn set(bus: &Connection, at: u64) -> Result<()> {
    let ask = async { logind(bus).await?.schedule_shutdown(REBOOT, at.saturating_mul(1_000_000)).await };
    timeout(ANSWER, ask).await.context("logind does not answer")?.context("logind schedules no restart")
}

/// Takes back what is scheduled; whether anything was.
///
/// # Errors
/// When logind refuses.
pub async fn cancel(bus: &Connection) -> Result<bool> {
    let ask = async { logind(bus).await?.cancel_scheduled_shutdown().await };
    Ok(timeout(ANSWER, ask).await.context("logind does not answer")??)
}

/// Puts a restart off that would come while the updater writes, until it does not. A power cut then is harmless, but what is
/// half written would have to be written again. logind's own locks hold a scheduled restart for seconds only.
///
/// # Errors
/// Never: it ends when the updater does.
pub async fn put_off_while_writing(bus: &Connection, updater: &Arc<Updater>) -> Result<()> {
    let mut writes = updater.writes();
    // When it was to come at first.
    let mut first: Option<u64> = None;
    loop {
        if !*writes.borrow_and_update() {
            first = None;
            if writes.changed().await.is_err() {
                return Ok(());
            }
            continue;
        }
        // Nothing is scheduled by this updater meanwhile; it asks once.
        let restart = scheduled(bus).await.unwrap_or_else(|error| {
            warn!(error = format!("{error:#}"), "a scheduled restart would not be put off");
            None
        });
        let Some(restart) = restart.filter(|restart| restart.what == REBOOT) else {
            if writes.changed().await.is_err() {
                return Ok(());
            }
            continue;
        };
        tokio::select! {
            () = sleep(Duration::from_secs(restart::quiet(restart.at, now()))) => {
                if !*writes.borrow() {
                    continue;
                }
                let Some(at) = restart::put_off(*first.get_or_insert(restart.at), restart.at, now()) else {
                    warn!(scheduled = restart.at, "the restart comes although the updater writes: it was put off long enough");
                    sleep(Duration::from_secs(restart::AGAIN)).await;
                    continue;
                };
                match set(bus, at).await {
                    Ok(()) => warn!(scheduled = restart.at, now = at, "the restart is put off: the updater writes"),
                    Err(error) => {
                        warn!(error = format!("{error:#}"), "the restart is not put off, although the updater writes");
                        sleep(Duration::from_secs(restart::LEAD)).await;
                    }
                }
            }
            changed = writes.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}
