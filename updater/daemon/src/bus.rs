// SPDX-License-Identifier: Apache-2.0
//! `org.clusteros.Updater1` on the system bus. Handlers convert and forward; what takes long runs beside the loop, so that
//! `Status` is answered meanwhile. `org.clusteros.Updater1.xml` is the interface as others may rely on it.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use cluster_updater_core::Version;
use serde::Serialize;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use zbus::{Connection, connection, fdo, interface, message::Header, object_server::SignalEmitter};

use crate::{agent, health, logind, systemd, updater::Updater};

/// Well-known name.
pub const NAME: &str = "org.clusteros.Updater1";
/// The one object.
pub const PATH: &str = "/org/clusteros/Updater1";
/// The bus itself answers at once.
const ANSWER: Duration = Duration::from_secs(30);
/// Changes within this time are told together.
const TOGETHER: Duration = Duration::from_millis(250);

/// The object on the bus.
pub struct Service {
    updater: Arc<Updater>,
}

impl Service {
    /// The object that forwards to `updater`.
    #[must_use]
    pub fn new(updater: Arc<Updater>) -> Self {
        Self { updater }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Updater) -> Result<T> + Send + 'static,
    ) -> fdo::Result<T> {
        let updater = self.updater.clone();
        let done = tokio::task::spawn_blocking(move || work(&updater)).await;
        done.map_err(|_| fdo::Error::Failed("the updater is stopping".to_owned()))?
            .map_err(|error| fdo::Error::Failed(format!("{error:#}")))
    }
}

#[interface(name = "org.clusteros.Updater1")]
impl Service {
    /// Slots, releases, keys and what is under way, as a JSON object.
    #[zbus(out_args("json"))]
    async fn status(&self, #[zbus(connection)] bus: &Connection) -> fdo::Result<String> {
        let mut report = self.run(|updater| Ok(updater.status())).await?;
        // Between two ends alone there is no logind.
        if bus.is_bus() {
            report.scheduled = logind::scheduled(bus).await.unwrap_or_else(|error| {
                tracing::debug!(error = format!("{error:#}"), "logind does not say what is scheduled");
                None
            });
        }
        json(&report)
    }

    /// What happened, as a JSON array, oldest first. Root only.
    #[zbus(out_args("json"))]
    async fn history(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> fdo::Result<String> {
        root_only(bus, &header).await?;
        json(&self.run(|updater| Ok(updater.history())).await?)
    }

    /// Takes in the release in an open folder or archive; returns its version. Root only.
    #[zbus(out_args("version"))]
    async fn import(
        &self,
        release: zbus::OwnedFd,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> fdo::Result<String> {
        root_only(bus, &header).await?;
        let release = OwnedFd::from(release);
        Ok(self.run(move |updater| updater.import(release)).await?.to_string())
    }

    /// Writes an imported release, or one that members hold, into the other slot. Root only.
    #[zbus(out_args("json"))]
    async fn stage(
        &self,
        version: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> fdo::Result<String> {
        root_only(bus, &header).await?;
        let version = match version {
            "" => None,
            text => Some(Version::parse(text).ok_or_else(|| {
                fdo::Error::InvalidArgs(format!("`{text}` is no version: numbers with dots, such as 0.2.1"))
            })?),
        };
        let linked = health::interfaces(bus).await.is_some_and(|now| now.linked > 0);
        // Without an agent an imported release can be staged all the same.
        let holders = agent::holders(bus).await.unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "no member is asked for a release");
            Vec::new()
        });
        let stage = move |updater: &Updater| {
            updater.note_link(linked);
            updater.stage(version, holders)
        };
        json(&self.run(stage).await?)
    }

    /// Hands what this node serves to cluster-releases, which asks for it when it starts. Root only.
    async fn offer(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> fdo::Result<()> {
        root_only(bus, &header).await?;
        self.run(|updater| {
            updater.offer();
            Ok(())
        })
        .await
    }

    /// Cancels what is staged, or makes the previous version the next boot's. Root only.
    #[zbus(out_args("json"))]
    async fn rollback(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> fdo::Result<String> {
        root_only(bus, &header).await?;
        json(&self.run(Updater::rollback).await?)
    }

    /// Restarts this node. Root only.
    async fn reboot(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> fdo::Result<()> {
        root_only(bus, &header).await?;
        let _held = self.run(|updater| updater.may_reboot()).await?;
        systemd::reboot(bus).await.map_err(|error| fdo::Error::Failed(format!("{error:#}")))
    }

    /// Restarts this node at a later time, seconds since 1970, instead of any other that was scheduled. Root only.
    async fn schedule_reboot(
        &self,
        at: u64,
        trust_clock: bool,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> fdo::Result<()> {
        root_only(bus, &header).await?;
        let held = self.run(|updater| updater.may_reboot()).await?;
        let is_trusted = trust_clock || self.updater.is_clock_set();
        logind::schedule(bus, at, is_trusted, &held)
            .await
            .map_err(|error| fdo::Error::Failed(format!("{error:#}")))
    }

    /// Takes a scheduled restart back; false if there was none. Root only.
    #[zbus(out_args("cancelled"))]
    async fn cancel_reboot(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> fdo::Result<bool> {
        root_only(bus, &header).await?;
        logind::cancel(bus).await.map_err(|error| fdo::Error::Failed(format!("{error:#}")))
    }

    /// Puts the running image's boot loader on the ESP if this boot was marked good; systemd-bless-boot asks for it. Root only.
    async fn refresh_boot_loader(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> fdo::Result<()> {
        root_only(bus, &header).await?;
        self.run(|updater| {
            updater.refresh_boot_loader();
            Ok(())
        })
        .await
    }

    /// Version of the updater.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        crate::VERSION.to_owned()
    }

    /// Something that `Status` tells has changed.
    #[zbus(signal)]
    async fn changed(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;
}

fn json(value: &impl Serialize) -> fdo::Result<String> {
    serde_json::to_string(value).map_err(|error| fdo::Error::Failed(error.to_string()))
}

/// The bus policy says the same.
async fn root_only(bus: &Connection, header: &Header<'_>) -> fdo::Result<()> {
    let denied = || fdo::Error::AccessDenied("only root may change this node".to_owned());
    let sender = header.sender().ok_or_else(denied)?;
    let ask = async { fdo::DBusProxy::new(bus).await?.get_connection_unix_user(sender.into()).await };
    let answer = timeout(ANSWER, ask).await;
    let user = answer.map_err(|_| fdo::Error::Failed("D-Bus does not say who asks".to_owned()))??;
    if user == 0 { Ok(()) } else { Err(denied()) }
}

/// Serves the object until the bus is gone; systemd then starts the daemon anew.
///
/// # Errors
/// When the bus is not there or the name is taken.
pub async fn serve(updater: Arc<Updater>) -> Result<()> {
    let (mut changes, held) = (updater.changes(), updater.held());
    let bus = connection::Builder::system()
        .serve_at(PATH, Service::new(updater.clone()))
        .name(NAME)
        .build()
        .await
        .with_context(|| format!("failed to serve {NAME}: is another cluster-updater running?"))?;
    tracing::info!(name = NAME, "serving on D-Bus");
    tokio::select! {
        () = bus.closed() => Ok(()),
        told = tell(&bus, &mut changes) => told,
        announced = agent::announce(&bus, held) => announced,
        ended = logind::put_off_while_writing(&bus, &updater) => ended,
    }
}

async fn tell(bus: &Connection, changes: &mut watch::Receiver<u64>) -> Result<()> {
    let emitter = SignalEmitter::new(bus, PATH)?;
    while changes.changed().await.is_ok() {
        Service::changed(&emitter).await?;
        // Not waiting for anything: this bounds how many signals a fast disk causes.
        sleep(TOGETHER).await;
    }
    Ok(())
}
