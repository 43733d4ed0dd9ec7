// SPDX-License-Identifier: Apache-2.0
//! One replica of the log: TiKV's `raft` behind a wall. Nothing of that crate, and nothing of protobuf, is seen outside.

mod codec;
mod log;
mod replica;
mod store;
#[cfg(test)]
mod traps;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use codec::sample_messages;
pub(crate) use codec::{read_message, snapshot_in, write_message};
pub(crate) use replica::{Change, Committed, Fault, Replica, Role};
pub use store::{Conf, HardState, LogEntry, Persist, Saved, Snapshot};

/// A raft message, as far as the rest of the crate knows it.
pub(crate) use ::raft::eraftpb::Message;
