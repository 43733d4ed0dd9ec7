// SPDX-License-Identifier: Apache-2.0
//! Facts of the wire, and what an agent keeps to that others need not know.

use std::time::Duration;

pub use cluster_agent_proto::consts::*;

/// Whoever carries out [`StreamSend`](crate::NetCommand::StreamSend) tells of every so many bytes of a stream that the socket took.
/// Most streams never carry that much, and cost no word.
pub const SENT_STEP: usize = 16 * 1024;
/// Largest `cluster.toml` that is read.
pub const MAX_CLUSTER_TOML: usize = 64 * 1024;
/// Largest state file that is read back.
pub const MAX_STATE_FILE: usize = 16 * 1024 * 1024;

/// How long a node listens before it founds, counted from the first interface that is up.
pub const FOUNDING_WINDOW: Duration = Duration::from_secs(5);
/// How often the wall clock is saved.
pub const CLOCK_SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// How often a node reconciles its full state with a random member.
pub const PUSH_PULL_INTERVAL: Duration = Duration::from_secs(30);
