// SPDX-License-Identifier: Apache-2.0
//! Releases that pass every check before they are started and do not work: the node goes back by itself each time, is who it was,
//! and says why where that can be known.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result, ensure};
use cluster_e2e::forge::{Edit, Forgery, forge};
use cluster_e2e::{Alone, World, note};
use cluster_harness::client::{Seen, Vm};
use cluster_harness::console::plain;
use cluster_harness::protocol::Power;
use cluster_harness::timeouts;

use crate::stick::{self, Stick, version_of};
use crate::update::{identity, is_good, long, ready, restart, status};

const NOTHING_TOLD: &str = "it did not come up far enough to say why";
const AGENT: &str = "# SPDX-License-Identifier: Apache-2.0\n[Unit]\nDescription=Cluster agent:";
const AGENT_PROGRAM: &str = "/usr/lib/clusteros/cluster-agent\n";
const LATE: &str = "# SPDX-License-Identifier: Apache-2.0\n# What never ends is no failure,";
/// systemd-tmpfiles-setup.service: the files of systemd begin alike.
const TMPFILES: &str = "#  SPDX-License-Identifier: LGPL-2.1-or-later
#
#  This file is part of systemd.
#
#  systemd is free software; you can redistribute it and/or modify it
#  under the terms of the GNU Lesser General Public License as published by
#  the Free Software Foundation; either version 2.1 of the License, or
#  (at your option) any later version.

[Unit]
Description=Create System Files and Directories
";
/// A verdict is due after two minutes, not after ten.
const SOON: Edit<'_> = Edit {
    file: "# SPDX-License-Identifier: Apache-2.0\n# Judges a trial boot.",
    from: "--within 600",
    to: "--within 120",
};

/// A way to be broken.
struct Kind {
    /// What is said of it; the folder on the stick.
    name: &'static str,
    /// Its version ends with this.
    number: u8,
    forgery: Forgery<'static>,
    /// The content of its slot is destroyed after it was checked and written.
    damaged: bool,
    /// How often it is started. Where each boot waits for a verdict, once: the others end like it.
    tries: usize,
    /// What the console shows in each of its boots.
    console: Option<&'static str>,
    /// What the status gives as the reason.
    reason: &'static str,
}

pub(crate) fn kernel_or_initrd(world: &mut World) -> Result<()> {
    let dies = |name, number, forgery, console| Kind {
        name,
        number,
        forgery,
        damaged: false,
        tries: 3,
        console: Some(console),
        reason: NOTHING_TOLD,
    };
    let panics = Forgery { words: "rdinit=/nothing", ..Forgery::default() };
    let hangs = vec![
        (
            "etc/systemd/system/cluster-os-setup.service.d/50-hangs.conf",
            "[Service]\nExecStartPre=/usr/bin/sleep infinity\n",
        ),
        (
            "etc/systemd/system/cluster-os-deadline.timer.d/50-soon.conf",
            "[Timer]\nOnActiveSec=\nOnActiveSec=60s\n",
        ),
    ];
    let hangs = Forgery { initrd: hangs, ..Forgery::default() };
    all_fall_back(
        world,
        vec![
            dies("panics", 2, panics, "Kernel panic - not syncing: VFS: Unable to mount root fs"),
            Kind { damaged: true, ..dies("verity", 3, Forgery::default(), "Cluster-OS: this boot failed") },
            dies("initrd-stops", 4, hangs, "Cluster-OS: this boot failed"),
        ],
    )
}

pub(crate) fn no_network(world: &mut World) -> Result<()> {
    let forgery = Forgery { words: "module_blacklist=virtio_net", files: vec![SOON], ..Forgery::default() };
    all_fall_back(
        world,
        vec![Kind {
            name: "no-network",
            number: 5,
            forgery,
            damaged: false,
            tries: 1,
            console: None,
            reason: "there is no network interface, and one had a link when this release was staged",
        }],
    )
}

pub(crate) fn agent(world: &mut World) -> Result<()> {
    let instead = |name, number, program, tries, reason| Kind {
        name,
        number,
        forgery: Forgery {
            files: vec![SOON, Edit { file: AGENT, from: AGENT_PROGRAM, to: program }],
            ..Forgery::default()
        },
        damaged: false,
        tries,
        console: None,
        reason,
    };
    let silent = "the agent does not answer: cluster-agent.service is activating";
    all_fall_back(
        world,
        vec![
            instead("crashes", 6, "/usr/bin/false                  \n", 3, silent),
            // It runs, and never says that it is ready.
            instead(
                "hangs",
                7,
                "/usr/bin/sleep infinity         \n",
                1,
                "cluster-agent.service is activating (start)",
            ),
        ],
    )
}

/// A unit before sysinit.target never ends, and PID 1 lives.
pub(crate) fn start(world: &mut World) -> Result<()> {
    let hangs = Edit {
        file: TMPFILES,
        from: "ExecStart=systemd-tmpfiles --create --remove --boot --exclude-prefix=/dev",
        to: "ExecStart=sleep infinity",
    };
    // Of twenty minutes, two.
    let soon = Edit { file: LATE, from: "OnActiveSec=20min", to: "OnActiveSec=2min" };
    let forgery = Forgery { files: vec![hangs, soon], ..Forgery::default() };
    all_fall_back(
        world,
        vec![Kind {
            name: "start-hangs",
            number: 8,
            forgery,
            damaged: false,
            tries: 1,
            console: None,
            reason: "its check did not begin within 20 minutes",
        }],
    )
}

/// One after the other on one node.
fn all_fall_back(world: &mut World, kinds: Vec<Kind>) -> Result<()> {
    let forged = Forged::new(world, kinds)?;
    let stick = Stick::new(&forged.folder)?;
    let node = stick.machine(world)?;
    let vm = node.vm();
    vm.start()?;
    ready(node)?;
    vm.sh("echo kept >/var/lib/kept && sync")?;
    let before = identity(vm)?;
    let version = status(vm)?["version"].as_str().context("a status without a version")?.to_owned();
    for (kind, next) in &forged.kinds {
        falls_back(node, kind, next, &version).with_context(|| format!("{next}, `{}`", kind.name))?;
        ensure!(identity(vm)? == before, "after {next}: {}\nbefore: {before}", identity(vm)?);
        note(&format!("{next}, `{}`: {version} runs again by itself, the same node", kind.name));
    }
    Ok(())
}

fn falls_back(node: &Alone, kind: &Kind, next: &str, version: &str) -> Result<()> {
    let vm = node.vm();
    stick::mount(vm)?;
    for line in
        [format!("cluster-update import /run/stick/{}", kind.name), format!("cluster-update stage {next}")]
    {
        let done = long(vm, &line)?;
        ensure!(done.status == 0, "{line}: {}", done.all());
    }
    stick::unmount(vm)?;
    if kind.damaged {
        destroy(node, next)?;
    }
    if kind.tries == 1 {
        one_try_left(vm, next)?;
    }
    let serial = node.dir().vm(vm.number()).serial();
    let printed = fs::metadata(&serial)?.len() as usize;
    restart(node)?;
    let resets = vm.status()?.resets;
    node.wait_for(&format!("{version} to run again"), timeouts::GIVEN_UP, || runs(vm, version))?;
    let boots = vm.status()?.resets - resets;
    is_good(node, version, "a")?;
    ensure!(boots as usize == kind.tries, "it was started {boots} times, not {}", kind.tries);
    if let Some(sign) = kind.console {
        let console = plain(fs::read(&serial)?.get(printed..).unwrap_or_default());
        let shown = console.matches(sign).count();
        ensure!(shown >= kind.tries, "`{sign}` was on the console {shown} times in {} boots", kind.tries);
    }
    let other = status(vm)?["other"].clone();
    ensure!(
        other["state"] == "failed" && other["version"] == next && other["tries_left"] == 0,
        "the other slot is {other}"
    );
    let reason = other["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains(kind.reason), "the reason is `{reason}`, not `{}`", kind.reason);
    let said = vm.sh("cluster-update status")?;
    ensure!(said.contains(&format!("given up: {reason}")), "the status does not say why:\n{said}");
    note(&format!("{next}, `{}`: given up after {boots} boots: {reason}", kind.name));
    Ok(())
}

/// Whether this version runs. A node that is going down may answer no more.
fn runs(vm: Vm<'_>, version: &str) -> Result<Seen<()>> {
    let now = vm.status()?;
    ensure!(now.power == Power::On, "the VM is off: {:?}", now.ended);
    if !now.guest_agent {
        return Ok(Seen::NotYet(vm.stage()?.to_string()));
    }
    Ok(match status(vm) {
        Ok(status) if status["version"] == version => Seen::Found(()),
        Ok(status) => {
            Seen::NotYet(format!("{} runs, its check: {}", status["version"], status["boot_check"]))
        }
        Err(error) => Seen::NotYet(format!("{error:#}")),
    })
}

/// As a disk may: what was written and read back is gone.
fn destroy(node: &Alone, version: &str) -> Result<()> {
    let vm = node.vm();
    // The labels are on the disk; udev shows them when it has read them.
    let part = node.wait_for("the label of the other slot", timeouts::COMMAND, || {
        let all = vm.sh("lsblk -nrpo NAME,PARTLABEL")?;
        let found = all.lines().find_map(|line| line.strip_suffix(&format!(" cluster-os_{version}")));
        Ok(found.map_or_else(|| Seen::NotYet(all.clone()), |part| Seen::Found(part.to_owned())))
    })?;
    vm.sh(&format!("dd if=/dev/zero of={part} bs=4096 count=1 conv=fsync,notrunc")).map(drop)
}

/// As if it had been tried twice.
fn one_try_left(vm: Vm<'_>, version: &str) -> Result<()> {
    let entry = format!("/efi/EFI/Linux/cluster-os_{version}");
    vm.sh(&format!(
        "ls /efi >/dev/null && flock /run/clusteros/esp.lock sh -c 'mount -o remount,rw /efi && \
         mv {entry}+3-0.efi {entry}+1-2.efi; ended=$?; mount -o remount,ro /efi && exit $ended'"
    ))
    .map(drop)
}

/// The broken releases, each in a folder of its own.
struct Forged {
    folder: PathBuf,
    /// With their versions.
    kinds: Vec<(Kind, String)>,
}

impl Forged {
    fn new(world: &World, kinds: Vec<Kind>) -> Result<Self> {
        let good = world.other_release()?;
        let (key, version) = (world.development_key()?, version_of(&good)?);
        let (head, _) = version.rsplit_once('.').context("a version of one number")?;
        let mut forged =
            Self { folder: good.with_file_name(format!("forged-{}", process::id())), kinds: Vec::new() };
        fs::create_dir_all(&forged.folder)?;
        for kind in kinds {
            let version = format!("{head}.{}", kind.number);
            let forgery = Forgery { version: &version, ..kind.forgery.clone() };
            forge(&good, &forged.folder.join(kind.name), &key, &forgery)
                .with_context(|| format!("failed to forge `{}`", kind.name))?;
            forged.kinds.push((kind, version));
        }
        Ok(forged)
    }
}

impl Drop for Forged {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

fn remove(folder: &Path) {
    let _ = fs::remove_dir_all(folder);
}
