// SPDX-License-Identifier: Apache-2.0
//! `systemd-sysupdate`, with the image's own description of the slots, sees the versions that `cluster-update status` shows, and finds
//! nothing to do by itself.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cluster_updater::{report::OtherState, updater::Updater};
use cluster_updater_core::{Esp as _, verity::BLOCK_BYTES};
use common::{Lab, bytes, run};

/// The image's transfer files, about this disk and this folder of boot entries.
fn definitions(lab: &Lab) -> PathBuf {
    let to = lab.path("sysupdate.d");
    fs::create_dir_all(&to).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../mkosi.extra/usr/lib/sysupdate.d");
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let text = fs::read_to_string(entry.path()).unwrap();
        let (disk, entries) = ("Path=/dev/disk/cluster-os/disk", "Path=/EFI/Linux\nPathRelativeTo=esp");
        assert!(text.contains(disk) != text.contains(entries), "{text}");
        let text = text
            .replace(disk, &format!("Path={}", lab.disk_path().display()))
            .replace(entries, &format!("Path={}", lab.entries().display()))
            .replace("Path=/usr/lib/sysupdate.d", &format!("Path={}", to.display()));
        fs::write(to.join(entry.file_name()), text).unwrap();
    }
    to
}

fn sysupdate(definitions: &Path, words: &[&str]) -> String {
    let mut command = Command::new("/usr/lib/systemd/systemd-sysupdate");
    run(command.arg(format!("--definitions={}", definitions.display())).args(words))
}

/// Versions of which image, tree and boot entry are there, newest first.
fn installed(definitions: &Path) -> Vec<String> {
    let list: serde_json::Value =
        serde_json::from_str(&sysupdate(definitions, &["list", "--json=short"])).unwrap();
    list["all"].as_array().unwrap().iter().map(|version| version.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_versions_in_the_slots_are_those_that_systemd_sysupdate_lists() {
    let lab = Lab::new();
    let definitions = definitions(&lab);
    let status = || Updater::new(lab.paths(), lab.host("boot")).unwrap().status();
    assert_eq!(installed(&definitions), [status().version.to_string()]);

    lab.stage(&lab.open(&lab.release("1.1", &bytes(71, 100 * BLOCK_BYTES)))).unwrap();
    let now = status();
    assert_eq!(now.other.state, OtherState::Staged);
    let both = [now.other.version.unwrap().to_string(), now.version.to_string()];
    assert_eq!(installed(&definitions), both);
    // As many tries as are left.
    let shown = sysupdate(&definitions, &["list", "1.1", "--json=short"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let left = shown["contents"].as_array().unwrap().iter().find_map(|part| part["tries-left"].as_u64());
    assert_eq!(left, now.other.tries_left.map(u64::from));

    // Blessed, then gone.
    lab.esp().rename("cluster-os_1.1+3-0.efi", "cluster-os_1.1.efi").unwrap();
    assert_eq!(installed(&definitions), both);
    lab.esp().remove("cluster-os_1.1.efi").unwrap();
    assert_eq!(status().other.state, OtherState::Empty);
    let shown = sysupdate(&definitions, &["list", "1.1", "--json=short"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["incomplete"], true, "a version without a boot entry counts as installed: {shown}");
}

#[test]
fn systemd_sysupdate_finds_nothing_to_write_or_remove() {
    let lab = Lab::new();
    let definitions = definitions(&lab);
    lab.stage(&lab.open(&lab.release("1.1", &bytes(72, 100 * BLOCK_BYTES)))).unwrap();
    // A release that was imported is not where it looks.
    fs::create_dir_all(lab.path("state/releases/1.1")).unwrap();
    let entries = || lab.esp().list().unwrap();
    let before = (fs::read(lab.disk_path()).unwrap(), entries());
    for verb in ["update", "vacuum"] {
        sysupdate(&definitions, &[verb]);
        assert!(before == (fs::read(lab.disk_path()).unwrap(), entries()), "{verb} has changed something");
    }
}
