// SPDX-License-Identifier: Apache-2.0
//! Everything that is told in the simulation, as one program: it is linked once.
#![allow(missing_docs, unreachable_pub)]

mod busy;
mod campaign;
mod floods;
mod guard;
mod hostile;
mod joining;
mod network;
// Also used by the VM tests, which use more of it.
#[allow(dead_code)]
#[path = "../../../../tests/harness/src/secrets.rs"]
mod secrets;
#[path = "../sim/mod.rs"]
mod sim;
mod standing;
mod stories;

use std::time::Duration;

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
