// SPDX-License-Identifier: Apache-2.0
//! VM clusters on one machine, without root: what `vm-cluster` and the VM tests stand on.
//!
//! A background daemon per cluster ([`daemon`]) owns the QEMU processes and the Ethernet switch between them
//! ([`switch`]). Everything else talks to it over a Unix socket ([`protocol`]) through the blocking [`client`]. The
//! switch decides without IO, so its faults are tested without a VM. Commands reach guests by virtio-serial
//! (qemu-guest-agent), never by the network: a cut link never cuts the harness.

pub mod accel;
pub mod bundle;
pub mod client;
pub mod cluster;
pub mod console;
pub mod cuts;
pub mod daemon;
mod fabric;
mod guest;
pub mod image;
pub mod pace;
pub mod pcap;
pub mod protocol;
pub mod qemu;
mod qmp;
mod random;
pub mod secrets;
pub mod state;
pub mod switch;
pub mod timeouts;
