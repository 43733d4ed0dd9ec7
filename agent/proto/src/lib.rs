// SPDX-License-Identifier: Apache-2.0
//! What all agents of a cluster must agree on: names and keys, our encoding, and the objects that nodes sign.
//!
//! No IO, no clock, no randomness of its own, and nothing else of ours: whatever speaks of nodes can stand on this alone.
//! `docs/protocol.md` describes all formats byte by byte.

mod base32;
pub mod consts;
pub mod id;
pub mod join_key;
pub mod keys;
pub mod name;
pub mod record;
pub mod roster;
pub mod signed;
pub mod wire;

pub use id::{ClusterId, InvalidNodeId, NodeId};
pub use join_key::{JoinKey, JoinKeyError};
