// SPDX-License-Identifier: Apache-2.0
//! Fuzz targets: every decoder of outside bytes, and whole nodes that are told hostile things (`docs/fuzzing.md`).
//!
//! A target is a function from bytes to nothing that panics when something is wrong. `tests/fuzz` runs them under
//! libFuzzer; the test below replays the corpus that is checked in. Nodes under test are made from fixed keys and files,
//! so one input always does the same.

mod attack;
mod attacker;
#[cfg(test)]
mod by_flood;
#[cfg(test)]
mod by_hand;
mod decode;
mod forge;
mod gpt;
#[cfg(test)]
mod liars;
mod outsider;
mod script;
mod seeds;
mod settings;
mod state;
mod subject;

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also of its corpus.
    pub name: &'static str,
    /// What it reads.
    pub about: &'static str,
    /// Runs one input; panics when it finds something.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target {
        name: "decode",
        about: "beacons, greetings, stream messages, signed objects, gossip headers, join keys",
        run: decode::run,
    },
    Target { name: "settings", about: "cluster.toml", run: settings::run },
    Target { name: "gpt", about: "partition tables of disks", run: gpt::run },
    Target { name: "state", about: "state files, read by a node that starts", run: state::run },
    Target {
        name: "outsider",
        about: "a member that hears datagrams and streams of somebody without the join key, replays included",
        run: outsider::run,
    },
    Target {
        name: "stranger",
        about: "a node that talks with somebody who has the join key and may say anything",
        run: attack::stranger,
    },
    Target {
        name: "member",
        about: "a member that talks with an admitted member who may say anything",
        run: attack::member,
    },
];

/// Inputs to begin with, made from what real nodes say to each other: name of the target and input.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    seeds::all()
}

/// Most bytes of one input in a packed corpus.
const MAX_INPUT: usize = 64 * 1024;

/// A corpus as one file: each input behind its length.
pub fn pack<'a>(inputs: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut packed = Vec::new();
    for input in inputs.filter(|input| input.len() <= MAX_INPUT) {
        packed.extend_from_slice(&(input.len() as u32).to_be_bytes());
        packed.extend_from_slice(input);
    }
    packed
}

/// The inputs of a packed corpus; `None` when the file is damaged.
pub fn unpack(packed: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut inputs, mut rest) = (Vec::new(), packed);
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let (input, tail) = tail.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        inputs.push(input);
        rest = tail;
    }
    rest.is_empty().then_some(inputs)
}

#[cfg(test)]
pub(crate) use forge::cluster_id;

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(target: &str) -> Vec<u8> {
        // Asked when it runs: a checkout may have been moved since it was compiled.
        let package = std::env::var("CARGO_MANIFEST_DIR").expect("runs under cargo");
        let path = format!("{package}/../../tests/fuzz/corpus/{target}");
        std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}; `just campaign fuzz` makes it"))
    }

    /// One test per target: they run side by side, and a failure names the target.
    fn replay(name: &str) {
        let target = TARGETS.iter().find(|target| target.name == name).unwrap();
        let packed = corpus(name);
        let inputs = unpack(&packed).expect("the corpus is whole");
        assert!(inputs.len() >= 20, "only {} inputs in the corpus of {name}", inputs.len());
        for (n, input) in inputs.iter().enumerate() {
            // Shown only when the target panics.
            println!("{name} input {n}: {input:02x?}");
            (target.run)(input);
        }
    }

    #[test]
    fn decode_corpus_finds_nothing() {
        replay("decode");
    }

    #[test]
    fn settings_corpus_finds_nothing() {
        replay("settings");
    }

    #[test]
    fn gpt_corpus_finds_nothing() {
        replay("gpt");
    }

    #[test]
    fn state_corpus_finds_nothing() {
        replay("state");
    }

    #[test]
    fn outsider_corpus_finds_nothing() {
        replay("outsider");
    }

    #[test]
    fn stranger_corpus_finds_nothing() {
        replay("stranger");
    }

    #[test]
    fn member_corpus_finds_nothing() {
        replay("member");
    }

    #[test]
    fn seeds_of_real_traffic_find_nothing_and_reach_every_target() {
        let seeds = seeds();
        for target in TARGETS {
            let of_target: Vec<_> = seeds.iter().filter(|(name, _)| *name == target.name).collect();
            assert!(of_target.len() >= 3, "{} seeds for {}", of_target.len(), target.name);
            for (_, input) in of_target {
                (target.run)(input);
            }
        }
    }

    #[test]
    fn a_packed_corpus_reads_back() {
        let inputs: [&[u8]; 3] = [b"one", b"", b"three"];
        let packed = pack(inputs.into_iter());
        assert_eq!(unpack(&packed).unwrap(), inputs);
        assert_eq!(unpack(&packed[..packed.len() - 1]), None);
    }
}
