// SPDX-License-Identifier: Apache-2.0
//! What the bus and systemd are told of changes: the first at once, those that follow on its heels together. In a crowd that is
//! switched on every member changes twice for every other, and each signal is work for the D-Bus daemon and all who listen.

use std::{collections::BTreeMap, time::Duration};

use cluster_agent_core::NodeId;

use crate::bus::Order;

/// Between two tellings.
const GAP: Duration = Duration::from_millis(250);

/// When more members than this changed within [`WINDOW`] no more are named: `Changed` is told, and who wants to know asks for the
/// members once.
const MOST_BY_NAME: usize = 16;
const WINDOW: Duration = Duration::from_secs(1);

/// Changes that were not told yet.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    changed: bool,
    /// Name and latest state of each member that changed.
    members: BTreeMap<NodeId, (String, String)>,
    not_before: Duration,
    /// So many members changed in the present window.
    counted: usize,
    window_ends: Duration,
}

impl Signals {
    /// Something in the views is another.
    pub(crate) fn changed(&mut self) {
        self.changed = true;
    }

    /// A member is in another state; what it was in between is nobody's news.
    pub(crate) fn member_changed(&mut self, id: NodeId, name: String, state: String) {
        self.changed = true;
        self.members.insert(id, (name, state));
    }

    /// When [`Signals::take`] has something to tell.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.changed.then_some(self.not_before)
    }

    /// What is to be told now; empty when that is nothing or has to wait.
    pub(crate) fn take(&mut self, now: Duration) -> Vec<Order> {
        if self.due().is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.changed = false;
        self.not_before = now + GAP;
        let mut members = std::mem::take(&mut self.members);
        if now >= self.window_ends {
            self.counted = 0;
            self.window_ends = now + WINDOW;
        }
        self.counted += members.len();
        if self.counted > MOST_BY_NAME {
            members.clear();
        }
        members
            .into_iter()
            .map(|(id, (name, state))| Order::MemberChanged { id: id.to_string(), name, state })
            .chain([Order::Changed])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(byte: u8) -> NodeId {
        NodeId::of_public_key(&[byte; 32])
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn member(byte: u8, state: &str) -> Order {
        Order::MemberChanged { id: node(byte).to_string(), name: "n".to_owned(), state: state.to_owned() }
    }

    #[test]
    fn the_first_change_is_told_at_once_and_those_after_it_together() {
        let mut signals = Signals::default();
        assert_eq!((signals.due(), signals.take(at(900))), (None, vec![]));
        signals.changed();
        assert!(signals.due().is_some_and(|due| due <= at(1000)));
        assert_eq!(signals.take(at(1000)), [Order::Changed]);
        for byte in [1, 2] {
            signals.member_changed(node(byte), "n".to_owned(), "up".to_owned());
            assert_eq!(signals.take(at(1249)), []);
        }
        assert_eq!(signals.due(), Some(at(1250)));
        let told = signals.take(at(1250));
        assert_eq!(told.len(), 3);
        assert!(
            told.contains(&member(1, "up")) && told.contains(&member(2, "up")) && told[2] == Order::Changed
        );
        assert_eq!((signals.due(), signals.take(at(1500))), (None, vec![]));
    }

    #[test]
    fn a_crowd_is_told_of_by_one_signal() {
        let mut signals = Signals::default();
        let crowd = |signals: &mut Signals, size| {
            (0..size).for_each(|byte| signals.member_changed(node(byte), "n".to_owned(), "up".to_owned()));
        };
        crowd(&mut signals, 16);
        assert_eq!(signals.take(at(0)).len(), 17);
        crowd(&mut signals, 1);
        assert_eq!(signals.take(at(999)), [Order::Changed], "the seventeenth within a second");
        crowd(&mut signals, 1);
        assert_eq!(signals.take(at(1999)).len(), 2);
        crowd(&mut signals, 17);
        assert_eq!(signals.take(at(9000)), [Order::Changed]);
    }

    #[test]
    fn of_a_member_the_latest_state_is_told() {
        let mut signals = Signals::default();
        signals.member_changed(node(1), "n".to_owned(), "down".to_owned());
        signals.member_changed(node(1), "n".to_owned(), "up".to_owned());
        assert_eq!(signals.take(at(0)), [member(1, "up"), Order::Changed]);
    }
}
