// SPDX-License-Identifier: Apache-2.0
//! A node that has booted is well, and shows what a maintainer wants to see of it.

use anyhow::{Result, ensure};
use cluster_e2e::{World, note};

pub(crate) fn nothing_has_failed(world: &mut World) -> Result<()> {
    let cluster = world.formed()?;
    for vm in cluster.vms() {
        let state = vm.try_sh("systemctl is-system-running --wait")?.text();
        let failed = vm.sh("systemctl --failed --plain --no-legend --no-pager")?;
        ensure!(failed.trim().is_empty(), "VM {} has failed units: {failed}", vm.number());
        let restarting = vm.sh("systemctl list-units --state=auto-restart --plain --no-legend --no-pager")?;
        ensure!(
            restarting.trim().is_empty(),
            "VM {} has units that fail again and again: {restarting}",
            vm.number()
        );
        ensure!(state.trim() == "running", "VM {} is `{}`", vm.number(), state.trim());
    }
    note("all three run without a unit that failed or fails again and again");

    let vm = cluster.vm(1);
    let errors = vm.sh("journalctl -b -p err --no-pager --quiet")?;
    note(&format!("errors in the journal of VM 1: {}", if errors.is_empty() { "none\n" } else { &errors }));
    let keys = vm.try_sh("getent shadow | awk -F: '$2 !~ /^[!*]/ { print $1 }'")?.text();
    ensure!(keys.trim().is_empty(), "accounts with a usable password: {keys}");
    note("no account has a password");

    for line in [
        "systemd-analyze",
        "systemd-analyze blame --no-pager | head -n 12",
        "systemd-analyze security --no-pager cluster-agent.service | tail -n 1",
        "bootctl list --no-pager",
        "ls -l /efi/EFI/Linux",
        "findmnt -o TARGET,SOURCE,FSTYPE,OPTIONS /",
        "df -h /var | tail -n 1",
        "free -m | head -n 2",
    ] {
        let output = vm.try_sh(line)?;
        ensure!(output.status == 0, "`{line}` ended with status {}: {}", output.status, output.all());
        println!("$ {line}\n{}", output.text());
    }
    Ok(())
}
