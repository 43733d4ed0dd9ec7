// SPDX-License-Identifier: Apache-2.0
//! Staging by the daemon: which release it takes, and what it does not give up for one that cannot be had. There is no ESP to
//! mount here.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixListener,
    path::Path,
    process::Command,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use cluster_updater::{folder::Folder, paths::Paths, releases::Releases, store::Store, updater::Updater};
use cluster_updater_core::{
    sources::{Holder, Prefix},
    verity::BLOCK_BYTES,
};
use common::{
    Lab, bytes,
    members::{HASTY, fake, fake_at, hasty, member, patient, runtime, say_nothing, send},
    run, version,
};

fn holder(number: &str, prefix: Prefix, address: SocketAddr) -> Holder {
    Holder { name: "n1".to_owned(), address, version: version(number), prefix }
}

/// A node with somebody who fetches for it, and not as patient as one that has all night.
fn fetching(lab: &Lab) -> Updater {
    let paths = Paths { releases: lab.path("control"), ..lab.paths() };
    Releases::with_limits(hasty()).answer(UnixListener::bind(&paths.releases).unwrap(), runtime());
    Updater::new(paths, lab.host("boot")).unwrap().with_patience(HASTY, HASTY)
}

fn import(node: &Updater, dir: &Path) {
    node.import(Folder::open(dir).unwrap().into_fd()).unwrap();
}

fn remove_image(lab: &Lab, number: &str) {
    let kept = lab.path("state/releases").join(number);
    let files = lab.open(&kept).manifest.files();
    fs::remove_file(kept.join(files.root)).unwrap();
}

/// Nobody serves here: what is in the slot needs no member.
#[test]
fn without_a_version_the_newest_that_can_be_had_is_taken_and_the_others_are_named() {
    let lab = Lab::new();
    let node = Updater::new(lab.paths(), lab.host("boot")).unwrap();
    let dir = lab.release("1.1", &bytes(51, 100 * BLOCK_BYTES));
    import(&node, &dir);
    lab.stage(&lab.open(&dir)).unwrap();
    remove_image(&lab, "1.1");
    let staged = node.stage(None, Vec::new()).unwrap();
    assert!(staged.already && staged.passed_over.is_empty(), "{staged:?}");

    import(&node, &lab.release("1.2", &bytes(52, 100 * BLOCK_BYTES)));
    remove_image(&lab, "1.2");
    let announced = holder("1.3", Prefix([7; 8]), SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
    let staged = node.stage(None, vec![announced]).unwrap();
    assert!(staged.already && staged.version == version("1.1"), "{staged:?}");
    let [newest, second] = staged.passed_over.as_slice() else { panic!("{staged:?}") };
    assert!(newest.starts_with("1.3: cluster-releases.service does not answer"), "{newest}");
    assert!(second.starts_with("1.2: no member gives the release any more"), "{second}");
    // Asked for, it is not replaced by another.
    let error = format!("{:#}", node.stage(Some(version("1.2")), Vec::new()).unwrap_err());
    assert!(error.contains("does not answer"), "{error}");
}

/// The member gives all but the root image, and then says nothing.
#[test]
fn the_way_back_stays_for_a_root_image_that_nobody_gives_and_can_be_taken_meanwhile() {
    let lab = Lab::new();
    run(Command::new("sfdisk")
        .args(["-q", "--part-label"])
        .arg(lab.disk_path())
        .args(["5", "cluster-os_0.9"]));
    fs::write(lab.entries().join("cluster-os_0.9.efi"), "the version before").unwrap();
    let dir = lab.release("1.1", &bytes(53, 300 * BLOCK_BYTES));
    let prefix = Prefix::of(&lab.open(&dir).manifest.root.hash);
    let member = fake(&dir, |stream, _, _| say_nothing(stream));

    let node = fetching(&lab);
    let before = fs::read(lab.disk_path()).unwrap();
    let mut changes = node.changes();
    thread::scope(|scope| {
        let staging = scope.spawn(|| node.stage(None, vec![holder("1.1", prefix, member)]));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        while node.status().job.is_none() {
            runtime.block_on(changes.changed()).unwrap();
        }
        node.may_reboot().unwrap();
        let error = format!("{:#}", node.rollback().unwrap_err());
        assert!(error.contains("failed to mount the ESP"), "{error}");
        let error = format!("{:#}", staging.join().unwrap().unwrap_err());
        assert!(error.contains("nothing was changed") && error.contains("n1 stalled"), "{error}");
    });
    assert!(fs::read(lab.disk_path()).unwrap() == before);
    assert!(lab.entries().join("cluster-os_0.9.efi").exists());
    // What came before is kept, and nothing beside it.
    assert!(lab.open(&lab.path("state/releases/1.1")).check_rest(|_, _, _| Ok(())).is_ok());
}

/// It never says a word of six versions, which all are newer than the one there is.
#[test]
fn versions_that_a_member_announces_and_does_not_give_hold_up_none_that_there_is() {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let lab = Lab::new();
    let node = fetching(&lab);
    let dir = lab.release("1.1", &bytes(54, 100 * BLOCK_BYTES));
    let prefix = Prefix::of(&lab.open(&dir).manifest.root.hash);
    let silent = fake_at(&dir, "", |stream, _, _| {
        ASKED.fetch_add(1, Ordering::SeqCst);
        say_nothing(stream)
    });
    let announced: Vec<Holder> = (2..8)
        .map(|number| Holder {
            name: "n2".to_owned(),
            ..holder(&format!("1.{number}"), Prefix([number; 8]), silent)
        })
        .chain([holder("1.1", prefix, member(&dir, prefix, patient()))])
        .collect();
    // As far as it comes here.
    let error = format!("{:#}", node.stage(None, announced.clone()).unwrap_err());
    assert!(error.contains("failed to mount the ESP"), "{error}");
    assert!(lab.path("state/releases/1.1").is_dir());
    // For one of its versions, as often as patience allows.
    let asked = ASKED.load(Ordering::SeqCst);
    assert!((1..=4).contains(&asked), "it was asked {asked} times: each of its versions took its time");
    // It is not asked again, unless one of them is wanted.
    node.stage(None, announced.clone()).unwrap_err();
    assert_eq!(ASKED.load(Ordering::SeqCst), asked);
    let error = format!("{:#}", node.stage(Some(version("1.5")), announced).unwrap_err());
    assert!(error.contains("n2 stalled: no answer for 2 s"), "{error}");
    assert!(ASKED.load(Ordering::SeqCst) > asked);
}

#[test]
fn a_member_that_lied_about_one_version_is_not_asked_for_another() {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let lab = Lab::new();
    let node = fetching(&lab);
    let dir = lab.release("1.1", &bytes(55, 100 * BLOCK_BYTES));
    let liar = fake_at(&dir, "", |stream, _, (head, body)| {
        ASKED.fetch_add(1, Ordering::SeqCst);
        send(stream, &head, &body)
    });
    // It gives 1.1 for whatever it announces.
    let announced = vec![holder("1.3", Prefix([3; 8]), liar), holder("1.2", Prefix([2; 8]), liar)];
    let error = format!("{:#}", node.stage(None, announced).unwrap_err());
    assert!(error.contains("n1 gave what the signed manifest does not name"), "{error}");
    // List, manifest and signature, once.
    assert_eq!(ASKED.load(Ordering::SeqCst), 3);
}

#[test]
fn a_version_that_was_given_up_is_taken_again_only_by_name() {
    let lab = Lab::new();
    let node = Updater::new(lab.paths(), lab.host("boot")).unwrap();
    import(&node, &lab.release("1.2", &bytes(56, 100 * BLOCK_BYTES)));
    let store = Store::attach(&lab.path("state")).unwrap();
    store.tell("before", "given-up", &version("1.2"), "the agent does not answer");
    let error = format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
    assert!(error.contains("nothing newer is left to stage: 1.2 was given up on 20"), "{error}");
    assert!(error.contains(": the agent does not answer; name it to try it again"), "{error}");

    // Another one is taken, and it is named.
    let dir = lab.release("1.1", &bytes(57, 100 * BLOCK_BYTES));
    import(&node, &dir);
    lab.stage(&lab.open(&dir)).unwrap();
    let staged = node.stage(None, Vec::new()).unwrap();
    assert!(staged.already && staged.version == version("1.1"), "{staged:?}");
    assert!(staged.passed_over[0].starts_with("1.2 was given up"), "{staged:?}");

    let error = format!("{:#}", node.stage(Some(version("1.2")), Vec::new()).unwrap_err());
    assert!(error.contains("failed to mount the ESP"), "{error}");
    // Staged by name, it is a release like others.
    store.tell("boot", "staged", &version("1.2"), "");
    let error = format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
    assert!(error.contains("failed to mount the ESP"), "{error}");
}

/// The boot loader gives up without a word, and what is staged next takes the entry away.
#[test]
fn what_the_boot_loader_gave_up_is_remembered_when_its_entry_is_gone() {
    let lab = Lab::new();
    let dir = lab.release("1.1", &bytes(58, 100 * BLOCK_BYTES));
    let node = Updater::new(lab.paths(), lab.host("boot")).unwrap();
    import(&node, &dir);
    lab.stage(&lab.open(&dir)).unwrap();
    fs::rename(lab.entries().join("cluster-os_1.1+3-0.efi"), lab.entries().join("cluster-os_1.1+0-3.efi"))
        .unwrap();
    let given_up = || format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
    // The power went while a try was given back: there is a try left.
    let twin = lab.entries().join("cluster-os_1.1+1-3.efi");
    fs::copy(lab.entries().join("cluster-os_1.1+0-3.efi"), &twin).unwrap();
    node.settle();
    assert!(node.history().iter().all(|event| event.what != "given-up"));
    fs::remove_file(twin).unwrap();
    assert!(given_up().contains("1.1 was given up: it did not come up far enough to say why"));
    node.settle();
    node.settle();
    fs::remove_file(lab.entries().join("cluster-os_1.1+0-3.efi")).unwrap();
    assert!(given_up().contains("1.1 was given up on 20"), "{}", given_up());
    let events: Vec<String> = node.history().into_iter().map(|event| event.what).collect();
    assert_eq!(events.iter().filter(|what| *what == "given-up").count(), 1, "{events:?}");
    // Many boots later.
    let store = Store::attach(&lab.path("state")).unwrap();
    for boot in 0..300 {
        store.tell(&boot.to_string(), "booted", &version("1.0"), "marked good");
    }
    assert_eq!(node.history().len(), 200);
    assert!(given_up().contains("1.1 was given up on 20"), "{}", given_up());
}

/// Connected, it takes the question and never answers. Everything else about this release is here.
#[test]
fn a_cluster_releases_that_hangs_holds_up_neither_rollback_nor_restart() {
    let lab = Lab::new();
    let paths = Paths { releases: lab.path("control"), ..lab.paths() };
    let node = Updater::new(paths.clone(), lab.host("boot")).unwrap();
    import(&node, &lab.release("1.1", &bytes(59, 100 * BLOCK_BYTES)));
    let listener = UnixListener::bind(&paths.releases).unwrap();
    let (connected, is_connected) = mpsc::channel();
    thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            held.push(stream.unwrap());
            let _ = connected.send(());
        }
    });
    let begun = Instant::now();
    thread::scope(|scope| {
        let staging = scope.spawn(|| node.stage(None, Vec::new()));
        is_connected.recv_timeout(Duration::from_secs(60)).unwrap();
        node.may_reboot().unwrap();
        let error = format!("{:#}", node.rollback().unwrap_err());
        assert!(error.contains("there is no version to go back to"), "{error}");
        // It goes on without.
        let error = format!("{:#}", staging.join().unwrap().unwrap_err());
        assert!(error.contains("failed to mount the ESP"), "{error}");
    });
    // Asked before the slot is written and after it, for moments each.
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

/// The try before this one was lost to the power.
#[test]
fn a_try_is_given_back_once_and_by_a_name_that_is_written_down_first() {
    let lab = Lab::new();
    let (booted, now) = ("cluster-os_1.0+1-2.efi", "cluster-os_1.0+2-2.efi");
    fs::rename(lab.entries().join("cluster-os_1.0.efi"), lab.entries().join(booted)).unwrap();
    let node = Updater::new(lab.paths(), lab.host("boot")).unwrap();
    let error = format!("{:#}", node.refund(&mut lab.esp()).unwrap_err());
    assert!(error.contains("names no counted entry"), "{error}");
    fs::create_dir(lab.path("efivars")).unwrap();
    let variable = lab.path("efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f");
    let text = format!("\\EFI\\Linux\\{booted}\0");
    let text = text.encode_utf16().flat_map(u16::to_le_bytes);
    fs::write(variable, [6, 0, 0, 0].into_iter().chain(text).collect::<Vec<u8>>()).unwrap();
    assert_eq!(node.refund(&mut lab.esp()).unwrap().as_deref(), Some(now));
    assert!(lab.entries().join(now).exists() && !lab.entries().join(booted).exists());
    assert_eq!(fs::read_to_string(lab.path("refunded")).unwrap(), format!("{booted}\n{now}\n"));
    assert_eq!(node.refund(&mut lab.esp()).unwrap(), None);
    assert!(node.history().iter().any(|event| event.what == "refunded"));
}

/// The version before may know nothing of a node that has moved: started here, it would be the node once more.
#[test]
fn nothing_starts_another_version_on_a_disk_that_the_node_has_left() {
    let lab = Lab::new();
    let node = fetching(&lab);
    let left = "says that this node has moved to another disk";
    // Not the refusal of a node that has nothing to go back to.
    assert!(!format!("{:#}", node.rollback().unwrap_err()).contains(left));
    fs::write(lab.paths().moved, "{").unwrap();
    for error in [node.rollback().unwrap_err(), node.stage(None, Vec::new()).unwrap_err()] {
        assert!(format!("{error:#}").contains(left), "{error:#}");
    }
}

#[test]
fn a_member_that_announces_one_version_with_many_hashes_is_borne_with_once() {
    static ASKED: AtomicU32 = AtomicU32::new(0);
    let lab = Lab::new();
    let node = fetching(&lab);
    let dir = lab.release("1.1", &bytes(56, 100 * BLOCK_BYTES));
    let member = fake_at(&dir, "", |stream, _, _| {
        ASKED.fetch_add(1, Ordering::SeqCst);
        say_nothing(stream)
    });
    let announced = |count: u8| (0..count).map(|first| holder("1.1", Prefix([first; 8]), member)).collect();
    node.stage(Some(version("1.1")), announced(1)).unwrap_err();
    let once = ASKED.load(Ordering::SeqCst);
    assert!(once > 0, "it was not asked");
    node.stage(Some(version("1.1")), announced(6)).unwrap_err();
    let more = ASKED.load(Ordering::SeqCst) - once;
    assert!(more <= 2 * once, "with one hash it was asked {once} times, with six {more} times");
}
