// SPDX-License-Identifier: Apache-2.0
//! `clusterctl provision` on image files, made and looked at with other people's tools (sfdisk, mkfs.vfat, mtools).
#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

const MIB: u64 = 1 << 20;
/// Where `CLUSTER-OS` starts in images made here.
const CONFIG_AT: u64 = 16 * MIB;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A disk image with an ESP and a CLUSTER-OS partition, as mkosi makes it.
    fn image(&self) -> PathBuf {
        self.disk("size=8MiB, type=uefi, name=ESP\nsize=64MiB, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, name=CLUSTER-OS\n")
    }

    fn disk(&self, partitions: &str) -> PathBuf {
        let path = self.path("image.raw");
        File::create(&path).unwrap().set_len(128 * MIB).unwrap();
        let mut sfdisk = Command::new("sfdisk")
            .args(["--quiet", "--no-reread"])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let script = format!("label: gpt\nfirst-lba: {}\n{partitions}", 8 * MIB / 512);
        sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(sfdisk.wait().unwrap().success());
        let sector = (CONFIG_AT / 512).to_string();
        ran(Command::new("mkfs.vfat")
            .args(["-n", "CLUSTER-OS", "--offset", &sector])
            .arg(&path)
            .arg("65536"));
        path
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn provision(&self, target: &Path, more: &[&str]) -> Output {
        self.provision_saying(target, more, "")
    }

    fn provision_saying(&self, target: &Path, more: &[&str], typed: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_clusterctl"))
            .arg("provision")
            .arg(target)
            .args(more)
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may refuse before it reads.
        let _ = child.stdin.take().unwrap().write_all(typed.as_bytes());
        child.wait_with_output().unwrap()
    }
}

fn ran(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].concat().iter().map(|byte| char::from(*byte)).collect()
}

/// What mtools finds at the target.
fn there(image: &Path) -> Option<String> {
    let at = format!("{}@@{CONFIG_AT}", image.display());
    let output = Command::new("mtype").args(["-i", &at, "::cluster.toml"]).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

fn good(name: &str) -> String {
    let key = cluster_agent_core::JoinKey::generate(&[7; 37]).to_text();
    format!("[cluster]\nname = \"{name}\"\njoin_key = \"{key}\"\n")
}

#[test]
fn a_file_gets_onto_an_image_and_what_is_there_is_kept() {
    let bench = Bench::new();
    let image = bench.image();
    bench.file("blue.toml", &good("blue"));
    bench.file("red.toml", &good("red"));
    let first = bench.provision(&image, &["--config", "blue.toml"]);
    assert!(first.status.success() && said(&first).contains("read back"), "{}", said(&first));
    assert_eq!(there(&image).as_deref(), Some(good("blue").as_str()));

    let again = bench.provision(&image, &["--config", "blue.toml"]);
    assert!(again.status.success() && said(&again).contains("already has exactly this"), "{}", said(&again));

    let before = fs::read(&image).unwrap();
    let other = bench.provision(&image, &["--config", "red.toml"]);
    let told = said(&other);
    assert_eq!(other.status.code(), Some(1));
    assert!(
        told.contains("- name = \"blue\"") && told.contains("+ name = \"red\"") && told.contains("--force"),
        "{told}"
    );
    assert!(fs::read(&image).unwrap() == before, "a refusal changed the image");

    let forced = bench.provision(&image, &["--config", "red.toml", "--force"]);
    assert!(forced.status.success() && said(&forced).contains("replaced"), "{}", said(&forced));
    assert_eq!(there(&image).as_deref(), Some(good("red").as_str()));
    let fat = bench.path("fat");
    fs::write(&fat, &fs::read(&image).unwrap()[CONFIG_AT as usize..(CONFIG_AT + 64 * MIB) as usize]).unwrap();
    ran(Command::new("fsck.vfat").arg("-n").arg(&fat));
}

#[test]
fn a_wrong_file_is_named_by_line_and_fix_and_changes_nothing() {
    let bench = Bench::new();
    let image = bench.image();
    let before = fs::read(&image).unwrap();
    bench.file("wrong.toml", &good("blue").replace("name", "nmae"));
    let output = bench.provision(&image, &["--config", "wrong.toml"]);
    let told = said(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("line 2") && told.contains("did you mean `name`?"), "{told}");
    for (more, says) in [
        (&["--config", "absent.toml"][..], "there is no file `absent.toml`"),
        (&[], "--new NAME"),
        (&["--new", "Not a name"], "not a valid name"),
    ] {
        let output = bench.provision(&image, more);
        assert!(!output.status.success() && said(&output).contains(says), "{more:?}: {}", said(&output));
    }
    assert!(fs::read(&image).unwrap() == before, "a refusal changed the image");
    assert!(!bench.path("cluster.toml").exists());
}

#[test]
fn a_new_cluster_is_made_and_kept_for_its_other_sticks() {
    let bench = Bench::new();
    let image = bench.image();
    let output = bench.provision(&image, &["--new", "lab"]);
    assert!(output.status.success(), "{}", said(&output));
    let kept = bench.path("cluster.toml");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&kept).unwrap();
    assert_eq!(cluster_agent_core::Settings::parse(&text).unwrap().cluster_name, "lab");
    assert_eq!(there(&image), Some(text));
    let again = bench.provision(&image, &["--new", "lab"]);
    assert!(!again.status.success() && said(&again).contains("already exists"), "{}", said(&again));
}

#[test]
fn a_torn_partition_table_does_not_keep_it_from_finding_the_partition() {
    let bench = Bench::new();
    let image = bench.image();
    bench.file("blue.toml", &good("blue"));
    OpenOptions::new().write(true).open(&image).unwrap().write_all_at(&[0; 512], 512).unwrap();
    let output = bench.provision(&image, &["--config", "blue.toml"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(there(&image).as_deref(), Some(good("blue").as_str()));
}

#[test]
fn a_disk_of_something_else_is_refused_by_what_it_has() {
    let bench = Bench::new();
    let disk = bench.disk("size=8MiB, type=uefi, name=EFI\nsize=64MiB, type=linux, name=holiday\n");
    bench.file("blue.toml", &good("blue"));
    let before = fs::read(&disk).unwrap();
    let output = bench.provision(&disk, &["--config", "blue.toml", "--force"]);
    let told = said(&output);
    assert!(!output.status.success() && told.contains("`EFI`, `holiday`"), "{told}");
    assert!(fs::read(&disk).unwrap() == before);
}

#[test]
fn an_image_goes_onto_a_stick_whose_name_was_typed_and_nothing_else_does() {
    let bench = Bench::new();
    let image = bench.image();
    bench.file("blue.toml", &good("blue"));
    bench.file("red.toml", &good("red"));
    // An image may bring a file of its own, which is nobody's to keep on the stick.
    assert!(bench.provision(&image, &["--config", "red.toml"]).status.success());
    let stick = bench.path("stick");
    File::create(&stick).unwrap().set_len(15_461_882_265 / 512 * 512).unwrap();
    let arguments = ["--image", "image.raw", "--config", "blue.toml"];
    let beginning = |length: u64| {
        let mut bytes = vec![0; length as usize];
        File::open(&stick).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    for typed in ["", "yes\n", "image.raw\n"] {
        let output = bench.provision_saying(&stick, &arguments, typed);
        assert!(!output.status.success() && said(&output).contains("does not match"), "{}", said(&output));
        assert!(beginning(MIB).iter().all(|byte| *byte == 0));
    }
    let output = bench.provision_saying(&stick, &arguments, "stick\n");
    let told = said(&output);
    assert!(output.status.success(), "{told}");
    assert!(
        told.contains("128.0 MiB written, flushed and read back") && told.contains("reading back"),
        "{told}"
    );
    assert_eq!(there(&stick).as_deref(), Some(good("blue").as_str()));
    assert!(beginning(CONFIG_AT) == fs::read(&image).unwrap()[..CONFIG_AT as usize], "the image is there");
    assert_eq!(there(&image), Some(good("red")), "the image itself is as it was");

    File::create(&stick).unwrap().set_len(8 << 30).unwrap();
    let small = bench.provision_saying(&stick, &arguments, "stick\n");
    assert!(!small.status.success() && said(&small).contains("at least"), "{}", said(&small));
    let folder = bench.provision_saying(bench.dir.path(), &arguments, "");
    assert!(!folder.status.success() && said(&folder).contains("is a folder"), "{}", said(&folder));
    bench.file("other.raw", "no image");
    let other = bench.provision_saying(&stick, &["--image", "other.raw"], "stick\n");
    assert!(
        !other.status.success() && said(&other).contains("not a raw Cluster-OS image"),
        "{}",
        said(&other)
    );
}

/// What somebody types who has no Linux: the texts show a line of Python.
#[test]
fn the_line_that_makes_a_join_key_without_clusterctl_makes_one() {
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("runs under cargo");
    for page in ["docs/install.md", "mkosi.extra/usr/share/clusteros/config-partition/README.txt"] {
        let text = fs::read_to_string(format!("{package}/../../{page}")).unwrap();
        let line = text.lines().map(str::trim).find(|line| line.starts_with("python3 -c ")).unwrap();
        let output = Command::new("sh").args(["-c", line]).output().unwrap();
        let key = cluster_agent_core::JoinKey::parse(said(&output).trim());
        assert!(key.is_ok(), "{page}: {key:?}: {}", said(&output));
    }
}
