// SPDX-License-Identifier: Apache-2.0
//! `cluster-updater`, the daemon that puts releases into the other slot, and `cluster-update`, its command line, which also
//! makes and checks releases on a PC. What is decided is decided in `cluster-updater-core`; this is disk, ESP, D-Bus and
//! files.

pub mod agent;
pub mod bus;
pub mod check;
pub mod crash;
pub mod ctl;
pub mod daemon;
mod date;
pub mod disk;
pub mod esp;
pub mod folder;
pub mod guard;
mod health;
pub mod host;
pub mod install;
pub mod intake;
pub mod lists;
pub mod loader;
pub mod logging;
pub mod logind;
pub mod make;
pub mod obtain;
pub mod paths;
pub mod peers;
pub mod release;
pub mod releases;
pub mod report;
pub mod slots_lock;
pub mod store;
pub mod systemd;
pub mod updater;
pub mod writer;

/// The version of these programs: the image's, or the crate's where no image is built.
pub const VERSION: &str = match option_env!("CLUSTER_OS_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};
