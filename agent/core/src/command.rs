// SPDX-License-Identifier: Apache-2.0
//! Everything that a [`Node`](crate::Node) asks of its caller.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use crate::id::NodeId;
use crate::request::{Refusal, RequestId};
use crate::view::MemberState;

/// Number of a TCP stream: outbound ones are numbered by the node, inbound ones by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

impl StreamId {
    /// The `n`th inbound stream.
    pub fn inbound(n: u64) -> Self {
        Self(n | 1 << 63)
    }

    /// Whether the other side opened it.
    pub fn is_inbound(self) -> bool {
        self.0 >> 63 == 1
    }
}

/// Number of a write, given back in [`Input::Persisted`](crate::Input::Persisted).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One file of the state directory. Each is written as a whole and replaces the former one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateItem {
    /// The node's private keys. Secret.
    Identity,
    /// Boot counter, part of what makes a newer record win.
    Generation,
    /// Cluster, admissions, leaves.
    Membership,
    /// Records of members and where they were last seen. May be lost; only speeds up finding each other.
    Records,
    /// Last known wall clock.
    Clock,
    /// An identity that could not be read, kept aside for a person.
    DamagedIdentity,
    /// A membership that could not be read, kept aside for a person.
    DamagedMembership,
}

impl StateItem {
    /// File name inside the state directory.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Generation => "generation",
            Self::Membership => "membership",
            Self::Records => "records",
            Self::Clock => "clock",
            Self::DamagedIdentity => "identity.damaged",
            Self::DamagedMembership => "membership.damaged",
        }
    }
}

/// One WireGuard peer that should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshPeer {
    /// Whose it is; only for logs and views.
    pub id: NodeId,
    /// WireGuard public key.
    pub public_key: [u8; 32],
    /// Where it was last heard; link-local ones carry their scope id. `None`: keep what WireGuard has.
    pub endpoint: Option<SocketAddr>,
    /// Its other link-local addresses, each with the scope id of the interface that leads there; sorted. WireGuard goes over to
    /// one of them when the peer speaks from there.
    pub also_at: Vec<SocketAddrV6>,
    /// Addresses routed to it, with prefix length.
    pub allowed_ips: Vec<(IpAddr, u8)>,
    /// Persistent keepalive.
    pub keepalive: Duration,
}

/// The whole mesh as it should be; the caller applies the difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshPlan {
    /// Our WireGuard private key. Secret.
    pub private_key: [u8; 32],
    /// UDP port to listen on.
    pub listen_port: u16,
    /// Our address, to be set on the interface as /48 on-link or /128 plus a route.
    pub address: Ipv6Addr,
    /// All peers, ordered by node id.
    pub peers: Vec<MeshPeer>,
}

/// How much a log line matters (style.md, 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// A person must act.
    Error,
    /// It healed, but look.
    Warn,
    /// A state changed.
    Info,
    /// Why.
    Debug,
}

/// What changed in the views, for D-Bus signals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// [`Node::status`](crate::Node::status), or something in [`Node::members`](crate::Node::members), changed.
    Status,
    /// A member appeared or its state changed.
    Member {
        /// Who.
        id: NodeId,
        /// Its name.
        name: String,
        /// Its state now.
        state: MemberState,
    },
}

/// What goes out on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetCommand {
    /// Send a UDP datagram from [`AGENT_PORT`](crate::consts::AGENT_PORT).
    SendDatagram {
        /// Destination; a link-local IPv6 one carries its scope id.
        to: SocketAddr,
        /// Interface to send from, 0: the kernel's choice.
        interface: u32,
        /// Payload, at most [`MAX_DATAGRAM`](crate::consts::MAX_DATAGRAM) bytes; questions of full size have
        /// [`MAX_WIDE_DATAGRAM`](crate::consts::MAX_WIDE_DATAGRAM).
        bytes: Vec<u8>,
    },
    /// Send to [`MULTICAST_GROUP`](crate::consts::MULTICAST_GROUP) on one interface.
    Multicast {
        /// Interface index.
        interface: u32,
        /// Payload.
        bytes: Vec<u8>,
    },
    /// Send to 255.255.255.255 on one interface (it has an IPv4 address).
    Broadcast {
        /// Interface index.
        interface: u32,
        /// Payload.
        bytes: Vec<u8>,
    },
    /// Resolve a host name to addresses (a seed from `cluster.toml`) and send `bytes` to each, as `SendDatagram`.
    SendToName {
        /// Host name as written in the file.
        host: String,
        /// Port.
        port: u16,
        /// Payload.
        bytes: Vec<u8>,
    },
    /// Open a TCP stream; answered by `StreamConnected` or `StreamClosed`.
    Connect {
        /// Number of the new stream.
        stream: StreamId,
        /// Destination; a link-local IPv6 one carries its scope id.
        to: SocketAddr,
    },
    /// Send on a stream, and tell by [`StreamSent`](crate::Input::StreamSent) how the socket takes it.
    StreamSend {
        /// Which.
        stream: StreamId,
        /// What.
        bytes: Vec<u8>,
    },
    /// Flush what was sent, then close. No `StreamClosed` is expected.
    StreamClose {
        /// Which.
        stream: StreamId,
    },
}

/// What is set on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostCommand {
    /// If the wall clock is earlier than this, set it to this.
    SetClockFloor {
        /// Time since 1970.
        wall: Duration,
    },
    /// Set the wall clock to this, even if it goes back: most members say that it is far ahead. Only before the mesh.
    SetClock {
        /// Time since 1970.
        wall: Duration,
    },
    /// Make the mesh so. Always after the first `SetClockFloor` or `SetClock`.
    MeshApply(MeshPlan),
    /// Take the mesh down: interface and routes (after a leave).
    MeshRemove,
    /// Set the host name.
    SetHostname {
        /// The name, a valid DNS label.
        name: String,
    },
}

/// One effect. They are carried out in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send something.
    Net(NetCommand),
    /// Set something.
    Host(HostCommand),
    /// Write a state file durably, then give `Persisted` (or `PersistFailed`). The node withholds every later command
    /// that depends on it by itself: `poll_command` just gives `None` until then.
    Persist {
        /// Number of the write.
        ticket: Ticket,
        /// Which file.
        item: StateItem,
        /// Its whole content.
        bytes: Vec<u8>,
    },
    /// A [`Request`](crate::Input::Request) is done, or is not going to be.
    Answer {
        /// Number of the request.
        id: RequestId,
        /// Done, or why not.
        result: Result<(), Refusal>,
    },
    /// A view changed.
    Notify(Notice),
    /// Write to the journal.
    Log {
        /// How much it matters.
        level: LogLevel,
        /// Fixed text, lower case.
        message: String,
        /// Values: lower-case name and text.
        fields: Vec<(&'static str, String)>,
    },
}

impl From<NetCommand> for Command {
    fn from(command: NetCommand) -> Self {
        Self::Net(command)
    }
}

impl From<HostCommand> for Command {
    fn from(command: HostCommand) -> Self {
        Self::Host(command)
    }
}
