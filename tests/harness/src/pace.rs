// SPDX-License-Identifier: Apache-2.0
//! Which stories still end in time on a machine as slow as this one: decided before each, from how long those before it took.

use std::time::Duration;

/// How many times slower than usual a machine may be of which nothing is known yet: on the slowest seen three VMs took 1320 s until they took commands.
const UNKNOWN_SLOWNESS: f64 = 9.0;
/// What three VMs usually take to form a cluster. Whichever story needs it first waits for that.
const FORMING: Duration = Duration::from_secs(150);
/// Not all stories are slowed down alike, and one that is not over when CI is cut off costs the verdict on all.
const MARGIN: f64 = 1.25;

/// What is known of this machine's speed, and by when everything has to be over.
#[derive(Debug)]
pub struct Pace {
    end_within: Duration,
    slowness: Option<f64>,
}

impl Pace {
    /// Nothing is known of the machine yet.
    #[must_use]
    pub const fn new(end_within: Duration) -> Self {
        Self { end_within, slowness: None }
    }

    /// Whether a story that begins `now` after the first ends in time. `own` is what it usually takes when the cluster is formed.
    #[must_use]
    pub fn allows(&self, now: Duration, own: Duration, formed: bool) -> bool {
        let most = if formed { own } else { own + FORMING };
        let times = self.slowness.map_or(UNKNOWN_SLOWNESS, |seen| seen * MARGIN);
        now + most.mul_f64(times) <= self.end_within
    }

    /// A story that usually takes `own` took `took`; `forming` says that the cluster was (perhaps) formed by it. The slowest one counts.
    pub fn took(&mut self, took: Duration, own: Duration, forming: bool) {
        let usual = if forming { own + FORMING } else { own };
        self.slowness = Some(self.slowness.unwrap_or(1.0).max(took.as_secs_f64() / usual.as_secs_f64()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(it: u64) -> Duration {
        Duration::from_secs(it)
    }

    #[test]
    fn without_a_limit_every_story_is_told() {
        let mut pace = Pace::new(Duration::MAX);
        assert!(pace.allows(Duration::ZERO, seconds(400), false));
        pace.took(seconds(5000), seconds(100), false);
        assert!(pace.allows(seconds(100_000), seconds(400), true));
    }

    #[test]
    fn of_an_unknown_machine_the_worst_is_assumed() {
        let pace = Pace::new(seconds(2000));
        assert!(pace.allows(Duration::ZERO, seconds(70), false), "(70 + 150) × 9 = 1980 s");
        assert!(!pace.allows(seconds(30), seconds(70), false), "it would end after 2010 s");
        assert!(pace.allows(seconds(30), seconds(70), true), "the cluster is there");
    }

    #[test]
    fn the_slowest_story_so_far_says_how_long_the_next_takes() {
        let mut pace = Pace::new(seconds(1000));
        pace.took(seconds(500), seconds(100), true);
        assert!(pace.allows(seconds(500), seconds(200), true), "twice as slow, and a quarter more: 500 s");
        assert!(!pace.allows(seconds(501), seconds(200), true));
        pace.took(seconds(100), seconds(100), false);
        assert!(
            !pace.allows(seconds(501), seconds(200), true),
            "a quick one does not make the machine quicker"
        );
        pace.took(seconds(300), seconds(100), false);
        assert!(!pace.allows(seconds(500), seconds(200), true), "a slower one makes it slower");
    }

    #[test]
    fn a_quick_machine_is_no_quicker_than_usual() {
        let mut pace = Pace::new(seconds(1000));
        pace.took(seconds(10), seconds(100), false);
        assert!(pace.allows(seconds(875), seconds(100), true));
        assert!(!pace.allows(seconds(876), seconds(100), true));
    }
}
