// SPDX-License-Identifier: Apache-2.0
//! The clock floor: before the mesh starts, the wall clock is at least the build time, the saved time, and the median of
//! authenticated peers. WireGuard refuses handshakes that look older than the last one, so a node that wakes up in 1970
//! would be shut out.

use std::collections::BTreeMap;
use std::time::Duration;

use super::files::millis;
use crate::id::NodeId;
use crate::input::Now;

/// A clock that was plausible by itself is not moved further than this by peers.
const MAX_JUMP: Duration = Duration::from_secs(24 * 3600);
const MAX_SAMPLES: usize = 1024;

/// What is known about the true time.
pub(super) struct ClockFloor {
    /// max(build, saved)
    known: Duration,
    /// Wall clock minus boottime of each peer, in milliseconds, as last heard.
    peers: BTreeMap<NodeId, i128>,
}

impl ClockFloor {
    pub(super) fn new(build: Duration, saved: Duration) -> Self {
        Self { known: build.max(saved), peers: BTreeMap::new() }
    }

    /// An authenticated peer said what its wall clock shows.
    pub(super) fn heard(&mut self, peer: NodeId, wall_ms: u64, now: Now) {
        if self.peers.len() < MAX_SAMPLES || self.peers.contains_key(&peer) {
            self.peers.insert(peer, i128::from(wall_ms) - i128::from(millis(now.boottime)));
        }
    }

    pub(super) fn has_peers(&self) -> bool {
        !self.peers.is_empty()
    }

    /// What the wall clock must show at least, now.
    pub(super) fn floor(&self, now: Now) -> Duration {
        let mut offsets: Vec<_> = self.peers.values().copied().collect();
        offsets.sort_unstable();
        // The lower of two middle ones: one peer with a clock in the future cannot pull two nodes ahead.
        let median = offsets.len().checked_sub(1).map(|last| offsets[last / 2]);
        let median = median.map(|offset| offset + i128::from(millis(now.boottime)));
        let peers = Duration::from_millis(median.map_or(0, |at| u64::try_from(at.max(0)).unwrap_or(0)));
        let plausible = now.wall >= self.known && !self.known.is_zero();
        if plausible && peers > now.wall + MAX_JUMP { self.known } else { self.known.max(peers) }
    }

    /// The time to save: never behind what was saved before.
    pub(super) fn advance(&mut self, now: Now) -> Duration {
        self.known = self.known.max(now.wall);
        self.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    fn at(wall: u64) -> Now {
        Now { boottime: Duration::from_secs(10), wall: Duration::from_secs(wall) }
    }

    fn peer(clock: &mut ClockFloor, n: u8, wall: u64) {
        clock.heard(NodeId([n; 32]), wall * 1000, at(0));
    }

    #[test]
    fn is_never_before_build_and_saved_time() {
        let clock = ClockFloor::new(Duration::from_secs(100), Duration::from_secs(50));
        assert_eq!(clock.floor(at(0)), Duration::from_secs(100));
    }

    #[test]
    fn a_clock_in_1970_follows_the_median_of_peers() {
        let mut clock = ClockFloor::new(Duration::from_secs(1000), Duration::ZERO);
        peer(&mut clock, 1, 900 * DAY);
        peer(&mut clock, 2, 901 * DAY);
        peer(&mut clock, 3, 90_000 * DAY);
        assert_eq!(clock.floor(at(0)), Duration::from_secs(901 * DAY));
        peer(&mut clock, 4, 0);
        assert_eq!(clock.floor(at(0)), Duration::from_secs(900 * DAY));
    }

    #[test]
    fn a_plausible_clock_is_not_dragged_into_the_future() {
        let mut clock = ClockFloor::new(Duration::from_secs(1000), Duration::ZERO);
        peer(&mut clock, 1, 900 * DAY);
        assert_eq!(clock.floor(at(2000)), Duration::from_secs(1000));
        peer(&mut clock, 1, 2600);
        assert_eq!(clock.floor(at(2000)), Duration::from_secs(2600));
    }

    #[test]
    fn keeps_counting_while_time_passes() {
        let mut clock = ClockFloor::new(Duration::ZERO, Duration::ZERO);
        peer(&mut clock, 1, 5000);
        let later = Now { boottime: Duration::from_secs(70), wall: Duration::ZERO };
        assert_eq!(clock.floor(later), Duration::from_secs(5060));
    }
}
