// SPDX-License-Identifier: Apache-2.0
//! What is asked of systemd over D-Bus.

use std::{fmt, time::Duration};

use anyhow::{Context as _, Result};
use tokio::time::timeout;
use zbus::{Connection, OwnedObjectPath, proxy};

/// It answers at once, or something is badly wrong.
const ANSWER: Duration = Duration::from_secs(30);

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
}

#[proxy(interface = "org.freedesktop.systemd1.Unit", default_service = "org.freedesktop.systemd1")]
trait Unit {
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn sub_state(&self) -> zbus::Result<String>;
}

#[proxy(interface = "org.freedesktop.systemd1.Service", default_service = "org.freedesktop.systemd1")]
trait Service {
    #[zbus(property(emits_changed_signal = "false"))]
    fn n_restarts(&self) -> zbus::Result<u32>;
}

/// Restarts the machine as `systemctl reboot` does: services are stopped first.
///
/// # Errors
/// When systemd refuses, or does not answer.
pub async fn reboot(bus: &Connection) -> Result<()> {
    // Manager.Reboot() would end everything at once.
    let start = async {
        let manager = ManagerProxy::new(bus).await?;
        manager.start_unit("reboot.target", "replace-irreversibly").await
    };
    let started = timeout(ANSWER, start).await.with_context(|| {
        format!("systemd did not answer within {} s: `systemctl --force reboot`", ANSWER.as_secs())
    })?;
    started.context("systemd does not reboot")?;
    Ok(())
}

/// What systemd says of a unit: `active` and `running`, and the like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitState {
    /// `ActiveState`.
    pub active: String,
    /// `SubState`.
    pub sub: String,
}

impl fmt::Display for UnitState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.active, self.sub)
    }
}

/// The state of a unit.
///
/// # Errors
/// When systemd does not answer or does not know the unit.
pub async fn unit_state(bus: &Connection, name: &str) -> Result<UnitState> {
    let path = ManagerProxy::new(bus).await?.get_unit(name).await?;
    let unit =
        UnitProxy::builder(bus).path(path).cache_properties(zbus::proxy::CacheProperties::No).build().await?;
    Ok(UnitState { active: unit.active_state().await?, sub: unit.sub_state().await? })
}

/// How often systemd itself has started a service again since somebody last started it.
///
/// # Errors
/// When systemd does not answer or does not know the service.
pub async fn restarts(bus: &Connection, name: &str) -> Result<u32> {
    let path = ManagerProxy::new(bus).await?.get_unit(name).await?;
    let service = ServiceProxy::builder(bus).path(path);
    let service = service.cache_properties(zbus::proxy::CacheProperties::No).build().await?;
    Ok(service.n_restarts().await?)
}
