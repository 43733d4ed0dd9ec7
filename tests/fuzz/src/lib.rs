// SPDX-License-Identifier: Apache-2.0
//! All fuzz targets (docs/fuzzing.md). The agent's are in its core, because they look inside nodes; the updater's are here:
//! everything that they run is public.

pub mod updater;

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also of its corpus.
    pub name: &'static str,
    /// Runs one input; panics when it finds something.
    pub run: fn(&[u8]),
}

/// The targets of agent and updater.
#[cfg(feature = "agent")]
#[must_use]
pub fn targets() -> Vec<Target> {
    let agent = cluster_agent_core::fuzz::TARGETS.iter();
    let agent = agent.map(|target| Target { name: target.name, run: target.run });
    let control = cluster_agent_control::fuzz::TARGETS.iter();
    let control = control.map(|target| Target { name: target.name, run: target.run });
    agent.chain(control).chain(updater::TARGETS.iter().copied()).collect()
}

/// Inputs to begin with: name of the target and input.
#[cfg(feature = "agent")]
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = cluster_agent_core::fuzz::seeds();
    seeds.extend(cluster_agent_control::fuzz::seeds());
    seeds.extend(updater::seeds());
    seeds
}
