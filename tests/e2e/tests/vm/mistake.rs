// SPDX-License-Identifier: Apache-2.0
//! A cluster.toml with a mistake: the node boots and says where the mistake is. And its partition, when it comes late: both are about one node alone.

use anyhow::{Result, ensure};
use cluster_e2e::{World, note};
use cluster_harness::client::Vm;
use cluster_harness::cluster::{Provisioning, new_cluster_toml};

/// The config partition goes and comes back, as on a stick with a bad contact. Nothing waits for it any more.
const PARTITION_COMES_BACK: &str = "
    systemctl stop run-clusteros-config.mount
    node=$(readlink -f /dev/disk/cluster-os/config)
    udevadm trigger --settle --action=remove $node
    [[ ! -e /dev/disk/cluster-os/config ]] && ! mountpoint -q /run/clusteros/config || exit 1
    udevadm trigger --settle --action=add $node
    until mountpoint -q /run/clusteros/config; do sleep 0.1; done";

/// The first sector of its FAT is gone, and udev sees the partition again.
const PARTITION_IS_DAMAGED: &str = "
    systemctl stop run-clusteros-config.mount
    node=$(readlink -f /dev/disk/cluster-os/config)
    udevadm trigger --settle --action=remove $node
    dd if=/dev/zero of=$node bs=512 count=1 conv=notrunc,fsync status=none
    udevadm trigger --settle --action=add $node
    until clusterctl status | grep -q 'CLUSTER-OS partition:'; do sleep 0.1; done";

pub(crate) fn a_wrong_file_never_bricks_a_node(world: &mut World) -> Result<()> {
    // Line 4 is the join key.
    let right = new_cluster_toml("lighthouse-e2e")?;
    let text = right.replace("join_key = \"cos1-", "join_key = \"cos1-7");
    ensure!(text != right, "there is no join key in {right}");
    let node = world.alone(&Provisioning::File { name: "with a mistake".to_owned(), text })?;
    node.vm().wait_boot()?;
    node.vm().wait_console("line 4")?;
    let console = node.vm().console()?;
    let status = node.vm().sh("clusterctl status")?;
    for (place, shown) in [("console", &console), ("clusterctl status", &status)] {
        for needed in ["cluster.toml", "line 4", "join"] {
            ensure!(shown.contains(needed), "the {place} does not mention `{needed}`: {shown}");
        }
    }
    let problems = node.vm().cluster_status()?["problems"].clone();
    let fix = problems[0]["fix"].as_str().unwrap_or_default();
    ensure!(!fix.is_empty() && console.contains(fix), "the console does not say the fix `{fix}`: {console}");
    println!("{status}");
    note("the node runs; console and status name line and fix");

    mounts_what_comes_late(node.vm())?;
    tells_what_cannot_be_mounted(node.vm())
}

fn mounts_what_comes_late(vm: Vm<'_>) -> Result<()> {
    vm.sh(PARTITION_COMES_BACK)?;
    let files = vm.sh("ls /run/clusteros/config")?;
    ensure!(files.contains("cluster.toml"), "the config partition that came back holds: {files}");
    note("a config partition that comes late is mounted by itself");
    Ok(())
}

fn tells_what_cannot_be_mounted(vm: Vm<'_>) -> Result<()> {
    vm.sh(PARTITION_IS_DAMAGED)?;
    let status = vm.sh("clusterctl status")?;
    for needed in ["cannot be read from it", "format the partition as FAT"] {
        ensure!(status.contains(needed), "clusterctl status does not mention `{needed}`: {status}");
    }
    ensure!(
        !status.contains("This node has no cluster.toml"),
        "unreadable is not the same as missing: {status}"
    );
    note("a config partition that cannot be read is a problem of its own");
    Ok(())
}
