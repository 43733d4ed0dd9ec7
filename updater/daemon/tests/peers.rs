// SPDX-License-Identifier: Apache-2.0
//! A release from members over real sockets: from one that is as it should be, and from those that lie, stall, vanish and
//! worse. Whatever they do, what is staged is what was signed.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    cell::RefCell,
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use cluster_updater::{
    lists,
    obtain::{Wanted, obtain},
    peers::{PeerSource, Taking},
    release::OpenRelease,
    releases::{
        Releases, fetch,
        seam::{FetchError, Link, Place},
    },
    store::Store,
    writer::Moved,
};
use cluster_updater_core::{
    serving::{Asked, Range},
    sources::{Fault, Holder, Patience, Prefix, Sources},
    verity::BLOCK_BYTES,
};
use common::{
    BLOCKS, Lab, bytes,
    members::{
        HASTY, NOT_FOUND, TRICKS, Trick, drip, fake, fake_at, fetcher, hang_up, hasty, link, member, patient,
        runtime, send,
    },
    version,
};

/// A lab with a release of which most blocks are new, and its folder at a member.
struct Story {
    lab: Lab,
    dir: PathBuf,
    prefix: Prefix,
    store: Store,
    patience: Patience,
    limits: fetch::Limits,
    running_uki: File,
    boot_loader: PathBuf,
}

impl Story {
    fn new() -> Self {
        let lab = Lab::new();
        let fresh = bytes(21, 300 * BLOCK_BYTES);
        let image = [&fresh[..], &lab.image[..33 * BLOCK_BYTES]].concat();
        Self::with(lab, &image)
    }

    /// With a release of which little is new.
    fn of_a_line() -> Self {
        let lab = Lab::new();
        let mut image = lab.image.clone();
        image[200 * BLOCK_BYTES] ^= 1;
        let mut story = Self::with(lab, &image);
        let files = story.lab.open(&story.dir).manifest.files();
        let mut uki = fs::read(story.dir.join(files.uki)).unwrap();
        uki[50 * BLOCK_BYTES] ^= 1;
        let running_uki = story.lab.path("running.efi");
        fs::write(&running_uki, uki).unwrap();
        story.running_uki = File::open(running_uki).unwrap();
        story.boot_loader = story.dir.join(files.boot_loader);
        story
    }

    fn with(lab: Lab, image: &[u8]) -> Self {
        let dir = lab.release("1.1", image);
        let prefix = Prefix::of(&lab.open(&dir).manifest.root.hash);
        let store = Store::open(&lab.path("state")).unwrap();
        let running_uki = File::open(lab.entries().join("cluster-os_1.0.efi")).unwrap();
        let boot_loader = lab.path("no-boot-loader");
        Self { lab, dir, prefix, store, patience: HASTY, limits: hasty(), running_uki, boot_loader }
    }

    fn sources(&self, addresses: &[SocketAddr]) -> Sources {
        let holders = addresses.iter().enumerate().map(|(number, address)| Holder {
            name: format!("n{number}"),
            address: *address,
            version: version("1.1"),
            prefix: self.prefix,
        });
        Sources::new(holders, 0, self.patience)
    }

    fn fetcher(&self) -> Link {
        link(Releases::with_limits(self.limits), runtime())
    }

    fn obtain(&self, sources: &mut Sources) -> anyhow::Result<OpenRelease> {
        let trusted = self.lab.trusted();
        let wanted = Wanted {
            version: &version("1.1"),
            prefix: self.prefix,
            trusted: &trusted,
            accept: &|_| Ok(()),
            running_uki: self.running_uki.try_clone().ok(),
            running_leaves: lists::leaves(&self.lab.disk_path(), &self.lab.slots().active).ok(),
            boot_loader: &self.boot_loader,
        };
        let mut taking = Taking { link: &mut self.fetcher(), sources, told: &|_| {} };
        obtain(&self.store, &mut taking, &wanted, &mut |_| {})
    }

    fn write(&self, release: &OpenRelease, sources: &mut Sources) -> anyhow::Result<Moved> {
        let files = release.manifest.files();
        let mut source = PeerSource {
            taking: Taking { link: &mut self.fetcher(), sources, told: &|_| {} },
            root: files.root,
            tree: &release.tree,
            uki: release.folder.file_of(&files.uki, release.manifest.uki.bytes)?,
        };
        self.lab.stage_from(release, &mut self.lab.disk(), &mut self.lab.esp(), &mut source)
    }

    fn stage(&self, sources: &mut Sources) -> anyhow::Result<Moved> {
        let release = self.obtain(sources)?;
        self.write(&release, sources)
    }

    fn is_staged(&self) -> bool {
        self.lab.is_safe(&self.lab.open(&self.dir).manifest)
    }
}

#[test]
fn a_release_comes_from_a_member_and_only_what_is_missing_is_asked_for() {
    let story = Story::new();
    let good = member(&story.dir, story.prefix, patient());
    let mut sources = story.sources(&[good]);
    let moved = story.stage(&mut sources).unwrap();
    assert_eq!((moved.kept, moved.local, moved.fetched), (0, 33, BLOCKS - 33));
    assert!(story.is_staged());
    let manifest = story.lab.open(&story.dir).manifest;
    let rest = manifest.root.tree_bytes + manifest.uki.bytes + manifest.boot_loader.bytes;
    let most = (BLOCKS - 33) * BLOCK_BYTES as u64 + rest + manifest.uki.bytes / 4096 * 32 + 4096;
    let moved = sources.all()[0].bytes;
    assert!(moved <= most && moved > rest, "{moved} bytes, at most {most}");
    assert!(!story.store.has_image(&version("1.1")), "the root image is in the slot and must not fill /var");
}

/// Bytes of what must come and is no list.
fn other_bytes(story: &Story) -> u64 {
    let folder = story.lab.open(&story.dir).folder;
    let signed = folder.names().unwrap().into_iter().filter(|name| name.contains(".json"));
    let signed: u64 = signed.map(|name| fs::metadata(story.dir.join(name)).unwrap().len()).sum();
    // Of the image the first block, with the version, and one more; one of the UKI.
    signed + 3 * BLOCK_BYTES as u64
}

#[test]
fn of_lists_and_boot_loader_only_what_is_new_is_asked_for() {
    let story = Story::of_a_line();
    let mut sources = story.sources(&[member(&story.dir, story.prefix, patient())]);
    let moved = story.stage(&mut sources).unwrap();
    assert_eq!((moved.local, moved.fetched), (BLOCKS - 2, 2));
    assert!(story.is_staged());
    let manifest = story.lab.open(&story.dir).manifest;
    let lists = manifest.root.tree_bytes + manifest.uki.bytes / 4096 * 32;
    let of_lists = sources.all()[0].bytes - other_bytes(&story);
    assert!(of_lists < lists / 2, "{of_lists} of {lists} bytes");
}

#[test]
fn a_running_uki_that_cannot_be_read_is_of_no_use_and_no_harm() {
    let mut story = Story::of_a_line();
    // For writing only.
    story.running_uki = File::options().write(true).open(story.lab.path("running.efi")).unwrap();
    story.stage(&mut story.sources(&[member(&story.dir, story.prefix, patient())])).unwrap();
    assert!(story.is_staged());
}

/// Nobody signs an outline: a wrong one costs bytes.
#[test]
fn an_outline_that_lies_is_of_no_use_and_no_harm() {
    let wrong: [(&str, Trick); 3] = [
        ("another", |stream, _, (head, mut body)| {
            body[3] ^= 1;
            send(stream, &head, &body)
        }),
        ("none", |stream, _, (head, mut body)| {
            body[0] = 0;
            send(stream, &head, &body)
        }),
        ("cut off", |stream, _, (_, body)| {
            let body = &body[..body.len() - 7];
            send(stream, &format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()), body)
        }),
    ];
    for ending in [".verity.raw", ".efi.blocks"] {
        for (what, trick) in wrong {
            let story = Story::of_a_line();
            let mut sources = story.sources(&[outlining(&story, ending, trick)]);
            story.stage(&mut sources).unwrap();
            assert!(story.is_staged(), "{what}");
            assert_eq!(sources.all()[0].fault, None, "{what}");
        }
        let story = Story::of_a_line();
        let endless = outlining(&story, ending, |stream, _, _| {
            send(stream, "HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n", b"")
        });
        let mut sources = story.sources(&[endless, member(&story.dir, story.prefix, patient())]);
        story.stage(&mut sources).unwrap();
        assert!(story.is_staged());
        assert_eq!(sources.all()[0].fault, Some(Fault::Lied));
    }
}

/// Whoever fails again and again with what nobody can judge has not much longer than for the whole list.
#[test]
fn a_list_whose_difference_does_not_come_in_time_comes_as_a_whole() {
    for ending in [".verity.raw", ".efi.blocks"] {
        let mut story = Story::of_a_line();
        story.patience =
            Patience { start: Duration::from_millis(500), silence: Duration::from_secs(60), ..HASTY };
        let mut sources = story.sources(&[outlining(&story, ending, |_, _, _| Err(hang_up()))]);
        let begun = Instant::now();
        story.stage(&mut sources).unwrap();
        assert!(story.is_staged());
        assert!(begun.elapsed() < story.patience.silence, "{ending}");
    }
}

#[test]
fn whoever_misled_once_is_asked_for_no_outline_again() {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    let story = Story::of_a_line();
    let misleading = outlining(&story, "", |stream, _, (head, mut body)| {
        ASKED.fetch_add(1, Ordering::SeqCst);
        // Each chunk is here, and none is where it belongs.
        body.rotate_left(7);
        send(stream, &head, &body)
    });
    story.stage(&mut story.sources(&[misleading])).unwrap();
    assert!(story.is_staged());
    assert_eq!(ASKED.load(Ordering::SeqCst), 1, "of the tree, and none of the list of blocks");
}

/// A member that is good at everything but the outline of such files.
fn outlining(story: &Story, ending: &'static str, trick: Trick) -> SocketAddr {
    fake_at(&story.dir, ending, move |stream, ask, answer| match ask.asked {
        Some(Asked::Outline(_)) => trick(stream, ask, answer),
        _ => send(stream, &answer.0, &answer.1),
    })
}

#[test]
fn another_member_takes_over_whatever_one_does() {
    for (what, fault, trick) in TRICKS {
        let story = Story::new();
        let bad = fake(&story.dir, *trick);
        let addresses = [bad, member(&story.dir, story.prefix, patient())];
        let mut sources = story.sources(&addresses);
        let staged = story.stage(&mut sources);
        assert!(staged.is_ok(), "{what}: {:#}", staged.unwrap_err());
        assert!(story.is_staged(), "{what}");
        let [bad, good] = sources.all() else { panic!("two members") };
        assert_eq!((bad.fault, good.fault), (Some(*fault), None), "{what}");
        assert!(good.bytes > 0, "{what}");
    }
}

#[test]
fn alone_such_a_member_gets_nothing_started_and_is_named() {
    for (what, fault, trick) in
        TRICKS.iter().filter(|(_, fault, _)| matches!(fault, Fault::Lied | Fault::Gone))
    {
        let story = Story::new();
        let mut sources = story.sources(&[fake(&story.dir, *trick)]);
        let said = format!("{:#}", story.stage(&mut sources).unwrap_err());
        assert!(said.contains(&format!("n0 {fault}")) && said.contains("stage again"), "{what}: {said}");
        assert!(!story.is_staged(), "{what}");
    }
}

#[test]
fn what_came_before_the_members_vanished_is_not_asked_for_again() {
    static LEFT: AtomicU64 = AtomicU64::new(4);
    let story = Story::new();
    // Four ranges of the image, which are what is written at once, then never again.
    let brief: Trick = |stream, _, (head, body)| {
        if LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return Err(hang_up());
        }
        send(stream, &head, &body)
    };
    story.stage(&mut story.sources(&[fake(&story.dir, brief)])).unwrap_err();
    assert!(!story.is_staged());
    let good = member(&story.dir, story.prefix, patient());
    let mut sources = story.sources(&[good]);
    // Everything but the root image is here.
    let release = story.store.release(&version("1.1"), story.lab.trusted()).unwrap();
    story.write(&release, &mut sources).unwrap();
    assert!(story.is_staged());
    let fetched = sources.all()[0].bytes / BLOCK_BYTES as u64;
    assert_eq!(fetched, BLOCKS - 33 - 256);
}

#[test]
fn a_tree_or_kernel_that_was_changed_is_taken_from_another_member() {
    for ending in [".verity.raw", ".efi", ".efi.blocks", "systemd-bootx64.efi", "manifest.json"] {
        let story = Story::new();
        let wrong = story.lab.path("wrong");
        fs::create_dir(&wrong).unwrap();
        for entry in fs::read_dir(&story.dir).unwrap().map(|entry| entry.unwrap()) {
            let mut content = fs::read(entry.path()).unwrap();
            if entry.file_name().to_str().unwrap().ends_with(ending) {
                let middle = content.len() / 2;
                content[middle] ^= 1;
            }
            fs::write(wrong.join(entry.file_name()), content).unwrap();
        }
        let addresses =
            [member(&wrong, story.prefix, patient()), member(&story.dir, story.prefix, patient())];
        let mut sources = story.sources(&addresses);
        story.stage(&mut sources).unwrap();
        assert!(story.is_staged(), "{ending}");
        assert_eq!(sources.all()[0].fault, Some(Fault::Lied), "{ending}");
    }
}

#[test]
fn what_a_member_adds_to_a_release_is_not_passed_on() {
    let story = Story::new();
    let added = ["root.1.json", "root.9.json", "manifest.json.00112233445566aa.sig"];
    for name in added {
        fs::write(story.dir.join(name), [7; 64]).unwrap();
    }
    let member = member(&story.dir, story.prefix, patient());
    let release = story.obtain(&mut story.sources(&[member])).unwrap();
    let names = release.folder.names().unwrap();
    assert!(added.iter().all(|name| !names.iter().any(|kept| kept == name)), "{names:?}");
    assert_eq!(names.len(), 6, "{names:?}");
}

#[test]
fn a_release_that_announces_itself_as_another_is_a_lie() {
    let story = Story::new();
    let other = story.lab.release("1.2", &bytes(22, BLOCKS as usize * BLOCK_BYTES));
    let mut sources = story.sources(&[member(&other, story.prefix, patient())]);
    let said = format!("{:#}", story.stage(&mut sources).unwrap_err());
    assert!(said.contains(&format!("n0 {}", Fault::Lied)), "{said}");
}

#[test]
fn progress_names_the_member() {
    let story = Story::new();
    let mut sources = story.sources(&[member(&story.dir, story.prefix, patient())]);
    let told = RefCell::new(0);
    let release = story.obtain(&mut sources).unwrap();
    let files = release.manifest.files();
    let tell = |sources: &Sources| {
        assert_eq!(sources.current().unwrap().name, "n0");
        *told.borrow_mut() += 1;
    };
    let mut source = PeerSource {
        taking: Taking { link: &mut fetcher(), sources: &mut sources, told: &tell },
        root: files.root,
        tree: &release.tree,
        uki: release.folder.file_of(&files.uki, release.manifest.uki.bytes).unwrap(),
    };
    story.lab.stage_from(&release, &mut story.lab.disk(), &mut story.lab.esp(), &mut source).unwrap();
    assert!(*told.borrow() >= 2);
}

#[test]
fn without_a_member_nothing_is_begun() {
    let story = Story::new();
    let said = story.stage(&mut story.sources(&[])).unwrap_err().to_string();
    assert!(said.contains("no member gives the release any more"), "{said}");
}

/// As a member answers that is about to write its own other slot, or to restart.
#[test]
fn a_member_that_refuses_for_a_while_is_asked_again_until_it_gives() {
    static LEFT: AtomicU64 = AtomicU64::new(6);
    let mut story = Story::new();
    story.patience = Patience { silence: Duration::from_secs(30), pause: Duration::from_millis(50), ..HASTY };
    let busy: Trick = |stream, _, (head, body)| {
        if LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return send(stream, NOT_FOUND, b"");
        }
        send(stream, &head, &body)
    };
    story.stage(&mut story.sources(&[fake(&story.dir, busy)])).unwrap();
    assert!(story.is_staged());
    assert_eq!(LEFT.load(Ordering::SeqCst), 0);
}

/// Each answer by itself could take a minute, and there are many of them.
#[test]
fn files_that_drip_are_taken_from_another_member_within_a_time_that_their_size_gives() {
    for ending in ["", "manifest.json", ".verity.raw", ".efi.blocks", "systemd-bootx64.efi", ".efi"] {
        let mut story = Story::new();
        story.limits = fetch::Limits::default();
        story.patience = Patience { start: Duration::from_millis(500), ..HASTY };
        let slow = fake_at(&story.dir, ending, |stream, _, answer| drip(stream, answer));
        let mut sources = story.sources(&[slow, member(&story.dir, story.prefix, patient())]);
        let begun = Instant::now();
        story.obtain(&mut sources).unwrap();
        let (took, limit) = (begun.elapsed(), Duration::from_secs(40));
        assert!(took < limit, "`{ending}` took {took:?}");
        assert_eq!(sources.all()[0].fault, Some(Fault::Slow), "`{ending}`");
    }
}

#[test]
fn a_member_has_no_more_time_than_the_asker_says() {
    let story = Story::new();
    let address = fake_at(&story.dir, "manifest.json", |stream, _, answer| drip(stream, answer));
    let mut link = link(Releases::with_limits(fetch::Limits::default()), runtime());
    link.limit(Duration::from_millis(300));
    let begun = Instant::now();
    let place = Place { address, prefix: story.prefix };
    let error =
        link.get(place, "manifest.json", &[Range { first: 0, bytes: 100 }], &mut [0; 100]).unwrap_err();
    assert!(matches!(error, FetchError::Source(Fault::Slow, _)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}
