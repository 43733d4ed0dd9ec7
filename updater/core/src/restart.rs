// SPDX-License-Identifier: Apache-2.0
//! Restarts at a time that somebody chose. logind keeps the time; here is what a time may be, and what happens when it comes
//! while the updater writes. All times are seconds since 1970.

/// A longer way off is a typing error: whoever schedules a restart in years will not remember it.
pub const FARTHEST: u64 = 31 * 86400;
/// No node lives before this was built. A clock that says so will jump, and the restart would come at the jump.
const EARLIEST: u64 = 1_767_225_600;
/// A restart that would come while the updater writes is put off this long before it.
pub const LEAD: u64 = 10;
/// By this much, as often as needed.
pub const AGAIN: u64 = 60;
/// But no further than this in all: members may give slowly, and a cut then is harmless.
const LONGEST: u64 = 30 * 60;

/// Why a time is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTime {
    /// Over already.
    #[error("that time is {0} s ago")]
    Past(u64),
    /// Too far away.
    #[error("that time is {0} days away, more than {days}", days = FARTHEST / 86400)]
    Far(u64),
    /// Nobody knows what time it is.
    #[error("the clock of this node is not set, so no time can be chosen: `timedatectl` shows it")]
    Clock,
    /// It may be right, and may jump.
    #[error(
        "no time server has set the clock of this node since it started (`timedatectl timesync-status`), and when one does, the \
         restart may come at once. Wait until it is set, or, if `date` is right, add `--trust-clock`"
    )]
    Unsynchronized,
}

/// Whether a restart can be scheduled for `at`. logind keeps wall-clock times, so one that was given as `+2h` needs a clock
/// that does not jump, too; `is_trusted` says that it does not.
///
/// # Errors
/// When it cannot.
pub fn may_schedule(at: u64, now: u64, is_trusted: bool) -> Result<(), BadTime> {
    match () {
        () if now < EARLIEST => Err(BadTime::Clock),
        () if !is_trusted => Err(BadTime::Unsynchronized),
        () if at <= now => Err(BadTime::Past(now - at)),
        () if at - now > FARTHEST => Err(BadTime::Far((at - now) / 86400)),
        () => Ok(()),
    }
}

/// For how many seconds nothing needs to be done about a restart at `at`.
#[must_use]
pub fn quiet(at: u64, now: u64) -> u64 {
    at.saturating_sub(LEAD).saturating_sub(now)
}

/// When a restart comes instead that would come now, and was to come at `first`; none if it comes.
#[must_use]
pub fn put_off(first: u64, at: u64, now: u64) -> Option<u64> {
    let later = at.max(now).saturating_add(AGAIN);
    (later <= first.saturating_add(LONGEST)).then_some(later)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = EARLIEST + 1000;

    #[test]
    fn times_that_make_no_sense_are_refused() {
        let may = |at| may_schedule(at, NOW, true);
        assert_eq!(may(NOW + 1), Ok(()));
        assert_eq!(may(NOW + FARTHEST), Ok(()));
        assert_eq!(may(NOW), Err(BadTime::Past(0)));
        assert_eq!(may(NOW - 60), Err(BadTime::Past(60)));
        assert_eq!(may(NOW + FARTHEST + 86400), Err(BadTime::Far(32)));
        assert_eq!(may(u64::MAX), Err(BadTime::Far((u64::MAX - NOW) / 86400)));
    }

    /// A clock in 1970 is set later, and logind would take the jump for the time that has come.
    #[test]
    fn nothing_is_scheduled_by_a_clock_that_is_not_set() {
        for is_trusted in [false, true] {
            assert_eq!(may_schedule(7200, 0, is_trusted), Err(BadTime::Clock));
        }
        // Whether that time is over is not known either.
        for at in [NOW + 1, NOW - 60] {
            assert_eq!(may_schedule(at, NOW, false), Err(BadTime::Unsynchronized));
        }
    }

    #[test]
    fn a_restart_that_is_put_off_is_never_missed() {
        assert_eq!(quiet(NOW + 100, NOW), 100 - LEAD);
        for at in [NOW - 5, NOW, NOW + LEAD] {
            assert_eq!(quiet(at, NOW), 0);
            let later = put_off(at, at, NOW).unwrap();
            assert!(later >= NOW + AGAIN && quiet(later, NOW) > 0);
        }
    }

    #[test]
    fn a_restart_is_not_put_off_for_ever() {
        let mut at = NOW;
        while let Some(later) = put_off(NOW, at, at) {
            at = later;
        }
        assert_eq!(at, NOW + LONGEST);
    }
}
