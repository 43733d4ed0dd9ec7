// SPDX-License-Identifier: Apache-2.0
//! `cluster-update` on a PC: keys, root documents, a release, and what verify says of it. No daemon runs.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

use cluster_updater_core::verity::BLOCK_BYTES;
use common::{Lab, bytes};

fn update(dir: &Path, words: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cluster-update"));
    command
        .current_dir(dir)
        .args(words.split_whitespace())
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere");
    command.output().unwrap()
}

fn ok(dir: &Path, words: &str) -> String {
    let output = update(dir, words);
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(dir: &Path, words: &str, code: i32, why: &str) {
    let output = update(dir, words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(code) && said.contains(why), "{words}: {:?} {said}", output.status);
}

#[test]
fn from_keygen_to_verify() {
    let lab = Lab::new();
    let dir = lab.dir.path();
    // Parts of a release, as a build leaves them.
    let made = lab.release("2.0", &bytes(41, 150 * BLOCK_BYTES));
    let files = lab.open(&made).manifest.files();

    ok(dir, "keygen old.key");
    assert_eq!(fs::metadata(lab.path("old.key")).unwrap().permissions().mode() & 0o777, 0o600);
    refused(dir, "keygen old.key", 1, "failed to write `old.key`");
    ok(dir, "root roots --key old.key.pub --sign-with old.key");
    let make = "manifest release --release 2.0 --minimum 1.0 --root build/root.raw --verity build/tree.raw --uki build/uki.efi \
                --boot-loader build/loader.efi --component linux=6.12 --severity critical";
    ok(dir, make);
    refused(dir, "verify release --root roots", 1, "not signed");
    ok(dir, "sign release/manifest.json --key old.key");
    let said = ok(dir, "verify release --root roots");
    assert!(said.contains("version 2.0") && !said.contains("DEVELOPMENT"), "{said}");
    let shown = ok(dir, "inspect release");
    assert!(shown.contains("critical") && shown.contains("linux        6.12"), "{shown}");
    assert!(ok(dir, "inspect release --json").contains("\"version\": \"2.0\""));
    assert_eq!(
        fs::read(made.join(&files.tree)).unwrap(),
        fs::read(lab.path("release").join(&files.tree)).unwrap()
    );
    // Neither may call itself what it is not: a node could not tell what runs.
    refused(dir, &make.replace("--release 2.0", "--release 2.1"), 1, "has no IMAGE_VERSION of 2.1");

    // A rotation; whoever trusts the first document follows when the second comes with the release.
    ok(dir, "keygen new.key");
    refused(
        dir,
        "root roots --key new.key.pub --sign-with new.key",
        1,
        "not accepted by the keys of version 1",
    );
    fs::create_dir(lab.path("first")).unwrap();
    for entry in fs::read_dir(lab.path("roots")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), lab.path("first").join(entry.file_name())).unwrap();
    }
    ok(dir, "root roots --key new.key.pub --sign-with old.key --sign-with new.key");
    fs::remove_dir_all(lab.path("release")).unwrap();
    ok(dir, make);
    ok(dir, "sign release/manifest.json --key new.key");
    refused(dir, "verify release --root first", 1, "trusted are");
    for entry in fs::read_dir(lab.path("roots")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), lab.path("release").join(entry.file_name())).unwrap();
    }
    assert!(ok(dir, "verify release --root first").contains("root document 2"));

    ok(dir, "root dev --development --key old.key --sign-with old.key");
    fs::remove_dir_all(lab.path("release")).unwrap();
    ok(dir, make);
    ok(dir, "sign release/manifest.json --key old.key");
    assert!(ok(dir, "verify release --root dev").contains("DEVELOPMENT"));
}

#[test]
fn mistakes_are_named() {
    let lab = Lab::new();
    let dir = lab.dir.path();
    refused(dir, "status", 3, "not running");
    refused(dir, "stage", 3, "not running");
    refused(dir, "stage latest", 2, "numbers with dots");
    refused(dir, "import nowhere", 3, "not running");
    refused(dir, "verify nowhere --root nowhere", 1, "failed to open folder `nowhere`");
    refused(dir, "frobnicate", 2, "unrecognized");
    refused(dir, "manifest out --release 1.x --minimum 1", 2, "numbers with dots");
    fs::write(lab.path("no.key"), "x").unwrap();
    refused(dir, "sign no.key --key no.key", 1, "cluster-update keygen");
}
