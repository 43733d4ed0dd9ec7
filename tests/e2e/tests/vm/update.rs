// SPDX-License-Identifier: Apache-2.0
//! A release on a stick: into the other slot, restarted, marked good, and back; or never up, and given up. The node stays who
//! it is.

use anyhow::{Context, Result, ensure};
use cluster_e2e::{Alone, World, note, wait_all_up};
use cluster_harness::client::{Output, Seen, Vm};
use cluster_harness::console::Stage;
use cluster_harness::protocol::{LinkChange, Request};
use cluster_harness::switch::Direction;
use cluster_harness::timeouts;
use serde_json::Value;

use crate::agree;
use crate::stick::{self, Stick, version_of};

/// What must be the same before and after.
const IDENTITY: &str = "cat /etc/machine-id; clusterctl identity --json | tr -d ' \\n'; cat /var/lib/kept";

pub(crate) fn by_file(world: &mut World) -> Result<()> {
    let (_stick, next, node) = beside_a_stick(world)?;
    let vm = node.vm();
    vm.sh("echo kept >/var/lib/kept && sync")?;
    let before = identity(vm)?;
    let joined = vm.cluster_status()?["cluster_id"].clone();
    let first = status(vm)?;
    let version = first["version"].as_str().context("a status without a version")?.to_owned();
    ensure!(
        first["slot"] == "a" && first["other"]["state"] == "empty" && first["marked_good"] == true,
        "a fresh node says {first}"
    );
    ensure!(first["trust"]["development"] == true, "the key of the checkout is not named: {first}");
    ensure!(first["problems"] == serde_json::json!([]), "a fresh node has problems: {first}");

    import(vm)?;
    import_from_devices(vm)?;
    only_root_may(vm)?;
    restart_later(vm)?;
    stage(node, &next)?;
    restart(node)?;
    is_good(node, &next, "b")?;
    agree::on_what_is_there(vm)?;
    vm.sh("for place in systemd/systemd-bootx64.efi BOOT/BOOTX64.EFI; do cmp /usr/lib/systemd/boot/efi/systemd-bootx64.efi /efi/EFI/$place; done")?;
    ensure!(identity(vm)? == before, "after the update: {}\nbefore: {before}", identity(vm)?);
    ensure!(vm.cluster_status()?["cluster_id"] == joined, "the node is in another cluster after the update");
    note(&format!(
        "{next} runs from slot b and is marked good; identity, /var and cluster are those of before"
    ));
    let history = vm.sh("cluster-update history")?;
    for word in ["imported", "staged", "on trial", "pass"] {
        ensure!(history.contains(word), "no `{word}` in the history:\n{history}");
    }

    let now = status(vm)?;
    ensure!(now["other"]["state"] == "previous", "after the update the other slot is {}", now["other"]);
    ensure!(now["releases"] == serde_json::json!([]), "what runs is still kept in /var: {}", now["releases"]);
    let said = vm.sh("cluster-update rollback")?;
    ensure!(said.contains(&format!("the next boot starts {version};")), "rollback says: {said}");
    restart(node)?;
    is_good(node, &version, "a")?;
    agree::on_what_is_there(vm)?;
    ensure!(identity(vm)? == before, "after the rollback: {}\nbefore: {before}", identity(vm)?);
    let other = status(vm)?["other"].clone();
    ensure!(
        other["state"] == "failed" && other["reason"].as_str().is_some_and(|why| why.contains("by hand")),
        "{other}"
    );
    note(&format!("rolled back to {version} in slot a, the same node; {next} is given up"));
    Ok(())
}

pub(crate) fn never_up_is_given_up(world: &mut World) -> Result<()> {
    let (_stick, next, node) = beside_a_stick(world)?;
    let vm = node.vm();
    let before = vm.sh("clusterctl identity --json")?;
    let version = status(vm)?["version"].as_str().context("a status without a version")?.to_owned();
    import(vm)?;
    let staged = long(vm, "cluster-update stage")?;
    ensure!(staged.status == 0, "stage: {}", staged.all());
    // What is said to be staged is on the disk.
    vm.kill()?;
    for _ in 0..3 {
        vm.start()?;
        node.wait_for("a kernel to start", timeouts::BOOT, || {
            let stage = vm.stage()?;
            Ok(if stage == Stage::Kernel { Seen::Found(()) } else { Seen::NotYet(stage.to_string()) })
        })?;
        vm.kill()?;
    }
    note("the power was cut, and again in each of three boots of the new version");

    vm.start()?;
    is_good(node, &version, "a")?;
    let other = status(vm)?["other"].clone();
    ensure!(other["state"] == "failed" && other["tries_left"] == 0, "after three tries: {other}");
    ensure!(other["boot_entry"] == format!("cluster-os_{next}+0-3.efi"), "after three tries: {other}");
    let said = vm.sh("cluster-update status")?;
    ensure!(said.contains("given up: it did not come up far enough to say why"), "the status says: {said}");
    ensure!(vm.sh("clusterctl identity --json")? == before, "the node is another one");
    note(&format!("{version} runs again by itself, the same node, and says that {next} was given up"));
    Ok(())
}

pub(crate) fn power_lost_on_trial(world: &mut World) -> Result<()> {
    let (_stick, next, node) = beside_a_stick(world)?;
    let vm = node.vm();
    vm.sh("echo kept >/var/lib/kept && sync")?;
    let before = identity(vm)?;
    import(vm)?;
    let staged = long(vm, "cluster-update stage")?;
    ensure!(staged.status == 0, "stage: {}", staged.all());
    restart(node)?;
    // Once while nothing of it runs yet, and once while it runs and is not judged.
    node.wait_for("a kernel to start", timeouts::BOOT, || {
        let stage = vm.stage()?;
        Ok(if stage >= Stage::Kernel { Seen::Found(()) } else { Seen::NotYet(stage.to_string()) })
    })?;
    vm.kill()?;
    vm.start()?;
    vm.wait_boot()?;
    vm.kill()?;
    note(&format!("the power was cut in the first and in the second boot of {next}"));

    // The last try. Without a cable it is not judged before the power goes.
    let cable = |change| {
        node.request(&Request::Link { vm: 1, nic: None, direction: Direction::Both, change }).map(drop)
    };
    vm.start()?;
    cable(LinkChange::Off)?;
    vm.wait_boot()?;
    let entry = format!("cluster-os_{next}+1-3.efi");
    node.wait_for("the try of the boot before to be given back", timeouts::COMMAND, || {
        let entries = vm.sh("ls /efi/EFI/Linux")?;
        Ok(if entries.contains(&entry) { Seen::Found(()) } else { Seen::NotYet(entries) })
    })?;
    vm.sh("sync")?;
    vm.kill()?;
    note(&format!("and in the third, whose boot entry was {entry} by then"));

    vm.start()?;
    cable(LinkChange::On)?;
    is_good(node, &next, "b")?;
    ensure!(identity(vm)? == before, "after the power cuts: {}\nbefore: {before}", identity(vm)?);
    let history = vm.sh("cluster-update history --json")?;
    let history: Value = serde_json::from_str(&history)?;
    let passed = history.as_array().into_iter().flatten().filter(|event| event["what"] == "pass").count();
    ensure!(passed == 1, "a boot was judged before its power was cut: {history}");
    let status = status(vm)?;
    ensure!(status["boot_entry"] == format!("cluster-os_{next}.efi"), "its entry is counted: {status}");
    note(&format!("the fourth boot of {next} is marked good: a power cut gives no release up"));
    Ok(())
}

/// A node that is up with the other release's stick plugged in, and that release's version.
fn beside_a_stick(world: &mut World) -> Result<(Stick, String, &Alone)> {
    let release = world.other_release()?;
    let (stick, next) = (Stick::new(&release)?, version_of(&release)?);
    let node = stick.machine(world)?;
    node.vm().start()?;
    ready(node)?;
    Ok((stick, next, node))
}

/// Checked before it is taken: a changed manifest is not.
pub(crate) fn import(vm: Vm<'_>) -> Result<()> {
    stick::mount(vm)?;
    vm.sh("mkdir /run/forged && cp /run/stick/manifest.json* /run/stick/root.* /run/forged/ && sed -i 's/\"normal\"/\"critical\"/' /run/forged/manifest.json")?;
    let forged = vm.try_sh("cluster-update import /run/forged")?;
    ensure!(
        forged.status == 1 && forged.all().contains("was changed or damaged"),
        "forged: {}",
        forged.all()
    );
    let imported = long(vm, "cluster-update import /run/stick")?;
    ensure!(imported.status == 0, "import: {}", imported.all());
    ensure!(imported.all().contains("importing: "), "import shows no progress: {}", imported.all());
    stick::unmount(vm)?;
    note("a forged manifest is refused, the release is imported");
    Ok(())
}

/// The stick by its name, and what is no source: the node's own disk, and a web server that is not there.
fn import_from_devices(vm: Vm<'_>) -> Result<()> {
    let name = vm.sh("lsblk -dnro NAME,TRAN | awk '$2 == \"usb\" { print $1 }'")?;
    let imported = long(vm, &format!("cluster-update import /dev/{}", name.trim()))?;
    ensure!(imported.status == 0, "import from the stick: {}", imported.all());
    let mounts = vm.sh("cat /proc/mounts")?;
    ensure!(!mounts.contains(&format!("/dev/{} ", name.trim())), "the stick is still mounted: {mounts}");
    let refused = [
        ("/dev/disk/cluster-os/disk", "is the disk that this node runs from"),
        ("/dev/disk/cluster-os/config", "is the disk that this node runs from"),
        ("http://127.0.0.1:9/release/", "no connection to 127.0.0.1 port 9"),
    ];
    for (origin, wanted) in refused {
        let ended = long(vm, &format!("cluster-update import {origin}"))?;
        ensure!(ended.status == 1 && ended.all().contains(wanted), "{origin}: {}", ended.all());
    }
    note("the release is imported from the stick by its name; the node's own disk is refused");
    Ok(())
}

/// logind keeps the time while the updater is away. No time server is within reach, and the clock is right all the same.
fn restart_later(vm: Vm<'_>) -> Result<()> {
    let early = vm.try_sh("cluster-update reboot --at +2h")?;
    ensure!(
        early.status == 1 && early.all().contains("--trust-clock"),
        "without a time server: {}",
        early.all()
    );
    vm.sh("for time in +2h +1h; do cluster-update reboot --at $time --trust-clock || exit; done; systemctl restart cluster-updater")?;
    let now = status(vm)?;
    let at = now["scheduled"]["at"].as_u64().with_context(|| format!("nothing is scheduled: {now}"))?;
    let clock: u64 = vm.sh("date +%s")?.trim().parse()?;
    ensure!(now["scheduled"]["what"] == "reboot" && at.abs_diff(clock + 3600) < 600, "at {clock}: {now}");
    ensure!(vm.sh("cluster-update status")?.contains("restart at "), "the status does not say it");
    vm.sh("cluster-update reboot --cancel")?;
    let now = status(vm)?;
    ensure!(now["scheduled"].is_null(), "after it was cancelled: {now}");
    note("a restart is scheduled, replaced, shown by a new updater, and taken back");
    Ok(())
}

fn only_root_may(vm: Vm<'_>) -> Result<()> {
    vm.sh("runuser -u nobody -- cluster-update status")?;
    for verb in ["stage", "reboot", "rollback", "history"] {
        let denied = vm.try_sh(&format!("runuser -u nobody -- cluster-update {verb}"))?;
        ensure!(denied.status == 5, "{verb} by nobody ends with {}: {}", denied.status, denied.all());
    }
    note("everybody may see the status, and do nothing else");
    Ok(())
}

fn stage(node: &Alone, next: &str) -> Result<()> {
    let vm = node.vm();
    let stage = vm.spawn(&["cluster-update", "stage"], None)?;
    node.wait_for("the updater to write", timeouts::COMMAND, || {
        let now = status(vm)?;
        // Before, it only reads, and a restart is nobody's business but root's.
        let writes = now["job"]["what"] == "stage" && now["job"]["progress"]["phase"] == "writing";
        Ok(if writes { Seen::Found(()) } else { Seen::NotYet(now.to_string()) })
    })?;
    for second in ["stage", "reboot", "rollback"] {
        let busy = vm.try_sh(&format!("cluster-update {second}"))?;
        ensure!(
            busy.status == 1 && busy.all().contains("the updater is busy"),
            "{second} beside a stage ends with {}: {}",
            busy.status,
            busy.all()
        );
    }
    let staged = stage.wait(Some(timeouts::UPDATE))?;
    ensure!(staged.status == 0, "stage: {}", staged.all());
    note(&staged.text().lines().map(str::trim).collect::<Vec<_>>().join("; "));
    let now = status(vm)?;
    ensure!(now["other"]["state"] == "staged" && now["other"]["version"] == next, "staged: {now}");
    let again = long(vm, "cluster-update stage")?;
    ensure!(again.status == 0 && again.text().contains("is staged already"), "staged again: {}", again.all());
    ensure!(now["other"]["boot_entry"] == format!("cluster-os_{next}+3-0.efi"), "its entry: {now}");
    agree::on_what_is_there(vm)?;
    let mounts = vm.sh("ls /efi >/dev/null; cat /proc/mounts")?;
    ensure!(mounts.contains(" /efi vfat ro,"), "after staging /efi is {mounts}");
    ensure!(!mounts.contains("cluster-updater"), "the updater's mount is seen by all: {mounts}");
    let labels = vm.sh("lsblk -nro PARTLABEL")?;
    ensure!(labels.contains(&format!("cluster-os_{next}_verity")), "labels of the partitions: {labels}");
    Ok(())
}

/// Waits until the running version is `version` in `slot`, a member, and marked good.
pub(crate) fn is_good(node: &Alone, version: &str, slot: &str) -> Result<()> {
    let vm = node.vm();
    ready(node)?;
    node.wait_for(&format!("{version} to be marked good"), timeouts::MEMBERS, || {
        let now = status(vm)?;
        ensure!(now["version"] == version && now["slot"] == slot, "this runs instead: {now}");
        Ok(if now["marked_good"] == true { Seen::Found(()) } else { Seen::NotYet(now.to_string()) })
    })?;
    let failed = vm.sh("systemctl --failed --no-legend --plain")?;
    ensure!(failed.trim().is_empty(), "units failed: {failed}");
    Ok(())
}

pub(crate) fn restart(node: &Alone) -> Result<()> {
    restart_nth(node, 1)
}

pub(crate) fn restart_nth(lab: &Alone, number: u32) -> Result<()> {
    let vm = lab.nth(number);
    let resets = vm.status()?.resets;
    // Neither the command nor the guest agent may live to tell its end.
    vm.spawn(&["cluster-update", "reboot"], None)?;
    lab.wait_for(&format!("VM {number} to restart"), timeouts::SHUTDOWN, || {
        let now = vm.status()?.resets;
        Ok(if now > resets { Seen::Found(()) } else { Seen::NotYet("still going down".to_owned()) })
    })
}

pub(crate) fn ready(node: &Alone) -> Result<()> {
    node.vm().wait_boot()?;
    wait_all_up(node.vm(), 1).map(drop)
}

pub(crate) fn status(vm: Vm<'_>) -> Result<Value> {
    let text = vm.sh("cluster-update status --json")?;
    serde_json::from_str(&text).with_context(|| format!("`cluster-update status --json` printed: {text}"))
}

pub(crate) fn identity(vm: Vm<'_>) -> Result<String> {
    vm.sh(IDENTITY)
}

pub(crate) fn long(vm: Vm<'_>, line: &str) -> Result<Output> {
    vm.exec(&["bash", "-o", "pipefail", "-c", line], None, Some(timeouts::UPDATE))
}
