// SPDX-License-Identifier: Apache-2.0
//! Everything that may be told to a [`Node`](crate::Node).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::command::{StreamId, Ticket};
use crate::request::{Request, RequestId};
use crate::settings::{Problem, Settings};

/// The present, as the caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_BOOTTIME`: never steps, counts while the machine sleeps.
    pub boottime: Duration,
    /// Wall clock as time since 1970-01-01 UTC. May be wrong by decades.
    pub wall: Duration,
}

/// What a node is told once, when it starts.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Randomness of this boot, from the kernel. All randomness of the node is drawn from it.
    pub seed: [u8; 32],
    /// Version of the running system, as `status` shows it.
    pub version: String,
    /// When this system was built; the clock is never earlier. Zero when unknown.
    pub build_time: Duration,
    /// Development keys or settings in this image, one line each (`/usr/lib/clusteros/development`).
    pub development: Vec<String>,
}

/// What the state directory held at start: the bytes of the last [`Persist`](crate::Command::Persist) of each
/// item, `None` where the file does not exist.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// [`StateItem::Identity`](crate::StateItem::Identity)
    pub identity: Option<Vec<u8>>,
    /// [`StateItem::Generation`](crate::StateItem::Generation)
    pub generation: Option<Vec<u8>>,
    /// [`StateItem::Membership`](crate::StateItem::Membership)
    pub membership: Option<Vec<u8>>,
    /// [`StateItem::Records`](crate::StateItem::Records)
    pub records: Option<Vec<u8>>,
    /// [`StateItem::Clock`](crate::StateItem::Clock)
    pub clock: Option<Vec<u8>>,
}

/// What is known of `cluster.toml`.
#[derive(Clone, Debug, Default)]
pub struct Provisioning {
    /// The settings that rule: of the file, or of its last good copy when the file is wrong. `None`: unprovisioned.
    pub settings: Option<Settings>,
    /// What is wrong with the file, shown in `status` until it is mended.
    pub problems: Vec<Problem>,
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Kernel index; the scope id of link-local addresses.
    pub index: u32,
    /// Kernel name.
    pub name: String,
    /// Usable addresses (no tentative ones) with prefix length.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Has carrier and is up.
    pub up: bool,
    /// A real link: not loopback, not a tunnel, not a bridge or veth of ours. Only these carry agent traffic.
    pub physical: bool,
}

/// What WireGuard says of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshPeerStats {
    /// The peer's WireGuard public key.
    pub public_key: [u8; 32],
    /// Wall clock of the last handshake, since 1970; `None`: never.
    pub last_handshake: Option<Duration>,
    /// Bytes received.
    pub rx: u64,
    /// Bytes sent.
    pub tx: u64,
}

/// One thing that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A UDP datagram arrived on [`AGENT_PORT`](crate::consts::AGENT_PORT).
    Datagram {
        /// Source. A link-local IPv6 source carries its scope id; IPv4-mapped addresses are unmapped.
        from: SocketAddr,
        /// Index of the interface it came in on (`IP_PKTINFO`), 0 when unknown.
        interface: u32,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// Somebody connected to us over TCP. The caller numbers it with [`StreamId::inbound`].
    StreamAccepted {
        /// The new stream.
        stream: StreamId,
        /// Its source.
        from: SocketAddr,
    },
    /// A [`Connect`](crate::NetCommand::Connect) succeeded.
    StreamConnected {
        /// The stream named in the command.
        stream: StreamId,
    },
    /// Bytes arrived; any split is fine.
    StreamData {
        /// Where.
        stream: StreamId,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The socket took bytes that were sent on a stream; told whenever it has taken [`SENT_STEP`](crate::consts::SENT_STEP)
    /// or more since it was told last.
    StreamSent {
        /// Where.
        stream: StreamId,
        /// How many since the last time.
        bytes: usize,
    },
    /// The stream ended, failed or could not be connected. Nothing may be sent on it any more.
    StreamClosed {
        /// Which.
        stream: StreamId,
    },
    /// All interfaces as they are now; send again on every change.
    Interfaces(Vec<Interface>),
    /// A [`Persist`](crate::Command::Persist) is on the disk (fsynced, renamed, directory fsynced).
    Persisted(Ticket),
    /// A [`Persist`](crate::Command::Persist) failed; the node shows it and tries again.
    PersistFailed {
        /// Which.
        ticket: Ticket,
        /// Why, for people.
        error: String,
    },
    /// [`Node::poll_timeout`](crate::Node::poll_timeout) has passed.
    Timeout,
    /// WireGuard's counters; every few seconds while the mesh is up.
    MeshStats(Vec<MeshPeerStats>),
    /// `cluster.toml` appeared or changed.
    Provisioned(Provisioning),
    /// Somebody asks for something; each request gets one [`Answer`](crate::Command::Answer).
    Request {
        /// Given back in the answer.
        id: RequestId,
        /// What is asked for.
        request: Request,
    },
    /// A problem only the caller can see (a port is taken, WireGuard missing); empty text clears it.
    External {
        /// Short stable name of what has the problem, e.g. `mesh`.
        area: String,
        /// What is wrong; empty when all is well again.
        message: String,
        /// What to do; empty: the journal says more.
        fix: String,
    },
}
