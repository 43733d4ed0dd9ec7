// SPDX-License-Identifier: Apache-2.0
//! `cluster-releases`: gives releases to other members and fetches from them. It is the part of the updater that sees the
//! network, and has no rights: what it serves are open files that `cluster-updater` hands it over a unix socket, and what
//! it fetches goes the same way back, to be checked there.

mod daemon;
mod encoding;
pub mod fetch;
pub mod seam;
pub mod server;
pub mod shelf;

pub use daemon::{Releases, main};
