// SPDX-License-Identifier: Apache-2.0
//! What an update is, without IO, clock or randomness.
//!
//! A **release** is a [`manifest`] with signatures, a root image with its dm-verity [`verity`] tree, a UKI and a boot
//! loader. Who may sign is said by a [`root`] document; [`Verified`] can only be made by checking. The tree is the block
//! index: [`plan`] compares two trees and says which blocks a node has already, [`outline`] how to get the tree itself; [`sources`] says which member is asked for
//! the others, [`doubts`] which one is not asked for a while.
//!
//! A node has two slots. [`slot`] turns what is known about disk and ESP into a list of effects in the one order that
//! survives a power cut anywhere; [`gpt`] and [`entry`] are the partition table and the boot entry names it works on. The
//! daemon carries the effects out through the small traits of [`device`]. [`verdict`] says how a trial boot went, [`refund`]
//! gives tries back that were lost to the power, and once it is good, [`loader`] replaces the boot loader. [`install`] is the way
//! of a node to another disk, [`archive`] a release in one file, [`restart`] says when a node may restart.

pub mod archive;
pub mod device;
pub mod digest;
pub mod doubts;
pub mod entry;
pub mod gpt;
pub mod install;
pub mod keys;
pub mod loader;
pub mod manifest;
pub mod outline;
pub mod plan;
pub mod refund;
mod refusal;
pub mod restart;
pub mod root;
pub mod serving;
pub mod signed;
pub mod slot;
pub mod sources;
pub mod uki;
pub mod verdict;
pub mod verity;
pub mod version;

pub use device::{BlockSource, Disk, Esp};
pub use digest::Digest;
pub use manifest::Manifest;
pub use root::TrustedRoot;
pub use signed::{SignatureError, Signatures, Verified};
pub use version::Version;
