// SPDX-License-Identifier: Apache-2.0
//! The two clocks of a node: boot time for everything measured, wall time for what people and WireGuard read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
};

/// Time since boot, suspend included (`CLOCK_BOOTTIME`): a lease must not outlive a closed lid.
#[must_use]
pub fn boottime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Time since 1970. A clock before 1970 reads as zero.
#[must_use]
pub fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// What became of a request to set the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It stays as it is.
    None,
    /// Stepped forward by this much.
    Forward(Duration),
    /// Stepped back by this much.
    Back(Duration),
}

/// Puts the wall clock to at least `floor` (time since 1970).
///
/// WireGuard refuses a handshake older than the newest it saw from a peer, so a member whose battery is flat would be
/// shut out until real time catches up.
///
/// # Errors
/// When the kernel refuses (no `CAP_SYS_TIME`).
pub fn raise_to(floor: Duration) -> Result<Step> {
    if wall() >= floor { Ok(Step::None) } else { set_to(floor) }
}

/// Puts the wall clock to `to` (time since 1970), forward or back.
///
/// # Errors
/// When the kernel refuses (no `CAP_SYS_TIME`).
pub fn set_to(to: Duration) -> Result<Step> {
    let now = wall();
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(to)).with_context(|| {
        format!("failed to set the clock to {} s after 1970 (needs CAP_SYS_TIME)", to.as_secs())
    })?;
    Ok(if to < now { Step::Back(now - to) } else { Step::Forward(to - now) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_steps_back() {
        assert_eq!(raise_to(wall() - Duration::from_secs(1000)).unwrap(), Step::None);
    }

    #[test]
    fn boottime_advances() {
        let first = boottime();
        assert!(first > Duration::ZERO);
        assert!(boottime() >= first);
    }
}
