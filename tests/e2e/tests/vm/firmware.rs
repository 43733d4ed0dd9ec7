// SPDX-License-Identifier: Apache-2.0
//! What firmware, hypervisor and ESP offer besides the image is not taken; and the network comes up behind a packet filter only.

use anyhow::{Result, ensure};
use cluster_e2e::{Alone, World, note, wait_all_up};
use cluster_harness::client::{Seen, Vm};
use cluster_harness::cluster::Provisioning;
use cluster_harness::state::Shape;
use cluster_harness::timeouts;

/// Credentials that systemd would make root's files and units of (systemd.system-credentials(7)).
const CREDENTIALS: &[&str] = &[
    "io.systemd.credential:tmpfiles.extra=f /run/taken-by-tmpfiles 0644 root root -",
    "io.systemd.credential.binary:systemd.extra-unit.taken.service=W1NlcnZpY2VdClR5cGU9b25lc2hvdApFeGVjU3RhcnQ9L2Jpbi90b3VjaCAvcnVuL3Rha2VuLWJ5LXVuaXQK",
    "io.systemd.credential.binary:systemd.unit-dropin.multi-user.target=W1VuaXRdCldhbnRzPXRha2VuLnNlcnZpY2UK",
    "io.systemd.credential:ssh.authorized_keys.root=ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea",
];

pub(crate) fn firmware_and_esp_are_not_obeyed(world: &mut World) -> Result<()> {
    let oem_strings = CREDENTIALS.iter().map(|&text| text.to_owned()).collect();
    let node = world.machine(&Provisioning::Cluster, Shape { oem_strings, ..Shape::default() })?;
    let vm = node.vm();
    vm.start()?;
    vm.wait_boot()?;
    wait_all_up(vm, 1)?;
    let offered =
        vm.sh("cat /sys/firmware/dmi/entries/11-*/raw | tr -d '\\0' | grep -ac io.systemd.credential")?;
    ensure!(offered.trim() != "0", "the VM has no SMBIOS strings: nothing was refused");
    vm.sh("! ls /run/taken-* /run/systemd/system/taken.service /root/.ssh/authorized_keys 2>/dev/null")?;
    let imported = vm.sh("ls -A /run/credentials/@system /run/credentials/@initrd 2>/dev/null || true")?;
    ensure!(imported.trim().is_empty(), "credentials were imported: {imported}");
    note(&format!("{} SMBIOS credentials are there, none was taken", CREDENTIALS.len()));

    the_esp_is_closed(node)?;
    no_filter_no_network(vm)
}

/// Mounted while somebody looks, read-only; a boot that went well is still marked there.
fn the_esp_is_closed(node: &Alone) -> Result<()> {
    let vm = node.vm();
    let entry = vm.sh("cd /efi/EFI/Linux && ls")?.trim().to_owned();
    let counted = entry.replace(".efi", "+3-0.efi");
    let written = vm.try_sh(&format!("mv /efi/EFI/Linux/{entry} /efi/EFI/Linux/{counted}"))?;
    ensure!(written.status != 0, "root wrote to /efi");
    node.wait_for("/efi to be unmounted", timeouts::BOOT, || {
        // findmnt(8) would look at the folder, and so mount it.
        let mounted = vm.sh("cat /proc/mounts")?;
        ensure!(mounted.contains(" /efi autofs "), "/efi is not mounted on access: {mounted}");
        Ok(if mounted.contains(" /efi vfat ") { Seen::NotYet(mounted) } else { Seen::Found(()) })
    })?;
    note("the ESP is mounted while it is looked at, read-only");

    vm.sh(&format!(
        "ls /efi && mount -o remount,rw /efi && mv /efi/EFI/Linux/{entry} /efi/EFI/Linux/{counted} && sync && grep -x 'editor no' /efi/loader/loader.conf"
    ))?;
    vm.stop()?;
    vm.start()?;
    vm.wait_boot()?;
    wait_all_up(vm, 1)?;
    node.wait_for("the boot to be marked good", timeouts::COMMAND, || {
        let now = vm.sh("ls /efi/EFI/Linux; systemctl is-active systemd-bless-boot.service || true")?;
        Ok(if now.trim() == format!("{entry}\nactive") { Seen::Found(()) } else { Seen::NotYet(now) })
    })?;
    let options = vm.sh("ls /efi >/dev/null; cat /proc/mounts")?;
    ensure!(options.contains(" /efi vfat ro,"), "after the boot was marked good /efi is {options}");
    note("a counted boot entry is marked good, and the ESP is read-only again");
    Ok(())
}

fn no_filter_no_network(vm: Vm<'_>) -> Result<()> {
    vm.sh("echo 'table inet cluster_os { oops' >/etc/nftables.conf")?;
    ensure!(vm.try_sh("systemctl restart nftables")?.status != 0, "a broken rule set was loaded");
    ensure!(
        vm.sh("nft list ruleset")?.contains("dport 41410"),
        "a rule set that does not load took the old one away"
    );
    vm.sh("systemctl stop nftables; nft list chain inet cluster_os input | grep -q 'policy drop'")?;
    note("a rule set that does not load, and a stop, leave the one that is there");

    vm.sh("nft flush ruleset; systemctl stop systemd-networkd systemd-networkd.socket")?;
    ensure!(vm.try_sh("systemctl start nftables")?.status != 0, "a broken rule set was loaded");
    let closed = vm.sh("nft list chain inet cluster_os input")?;
    ensure!(closed.contains("policy drop") && !closed.contains("dport"), "after a failed load: {closed}");
    vm.sh("systemctl start systemd-networkd")?;
    note("where there was none before, everything is closed");

    vm.sh("systemctl stop systemd-networkd systemd-networkd.socket; nft flush ruleset")?;
    ensure!(
        vm.try_sh("systemctl start systemd-networkd")?.status != 0,
        "the network came up without a packet filter"
    );
    let why = vm.sh("journalctl -b -u systemd-networkd -o cat -n 30 --no-pager")?;
    ensure!(why.contains("the network stays down"), "it does not say why: {why}");
    note("without any rule set the network stays down, and says why");
    Ok(())
}
