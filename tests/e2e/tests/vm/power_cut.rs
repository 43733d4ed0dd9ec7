// SPDX-License-Identifier: Apache-2.0
//! Power fails: one node is missed and comes back as itself; all at once come back as the cluster they were.

use anyhow::{Context, Result, ensure};
use cluster_e2e::{World, note, wait_all_up};
use cluster_harness::client::{Running, Vm};
use cluster_harness::timeouts;

pub(crate) fn one_is_missed_and_comes_back(world: &mut World) -> Result<()> {
    let cluster = world.formed()?;
    let lost = &cluster.members[&3];
    let watchers = [watch_until_down(cluster.vm(1), &lost.id)?, watch_until_down(cluster.vm(2), &lost.id)?];
    cluster.vm(3).kill()?;
    for (watcher, vm) in watchers.iter().zip(cluster.vms()) {
        let seen = watcher.wait(Some(timeouts::GOSSIP))?.text();
        let seen: Vec<&str> = seen.lines().collect();
        ensure!(
            seen == ["up", "suspect", "down"],
            "VM {} saw VM 3 as {}, not as up, then suspect, then down",
            vm.number(),
            seen.join(", ")
        );
        note(&format!("VM {} saw VM 3 {}", vm.number(), seen.join(", then ")));
    }

    cluster.vm(3).start()?;
    cluster.vm(3).wait_boot()?;
    let back = wait_all_up(cluster.vm(3), 3)?;
    ensure!((&back.id, &back.address) == (&lost.id, &lost.address), "VM 3 was {lost:?} and is {back:?}");
    for vm in [cluster.vm(1), cluster.vm(2)] {
        wait_all_up(vm, 3)?;
    }
    note("VM 3 is back with the identity and address that it had");
    // One a second until one is answered: VM 1 may still use the session of before the cut, which VM 3 forgot.
    cluster.vm(1).sh(&format!("ping -c 1 -w 60 {}", lost.address)).context("the mesh does not reach VM 3")?;
    Ok(())
}

pub(crate) fn all_come_back_as_one_cluster(world: &mut World) -> Result<()> {
    let cluster = world.formed()?;
    let before = cluster.vm(1).cluster_status()?["cluster_id"].clone();
    ensure!(before.is_string(), "VM 1 shows no cluster id");
    for vm in cluster.vms() {
        vm.kill()?;
    }
    for vm in cluster.vms() {
        vm.start()?;
    }
    for vm in cluster.vms() {
        vm.wait_boot()?;
    }
    for vm in cluster.vms() {
        let own = wait_all_up(vm, 3)?;
        let known = &cluster.members[&vm.number()];
        ensure!((&own.id, &own.address) == (&known.id, &known.address), "{known:?} came back as {own:?}");
        let after = &vm.cluster_status()?["cluster_id"];
        ensure!(*after == before, "VM {} is in cluster {after}, before it was {before}", vm.number());
    }
    note("the three are the same three, in the same cluster, without help");
    Ok(())
}

/// Prints the different states in which `vm` sees the member `id`, until it is down.
fn watch_until_down<'a>(vm: Vm<'a>, id: &str) -> Result<Running<'a>> {
    // Watched from inside: a suspicion may last less than the way to the host and back.
    let short = id.get(..8).context("odd node id")?;
    let script = format!(
        r#"last=
while [ "$last" != down ]; do
    state=$(clusterctl nodes --wide | awk '$2 == "{short}" {{ print $3 }}')
    if [ "$state" != "$last" ]; then last=$state; echo "$state"; fi
    sleep 0.2
done"#
    );
    vm.spawn(&["bash", "-c", &script], None)
}
