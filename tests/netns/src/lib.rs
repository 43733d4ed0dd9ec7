// SPDX-License-Identifier: Apache-2.0
//! A cluster of network namespaces: the real `cluster-agent` and `clusterctl`, several times on one machine.
//!
//! A [`World`] is a switch (a bridge in a namespace of its own) and nodes hung on it by veth pairs. A node has a
//! network, mount and host-name namespace, a `/run` of its own, a private system bus under the product's own policy, and
//! `wireguard-go` where the kernel has no WireGuard. There is no DHCP and no IPv4: only link-local addresses, the
//! hardest LAN the agent must work on. Nothing of the machine's own network is touched. Root is not needed where user
//! namespaces are allowed.
//!
//! Everything about a world lies in one directory, `build/netns/NAME`: state, logs and the ids of its processes, so that
//! a later command finds them and only ever kills what this one started.

pub mod gate;
mod node;
mod process;
mod starting_line;
pub mod story;
mod tools;
mod world;

pub use cluster_harness::client::Member;
pub use node::Node;
pub use process::forbid_starts;
pub use starting_line::StartingLine;
pub use world::World;
