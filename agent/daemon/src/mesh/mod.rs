// SPDX-License-Identifier: Apache-2.0
//! The mesh: keeps the WireGuard interface as the core wants it and tells the core how the tunnels are.
//!
//! One task owns the interface. It is given the whole wanted state, never steps, and works out the difference to what
//! the kernel has: so a restarted agent adopts the running interface with its sessions, and a change somebody else
//! made is put right at the next round.
//!
//! The kernel does WireGuard where it can. Where it cannot, `wireguard-go` does, as a unit of its own
//! (`cluster-wireguard.service`): it outlives the agent, and with it the sessions.

pub mod device;
pub mod diff;
pub mod link;
mod route;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use cluster_agent_core::{
    MeshPeerStats, MeshPlan,
    consts::{MESH_INTERFACE, MESH_MTU, MESH_PREFIX, MESH_PREFIX_LEN},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use self::{
    device::{Backend, Device},
    link::Links,
};

/// Name of the interface.
pub const INTERFACE: &str = MESH_INTERFACE;
/// MTU of the interface.
const MTU: u32 = MESH_MTU as u32;
/// How often statistics are read and the interface is compared with what is wanted.
const ROUND: Duration = Duration::from_secs(5);
/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A WireGuard key, public or private.
pub type KeyBytes = [u8; 32];

/// Everything the core wants of the mesh.
#[derive(Clone, PartialEq, Eq)]
pub struct Wanted {
    /// This node's private key.
    pub private_key: KeyBytes,
    /// UDP port of WireGuard.
    pub port: u16,
    /// This node's mesh address.
    pub address: Ipv6Addr,
    /// Prefix of the whole mesh, routed to the interface.
    pub network: (Ipv6Addr, u8),
    /// Peers by public key.
    pub peers: BTreeMap<KeyBytes, WantedPeer>,
}

/// One tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedPeer {
    /// Where the peer was heard last; `None` waits for the peer to speak first.
    pub endpoint: Option<SocketAddr>,
    /// Link-local addresses that WireGuard may go over to by itself, each with the interface that leads there.
    pub also_at: Vec<SocketAddrV6>,
    /// What may come from and go to this peer; sorted.
    pub allowed: Vec<(IpAddr, u8)>,
    /// Seconds between keepalives, 0 for none.
    pub keepalive: u16,
}

/// What the task tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The interface is as wanted; this is who carries it (`kernel` or `wireguard-go`).
    Ready {
        /// For status.
        backend: &'static str,
    },
    /// Fresh statistics of all peers.
    Stats(Vec<MeshPeerStats>),
    /// What else has addresses of the mesh, or leads to them; empty: nothing.
    Intruders {
        /// For people.
        message: String,
    },
    /// It cannot be as wanted now; tried again until it is.
    Failing {
        /// The whole chain of causes.
        error: String,
    },
    /// The interface is gone, as wanted.
    Removed,
}

/// The task's handle.
#[derive(Debug)]
pub struct Mesh {
    wanted: watch::Sender<Option<Wanted>>,
}

impl From<MeshPlan> for Wanted {
    fn from(plan: MeshPlan) -> Self {
        let peers = plan.peers.into_iter().map(|peer| {
            let mut allowed = peer.allowed_ips;
            allowed.sort();
            // WireGuard counts in whole seconds, up to 65535.
            let keepalive = u16::try_from(peer.keepalive.as_secs()).unwrap_or(u16::MAX);
            let (endpoint, also_at) = (peer.endpoint, peer.also_at);
            (peer.public_key, WantedPeer { endpoint, also_at, allowed, keepalive })
        });
        Self {
            private_key: plan.private_key,
            port: plan.listen_port,
            address: plan.address,
            network: (MESH_PREFIX, MESH_PREFIX_LEN),
            peers: peers.collect(),
        }
    }
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wanted")
            .field("address", &self.address)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

impl Mesh {
    /// Starts the task. It touches nothing before the first [`Mesh::apply`] or [`Mesh::remove`]. `wireguard_go` is the
    /// file that asks for `wireguard-go`.
    ///
    /// # Errors
    /// When the routing socket cannot be opened.
    pub fn start(wireguard_go: PathBuf) -> Result<(Self, mpsc::Receiver<Event>)> {
        let links = Links::open()?;
        let (wanted, receiver) = watch::channel(None);
        let (events, incoming) = mpsc::channel(16);
        tokio::spawn(keep(links, wireguard_go, receiver, events));
        Ok((Self { wanted }, incoming))
    }

    /// Makes the interface so, from now on.
    pub fn apply(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|before| {
            let changed = before.as_ref() != Some(&wanted);
            *before = Some(wanted);
            changed
        });
    }

    /// Takes the interface away: the node left its cluster.
    pub fn remove(&self) {
        self.wanted.send_replace(None);
    }
}

async fn keep(
    links: Links,
    wireguard_go: PathBuf,
    mut wanted: watch::Receiver<Option<Wanted>>,
    events: mpsc::Sender<Event>,
) {
    let mut device: Option<Device> = None;
    let mut next_round: Option<Instant> = None;
    let (mut failures, mut turn) = (0u32, 0);
    loop {
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = sleep_until(next_round.unwrap_or_else(Instant::now)), if next_round.is_some() => {}
        }
        let now = wanted.borrow_and_update().clone();
        let outcome = match &now {
            Some(wanted) => {
                turn += 1;
                round(&links, &wireguard_go, &mut device, wanted, turn).await
            }
            None => links.remove(INTERFACE).await.map(|()| vec![Event::Removed]),
        };
        let reports = match outcome {
            Ok(reports) => {
                failures = 0;
                next_round = now.is_some().then(|| Instant::now() + ROUND);
                if now.is_none() {
                    device = None;
                }
                reports
            }
            Err(error) => {
                // Whatever was known about the interface may be what is wrong.
                device = None;
                let pause = RETRY.0.saturating_mul(1 << failures.min(5)).min(RETRY.1);
                failures = failures.saturating_add(1);
                next_round = Some(Instant::now() + pause);
                if failures == 1 {
                    warn!(error = format!("{error:#}"), "failed to set up the mesh interface; trying again");
                }
                vec![Event::Failing { error: format!("{error:#}") }]
            }
        };
        for report in reports {
            if events.send(report).await.is_err() {
                return;
            }
        }
    }
}

/// Brings interface and peers to what is wanted, and reads statistics.
async fn round(
    links: &Links,
    wireguard_go: &Path,
    device: &mut Option<Device>,
    wanted: &Wanted,
    turn: usize,
) -> Result<Vec<Event>> {
    let mut reports = Vec::new();
    let index = links.index_of(INTERFACE).await?;
    if device.is_none() || index.is_none() {
        let backend = establish(links, wireguard_go).await?;
        *device = Some(Device::new(backend));
        reports.push(Event::Ready { backend: backend.name() });
    }
    let Some(device) = device else { return Ok(reports) };
    links
        .address(INTERFACE, MTU, wanted.address, wanted.network)
        .await
        .context("failed to give the mesh interface its address")?;
    if device.backend() == Backend::Userspace {
        let pins = pins(wanted);
        links.pin(&pins, device.pin(&pins)).await.context("failed to route to mesh peers")?;
    }
    let stats = device.reconcile(wanted).await.context("failed to configure the mesh")?;
    if !reports.is_empty() {
        info!(backend = device.backend().name(), interface = INTERFACE, address = %wanted.address, "mesh is up");
    }
    reports.push(Event::Stats(stats));
    if let Some(index) = links.index_of(INTERFACE).await? {
        let members: Vec<Ipv6Addr> =
            wanted.peers.values().flat_map(|peer| &peer.allowed).filter_map(member).collect();
        match links.intruders(index, wanted.network, &members, turn).await {
            Ok(message) => reports.push(Event::Intruders { message }),
            Err(error) => debug!(error = format!("{error:#}"), "the routes to the mesh were not looked at"),
        }
    }
    Ok(reports)
}

/// The address of one member among those that are allowed.
fn member(allowed: &(IpAddr, u8)) -> Option<Ipv6Addr> {
    match allowed {
        (IpAddr::V6(address), 128) => Some(*address),
        _ => None,
    }
}

/// Which interface leads to each link-local address of a peer: the endpoint that is wanted, and those that WireGuard may go
/// over to.
fn pins(wanted: &Wanted) -> BTreeMap<Ipv6Addr, u32> {
    let endpoints = wanted.peers.values().filter_map(|peer| match peer.endpoint {
        Some(SocketAddr::V6(endpoint)) => Some(endpoint),
        _ => None,
    });
    let others = wanted.peers.values().flat_map(|peer| peer.also_at.iter().copied());
    // The endpoints come last: they are in use.
    let link_local = others.chain(endpoints).filter(|address| address.ip().is_unicast_link_local());
    link_local.map(|address| (*address.ip(), address.scope_id())).collect()
}

/// Finds the interface or makes it: the kernel's if it can, else whatever `wireguard-go` made.
async fn establish(links: &Links, wireguard_go: &Path) -> Result<Backend> {
    match links.kind_of(INTERFACE).await? {
        Some(link::Kind::WireGuard) => return Ok(Backend::Kernel),
        Some(link::Kind::Tun) => return device::await_userspace().await,
        Some(link::Kind::Other) => anyhow::bail!(
            "an interface named {INTERFACE} exists and is not WireGuard: remove it with `ip link delete {INTERFACE}`"
        ),
        None => {}
    }
    if links.create_wireguard(INTERFACE).await? {
        return Ok(Backend::Kernel);
    }
    device::ask_for_userspace(wireguard_go);
    device::await_userspace().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_local_address_of_a_peer_leads_to_one_card_and_the_endpoint_to_its_own() {
        let v6 = |address: &str| address.parse::<SocketAddrV6>().unwrap();
        let peer = |endpoint: &str, also_at: &[&str]| WantedPeer {
            endpoint: Some(endpoint.parse().unwrap()),
            also_at: also_at.iter().map(|address| v6(address)).collect(),
            allowed: vec![],
            keepalive: 0,
        };
        let wanted = Wanted {
            private_key: [0; 32],
            port: 1,
            address: Ipv6Addr::LOCALHOST,
            network: (Ipv6Addr::LOCALHOST, 48),
            peers: [
                ([1; 32], peer("[fe80::1%2]:1", &["[fe80::2%3]:1"])),
                // The same address on another LAN; and endpoints that the kernel routes.
                ([2; 32], peer("[2001:db8::1]:1", &["[fe80::1%3]:1"])),
                ([3; 32], peer("192.0.2.1:1", &[])),
            ]
            .into(),
        };
        assert_eq!(pins(&wanted), [("fe80::1".parse().unwrap(), 2), ("fe80::2".parse().unwrap(), 3)].into());
    }
}
