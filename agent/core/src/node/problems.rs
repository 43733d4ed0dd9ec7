// SPDX-License-Identifier: Apache-2.0
//! What is wrong with this node, by area, until it is right again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::settings::Problem;

/// All that was seen since start: damaged files, problems of the caller, clashes.
#[derive(Default)]
pub(super) struct Problems {
    known: BTreeMap<String, Problem>,
    /// Those that vanish unless they are seen again by then.
    fading: BTreeMap<String, Duration>,
}

impl Problems {
    pub(super) fn set(&mut self, area: &str, message: &str, fix: &str) {
        self.known.insert(area.to_owned(), Problem::new(area, message, fix));
    }

    /// A problem that is only known while it is seen.
    pub(super) fn set_until(&mut self, area: &str, message: &str, fix: &str, until: Duration) {
        self.set(area, message, fix);
        self.fading.insert(area.to_owned(), until);
    }

    /// A problem that only the caller can see; an empty message clears it.
    pub(super) fn set_external(&mut self, area: &str, message: &str, fix: &str) {
        match (message, fix) {
            ("", _) => self.clear(area),
            (_, "") => self.set(area, message, "see the journal: journalctl -u cluster-agent"),
            _ => self.set(area, message, fix),
        }
    }

    pub(super) fn clear(&mut self, area: &str) {
        self.known.remove(area);
    }

    /// Whether this is what is known of an area.
    pub(super) fn says(&self, area: &str, message: &str) -> bool {
        self.known.get(area).is_some_and(|known| known.message == message)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Problem> {
        self.known.values()
    }

    pub(super) fn tick(&mut self, now: Duration) {
        for (area, _) in self.fading.extract_if(.., |_, until| *until <= now) {
            self.known.remove(&area);
        }
    }
}

/// Names in one line; of many the first ones.
pub(super) fn listed(mut names: Vec<String>, most: usize) -> String {
    let more = names.len().saturating_sub(most);
    names.truncate(most);
    names.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}
