// SPDX-License-Identifier: Apache-2.0
//! The boot loader is replaced on a FAT whose every write may be the last one: firmware finds the old one or the new one, whole,
//! in both places. A rename over a file is done here as the kernel's FAT does it, in the order that is worst.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    rc::Rc,
};

use cluster_harness::cuts::{
    Cut, Fat, Judge, Lost, Medium, Recorder, Replay, Whole, WriteLog, boot_regions, cuts,
};
use cluster_updater::{
    loader::{OnEsp, carry_out, look},
    updater::Updater,
};
use cluster_updater_core::{
    Digest,
    loader::{Effect, Facts, Loader, Loaders, PLACES, Plan},
};
use common::{
    Lab, MIB, RUNNING, bytes,
    fat::{ESP_AT, ESP_MIB, Window},
    version,
};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};

const RANDOM: usize = 400;
const SEED: u64 = 0x10ade2;

/// Longer than a cluster, and no whole number of them.
fn loader(number: u64) -> Vec<u8> {
    [&bytes(number, 9000)[..], b"#### LoaderInfo: systemd-boot 257 ####"].concat()
}

fn uki() -> Vec<u8> {
    bytes(3, 70_000)
}

type Recording = Rc<RefCell<Option<Recorder>>>;

/// The ESP of a disk. What one step writes goes to the disk at its end.
struct KernelFat {
    disk: Rc<File>,
    recorder: Recording,
    /// The old content is freed before the new name is on the medium, as it is where nobody holds the file.
    hasty: bool,
}

impl KernelFat {
    fn of(disk: &Path, recorder: Recording) -> Self {
        let disk = File::options().read(true).write(true).open(disk).unwrap();
        Self { disk: Rc::new(disk), recorder, hasty: false }
    }

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
        self.recorder.borrow_mut().as_mut().map_or(Ok(()), Recorder::flush)
    }

    fn get(&self, at: u64, length: usize) -> Vec<u8> {
        let mut buffer = vec![0; length];
        let mut window = self.window();
        window.seek(SeekFrom::Start(at)).unwrap();
        window.read_exact(&mut buffer).unwrap();
        buffer
    }

    /// One write of its own.
    fn put(&self, changes: &[(u64, Vec<u8>)]) {
        let mut window = self.window();
        for (at, bytes) in changes {
            window.seek(SeekFrom::Start(*at)).unwrap();
            window.write_all(bytes).unwrap();
        }
        window.commit().unwrap();
    }

    fn geometry(&self) -> Geometry {
        let boot = self.get(0, 512);
        let word = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let (reserved, tables, size) = (word(14), u64::from(boot[16]), word(22));
        let root = (reserved + tables * size) * 512;
        let cluster = u64::from(boot[13]) * 512;
        Geometry {
            reserved,
            tables,
            size,
            root,
            data: root + word(17) * 32,
            cluster,
            slots: word(17) as usize,
        }
    }

    /// Slots of a name in a folder: place of the first and of the last one, which is the short one.
    fn slots(&self, path: &str) -> (u64, u64) {
        let geometry = self.geometry();
        let (mut at, mut count) = (geometry.root, geometry.slots);
        let mut parts = path.split('/').peekable();
        loop {
            let part = parts.next().unwrap();
            let (first, short) =
                self.find(at, count, part).unwrap_or_else(|| panic!("no `{part}` in {path}"));
            if parts.peek().is_none() {
                return (first, short);
            }
            let entry = self.get(short, 32);
            at = geometry.place(u64::from(u16::from_le_bytes([entry[26], entry[27]])));
            count = geometry.cluster as usize / 32;
        }
    }

    fn find(&self, at: u64, count: usize, wanted: &str) -> Option<(u64, u64)> {
        let mut long = String::new();
        let mut first = None;
        for number in 0..count {
            let place = at + number as u64 * 32;
            let slot = self.get(place, 32);
            match (slot[0], slot[11]) {
                (0, _) => return None,
                (0xe5, _) => (long, first) = (String::new(), None),
                (_, 0x0f) => {
                    let units = slot[1..11].iter().chain(&slot[14..26]).chain(&slot[28..32]).copied();
                    let units: Vec<u8> = units.collect();
                    let units = units.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit));
                    let text: Vec<u16> = units.take_while(|unit| !matches!(unit, 0 | 0xffff)).collect();
                    long = String::from_utf16(&text).unwrap() + &long;
                    first.get_or_insert(place);
                }
                _ => {
                    let field =
                        |range| str::from_utf8(&slot[range]).unwrap_or_default().trim_end().to_owned();
                    let (base, end) = (field(0..8), field(8..11));
                    let short = if end.is_empty() { base } else { format!("{base}.{end}") };
                    if long.eq_ignore_ascii_case(wanted) || short.eq_ignore_ascii_case(wanted) {
                        return Some((first.unwrap_or(place), place));
                    }
                    (long, first) = (String::new(), None);
                }
            }
        }
        None
    }

    /// Frees a chain of clusters in both tables.
    fn free_chain(&self, mut cluster: u64) {
        let geometry = self.geometry();
        let mut changes = Vec::new();
        while (2..0xfff8).contains(&cluster) {
            for table in 0..geometry.tables {
                let at = (geometry.reserved + table * geometry.size) * 512 + cluster * 2;
                changes.push((at, vec![0, 0]));
            }
            let next = self.get(geometry.reserved * 512 + cluster * 2, 2);
            cluster = u64::from(u16::from_le_bytes([next[0], next[1]]));
        }
        self.put(&changes);
    }
}

/// Of a FAT16; places are bytes.
struct Geometry {
    reserved: u64,
    tables: u64,
    size: u64,
    root: u64,
    data: u64,
    cluster: u64,
    slots: usize,
}

impl Geometry {
    fn place(&self, cluster: u64) -> u64 {
        self.data + (cluster - 2) * self.cluster
    }
}

impl Loaders for KernelFat {
    fn read(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let mut content = Vec::new();
        let read = self.with(|system| {
            let mut file = system.root_dir().open_file(path)?;
            file.read_to_end(&mut content)
        });
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(|_| Some(content)),
        }
    }
    fn write(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.with(|system| {
            let mut file = system.root_dir().create_file(path)?;
            file.truncate()?;
            file.write_all(bytes)
        })?;
        self.flush()
    }
    fn replace(&mut self, from: &str, to: &str) -> io::Result<()> {
        let (first, source) = self.slots(from);
        let (_, target) = self.slots(to);
        let (new, mut entry) = (self.get(source, 32), self.get(target, 32));
        let old = u64::from(u16::from_le_bytes([entry[26], entry[27]]));
        entry[20..22].copy_from_slice(&new[20..22]);
        entry[26..32].copy_from_slice(&new[26..32]);
        if self.hasty {
            self.free_chain(old);
        }
        self.put(&[(target, entry)]);
        let gone = (first..=source).step_by(32).map(|slot| (slot, vec![0xe5]));
        self.put(&gone.collect::<Vec<_>>());
        self.flush()?;
        if !self.hasty {
            self.free_chain(old);
        }
        self.flush()
    }
    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.with(|system| system.root_dir().remove(path))
    }
    fn free(&mut self) -> io::Result<u64> {
        self.with(|system| system.stats().map(|stats| u64::from(stats.free_clusters()) * 4096))
    }
}

/// A disk that boots, with boot loader 1 in both places.
fn bench() -> Lab {
    let lab = Lab::with_esp(ESP_MIB);
    let esp = KernelFat::of(&lab.disk_path(), Rc::default());
    let options = FormatVolumeOptions::new().fat_type(FatType::Fat16).bytes_per_cluster(4096);
    let mut window = esp.window();
    format_volume(&mut window, options).unwrap();
    window.commit().unwrap();
    esp.with(|system| {
        let root = system.root_dir();
        for folder in ["EFI", "EFI/BOOT", "EFI/Linux", "EFI/systemd"] {
            root.create_dir(folder)?;
        }
        for place in PLACES {
            root.create_file(place)?.write_all(&loader(1))?;
        }
        root.create_file(&format!("EFI/Linux/cluster-os_{RUNNING}.efi"))?.write_all(&uki())
    })
    .unwrap();
    lab
}

fn replace(esp: &mut dyn Loaders, image: &[u8]) -> anyhow::Result<()> {
    let (files, free) = (look(esp)?, esp.free()?);
    carry_out(&plan(&files, image, free)?, esp, image)
}

fn plan(files: &BTreeMap<String, Loader>, image: &[u8], free: u64) -> anyhow::Result<Vec<Effect>> {
    let facts = Facts {
        running: &version(RUNNING),
        given_up: false,
        entries: &[format!("cluster-os_{RUNNING}.efi")],
        newest: None,
        image: Loader::of(image),
        files,
        free,
    };
    Ok(Plan::new(&facts)?.effects)
}

/// Records how boot loader 2 comes to a disk; returns disk before, log.
fn record(lab: &Lab, hasty: bool) -> (PathBuf, PathBuf) {
    let (before, log) = (lab.path("before"), lab.path("log"));
    fs::copy(lab.disk_path(), &before).unwrap();
    let recorder: Recording = Rc::new(RefCell::new(Some(Recorder::create(&log).unwrap())));
    let mut esp = KernelFat { hasty, ..KernelFat::of(&lab.disk_path(), recorder.clone()) };
    replace(&mut esp, &loader(2)).unwrap();
    recorder.replace(None);
    (before, log)
}

/// Which boot loader is where, if it is a whole one.
fn found(medium: &Medium<'_>) -> BTreeMap<&'static str, Option<u64>> {
    let fat = Fat::open(medium, ESP_AT, ESP_MIB * MIB).unwrap();
    let which =
        |place: &str| fat.read(place).ok().and_then(|got| (1..=3).find(|number| got == loader(*number)));
    PLACES.map(|place| (place, which(place))).into()
}

struct Tried {
    cuts: usize,
    chosen: BTreeMap<Vec<Option<u64>>, usize>,
    bad: Vec<String>,
}

fn try_all(lab: &Lab, (before, log): &(PathBuf, PathBuf)) -> Tried {
    let (base, log) = (File::open(before).unwrap(), WriteLog::open(log).unwrap());
    let size = base.metadata().unwrap().len();
    let mut replay = Replay::new(&base, size, &log).unwrap();
    let start = replay.state(&Cut { after: 0, lost: Lost::Nothing });
    let regions = boot_regions(&start).unwrap();
    let judge = |number| {
        let whole = vec![Whole::new(version(RUNNING), &uki(), lab.hash)];
        Judge::new(whole, Digest::of(&loader(number)))
    };
    let (mut old, mut new) = (judge(1), judge(2));
    let mut tried = Tried { cuts: 0, chosen: BTreeMap::new(), bad: Vec::new() };
    for cut in cuts(&log, 0..log.writes().len(), &regions, RANDOM, SEED) {
        tried.cuts += 1;
        let state = replay.state(&cut);
        let there = found(&state);
        let boots = old.boots(&state).or_else(|_| new.boots(&state));
        if let Err(error) = boots {
            tried.bad.push(format!("{cut}: {error:#}: {there:?}"));
        }
        if there.values().any(Option::is_none) {
            tried.bad.push(format!("{cut}: {there:?}"));
        }
        *tried.chosen.entry(there.values().copied().collect()).or_default() += 1;
    }
    println!("seed {SEED}: {} cuts, {:?}, {} bad", tried.cuts, tried.chosen, tried.bad.len());
    tried
}

#[test]
fn whatever_a_cut_leaves_of_a_new_boot_loader_boots() {
    let lab = bench();
    let tried = try_all(&lab, &record(&lab, false));
    assert!(tried.bad.is_empty(), "{} bad, the first: {}", tried.bad.len(), tried.bad[0]);
    assert!(tried.cuts >= 300, "only {} cuts", tried.cuts);
    // In the order of their names: EFI/BOOT, EFI/systemd, which is the first one to be replaced.
    for seen in [[1, 1], [1, 2], [2, 2]] {
        assert!(tried.chosen.contains_key(seen.map(Some).as_slice()), "{:?}", tried.chosen);
    }
}

#[test]
fn content_that_is_freed_before_the_name_is_there_is_found_out() {
    let lab = bench();
    let tried = try_all(&lab, &record(&lab, true));
    assert!(tried.bad.iter().any(|bad| bad.contains("None")), "{:?}", tried.bad.first());
}

/// The cut may have left two names for one file: what comes after must not free its content.
#[test]
fn an_attempt_that_was_cut_is_taken_up_and_the_next_boot_loader_comes_too() {
    let lab = bench();
    let (before, log) = record(&lab, false);
    let (base, log) = (File::open(&before).unwrap(), WriteLog::open(&log).unwrap());
    let size = base.metadata().unwrap().len();
    let mut replay = Replay::new(&base, size, &log).unwrap();
    let after = lab.path("after");
    let mut twice = 0;
    for cut in (1..=log.writes().len()).map(|after| Cut { after, lost: Lost::Nothing }) {
        replay.state(&cut).save(&before, &after).unwrap();
        let mut esp = KernelFat::of(&after, Rc::default());
        let names = look(&mut esp).unwrap();
        twice += usize::from(names.iter().any(|(name, there)| {
            name.contains(".new")
                && PLACES.iter().any(|place| names.get(*place).is_some_and(|one| one == there))
        }));
        for number in [2, 3] {
            replace(&mut esp, &loader(number)).unwrap_or_else(|error| panic!("{cut}: {error:#}"));
            for place in PLACES {
                assert!(esp.read(place).unwrap().unwrap() == loader(number), "{cut}: {place}");
            }
        }
        let entry = format!("EFI/Linux/cluster-os_{RUNNING}.efi");
        assert!(esp.read(&entry).unwrap().unwrap() == uki(), "{cut}: the boot entry changed");
    }
    assert!(twice >= 2, "no cut left two names for one file");
}

#[test]
fn on_a_real_file_system_both_places_get_it_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut esp = OnEsp::of(dir.path());
    for place in PLACES {
        esp.write(place, &loader(1)).unwrap();
    }
    replace(&mut esp, &loader(2)).unwrap();
    for place in PLACES {
        assert!(fs::read(dir.path().join(place)).unwrap() == loader(2));
        let folder = dir.path().join(place);
        assert_eq!(fs::read_dir(folder.parent().unwrap()).unwrap().count(), 1);
    }
    assert_eq!(plan(&look(&mut esp).unwrap(), &loader(2), 1 << 30).unwrap(), []);
    // A place that has no room: the other one keeps what it has, and nothing half is left.
    fs::remove_dir_all(dir.path().join("EFI/systemd")).unwrap();
    fs::write(dir.path().join("EFI/systemd"), "no folder").unwrap();
    let effects = plan(&BTreeMap::new(), &loader(3), 1 << 30).unwrap();
    let error = format!("{:#}", carry_out(&effects, &mut esp, &loader(3)).unwrap_err());
    assert!(error.contains("failed to write `EFI/systemd/systemd-bootx64.efi.new1`"), "{error}");
    assert!(fs::read(dir.path().join(PLACES[1])).unwrap() == loader(2));
}

/// There is no ESP to mount here: what would be written shows by the attempt.
#[test]
fn the_updater_replaces_nothing_before_the_boot_was_marked_good() {
    let lab = Lab::new();
    let esp = |number| {
        for place in PLACES {
            fs::create_dir_all(lab.path("esp").join(place).parent().unwrap()).unwrap();
            fs::write(lab.path("esp").join(place), loader(number)).unwrap();
        }
    };
    esp(1);
    fs::write(lab.path("image-loader.efi"), loader(1)).unwrap();
    let store = || cluster_updater::store::Store::attach(&lab.path("state")).unwrap();
    let node = Updater::new(lab.paths(), lab.host("boot")).unwrap();
    node.refresh_boot_loader();
    assert_eq!(store().loader(), Some(version(RUNNING)));
    fs::remove_file(lab.path("state/boot-loader")).unwrap();

    fs::write(lab.path("image-loader.efi"), loader(2)).unwrap();
    let entry = |name: &str| lab.entries().join(name);
    fs::rename(entry("cluster-os_1.0.efi"), entry("cluster-os_1.0+2-1.efi")).unwrap();
    node.refresh_boot_loader();
    // It did not come as far as the lock of the ESP.
    assert!(!lab.path("esp.lock").exists());
    fs::rename(entry("cluster-os_1.0+2-1.efi"), entry("cluster-os_1.0.efi")).unwrap();
    node.refresh_boot_loader();
    assert!(lab.path("esp.lock").exists());
    assert_eq!(store().loader(), None);
    assert!(!*node.writes().borrow());

    // A newer version's is not taken back.
    fs::remove_file(lab.path("esp.lock")).unwrap();
    store().note_loader(&version("1.1")).unwrap();
    node.refresh_boot_loader();
    assert!(!lab.path("esp.lock").exists());
    assert!(store().history().iter().all(|event| event.what != "boot-loader"));
}
