// SPDX-License-Identifier: Apache-2.0
//! A node that runs from a stick moves to a built-in disk: the same node, in the same cluster, and never two of it.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cluster_e2e::{Alone, World, note};
use cluster_harness::client::{Seen, Vm};
use cluster_harness::cluster::Provisioning;
use cluster_harness::image::run;
use cluster_harness::qemu::SECOND_DISK;
use cluster_harness::state::{Bus, DISK_BYTES, Second, Shape};
use cluster_harness::timeouts;
use serde_json::{Value, json};

use crate::update::{identity, is_good, long, ready, status};

const MIB: u64 = 1 << 20;
/// More than what is written over at first, less than the root image.
const IN_THE_MIDDLE: u64 = 100 * MIB;
const NVME: &str = "/dev/nvme0n1";
const INSTALL: &str = "cluster-update install --disk /dev/nvme0n1";

pub(crate) fn to_nvme(world: &mut World) -> Result<()> {
    let node = beside_a_disk_with_data(world)?;
    let vm = node.vm();
    vm.start()?;
    ready(node)?;
    vm.sh("echo kept >/var/lib/kept && sync")?;
    let before = identity(vm)?;
    let cluster = vm.cluster_status()?["cluster_id"].clone();
    let version = status(vm)?["version"].as_str().context("a status without a version")?.to_owned();

    refused(vm)?;
    cut_in_the_middle(node)?;
    ready(node)?;
    ensure!(identity(vm)? == before, "after the power cut: {}\nbefore: {before}", identity(vm)?);
    note("the power was cut while the disk was written: the same node runs from the stick");

    // Nothing is on it any more: nobody needs to say that it may be erased.
    let said = long(vm, &format!("{INSTALL} --yes"))?;
    ensure!(said.status == 0 && said.all().contains("this node has moved to"), "install: {}", said.all());
    ensure!(said.all().contains("copying /var: "), "install shows no progress: {}", said.all());
    left_behind(vm)?;
    vm.stop()?;

    pull_the_stick(node)?;
    vm.start()?;
    is_good(node, &version, "a")?;
    ensure!(identity(vm)? == before, "from the new disk: {}\nbefore: {before}", identity(vm)?);
    ensure!(vm.cluster_status()?["cluster_id"] == cluster, "the node is in another cluster");
    let now = status(vm)?;
    ensure!(now["other"]["state"] == "empty" && now["problems"] == json!([]), "from the new disk: {now}");
    let var = vm.sh("findmnt -nvo SOURCE /var")?;
    ensure!(var.trim().starts_with(NVME), "/var is on {var}");
    note(
        "without the stick it runs from the NVMe disk: the same node, in the same cluster, with all of /var",
    );
    vm.sh("echo later >/var/lib/later && sync")?;
    vm.stop()?;

    plug_the_stick_in(node)?;
    vm.start()?;
    vm.wait_boot()?;
    vm.wait_console("this node was installed to")?;
    left_behind(vm)?;
    vm.stop()?;
    note("from the stick, with both plugged in, it says where it went, and is no node");

    boot_the_disk_first(node)?;
    vm.start()?;
    is_good(node, &version, "a")?;
    ensure!(vm.sh("cat /var/lib/later")? == "later\n", "the disk went back in time");
    note("from the disk, with both plugged in, it is the node");
    Ok(())
}

/// A node on a stick, still switched off, in a machine with an NVMe disk on which somebody has data.
fn beside_a_disk_with_data(world: &mut World) -> Result<&Alone> {
    let node = world.machine(&Provisioning::Cluster, Shape { bus: Bus::Usb, ..Shape::default() })?;
    let data = node.dir().root().join("data.raw");
    fs::File::create(&data)?.set_len(64 * MIB)?;
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-L", "holiday"]).arg(&data))?;
    node.rebuild(|shape| {
        shape.second = Some(Second { bus: Bus::Nvme, bytes: DISK_BYTES, base: Some(data), boots: false });
    })?;
    Ok(node)
}

/// Nothing is written where somebody may miss it, and each refusal says why.
fn refused(vm: Vm<'_>) -> Result<()> {
    let own = vm.sh("lsblk -dnro PATH,TRAN | awk '$2 == \"usb\" { print $1 }'")?;
    let own = own.trim();
    for (line, why) in [
        (format!("{INSTALL} --yes"), "has ext4 `holiday`"),
        (INSTALL.to_owned() + " --erase", "nobody can be asked here"),
        (format!("cluster-update install --disk {own} --yes --erase"), "the disk that this node runs from"),
        (format!("cluster-update install --disk {own}4 --yes --erase"), "is a partition"),
        ("cluster-update install --disk /dev/nvme7n1 --yes".to_owned(), "is not a disk that this node sees"),
        ("runuser -u nobody -- cluster-update install --list".to_owned(), "only root may do this"),
    ] {
        let refused = vm.try_sh(&line)?;
        ensure!(refused.status != 0 && refused.all().contains(why), "`{line}`: {}", refused.all());
    }
    vm.sh(&format!("mkdir -p /run/mine && mount -o ro {NVME} /run/mine"))?;
    let mounted = vm.try_sh(&format!("{INSTALL} --yes --erase"))?;
    ensure!(mounted.status == 1 && mounted.all().contains("is mounted at /run/mine"), "{}", mounted.all());
    vm.sh("umount /run/mine")?;
    let list = vm.sh("cluster-update install --list")?;
    ensure!(list.contains("ext4 `holiday`") && list.contains("this node runs from it"), "the list: {list}");
    let plan = vm.sh(&format!("{INSTALL} --erase --dry-run --json"))?;
    let plan: Value = serde_json::from_str(&plan).with_context(|| format!("the plan: {plan}"))?;
    ensure!(plan["plan"]["partitions"].as_array().is_some_and(|all| all.len() == 7), "the plan: {plan}");
    ensure!(written(vm)? == 0, "refused, and {} bytes were written", written(vm)?);
    note(
        "a disk with a file system is refused by name, as are the stick itself, a partition and a mounted disk",
    );
    Ok(())
}

fn cut_in_the_middle(node: &Alone) -> Result<()> {
    let vm = node.vm();
    // On a fast machine all would be done before the power is gone.
    let limit = json!({"device": SECOND_DISK, "bps": 0, "bps_rd": 0, "bps_wr": 16 * MIB, "iops": 0, "iops_rd": 0, "iops_wr": 0});
    vm.qmp("block_set_io_throttle", limit)?;
    let install = vm.spawn(&["bash", "-c", &format!("{INSTALL} --erase --yes")], None)?;
    node.wait_for("half of the root image to be written", timeouts::UPDATE, || {
        if let Some(ended) = install.ended()? {
            anyhow::bail!("it ended before the power was cut: {}", ended.all());
        }
        let bytes = written(vm)?;
        let seen = format!("{} MiB", bytes / MIB);
        Ok(if bytes > IN_THE_MIDDLE { Seen::Found(()) } else { Seen::NotYet(seen) })
    })?;
    // Two at once would write over each other.
    let second = vm.try_sh(&format!("{INSTALL} --erase --yes"))?;
    ensure!(second.status == 1 && second.all().contains("wait until"), "a second one: {}", second.all());
    let stage = vm.try_sh("cluster-update rollback")?;
    ensure!(stage.all().contains("being installed to another disk"), "a rollback meanwhile: {}", stage.all());
    vm.kill()?;
    vm.start().map(drop)
}

/// The system of the stick runs, and no node.
fn left_behind(vm: Vm<'_>) -> Result<()> {
    let agent = vm.try_sh("systemctl is-active cluster-agent")?;
    ensure!(agent.text().trim() == "inactive", "the agent is {}", agent.all());
    vm.sh("systemctl start cluster-agent")?;
    let agent = vm.try_sh("systemctl is-active cluster-agent")?;
    ensure!(agent.text().trim() == "inactive", "started by hand the agent is {}", agent.all());
    let said = vm.try_sh("clusterctl status")?;
    ensure!(said.status == 3 && said.all().contains(&format!("was installed to {NVME}")), "{}", said.all());
    let said = vm.sh("cluster-update status")?;
    ensure!(said.contains("was installed to"), "the updater says {said}");
    let again = vm.try_sh(&format!("{INSTALL} --erase --yes"))?;
    ensure!(again.status == 1 && again.all().contains("was installed to"), "again: {}", again.all());
    let failed = vm.sh("systemctl --failed --no-legend --plain")?;
    ensure!(failed.trim().is_empty(), "units failed: {failed}");
    Ok(())
}

/// Bytes that the guest has written to the NVMe disk since power on.
fn written(vm: Vm<'_>) -> Result<u64> {
    let all = vm.qmp("query-blockstats", json!({}))?;
    let found = all.as_array().and_then(|drives| drives.iter().find(|entry| entry["device"] == SECOND_DISK));
    let bytes = found.and_then(|drive| drive["stats"]["wr_bytes"].as_u64());
    bytes.with_context(|| format!("QEMU has no drive `{SECOND_DISK}`: {all}"))
}

fn pull_the_stick(node: &Alone) -> Result<()> {
    let folder = node.dir().vm(1);
    fs::rename(folder.disk(), folder.root().join("stick.qcow2"))?;
    fs::rename(folder.second_disk(), folder.disk())?;
    node.rebuild(|shape| {
        shape.bus = Bus::Nvme;
        shape.second = None;
    })
}

fn plug_the_stick_in(node: &Alone) -> Result<()> {
    let folder = node.dir().vm(1);
    fs::rename(folder.disk(), folder.second_disk())?;
    fs::rename(folder.root().join("stick.qcow2"), folder.disk())?;
    node.rebuild(|shape| {
        shape.bus = Bus::Usb;
        shape.second = Some(Second { bus: Bus::Nvme, bytes: DISK_BYTES, base: None, boots: false });
    })
}

fn boot_the_disk_first(node: &Alone) -> Result<()> {
    node.rebuild(|shape| {
        if let Some(second) = &mut shape.second {
            second.boots = true;
        }
    })
}
