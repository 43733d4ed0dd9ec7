// SPDX-License-Identifier: Apache-2.0
//! Dead clock batteries: WireGuard refuses handshakes that look older than the last one, and there is no time server.

use anyhow::{Context, Result, ensure};
use cluster_e2e::{Formed, World, note, rebuild, wait_all_up};
use cluster_harness::client::Vm;

/// What a hardware clock without a battery says.
const DEAD: &str = "1970-01-01T00:00:00";
/// Between two looks at clocks, in seconds, on a slow machine.
const BOOT: u64 = 60;
/// The time is saved once a minute; so much may be lost when all clocks die at once, in seconds.
const LOST: u64 = 70;

pub(crate) fn dead_clocks_keep_nobody_out(world: &mut World) -> Result<()> {
    let cluster = world.formed()?;
    // The last handshakes are of now, and now is what everybody must be beyond.
    let before = time_of(cluster.vm(1))?;
    restart(cluster, &[3])?;
    let clock = time_of(cluster.vm(3))?;
    ensure!(clock >= before, "VM 3 woke up with a dead clock and shows {clock}, before that it was {before}");
    let others = time_of(cluster.vm(1))?;
    ensure!(clock.abs_diff(others) < BOOT, "VM 3 shows {clock}, VM 1 {others}");
    note("one with its clock in 1970 is back in the mesh, with the time of the others");

    let before = time_of(cluster.vm(1))?;
    restart(cluster, &[1, 2, 3])?;
    for vm in cluster.vms() {
        let clock = time_of(vm)?;
        ensure!(clock + LOST > before, "VM {} shows {clock}, before the cut it was {before}", vm.number());
    }
    note("all three with their clocks in 1970 are the same cluster, with their tunnels");
    for vm in cluster.vms() {
        vm.kill()?;
        rebuild(cluster, vm.number(), |shape| shape.rtc = None)?;
    }
    Ok(())
}

/// Cuts the power of these VMs and starts them with a dead clock; then all members must be up and reach each other.
fn restart(cluster: &Formed, vms: &[u32]) -> Result<()> {
    for vm in vms {
        cluster.vm(*vm).kill()?;
        rebuild(cluster, *vm, |shape| shape.rtc = Some(DEAD.to_owned()))?;
    }
    for vm in vms {
        cluster.vm(*vm).start()?;
    }
    for vm in vms {
        cluster.vm(*vm).wait_boot()?;
        let kernel =
            cluster.vm(*vm).sh("journalctl -b -k -o cat --no-pager | grep -i 'setting system clock to'")?;
        // PC firmware counts years in two digits and takes 70 for 2070; systemd then falls back to the age of the image.
        ensure!(
            kernel.contains(" 1970-01-01") || kernel.contains(" 2070-01-01"),
            "the kernel of VM {vm} did not start with a dead clock: {kernel}"
        );
    }
    for vm in cluster.vms() {
        let own = wait_all_up(vm, 3)?;
        let known = &cluster.members[&vm.number()];
        ensure!((&own.id, &own.address) == (&known.id, &known.address), "{known:?} came back as {own:?}");
    }
    for vm in cluster.vms() {
        for other in
            cluster.members.values().filter(|other| other.address != cluster.members[&vm.number()].address)
        {
            // One a second until one is answered: the other may still use a session that this one forgot.
            vm.sh(&format!("ping -c 1 -w 60 {}", other.address))
                .with_context(|| format!("VM {} does not reach {}", vm.number(), other.name))?;
        }
    }
    Ok(())
}

/// Seconds since 1970 on a VM's clock.
fn time_of(vm: Vm<'_>) -> Result<u64> {
    Ok(vm.sh("date +%s")?.trim().parse()?)
}
