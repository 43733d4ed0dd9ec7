// SPDX-License-Identifier: Apache-2.0
//! What the updater reads from outside: releases on sticks and from members, answers of members, the socket between its two
//! programs, disks and names on the ESP.

mod answers;
mod documents;
mod names;
mod seam;
mod serving;
mod table;
mod tree;

use crate::Target;

/// The updater's targets.
pub const TARGETS: &[Target] = &[
    Target { name: "manifest", run: documents::manifest },
    Target { name: "root", run: documents::root },
    Target { name: "tree", run: tree::run },
    Target { name: "table", run: table::run },
    Target { name: "names", run: names::run },
    Target { name: "serving", run: serving::run },
    Target { name: "answers", run: answers::run },
    Target { name: "seam", run: seam::run },
];

/// Inputs to begin with: name of the target and input.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let of: [(&'static str, Vec<Vec<u8>>); 8] = [
        ("manifest", documents::manifests()),
        ("root", documents::roots()),
        ("tree", tree::seeds()),
        ("table", table::seeds()),
        ("names", names::seeds()),
        ("serving", serving::seeds()),
        ("answers", answers::seeds()),
        ("seam", seam::seeds()),
    ];
    of.into_iter().flat_map(|(name, seeds)| seeds.into_iter().map(move |seed| (name, seed))).collect()
}

/// Fuzz input piece by piece: what it runs out of reads as zero, so that every input means something.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    /// Bytes behind a u8 length.
    fn bytes(&mut self) -> &'a [u8] {
        let count = self.u8().into();
        self.take(count)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(name: &str) {
        crate::replay(TARGETS, name);
    }

    #[test]
    fn manifest_corpus_finds_nothing() {
        replay("manifest");
    }

    #[test]
    fn root_corpus_finds_nothing() {
        replay("root");
    }

    #[test]
    fn tree_corpus_finds_nothing() {
        replay("tree");
    }

    #[test]
    fn table_corpus_finds_nothing() {
        replay("table");
    }

    #[test]
    fn names_corpus_finds_nothing() {
        replay("names");
    }

    #[test]
    fn serving_corpus_finds_nothing() {
        replay("serving");
    }

    #[test]
    fn answers_corpus_finds_nothing() {
        replay("answers");
    }

    #[test]
    fn seam_corpus_finds_nothing() {
        replay("seam");
    }

    #[test]
    fn seeds_find_nothing_and_reach_every_target() {
        let seeds = seeds();
        for target in TARGETS {
            let of_target: Vec<_> = seeds.iter().filter(|(name, _)| *name == target.name).collect();
            assert!(of_target.len() >= 3, "{} seeds for {}", of_target.len(), target.name);
            for (_, input) in of_target {
                (target.run)(input);
            }
        }
    }
}
