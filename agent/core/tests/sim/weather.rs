// SPDX-License-Identifier: Apache-2.0
//! Everything that can go wrong on a LAN, drawn from the world's seed: crashes, restarts, cuts in one or both directions,
//! partitions, clocks that jump, a network that gets worse and better, and somebody who replays what he recorded.

use std::time::Duration;

use rand::RngExt;

use super::{Faults, Seen, World};

/// Datagrams that the eavesdropper keeps.
const RECORDED: usize = 2000;

impl World {
    /// Lets bad weather rule for a while, then heals everything and switches everything on.
    pub fn weather(&mut self, all: &[usize], lasts: Duration) {
        let end = self.now + lasts;
        let mut recorded: Vec<Seen> = Vec::new();
        while self.now < end {
            self.capture = Some(Vec::new());
            let calm = Duration::from_millis(self.rng.random_range(50..4000));
            self.run(calm);
            recorded.extend(self.capture.take().unwrap_or_default());
            let old = recorded.len().saturating_sub(RECORDED);
            recorded.drain(..old);
            self.mischief(all, &recorded);
        }
        self.heal();
        self.faults = Faults::NONE;
        for n in all {
            self.link(*n, true);
            if !self.machines[*n].is_on() {
                self.power_on(*n);
            }
        }
    }

    fn mischief(&mut self, all: &[usize], recorded: &[Seen]) {
        let n = all[self.rng.random_range(0..all.len())];
        let other = all[self.rng.random_range(0..all.len())];
        let on = self.rng.random_bool(0.5);
        match self.rng.random_range(0..9) {
            0 if self.machines[n].is_on() => self.power_off(n),
            1 | 2 if !self.machines[n].is_on() => self.power_on(n),
            3 => self.link(n, on),
            4 => self.one_way(n, other, on),
            5 => {
                let (left, right): (Vec<_>, Vec<_>) = all.iter().partition(|_| self.rng.random_bool(0.5));
                self.partition(&[&left, &right]);
            }
            6 => self.heal(),
            7 => self.faults = if on { Faults::ROUGH } else { Faults::LOSSY },
            8 => {
                // A dead battery, or a person who sets the year.
                let year = Duration::from_secs(365 * 24 * 3600);
                self.machines[n].wall = year * self.rng.random_range(0..100);
            }
            _ => {
                for _ in 0..100.min(recorded.len()) {
                    let seen = &recorded[self.rng.random_range(0..recorded.len())];
                    let mut bytes = seen.bytes.clone();
                    if self.rng.random_bool(0.3) {
                        let at = self.rng.random_range(0..bytes.len());
                        bytes[at] ^= 1 << self.rng.random_range(0..8);
                    }
                    self.inject(seen.to, seen.source, bytes);
                }
            }
        }
    }
}
