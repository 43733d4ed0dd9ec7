// SPDX-License-Identifier: Apache-2.0
//! The part of the cluster agent that acts. What is right to do is decided by `cluster-agent-core`, which does no IO;
//! this crate owns the sockets, timers, files, D-Bus and WireGuard, and carries decisions out.
//!
//! The way is one-way and the same for everything that happens:
//!
//! ```text
//! socket, timer, D-Bus, netlink, disk → eventloop → core.handle(input, now) → core.poll_command() → one module
//! ```
//!
//! A result returns only as a new input. The event loop waits for nothing but the next event: what can block (disk,
//! WireGuard, name resolution) runs on threads or tasks of its own.
//!
//! | module | owns |
//! |---|---|
//! | [`daemon`] | flags, log and runtime of the daemon |
//! | [`eventloop`] | the loop, and the one exhaustive match over commands |
//! | [`net`] | interfaces, datagrams, streams |
//! | [`store`] | the state directory |
//! | [`provisioning`] | `cluster.toml` and its last good copy |
//! | [`config_partition`] | whether the partition of `cluster.toml` is there and cannot be read |
//! | [`textfile`] | files that a person wrote |
//! | [`media`] | sticks, disks and image files that are written |
//! | [`mesh`] | the WireGuard interface |
//! | [`bus`] | `org.clusteros.Agent1` |
//! | [`host`] | host name and SSH keys |
//! | [`clock`] | boot time, wall time, and setting the latter |
//! | [`service`] | readiness and watchdog of systemd |
//! | [`report`] | what is told as JSON |
//! | [`ctl`] | the verbs of `clusterctl` |

pub mod bus;
pub mod clock;
pub mod config_partition;
pub mod ctl;
pub mod daemon;
pub mod eventloop;
mod events;
pub mod host;
pub mod logging;
pub mod media;
pub mod mesh;
pub mod net;
pub mod paths;
pub mod provisioning;
pub mod report;
mod saved;
pub mod service;
mod signals;
pub mod store;
pub mod textfile;
pub mod version;

const _: () = assert!(!cluster_agent_core::SIMULATED, "a daemon that checks no signatures must not exist");
