// SPDX-License-Identifier: Apache-2.0
//! Sliding window over datagram counters: each is accepted once, in any order, unless too old (RFC 6479 in spirit).

const BITS: u64 = 1024;
const WORDS: usize = (BITS / 64) as usize;

/// Which of the last 1024 counters were seen.
#[derive(Clone)]
pub(crate) struct Window {
    /// Bit `counter % BITS`.
    seen: [u64; WORDS],
    /// One above the highest accepted counter.
    next: u64,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { seen: [0; WORDS], next: 0 }
    }

    /// Whether the counter is new. Cheap; asked before decryption.
    pub(crate) fn is_new(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter < u64::MAX;
        }
        self.next - counter <= BITS && self.seen[Self::word(counter)] & Self::bit(counter) == 0
    }

    /// Marks a counter as seen; only after its datagram was authenticated. Gives whether it is the newest.
    pub(crate) fn mark(&mut self, counter: u64) -> bool {
        let newest = counter >= self.next;
        if newest {
            let skipped = counter - self.next;
            if skipped >= BITS {
                self.seen = [0; WORDS];
            } else {
                for passed in self.next..counter {
                    self.seen[Self::word(passed)] &= !Self::bit(passed);
                }
            }
            self.next = counter + 1;
        }
        self.seen[Self::word(counter)] |= Self::bit(counter);
        newest
    }

    fn word(counter: u64) -> usize {
        (counter % BITS / 64) as usize
    }

    fn bit(counter: u64) -> u64 {
        1 << (counter % 64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn accepts_each_counter_once_in_any_order() {
        let mut window = Window::new();
        for counter in [0, 3, 1, 2, 900, 5] {
            assert!(window.is_new(counter), "{counter}");
            window.mark(counter);
            assert!(!window.is_new(counter), "{counter}");
        }
        window.mark(5000);
        assert!(!window.is_new(900));
        assert!(window.is_new(4999));
        assert!(!window.is_new(u64::MAX));
    }

    proptest! {
        #[test]
        fn never_accepts_twice(counters in proptest::collection::vec(0u64..4000, 0..400)) {
            let (mut window, mut accepted) = (Window::new(), BTreeSet::new());
            let mut highest = 0;
            for counter in counters {
                let new = window.is_new(counter);
                if new {
                    prop_assert!(accepted.insert(counter));
                    window.mark(counter);
                } else {
                    prop_assert!(accepted.contains(&counter) || counter + 1024 <= highest);
                }
                highest = highest.max(counter);
            }
        }
    }
}
