// SPDX-License-Identifier: Apache-2.0
//! Limits of this machine's kernel that all namespaces share, and that many nodes on one machine reach: raised while the
//! bench runs.

use std::fs;

use anyhow::{Context as _, Result};

/// What was raised, and goes back to what it was at the end.
#[derive(Default)]
pub(crate) struct Limits {
    /// File in /proc/sys and what it said.
    raised: Vec<(String, String)>,
}

impl Limits {
    pub(crate) fn raise(nodes: u16) -> Result<Self> {
        let nodes = u32::from(nodes);
        let mut limits = Self::default();
        // Each agent and each D-Bus daemon watches files, and all are one user's here.
        limits.at_least("fs.inotify.max_user_instances", 2 * nodes + 128)?;
        // All that is on the way to any node waits in one queue of each processor; a hundred machines have one each. Ten broadcasts
        // of everybody fit in.
        limits.at_least("net.core.netdev_max_backlog", 10 * nodes * nodes)?;
        // Each node has each other as its neighbour, on its card and in its tunnel.
        let neighbours = 2 * nodes * nodes + 1024;
        for family in ["ipv4", "ipv6"] {
            // The largest first: the kernel counts every entry against it.
            for (step, factor) in [(3, 4), (2, 2), (1, 1)] {
                limits
                    .at_least(&format!("net.{family}.neigh.default.gc_thresh{step}"), factor * neighbours)?;
            }
        }
        Ok(limits)
    }

    fn at_least(&mut self, name: &str, needed: u32) -> Result<()> {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        let before = fs::read_to_string(&file).with_context(|| format!("failed to read {file}"))?;
        if before.trim().parse::<u32>()? >= needed {
            return Ok(());
        }
        fs::write(&file, needed.to_string()).with_context(|| {
            format!("so many nodes need `sysctl {name}={needed}`, as root and outside of a container")
        })?;
        eprintln!("{name} is {needed} while this runs");
        self.raised.push((file, before));
        Ok(())
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        for (file, before) in &self.raised {
            if let Err(error) = fs::write(file, before) {
                eprintln!("{file} was {} and stays raised: {error}", before.trim());
            }
        }
    }
}
