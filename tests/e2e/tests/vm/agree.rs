// SPDX-License-Identifier: Apache-2.0
//! Three programs about one disk: `cluster-update status`, `bootctl list` and `systemd-sysupdate list`.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use cluster_e2e::note;
use cluster_harness::client::Vm;
use serde_json::Value;

use crate::update::status;

const SYSUPDATE: &str = "/usr/lib/systemd/systemd-sysupdate";

/// Fails where they do not say the same of versions, boot entries and what waits for a restart.
pub(crate) fn on_what_is_there(vm: Vm<'_>) -> Result<()> {
    let now = status(vm)?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let versions: BTreeSet<String> =
        [&now["version"], &now["other"]["version"]].into_iter().filter_map(text).collect();
    let entries: BTreeSet<String> =
        [&now["boot_entry"], &now["other"]["boot_entry"]].into_iter().filter_map(text).collect();

    let list = json(&vm.sh(&format!("{SYSUPDATE} list --json=short"))?)?;
    let installed: BTreeSet<String> = list["all"].as_array().into_iter().flatten().filter_map(text).collect();
    ensure!(installed == versions, "systemd-sysupdate lists {list}, the status says {now}");

    let list = json(&vm.sh("bootctl list --no-pager --json=short")?)?;
    let files = list.as_array().into_iter().flatten().filter_map(|entry| entry["path"].as_str());
    let listed: BTreeSet<String> = files
        .filter_map(|path| path.rsplit('/').next())
        .filter(|name| name.starts_with("cluster-os_"))
        .map(str::to_owned)
        .collect();
    ensure!(listed == entries, "bootctl lists {list}, the status says {now}");

    // A version that was given up is newer, too: systemd-sysupdate does not look at tries.
    let pending = vm.try_sh(&format!("{SYSUPDATE} pending"))?.status == 0;
    let newer = matches!(now["other"]["state"].as_str(), Some("staged" | "failed"));
    ensure!(pending == newer, "systemd-sysupdate pending says {pending}, the status {now}");
    note(&format!(
        "systemd-sysupdate, bootctl and the status agree: {}",
        versions.into_iter().collect::<Vec<_>>().join(" and ")
    ));
    Ok(())
}

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("no JSON: {text}"))
}
