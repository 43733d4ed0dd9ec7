// SPDX-License-Identifier: Apache-2.0
//! What the nodes of a cluster agree on: who belongs to it, names, addresses, settings, join keys.
//!
//! The crate does no IO and has no clock and no randomness. The contract of [`Control`]:
//!
//! 1. Make it once: [`Control::found`] for a new cluster, [`Control::start`] with what the disk held ([`Start`]), which is
//!    nothing in a node that is no member yet; [`Control::recover`] when the majority is gone for good.
//! 2. Give it everything that happens as [`Control::handle`]`(input, now, rng)`.
//! 3. After each call drain [`Control::poll_output`] and carry the outputs out, each on its own: none waits for another.
//! 4. Call `handle(Input::Timeout, …)` when [`Control::poll_timeout`] has passed.
//!
//! *Persist, then send* is inside: what depends on a [`Persist`] is given out after its [`Input::Persisted`]. Writes are one
//! transaction each, flushed, in the order of their ids. Heartbeats, and what a leader appends, wait for no disk.
//!
//! **Wiring.** Sessions carry [`Output::Send`] as opaque bytes of at most [`MAX_MESSAGE`] and give them to the other side as
//! [`Input::Message`] with the node that the session proved. Lost, late, doubled and reordered ones do no harm. A node that
//! was admitted gets the state from the member that let it in, as bytes of [`State::encode`], by [`Input::Adopt`]; from then
//! on it follows the voters by itself. Gossip gives [`Input::Liveness`] whenever it changes, and a record's fsync time with
//! it. `redb` keeps what [`Persist`] says (what a store does with one is [`Saved::apply`]) and one value for [`Output::Keep`].
//! D-Bus gives [`Input::Propose`] with a random [`RequestId`] and waits for [`Output::Answer`], which comes for every request,
//! within [`REQUEST_TIMEOUT`]. What is shown and rendered (hosts file, mesh, settings) is read from [`Control::state`] after
//! [`Output::Changed`].
//!
//! **An answer is never a guess**: [`Answer::Done`] says that it is agreed, [`Answer::Refused`] and [`Answer::NotDone`] that
//! nothing happened, [`Answer::Unknown`] that it may still happen. A request that is repeated under its id is done once.
//!
//! **Who is believed.** Raft messages of a raft id only from the node that has it in the state; news, never older than what is
//! known, only from those who vote in the state that is known (all members answer: who was away for long may know nobody that
//! votes now); offers, farewells and roll calls only about the sender's own replica. Members that are no voters can propose,
//! and nothing else. protobuf, which `raft` brings, never reads bytes of others.
//!
//! **Raft ids are used once.** The log counts them. A node takes one only when it drew the number (nonce) that stands beside
//! it in the state in this run, so a wiped disk cannot take an old one again: it says that the replica is gone, and is offered
//! a new one. A replica that starts asks the other voters what they heard of it (roll call); one that has less on its disk than
//! it once said was rolled back, and gives its id up. A voter that nobody can reach then votes after [`consts::ROLL_CALL`]
//! anyway: a rollback is noticed when somebody who heard the lost part is there.
//!
//! Each state has one owner: [`Replica`](raft) the log, [`State`] what it means, `leader` what is done about voters, `follow`
//! the news of those without a replica, [`Control`] requests and the routing between them.

pub mod consts;
mod control;
mod follow;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
mod genesis;
mod leader;
mod message;
mod raft;
mod recover;
mod state;
mod wire;

pub use crate::raft::{Conf, HardState, LogEntry, Persist, Saved, Snapshot};
pub use consts::{MAX_MESSAGE, MAX_STATE, REQUEST_TIMEOUT, TICK};
pub use control::{Answer, Control, Input, Now, Output, Start, Status};
pub use genesis::Genesis;
pub use leader::Alive;
pub use recover::recover;
pub use state::{
    Applied, Change, Command, Departed, Departure, Digest, JoinKeyId, JoinRequest, Member, Outcome, Proposal,
    Refusal, ReplicaOf, RequestId, Setting, SettingKind, State, Stop, StoredJoinKey, Versioned,
};
