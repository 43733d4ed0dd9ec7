// SPDX-License-Identifier: Apache-2.0
//! What one wants to see after a failure, collected into a folder while the VMs still run.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::client::{Client, Vm};
use crate::console::plain;
use crate::protocol::Power;
use crate::timeouts;

/// What is asked of each VM that takes commands: file name and command.
const QUESTIONS: &[(&str, &str)] = &[
    ("journal.txt", "journalctl -b --no-pager"),
    ("errors.txt", "journalctl -b --no-pager -p warning -n 40"),
    (
        "status.txt",
        "clusterctl status; clusterctl nodes; systemctl --failed --no-pager; systemctl list-jobs --no-pager",
    ),
    ("network.txt", "ip address; ip -6 route; wg show all dump | cut -f 1,3-; nft list ruleset"),
];

/// Writes logs and states of all VMs and of the switch into `folder`. What cannot be had is told in its place.
pub fn collect(client: &Client, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let status = client.status()?;
    fs::write(folder.join("switch.json"), serde_json::to_vec_pretty(&status)?)?;
    fs::write(folder.join("daemon.log"), fs::read(client.dir().daemon_log()).unwrap_or_default())?;
    for (number, vm) in &status.vms {
        let into = folder.join(format!("vm{number}"));
        fs::create_dir_all(&into)?;
        let files = client.dir().vm(*number);
        fs::write(into.join("console.txt"), plain(&fs::read(files.serial()).unwrap_or_default()))?;
        fs::write(into.join("qemu.log"), fs::read(files.qemu_log()).unwrap_or_default())?;
        if vm.power == Power::On && vm.guest_agent {
            for (name, line) in QUESTIONS {
                fs::write(into.join(name), ask(client.vm(*number), line))?;
            }
        }
    }
    Ok(())
}

fn ask(vm: Vm<'_>, line: &str) -> String {
    match vm.exec(&["bash", "-c", line], None, Some(timeouts::COMMAND)) {
        Ok(output) => output.all(),
        Err(error) => format!("could not be asked: {error:#}\n"),
    }
}

/// The last lines of the most telling files of a bundle, for a log that people read first.
pub fn excerpt(folder: &Path) -> String {
    let mut text = String::new();
    let Ok(entries) = fs::read_dir(folder) else { return text };
    let mut vms: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    vms.sort();
    for vm in vms {
        for name in ["console.txt", "errors.txt", "status.txt"] {
            let file = vm.join(name);
            let Ok(content) = fs::read_to_string(&file) else { continue };
            let lines: Vec<_> = content.lines().filter(|line| !line.trim().is_empty()).collect();
            text.push_str(&format!("--- {}\n", file.display()));
            for line in &lines[lines.len().saturating_sub(8)..] {
                text.push_str(&format!("    {line}\n"));
            }
        }
    }
    text
}
