// SPDX-License-Identifier: Apache-2.0
//! Names of boot entries in `EFI/Linux/` of the ESP: `cluster-os_VERSION.efi`, with a counter while they are on trial:
//! `cluster-os_VERSION+LEFT-DONE.efi` (Boot Loader Specification, Boot Counting).

use std::{cmp::Reverse, collections::BTreeMap, fmt};

use crate::version::Version;

const PREFIX: &str = "cluster-os_";
const SUFFIX: &str = ".efi";
/// Not `.efi`: the boot loader must not see a UKI that is not whole.
const TEMPORARY: &str = ".new";
/// How often a new version may try to come up.
pub const TRIES: u32 = 3;

/// A boot entry of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of the release.
    pub version: Version,
    /// Tries left and tries done; none once it has been blessed.
    pub counter: Option<(u32, u32)>,
}

impl Entry {
    /// The entry of a release that is to be tried.
    #[must_use]
    pub fn on_trial(version: &Version) -> Self {
        Self { version: version.clone(), counter: Some((TRIES, 0)) }
    }

    /// Reads a file name; `None` if it is not one of ours.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let (version, counter) = match name.split_once('+') {
            Some((version, counter)) => {
                let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
                (version, Some((left.parse().ok()?, done.parse().ok()?)))
            }
            None => (name, None),
        };
        Some(Self { version: Version::parse(version)?, counter })
    }

    /// The boot loader takes it only when there is nothing better.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        matches!(self.counter, Some((0, _)))
    }

    /// Sorts entries of one version: first what is marked good, then as the boot loader does, the most tries left and the fewest
    /// done. A power cut during a rename may have left one file with several names.
    #[must_use]
    pub fn order(&self) -> (bool, Reverse<u32>, u32) {
        let (left, done) = self.counter.unwrap_or_default();
        (self.counter.is_some(), Reverse(left), done)
    }

    /// The same, given up: the boot loader puts entries without tries last. The name is not the one that the boot loader and
    /// systemd-bless-boot would give it in this boot (no tries left, and as many done): a blessing under way, which renames
    /// that one, finds nothing.
    #[must_use]
    pub fn given_up(&self) -> Self {
        let done = self.counter.map_or(TRIES, |(_, done)| done);
        Self { version: self.version.clone(), counter: Some((0, done.saturating_add(1))) }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.version)?;
        if let Some((left, done)) = self.counter {
            write!(f, "+{left}-{done}")?;
        }
        f.write_str(SUFFIX)
    }
}

/// The entry that counts of each version ([`Entry::order`]).
#[must_use]
pub fn best<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> BTreeMap<&'a Version, &'a Entry> {
    let mut best: BTreeMap<&Version, &Entry> = BTreeMap::new();
    for entry in entries {
        let known = best.entry(&entry.version).or_insert(entry);
        if entry.order() < known.order() {
            *known = entry;
        }
    }
    best
}

/// What the UKI of a release is called until it is whole.
#[must_use]
pub fn temporary_name(version: &Version) -> String {
    format!("{PREFIX}{version}{TEMPORARY}")
}

/// What a boot entry is called when it is about to be removed: a file whose content is freed may keep its name for a moment,
/// or for good if the power fails, and must not be a boot entry then.
#[must_use]
pub fn hidden_name(name: &str) -> String {
    format!("{name}{TEMPORARY}")
}

/// Whether the file is what an interrupted update left.
#[must_use]
pub fn is_temporary(name: &str) -> bool {
    name.starts_with(PREFIX) && name.ends_with(TEMPORARY)
}

/// Whether a file of the ESP, by its path in lower case, is one that Cluster-OS or its boot loader puts there.
#[must_use]
pub fn belongs(path: &str) -> bool {
    let known = ["efi/boot/bootx64.efi", "efi/systemd/systemd-bootx64.efi", "loader/loader.conf"];
    let made = ["loader/random-seed", "loader/entries.srel"];
    let entry = path.strip_prefix("efi/linux/").is_some_and(|name| name.starts_with(PREFIX));
    entry || known.contains(&path) || made.contains(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for name in ["cluster-os_0.1.0.efi", "cluster-os_0.1.0+3-0.efi", "cluster-os_12+0-3.efi"] {
            assert_eq!(Entry::parse(name).unwrap().to_string(), name);
        }
        assert_eq!(Entry::parse("cluster-os_1+2.efi").unwrap().counter, Some((2, 0)));
        for name in
            ["other_1.efi", "cluster-os_1.efi.new", "cluster-os_.efi", "cluster-os_1+x-1.efi", "cluster-os_1"]
        {
            assert_eq!(Entry::parse(name), None, "{name}");
        }
    }

    #[test]
    fn an_entry_without_tries_is_bad() {
        let entry = Entry::on_trial(&Version::parse("2").unwrap());
        assert_eq!(entry.to_string(), "cluster-os_2+3-0.efi");
        assert!(!entry.is_bad());
        assert!(entry.given_up().is_bad());
        // systemd-bless-boot of a boot that came up as +2-1 looks for +2-1 and for +0-1.
        let second = Entry::parse("cluster-os_2+2-1.efi").unwrap();
        assert_eq!(second.given_up().to_string(), "cluster-os_2+0-2.efi");
        assert_eq!(Entry::parse("cluster-os_2.efi").unwrap().given_up().to_string(), "cluster-os_2+0-4.efi");
        assert!(Entry::parse(&temporary_name(&entry.version)).is_none());
        assert!(is_temporary(&temporary_name(&entry.version)));
        let hidden = hidden_name(&entry.to_string());
        assert!(is_temporary(&hidden) && Entry::parse(&hidden).is_none());
    }

    #[test]
    fn of_several_names_the_one_that_is_started_comes_first() {
        let names =
            ["cluster-os_2.efi", "cluster-os_2+2-1.efi", "cluster-os_2+1-2.efi", "cluster-os_2+1-3.efi"];
        let mut entries = names.map(|name| Entry::parse(name).unwrap());
        entries.reverse();
        entries.sort_by_key(Entry::order);
        assert_eq!(entries.map(|entry| entry.to_string()), names);
    }

    #[test]
    fn what_is_ours_on_the_esp_is_told_from_the_rest() {
        for ours in ["efi/linux/cluster-os_1.efi", "efi/linux/cluster-os_1.new", "loader/loader.conf"] {
            assert!(belongs(ours), "{ours}");
        }
        for other in ["efi/linux/arch.efi", "efi/microsoft/boot/bootmgfw.efi", "cluster-os_1.efi", ""] {
            assert!(!belongs(other), "{other}");
        }
    }
}
