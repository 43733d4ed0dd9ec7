// SPDX-License-Identifier: Apache-2.0
//! `cluster-update` also runs on PCs, with glibc from 2.34 on (docs/install.md).
//!
//! The standard library takes these two functions where glibc has them, from 2.39 on, and does without elsewhere. They are
//! weak references, but a loader refuses a version that it does not know all the same. Defined as null, they count as missing.

fn main() {
    for function in ["pidfd_spawnp", "pidfd_getpid"] {
        println!("cargo::rustc-link-arg-bin=cluster-update=-Wl,--defsym={function}=0");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
