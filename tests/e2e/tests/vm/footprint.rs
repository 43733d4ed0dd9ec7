// SPDX-License-Identifier: Apache-2.0
//! What the agent costs a node when nothing happens. Goals are in the issue that asked for it; docs/performance.md has figures.

use anyhow::{Result, bail, ensure};
use cluster_e2e::{World, note};

/// Seconds of a formed cluster that are measured.
const WINDOW: u64 = 60;
/// Largest proportional set size of an agent with two peers.
const PSS_LIMIT_KIB: u64 = 12 * 1024;

pub(crate) fn the_agent_is_small(world: &mut World) -> Result<()> {
    let vm = world.formed()?.vm(1);
    let figures = vm.sh(&format!(
        "pid=$(systemctl show -P MainPID cluster-agent); ticks() {{ awk '{{ print $14 + $15 }}' /proc/$pid/stat; }}; \
         before=$(ticks); sleep {WINDOW}; echo $(($(ticks) - before)) $(getconf CLK_TCK) \
         $(awk '/^Pss:/ {{ print $2 }}' /proc/$pid/smaps_rollup)"
    ))?;
    let numbers: Vec<u64> = figures.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [ticks, per_second, pss] = numbers[..] else { bail!("odd figures: {figures}") };
    let cpu = ticks as f64 / per_second as f64 / WINDOW as f64 * 100.0;
    note(&format!("agent with two peers: {pss} KiB PSS, {cpu:.2} % of one emulated CPU over {WINDOW} s"));
    ensure!(pss <= PSS_LIMIT_KIB, "the agent takes {pss} KiB, more than {PSS_LIMIT_KIB}");
    Ok(())
}
