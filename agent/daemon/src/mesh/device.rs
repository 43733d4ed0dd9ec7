// SPDX-License-Identifier: Apache-2.0
//! The mesh interface as a WireGuard device, through defguard_wireguard_rs in both worlds.
//!
//! Every call of that library blocks (netlink or a Unix socket with a 3 s limit), so each round runs on a blocking
//! thread. `configure_interface` would drop all sessions: it is called only when key or port really differ.

use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use cluster_agent_core::MeshPeerStats;
use defguard_wireguard_rs::{
    InterfaceConfiguration, Kernel, Userspace, WGApi, WireguardInterfaceApi, host::Host, key::Key,
    net::IpAddrMask, peer::Peer,
};
use tokio::time::sleep;
use tracing::info;

use super::{
    INTERFACE, KeyBytes, Wanted,
    diff::{ActualPeer, Changes, changes},
};
use crate::host;

/// Where `wireguard-go` listens for its interface of the mesh's name.
const USERSPACE_SOCKET: &str = "/run/wireguard/cluster0.sock";
/// The unit that runs it.
const USERSPACE_UNIT: &str = "cluster-wireguard.service";
/// How long the socket may take to appear after the unit was started.
const USERSPACE_START: Duration = Duration::from_secs(10);

/// Who does WireGuard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's module.
    Kernel,
    /// A `wireguard-go` process.
    Userspace,
}

impl Backend {
    /// As status shows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "wireguard-go",
        }
    }

    fn api(self) -> Result<Box<dyn WireguardInterfaceApi>> {
        Ok(match self {
            Self::Kernel => Box::new(WGApi::<Kernel>::new(INTERFACE)?),
            // Without create_interface(), which would start a second device inside this process.
            Self::Userspace => Box::new(WGApi::<Userspace>::new(INTERFACE)?),
        })
    }
}

/// The device and what this agent last asked of it.
#[derive(Debug)]
pub struct Device {
    backend: Backend,
    applied: BTreeMap<KeyBytes, SocketAddr>,
    pinned: BTreeMap<Ipv6Addr, u32>,
}

impl Device {
    /// A device that exists; nothing is known about it yet.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        Self { backend, applied: BTreeMap::new(), pinned: BTreeMap::new() }
    }

    /// Who carries it.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Notes which link-local addresses are routed for it; gives those that no longer are.
    pub(super) fn pin(&mut self, wanted: &BTreeMap<Ipv6Addr, u32>) -> Vec<(Ipv6Addr, u32)> {
        let before = std::mem::replace(&mut self.pinned, wanted.clone());
        before.into_iter().filter(|(address, _)| !wanted.contains_key(address)).collect()
    }

    /// Brings key, port and peers to what is wanted by single changes, and reads all statistics.
    ///
    /// # Errors
    /// As the library reports them.
    pub async fn reconcile(&mut self, wanted: &Wanted) -> Result<Vec<MeshPeerStats>> {
        let backend = self.backend;
        let mut applied = self.applied.clone();
        let (private_key, port, peers) = (wanted.private_key, wanted.port, wanted.peers.clone());
        let (changed, stats, applied) = blocking(move || {
            let api = backend.api()?;
            // With a thousand peers this is the dear part, so it is done once.
            let mut host = api.read_interface_data()?;
            if !has(&host, private_key, port) {
                api.configure_interface(&InterfaceConfiguration {
                    name: INTERFACE.to_owned(),
                    prvkey: Key::new(private_key).to_lower_hex(),
                    addresses: Vec::new(),
                    port,
                    peers: Vec::new(),
                    mtu: None,
                    fwmark: None,
                })?;
                host = api.read_interface_data()?;
                applied.clear();
            }
            let changes = changes(&actual_peers(&host), &applied, &peers);
            apply(api.as_ref(), &changes)?;
            Ok((changes, statistics(&host), applied))
        })
        .await?;
        self.applied = wanted
            .peers
            .iter()
            .filter_map(|(key, peer)| Some((*key, peer.endpoint.or(applied.get(key).copied())?)))
            .collect();
        if changed != Changes::default() {
            info!(set = changed.set.len(), removed = changed.remove.len(), "mesh peers changed");
        }
        Ok(stats)
    }
}

/// Whether the device has this key and port. Keys are compared by the public one: the device gives the private one back
/// clamped (RFC 7748), so its bytes may differ.
fn has(host: &Host, private_key: KeyBytes, port: u16) -> bool {
    let is_ours = |key: &Key| key.public_key() == Key::new(private_key).public_key();
    host.listen_port == port && host.private_key.as_ref().is_some_and(is_ours)
}

fn apply(api: &dyn WireguardInterfaceApi, changes: &Changes) -> Result<()> {
    for key in &changes.remove {
        api.remove_peer(&Key::new(*key))?;
    }
    for (key, wanted) in &changes.set {
        let mut peer = Peer::new(Key::new(*key));
        peer.endpoint = wanted.endpoint;
        peer.persistent_keepalive_interval = Some(wanted.keepalive);
        peer.allowed_ips =
            wanted.allowed.iter().map(|(address, prefix)| IpAddrMask::new(*address, *prefix)).collect();
        api.configure_peer(&peer)?;
    }
    Ok(())
}

fn actual_peers(host: &Host) -> BTreeMap<KeyBytes, ActualPeer> {
    host.peers
        .iter()
        .map(|(key, peer)| {
            let actual = ActualPeer {
                endpoint: peer.endpoint,
                allowed: peer.allowed_ips.iter().map(|mask| (mask.address, mask.cidr)).collect(),
                keepalive: peer.persistent_keepalive_interval.unwrap_or(0),
            };
            (key.as_array(), actual)
        })
        .collect()
}

fn statistics(host: &Host) -> Vec<MeshPeerStats> {
    let mut stats: Vec<MeshPeerStats> = host
        .peers
        .iter()
        .map(|(key, peer)| MeshPeerStats {
            public_key: key.as_array(),
            // The device says 1970 for "never".
            last_handshake: peer
                .last_handshake
                .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
                .filter(|since| !since.is_zero()),
            rx: peer.rx_bytes,
            tx: peer.tx_bytes,
        })
        .collect();
    stats.sort_by_key(|stats| stats.public_key);
    stats
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("a WireGuard call panicked")?
}

/// Waits until `wireguard-go` answers.
///
/// # Errors
/// When it does not within 10 s; says what to look at.
pub async fn await_userspace() -> Result<Backend> {
    let deadline = tokio::time::Instant::now() + USERSPACE_START;
    // The socket lies in a directory that may not exist yet, in a sandbox where it cannot be watched: look often.
    while !listens() {
        if tokio::time::Instant::now() >= deadline {
            bail!(
                "this kernel has no WireGuard and no wireguard-go listens at {USERSPACE_SOCKET}: \
                 see `systemctl status {USERSPACE_UNIT}`"
            );
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(Backend::Userspace)
}

/// A socket file alone may be what a killed process left.
fn listens() -> bool {
    UnixStream::connect(USERSPACE_SOCKET).is_ok()
}

/// Asks for the unit by the file that its path unit watches. If it does not come, [`await_userspace`] tells.
pub fn ask_for_userspace(file: &Path) {
    if listens() {
        return;
    }
    info!(unit = USERSPACE_UNIT, "the kernel has no WireGuard; asking for wireguard-go");
    host::ask_for_wireguard_go(file);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_tell_never_from_long_ago() {
        let mut host = Host::default();
        for (byte, at) in [(1, Some(0)), (2, Some(900)), (3, None)] {
            let mut peer = Peer::new(Key::new([byte; 32]));
            peer.last_handshake = at.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            host.peers.insert(peer.public_key.clone(), peer);
        }
        let handshakes: Vec<_> = statistics(&host).into_iter().map(|stats| stats.last_handshake).collect();
        assert_eq!(handshakes, [None, Some(Duration::from_secs(900)), None]);
    }
}
