// SPDX-License-Identifier: Apache-2.0
//! What of a release must work beside the agent before a boot of it is marked good: what is needed to update again, to be
//! reached, and to be safe meanwhile.

use std::time::Duration;

use tokio::time::timeout;
use zbus::{Connection, OwnedObjectPath, proxy};

use crate::{
    paths::MESH,
    report::StatusReport,
    systemd::{self, UnitState},
};

/// Looking at disk and ESP takes longest.
const ANSWER: Duration = Duration::from_secs(30);
/// Always run.
const ALWAYS: [&str; 2] = ["nftables.service", "systemd-networkd.service"];
/// Runs where cluster.toml gives keys.
const SSH: &str = "ssh.service";

#[proxy(
    interface = "org.clusteros.Updater1",
    default_service = "org.clusteros.Updater1",
    default_path = "/org/clusteros/Updater1"
)]
trait ClusterUpdater {
    fn status(&self) -> zbus::Result<String>;
}

#[proxy(
    interface = "org.freedesktop.network1.Manager",
    default_service = "org.freedesktop.network1",
    default_path = "/org/freedesktop/network1"
)]
trait Networkd {
    fn list_links(&self) -> zbus::Result<Vec<(i32, String, OwnedObjectPath)>>;
}

#[proxy(interface = "org.freedesktop.network1.Link", default_service = "org.freedesktop.network1")]
trait NetworkdLink {
    #[zbus(property(emits_changed_signal = "false"))]
    fn administrative_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn carrier_state(&self) -> zbus::Result<String>;
}

/// Interfaces of the LAN: those that networkd configures; loopback and mesh are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interfaces {
    /// How many there are.
    pub(crate) all: usize,
    /// Those with a link.
    pub(crate) linked: usize,
}

/// What networkd says; none if it does not.
pub(crate) async fn interfaces(bus: &Connection) -> Option<Interfaces> {
    let count = async {
        let mut found = Interfaces::default();
        for (_, name, path) in NetworkdProxy::new(bus).await?.list_links().await? {
            // Until udev has looked at it, networkd says `pending` of the mesh, too.
            if name == MESH {
                continue;
            }
            let link = NetworkdLinkProxy::builder(bus).path(path);
            let link = link.cache_properties(zbus::proxy::CacheProperties::No).build().await?;
            if link.administrative_state().await? != "unmanaged" {
                found.all += 1;
                found.linked += usize::from(link.carrier_state().await? == "carrier");
            }
        }
        zbus::Result::Ok(found)
    };
    timeout(ANSWER, count).await.ok()?.ok()
}

/// What does not work; empty if all does. `now` is what there is of interfaces, of which one had a link `before`.
pub(crate) async fn broken(bus: &Connection, before: bool, now: Option<Interfaces>) -> Vec<String> {
    let mut broken = updater(bus).await;
    // The switch is no reason for that: a driver is missing.
    if before && now.is_some_and(|now| now.all == 0) {
        broken.push(
            "there is no network interface, and one had a link when this release was staged".to_owned(),
        );
    }
    for unit in ALWAYS {
        let state = state(bus, unit).await;
        if !state.as_ref().is_some_and(|state| state.active == "active") {
            broken.push(named(unit, state));
        }
    }
    let ssh = state(bus, SSH).await;
    // Without keys it is inactive, or systemd does not know it.
    if ssh.as_ref().is_some_and(|state| !matches!(state.active.as_str(), "active" | "inactive")) {
        broken.push(named(SSH, ssh));
    }
    broken
}

/// A release whose updater cannot work is the last one.
async fn updater(bus: &Connection) -> Vec<String> {
    let answer = timeout(ANSWER, async { ClusterUpdaterProxy::new(bus).await?.status().await }).await;
    let json = match answer {
        Ok(Ok(json)) => json,
        Ok(Err(error)) => return vec![format!("the updater does not answer: {error}")],
        Err(_) => return vec![format!("the updater does not answer within {} s", ANSWER.as_secs())],
    };
    match serde_json::from_str::<StatusReport>(&json) {
        Ok(StatusReport { slot: Some(_), problems, .. }) => problems,
        Ok(StatusReport { problems, .. }) => {
            vec![format!("the updater does not know its slot: {}", problems.join("; "))]
        }
        Err(error) => vec![format!("the updater's answer is not understood: {error}")],
    }
}

async fn state(bus: &Connection, unit: &str) -> Option<UnitState> {
    timeout(ANSWER, systemd::unit_state(bus, unit)).await.ok()?.ok()
}

fn named(unit: &str, state: Option<UnitState>) -> String {
    state.map_or_else(|| format!("{unit} is not known to systemd"), |state| format!("{unit} is {state}"))
}
