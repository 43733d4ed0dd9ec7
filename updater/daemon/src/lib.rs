// SPDX-License-Identifier: Apache-2.0
//! `cluster-updater`, the daemon that puts releases into the other slot, and `cluster-update`, its command line, which also
//! makes and checks releases on a PC. What is decided is decided in `cluster-updater-core`; this is disk, ESP, D-Bus and
//! files.

pub mod disk;
pub mod esp;
pub mod folder;
pub mod host;
pub mod make;
pub mod release;
pub mod store;
pub mod writer;
