// SPDX-License-Identifier: Apache-2.0
//! What was heard before. Who has no key can still repeat what somebody with a key said, from any address. That counts a few
//! times and not for ever.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use crate::consts::repeats::*;

/// How often each of the last few thousand came. It is known by a secret hash.
pub(crate) struct Repeats {
    secret: u64,
    /// The same counts so many times.
    often: u8,
    most: usize,
    /// When it came first, and how often.
    known: BTreeMap<u64, (Duration, u8)>,
    cells: Vec<(u64, u8)>,
    next_cleaning: Duration,
}

impl Repeats {
    /// The same counts `often` times; at least `most` are remembered.
    pub(crate) fn new(often: u8, most: usize, secret: u64) -> Self {
        Self { secret, often, most, known: BTreeMap::new(), cells: Vec::new(), next_cleaning: Duration::ZERO }
    }

    /// Whether the same came too often already; counts it.
    pub(crate) fn too_often(&mut self, bytes: &[u8], now: Duration) -> bool {
        self.count(bytes, now) > self.often
    }

    /// Whether the same came before; counts it.
    pub(crate) fn came_before(&mut self, bytes: &[u8], now: Duration) -> bool {
        self.count(bytes, now) > 1
    }

    fn count(&mut self, bytes: &[u8], now: Duration) -> u8 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.secret);
        hasher.write(bytes);
        let hash = hasher.finish();
        if self.known.len() >= self.most && now >= self.next_cleaning && !self.known.contains_key(&hash) {
            self.next_cleaning = now + CLEAN_EVERY;
            self.known.retain(|_, (first, _)| now.saturating_sub(*first) < YOUNG);
        }
        let count = if self.known.len() < self.most || self.known.contains_key(&hash) {
            &mut self.known.entry(hash).or_insert((now, 0)).1
        } else {
            if self.cells.is_empty() {
                self.cells = vec![(0, 0); CELLS];
            }
            let cell = &mut self.cells[hash as usize % CELLS];
            if cell.0 != hash {
                *cell = (hash, 0);
            }
            &mut cell.1
        };
        *count = count.saturating_add(1);
        *count
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn assert_bounded(&self) {
        assert!(self.known.len() <= self.most, "{} repeats", self.known.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_same_counts_a_few_times_however_much_else_comes() {
        let mut repeats = Repeats::new(2, 100, 7);
        assert_eq!([(); 4].map(|()| repeats.too_often(b"recorded", secs(1))), [false, false, true, true]);
        for n in 0..10_000u32 {
            assert!(!repeats.too_often(&n.to_be_bytes(), secs(2)), "it comes for the first time");
        }
        assert!(repeats.too_often(b"recorded", secs(60)), "it is young, so it stayed");
        repeats.assert_bounded();
    }

    #[test]
    fn what_comes_when_there_is_no_room_counts_a_few_times_too() {
        let mut repeats = Repeats::new(1, 100, 7);
        for n in 0..100u32 {
            repeats.too_often(&n.to_be_bytes(), secs(1));
        }
        let passed = (0..1000).filter(|_| !repeats.too_often(b"one more", secs(2))).count();
        assert_eq!(passed, 1);
    }

    #[test]
    fn what_is_old_makes_room() {
        let mut repeats = Repeats::new(1, 100, 7);
        for n in 0..100u32 {
            repeats.too_often(&n.to_be_bytes(), secs(1));
        }
        assert!(!repeats.too_often(b"new", secs(100)));
        assert_eq!(repeats.known.len(), 1);
        assert!(repeats.too_often(b"new", secs(150)));
    }
}
