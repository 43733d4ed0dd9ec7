// SPDX-License-Identifier: Apache-2.0
//! The whole slot writer on a disk in a file: what it leaves is what other programs expect, and stopped anywhere it leaves a
//! disk that boots.

mod common;

use std::{cell::Cell, fs, io, process::Command, rc::Rc};

use cluster_updater_core::{Disk, Esp, verity::BLOCK_BYTES};
use common::{BLOCKS, Lab, MIB, bytes, run};

/// Version 1.1: most blocks of 1.0 at another offset, three new ones.
fn next_image(lab: &Lab) -> Vec<u8> {
    let fresh = bytes(9, 3 * BLOCK_BYTES);
    [
        &fresh[..2 * BLOCK_BYTES],
        &lab.image[..200 * BLOCK_BYTES],
        &fresh[2 * BLOCK_BYTES..],
        &lab.image[250 * BLOCK_BYTES..],
    ]
    .concat()
}

#[test]
fn a_release_gets_into_the_other_slot_as_veritysetup_and_sfdisk_expect_it() {
    let lab = Lab::new();
    let image = next_image(&lab);
    let dir = lab.release("1.1", &image);
    let release = lab.open(&dir);
    fs::write(lab.entries().join("cluster-os_0.9.efi"), "the version before").unwrap();
    let moved = lab.stage(&release).unwrap();
    assert_eq!((moved.kept, moved.local, moved.fetched), (0, BLOCKS - 50, 3), "{moved:?}");
    assert!(lab.is_safe(&release.manifest));
    let entries: Vec<String> = lab.esp().list().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(entries, ["cluster-os_1.0.efi", "cluster-os_1.1+3-0.efi"]);

    let table: serde_json::Value =
        serde_json::from_str(&run(Command::new("sfdisk").arg("--json").arg(lab.disk_path()))).unwrap();
    let parts = table["partitiontable"]["partitions"].as_array().unwrap();
    let hash = release.manifest.root.hash.to_string().to_uppercase();
    let plain = |value: &serde_json::Value| value.as_str().unwrap().replace('-', "");
    assert_eq!((plain(&parts[4]["uuid"]), plain(&parts[3]["uuid"])), (hash[..32].into(), hash[32..].into()));
    assert_eq!(
        (&parts[4]["name"], &parts[3]["name"]),
        (&"cluster-os_1.1".into(), &"cluster-os_1.1_verity".into())
    );
    assert_eq!(parts[4]["attrs"], parts[2]["attrs"]);
    assert_eq!((&parts[0]["name"], &parts[5]["name"]), (&"ESP".into(), &"var".into()));
    // sfdisk reports a backup that differs.
    let verify = Command::new("sfdisk").arg("--verify").arg(lab.disk_path()).output().unwrap();
    let said =
        String::from_utf8_lossy(&verify.stdout).into_owned() + &String::from_utf8_lossy(&verify.stderr);
    assert!(said.contains("No errors detected"), "{said}");

    let cut = |name: &str, offset: u64, length: u64| {
        let disk = fs::read(lab.disk_path()).unwrap();
        fs::write(lab.path(name), &disk[offset as usize..(offset + length) as usize]).unwrap();
    };
    let other = lab.slots().other;
    cut("data", other.data.offset, release.manifest.root.data_bytes);
    cut("hashes", other.tree.offset, other.tree.bytes);
    let veritysetup = |hash: &str| {
        let mut command = Command::new("veritysetup");
        command.arg("verify").arg(lab.path("data")).arg(lab.path("hashes")).arg(hash);
        command.output().unwrap().status.success()
    };
    assert!(veritysetup(&hash.to_lowercase()));
    assert!(!veritysetup(&lab.hash.to_string()), "veritysetup accepts anything here");
}

#[test]
fn staging_again_is_refused_and_the_next_release_takes_its_place() {
    let lab = Lab::new();
    let first = lab.open(&lab.release("1.1", &next_image(&lab)));
    lab.stage(&first).unwrap();
    let again = lab.stage(&first).unwrap_err().to_string();
    assert!(again.contains("staged already"), "{again}");
    let second = lab.open(&lab.release("1.2", &bytes(11, 40 * BLOCK_BYTES)));
    lab.stage(&second).unwrap();
    assert!(lab.is_safe(&second.manifest) && !lab.is_safe(&first.manifest));
}

/// Counts operations and fails from the one on that is asked for, with half of a write done: a power cut.
#[derive(Clone, Default)]
struct Fuse {
    left: Rc<Cell<Option<u32>>>,
    count: Rc<Cell<u32>>,
}

impl Fuse {
    fn blows(&self) -> bool {
        self.count.set(self.count.get() + 1);
        match self.left.get() {
            Some(0) => true,
            Some(left) => {
                self.left.set(Some(left - 1));
                false
            }
            None => false,
        }
    }
}

fn dark() -> io::Error {
    io::Error::other("the power is gone")
}

struct Fused<T>(T, Fuse);

impl<T: Disk> Disk for Fused<T> {
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }
    fn sector(&self) -> u64 {
        self.0.sector()
    }
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, buffer)
    }
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.1.blows() {
            if self.1.left.replace(Some(0)).is_some() {
                let half = bytes.len() / 2 / 512 * 512;
                self.0.write(offset, &bytes[..half])?;
            }
            return Err(dark());
        }
        self.0.write(offset, bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        if self.1.blows() { Err(dark()) } else { self.0.flush() }
    }
}

impl<T: Esp> Esp for Fused<T> {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        self.0.list()
    }
    fn free(&mut self) -> io::Result<u64> {
        self.0.free()
    }
    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.1.blows() { Err(dark()) } else { self.0.write(name, offset, bytes) }
    }
    fn sync_file(&mut self, name: &str) -> io::Result<()> {
        if self.1.blows() { Err(dark()) } else { self.0.sync_file(name) }
    }
    fn read(&mut self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(name, offset, buffer)
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        if self.1.blows() { Err(dark()) } else { self.0.rename(from, to) }
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        if self.1.blows() { Err(dark()) } else { self.0.remove(name) }
    }
    fn sync(&mut self) -> io::Result<()> {
        if self.1.blows() { Err(dark()) } else { self.0.sync() }
    }
}

/// Writes reach the medium in the order in which they were made here; that they may not is for the campaign of power cuts.
#[test]
fn stopped_at_any_operation_the_running_version_boots_and_the_next_attempt_succeeds() {
    let lab = Lab::new();
    let before = lab.open(&lab.release("1.1", &next_image(&lab)));
    lab.stage(&before).unwrap();
    let release = lab.open(&lab.release("1.2", &bytes(12, BLOCKS as usize * BLOCK_BYTES)));
    let disk = fs::read(lab.disk_path()).unwrap();
    let mut cut = 0;
    let cuts = loop {
        fs::write(lab.disk_path(), &disk).unwrap();
        for (name, _) in lab.esp().list().unwrap() {
            if name.contains("1.2") {
                lab.esp().remove(&name).unwrap();
            }
        }
        fs::write(lab.entries().join("cluster-os_1.1+3-0.efi"), vec![0; before.manifest.uki.bytes as usize])
            .unwrap();
        let fuse = Fuse::default();
        fuse.left.set(Some(cut));
        let staged =
            lab.stage_on(&release, &mut Fused(lab.disk(), fuse.clone()), &mut Fused(lab.esp(), fuse.clone()));
        if staged.is_ok() {
            break cut;
        }
        // The old entry is gone before anything of its slot is; the new one comes when all is there.
        lab.is_safe(&before.manifest);
        lab.is_safe(&release.manifest);
        match lab.stage(&release) {
            Ok(_) => {}
            Err(error) => assert!(error.to_string().contains("staged already"), "cut {cut}: {error:#}"),
        }
        assert!(lab.is_safe(&release.manifest), "cut {cut}");
        cut += 1;
    };
    assert!(cuts > 20, "only {cuts} places to stop at");
}

#[test]
fn an_interrupted_attempt_is_taken_up_where_it_ended() {
    let lab = Lab::new();
    let release = lab.open(&lab.release("1.2", &bytes(12, BLOCKS as usize * BLOCK_BYTES)));
    // Entry and table take nine operations, the first piece of 256 blocks the tenth.
    let fuse = Fuse::default();
    fuse.left.set(Some(10));
    lab.stage_on(&release, &mut Fused(lab.disk(), fuse.clone()), &mut Fused(lab.esp(), fuse)).unwrap_err();
    let moved = lab.stage(&release).unwrap();
    // Of the second piece, 77 blocks, the first half was written.
    assert_eq!((moved.kept, moved.fetched), (256 + 38, BLOCKS - 256 - 38));
}

/// A disk that says it wrote and did not.
struct Forgetful<T>(T, u64);

impl<T: Disk> Disk for Forgetful<T> {
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }
    fn sector(&self) -> u64 {
        self.0.sector()
    }
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, buffer)
    }
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if (offset..offset + bytes.len() as u64).contains(&self.1) {
            Ok(())
        } else {
            self.0.write(offset, bytes)
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn a_disk_that_forgets_gets_no_boot_entry() {
    for (of_tree, at) in [(false, MIB), (true, 0), (true, BLOCK_BYTES as u64)] {
        let lab = Lab::new();
        let release = lab.open(&lab.release("1.1", &next_image(&lab)));
        let other = lab.slots().other;
        let lost = at + if of_tree { other.tree.offset } else { other.data.offset };
        let error = lab.stage_on(&release, &mut Forgetful(lab.disk(), lost), &mut lab.esp()).unwrap_err();
        assert!(error.to_string().contains("the disk is failing"), "{error:#}");
        assert!(!lab.is_safe(&release.manifest));
    }
}

#[test]
fn a_source_that_lies_gets_nothing_written_to_the_boot_path() {
    let lab = Lab::new();
    let dir = lab.release("1.1", &next_image(&lab));
    let files = lab.open(&dir).manifest.files();
    for (name, at) in [(&files.root, 100), (&files.uki, 1_200_000)] {
        let good = fs::read(dir.join(name)).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(dir.join(name), bad).unwrap();
        let release = lab.open(&dir);
        let error = lab.stage(&release).unwrap_err().to_string();
        assert!(error.contains("import the release again"), "{error}");
        assert!(!lab.is_safe(&release.manifest));
        fs::write(dir.join(name), good).unwrap();
    }
}

/// An ESP on which the new boot entry lies on clusters of the running one's.
struct Crossed<T>(T, Rc<Cell<bool>>);

impl<T: Esp> Esp for Crossed<T> {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        self.0.list()
    }
    fn free(&mut self) -> io::Result<u64> {
        self.0.free()
    }
    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.1.take() {
            self.0.write("cluster-os_1.0.efi", 0, &bytes[..70_000])?;
        }
        self.0.write(name, offset, bytes)
    }
    fn sync_file(&mut self, name: &str) -> io::Result<()> {
        self.0.sync_file(name)
    }
    fn read(&mut self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(name, offset, buffer)
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }
}

#[test]
fn a_running_boot_entry_that_changes_meanwhile_is_noticed() {
    let lab = Lab::new();
    let release = lab.open(&lab.release("1.1", &next_image(&lab)));
    let crossed = Rc::new(Cell::new(true));
    let error =
        lab.stage_on(&release, &mut lab.disk(), &mut Crossed(lab.esp(), crossed)).unwrap_err().to_string();
    assert!(error.contains("changed while the other one was written"), "{error}");
    let entries: Vec<String> = lab.esp().list().unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(entries, ["cluster-os_1.0.efi", "cluster-os_1.1.new"]);
    // The new one was checked on the medium, and may be all that boots by now: the next attempt brings it in.
    lab.stage(&release).unwrap();
    assert!(lab.entries().join("cluster-os_1.1+3-0.efi").exists());
}
