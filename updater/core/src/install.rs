// SPDX-License-Identifier: Apache-2.0
//! How a node moves from the disk that it runs from to another one, in the one order that survives a power cut anywhere.
//!
//! What must hold: some disk boots and is the node, and never two of them are. So the new disk has no partition table, and is
//! nothing to any firmware, until all on it is written, flushed and read back; one sector, the header of the table, makes it a
//! disk that boots. Before the last copy the old disk bears a [`State::Moving`] mark, with which its agent does not start:
//! whoever boots the old disk next looks at the new one first, and [`settle`] says which of them is the node.

pub mod layout;
pub mod target;

use serde::{Deserialize, Serialize};

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write over what says that the new disk holds something.
    Wipe,
    /// Everything written to the new disk so far survives a power cut, and reads after it come from the medium.
    Flush,
    /// Copy the running root image and its hash tree, every block checked.
    WriteRoot,
    /// Read them back and check every block.
    CheckRoot,
    /// Make the file systems of ESP, config partition and `/var`.
    MakeFileSystems,
    /// Copy boot loader, boot entry and cluster.toml.
    CopyBoot,
    /// Read them back.
    CheckBoot,
    /// Copy `/var`, while all goes on.
    CopyVar,
    /// Stop the agent, which does not start again where the mark is: from here on what it keeps does not change.
    StopAgent,
    /// Copy what has changed in `/var` meanwhile.
    CopyChanges,
    /// Check the file system of `/var`, and read back what the node is.
    CheckVar,
    /// Mark the old disk. It is on the medium when this is done.
    Mark(State),
    /// Write all of the partition table but the headers of its two copies.
    PrepareTable,
    /// Write the first header: from here on the new disk boots.
    Commit,
    /// Write the second header.
    CompleteTable,
    /// Read both copies back.
    CheckTable,
}

/// All of it, in order. An effect that fails ends it.
pub const STEPS: [Effect; 23] = [
    Effect::Wipe,
    Effect::Flush,
    Effect::WriteRoot,
    Effect::Flush,
    Effect::CheckRoot,
    Effect::MakeFileSystems,
    Effect::CopyBoot,
    Effect::Flush,
    Effect::CheckBoot,
    Effect::CopyVar,
    Effect::Mark(State::Moving),
    Effect::StopAgent,
    Effect::CopyChanges,
    Effect::Flush,
    Effect::CheckVar,
    Effect::PrepareTable,
    Effect::Flush,
    Effect::Commit,
    Effect::Flush,
    Effect::CompleteTable,
    Effect::Flush,
    Effect::CheckTable,
    Effect::Mark(State::Moved),
];

/// What the mark on the old disk says. Without one, the node is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The new disk may or may not be the node: it has to be looked at.
    Moving,
    /// The new disk is the node.
    Moved,
}

/// What is seen of the new disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// A disk has the partition table that was to be written.
    Table,
    /// The disk is attached and does not have it.
    NoTable,
    /// No disk that is attached can be it.
    Absent,
}

/// Which disk is the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// The old one: the mark goes.
    Stays,
    /// The new one: the old one bears a [`State::Moved`] mark.
    Moved,
    /// It cannot be known before the new disk is attached. Nobody may be the node from the old disk meanwhile: the new one may
    /// be running elsewhere.
    Unknown,
}

/// Judges an old disk that bears a mark.
#[must_use]
pub fn settle(mark: State, sight: Sight) -> Ruling {
    match (mark, sight) {
        (State::Moved, _) | (State::Moving, Sight::Table) => Ruling::Moved,
        (State::Moving, Sight::NoTable) => Ruling::Stays,
        (State::Moving, Sight::Absent) => Ruling::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What both disks hold after a power cut, as far as it decides what boots.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Lab {
        /// Root image, file systems, boot files and identity are on the new disk's medium.
        content: [bool; 3],
        /// Everything of the table but the headers.
        table: bool,
        header: bool,
        mark: Option<State>,
    }

    impl Lab {
        /// A firmware boots what has a header; `content` and `table` must be there then.
        fn boots(&self) -> bool {
            self.header
        }

        fn sight(&self) -> Sight {
            if self.header { Sight::Table } else { Sight::NoTable }
        }

        fn apply(&mut self, effect: Effect) {
            match effect {
                Effect::WriteRoot => self.content[0] = true,
                Effect::CopyBoot => self.content[1] = true,
                Effect::CopyChanges => self.content[2] = true,
                Effect::PrepareTable => self.table = true,
                Effect::Commit => self.header = true,
                Effect::Mark(state) => self.mark = Some(state),
                Effect::Wipe => *self = Self { mark: self.mark, ..Self::default() },
                _ => {}
            }
        }
    }

    /// Each state that a power cut before effect `cut` can leave: of what was written since the last flush any part is there.
    /// A mark is flushed by itself.
    fn after_a_cut(cut: usize) -> Vec<Lab> {
        let mut labs = vec![Lab::default()];
        let flushed = STEPS[..cut].iter().rposition(|effect| *effect == Effect::Flush).unwrap_or(0);
        for (index, effect) in STEPS[..cut].iter().enumerate() {
            let sure = index < flushed || matches!(effect, Effect::Mark(_));
            let before = labs.clone();
            for lab in &mut labs {
                lab.apply(*effect);
            }
            if !sure {
                labs.extend(before);
            }
        }
        labs
    }

    /// Boots the old disk; true if it is the node then.
    fn boot_old(lab: &mut Lab, attached: bool) -> bool {
        let Some(mark) = lab.mark else { return true };
        match settle(mark, if attached { lab.sight() } else { Sight::Absent }) {
            Ruling::Stays => {
                lab.mark = None;
                true
            }
            Ruling::Moved => {
                lab.mark = Some(State::Moved);
                false
            }
            Ruling::Unknown => false,
        }
    }

    #[test]
    fn cut_anywhere_exactly_one_disk_is_the_node_for_ever() {
        let mut moved = 0;
        for cut in 0..=STEPS.len() {
            for lab in after_a_cut(cut) {
                if lab.boots() {
                    assert!(
                        lab.content == [true; 3] && lab.table,
                        "cut {cut}: a disk boots that is not whole: {lab:?}"
                    );
                    assert!(lab.mark.is_some(), "cut {cut}: both disks are the node: {lab:?}");
                    moved += 1;
                }
                // Whatever is booted, in any order, with the new disk attached or not.
                for order in 0..16_u32 {
                    let mut lab = lab;
                    for boot in 0..4 {
                        let attached = order >> boot & 1 == 1;
                        let old = boot_old(&mut lab, attached);
                        assert!(!(old && lab.boots()), "cut {cut}: both disks are the node: {lab:?}");
                        assert!(!attached || old || lab.boots(), "cut {cut}: no disk is the node: {lab:?}");
                    }
                }
            }
        }
        assert!(moved > 0, "no cut leaves a new disk that boots");
    }

    #[test]
    fn the_agent_is_stopped_before_what_it_keeps_is_copied_for_the_last_time() {
        let at = |wanted: Effect| STEPS.iter().position(|effect| *effect == wanted).unwrap();
        assert!(at(Effect::StopAgent) < at(Effect::CopyChanges));
        // With the mark, nobody starts it again.
        assert!(at(Effect::Mark(State::Moving)) < at(Effect::StopAgent));
        assert!(at(Effect::CopyChanges) < at(Effect::CheckVar) && at(Effect::CheckVar) < at(Effect::Commit));
    }

    #[test]
    fn what_is_checked_was_flushed_just_before() {
        for (index, effect) in STEPS.iter().enumerate() {
            if matches!(effect, Effect::CheckRoot | Effect::CheckBoot | Effect::CheckVar | Effect::CheckTable)
            {
                assert_eq!(STEPS[index - 1], Effect::Flush, "{effect:?}");
            }
        }
    }

    #[test]
    fn a_disk_that_is_not_attached_decides_nothing() {
        assert_eq!(settle(State::Moving, Sight::Absent), Ruling::Unknown);
        assert_eq!(settle(State::Moved, Sight::NoTable), Ruling::Moved);
    }
}
