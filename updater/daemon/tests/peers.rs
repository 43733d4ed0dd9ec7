// SPDX-License-Identifier: Apache-2.0
//! A release from members over real sockets: from one that is as it should be, and from those that lie, stall, vanish and
//! worse. Whatever they do, what is staged is what was signed.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    cell::RefCell,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use cluster_updater::{
    obtain::{Wanted, obtain},
    peers::{PeerSource, Taking},
    release::OpenRelease,
    releases::{
        Releases, fetch,
        seam::{Link, Offer},
        server,
    },
    store::Store,
    writer::Moved,
};
use cluster_updater_core::{
    serving::{Range, parse_path},
    sources::{Fault, Holder, Prefix, Sources},
    verity::BLOCK_BYTES,
};
use common::{BLOCKS, Lab, bytes, version};
use tokio::runtime::{Builder, Handle};

/// A loop that never ends, on a thread of its own.
fn runtime() -> Handle {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
}

/// What `cluster-updater` has to a `cluster-releases`.
fn link(releases: Releases, runtime: Handle) -> Link {
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || releases.converse(&theirs, &runtime));
    Link::over(ours).unwrap()
}

/// Less patience than a node has: nothing here is slow unless it means to be.
fn fetcher() -> Link {
    let limits = fetch::Limits { stall: Duration::from_secs(1), answer: Duration::from_secs(3) };
    link(Releases::with_limits(limits), runtime())
}

/// A member that serves the folder of a release.
fn member(dir: &Path, prefix: Prefix, limits: server::Limits) -> SocketAddr {
    let releases = Releases::default();
    let runtime = runtime();
    let files: Vec<(String, File)> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), File::open(entry.path()).unwrap()))
        .collect();
    let sizes = files.iter().map(|(name, file)| (name.clone(), file.metadata().unwrap().len())).collect();
    let open: Vec<_> = files.iter().map(|(_, file)| file.as_fd()).collect();
    link(releases.clone(), runtime.clone()).serve(&Offer { prefix, files: sizes }, &open).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        releases.serve(listener, limits).await
    });
    address
}

fn patient() -> server::Limits {
    server::Limits { each: 16, ..server::Limits::default() }
}

/// A request as a fake member sees it.
struct Ask {
    path: PathBuf,
    name: String,
    range: Option<Range>,
}

impl Ask {
    fn read(dir: &Path, stream: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let (_, name) = parse_path(head.split(' ').nth(1)?)?;
        let path = dir.join(name);
        let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let header =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("range: ").map(str::to_owned));
        let range = header.map(|header| Range::parse(&header, size).unwrap());
        Some(Self { path: path.clone(), name: name.to_owned(), range })
    }

    fn is_of_image(&self) -> bool {
        self.name.ends_with(".root.raw")
    }

    /// What a good member answers: head and body.
    fn answer(&self, dir: &Path) -> (String, Vec<u8>) {
        let Some(range) = self.range else {
            let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
            let list: String = files
                .map(|entry| {
                    format!("{} {}\n", entry.file_name().to_str().unwrap(), entry.metadata().unwrap().len())
                })
                .collect();
            return (format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", list.len()), list.into_bytes());
        };
        let file = fs::read(&self.path).unwrap();
        let body = file[range.first as usize..(range.first + range.bytes) as usize].to_vec();
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: {}{}\r\ncontent-length: {}\r\n\r\n",
            range.content(),
            file.len(),
            body.len()
        );
        (head, body)
    }
}

/// What a fake member does when it is asked for the root image; it is good at everything else.
type Trick = fn(&mut TcpStream, &Ask, (String, Vec<u8>)) -> io::Result<()>;

fn fake(dir: &Path, trick: Trick) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let dir = dir.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let dir = dir.clone();
            thread::spawn(move || -> io::Result<()> {
                let mut stream = stream?;
                let mut reader = BufReader::new(stream.try_clone()?);
                while let Some(ask) = Ask::read(&dir, &mut reader) {
                    let answer = ask.answer(&dir);
                    if ask.is_of_image() {
                        trick(&mut stream, &ask, answer)?;
                    } else {
                        stream.write_all(&[answer.0.as_bytes(), &answer.1].concat())?;
                    }
                }
                Ok(())
            });
        }
    });
    address
}

fn send(stream: &mut TcpStream, head: &str, body: &[u8]) -> io::Result<()> {
    stream.write_all(&[head.as_bytes(), body].concat())
}

fn hang_up() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// Waits until the other end has had enough.
fn say_nothing(stream: &mut TcpStream) -> io::Result<()> {
    let _ = stream.read_to_end(&mut Vec::new());
    Err(hang_up())
}

const TRICKS: &[(&str, Fault, Trick)] = &[
    ("flips a bit", Fault::Lied, |stream, _, (head, mut body)| {
        let middle = body.len() / 2;
        body[middle] ^= 1;
        send(stream, &head, &body)
    }),
    ("gives another range", Fault::Lied, |stream, ask, (_, body)| {
        let other = format!("bytes {}-{}/{}", 1, body.len(), body.len() + 2);
        let wrong = format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: {other}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        assert!(ask.range.is_some());
        send(stream, &wrong, &body)
    }),
    ("sends the whole file", Fault::Lied, |stream, ask, _| {
        let file = fs::read(&ask.path)?;
        send(stream, &format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", file.len()), &file)
    }),
    ("announces too much", Fault::Lied, |stream, _, (head, body)| {
        let head = head.replace(&format!("content-length: {}", body.len()), "content-length: 99999999999");
        send(stream, &head, &body)
    }),
    ("sends an endless chunked body", Fault::Lied, |stream, _, (head, body)| {
        let head = head.replace(&format!("content-length: {}", body.len()), "transfer-encoding: chunked");
        send(stream, &head, b"")?;
        loop {
            stream.write_all(b"1000\r\n")?;
            stream.write_all(&[7; 4096])?;
            stream.write_all(b"\r\n")?;
        }
    }),
    ("sends a body without a length", Fault::Lied, |stream, _, (head, body)| {
        let head = head.replace(&format!("content-length: {}\r\n", body.len()), "");
        send(stream, &head, &body)?;
        Err(hang_up())
    }),
    ("says that it is compressed", Fault::Lied, |stream, _, (head, body)| {
        send(stream, &head.replace("\r\n\r\n", "\r\ncontent-encoding: gzip\r\n\r\n"), &body)
    }),
    ("redirects", Fault::Lied, |stream, _, _| {
        send(stream, "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", b"")
    }),
    ("has it no more", Fault::Gone, |stream, _, _| {
        send(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", b"")
    }),
    ("vanishes before the answer", Fault::Gone, |_, _, _| Err(hang_up())),
    ("vanishes in the middle", Fault::Gone, |stream, _, (head, body)| {
        send(stream, &head, &body[..body.len() / 2])?;
        Err(hang_up())
    }),
    ("speaks another language", Fault::Gone, |stream, _, _| {
        send(stream, "SSH-2.0-OpenSSH_10.0\r\n\r\n", b"")?;
        Err(hang_up())
    }),
    ("sends headers without end", Fault::Gone, |stream, _, _| {
        send(stream, "HTTP/1.1 206 Partial Content\r\n", b"")?;
        loop {
            stream.write_all(b"x: y\r\n")?;
        }
    }),
    ("does not answer", Fault::Stalled, |stream, _, _| say_nothing(stream)),
    ("stalls in the middle", Fault::Stalled, |stream, _, (head, body)| {
        send(stream, &head, &body[..body.len() / 2])?;
        say_nothing(stream)
    }),
    ("drips", Fault::Slow, |stream, _, (head, body)| {
        send(stream, &head, b"")?;
        for byte in body {
            stream.write_all(&[byte])?;
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }),
];

/// A lab with a release of which most blocks are new, and its folder at a member.
struct Story {
    lab: Lab,
    dir: PathBuf,
    prefix: Prefix,
    store: Store,
}

impl Story {
    fn new() -> Self {
        let lab = Lab::new();
        let fresh = bytes(21, 300 * BLOCK_BYTES);
        let image = [&fresh[..], &lab.image[..33 * BLOCK_BYTES]].concat();
        let dir = lab.release("1.1", &image);
        let prefix = Prefix::of(&lab.open(&dir).manifest.root.hash);
        let store = Store::open(&lab.path("state")).unwrap();
        Self { lab, dir, prefix, store }
    }

    fn sources(&self, addresses: &[SocketAddr]) -> Sources {
        let holders = addresses.iter().enumerate().map(|(number, address)| Holder {
            name: format!("n{number}"),
            address: *address,
            version: version("1.1"),
            prefix: self.prefix,
        });
        Sources::new(holders, 0)
    }

    fn obtain(&self, sources: &mut Sources) -> anyhow::Result<OpenRelease> {
        let trusted = self.lab.trusted();
        let wanted = Wanted {
            version: &version("1.1"),
            prefix: self.prefix,
            trusted: &trusted,
            accept: &|_| Ok(()),
            running_uki: File::open(self.lab.entries().join("cluster-os_1.0.efi")).ok(),
        };
        let mut taking = Taking { link: &mut fetcher(), sources, told: &|_| {} };
        obtain(&self.store, &mut taking, &wanted, &mut |_| {})
    }

    fn write(&self, release: &OpenRelease, sources: &mut Sources) -> anyhow::Result<Moved> {
        let files = release.manifest.files();
        let mut source = PeerSource {
            taking: Taking { link: &mut fetcher(), sources, told: &|_| {} },
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

#[test]
fn another_member_takes_over_whatever_one_does() {
    for (what, fault, trick) in TRICKS {
        let story = Story::new();
        let addresses = [fake(&story.dir, *trick), member(&story.dir, story.prefix, patient())];
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
    static LEFT: AtomicU64 = AtomicU64::new(2);
    let story = Story::new();
    // Two ranges of the image, then never again.
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
    assert!(fetched < BLOCKS - 33, "{fetched} blocks were asked for again");
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

/// Sends a request as it is and reads until the server has nothing more to say.
fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let _ = stream.write_all(request.as_bytes());
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

fn get(address: SocketAddr, path: &str, more: &str) -> String {
    raw(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n"))
}

#[test]
fn a_server_gives_what_is_on_its_shelf_and_nothing_else() {
    let story = Story::new();
    let prefix = story.prefix;
    let address = member(&story.dir, prefix, patient());
    let list = get(address, &format!("/1/{prefix}/"), "");
    assert!(list.starts_with("HTTP/1.1 200") && list.contains("manifest.json "), "{list}");
    let part = get(address, &format!("/1/{prefix}/manifest.json"), "range: bytes=0-3\r\n");
    assert!(part.starts_with("HTTP/1.1 206") && part.contains("content-range: bytes 0-3/"), "{part}");
    assert!(part.ends_with(&fs::read_to_string(story.dir.join("manifest.json")).unwrap()[..4]), "{part}");
    for (path, more, status) in [
        ("/", "", "404"),
        ("/1/0000000000000000/manifest.json", "", "404"),
        (&format!("/1/{prefix}/../../etc/passwd"), "", "404"),
        (&format!("/1/{prefix}/passwd"), "", "404"),
        (&format!("/1/{prefix}/manifest.json"), "range: bytes=0-99999999\r\n", "416"),
        (&format!("/1/{prefix}/manifest.json"), "range: bytes=0-0,2-2\r\n", "416"),
        (&format!("/1/{prefix}/manifest.json"), "range: bytes=0-0\r\nrange: bytes=1-1\r\n", "416"),
        (&format!("/1/{prefix}/cluster-os_1.1.efi"), "", "416"),
    ] {
        let said = get(address, path, more);
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{path} {more}: {said}");
    }
    let posted = raw(address, "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    assert!(posted.starts_with("HTTP/1.1 405"), "{posted}");
    let long = get(address, &format!("/1/{}", "a".repeat(20_000)), "");
    assert!(!long.contains(" 200 ") && !long.contains(" 206 "), "{long}");
}

#[test]
fn a_server_bears_two_connections_of_one_asker_and_drops_those_that_say_nothing() {
    let story = Story::new();
    let limits = server::Limits {
        head: Duration::from_millis(300),
        idle: Duration::from_millis(600),
        ..server::Limits::default()
    };
    let address = member(&story.dir, story.prefix, limits);
    let mut silent: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(address).unwrap()).collect();
    // Both are taken, in order, before the third.
    let third = get(address, &format!("/1/{}/", story.prefix), "");
    assert_eq!(third, "", "a third connection of one asker is served");
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut said = Vec::new();
        let ended = stream.read_to_end(&mut said);
        assert!(ended.is_ok() || said.is_empty(), "a silent connection was kept");
    }
    let after = (0..100).any(|_| {
        thread::yield_now();
        get(address, &format!("/1/{}/", story.prefix), "").starts_with("HTTP/1.1 200")
    });
    assert!(after, "those that were dropped still count");
}

#[test]
fn without_a_member_nothing_is_begun() {
    let story = Story::new();
    let said = story.stage(&mut story.sources(&[])).unwrap_err().to_string();
    assert!(said.contains("no member gives the release any more"), "{said}");
}
