// SPDX-License-Identifier: Apache-2.0
//! Restarts at a later time, beside a logind that is made up.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    fs::File,
    os::unix::net::{UnixListener, UnixStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use cluster_updater::{
    folder::Folder,
    logind::{cancel, connect, nothing_is_scheduled, now, put_off_while_writing, schedule, scheduled},
    report::ScheduledReport,
    slots_lock,
    updater::Updater,
};
use cluster_updater_core::{restart::AGAIN, verity::BLOCK_BYTES};
use common::{Lab, bytes};
use nix::fcntl::{Flock, FlockArg};
use tokio::{sync::Notify, time::timeout};
use zbus::{Connection, connection, fdo, interface};

/// For what should not take a moment.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Default)]
struct Logind {
    at: Arc<Mutex<Option<(String, u64)>>>,
    refuses: bool,
    changed: Arc<Notify>,
}

#[interface(name = "org.freedesktop.login1.Manager")]
impl Logind {
    fn schedule_shutdown(&self, kind: &str, at: u64) -> fdo::Result<()> {
        if self.refuses {
            return Err(fdo::Error::AccessDenied("no".into()));
        }
        *self.at.lock().unwrap() = Some((kind.to_owned(), at));
        self.changed.notify_one();
        Ok(())
    }

    fn cancel_scheduled_shutdown(&self) -> bool {
        self.at.lock().unwrap().take().is_some()
    }

    #[zbus(property)]
    fn scheduled_shutdown(&self) -> (String, u64) {
        self.at.lock().unwrap().clone().unwrap_or((String::new(), u64::MAX))
    }
}

/// A connection to it; the other end lives as long.
async fn bus(logind: Logind) -> (Connection, Connection) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guid = "0123456789abcdef0123456789abcdef";
    let path = "/org/freedesktop/login1";
    let server = connection::Builder::unix_stream(ours).server(guid).p2p().serve_at(path, logind);
    let client = connection::Builder::unix_stream(theirs).p2p();
    let (server, client) = tokio::join!(server.build(), client.build());
    (server.unwrap(), client.unwrap())
}

fn reboot(at: u64) -> Option<ScheduledReport> {
    Some(ScheduledReport { what: "reboot".into(), at })
}

#[tokio::test]
async fn a_restart_is_scheduled_replaced_and_taken_back() {
    let lab = Lab::new();
    let node = Updater::new(lab.paths(), lab.host("boot")).unwrap();
    let held = node.may_reboot().unwrap();
    assert!(slots_lock::own(&lab.paths().slots_lock).is_err(), "an installation may begin meanwhile");
    let (_server, bus) = bus(Logind::default()).await;
    assert_eq!(scheduled(&bus).await.unwrap(), None);
    assert!(!cancel(&bus).await.unwrap());
    let at = now() + 3600;
    schedule(&bus, at, true, &held).await.unwrap();
    assert_eq!(scheduled(&bus).await.unwrap(), reboot(at));
    schedule(&bus, at + 60, true, &held).await.unwrap();
    assert_eq!(scheduled(&bus).await.unwrap(), reboot(at + 60));
    assert!(cancel(&bus).await.unwrap());
    assert_eq!(scheduled(&bus).await.unwrap(), None);
    let error = schedule(&bus, now() - 60, true, &held).await.unwrap_err().to_string();
    assert!(error.contains("s ago"), "{error}");
    assert_eq!(scheduled(&bus).await.unwrap(), None);
}

/// A time server that corrects the clock later would have it come at once.
#[tokio::test]
async fn a_restart_waits_for_the_clock_to_be_set() {
    let (_server, bus) = bus(Logind::default()).await;
    let lab = Lab::new();
    let node = Updater::new(lab.paths(), lab.host("boot")).unwrap();
    let (at, held) = (now() + 3600, node.may_reboot().unwrap());
    let error = schedule(&bus, at, node.is_clock_set(), &held).await.unwrap_err().to_string();
    assert!(error.contains("no time server") && error.contains("`--trust-clock`"), "{error}");
    assert_eq!(scheduled(&bus).await.unwrap(), None);
    File::create(lab.paths().clock_set).unwrap();
    schedule(&bus, at, node.is_clock_set(), &held).await.unwrap();
    assert_eq!(scheduled(&bus).await.unwrap(), reboot(at));
}

/// It takes the connection and says nothing.
#[tokio::test]
async fn a_bus_that_hangs_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bus");
    let _listener = UnixListener::bind(&path).unwrap();
    let address = format!("unix:path={}", path.display());
    let connected = timeout(PATIENCE, connect(connection::Builder::address(&*address))).await.unwrap();
    assert!(connected.unwrap_err().to_string().contains("does not answer"));
}

/// An installation to another disk takes minutes.
#[tokio::test]
async fn what_takes_long_does_not_begin_before_a_restart_that_is_scheduled() {
    let logind = Logind::default();
    let (_server, bus) = bus(logind.clone()).await;
    nothing_is_scheduled(&bus).await.unwrap();
    *logind.at.lock().unwrap() = Some(("poweroff".into(), 1_800_000_000_000_000));
    let error = nothing_is_scheduled(&bus).await.unwrap_err().to_string();
    assert!(error.starts_with("a poweroff is scheduled for 2027-01-15 08:00"), "{error}");
    assert!(error.contains("`cluster-update reboot --cancel`"), "{error}");
}

#[tokio::test]
async fn what_logind_refuses_is_not_said_to_be_scheduled() {
    let (_server, bus) = bus(Logind { refuses: true, ..Logind::default() }).await;
    let dir = tempfile::tempdir().unwrap();
    let held = slots_lock::share(&dir.path().join("lock")).unwrap();
    let error = format!("{:#}", schedule(&bus, now() + 60, true, &held).await.unwrap_err());
    assert!(error.contains("logind schedules no restart"), "{error}");
}

/// It waits for the ESP, which somebody else holds, with the disk open for writing.
#[tokio::test]
async fn a_restart_that_would_come_while_the_updater_writes_is_put_off() {
    let lab = Lab::new();
    let node = Arc::new(Updater::new(lab.paths(), lab.host("boot")).unwrap());
    let dir = lab.release("1.1", &bytes(71, 100 * BLOCK_BYTES));
    node.import(Folder::open(&dir).unwrap().into_fd()).unwrap();
    let logind = Logind::default();
    let due = now() + 1;
    *logind.at.lock().unwrap() = Some(("reboot".into(), due * 1_000_000));
    let (_server, bus) = bus(logind.clone()).await;
    let watching = {
        let node = node.clone();
        tokio::spawn(async move { put_off_while_writing(&bus, &node).await })
    };

    let lock = File::create(lab.path("esp.lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
    let mut writes = node.writes();
    let staging = {
        let node = node.clone();
        tokio::task::spawn_blocking(move || node.stage(None, Vec::new()))
    };
    timeout(PATIENCE, writes.wait_for(|writes| *writes)).await.unwrap().unwrap();
    let busy = node.may_reboot().unwrap_err().to_string();
    assert!(busy.contains("the updater is busy (stage)"), "{busy}");
    timeout(PATIENCE, logind.changed.notified()).await.unwrap();
    let (kind, at) = logind.at.lock().unwrap().clone().unwrap();
    assert!(kind == "reboot" && at >= (due + AGAIN) * 1_000_000, "{at} for {due}");

    drop(lock);
    assert!(staging.await.unwrap().is_err(), "there is no ESP here");
    timeout(PATIENCE, writes.wait_for(|writes| !*writes)).await.unwrap().unwrap();
    node.may_reboot().unwrap();
    assert!(!watching.is_finished());
    watching.abort();
}
