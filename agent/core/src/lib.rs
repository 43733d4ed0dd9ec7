// SPDX-License-Identifier: Apache-2.0
//! What a Cluster-OS node decides: who it is, whom it lets in, who is alive, and what the mesh should be.
//!
//! The crate does no IO. It has no sockets, files, tasks or clock; time and randomness are arguments, so the whole
//! protocol runs in a simulation (`tests/`) exactly as it runs on a machine. The contract of [`Node`]:
//!
//! 1. Make it once with [`Node::new`], from what the state directory held.
//! 2. Give it everything that happens as [`Node::handle`]`(input, now)`.
//! 3. After each call, drain [`Node::poll_command`] and carry the commands out in order.
//! 4. Call `handle(Input::Timeout, now)` when [`Node::poll_timeout`] has passed.
//!
//! *Persist, then send* needs no care of the caller: what depends on a `Persist` is withheld until its `Persisted` came.
//!
//! Inside, each state has one owner, which alone writes it. Files of `node/` import and call each other in one direction
//! (`tests/rooms.rs`): owners at the bottom; `parts`, the struct of all of them; what is done with several owners at once, from
//! `signing` and `transitions` over `learning` and `saying` to `introduce` and `neighbours`; and on top `router`, whose
//! `Node::handle` is the table of which input goes to whom. Owners of the whole node:
//!
//! * `Ctx`, passed to whoever acts: the present, how late ticks come, randomness, counters of what was refused, and the
//!   `Outbox`: commands, writes under way and what waits for them.
//! * `Place`: where the node stands (outside, member, left), and the join key in force.
//! * `OwnRecord`: this node's signed record, and generation and counter that make a later one win.
//! * `Links`: its network interfaces and addresses.
//! * `Discovery`: when beacons are sent and who was introduced; with `Crowd` who is about, `Senders` who is asked to let this node in,
//!   and `Founding` who may found.
//! * `Streams`: conversations by number, and how many there may be. One is taken to go on with it, and put back.
//! * `Clock`: what members say of the time.
//! * `StateFiles`: what is not on the disk yet.
//! * `Problems`: what is wrong with it.
//! * `Requests`: leaves and joins that were not answered yet.
//!
//! Of the cluster that it belongs to, for as long as it does:
//!
//! * `Membership`: roster, gossip, newcomers, and a leave under way.
//! * `Sessions`: handshakes and sessions with members, and the paths to each.
//! * `Dialer`: where members were heard, when each is dialled, whose paths are watched.
//! * `PushPull`: when the next push-pull begins.
//! * `MeshPlanner`: the mesh that was asked for last, its keepalives and counters.
//! * `Told`: which state of each member people were told last.
//!
//! `Place` holds these, and drops them when the node leaves.
//!
//! `docs/protocol.md` describes all formats byte by byte.

mod beacon;
mod command;
pub mod consts;
pub mod contents;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
mod gossip;
pub mod gpt;
mod input;
mod limit;
mod node;
mod noise;
#[cfg(any(test, feature = "fuzz"))]
mod one_of_each;
mod repeats;
mod request;
mod roster;
mod session;
mod settings;
#[cfg(feature = "simulation")]
mod shared_dh;
mod stream;
mod summary;
mod sync;
mod tag;
mod view;

/// Whether this build checks less than a node must, because a simulation of a thousand would take days (feature
/// `simulation`).
pub const SIMULATED: bool = cfg!(feature = "simulation");

pub use cluster_agent_proto::{ClusterId, InvalidNodeId, JoinKey, JoinKeyError, NodeId};
use cluster_agent_proto::{id, join_key, keys, record, signed, wire};
pub use command::{
    Command, HostCommand, LogLevel, MeshPeer, MeshPlan, NetCommand, Notice, StateItem, StreamId, Ticket,
};
pub use input::{Boot, Input, Interface, MeshPeerStats, Now, Provisioning, Saved};
pub use node::Node;
pub use request::{Refusal, Request, RequestId};
pub use settings::{MAX_KEY_FILE, PARTITION_AREA, Problem, Seed, Settings, read_key_file};
pub use view::{HeldRelease, Member, MemberState, Phase, Status};
