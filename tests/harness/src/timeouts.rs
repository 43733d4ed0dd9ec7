// SPDX-License-Identifier: Apache-2.0
//! Every time limit of the harness, in one table.
//!
//! The seconds are for a guest that runs at full speed (KVM) on a core of its own. A slower guest gets them
//! multiplied by [`Speed::factor`], which is measured: what a guest's CPU loop takes here against the reference, and how
//! many guests share a core.

use std::time::Duration;

/// A named limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// As messages and `vm-cluster info` show it.
    pub name: &'static str,
    /// What is waited for.
    pub what: &'static str,
    /// Seconds at full speed.
    pub seconds: u64,
}

/// Power on until the guest agent answers; the first boot also grows the disk.
pub const BOOT: Limit = Limit { name: "boot", what: "power on until commands can be run", seconds: 45 };
/// Guest agent until every member sees every member up.
pub const MEMBERS: Limit = Limit { name: "members", what: "members see each other up", seconds: 30 };
/// A gossip state change: suspect, down, back.
pub const GOSSIP: Limit = Limit { name: "gossip", what: "a member's state changes everywhere", seconds: 45 };
/// A command in a guest that is expected to be short.
pub const COMMAND: Limit = Limit { name: "command", what: "a short command in a guest", seconds: 20 };
/// One exchange with the guest agent.
pub const GUEST_AGENT: Limit =
    Limit { name: "guest-agent", what: "one answer of the guest agent", seconds: 6 };
/// One exchange with QEMU.
pub const QMP: Limit = Limit { name: "qmp", what: "one answer of QEMU", seconds: 10 };
/// A clean power off.
pub const SHUTDOWN: Limit = Limit { name: "shutdown", what: "a clean power off", seconds: 20 };
/// Saving or loading the state of one VM.
pub const SNAPSHOT: Limit = Limit { name: "snapshot", what: "state of one VM saved or loaded", seconds: 30 };
/// A line on the serial console.
pub const CONSOLE: Limit = Limit { name: "console", what: "a line on the serial console", seconds: 15 };

/// A stream through the mesh stands still, while one of two ways is cut.
pub const GAP: Limit =
    Limit { name: "gap", what: "a stream stands still when one of two cables is pulled", seconds: 5 };

/// A release is taken in, or written to a slot: every block of it is hashed, up to four times.
pub const UPDATE: Limit = Limit { name: "update", what: "a release is imported or staged", seconds: 60 };

/// A release that does not work is tried three times, its check takes two minutes each time, and the version before starts.
pub const GIVEN_UP: Limit =
    Limit { name: "given-up", what: "a broken release is tried and given up", seconds: 600 };

/// All limits, for people.
pub const ALL: &[Limit] =
    &[BOOT, MEMBERS, GOSSIP, COMMAND, GUEST_AGENT, QMP, SHUTDOWN, SNAPSHOT, CONSOLE, GAP, UPDATE, GIVEN_UP];

/// How much slower than the reference guests run here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Multiplies every [`Limit`]; 1 at full speed, never below.
    pub factor: f64,
}

impl Speed {
    /// `slowdown` of one guest alone, `vms` of `cpus` each on a host with `cores`.
    pub fn new(slowdown: f64, vms: usize, cpus: u32, cores: usize) -> Self {
        let share = (vms as f64 * f64::from(cpus) / cores.max(1) as f64).max(1.0);
        Self { factor: slowdown.max(1.0) * share }
    }

    /// The limit as it is here.
    pub fn limit(&self, limit: Limit) -> Duration {
        Duration::from_secs_f64(limit.seconds as f64 * self.factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_grow_with_slow_guests_and_shared_cores_and_never_shrink() {
        assert_eq!(Speed::new(0.5, 1, 1, 8).limit(BOOT), Duration::from_secs(45));
        assert_eq!(Speed::new(10.0, 1, 1, 2).limit(COMMAND), Duration::from_secs(200));
        assert_eq!(Speed::new(10.0, 3, 1, 2).limit(COMMAND), Duration::from_secs(300));
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = ALL.iter().map(|limit| limit.name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
