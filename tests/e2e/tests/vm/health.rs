// SPDX-License-Identifier: Apache-2.0
//! A node that has booted is well, and shows what a maintainer wants to see of it.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use cluster_e2e::{TooSlow, World, note};

/// The initrd holds the modules that reach a disk; for any other device udev logs the file that it did not find. The
/// root loads it a moment later.
fn lacks_module_in_initrd(line: &str) -> bool {
    line.contains("(udev-worker)") && line.contains("/lib/modules/") && line.contains("error=No such file")
}

/// The image gives services 5 min to start, udev gives a device 3 min. A cluster that took longer than this to form,
/// instead of about two minutes without KVM, ran where these are no signs of a fault (it was seen at 1200 s).
const OWN_LIMITS_HOLD: Duration = Duration::from_secs(600);

/// Prints what the kernel has instead of what sysctl.d says, and how many values were compared; `*` stands for every interface.
const SETTINGS: &str = r"
set -euo pipefail
count=0
while IFS='=' read -r name wanted; do
    [[ $name == [a-z]* ]] || continue
    for file in /proc/sys/${name//./\/}; do
        is=$(tr '\t' ' ' <$file)
        [[ $is == $wanted ]] || echo $file is $is, not $wanted
        count=$((count + 1))
    done
done < <(cat /usr/lib/sysctl.d/50-cluster-os.conf /usr/lib/sysctl.d/51-cluster-os-hardening.conf)
echo $count compared";

pub(crate) fn nothing_has_failed(world: &mut World) -> Result<()> {
    let cluster = world.formed()?;
    if cluster.took > OWN_LIMITS_HOLD {
        let took = cluster.took.as_secs();
        bail!(TooSlow(format!(
            "forming took {took} s: the time limits of units in the image are too short here"
        )));
    }
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

    for vm in cluster.vms() {
        let journal = vm.sh("journalctl -b -p err --no-pager --quiet")?;
        let errors: Vec<_> = journal.lines().filter(|line| !lacks_module_in_initrd(line)).collect();
        ensure!(errors.is_empty(), "VM {} has errors in its journal:\n{}", vm.number(), errors.join("\n"));
    }
    note("no error in a journal");

    let vm = cluster.vm(1);
    let settings = vm.sh(SETTINGS)?;
    let compared = settings.trim().strip_suffix(" compared").and_then(|count| count.parse::<u32>().ok());
    ensure!(compared.is_some_and(|count| count > 40), "not as sysctl.d says: {settings}");
    note("the kernel has the settings of sysctl.d");

    let journal = vm.sh("journalctl -b -u qemu-guest-agent --no-pager -o cat")?;
    let chatter = journal.lines().filter(|line| line.contains("called")).count();
    ensure!(chatter == 0, "the guest agent wrote {chatter} lines for what it was asked");
    note("what the hypervisor asks of the guest agent does not fill the journal");

    let shadow = vm.sh("getent shadow")?;
    let usable = accounts_with_a_password(&shadow)?;
    ensure!(usable.is_empty(), "accounts with a usable password: {usable:?}");
    let planted = format!("{shadow}guest::20000::::::\n");
    ensure!(accounts_with_a_password(&planted)? == ["guest"], "a planted account is not found");
    note("no account has a password");

    for (line, shown) in [
        ("systemd-analyze", usize::MAX),
        ("systemd-analyze blame --no-pager", 12),
        ("systemd-analyze security --no-pager cluster-agent.service | tail -n 1", usize::MAX),
        ("bootctl list --no-pager", usize::MAX),
        ("ls -l /efi/EFI/Linux", usize::MAX),
        ("findmnt -o TARGET,SOURCE,FSTYPE,OPTIONS /", usize::MAX),
        ("df -h /var", usize::MAX),
        ("free -m", 2),
    ] {
        let text = vm.sh(line)?;
        println!("$ {line}");
        text.lines().take(shown).for_each(|line| println!("{line}"));
    }
    Ok(())
}

/// Accounts of shadow(5) whose password is neither locked nor impossible; an error when there is no account at all.
fn accounts_with_a_password(shadow: &str) -> Result<Vec<&str>> {
    let accounts: Vec<(&str, &str)> = shadow
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?, fields.next()?))
        })
        .collect();
    ensure!(accounts.iter().any(|(name, _)| *name == "root"), "no account named root in: {shadow}");
    Ok(accounts.into_iter().filter(|(_, hash)| !hash.starts_with(['!', '*'])).map(|(name, _)| name).collect())
}
