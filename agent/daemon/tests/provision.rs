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

/// A line of `authorized_keys` and its damaged forms are in the tests of the core; here is what a person sees.
const SSH_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICruLET1Ovd0eQHOrCKQMLvM+6OEIcr1hzwyAYprmPRi me@laptop";
const ECDSA_KEY: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBMAlNcwl8pg5YLOE4CmxtAX1uKa0BKMOVIJ+R6jnJ+GwJjp+g0AxetKIBNEcO8C/ZAk6fGSbsTVDbRZ2rTpK6R8= me@laptop";

#[test]
fn key_files_of_any_system_are_read() {
    let utf16: Vec<u8> =
        format!("\u{feff}{SSH_KEY}\r\n{ECDSA_KEY}\r\n").encode_utf16().flat_map(u16::to_le_bytes).collect();
    for bytes in [
        format!("# my laptop\n{SSH_KEY}\n\n# desk\n{ECDSA_KEY}\n").into_bytes(),
        format!("\u{feff}{SSH_KEY}\r\n{ECDSA_KEY}\r\n").into_bytes(),
        format!("{SSH_KEY}\r{ECDSA_KEY}\r").into_bytes(),
        utf16,
    ] {
        let bench = Bench::new();
        let image = bench.image();
        fs::write(bench.path("keys"), &bytes).unwrap();
        let output = bench.provision(&image, &["--new", "lab", "--ssh-key", "keys"]);
        assert!(output.status.success(), "{}", said(&output));
        let settings = cluster_agent_core::Settings::parse(&there(&image).unwrap()).unwrap();
        assert_eq!(settings.authorized_keys, [SSH_KEY, ECDSA_KEY]);
    }
}

#[test]
fn a_key_file_that_cannot_serve_is_named_by_line_and_nothing_is_written() {
    let bench = Bench::new();
    let image = bench.image();
    let before = fs::read(&image).unwrap();
    fs::create_dir(bench.path("folder")).unwrap();
    let cut = &SSH_KEY[..72];
    let longer = SSH_KEY.replacen(" me", "AAAA me", 1);
    for (name, content, says) in [
        ("cut.pub", format!("# mine\n{cut}\n"), "cut.pub line 2, column 1: SSH key is damaged"),
        ("longer.pub", longer, "longer.pub line 1, column 1: SSH key is damaged"),
        (
            "options",
            format!("{SSH_KEY}\nfrom=\"10.0.0.0/8\" {SSH_KEY}"),
            "options line 2, column 1: SSH key has options",
        ),
        (
            "dsa.pub",
            "ssh-dss AAAAB3NzaC1kc3MAAACB me".to_owned(),
            "dsa.pub line 1, column 1: DSA keys are obsolete",
        ),
        (
            "id.ppk",
            "PuTTY-User-Key-File-3: ssh-ed25519\r\nEncryption: none\r\n".to_owned(),
            "id.ppk line 1, column 1: this is a PuTTY key",
        ),
        (
            "id",
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk=\n".to_owned(),
            "id line 1, column 1: this is a private key",
        ),
        ("id.pem", "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n".to_owned(), "ssh-keygen -i -m PKCS8"),
        ("id.rfc", "---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n".to_owned(), "ssh-keygen -i -f"),
        ("nothing", String::new(), "nothing: the file is empty"),
        ("comments", "# none\n".to_owned(), "comments: there is no SSH public key"),
        ("binary", "\u{7f}ELF\0\0".to_owned(), "binary: the file is not text"),
        ("large", "#".repeat(100_000), "large: the file is too large"),
        ("odd.pub", SSH_KEY.replacen(' ', "\u{a0}", 1), "odd.pub line 1, column 12: a non-breaking space"),
        ("folder", String::new(), "`folder` is a folder"),
        ("absent", String::new(), "there is no file `absent`"),
    ] {
        if !matches!(name, "folder" | "absent") {
            bench.file(name, &content);
        }
        let output = bench.provision(&image, &["--new", "lab", "--ssh-key", name]);
        let told = said(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {told}");
        assert!(told.contains(says) && told.contains("fix:"), "{name}: {told}");
        assert_eq!(
            told.matches("PRIVATE").count() + told.matches("b3Bl").count(),
            0,
            "no secret is shown: {told}"
        );
        assert!(!bench.path("cluster.toml").exists(), "{name}: a file was kept");
    }
    assert!(fs::read(&image).unwrap() == before, "a refusal changed the image");
}

#[test]
fn a_cluster_toml_with_a_damaged_key_or_a_broken_line_is_named_where_it_is_wrong() {
    let bench = Bench::new();
    let image = bench.image();
    let before = fs::read(&image).unwrap();
    let with = |list: &str, key: &str| format!("{}{list} = [\n  \"{key}\"\n]\n", good("lab"));
    let text = good("lab");
    let (head, tail) = text.split_at(text.len() - 30);
    fs::create_dir(bench.path("folder")).unwrap();
    for (content, says) in [
        (with("[ssh]\nauthorized_keys", &SSH_KEY[..72]), "line 6, column 3: SSH key is damaged"),
        (with("[admin]\nkeys", &SSH_KEY[..72]), "line 6, column 3: SSH key is damaged"),
        (
            with("[ssh]\nauthorized_keys", &SSH_KEY.replace(" me", "AAAA me")),
            "line 6, column 3: SSH key is damaged",
        ),
        (format!("{head}\n{tail}"), "line 3, column 12: the text that begins here is not closed"),
        (text.replace("\"lab\"", "“lab”"), "line 2, column 8: a curly or foreign quote"),
        (text.replace("name =", "name\u{a0}="), "line 2, column 5: a non-breaking space"),
        (SSH_KEY.to_owned(), "line 1, column 1: this is an SSH public key, not a cluster.toml"),
    ] {
        bench.file("wrong.toml", &content);
        let output = bench.provision(&image, &["--config", "wrong.toml"]);
        let told = said(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(
            told.contains(&format!("cluster.toml {says}")) && told.contains("nothing was changed"),
            "{told}"
        );
    }
    let folder = bench.provision(&image, &["--config", "folder"]);
    assert!(folder.status.code() == Some(1) && said(&folder).contains("is a folder"), "{}", said(&folder));
    assert!(fs::read(&image).unwrap() == before, "a refusal changed the image");
}

/// A stick that carried Cluster-OS and was then used for something else: its copy of the table is still at its end.
#[test]
fn a_stick_that_is_something_else_now_is_refused_by_what_it_is() {
    let script = |text: &'static str| {
        move |image: &Path| {
            let mut sfdisk = Command::new("sfdisk")
                .args(["--quiet", "--no-reread"])
                .arg(image)
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            sfdisk.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            assert!(sfdisk.wait().unwrap().success());
        }
    };
    type Use = Box<dyn Fn(&Path)>;
    let uses: [(&str, Use); 7] = [
        (
            "FAT",
            Box::new(|image| {
                ran(Command::new("mkfs.vfat").args(["-I", "-F", "32", "-n", "PHOTOS"]).arg(image))
            }),
        ),
        ("FAT", Box::new(|image| ran(Command::new("mkfs.vfat").args(["-I", "-F", "16"]).arg(image)))),
        ("ext4", Box::new(|image| ran(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(image)))),
        ("swap space", Box::new(|image| ran(Command::new("mkswap").arg("-f").arg(image)))),
        ("an MBR partition table", Box::new(script("label: dos\nsize=32MiB, type=c\n"))),
        (
            // The table in front is still whole where nothing was written over it.
            "an MBR partition table",
            Box::new(|image| {
                let mut first = [0; 512];
                (first[450], first[510], first[511]) = (0x0c, 0x55, 0xaa);
                OpenOptions::new().write(true).open(image).unwrap().write_all_at(&first, 0).unwrap();
            }),
        ),
        (
            "an ISO 9660 image",
            Box::new(|image| {
                let mut iso = vec![0; 36_000];
                iso[32_769..32_774].copy_from_slice(b"CD001");
                (iso[450], iso[510], iso[511]) = (0x17, 0x55, 0xaa);
                OpenOptions::new().write(true).open(image).unwrap().write_all_at(&iso, 0).unwrap();
            }),
        ),
    ];
    for (named, other_use) in uses {
        let bench = Bench::new();
        let image = bench.image();
        bench.file("blue.toml", &good("blue"));
        other_use(&image);
        let before = fs::read(&image).unwrap();
        let output = bench.provision(&image, &["--config", "blue.toml", "--force"]);
        let told = said(&output);
        assert_eq!(output.status.code(), Some(1), "{named}: {told}");
        assert!(told.contains(&format!("it holds {named} now; nothing was changed")), "{named}: {told}");
        assert!(fs::read(&image).unwrap() == before, "{named}: a refusal changed it");
    }
}

#[test]
fn a_config_partition_with_another_file_system_is_named() {
    let bench = Bench::new();
    let image = bench.image();
    bench.file("blue.toml", &good("blue"));
    let offset = format!("offset={CONFIG_AT}");
    ran(Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-L", "CLUSTER-OS", "-E", &offset])
        .arg(&image)
        .arg("64M"));
    let before = fs::read(&image).unwrap();
    let output = bench.provision(&image, &["--config", "blue.toml", "--force"]);
    let told = said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("holds ext4, not FAT") && told.contains("mkfs.vfat -n CLUSTER-OS"), "{told}");
    assert!(fs::read(&image).unwrap() == before, "a refusal changed it");
}

#[test]
fn an_image_for_other_sectors_is_refused() {
    let bench = Bench::new();
    let image = bench.image();
    bench.file("blue.toml", &good("blue"));
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--sector-size", "4096"])
        .arg(&image)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let script = "label: gpt\nsize=8MiB, type=uefi, name=ESP\nsize=64MiB, type=EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, name=CLUSTER-OS\n";
    sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    OpenOptions::new().write(true).open(&image).unwrap().write_all_at(&[0; 512], 512).unwrap();
    let stick = bench.path("stick");
    File::create(&stick).unwrap().set_len(15_461_882_265 / 512 * 512).unwrap();
    for output in [
        bench.provision(&image, &["--config", "blue.toml"]),
        bench.provision_saying(&stick, &["--image", "image.raw", "--config", "blue.toml"], "stick\n"),
    ] {
        let told = said(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("sectors of 4096 bytes, Cluster-OS in 512"), "{told}");
    }
}
