// SPDX-License-Identifier: Apache-2.0
//! All fuzz targets (docs/fuzzing.md). The agent's are in its core, because they look inside nodes; the updater's and the boot's are
//! here: everything that they run is public.

pub mod boot;
pub mod updater;

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also of its corpus.
    pub name: &'static str,
    /// Runs one input; panics when it finds something.
    pub run: fn(&[u8]),
}

/// All targets.
#[cfg(feature = "agent")]
#[must_use]
pub fn targets() -> Vec<Target> {
    let agent = cluster_agent_core::fuzz::TARGETS.iter();
    let agent = agent.map(|target| Target { name: target.name, run: target.run });
    let control = cluster_agent_control::fuzz::TARGETS.iter();
    let control = control.map(|target| Target { name: target.name, run: target.run });
    let updater = updater::TARGETS.iter().copied();
    agent.chain(control).chain(updater).chain([boot::TARGET]).collect()
}

/// Inputs to begin with: name of the target and input.
#[cfg(feature = "agent")]
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = cluster_agent_core::fuzz::seeds();
    seeds.extend(cluster_agent_control::fuzz::seeds());
    seeds.extend(updater::seeds());
    seeds.extend(boot::seeds().into_iter().map(|seed| (boot::TARGET.name, seed)));
    seeds
}

/// One test per target: they run side by side, and a failure names the target. The format is that of
/// `cluster_agent_core::fuzz::pack`.
#[cfg(test)]
fn replay(targets: &[Target], name: &str) {
    let target = targets.iter().find(|target| target.name == name).unwrap();
    // Asked when it runs: a checkout may have been moved since it was compiled.
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("runs under cargo");
    let path = format!("{package}/corpus/{name}");
    let packed =
        std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}; `just campaign fuzz` makes it"));
    let (mut rest, mut inputs) = (&packed[..], 0);
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let (input, tail) = tail.split_at(u32::from_be_bytes(*length) as usize);
        // Shown only when the target panics.
        println!("{name} input {inputs}: {input:02x?}");
        (target.run)(input);
        (rest, inputs) = (tail, inputs + 1);
    }
    assert!(rest.is_empty(), "the corpus is damaged");
    assert!(inputs >= 20, "only {inputs} inputs in the corpus of {name}");
}
