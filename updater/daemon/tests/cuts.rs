// SPDX-License-Identifier: Apache-2.0
//! Power cuts at every write of a staging, on a disk that may lose what was not flushed: what firmware, boot loader and initrd
//! choose is a whole version. The ESP is a real FAT here, written by a library; `just campaign powercut` does the same with what
//! the kernel of a VM writes.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    rc::Rc,
};

use cluster_harness::cuts::{Judge, Lost, Recorder, Replay, Whole, WriteLog, boot_regions, cuts};
use cluster_updater::{
    release::OpenRelease,
    writer::{Devices, finish},
};
use cluster_updater_core::{
    Digest, Disk, Esp, entry::Entry, gpt::State, refund::refund, verity::BLOCK_BYTES,
};
use common::{
    BLOCKS, Lab, RUNNING, bytes,
    fat::{ESP_MIB, Window},
    version,
};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};

const LOADER: &[u8] = b"systemd-boot";
/// Random cuts of one staging, beside those around each write.
const RANDOM: usize = 150;
const SEED: u64 = 0x5107;

/// A lab whose ESP is a FAT, and whose writes can be recorded.
struct Bench {
    lab: Lab,
    recorder: Rc<RefCell<Option<Recorder>>>,
    /// The disk forgets to tell its medium: a flush does nothing.
    deaf: bool,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { lab: Lab::with_esp(ESP_MIB), recorder: Rc::default(), deaf: false };
        // 4 KiB clusters, as mkosi's ESP has.
        let options = FormatVolumeOptions::new().fat_type(FatType::Fat16).bytes_per_cluster(4096);
        let mut window = bench.fat().window();
        format_volume(&mut window, options).unwrap();
        window.commit().unwrap();
        let fat = bench.fat();
        fat.with(|system| {
            for folder in ["EFI", "EFI/BOOT", "EFI/Linux"] {
                system.root_dir().create_dir(folder)?;
            }
            system.root_dir().create_file("EFI/BOOT/BOOTX64.EFI")?.write_all(LOADER)
        })
        .unwrap();
        bench.fat().write(&format!("cluster-os_{RUNNING}.efi"), 0, &running_uki()).unwrap();
        bench
    }

    fn fat(&self) -> FatEsp {
        let disk = File::options().read(true).write(true).open(self.lab.disk_path()).unwrap();
        FatEsp { disk: Rc::new(disk), recorder: self.recorder.clone(), deaf: self.deaf }
    }

    fn disk(&self) -> Recorded {
        Recorded { disk: Box::new(self.lab.disk()), recorder: self.recorder.clone(), deaf: self.deaf }
    }

    fn release(&self, number: &str) -> OpenRelease {
        let seed = u64::from(version(number) > version("1.1"));
        let image = bytes(20 + seed, (BLOCKS as usize - 5) * BLOCK_BYTES);
        self.lab.open(&self.lab.release(number, &image))
    }

    fn stage(&self, release: &OpenRelease) {
        self.lab.stage_on(release, &mut self.disk(), &mut self.fat()).unwrap();
    }

    /// Runs `act` and returns the disk before it, and the log of what it wrote.
    fn record(&self, act: impl FnOnce(&Self)) -> (PathBuf, PathBuf) {
        let (before, log) = (self.lab.path("before"), self.lab.path("log"));
        fs::copy(self.lab.disk_path(), &before).unwrap();
        self.recorder.replace(Some(Recorder::create(&log).unwrap()));
        act(self);
        self.recorder.replace(None);
        (before, log)
    }

    /// What is whole: the running version, and these.
    fn judge(&self, releases: &[&OpenRelease]) -> Judge {
        let mut whole = vec![Whole::new(version(RUNNING), &running_uki(), self.lab.hash)];
        for release in releases {
            let manifest = &release.manifest;
            let dir = self.lab.path(&manifest.version.to_string());
            let uki = fs::read(dir.join(manifest.files().uki)).unwrap();
            whole.push(Whole::new(manifest.version.clone(), &uki, manifest.root.hash));
        }
        Judge::new(whole, Digest::of(LOADER))
    }
}

/// How often what happened.
#[derive(Default)]
struct Found {
    cuts: usize,
    torn: BTreeMap<&'static str, usize>,
    chosen: BTreeMap<String, usize>,
    bad: Vec<String>,
}

/// Tries every cut of a recording.
fn try_all((before, log): &(PathBuf, PathBuf), judge: &mut Judge) -> Found {
    let (base, log) = (File::open(before).unwrap(), WriteLog::open(log).unwrap());
    let size = base.metadata().unwrap().len();
    let mut replay = Replay::new(&base, size, &log).unwrap();
    let nothing = cluster_harness::cuts::Cut { after: 0, lost: Lost::Nothing };
    let start = replay.state(&nothing);
    let regions = boot_regions(&start).unwrap();
    let mut found = Found::default();
    for cut in cuts(&log, 0..log.writes().len(), &regions, RANDOM, SEED) {
        found.cuts += 1;
        match judge.boots(&replay.state(&cut)) {
            Ok(choice) => {
                *found.chosen.entry(choice.version.to_string()).or_default() += 1;
                let torn = match choice.table {
                    State::Whole => continue,
                    State::NoPrimary => "primary",
                    State::NoBackup => "backup",
                };
                *found.torn.entry(torn).or_default() += 1;
            }
            Err(error) => found.bad.push(format!("{cut}: {error:#}")),
        }
    }
    println!(
        "seed {SEED}: {} cuts, chosen {:?}, torn tables {:?}, {} bad",
        found.cuts,
        found.chosen,
        found.torn,
        found.bad.len()
    );
    found
}

#[test]
fn whatever_a_cut_leaves_of_a_first_staging_boots() {
    let bench = Bench::new();
    let release = bench.release("1.1");
    let recording = bench.record(|bench| bench.stage(&release));
    let found = try_all(&recording, &mut bench.judge(&[&release]));
    assert!(
        found.bad.is_empty(),
        "{} bad, the first: {:#?}",
        found.bad.len(),
        &found.bad[..found.bad.len().min(5)]
    );
    assert!(found.cuts >= 200, "only {} cuts", found.cuts);
    assert!(found.torn["primary"] >= 10 && found.torn["backup"] >= 10, "{:?}", found.torn);
    assert!(found.chosen["1.0"] > 100 && found.chosen["1.1"] > 0, "{:?}", found.chosen);
}

/// What is staged already is what would boot, until it has gone.
#[test]
fn whatever_a_cut_leaves_of_a_staging_over_another_boots() {
    let bench = Bench::new();
    let (first, second) = (bench.release("1.1"), bench.release("1.2"));
    bench.stage(&first);
    let recording = bench.record(|bench| bench.stage(&second));
    let found = try_all(&recording, &mut bench.judge(&[&first, &second]));
    assert!(
        found.bad.is_empty(),
        "{} bad, the first: {:#?}",
        found.bad.len(),
        &found.bad[..found.bad.len().min(5)]
    );
    assert!(
        ["1.0", "1.1", "1.2"].iter().all(|version| found.chosen.contains_key(*version)),
        "{:?}",
        found.chosen
    );
}

/// The version on trial loses no more than its entry's name, and then the one before boots.
#[test]
fn whatever_a_cut_leaves_of_a_try_that_is_given_back_boots() {
    let bench = Bench::new();
    let release = bench.release("1.1");
    bench.stage(&release);
    bench.fat().rename("cluster-os_1.1+3-0.efi", "cluster-os_1.1+1-2.efi").unwrap();
    let recording = bench.record(|bench| {
        let mut esp = bench.fat();
        let entries = esp.list().unwrap();
        let mut refund = refund(&entries, &version("1.1"), "cluster-os_1.1+1-2.efi").unwrap();
        let mut devices = Devices { disk: &mut bench.disk(), esp: &mut esp };
        finish(&mut refund.steps, &mut devices).unwrap();
    });
    assert!(bench.fat().list().unwrap().iter().any(|(name, _)| name == "cluster-os_1.1+2-2.efi"));
    let found = try_all(&recording, &mut bench.judge(&[&release]));
    assert!(found.bad.is_empty(), "{:#?}", found.bad);
    assert!(found.cuts > 2 && found.chosen.contains_key("1.1"), "{:?}", found.chosen);
}

#[test]
fn an_entry_that_comes_before_its_slot_is_found_out() {
    let bench = Bench::new();
    let release = bench.release("1.1");
    let uki = fs::read(bench.lab.path("1.1").join(release.manifest.files().uki)).unwrap();
    let recording = bench.record(|bench| {
        // All that a staging does, in another order.
        let mut esp = bench.fat();
        esp.write("cluster-os_1.1.new", 0, &uki).unwrap();
        esp.sync().unwrap();
        let name = Entry::on_trial(&release.manifest.version).to_string();
        esp.rename("cluster-os_1.1.new", &name).unwrap();
        esp.sync().unwrap();
        let outcome = bench.lab.stage_on(&release, &mut bench.disk(), &mut Fixed(esp, name));
        outcome.unwrap();
    });
    let found = try_all(&recording, &mut bench.judge(&[&release]));
    assert!(found.bad.iter().any(|bad| bad.contains("its root is not whole")), "{:?}", found.bad.first());
}

#[test]
fn flushes_that_do_nothing_are_found_out() {
    let mut bench = Bench::new();
    bench.deaf = true;
    let release = bench.release("1.1");
    let recording = bench.record(|bench| bench.stage(&release));
    let found = try_all(&recording, &mut bench.judge(&[&release]));
    assert!(found.bad.iter().any(|bad| bad.contains("no partition table")), "{:?}", found.bad.first());
}

fn running_uki() -> Vec<u8> {
    // Begins as the others do.
    bytes(3, 70_000)
}

/// A disk whose writes are recorded.
struct Recorded {
    disk: Box<dyn Disk>,
    recorder: Rc<RefCell<Option<Recorder>>>,
    deaf: bool,
}

impl Disk for Recorded {
    fn bytes(&self) -> u64 {
        self.disk.bytes()
    }
    fn sector(&self) -> u64 {
        self.disk.sector()
    }
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, buffer)
    }
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write(offset, bytes)?;
        self.recorder.borrow_mut().as_mut().map_or(Ok(()), |recorder| recorder.write(offset, bytes))
    }
    fn flush(&mut self) -> io::Result<()> {
        let mut recorder = self.recorder.borrow_mut();
        recorder.as_mut().filter(|_| !self.deaf).map_or(Ok(()), Recorder::flush)
    }
}

/// The boot entries on a FAT whose writes are recorded. What one call writes goes to the disk at its end, in the order of
/// sectors: tables before directories, as a kernel's writeback has it.
struct FatEsp {
    disk: Rc<File>,
    recorder: Rc<RefCell<Option<Recorder>>>,
    deaf: bool,
}

impl FatEsp {
    fn window(&self) -> Window {
        Window::new(self.disk.clone(), self.recorder.clone())
    }

    fn with<T>(&self, act: impl FnOnce(&FileSystem<Window>) -> io::Result<T>) -> io::Result<T> {
        let window = self.window();
        let mut end = window.again();
        let system = FileSystem::new(window, FsOptions::new().update_accessed_date(false))?;
        let outcome = act(&system)?;
        system.unmount()?;
        end.commit()?;
        Ok(outcome)
    }

    fn flush(&self) -> io::Result<()> {
        let mut recorder = self.recorder.borrow_mut();
        recorder.as_mut().filter(|_| !self.deaf).map_or(Ok(()), Recorder::flush)
    }
}

fn entry(name: &str) -> String {
    format!("EFI/Linux/{name}")
}

impl Esp for FatEsp {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        self.with(|system| {
            let folder = system.root_dir().open_dir("EFI/Linux")?;
            let files = folder.iter().filter(|file| file.as_ref().map_or(true, |file| file.is_file()));
            files.map(|file| file.map(|file| (file.file_name(), file.len()))).collect()
        })
    }
    fn free(&mut self) -> io::Result<u64> {
        self.with(|system| system.stats().map(|stats| u64::from(stats.free_clusters()) * 4096))
    }
    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|system| {
            let mut file = system.root_dir().create_file(&entry(name))?;
            if offset == 0 {
                file.truncate()?;
            }
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(bytes)
        })
    }
    fn sync_file(&mut self, _: &str) -> io::Result<()> {
        self.flush()
    }
    fn read(&mut self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.with(|system| {
            let mut file = system.root_dir().open_file(&entry(name))?;
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(buffer)
        })
    }
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.with(|system| {
            let root = system.root_dir();
            root.rename(&entry(from), &root, &entry(to))
        })
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        match self.with(|system| system.root_dir().remove(&entry(name))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
    fn sync(&mut self) -> io::Result<()> {
        self.flush()
    }
}

/// An ESP whose new boot entry has its name from the beginning.
struct Fixed(FatEsp, String);

impl Fixed {
    fn name<'a>(&'a self, name: &'a str) -> &'a str {
        if name.ends_with(".new") { &self.1 } else { name }
    }
}

impl Esp for Fixed {
    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        let there = self.0.list()?;
        Ok(there.into_iter().filter(|(name, _)| *name != self.1).collect())
    }
    fn free(&mut self) -> io::Result<u64> {
        self.0.free()
    }
    fn write(&mut self, _: &str, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn sync_file(&mut self, name: &str) -> io::Result<()> {
        self.0.sync_file(name)
    }
    fn read(&mut self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let name = self.name(name).to_owned();
        self.0.read(&name, offset, buffer)
    }
    fn rename(&mut self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }
}
