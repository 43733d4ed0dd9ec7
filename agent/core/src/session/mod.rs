// SPDX-License-Identifier: Apache-2.0
//! Sessions between members over datagrams.
//!
//! Noise IK with three datagrams that matter: message 1 proves nothing yet (it may be a replay), so its receiver only
//! answers; message 2 proves the responder to the initiator; the first transport datagram proves the initiator to the
//! responder. When both sides open at once, both sessions stand: each side receives on both and sends on the one that was
//! confirmed last. Messages 1 and 2 end in a tag that only who knows the receiver's session key can make, and who has too much
//! to do answers message 1 with a cookie first. A peer that restarted answers with "unknown session", which says nothing but to try a new handshake.

mod cookie;
mod door;
mod handshake;
mod packet;
mod paths;
mod peer;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod probe;
mod table;
mod watch;
mod width;
mod window;

use std::net::SocketAddr;

use crate::id::NodeId;

pub(crate) use table::{Context, Sessions};

/// Second byte: first message of a handshake.
pub(crate) const DATAGRAM_OPEN: u8 = 2;
/// Second byte: answer to it.
pub(crate) const DATAGRAM_ACCEPT: u8 = 3;
/// Second byte: transport.
pub(crate) const DATAGRAM_TRANSPORT: u8 = 4;
/// Second byte: a transport datagram named a session that does not exist here.
pub(crate) const DATAGRAM_UNKNOWN: u8 = 5;
/// Second byte: an answer to a first message that asks for proof that its sender can hear us.
pub(crate) const DATAGRAM_COOKIE: u8 = 6;

/// First byte of a payload: a gossip packet.
pub(crate) const PAYLOAD_GOSSIP: u8 = 1;
/// First byte of a payload: a signed object.
pub(crate) const PAYLOAD_OBJECT: u8 = 2;
/// First byte of a payload: a number, to be given back on the path it came by.
pub(crate) const PAYLOAD_ASK: u8 = 3;
/// First byte of a payload: the number that was asked.
pub(crate) const PAYLOAD_ANSWER: u8 = 4;
/// First byte of a payload: a number to be given back, padded to the size of a full packet of the mesh.
pub(crate) const PAYLOAD_WIDE_ASK: u8 = 5;

/// Where datagrams of a peer come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Path {
    pub(crate) address: SocketAddr,
    /// Interface it came in on, 0: unknown.
    pub(crate) interface: u32,
}

/// What both sides say inside a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) instance: [u8; 8],
    pub(crate) generation: u32,
    /// Renewals of the gossip identity within this boot.
    pub(crate) bump: u32,
    /// Wall clock in milliseconds since 1970.
    pub(crate) wall: u64,
}

/// What sessions give back.
#[derive(Debug)]
pub(crate) enum Event {
    /// Send this.
    Send(Path, Vec<u8>),
    /// A handshake proved the peer alive and present.
    Established(NodeId, Greeting),
    /// A member said something.
    Received(NodeId, Vec<u8>),
    /// An attempt on this path was not answered; the node may also try a beacon.
    Unanswered(Path),
}
