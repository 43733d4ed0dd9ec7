// SPDX-License-Identifier: Apache-2.0
//! Tries of a trial that were lost to the power. The boot loader takes one at every start, whatever ends it: three cuts would give
//! a good release up. So the next boot that gets far enough gives the try of the boot before back, if that one ended without a
//! verdict and without a trace of a crash. What leaves no trace, such as a machine that resets itself, looks the same:
//! [`REFUNDS`] bounds how often.
//!
//! The number of tries is in the boot entry's name, so this is a rename. The name has the tries done as they were: whichever
//! of the two names a power cut during the rename leaves, or both, what the boot loader makes of one next is not the other.

use crate::{
    entry::{Entry, TRIES},
    slot::{Effect, Steps},
    version::Version,
};

/// Tries that are given back to a release, at most.
pub const REFUNDS: u32 = 3;

/// Something that happened, oldest first: in which boot, what, and to which version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Happened<'a> {
    /// The boot's id.
    pub boot: &'a str,
    /// As in the history.
    pub what: &'a str,
    /// The release.
    pub version: &'a str,
}

/// Whether the boot before this one was of the same version, began, and ended without a verdict.
#[must_use]
pub fn was_cut_off(events: &[Happened<'_>], boot: &str, running: &str) -> bool {
    let before = events.iter().rev().find(|event| event.what == "booted" && event.boot != boot);
    let Some(before) = before.filter(|event| event.version == running) else { return false };
    !events.iter().any(|event| event.boot == before.boot && is_verdict(event.what))
}

/// Whether an event of this kind says how its boot ended. One that was not judged for long, and then ended, did not fail: unknown
/// says nothing.
#[must_use]
pub fn is_verdict(what: &str) -> bool {
    matches!(what, "pass" | "fail" | "given-up")
}

/// A try that is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    /// The boot entry's name now: the one that the boot loader gave it.
    pub from: String,
    /// Its name with a try more.
    pub to: String,
    /// What to do.
    pub steps: Steps,
}

/// The running version's boot entry with one more try. None if this is not the name that it was booted with, or enough were
/// given back.
#[must_use]
pub fn refund(entries: &[(String, u64)], running: &Version, booted: &str) -> Option<Refund> {
    let entry = Entry::parse(booted).filter(|entry| entry.version == *running)?;
    let (left, done) = entry.counter?;
    // The first try has none before it.
    if done < 2 || left.checked_add(done)? >= TRIES + REFUNDS {
        return None;
    }
    let is_there = |name: &str| entries.iter().any(|(listed, _)| listed == name);
    let good = Entry { version: running.clone(), counter: None };
    let to = Entry { version: running.clone(), counter: Some((left + 1, done)) }.to_string();
    if !is_there(booted) || is_there(&to) || is_there(&good.to_string()) {
        return None;
    }
    let from = booted.to_owned();
    let steps = Steps::new(vec![Effect::RenameEntry { from: from.clone(), to: to.clone() }, Effect::SyncEsp]);
    Some(Refund { from, to, steps })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event<'a>(boot: &'a str, what: &'a str, version: &'a str) -> Happened<'a> {
        Happened { boot, what, version }
    }

    #[test]
    fn a_boot_without_a_verdict_was_cut_off_and_no_other() {
        let before = [event("1", "booted", "1.0"), event("1", "staged", "1.1")];
        let cut = |more: &[Happened<'_>]| was_cut_off(&[&before[..], more].concat(), "3", "1.1");
        assert!(!cut(&[]), "the first try");
        assert!(!cut(&[event("3", "booted", "1.1")]), "the first try, noted already");
        assert!(cut(&[event("2", "booted", "1.1")]));
        assert!(cut(&[
            event("2", "booted", "1.1"),
            event("3", "booted", "1.1"),
            event("3", "unknown", "1.1")
        ]));
        assert!(cut(&[event("2", "booted", "1.1"), event("2", "unknown", "1.1")]));
        for verdict in ["pass", "fail", "given-up"] {
            assert!(!cut(&[event("2", "booted", "1.1"), event("2", verdict, "1.1")]), "{verdict}");
        }
        assert!(!cut(&[event("2", "booted", "1.1"), event("2b", "booted", "1.0")]), "another version ran");
    }

    fn given_back(entries: &[&str], booted: &str) -> Option<String> {
        let entries: Vec<(String, u64)> = entries.iter().map(|name| ((*name).to_owned(), 1)).collect();
        refund(&entries, &Version::parse("2").unwrap(), booted).map(|refund| refund.to)
    }

    #[test]
    fn one_try_more_and_as_many_done() {
        let second = "cluster-os_2+1-2.efi";
        let other = "cluster-os_1.efi";
        assert_eq!(given_back(&[second, other], second).as_deref(), Some("cluster-os_2+2-2.efi"));
        let last = "cluster-os_2+0-3.efi";
        assert_eq!(given_back(&[last, other], last).as_deref(), Some("cluster-os_2+1-3.efi"));
        // The first try, another name since, marked good meanwhile, another version, none of ours.
        let first = "cluster-os_2+2-1.efi";
        assert_eq!(given_back(&[first], first), None);
        assert_eq!(given_back(&["cluster-os_2+0-4.efi"], last), None);
        assert_eq!(given_back(&[last, "cluster-os_2.efi"], last), None);
        assert_eq!(given_back(&["cluster-os_3+0-3.efi"], "cluster-os_3+0-3.efi"), None);
        assert_eq!(given_back(&["other.efi"], "other.efi"), None);
        let full = format!("cluster-os_2+{}-2.efi", u32::MAX);
        assert_eq!(given_back(&[&full], &full), None);
    }

    /// As the boot loader counts, with the power cut in each boot.
    #[test]
    fn a_release_that_only_ever_ends_is_given_up_after_six_boots() {
        let (mut left, mut done, mut boots) = (TRIES, 0, 0);
        while left > 0 {
            (left, done, boots) = (left - 1, done + 1, boots + 1);
            let name = format!("cluster-os_2+{left}-{done}.efi");
            left += u32::from(given_back(&[&name], &name).is_some());
            assert!(boots < 100, "never given up");
        }
        assert_eq!(boots, TRIES + REFUNDS);
    }

    /// Both names are there then: whichever is booted, the boot loader can rename it, and so count it.
    #[test]
    fn a_power_cut_at_the_rename_leaves_names_that_can_be_counted_on() {
        for (left, done) in [(1, 2), (0, 3), (2, 2), (1, 3)] {
            let from = format!("cluster-os_2+{left}-{done}.efi");
            let Some(to) = given_back(&[&from], &from) else { continue };
            let next = |name: &str| {
                let entry = Entry::parse(name).unwrap();
                let counter = entry.counter.map(|(left, done)| (left.saturating_sub(1), done + 1));
                Entry { counter, ..entry }.to_string()
            };
            assert_ne!(next(&to), from);
            assert_ne!(next(&from), to);
        }
    }
}
