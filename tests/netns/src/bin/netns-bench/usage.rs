// SPDX-License-Identifier: Apache-2.0
//! What processes and cables have used so far, as the kernel counts it.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use cluster_netns::Node;

use crate::contestant::Contestant;

/// Sums over all nodes.
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    /// Bytes sent on the LAN, headers included.
    pub(crate) sent: u64,
    /// Proportional set size of each node's process, bytes.
    pss: Vec<u64>,
    /// The same for the processes beside it: name, CPU, bytes of all nodes.
    pub(crate) beside: Vec<(&'static str, Duration, u64)>,
}

impl Usage {
    pub(crate) fn of(contestant: &Contestant, nodes: &[Node]) -> Result<Self> {
        let mut usage = Self { cpu: Duration::ZERO, sent: 0, pss: Vec::new(), beside: Vec::new() };
        for node in nodes {
            usage.sent += node.sent("eth0")?;
            if let Some(pid) = node.pid_of(contestant.process) {
                usage.cpu += cpu(pid)?;
                usage.pss.push(pss(pid)?);
            }
        }
        for name in contestant.beside {
            let (mut time, mut bytes) = (Duration::ZERO, 0);
            for pid in nodes.iter().filter_map(|node| node.pid_of(name)) {
                time += cpu(pid)?;
                bytes += pss(pid)?;
            }
            usage.beside.push((name, time, bytes));
        }
        Ok(usage)
    }

    /// What was used since `before`; memory is as it is now.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let earlier =
            |name| before.beside.iter().find(|(other, ..)| *other == name).map_or(Duration::ZERO, |it| it.1);
        let beside =
            self.beside.iter().map(|(name, cpu, pss)| (*name, cpu.saturating_sub(earlier(*name)), *pss));
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            sent: self.sent.saturating_sub(before.sent),
            beside: beside.collect(),
            pss: self.pss.clone(),
        }
    }

    pub(crate) fn pss_mean(&self) -> f64 {
        self.pss.iter().sum::<u64>() as f64 / self.pss.len().max(1) as f64
    }

    pub(crate) fn pss_largest(&self) -> u64 {
        self.pss.iter().copied().max().unwrap_or(0)
    }
}

/// User and system time (proc(5), stat fields 14 and 15).
fn cpu(pid: i32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat has no name")?.1.split_whitespace().collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

fn pss(pid: i32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss in smaps_rollup")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Packets that any processor of this machine has dropped because its queue was full.
pub(crate) fn dropped() -> Result<u64> {
    dropped_in(&fs::read_to_string("/proc/net/softnet_stat")?)
}

/// Each line is a processor's counters in hexadecimal: packets, packets dropped, and more.
fn dropped_in(softnet_stat: &str) -> Result<u64> {
    let of = |line: &str| {
        let field = line.split_whitespace().nth(1).context("softnet_stat has no second field")?;
        u64::from_str_radix(field, 16).context("softnet_stat has another form")
    };
    softnet_stat.lines().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_of_all_processors_count() {
        let stat = "03436636 00005be9 00000051 00000000\n030ae0ce 0000555c 00000053 00000000\n";
        assert_eq!(dropped_in(stat).unwrap(), 0x5be9 + 0x555c);
        assert!(dropped_in("03436636\n").is_err());
    }
}
