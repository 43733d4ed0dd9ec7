// SPDX-License-Identifier: Apache-2.0
//! The node: one state machine that owns all others. Files import and call each other in one direction (`tests/rooms.rs`):
//! owners of state at the bottom, then `parts`, then what is done with several owners at once, and `router` on top.

mod checks;
mod clock;
mod conversation;
mod crowd;
mod ctx;
mod dialer;
mod discovery;
mod exchange;
mod files;
mod founding;
mod introduce;
mod learning;
mod leaving;
mod links;
mod membership;
mod mesh;
mod names;
mod neighbours;
mod newcomers;
mod outbox;
mod output;
mod overlay;
mod own;
mod parts;
mod paths;
mod place;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod probe;
mod problems;
mod push_pull;
mod reconcile;
mod requests;
mod router;
mod saying;
mod senders;
mod signing;
mod start;
mod state_files;
mod stream_io;
mod streams;
mod told;
mod transitions;
mod views;

pub use parts::Node;
