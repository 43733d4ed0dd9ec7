// SPDX-License-Identifier: Apache-2.0
//! What the wall clock must show, and what is saved of it.
//!
//! WireGuard refuses handshakes that look older than the last one, so a node that wakes up in 1970 would be shut out; one
//! that wakes up in the future would shut itself out later. Before the mesh starts the clock is at least the build time and
//! the saved time, and follows the members:
//!
//! * Only admitted members are asked, each counts once, and a boot has one [`Clock`], whatever cluster the node is in.
//! * A majority of the members moves it as far as it agrees, once a boot: forward, and before the mesh starts also back, if
//!   it is more than [`FAR_AHEAD`] ahead. A clock that is behind its own floor is certainly wrong; for it a majority of the
//!   others, or [`ENOUGH`] of them, will do.
//! * Fewer move it forward once a boot, by [`BUDGET`] at most.
//! * A node whose own clock was certainly wrong, and that no majority put right, says so with its time: that is a time which
//!   is past, and no reason to bring another clock back. A majority of such times moves a clock forward once a boot, and
//!   makes it no better than theirs.
//! * An agent that starts late in a boot was there before: it brings no clock back.
//! * What is saved grows by the time that passed and a little more, so a wrong clock is not kept for later boots.

use std::collections::BTreeMap;
use std::time::Duration;

use super::files::millis;
use crate::consts::clock::*;
use crate::id::NodeId;
use crate::input::Now;

/// Bit of a time on the wire: it is past, but it may be much later by now.
const UNCERTAIN: u64 = 1 << 63;

/// What is known about the true time.
pub(super) struct Clock {
    /// Never earlier than this.
    build: Duration,
    /// What the clock must show at least; what is saved counts from here.
    floor: Duration,
    started: Duration,
    /// What was saved last.
    saved: Duration,
    /// The clock was behind its floor.
    certainly_wrong: bool,
    /// A majority had its say in this boot.
    agreed: bool,
    /// A majority that does not believe its own clocks had.
    past: bool,
    /// Fewer had theirs.
    heard: bool,
    samples: BTreeMap<NodeId, Sample>,
    /// Somebody was heard for the first time since the last look.
    fresh: bool,
}

/// What a member said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    /// Its wall clock minus our boot time, in milliseconds.
    offset: i128,
    /// It has reason to believe its clock.
    certain: bool,
}

impl Sample {
    fn at(self, now: Now) -> Duration {
        let at = (self.offset + i128::from(millis(now.boottime))).clamp(0, i128::from(u64::MAX));
        Duration::from_millis(at as u64)
    }
}

/// What to do with the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Correction {
    /// It must show at least this.
    Floor(Duration),
    /// It is too far ahead and must show this.
    Back(Duration),
}

/// Why the mesh should wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Uncertain {
    No,
    /// No member told the time yet.
    Silent,
    /// Some say that the clock is far ahead; a majority can say whether it is.
    FarAhead,
}

impl Clock {
    /// `saved` is what an earlier boot saved. A node that never saved trusts the clock that its machine has.
    pub(super) fn new(build: Duration, saved: Option<Duration>, now: Now) -> Self {
        let floor = build.max(saved.unwrap_or(now.wall));
        Self {
            build,
            floor,
            started: now.boottime,
            saved: floor,
            certainly_wrong: now.wall < floor,
            agreed: false,
            past: false,
            heard: false,
            samples: BTreeMap::new(),
            fresh: false,
        }
    }

    /// What this node tells others, in milliseconds since 1970.
    pub(super) fn said(&self, now: Now) -> u64 {
        let past = millis(now.wall.max(self.floor)) & !UNCERTAIN;
        if self.certainly_wrong && !self.agreed { past | UNCERTAIN } else { past }
    }

    /// A member [said](Self::said) this, in a session or stream of its own.
    pub(super) fn heard(&mut self, member: NodeId, said: u64, now: Now) {
        if self.samples.len() < MAX_SAMPLES || self.samples.contains_key(&member) {
            let wall = said & !UNCERTAIN;
            if wall > millis(self.floor + HORIZON) {
                return;
            }
            let offset = i128::from(wall) - i128::from(millis(now.boottime));
            let sample = Sample { offset, certain: said & UNCERTAIN == 0 };
            self.fresh |= self.samples.insert(member, sample).is_none();
        }
    }

    /// Whether the mesh should wait for (more) members to tell the time. `others` are all members but this node.
    pub(super) fn uncertain(&self, others: &[NodeId], now: Now) -> Uncertain {
        let silent = !others.is_empty() && self.samples(others).next().is_none();
        let times = self.certain(others, now);
        let wall = now.wall.max(self.floor);
        match times.first() {
            _ if silent => Uncertain::Silent,
            Some(first) if times.len() < majority(others) && wall > *first + FAR_AHEAD => Uncertain::FarAhead,
            _ => Uncertain::No,
        }
    }

    /// What the clock must be set to before the mesh starts.
    pub(super) fn before_mesh(&mut self, others: &[NodeId], now: Now) -> Correction {
        let wall = now.wall.max(self.floor);
        let may = !self.agreed && self.started < LATE_START;
        match self.latest(others, now).filter(|latest| may && wall > *latest + FAR_AHEAD) {
            Some(latest) => {
                let back = latest.max(self.build);
                (self.floor, self.saved, self.started) = (back, back, now.boottime);
                (self.agreed, self.certainly_wrong) = (true, false);
                Correction::Back(back)
            }
            None => Correction::Floor(self.while_mesh(others, now).unwrap_or(wall)),
        }
    }

    /// How far the clock must go forward while the mesh is up; it never goes back then. `None`: it need not.
    pub(super) fn while_mesh(&mut self, others: &[NodeId], now: Now) -> Option<Duration> {
        if self.agreed {
            return None;
        }
        self.fresh = false;
        let wall = now.wall.max(self.floor);
        let times = ascending(self.samples(others).map(|sample| sample.at(now)));
        // What so many say or go beyond.
        let needed = match (self.certainly_wrong, times.len()) {
            (true, ENOUGH..) => (times.len() / 2 + 1).min(others.len() / 2 + 1),
            (true, _) => others.len() / 2 + 1,
            (false, _) => majority(others),
        };
        let agreed = times.len().checked_sub(needed).map(|at| times[at]);
        let believed = |target: &Duration| {
            self.certain(others, now).iter().filter(|time| *time >= target).count() >= needed
        };
        let target = match agreed {
            Some(target) if believed(&target) => {
                (self.agreed, self.heard) = (true, true);
                target
            }
            Some(target) if !self.past => {
                self.past = true;
                target
            }
            _ if self.heard || times.is_empty() => return None,
            _ => {
                // The lower of two middle ones: one member with a clock in the future cannot pull two nodes ahead.
                let median = times[(times.len() - 1) / 2];
                let moves = median > wall && median <= wall + BUDGET;
                self.heard = moves;
                if moves { median } else { wall }
            }
        };
        (target > now.wall).then_some(target.max(wall))
    }

    /// Whether [`while_mesh`](Self::while_mesh) may say something new.
    pub(super) fn has_news(&self) -> bool {
        self.fresh && !self.agreed
    }

    /// By how much the clock is ahead of a majority, if that is far.
    pub(super) fn ahead(&self, others: &[NodeId], now: Now) -> Option<Duration> {
        let ahead = now.wall.checked_sub(self.latest(others, now)?)?;
        (ahead > FAR_AHEAD).then_some(ahead)
    }

    /// The time to save: what the clock shows, but not more than the floor and the time that passed.
    pub(super) fn advance(&mut self, now: Now) -> Duration {
        let most = self.floor + now.boottime.saturating_sub(self.started) + SLACK;
        self.saved = self.saved.max(now.wall.min(most));
        self.saved
    }

    /// A majority of the members says that it is this late or earlier.
    fn latest(&self, others: &[NodeId], now: Now) -> Option<Duration> {
        self.certain(others, now).get(majority(others) - 1).copied()
    }

    /// What the other members say that believe their clocks, ascending.
    fn certain(&self, others: &[NodeId], now: Now) -> Vec<Duration> {
        ascending(self.samples(others).filter(|sample| sample.certain).map(|sample| sample.at(now)))
    }

    fn samples(&self, others: &[NodeId]) -> impl Iterator<Item = Sample> {
        others.iter().filter_map(|id| self.samples.get(id)).copied()
    }
}

fn ascending(times: impl Iterator<Item = Duration>) -> Vec<Duration> {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times
}

/// A majority of all members. This node is one and has no vote.
fn majority(others: &[NodeId]) -> usize {
    others.len().div_ceil(2) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;
    const HOUR: u64 = 3600;
    /// When the tests take place.
    const TODAY: u64 = 20_000 * DAY;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn at(wall: u64) -> Now {
        Now { boottime: secs(10), wall: secs(wall) }
    }

    fn others(n: u8) -> Vec<NodeId> {
        (0..n).map(|n| NodeId([n; 32])).collect()
    }

    /// A clock that was saved a moment ago, and what others say; `saved` and `wall` in seconds.
    fn clock(saved: u64, wall: u64, said: &[u64]) -> Clock {
        let mut clock = Clock::new(secs(1000 * DAY), Some(secs(saved)), at(wall));
        for (n, wall) in said.iter().enumerate() {
            clock.heard(NodeId([n as u8; 32]), wall * 1000, at(0));
        }
        clock
    }

    fn before_mesh(saved: u64, wall: u64, said: &[u64], members: u8) -> Correction {
        clock(saved, wall, said).before_mesh(&others(members), at(wall))
    }

    #[test]
    fn is_never_before_build_and_saved_time() {
        assert_eq!(before_mesh(0, 0, &[], 2), Correction::Floor(secs(1000 * DAY)));
        assert_eq!(before_mesh(TODAY, 0, &[], 2), Correction::Floor(secs(TODAY)));
        assert_eq!(before_mesh(TODAY, TODAY + 5, &[], 2), Correction::Floor(secs(TODAY + 5)));
    }

    #[test]
    fn a_clock_that_is_certainly_wrong_follows_the_majority_of_the_others() {
        let (year, far) = (TODAY + 365 * DAY, TODAY + 9 * 365 * DAY);
        assert_eq!(before_mesh(TODAY, 0, &[year], 1), Correction::Floor(secs(year)));
        assert_eq!(before_mesh(TODAY, 0, &[year, year + 1], 2), Correction::Floor(secs(year)));
        assert_eq!(before_mesh(TODAY, 0, &[far, year, year + 1], 3), Correction::Floor(secs(year + 1)));
        let few = [year, year + 1, year + 2, far];
        assert_eq!(before_mesh(TODAY, 0, &few, 100), Correction::Floor(secs(TODAY)));
        let enough = [year, year + 1, year + 2, far, far];
        assert_eq!(before_mesh(TODAY, 0, &enough, 100), Correction::Floor(secs(year + 2)));
    }

    #[test]
    fn a_plausible_clock_follows_a_minority_within_its_budget_only() {
        assert_eq!(before_mesh(TODAY, TODAY, &[TODAY + HOUR], 9), Correction::Floor(secs(TODAY + HOUR)));
        assert_eq!(before_mesh(TODAY, TODAY, &[TODAY + 2 * DAY], 9), Correction::Floor(secs(TODAY)));
        assert_eq!(before_mesh(TODAY, TODAY, &[TODAY + 2 * DAY], 1), Correction::Floor(secs(TODAY)));
        let majority = [TODAY + 3 * DAY, TODAY + 2 * DAY];
        assert_eq!(before_mesh(TODAY, TODAY, &majority, 2), Correction::Floor(secs(TODAY + 2 * DAY)));
    }

    #[test]
    fn moving_from_cluster_to_cluster_adds_nothing() {
        let mut clock = clock(TODAY, TODAY, &[]);
        let mut wall = TODAY;
        for n in 0..200u8 {
            let (liars, boottime) = ([NodeId([n; 32]), NodeId([n; 32])], secs(10));
            clock.heard(liars[0], (wall + 20 * HOUR) * 1000, Now { boottime, wall: secs(wall) });
            let Correction::Floor(floor) = clock.before_mesh(&liars[..1], at(wall)) else { panic!("back") };
            wall = floor.as_secs();
        }
        assert_eq!(wall, TODAY + 20 * HOUR);
    }

    #[test]
    fn a_majority_moves_the_clock_once() {
        let mut clock = clock(TODAY, TODAY, &[TODAY + 400 * DAY, TODAY + 400 * DAY]);
        let others = others(2);
        assert_eq!(clock.before_mesh(&others, at(TODAY)), Correction::Floor(secs(TODAY + 400 * DAY)));
        for other in &others {
            clock.heard(*other, (TODAY + 800 * DAY) * 1000, at(0));
        }
        let wall = TODAY + 400 * DAY;
        assert_eq!(clock.before_mesh(&others, at(wall)), Correction::Floor(secs(wall)));
        assert_eq!(clock.while_mesh(&others, at(wall)), None);
    }

    #[test]
    fn a_majority_brings_a_clock_back_that_is_far_ahead() {
        let ahead = TODAY + 365 * DAY;
        let said = [TODAY, TODAY + 60];
        let mut far = clock(ahead, ahead, &said);
        assert_eq!(far.before_mesh(&others(2), at(ahead)), Correction::Back(secs(TODAY + 60)));
        assert_eq!(far.advance(at(TODAY + 60)), secs(TODAY + 60), "the wrong time is not kept");
        assert_eq!(before_mesh(ahead, ahead, &said, 9), Correction::Floor(secs(ahead)), "two of ten");
        assert_eq!(before_mesh(TODAY, TODAY + DAY, &said, 2), Correction::Floor(secs(TODAY + DAY)));
        assert_eq!(
            before_mesh(TODAY, ahead, &[0, 0], 2),
            Correction::Back(secs(1000 * DAY)),
            "not before the build"
        );
        let later = clock(ahead, ahead, &said).while_mesh(&others(2), at(ahead));
        assert_eq!(later, None, "not while the mesh is up");
        let by = clock(ahead, ahead, &said).ahead(&others(2), at(ahead));
        assert_eq!(by, Some(secs(365 * DAY - 60)));
    }

    #[test]
    fn dead_clocks_bring_nobody_back() {
        let dead = || {
            let mut dead = clock(TODAY - 100 * DAY, 0, &[]);
            dead.before_mesh(&others(2), at(0));
            dead.said(at(TODAY - 100 * DAY))
        };
        let mut right = clock(TODAY, TODAY, &[]);
        right.heard(NodeId([0; 32]), dead(), at(0));
        right.heard(NodeId([1; 32]), dead(), at(0));
        assert_eq!(right.before_mesh(&others(2), at(TODAY)), Correction::Floor(secs(TODAY)));
        let mut late = clock(TODAY - 200 * DAY, 0, &[]);
        late.heard(NodeId([0; 32]), dead(), at(0));
        late.heard(NodeId([1; 32]), dead(), at(0));
        let past = Correction::Floor(secs(TODAY - 100 * DAY));
        assert_eq!(late.before_mesh(&others(2), at(0)), past, "what they say is past all the same");
        right.heard(NodeId([0; 32]), late.said(at(TODAY - 100 * DAY)), at(0));
        right.heard(NodeId([1; 32]), late.said(at(TODAY - 100 * DAY)), at(0));
        assert_eq!(
            right.before_mesh(&others(2), at(TODAY)),
            Correction::Floor(secs(TODAY)),
            "nor those they agree with"
        );
    }

    #[test]
    fn who_followed_dead_clocks_follows_a_majority_that_is_right() {
        let mut clock = clock(TODAY - 100 * DAY, 0, &[]);
        let dead = ((TODAY - 50 * DAY) * 1000) | UNCERTAIN;
        clock.heard(NodeId([0; 32]), dead, at(0));
        let past = secs(TODAY - 50 * DAY);
        assert_eq!(clock.before_mesh(&others(1), at(0)), Correction::Floor(past));
        clock.heard(NodeId([0; 32]), TODAY * 1000, at(0));
        assert_eq!(clock.while_mesh(&others(1), Now { wall: past, ..at(0) }), Some(secs(TODAY)));
    }

    #[test]
    fn a_time_that_no_clock_can_show_is_not_heard() {
        for nonsense in [u64::MAX >> 1, 8_277_292_037_000, (TODAY + 21 * 365 * DAY) * 1000] {
            let mut clock = clock(TODAY, 0, &[]);
            clock.heard(NodeId([0; 32]), nonsense, at(0));
            assert_eq!(clock.before_mesh(&others(1), at(0)), Correction::Floor(secs(TODAY)), "{nonsense}");
            assert!(!clock.agreed);
        }
    }

    #[test]
    fn an_agent_that_starts_again_brings_no_clock_back() {
        let ahead = TODAY + 365 * DAY;
        let late = Now { boottime: LATE_START, wall: secs(ahead) };
        let mut clock = Clock::new(secs(1000 * DAY), Some(secs(ahead)), late);
        for n in 0..2 {
            clock.heard(NodeId([n; 32]), TODAY * 1000, late);
        }
        assert_eq!(clock.before_mesh(&others(2), late), Correction::Floor(secs(ahead)));
        assert!(clock.ahead(&others(2), late).is_some(), "but it says so");
    }

    #[test]
    fn the_mesh_waits_for_those_who_can_tell() {
        let uncertain = |said: &[u64], wall| clock(TODAY, TODAY, said).uncertain(&others(4), at(wall));
        assert_eq!(uncertain(&[], TODAY), Uncertain::Silent);
        assert_eq!(uncertain(&[TODAY], TODAY), Uncertain::No);
        assert_eq!(uncertain(&[TODAY], TODAY + 2 * DAY), Uncertain::FarAhead);
        assert_eq!(uncertain(&[TODAY; 3], TODAY + 2 * DAY), Uncertain::No, "they are a majority");
        let saved = clock(TODAY + 2 * DAY, TODAY, &[TODAY]);
        assert_eq!(saved.uncertain(&others(4), at(TODAY)), Uncertain::FarAhead, "the saved time is, too");
    }

    #[test]
    fn the_first_peers_after_the_mesh_began_are_heard_once() {
        let mut clock = clock(TODAY, TODAY, &[TODAY + 30]);
        let others = others(9);
        assert_eq!(clock.while_mesh(&others, at(TODAY)), Some(secs(TODAY + 30)));
        clock.heard(NodeId([3; 32]), (TODAY + 90) * 1000, at(0));
        assert_eq!(clock.while_mesh(&others, at(TODAY + 30)), None);
    }

    #[test]
    fn a_wrong_minute_is_not_saved() {
        let mut clock = clock(TODAY, TODAY, &[]);
        let passed = |n| Now { boottime: secs(10 + n), wall: secs(TODAY + n) };
        assert_eq!(clock.advance(passed(60)), secs(TODAY + 60));
        let wrong = Now { wall: secs(TODAY + 1000 * DAY), ..passed(120) };
        assert_eq!(clock.advance(wrong), secs(TODAY + 120) + SLACK);
        assert_eq!(clock.advance(passed(180)), secs(TODAY + 120) + SLACK, "it never goes back");
        assert_eq!(clock.advance(passed(600)), secs(TODAY + 600));
    }

    #[test]
    fn a_node_that_never_saved_trusts_the_clock_of_its_machine() {
        let mut clock = Clock::new(secs(1000 * DAY), None, at(TODAY));
        assert_eq!(clock.advance(at(TODAY + 5)), secs(TODAY + 5));
    }
}
