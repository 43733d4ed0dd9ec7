// SPDX-License-Identifier: Apache-2.0
//! What the VM stories in `tests/vm/` stand on: the clusters they play in ([`World`]) and what runs them ([`runner`]).
//!
//! A cluster of three is formed once, saved, and taken back to that state before each story that asks for it. Stories
//! about booting get a VM of their own. Everything ends when the process does.

pub mod forge;
pub mod runner;
mod uki;
mod world;

pub use world::{Alone, CLUSTER_NAME, Formed, World, note, rebase, rebuild, wait_all_up};

/// Why a story says nothing on this machine: it is so slow that what is told could only be about the machine.
#[derive(Debug)]
pub struct TooSlow(pub String);

impl std::fmt::Display for TooSlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TooSlow {}

/// A story: what is told, and how.
pub struct Story {
    /// What one calls it by.
    pub name: &'static str,
    /// Part of the slice that CI runs, and the seconds it usually takes (2 cores without KVM), not counting that the shared
    /// cluster forms; the rest is for campaigns.
    pub ci: Option<u64>,
    /// The story itself.
    pub run: fn(&mut World) -> anyhow::Result<()>,
}
