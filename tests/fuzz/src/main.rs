// SPDX-License-Identifier: Apache-2.0
//! libFuzzer around one fuzz target, chosen by `CLUSTER_OS_FUZZ`: all targets share one program, which links once.
#![no_main]

use std::sync::OnceLock;

use cluster_fuzz::{Target, targets};
use libfuzzer_sys::fuzz_target;

fn target() -> &'static Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("CLUSTER_OS_FUZZ").unwrap_or_default();
        let targets = targets();
        targets.iter().find(|target| target.name == name).copied().unwrap_or_else(|| {
            let names: Vec<_> = targets.iter().map(|target| target.name).collect();
            eprintln!("CLUSTER_OS_FUZZ is '{name}'; set it to one of {}", names.join(", "));
            std::process::exit(2)
        })
    })
}

fuzz_target!(|data: &[u8]| (target().run)(data));
