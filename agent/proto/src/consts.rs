// SPDX-License-Identifier: Apache-2.0
//! Facts of the wire that every node must agree on, in one place. `docs/protocol.md` explains each.

use std::net::Ipv6Addr;
use std::time::Duration;

/// UDP and TCP port of the agent: datagrams and framed streams.
pub const AGENT_PORT: u16 = 41410;
/// UDP port of WireGuard.
pub const WIREGUARD_PORT: u16 = 41411;
/// Name of the WireGuard interface.
pub const MESH_INTERFACE: &str = "cluster0";
/// Link-local multicast group of solicitations (`ff02::` and "cclust" in ASCII).
pub const MULTICAST_GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0x6343, 0x6c75, 0x7374);
/// Prefix of all mesh addresses, /48; the low 80 bits come from the node's key.
pub const MESH_PREFIX: Ipv6Addr = Ipv6Addr::new(0xfdc1, 0x0505, 0, 0, 0, 0, 0, 0);
/// Length of [`MESH_PREFIX`] in bits.
pub const MESH_PREFIX_LEN: u8 = 48;
/// WireGuard's persistent keepalive, so that tunnels come up without traffic.
pub const MESH_KEEPALIVE: Duration = Duration::from_secs(25);

/// First byte of everything we send or store.
pub const WIRE_VERSION: u8 = 1;
/// What this build can do; a node says it in its record.
pub const FEATURE_LEVEL: u16 = 1;
/// Largest UDP payload we send: safe on every path we care for (IPv6 minimum MTU 1280 minus headers).
pub const MAX_DATAGRAM: usize = 1200;
/// What a transport datagram adds to its plaintext: head and tag.
pub const TRANSPORT_OVERHEAD: usize = 14 + 16;
/// Largest plaintext inside a transport datagram.
pub const MAX_DATAGRAM_PAYLOAD: usize = MAX_DATAGRAM - TRANSPORT_OVERHEAD;
/// MTU of the mesh: the largest packet that still fits, encrypted, over IPv6 into 1400 bytes (80 bytes of headers and tag).
/// Tunnels, PPPoE and nested VMs have links that narrow, and say nothing when they drop what is larger.
pub const MESH_MTU: usize = 1320;
/// A question of this size is as large as a full packet of the mesh is inside UDP: WireGuard adds 32 bytes.
pub const MAX_WIDE_DATAGRAM: usize = MESH_MTU + 32;
/// Fixed size limit of foca's packets. The same on all nodes: foca enforces it on receipt too. Header and count of a gossip
/// message, and exactly 24 members: where a few bytes are left, foca tries all news it has for one that fits.
pub const GOSSIP_PACKET: usize = 86 + 24 * 43;
/// Largest encoded node record, so that one fits into a gossip packet.
pub const MAX_RECORD: usize = 700;
/// Largest frame of a stream (the length prefix not counted); Noise allows no more.
pub const MAX_FRAME: usize = 65_535;
