// SPDX-License-Identifier: Apache-2.0
//! Releases and members that mean harm, and machines that are full: each ends with a clear message or is taken up again, and
//! nothing that firmware and boot loader read has changed.
//!
//! | attack | shown by |
//! |---|---|
//! | wrong key | `what_must_not_be_taken_…`, `a_member_that_offers_…`; [import.rs] `whatever_is_wrong_…` |
//! | key that was rotated out | `a_member_cannot_bring_a_rotated_out_key_back`; [import.rs] `a_rotation_…` |
//! | older than what runs, or than its minimum allows | `what_must_not_be_taken_…`, `a_member_that_offers_…` |
//! | other architecture | the same |
//! | truncated | `what_must_not_be_taken_…`, `a_member_that_offers_…`; [import.rs] `whatever_is_wrong_…` |
//! | tree and manifest that disagree, both signed | `what_must_not_be_taken_…`, `a_member_that_offers_…` |
//! | endless, slow, cut and wrong answers; a source that sends wrong blocks | `whatever_the_only_member_does_…`; [peers.rs] |
//! | two `stage` or `apply` at once | `a_second_stage_is_told_…` |
//! | full ESP | `a_full_esp_is_named_before_the_first_byte`; full while it is written: [writer.rs] `stopped_at_any_operation_…` |
//! | full `/var` | `a_full_var_…`, `a_var_that_fills_up_…` |
//! | slot too small | `a_member_that_offers_…`; [dbus.rs] `of_a_release_that_does_not_fit_…` |
//! | source gone at 50 % | [peers.rs] `what_came_before_the_members_vanished_…` |

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    env,
    fs::{self, File},
    net::SocketAddr,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use cluster_updater::{
    folder::Folder,
    make,
    paths::Paths,
    release::OpenRelease,
    releases::{Releases, fetch},
    store::Store,
    updater::Updater,
};
use cluster_updater_core::{
    Digest, Manifest,
    keys::SecretKey,
    signed::signature_name,
    sources::{Holder, Prefix},
    verity::{self, BLOCK_BYTES},
};
use common::{
    BLOCKS, Lab, bytes, key,
    members::{HASTY, TRICKS, fake, member, patient, runtime, say_nothing},
    run, version,
};
use nix::{
    fcntl::posix_fallocate,
    mount::{MntFlags, MsFlags, mount, umount2},
};

/// All of the disk, partition tables included, and of the ESP.
#[derive(PartialEq, Eq)]
struct BootPath(Vec<u8>, Vec<(String, Vec<u8>)>);

fn boot_path(lab: &Lab) -> BootPath {
    let mut entries: Vec<_> = fs::read_dir(lab.entries())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    entries.sort();
    BootPath(fs::read(lab.disk_path()).unwrap(), entries)
}

/// A node that fetches, and is less patient with members than a real one.
fn node(lab: &Lab) -> Updater {
    let paths = Paths { releases: lab.path("control"), ..lab.paths() };
    let limits = fetch::Limits { stall: Duration::from_secs(1), answer: Duration::from_secs(3) };
    Releases::with_limits(limits).answer(UnixListener::bind(&paths.releases).unwrap(), runtime());
    Updater::new(paths, lab.host("boot")).unwrap().with_patience(HASTY, HASTY)
}

fn import(node: &Updater, dir: &Path) -> anyhow::Result<()> {
    node.import(Folder::open(dir)?.into_fd()).map(drop)
}

/// What a member announces of the release in `dir`.
fn announced(dir: &Path, address: SocketAddr) -> Holder {
    let manifest = manifest(dir);
    let prefix = Prefix::of(&manifest.root.hash);
    Holder { name: "n1".to_owned(), address, version: manifest.version, prefix }
}

/// Stages the release in `dir` from the one member that serves it.
fn stage(node: &Updater, dir: &Path, address: SocketAddr) -> String {
    let holder = announced(dir, address);
    format!("{:#}", node.stage(Some(holder.version.clone()), vec![holder]).unwrap_err())
}

fn manifest(dir: &Path) -> Manifest {
    Manifest::parse(&fs::read(dir.join("manifest.json")).unwrap()).unwrap()
}

/// Signs another manifest; its files get the names that belong to it.
fn resign(dir: &Path, change: impl FnOnce(&mut Manifest)) {
    let mut manifest = manifest(dir);
    let before = manifest.files();
    change(&mut manifest);
    let after = manifest.files();
    for (from, to) in [
        (before.root, after.root),
        (before.tree, after.tree),
        (before.uki, after.uki),
        (before.uki_blocks, after.uki_blocks),
    ] {
        fs::rename(dir.join(from), dir.join(to)).unwrap();
    }
    fs::write(dir.join("manifest.json"), manifest.to_bytes().unwrap()).unwrap();
    make::sign(&dir.join("manifest.json"), &key()).unwrap();
}

/// Signed by nobody but this key.
fn sign_as(dir: &Path, signer: &SecretKey) {
    fs::remove_file(dir.join(signature_name("manifest.json", key().public().id()))).unwrap();
    make::sign(&dir.join("manifest.json"), signer).unwrap();
}

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

/// The root image gets another size, and all numbers agree.
fn resize(manifest: &mut Manifest, blocks: u64) {
    manifest.root.data_blocks = blocks;
    manifest.root.data_bytes = blocks * BLOCK_BYTES as u64;
    manifest.root.tree_bytes = verity::tree_bytes(blocks);
}

type Attack = fn(&Path);

/// Refused for what the manifest says, before anything is read whose size it gives.
const BY_MANIFEST: &[(&str, Attack)] = &[
    ("only follow 1.0.5 or later", |dir| resign(dir, |it| it.minimum_version = version("1.0.5"))),
    ("0.9 is older than 1.0", |dir| {
        resign(dir, |it| (it.minimum_version, it.version) = (version("0.1"), version("0.9")));
    }),
    ("version 1.0 is what runs", |dir| resign(dir, |it| it.version = version("1.0"))),
    ("for arm64, this machine is x86-64", |dir| resign(dir, |it| it.architecture = "arm64".to_owned())),
    ("the other slot is too small: the root image", |dir| resign(dir, |it| resize(it, 600))),
];

/// Refused for what the files are.
const BY_FILES: &[(&str, Attack)] = &[
    ("trusted are", |dir| sign_as(dir, &SecretKey::from_seed(&[9; 32]))),
    ("does not match", |dir| cut(&dir.join("manifest.json"))),
    ("was cut off", |dir| cut(&dir.join(manifest(dir).files().tree))),
    ("was cut off", |dir| cut(&dir.join(manifest(dir).files().uki))),
    ("was cut off", |dir| cut(&dir.join(manifest(dir).files().uki_blocks))),
    ("was cut off", |dir| cut(&dir.join(manifest(dir).files().boot_loader))),
    ("does not lead to the root hash", |dir| resign(dir, |it| it.root.hash = Digest([5; 32]))),
    ("does not lead to the root hash", |dir| resign(dir, |it| it.root.salt = [5; 32])),
    ("was cut off, or is of another release", |dir| resign(dir, |it| resize(it, 20))),
    ("the block list of the UKI", |dir| resign(dir, |it| it.uki.blocks = Digest([5; 32]))),
    ("damaged or changed", |dir| resign(dir, |it| it.boot_loader.sha256 = Digest([5; 32]))),
];

/// A lab whose other slot holds the version before: a block of the new one is fetched as a sample before that is given up.
fn with_way_back() -> Lab {
    let lab = Lab::new();
    run(Command::new("sfdisk")
        .args(["-q", "--part-label"])
        .arg(lab.disk_path())
        .args(["5", "cluster-os_0.9"]));
    fs::write(lab.entries().join("cluster-os_0.9.efi"), "the version before").unwrap();
    lab
}

fn release(lab: &Lab) -> PathBuf {
    lab.release("1.1", &bytes(61, BLOCKS as usize * BLOCK_BYTES))
}

#[test]
fn what_must_not_be_taken_is_named_and_nothing_changes() {
    let in_folders: &[(&str, Attack)] = &[
        ("was cut off", |dir| cut(&dir.join(manifest(dir).files().root))),
        ("block 7 of", |dir| {
            let image = dir.join(manifest(dir).files().root);
            let mut changed = fs::read(&image).unwrap();
            changed[7 * BLOCK_BYTES] ^= 1;
            fs::write(image, changed).unwrap();
        }),
    ];
    let lab = Lab::new();
    let node = node(&lab);
    let before = boot_path(&lab);
    for (wanted, attack) in BY_MANIFEST.iter().chain(BY_FILES).chain(in_folders) {
        let dir = release(&lab);
        attack(&dir);
        let error = format!("{:#}", import(&node, &dir).unwrap_err());
        assert!(error.contains(wanted), "`{wanted}` is not in: {error}");
        let status = node.status();
        assert!(status.releases.is_empty() && status.last_failure.unwrap().contains(wanted), "{wanted}");
        assert!(boot_path(&lab) == before, "{wanted}: the disk has changed");
        fs::remove_dir_all(&dir).unwrap();
    }
    import(&node, &release(&lab)).unwrap();
}

#[test]
fn a_member_that_offers_what_must_not_be_taken_is_left_and_nothing_changes() {
    let lied = "n1 gave what the signed manifest does not name";
    for (number, (wanted, attack)) in BY_MANIFEST.iter().chain(BY_FILES).enumerate() {
        let lab = with_way_back();
        let node = node(&lab);
        let before = boot_path(&lab);
        let dir = release(&lab);
        let honest = announced(&dir, SocketAddr::from(([127, 0, 0, 1], 1)));
        attack(&dir);
        // A manifest that cannot be read announces what it was.
        let now = fs::read(dir.join("manifest.json")).unwrap();
        let now = Manifest::parse(&now).ok();
        let version = now.as_ref().map_or(honest.version.clone(), |now| now.version.clone());
        let prefix = now.map_or(honest.prefix, |now| Prefix::of(&now.root.hash));
        let address = member(&dir, prefix, patient());
        let holder = Holder { address, version: version.clone(), prefix, ..honest };
        let error = format!("{:#}", node.stage(Some(version), vec![holder]).unwrap_err());
        let by_manifest = number < BY_MANIFEST.len();
        assert!(error.contains(if by_manifest { wanted } else { lied }), "{wanted}: {error}");
        assert!(boot_path(&lab) == before, "{wanted}: the disk has changed");
        // A tree of another depth has the same root hash: only a block of the image tells.
        let by_block = error.contains("nothing was changed");
        assert_eq!(by_block, *wanted == "was cut off, or is of another release", "{error}");
        let kept = fs::read_dir(lab.path("state/releases")).unwrap().map(|entry| entry.unwrap().path());
        for folder in kept {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            assert!(by_block || name.starts_with(".fetch-"), "{wanted}: {name} was taken");
            let names = Folder::open(&folder).unwrap().names().unwrap();
            assert!(
                !by_manifest || names.iter().all(|name| name.contains(".json")),
                "{wanted}: more than the manifest was fetched: {names:?}"
            );
        }
    }
}

#[test]
fn a_member_cannot_bring_a_rotated_out_key_back() {
    let lab = Lab::new();
    let node = node(&lab);
    let new = SecretKey::from_seed(&[2; 32]);
    let dir = release(&lab);
    fs::create_dir(lab.path("roots")).unwrap();
    for entry in fs::read_dir(lab.path("root")).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), lab.path("roots").join(entry.file_name())).unwrap();
    }
    let signers = [key(), SecretKey::from_seed(&[2; 32])];
    make::next_root(&lab.path("roots"), &[new.public()], 1, true, &signers).unwrap();
    for entry in fs::read_dir(lab.path("roots")).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    sign_as(&dir, &new);
    import(&node, &dir).unwrap();
    assert_eq!(node.status().trust.root_version, 2);

    let before = boot_path(&lab);
    let old = lab.release("1.2", &bytes(62, 100 * BLOCK_BYTES));
    let error = stage(&node, &old, member(&old, announced_prefix(&old), patient()));
    assert!(error.contains("n1 gave what the signed manifest does not name"), "{error}");
    // A document of its own changes nothing: the first key is not asked any more.
    make::next_root(&lab.path("forged"), &[key().public()], 1, true, &[key()]).unwrap();
    make::next_root(&lab.path("forged"), &[key().public()], 1, true, &[key()]).unwrap();
    make::next_root(&lab.path("forged"), &[key().public()], 1, true, &[key()]).unwrap();
    for entry in fs::read_dir(lab.path("forged")).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), old.join(entry.file_name())).unwrap();
    }
    let error = stage(&node, &old, member(&old, announced_prefix(&old), patient()));
    assert!(error.contains("n1 gave what the signed manifest does not name"), "{error}");
    assert_eq!(node.status().trust.root_version, 2);
    assert!(boot_path(&lab) == before);
}

fn announced_prefix(dir: &Path) -> Prefix {
    Prefix::of(&manifest(dir).root.hash)
}

#[test]
fn whatever_the_only_member_does_the_version_before_stays() {
    thread::scope(|scope| {
        for (what, fault, trick) in TRICKS {
            scope.spawn(move || {
                let lab = with_way_back();
                let node = node(&lab);
                let dir = release(&lab);
                let before = boot_path(&lab);
                let error = stage(&node, &dir, fake(&dir, *trick));
                assert!(error.contains("nothing was changed"), "{what}: {error}");
                assert!(error.contains(&format!("n1 {fault}")), "{what}: {error}");
                assert!(boot_path(&lab) == before, "{what}");
                // With a member that gives it, it goes on as far as the ESP, which cannot be mounted here.
                let error = stage(&node, &dir, member(&dir, announced_prefix(&dir), patient()));
                assert!(error.contains("failed to mount the ESP"), "{what}: {error}");
            });
        }
    });
}

#[test]
fn a_second_stage_is_told_that_the_first_goes_on() {
    let lab = with_way_back();
    let node = node(&lab);
    let dir = release(&lab);
    let before = boot_path(&lab);
    let silent = fake(&dir, |stream, _, _| say_nothing(stream));
    let mut changes = node.changes();
    thread::scope(|scope| {
        let first = scope.spawn(|| stage(&node, &dir, silent));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        while node.status().job.is_none() {
            runtime.block_on(changes.changed()).unwrap();
        }
        for _ in 0..3 {
            let error = stage(&node, &dir, silent);
            assert!(error.contains("the updater is busy (stage"), "{error}");
            let error = format!("{:#}", import(&node, &dir).unwrap_err());
            assert!(error.contains("the updater is busy (stage"), "{error}");
        }
        let error = first.join().unwrap();
        assert!(error.contains("n1 stalled"), "{error}");
    });
    assert!(node.status().job.is_none() && boot_path(&lab) == before);
}

const INSIDE: &str = "CLUSTER_OS_OWN_MOUNTS";

/// Runs the test once more in a process whose mounts nobody else sees; true there.
fn has_own_mounts(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut alone = Command::new("unshare");
    alone.args(["--mount", "--propagation", "private"]).arg(env::current_exe().unwrap());
    let said = run(alone.args([test, "--exact", "--nocapture"]).env(INSIDE, "yes"));
    assert!(said.contains("1 passed"), "{said}");
    false
}

/// A file system in memory.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn new(place: &'a Path, options: &str) -> Self {
        fs::create_dir_all(place).unwrap();
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        Self(place)
    }

    fn remount(&self, options: &str) {
        mount(Some("tmpfs"), self.0, None::<&str>, MsFlags::MS_REMOUNT, Some(options)).unwrap();
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_esp_is_named_before_the_first_byte() {
    if !has_own_mounts("a_full_esp_is_named_before_the_first_byte") {
        return;
    }
    let lab = Lab::new();
    let esp = lab.path("esp");
    // The UKI has 1.5 MB, and a MiB is left free.
    let small = Small::new(&esp, "size=2400k");
    fs::create_dir_all(lab.entries()).unwrap();
    fs::write(lab.entries().join("cluster-os_1.0.efi"), bytes(2, 70_000)).unwrap();
    fs::write(esp.join("holiday.jpg"), bytes(3, 10_000)).unwrap();
    let node = node(&lab);
    let dir = release(&lab);
    let before = boot_path(&lab);
    let full = "the ESP is too full: the boot entry needs";
    let error = stage(&node, &dir, member(&dir, announced_prefix(&dir), patient()));
    assert!(error.contains(full) && error.contains("holiday.jpg"), "{error}");
    import(&node, &dir).unwrap();
    let error = format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
    assert!(error.contains(full), "{error}");
    assert!(boot_path(&lab) == before);

    // What an interrupted attempt left there is removed first, and so counts as free.
    fs::write(lab.entries().join("cluster-os_1.1.new"), bytes(4, 1_000_000)).unwrap();
    small.remount("size=3400k");
    let error = format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
    assert!(error.contains("failed to mount the ESP"), "{error}");
}

#[test]
fn a_full_var_ends_an_import_and_a_fetch_and_harms_nothing() {
    if !has_own_mounts("a_full_var_ends_an_import_and_a_fetch_and_harms_nothing") {
        return;
    }
    let lab = Lab::new();
    let dir = release(&lab);
    let before = boot_path(&lab);
    let state = lab.path("state");
    {
        // Less than must stay free.
        let _small = Small::new(&state, "size=200m");
        let node = node(&lab);
        for error in [
            format!("{:#}", import(&node, &dir).unwrap_err()),
            stage(&node, &dir, member(&dir, announced_prefix(&dir), patient())),
        ] {
            assert!(
                error.contains("/var is too full") && error.contains("256 MiB must stay free"),
                "{error}"
            );
        }
        assert!(node.status().problems.is_empty(), "{:?}", node.status().problems);
    }
    // At each file that is made, one more than the time before.
    let (mut refused, mut ended) = (0, 0);
    let made = (2..100).find(|inodes| {
        let small = Small::new(&state, &format!("size=1g,nr_inodes={inodes}"));
        let node = match Updater::new(lab.paths(), lab.host("boot")) {
            Ok(node) => node,
            Err(error) => {
                assert!(format!("{error:#}").contains("No space left on device"), "{error:#}");
                refused += 1;
                return false;
            }
        };
        let imported = import(&node, &dir);
        assert!(boot_path(&lab) == before);
        let Err(error) = imported else { return true };
        let error = format!("{error:#}");
        assert!(error.contains("No space left on device"), "{inodes}: {error}");
        assert!(!state.join("releases/.import").exists(), "{inodes}: half a release fills /var");
        ended += 1;
        small.remount("nr_inodes=100");
        import(&node, &dir).unwrap();
        false
    });
    assert!(made.is_some() && refused > 0 && ended > 5, "{made:?}, {refused}, {ended}");
}

#[test]
fn a_var_that_fills_up_meanwhile_ends_an_import_that_succeeds_later() {
    if !has_own_mounts("a_var_that_fills_up_meanwhile_ends_an_import_that_succeeds_later") {
        return;
    }
    let lab = Lab::new();
    let dir = release(&lab);
    let state = lab.path("state");
    let _small = Small::new(&state, "size=262m");
    let store = Store::open(&state).unwrap();
    let release: OpenRelease = lab.open(&dir);
    let filler = state.join("filler");
    let fill = || {
        let file = File::create_new(&filler).unwrap();
        let free = nix::sys::statvfs::statvfs(&state).unwrap();
        let bytes = free.blocks_available() * free.fragment_size();
        posix_fallocate(&file, 0, bytes.try_into().unwrap()).unwrap();
    };
    let mut begun = false;
    let ended = store.import(&release, &mut |_| {
        if !std::mem::replace(&mut begun, true) {
            fill();
        }
    });
    let error = format!("{:#}", ended.unwrap_err());
    assert!(error.contains("to /var") && error.contains("No space left on device"), "{error}");
    assert!(!state.join("releases/.import").exists() && store.versions().is_empty());
    fs::remove_file(&filler).unwrap();
    store.import(&release, &mut |_| {}).unwrap();
    assert_eq!(store.versions(), [version("1.1")]);
}
