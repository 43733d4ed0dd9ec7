// SPDX-License-Identifier: Apache-2.0
//! Errors of clusterctl say what to do.

use anyhow::{Result, ensure};
use cluster_e2e::{World, note};
use cluster_harness::client::Vm;

pub(crate) fn errors_say_what_to_do(world: &mut World) -> Result<()> {
    let cluster = world.formed()?;
    let vm = cluster.vm(1);

    let name = &cluster.members[&2].name;
    let shown = vm.sh(&format!("clusterctl node {name}"))?;
    ensure!(
        shown.contains(&cluster.members[&2].address),
        "`clusterctl node {name}` shows no address: {shown}"
    );
    fails(vm, "clusterctl node no-such-node", &["no-such-node", "clusterctl nodes"])?;
    fails(vm, "clusterctl nodes --jsn", &["--jsn", "--json"])?;
    fails(vm, "clusterctl stats", &["status"])?;

    vm.sh("systemctl stop cluster-agent")?;
    fails(vm, "clusterctl nodes", &["agent", "systemctl start cluster-agent"])?;
    fails(vm, "clusterctl status", &["agent", "systemctl start cluster-agent"])?;
    vm.sh("systemctl start cluster-agent")?;
    cluster_e2e::wait_all_up(vm, 3)?;
    note("the agent, started again, knows all three");
    Ok(())
}

/// The command fails, and standard error contains all of `hints`.
fn fails(vm: Vm<'_>, line: &str, hints: &[&str]) -> Result<()> {
    let output = vm.try_sh(line)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status != 0, "`{line}` succeeded: {}", output.text());
    for hint in hints {
        ensure!(said.contains(hint), "`{line}` does not mention `{hint}`: {said}");
    }
    println!("$ {line}  (status {})\n{said}", output.status);
    Ok(())
}
