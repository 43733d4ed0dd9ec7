// SPDX-License-Identifier: Apache-2.0
//! Power cuts, replayed: what a disk may hold when the power fails, and what would boot from it.
//!
//! QEMU's `blklogwrites` records every write and flush of a VM's disk ([`WriteLog`]). A [`Cut`] is a moment in that log and what
//! of it reached the medium: all of it, a part of the last write, or any part of what was written since the last flush. [`Replay`]
//! gives the disk after a cut as a [`Medium`], and a [`Judge`] says what firmware, boot loader and initrd would make of it. No VM
//! is needed for that; a medium can be saved and booted, too.

mod fat;
mod judge;
mod log;
mod medium;
mod plan;

pub use cluster_updater_core::gpt::State;
pub use fat::Fat;
pub use judge::{Choice, Judge, Whole};
pub use log::{Recorder, Write, WriteLog};
pub use medium::Medium;
pub use plan::{Cut, Lost, Replay, boot_regions, cuts};

/// The smallest piece that a drive writes whole, and what partition tables count in.
pub const SECTOR: u64 = 512;
