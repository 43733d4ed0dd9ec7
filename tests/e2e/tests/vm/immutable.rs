// SPDX-License-Identifier: Apache-2.0
//! The system is what was built: nothing but /var persists, and what was changed on the disk cannot be read.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use cluster_e2e::{Alone, World, note};
use cluster_harness::client::{Seen, Vm};
use cluster_harness::cluster::{Provisioning, new_cluster_toml};
use cluster_harness::image::run;

/// What must be the same at every boot of a node.
const SAME: &str = "cat /etc/machine-id; sha256sum /var/lib/clusteros/ssh/ssh_host_*_key; clusterctl identity --json | tr -d ' \\n'";

/// The public key of RFC 8032, 7.1, test 1. A node runs sshd, and has host keys, once a key may log in.
const SSH_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea";

pub(crate) fn only_var_persists(world: &mut World) -> Result<()> {
    let text = new_cluster_toml("lighthouse-e2e")? + &format!("[ssh]\nauthorized_keys = [\"{SSH_KEY}\"]\n");
    let node = world.alone(&Provisioning::File { name: "with an SSH key".to_owned(), text })?;
    ready(node)?;
    for path in ["/usr/bin/marker", "/marker", "/usr/lib/systemd/system/marker.service"] {
        let output = node.vm().try_sh(&format!("touch {path}"))?;
        ensure!(output.status != 0, "root can write {path}");
        ensure!(output.all().contains("Read-only file system"), "{path}: {}", output.all());
    }
    note("root cannot write / and /usr");
    node.vm().sh("touch /etc/marker /var/lib/marker && sync")?;
    let first = same(node.vm())?;
    let machine_id = first.lines().next().unwrap_or_default().to_owned();
    ensure!(machine_id.len() == 32, "odd machine id: {first}");
    ensure!(first.contains("ssh_host_ed25519_key"), "sshd has no host key: {first}");

    reboot(node)?;
    node.vm().sh("test ! -e /etc/marker").context("a file put in /etc is there after a reboot")?;
    node.vm().sh("test -e /var/lib/marker").context("a file put in /var is gone after a reboot")?;
    note("a file put in /etc is gone after a reboot, one in /var is there");
    ensure!(same(node.vm())? == first, "after a reboot: {}\nbefore: {first}", same(node.vm())?);

    node.vm().stop()?;
    node.rebuild(|shape| shape.uuid = Some("5f0e7a55-8b8e-4b0c-9d0e-3f3c2b1a0908".to_owned()))?;
    node.vm().start()?;
    ready(node)?;
    ensure!(same(node.vm())? == first, "with a firmware UUID: {}\nwithout: {first}", same(node.vm())?);
    note(
        "machine id, host keys and identity are the same over three boots, the last with a UUID from firmware",
    );

    let boots = node.vm().sh("journalctl --list-boots --no-pager --quiet | grep -c '^ *-*[0-9]'")?;
    ensure!(boots.trim() == "3", "the journal has {} boots", boots.trim());
    let journals = node.vm().sh("ls /var/log/journal")?;
    ensure!(journals.trim() == machine_id, "journals of {journals}, machine id {machine_id}");
    note("one journal has all three boots");
    Ok(())
}

pub(crate) fn a_flipped_byte_is_a_read_error(world: &mut World) -> Result<()> {
    let node = world.alone(&Provisioning::Cluster)?;
    node.vm().wait_boot()?;
    // A module that no VM needs; xz has packed it, so erofs keeps its blocks as they are.
    let file = node
        .vm()
        .sh("find /usr/lib/modules -name '*.ko.xz' -size +200k -printf '%s %p\\n' | sort -n | tail -n 1 | cut -d ' ' -f 2")?;
    let file = file.trim();
    let healthy = node.vm().sh(&format!("sha256sum {file}"))?;
    let block: u64 = node
        .vm()
        .sh(&format!(
            "filefrag -e -b4096 {file} | awk '$1 == \"0:\" {{ sub(/\\.\\..*/, \"\", $4); print $4 }}'"
        ))?
        .trim()
        .parse()
        .with_context(|| format!("filefrag does not tell where {file} is"))?;
    let start: u64 = node
        .vm()
        .sh("cat /sys/class/block/$(basename $(realpath /dev/disk/cluster-os/root))/start")?
        .trim()
        .parse()?;
    node.vm().stop()?;

    let byte = start * 512 + block * 4096 + 100;
    let disk = node.dir().vm(1).disk();
    flip(&disk, byte)?;
    node.vm().start()?;
    node.vm().wait_boot()?;
    let read = node.vm().try_sh(&format!("sha256sum {file}"))?;
    ensure!(read.status != 0, "{file} could be read: {} (before: {healthy})", read.text());
    ensure!(read.all().contains("Input/output error"), "not a read error: {}", read.all());
    note(&format!("one flipped byte in {file}: {}", read.all().trim()));

    node.vm().stop()?;
    flip(&disk, byte)?;
    node.vm().start()?;
    node.vm().wait_boot()?;
    ensure!(node.vm().sh(&format!("sha256sum {file}"))? == healthy, "flipped back, it is not what it was");
    note("flipped back, it reads as before");
    Ok(())
}

fn same(vm: Vm<'_>) -> Result<String> {
    vm.sh(SAME)
}

fn reboot(node: &Alone) -> Result<()> {
    let resets = node.vm().status()?.resets;
    // The command may not live to see its own end.
    node.vm().sh("systemctl reboot")?;
    node.wait_for("VM 1 to reboot", cluster_harness::timeouts::SHUTDOWN, || {
        let now = node.vm().status()?.resets;
        Ok(if now > resets { Seen::Found(()) } else { Seen::NotYet("still going down".to_owned()) })
    })?;
    ready(node)
}

/// Waits until the node is a member and its sshd runs.
fn ready(node: &Alone) -> Result<()> {
    node.vm().wait_boot()?;
    cluster_e2e::wait_all_up(node.vm(), 1)?;
    node.wait_for("sshd to run", cluster_harness::timeouts::COMMAND, || {
        let state = node.vm().try_sh("systemctl is-active ssh")?.text();
        Ok(if state.trim() == "active" { Seen::Found(()) } else { Seen::NotYet(state) })
    })
}

/// Flips the lowest bit of the byte at `offset` of a disk whose VM is off.
fn flip(disk: &std::path::Path, offset: u64) -> Result<()> {
    let read = Command::new("qemu-io")
        .arg("-f")
        .arg("qcow2")
        .arg("-c")
        .arg(format!("read -v {offset} 1"))
        .arg(disk)
        .output()?;
    let text = String::from_utf8_lossy(&read.stdout).into_owned();
    let byte = text
        .split_whitespace()
        .nth(1)
        .and_then(|hex| u8::from_str_radix(hex, 16).ok())
        .with_context(|| format!("qemu-io printed: {text}"))?;
    run(Command::new("qemu-io")
        .arg("-f")
        .arg("qcow2")
        .arg("-c")
        .arg(format!("write -P {} {offset} 1", byte ^ 1))
        .arg(disk))
}
