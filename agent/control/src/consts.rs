// SPDX-License-Identifier: Apache-2.0
//! Limits and times of the control plane, in one place.

use std::time::Duration;

/// Length of one raft tick.
pub const TICK: Duration = Duration::from_millis(100);
/// A leader says that it lives after this many ticks.
pub(crate) const HEARTBEAT_TICKS: usize = 2;
/// A voter that hears no leader for this many ticks, and up to as many more by its own draw, asks for an election.
pub(crate) const ELECTION_TICKS: usize = 10;
/// A snapshot that was not confirmed after this many ticks is sent again.
pub(crate) const SNAPSHOT_TICKS: u32 = 50;
/// A voter that starts holds back votes and answers this long, unless all other voters told it before what they heard of it.
pub(crate) const ROLL_CALL: Duration = Duration::from_secs(2);
/// The roll call is repeated this often.
pub(crate) const ROLL_CALL_EVERY: Duration = Duration::from_millis(300);

/// Largest message between two nodes: a snapshot and its head.
pub const MAX_MESSAGE: usize = MAX_STATE + 64 * 1024;
/// Largest encoded state.
pub const MAX_STATE: usize = 8 * 1024 * 1024;
/// Largest entry of the log.
pub(crate) const MAX_ENTRY: usize = 192 * 1024;
/// Most entries in one message: more than [`MAX_APPEND`] has room for.
pub(crate) const MAX_ENTRIES: usize = 16_384;
/// Entries of one raft message are at most about this large together.
pub(crate) const MAX_APPEND: u64 = 256 * 1024;
/// Entries that are not committed yet are at most about this large together; more proposals are refused.
pub(crate) const MAX_UNCOMMITTED: u64 = 4 * 1024 * 1024;
/// Most raft ids in one list of a configuration: five voters, their successors, and what is being replaced.
pub(crate) const MAX_CONF: usize = 16;
/// The log is replaced by a snapshot when it has this many applied entries.
pub(crate) const COMPACT_AFTER: usize = 1024;
/// And keeps this many for those that are a little behind.
pub(crate) const COMPACT_KEEP: usize = 256;
/// Or when its entries are this large together.
pub(crate) const COMPACT_BYTES: usize = 4 * 1024 * 1024;

/// Requests that wait for an answer: the node's own, and those of others that a leader works on.
pub(crate) const MAX_WAITING: usize = 1024;
/// Of these at most so many of one other node.
pub(crate) const MAX_WAITING_OF_ONE: usize = 32;
/// A request is answered after this time, if only with "unknown".
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// A request is given to the leader again this often: the message or the leader may have been lost.
pub(crate) const REQUEST_RETRY: Duration = Duration::from_millis(500);

/// A node that is no voter, or hears no leader, asks a voter for news, and the next voter after this time without an answer.
pub(crate) const PULL_RETRY: Duration = Duration::from_secs(3);
/// And does not ask more often than this.
pub(crate) const PULL_PAUSE: Duration = Duration::from_millis(20);
/// A voter that has no news answers after this time.
pub(crate) const PULL_HOLD: Duration = Duration::from_secs(2);
/// Most nodes that wait for news at one voter.
pub(crate) const MAX_PULLS: usize = 4096;
/// An answer with entries is at most about this large; where more is missing it is a snapshot.
pub(crate) const MAX_DELTA: usize = 256 * 1024;
/// A replica that heard no leader for this time asks like a node that is none: it may have been removed.
pub(crate) const LEADER_SILENT: Duration = Duration::from_secs(5);

/// A voter that is silent for this long is replaced, if there is somebody to replace it.
pub const VOTER_GRACE: Duration = Duration::from_secs(60);
/// A disk is slow when an fsync takes longer than this.
pub const SLOW_FSYNC: Duration = Duration::from_millis(200);
/// The leader looks this often at what there is to do.
pub(crate) const LEADER_EVERY: Duration = Duration::from_millis(500);
/// An invitation to become a replica is answered within this time or goes to another node.
pub(crate) const INVITATION: Duration = Duration::from_secs(5);
/// Who did not answer is not invited again for this time.
pub(crate) const UNWILLING: Duration = Duration::from_secs(30);

/// Members and waiting join requests together are never more than this.
pub const MAX_MEMBERS: usize = 4096;
/// Members that policy `auto` admits unless the setting says otherwise.
pub const DEFAULT_MAX_MEMBERS: u16 = 256;
/// Most evicted nodes: the list only grows, and nobody is evicted when it is full.
pub const MAX_EVICTED: usize = 4096;
/// Nodes that left or were removed and whose names and addresses are remembered.
pub(crate) const MAX_DEPARTED: usize = 1024;
/// Join requests that wait for a person.
pub const MAX_REQUESTS: usize = 64;
/// Join keys.
pub const MAX_JOIN_KEYS: usize = 64;
/// Request ids that are remembered, so that a repeated proposal changes nothing.
pub(crate) const MAX_REMEMBERED: usize = 1024;
/// Changes of settings that are remembered, and their size together.
pub(crate) const MAX_HISTORY: usize = 64;
/// See [`MAX_HISTORY`].
pub(crate) const MAX_HISTORY_BYTES: usize = 1024 * 1024;
