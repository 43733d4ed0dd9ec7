// SPDX-License-Identifier: Apache-2.0
//! Why a release does not get into the other slot, or why there is no way back.

use crate::version::Version;

/// Why nothing is begun. Nothing has been written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Made for other machines.
    #[error("the release is for {found}, this machine is {wanted}")]
    Architecture {
        /// The release's.
        found: String,
        /// This machine's.
        wanted: String,
    },
    /// It runs.
    #[error("version {0} is what runs")]
    Runs(Version),
    /// Older than what runs.
    #[error(
        "version {found} is older than {running}, which runs; `cluster-update rollback` goes back to the previous version"
    )]
    Older {
        /// The release's.
        found: Version,
        /// What runs.
        running: Version,
    },
    /// Needs a release in between.
    #[error(
        "version {found} can only follow {minimum} or later, and {running} runs: install a release in between first"
    )]
    Minimum {
        /// The release's.
        found: Version,
        /// What it needs.
        minimum: Version,
        /// What runs.
        running: Version,
    },
    /// The other slot is the way back.
    #[error(
        "version {0} is on trial and not yet marked good; the other slot is the way back and stays as it is. \
         Wait until the boot is marked good, or go back with `cluster-update rollback`"
    )]
    Trial(Version),
    /// Nobody knows yet whether it is good.
    #[error(
        "version {0} is on trial and not yet marked good: wait until it is, then it can be installed to another disk"
    )]
    Unjudged(Version),
    /// It is in the other slot already.
    #[error("version {0} is staged already: `cluster-update reboot` starts it")]
    Staged(Version),
    /// The disk is not what it should be.
    #[error("the disk does not have two slots of which this system runs from one: {0}")]
    Disk(&'static str),
    /// What runs is not what its slot says.
    #[error(
        "version {running} runs, and the slot under the root device is labelled `{label}`: nothing is changed where it is not \
         certain what runs"
    )]
    Label {
        /// Of the slot.
        label: String,
        /// What runs.
        running: Version,
    },
    /// The ESP is not what it should be.
    #[error("the boot entries do not show which one runs: {0}")]
    Entries(String),
    /// The release is too large.
    #[error("the other slot is too small: {what} needs {needed} bytes, the partition has {has}")]
    SlotTooSmall {
        /// What does not fit.
        what: &'static str,
        /// Its size.
        needed: u64,
        /// The partition's.
        has: u64,
    },
    /// The ESP is too full.
    #[error(
        "the ESP is too full: the boot entry needs {needed} bytes, {free} would be free; {}",
        remedy(others)
    )]
    EspFull {
        /// Bytes needed.
        needed: u64,
        /// Bytes there would be.
        free: u64,
        /// Files on it that are none of ours, by their paths, with their sizes. Whoever refused did not look: that is up to
        /// the one who has the ESP.
        others: Vec<(String, u64)>,
    },
    /// There is nothing to go back to.
    #[error("there is no version to go back to: {0}")]
    NoWayBack(&'static str),
}

/// Files that are named; there may be hundreds.
const NAMED: usize = 8;

/// The largest first: with them it is done soonest.
fn remedy(others: &[(String, u64)]) -> String {
    let mut others: Vec<&(String, u64)> = others.iter().collect();
    others.sort_by(|one, next| next.1.cmp(&one.1).then_with(|| one.0.cmp(&next.0)));
    if others.is_empty() {
        return "there is no file on it but those of Cluster-OS, so the ESP itself is too small: write the image to this disk \
                again"
            .to_owned();
    }
    let more = others.len().saturating_sub(NAMED);
    // Anybody may have named them, and this is shown on terminals.
    let named: Vec<String> = others
        .iter()
        .take(NAMED)
        .map(|(path, bytes)| format!("`{}` ({bytes} bytes)", path.escape_debug()))
        .collect();
    let more = if more > 0 { format!(" and {more} smaller ones") } else { String::new() };
    format!(
        "not of Cluster-OS are {}{more}: move away what you do not need (`mount -o remount,rw /efi`, then \
         `mount -o remount,ro /efi`), and stage again",
        named.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_esp_is_told_with_the_files_that_are_not_ours() {
        let say = |others| Refusal::EspFull { needed: 9, free: 3, others }.to_string();
        let none = say(Vec::new());
        assert!(none.contains("needs 9 bytes, 3 would be free") && none.contains("too small"), "{none}");
        let mut files: Vec<(String, u64)> =
            (0..20).map(|number| (format!("EFI/other/{number}.efi"), number)).collect();
        files.push(("a\u{1b}[2Jb".to_owned(), 1000));
        let some = say(files);
        assert!(some.contains("are `a\\u{1b}[2Jb` (1000 bytes), `EFI/other/19.efi` (19 bytes),"), "{some}");
        assert!(some.contains("and 13 smaller ones") && some.contains("remount,rw"), "{some}");
    }
}
