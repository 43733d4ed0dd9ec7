// SPDX-License-Identifier: Apache-2.0
//! The disks of this machine, and what is on them: by lsblk(8) and wipefs(8), which know more kinds of content than we would.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use cluster_updater_core::install::target::{Refusal, Target};
use serde::{Deserialize, Deserializer};

use super::tools::{self, output};
use crate::{disk::BlockDisk, writer};

// With the name lsblk shows what is part of what; without it everything stands side by side.
const COLUMNS: &str = "NAME,PATH,TYPE,SIZE,MODEL,SERIAL,RO,LOG-SEC,MOUNTPOINTS";

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What counts for writing over it.
    pub target: Target,
    /// Where it hangs, as `/sys` says.
    pub place: PathBuf,
    /// The kernel's names of its partitions.
    pub partitions: Vec<String>,
}

#[derive(Deserialize)]
struct Listing {
    blockdevices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    size: u64,
    #[serde(default, deserialize_with = "text")]
    model: String,
    #[serde(default, deserialize_with = "text")]
    serial: String,
    ro: bool,
    #[serde(rename = "log-sec")]
    sector: u64,
    #[serde(default)]
    mountpoints: Vec<Option<String>>,
    #[serde(default)]
    children: Vec<Device>,
}

/// Something that says what a disk or partition holds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Signature {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    label: Option<String>,
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default().trim().to_owned())
}

/// All disks, in the kernel's order; `running` is the one that this node runs from.
///
/// # Errors
/// When lsblk fails.
pub fn list(running: &Path) -> Result<Vec<Found>> {
    let mut disks = read(&lsblk()?, running, |path| {
        let json = output(Command::new("wipefs").args(["--no-act", "--json", path]))?;
        signatures(&json).with_context(|| format!("failed to read what wipefs says of `{path}`"))
    })?;
    note_second_paths(&mut disks, |target| {
        let table =
            writer::read_table(&mut BlockDisk::open(Path::new(&target.path), target.sector).ok()?).ok()?;
        Some((table.disk(), table.partitions()))
    });
    note_loops(&mut disks, &loops()?);
    Ok(disks)
}

/// The same without a look at what is on them, so that none of them can fail.
///
/// # Errors
/// When lsblk fails.
pub fn attached(running: &Path) -> Result<Vec<Found>> {
    read(&lsblk()?, running, |_| Ok(Vec::new()))
}

fn lsblk() -> Result<String> {
    output(Command::new("lsblk").args(["--json", "--bytes", "--output", COLUMNS]))
}

/// The disk that somebody named, by any of its names.
///
/// # Errors
/// When there is none, or it is a partition.
pub fn choose(disks: Vec<Found>, named: &Path) -> Result<Found, Refusal> {
    let path = fs::canonicalize(named).unwrap_or_else(|_| named.to_owned()).display().to_string();
    if let Some(on) = disks.iter().find(|disk| disk.partitions.contains(&path)) {
        return Err(Refusal::Partition { partition: path, disk: on.target.path.clone() });
    }
    disks.into_iter().find(|disk| disk.target.path == path).ok_or(Refusal::NoDisk(path))
}

fn read(json: &str, running: &Path, look: impl Fn(&str) -> Result<Vec<Signature>>) -> Result<Vec<Found>> {
    let listing: Listing = serde_json::from_str(json).context("failed to read what lsblk says")?;
    let is_disk = |device: &Device| {
        let in_memory = ["/dev/ram", "/dev/zram"].iter().any(|start| device.path.starts_with(start));
        device.kind == "disk" && device.size > 0 && !in_memory
    };
    Ok(listing.blockdevices.into_iter().filter(is_disk).map(|device| found(device, running, &look)).collect())
}

fn found(device: Device, running: &Path, look: &impl Fn(&str) -> Result<Vec<Signature>>) -> Found {
    let mut used = Vec::new();
    uses(&device, &mut used);
    let partitions: Vec<String> =
        device.children.iter().filter(|child| child.kind == "part").map(|child| child.path.clone()).collect();
    // What cannot be read may be somebody's.
    let contents = look(&device.path)
        .and_then(|on_disk| contents(&on_disk, &partitions, look))
        .unwrap_or_else(|error| vec![format!("content that cannot be read ({error:#})")]);
    let name = Path::new(&device.path)
        .strip_prefix("/dev")
        .unwrap_or(Path::new(""))
        .to_string_lossy()
        .replace('/', "!");
    let place = Path::new("/sys/class/block").join(name);
    Found {
        place: fs::canonicalize(&place).unwrap_or(place),
        partitions,
        target: Target {
            is_running: Path::new(&device.path) == running,
            path: device.path,
            model: device.model,
            serial: device.serial,
            bytes: device.size,
            sector: device.sector,
            read_only: device.ro,
            used,
            contents,
        },
    }
}

/// The kernel shows a disk with two paths as two disks, and what uses one of them keeps nobody off the other. Serial numbers alone
/// do not tell: cheap sticks share them.
fn note_second_paths<T: PartialEq>(disks: &mut [Found], table_of: impl Fn(&Target) -> Option<T>) {
    let Some(running) = disks.iter().find(|disk| disk.target.is_running).map(|disk| disk.target.clone())
    else {
        return;
    };
    let table = table_of(&running);
    for Found { target, .. } in disks.iter_mut().filter(|disk| !disk.target.is_running) {
        let alike = (&target.serial, target.bytes) == (&running.serial, running.bytes);
        if alike && table.is_some() && table_of(target) == table {
            target.used.push(format!(
                "it has serial number, size and partition table of {}, from which this node runs: it is that disk by a second path, \
                 or a copy of it",
                running.path
            ));
        }
    }
}

/// Nothing but losetup(8) knows of these; those of an installation that was interrupted are nobody's.
fn note_loops(disks: &mut [Found], loops: &[Loop]) {
    for Loop { name, over } in loops.iter().filter(|found| !tools::is_ours(Path::new(&found.name))) {
        let uses = |disk: &&mut Found| disk.target.path == *over || disk.partitions.contains(over);
        for disk in disks.iter_mut().filter(uses) {
            disk.target.used.push(format!(
                "{over} is under loop device {name} (where nobody needs it, `losetup --detach {name}` removes it)"
            ));
        }
    }
}

#[derive(Deserialize)]
struct Loop {
    name: String,
    #[serde(rename = "back-file", default, deserialize_with = "text")]
    over: String,
}

fn loops() -> Result<Vec<Loop>> {
    parse_loops(&output(Command::new("losetup").args(["--list", "--json", "--output", "NAME,BACK-FILE"]))?)
}

/// losetup prints nothing where there is none.
fn parse_loops(json: &str) -> Result<Vec<Loop>> {
    #[derive(Deserialize)]
    struct Loops {
        loopdevices: Vec<Loop>,
    }
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    let loops: Loops = serde_json::from_str(json).context("failed to read what losetup says")?;
    Ok(loops.loopdevices)
}

fn uses(device: &Device, used: &mut Vec<String>) {
    for place in device.mountpoints.iter().flatten() {
        used.push(match place.as_str() {
            "[SWAP]" => format!("{} is swap space", device.path),
            place => format!("{} is mounted at {place}", device.path),
        });
    }
    for child in &device.children {
        if child.kind != "part" {
            used.push(format!("{} is part of {} ({})", device.path, child.path, child.kind));
        }
        uses(child, used);
    }
}

/// For people: a partition table with what is in its partitions, and everything else.
fn contents(
    on_disk: &[Signature],
    partitions: &[String],
    look: &impl Fn(&str) -> Result<Vec<Signature>>,
) -> Result<Vec<String>> {
    let mut contents = Vec::new();
    for signature in on_disk {
        let text = match signature.kind.as_str() {
            // It protects a table of the other kind, and is nothing without one.
            "PMBR" => continue,
            "gpt" | "dos" | "sun" | "sgi" | "bsd" | "mac" | "atari" => {
                let count = partitions.len();
                let mut text = format!(
                    "a {} partition table with {count} partition{}",
                    signature.kind,
                    if count == 1 { "" } else { "s" }
                );
                let mut inside = Vec::new();
                for partition in partitions {
                    inside.extend(look(partition)?.iter().map(described));
                }
                if !inside.is_empty() {
                    inside.dedup();
                    text += &format!(": {}", inside.join(", "));
                }
                text
            }
            _ => described(signature),
        };
        // Both copies of a table have a signature.
        if !contents.contains(&text) {
            contents.push(text);
        }
    }
    // The table was destroyed a moment ago, and perhaps by mistake: what the kernel read of it is still there.
    if contents.is_empty() && !partitions.is_empty() {
        contents.push(format!("partitions whose table is gone ({})", partitions.join(", ")));
    }
    Ok(contents)
}

fn described(signature: &Signature) -> String {
    match signature.label.as_deref() {
        Some(label) if !label.is_empty() => format!("{} `{}`", signature.kind, label.escape_debug()),
        _ => signature.kind.clone(),
    }
}

/// wipefs prints nothing where there is nothing.
fn signatures(json: &str) -> Result<Vec<Signature>> {
    #[derive(Deserialize)]
    struct Signatures {
        signatures: Vec<Signature>,
    }
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    Ok(serde_json::from_str::<Signatures>(json)?.signatures)
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    const LSBLK: &str = r#"{"blockdevices": [
        {"path":"/dev/sda","type":"disk","size":16013942784,"model":"Stick   ","serial":"A1","ro":false,"log-sec":512,"mountpoints":[null],
         "children":[{"path":"/dev/sda4","type":"part","size":1,"model":null,"serial":null,"ro":false,"log-sec":512,"mountpoints":[null],
            "children":[{"path":"/dev/mapper/root","type":"crypt","size":1,"model":null,"serial":null,"ro":true,"log-sec":512,"mountpoints":["/"]}]}]},
        {"path":"/dev/sr0","type":"rom","size":1,"model":null,"serial":null,"ro":false,"log-sec":2048,"mountpoints":[null]},
        {"path":"/dev/zram0","type":"disk","size":4096,"model":null,"serial":null,"ro":false,"log-sec":4096,"mountpoints":["[SWAP]"]},
        {"path":"/dev/nvme0n1","type":"disk","size":500107862016,"model":"Fast","serial":null,"ro":false,"log-sec":512,"mountpoints":[null],
         "children":[
            {"path":"/dev/nvme0n1p1","type":"part","size":1,"model":null,"serial":null,"ro":false,"log-sec":512,"mountpoints":[null]},
            {"path":"/dev/nvme0n1p2","type":"part","size":1,"model":null,"serial":null,"ro":false,"log-sec":512,"mountpoints":["[SWAP]"]}]}
    ]}"#;

    fn look(path: &str) -> Result<Vec<Signature>> {
        signatures(match path {
            "/dev/nvme0n1" => {
                r#"{"signatures": [{"device":"nvme0n1","offset":"0x200","type":"gpt","uuid":null,"label":null},
                    {"device":"nvme0n1","offset":"0x7470c05e00","type":"gpt","uuid":null,"label":null},
                    {"device":"nvme0n1","offset":"0x1fe","type":"PMBR","uuid":null,"label":null}]}"#
            }
            "/dev/nvme0n1p1" => {
                r#"{"signatures": [{"device":"nvme0n1p1","offset":"0x438","type":"ext4","uuid":"1","label":"data\u001b[2J"}]}"#
            }
            "/dev/nvme0n1p2" => {
                r#"{"signatures": [{"device":"nvme0n1p2","offset":"0xff6","type":"swap","uuid":"1","label":null}]}"#
            }
            _ => "\n",
        })
    }

    #[test]
    fn disks_are_listed_with_who_uses_them_and_what_is_on_them() {
        let disks = read(LSBLK, Path::new("/dev/sda"), look).unwrap();
        let [stick, fast] = disks.as_slice() else { panic!("{disks:?}") };
        assert!(stick.target.is_running && !fast.target.is_running);
        assert_eq!(stick.target.model, "Stick");
        assert_eq!(
            stick.target.used,
            ["/dev/sda4 is part of /dev/mapper/root (crypt)", "/dev/mapper/root is mounted at /"]
        );
        assert_eq!(fast.target.used, ["/dev/nvme0n1p2 is swap space"]);
        // A label is somebody else's text: it does not reach the terminal as it is.
        assert_eq!(
            fast.target.contents,
            [r"a gpt partition table with 2 partitions: ext4 `data\u{1b}[2J`, swap"]
        );
        assert_eq!(stick.target.contents, ["partitions whose table is gone (/dev/sda4)"]);
    }

    /// Two paths to one disk, and another one of the same make.
    #[test]
    fn a_second_path_to_the_disk_of_this_node_is_in_use() {
        let disks = || {
            let mut disks = read(LSBLK, Path::new("/dev/sda"), look).unwrap();
            for (path, serial) in [("/dev/sdb", "A1"), ("/dev/sdc", "A2"), ("/dev/sdd", "A1")] {
                let mut disk = disks[0].clone();
                disk.target = Target { path: path.into(), serial: serial.into(), ..disk.target };
                (disk.target.is_running, disk.target.used) = (false, Vec::new());
                disks.push(disk);
            }
            disks
        };
        let used = |mut disks: Vec<Found>, table_of: fn(&Target) -> Option<char>| {
            note_second_paths(&mut disks, table_of);
            let twins =
                disks.into_iter().filter(|disk| !disk.target.used.is_empty() && !disk.target.is_running);
            twins.map(|disk| (disk.target.path, disk.target.used.join("; "))).collect::<Vec<_>>()
        };
        let found = used(disks(), |target| Some(if target.path == "/dev/sdd" { 'd' } else { 'a' }));
        let named: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(named, ["/dev/nvme0n1", "/dev/sdb"]);
        assert!(found[1].1.contains("of /dev/sda, from which this node runs"), "{found:?}");
        // Disks without a table are not the same for that.
        assert_eq!(used(disks(), |_| None).len(), 1);
    }

    #[test]
    fn a_loop_device_over_a_disk_is_named_with_the_way_to_remove_it() {
        let json = r#"{"loopdevices": [{"name":"/dev/loop3","back-file":"/dev/nvme0n1"},
            {"name":"/dev/loop4","back-file":"/dev/nvme0n1p1"},
            {"name":"/dev/loop5","back-file":"/var/image"}, {"name":"/dev/loop6","back-file":null}]}"#;
        let mut disks = read(LSBLK, Path::new("/dev/sda"), look).unwrap();
        let before = disks[0].clone();
        note_loops(&mut disks, &parse_loops(json).unwrap());
        assert_eq!(disks[0], before);
        let used = disks[1].target.used.join("\n");
        assert!(used.contains("/dev/nvme0n1 is under loop device /dev/loop3"), "{used}");
        assert!(used.contains("`losetup --detach /dev/loop4`") && !used.contains("loop5"), "{used}");
        assert!(parse_loops("").unwrap().is_empty());
    }

    #[test]
    fn a_disk_that_cannot_be_read_is_not_taken_for_an_empty_one() {
        let disks = read(LSBLK, Path::new("/dev/sda"), |path| bail!("{path} fails")).unwrap();
        assert_eq!(disks[1].target.contents, ["content that cannot be read (/dev/nvme0n1 fails)"]);
    }

    #[test]
    fn a_partition_and_a_disk_that_is_not_there_are_told_apart() {
        let disks = || read(LSBLK, Path::new("/dev/sda"), look).unwrap();
        let refused = |name: &str| choose(disks(), Path::new(name)).unwrap_err();
        assert!(
            matches!(refused("/dev/nvme0n1p2"), Refusal::Partition { disk, .. } if disk == "/dev/nvme0n1")
        );
        assert!(matches!(refused("/dev/sdz"), Refusal::NoDisk(_)));
        assert_eq!(choose(disks(), Path::new("/dev/nvme0n1")).unwrap().target.model, "Fast");
    }

    /// By the programs that a node has, on a disk in a file.
    #[test]
    fn wipefs_names_what_mkfs_has_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
        let named = |path: &Path| {
            let path = path.display().to_string();
            let json = output(Command::new("wipefs").args(["--no-act", "--json", &path])).unwrap();
            contents(&signatures(&json).unwrap(), &[], &|_| Ok(Vec::new())).unwrap()
        };
        assert_eq!(named(&path), [""; 0]);
        output(Command::new("mkfs.ext4").args(["-q", "-F", "-L", "data"]).arg(&path)).unwrap();
        assert_eq!(named(&path), ["ext4 `data`"]);
    }
}
