// SPDX-License-Identifier: Apache-2.0
//! Any disk boots, grows and serves; and where two disks carry the image, the one that was booted is the only one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cluster_e2e::{World, note};
use cluster_harness::client::{Seen, Vm};
use cluster_harness::cluster::{Provisioning, new_cluster_toml};
use cluster_harness::console::Stage;
use cluster_harness::image;
use cluster_harness::qemu::{DISK, SECOND_DISK};
use cluster_harness::state::{Bus, DISK_BYTES, Second, Shape};
use cluster_harness::timeouts;
use serde_json::json;

/// Longer than systemd waits for a device by itself (90 s), by the time the kernel needs until it does.
const SLOW: Duration = Duration::from_secs(150);
const MIB: u64 = 1 << 20;
const BIG: u64 = 64 << 30;
const SMALL: u64 = 8 << 30;
/// What is not `/var` (docs/image.md): ESP, CLUSTER-OS, two slots.
const FIXED: u64 = (1024 + 64 + 2 * (64 + 4096)) * MIB;
/// The disk of each link and of everything that is mounted, one a line.
const DISKS: &str = r#"
set -eu
disk_of() { # a folder of /sys
    local below
    if [ -e "$1/partition" ]; then
        basename "$(realpath "$1/..")"
    elif [ -n "$(ls "$1/slaves")" ]; then
        for below in "$1/slaves/"*; do disk_of "$(realpath "$below")"; done
    else
        basename "$(realpath "$1")"
    fi
}
for link in esp config root root-verity var; do
    for disk in $(disk_of "/sys/dev/block/$(stat -Lc %Hr:%Lr "/dev/disk/cluster-os/$link")"); do
        echo "$disk /dev/disk/cluster-os/$link"
    done
done
findmnt -rnvo MAJ:MIN,SOURCE | grep ' /dev/' | sort -u | while read -r number source; do
    for disk in $(disk_of "/sys/dev/block/$number"); do echo "$disk $source"; done
done
"#;

pub(crate) fn boots_from_virtio(world: &mut World) -> Result<()> {
    boots_from(world, Bus::Virtio)
}

pub(crate) fn boots_from_sata(world: &mut World) -> Result<()> {
    boots_from(world, Bus::Sata)
}

pub(crate) fn boots_from_nvme(world: &mut World) -> Result<()> {
    boots_from(world, Bus::Nvme)
}

pub(crate) fn boots_from_usb(world: &mut World) -> Result<()> {
    boots_from(world, Bus::Usb)
}

/// Firmware and Linux number its socket differently.
pub(crate) fn boots_from_usb_2(world: &mut World) -> Result<()> {
    let node = world.machine(&Provisioning::Cluster, Shape { bus: Bus::Usb2, ..Shape::default() })?;
    for boot in 1..=2 {
        node.vm().start()?;
        serves(node.vm(), DISK, Bus::Usb2, DISK_BYTES)?;
        node.vm().stop()?;
        note(&format!("boot {boot}: from a stick in a USB 2 socket"));
    }
    Ok(())
}

/// A controller may need long before its disks answer, while a copy of the image on another disk is there at once.
pub(crate) fn a_slow_disk_is_waited_for(world: &mut World) -> Result<()> {
    let copy = Some(Second { bus: Bus::Nvme, bytes: DISK_BYTES, base: None, boots: false });
    let shape = Shape { bus: Bus::Usb, second: copy, ..Shape::default() };
    let node = world.machine(&Provisioning::Cluster, shape)?;
    let vm = node.vm();
    vm.start()?;
    node.wait_for("Linux to start", timeouts::BOOT, || {
        let stage = vm.stage()?;
        Ok(if stage >= Stage::Kernel { Seen::Found(()) } else { Seen::NotYet(stage.to_string()) })
    })?;
    // From here on nothing but the initrd, which is in memory.
    limit_reads(vm, DISK, 1)?;
    let start = Instant::now();
    while start.elapsed() < SLOW {
        let console = vm.console()?;
        ensure!(!console.contains("this boot failed"), "gave up after {} s", start.elapsed().as_secs());
        ensure!(
            vm.stage()? < Stage::System,
            "booted from a disk that hardly answers: it was not slow enough"
        );
        sleep(Duration::from_secs(2));
    }
    limit_reads(vm, DISK, 0)?;
    serves(vm, DISK, Bus::Usb, DISK_BYTES)?;
    untouched_so_far(vm, SECOND_DISK)?;
    let looked = vm.sh("journalctl -b -o cat -u cluster-os-only-disk.service")?;
    ensure!(looked.contains("Finished"), "the initrd did not look for the only disk: {looked}");
    note("the initrd looked for the only disk that can be it, and did not take the copy");
    let up: f64 = vm.sh("cut -d' ' -f1 /proc/uptime")?.trim().parse()?;
    ensure!(up > SLOW.as_secs_f64(), "it has rebooted meanwhile: up for {up} s only");
    note(&format!("a disk that hardly answered for {} s was waited for", SLOW.as_secs()));
    Ok(())
}

/// What is missing is said at once, not after the time in which a disk may come, and on every console: a server's may be
/// its second serial port.
pub(crate) fn a_disk_too_small_is_named(world: &mut World) -> Result<()> {
    let shape = Shape { disk_bytes: SMALL, second_serial: true, ..Shape::default() };
    let node = world.machine(&Provisioning::None, shape)?;
    node.vm().start()?;
    let console = node.wait_for("the boot to fail", timeouts::BOOT, || {
        let console = node.vm().console()?;
        Ok(if console.contains("Rebooting in") {
            Seen::Found(console)
        } else {
            Seen::NotYet(node.vm().stage()?.to_string())
        })
    })?;
    ensure!(console.contains("systemd-repart.service"), "the console does not say what failed:\n{console}");
    let shown =
        console.lines().find(|line| line.contains("fit")).context("it does not say that it does not fit")?;
    note(&format!("{:.1} GiB: {shown}", gib(SMALL)));
    for (port, console) in [("ttyS0", console), ("ttyS1", node.vm().second_console())] {
        let shown = console.lines().find(|line| line.contains("too small"));
        let shown =
            shown.with_context(|| format!("{port} does not say that the disk is too small:\n{console}"))?;
        ensure!(shown.contains("8.0 GiB") && shown.contains("14.4 GiB"), "{port} lacks a size: {shown}");
        note(&format!("{port}: {shown}"));
    }
    Ok(())
}

/// Reads and writes a second of a drive; 0 is no limit.
fn limit_reads(vm: Vm<'_>, drive: &str, iops: u64) -> Result<()> {
    let limit = json!({"device": drive, "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": iops, "iops_rd": 0, "iops_wr": 0});
    vm.qmp("block_set_io_throttle", limit).map(drop)
}

fn boots_from(world: &mut World, bus: Bus) -> Result<()> {
    for disk_bytes in [DISK_BYTES, BIG] {
        let shape = Shape { bus, disk_bytes, ..Shape::default() };
        let node = world.machine(&Provisioning::Cluster, shape)?;
        node.vm().start()?;
        serves(node.vm(), DISK, bus, disk_bytes)?;
        let failed = node.vm().sh("systemctl --failed --plain --no-legend --no-pager")?;
        ensure!(failed.trim().is_empty(), "failed units: {failed}");
        node.vm().stop()?;
        node.vm().start()?;
        serves(node.vm(), DISK, bus, disk_bytes)?;
        note(&format!("{bus:?}, {:.1} GiB: grown, served, and booted again", gib(disk_bytes)));
    }
    Ok(())
}

pub(crate) fn the_booted_disk_wins_with_one_version(world: &mut World) -> Result<()> {
    let image = world.image().to_owned();
    the_booted_disk_wins(world, &image, 1)
}

pub(crate) fn the_booted_disk_wins_with_two_versions(world: &mut World) -> Result<()> {
    let other = world.other_image()?;
    the_booted_disk_wins(world, &other, 2)
}

/// A stick with the image under test and a built-in disk with `other`, each with a cluster.toml of its own: booted in turn,
/// fresh and used, each is served by itself alone, and nothing at all is written to the other.
fn the_booted_disk_wins(world: &mut World, other: &Path, versions: usize) -> Result<()> {
    let shape = Shape { bus: Bus::Usb, ..Shape::default() };
    let provisioned = |name: &str| -> Result<Provisioning> {
        Ok(Provisioning::File { name: name.to_owned(), text: new_cluster_toml(name)? })
    };
    let node = world.machine(&provisioned("of-the-stick")?, shape)?;
    let toml = new_cluster_toml("of-the-disk")?;
    let base = image::base(other, Some(&toml), &node.dir().bases())?;
    node.rebuild(|shape| {
        shape.second = Some(Second { bus: Bus::Nvme, bytes: BIG, base: Some(base), boots: false });
    })?;
    let folder = node.dir().vm(1);
    let (stick, disk) = (folder.disk(), folder.second_disk());

    let mut seen: Vec<Identity> = Vec::new();
    for (round, from_stick) in [true, false, true, false].into_iter().enumerate() {
        let (booted, idle, idle_file, bus, bytes, name) = if from_stick {
            (DISK, SECOND_DISK, &disk, Bus::Usb, DISK_BYTES, "of-the-stick")
        } else {
            (SECOND_DISK, DISK, &stick, Bus::Nvme, BIG, "of-the-disk")
        };
        node.rebuild(|shape| {
            if let Some(second) = &mut shape.second {
                second.boots = !from_stick;
            }
        })?;
        let before = copy(idle_file)?;
        node.vm().start()?;
        serves(node.vm(), booted, bus, bytes)?;
        let identity = identity(node.vm())?;
        ensure!(identity.cluster == name, "booted {booted}, but the cluster.toml of {}", identity.cluster);
        untouched_so_far(node.vm(), idle)?;
        node.vm().stop()?;
        same_content(&before, idle_file)?;
        note(&format!(
            "boot {}: {bus:?} booted, version {}, node {}; nothing was written to the other disk",
            round + 1,
            identity.version,
            identity.id.get(..8).unwrap_or_default()
        ));
        // The same disk is the same node, the other one another.
        match seen.get(round.wrapping_sub(2)) {
            Some(earlier) => ensure!(*earlier == identity, "was {earlier:?}, is {identity:?}"),
            None => ensure!(seen.iter().all(|other| other.id != identity.id), "{seen:?} and {identity:?}"),
        }
        seen.push(identity);
    }
    let found: BTreeSet<&str> = seen.iter().map(|identity| identity.version.as_str()).collect();
    ensure!(found.len() == versions, "versions booted: {found:?}, wanted are {versions}");
    Ok(())
}

/// `clusterctl provision` on real block devices: a node refuses its own disk, and makes a stick that boots.
pub(crate) fn a_node_provisions_a_stick(world: &mut World) -> Result<()> {
    let blank = Some(Second { bus: Bus::Usb, bytes: DISK_BYTES, base: None, boots: false });
    let node = world.machine(&Provisioning::None, Shape { second: blank, ..Shape::default() })?;
    node.vm().start()?;
    node.vm().wait_boot()?;
    let disks = node.vm().sh("lsblk -dnro NAME,TRAN,TYPE | awk '$NF == \"disk\"'")?;
    let stick = named(&disks, |line| line.contains("usb"))?;
    let own = named(&disks, |line| !line.contains("usb"))?;

    let provision = |target: &str| {
        node.vm().try_sh(&format!(
            "cd /run && clusterctl provision {target} --new office --config /run/office.toml"
        ))
    };
    let refused = provision(&own)?;
    ensure!(refused.status == 1 && refused.all().contains("is mounted at"), "own disk: {}", refused.all());
    let written = provision(&stick)?;
    ensure!(written.status == 0 && written.all().contains("read back"), "the stick: {}", written.all());
    note(written.all().lines().next().unwrap_or_default());
    let again = node.vm().try_sh(&format!("clusterctl provision {stick} --config /run/office.toml"))?;
    ensure!(again.all().contains("already has exactly this"), "again: {}", again.all());
    node.vm().stop()?;

    node.rebuild(|shape| {
        if let Some(second) = &mut shape.second {
            second.boots = true;
        }
    })?;
    node.vm().start()?;
    serves(node.vm(), SECOND_DISK, Bus::Usb, DISK_BYTES)?;
    let identity = identity(node.vm())?;
    ensure!(identity.cluster == "office", "the stick's node is of {}", identity.cluster);
    note("the stick booted, and its node is of the cluster that it was provisioned for");
    Ok(())
}

/// Waits until the node is a member, then looks: everything is on the disk with that serial number, grown to its size.
fn serves(vm: Vm<'_>, serial: &str, bus: Bus, bytes: u64) -> Result<()> {
    vm.wait_boot()?;
    cluster_e2e::wait_all_up(vm, 1)?;
    let shown = vm.sh(DISKS)?;
    let disk = shown.split_whitespace().next().context("no disk")?.to_owned();
    for line in shown.lines() {
        ensure!(line.split_whitespace().next() == Some(&disk), "more than one disk is used:\n{shown}");
    }
    for wanted in ["esp", "config", "root", "root-verity", "var"] {
        ensure!(shown.contains(&format!("/dev/disk/cluster-os/{wanted}\n")), "no link {wanted}:\n{shown}");
    }
    let number = vm.sh(&format!(
        "udevadm info --query=property --name=/dev/{disk} | sed -n 's/^ID_SERIAL_SHORT=//p; s/^ID_SERIAL=//p'"
    ))?;
    ensure!(number.lines().any(|line| line == serial), "{disk} is not `{serial}`: {number}");
    let path = vm.sh(&format!("realpath /sys/class/block/{disk}"))?;
    let mark = match bus {
        Bus::Virtio => "/virtio",
        Bus::Sata => "/ata",
        Bus::Nvme => "nvme",
        // Linux names the root hub of USB 2 first.
        Bus::Usb => "/usb2/",
        Bus::Usb2 => "/usb1/",
    };
    ensure!(path.contains(mark), "{disk} hangs at {path}");

    let size = |what: &str| -> Result<u64> { Ok(vm.sh(what)?.trim().parse()?) };
    let whole = size(&format!("blockdev --getsize64 /dev/{disk}"))?;
    let var = size("blockdev --getsize64 /dev/disk/cluster-os/var")?;
    let filesystem = size("df --block-size=1 --output=size /var | tail -n 1")?;
    ensure!(whole == bytes, "{disk} has {whole} bytes, not {bytes}");
    ensure!(
        (bytes - FIXED - 8 * MIB..bytes - FIXED).contains(&var),
        "/var's partition has {} MiB of a disk of {} MiB",
        var / MIB,
        bytes / MIB
    );
    // The journal and tables of ext4 take a few hundredths.
    ensure!(filesystem > var / 100 * 90, "/var has {filesystem} bytes of {var}");
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
struct Identity {
    id: String,
    cluster: String,
    version: String,
    machine: String,
}

fn identity(vm: Vm<'_>) -> Result<Identity> {
    let status = vm.cluster_status()?;
    let text = |key: &str| {
        status[key].as_str().map(str::to_owned).with_context(|| format!("no `{key}` in {status}"))
    };
    Ok(Identity {
        id: text("id")?,
        cluster: text("cluster")?,
        version: vm.sh(". /usr/lib/os-release && echo $IMAGE_VERSION")?.trim().to_owned(),
        machine: vm.sh("cat /etc/machine-id")?.trim().to_owned(),
    })
}

/// QEMU counts what the guest, firmware included, asked of the drive since power on.
fn untouched_so_far(vm: Vm<'_>, drive: &str) -> Result<()> {
    let all = vm.qmp("query-blockstats", json!({}))?;
    let found = all.as_array().and_then(|drives| drives.iter().find(|entry| entry["device"] == drive));
    let stats = &found.with_context(|| format!("QEMU has no drive `{drive}`: {all}"))?["stats"];
    ensure!(stats["rd_operations"].as_u64() > Some(0), "`{drive}` was not even read: {stats}");
    for counter in ["wr_operations", "unmap_operations"] {
        ensure!(stats[counter] == 0, "`{drive}` was written to: {counter} is {}", stats[counter]);
    }
    Ok(())
}

/// A copy of a disk whose VM is off.
fn copy(disk: &Path) -> Result<PathBuf> {
    let before = disk.with_extension("before");
    fs::copy(disk, &before).with_context(|| format!("failed to copy `{}`", disk.display()))?;
    Ok(before)
}

fn same_content(before: &Path, disk: &Path) -> Result<()> {
    let compare = Command::new("qemu-img")
        .args(["compare", "-f", "qcow2", "-F", "qcow2"])
        .args([before, disk])
        .output()
        .context("failed to run qemu-img")?;
    match compare.status.code() {
        Some(0) => Ok(fs::remove_file(before)?),
        Some(1) => {
            bail!("`{}` was written to: {}", disk.display(), String::from_utf8_lossy(&compare.stdout).trim())
        }
        _ => bail!("qemu-img compare: {}", String::from_utf8_lossy(&compare.stderr).trim()),
    }
}

fn named(disks: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let line = disks.lines().find(|line| wanted(line)).with_context(|| format!("not among: {disks}"))?;
    Ok(format!("/dev/{}", line.split_whitespace().next().unwrap_or_default()))
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
