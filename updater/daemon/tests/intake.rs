// SPDX-License-Identifier: Apache-2.0
//! Releases from one file, from web servers good and bad, and from sticks.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    cell::Cell,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::TcpStream,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use cluster_updater::{
    folder::Folder,
    intake::{
        device::{self, choose, search},
        web::{Fetch, Limits, Wanted},
    },
    make,
    updater::Updater,
};
use cluster_updater_core::{Manifest, Verified, archive, keys::SecretKey, slot, verity::BLOCK_BYTES};
use common::{
    Lab, RUNNING, bytes, run, version,
    web::{Server, absent, send, serve_folder},
};

/// A node and a release 1.1 in a folder.
fn lab() -> (Lab, PathBuf) {
    let lab = Lab::new();
    lab.trusted();
    // Longer than what must be small, so that it comes after it.
    let dir = lab.release("1.1", &bytes(61, 300 * BLOCK_BYTES));
    (lab, dir)
}

/// As `just release` packs it.
fn pack(lab: &Lab, dir: &Path, first: &[&str]) -> PathBuf {
    let file = lab.path("release.tar");
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort_by_key(|name| !first.iter().any(|first| name.contains(first)));
    run(Command::new("tar").args(["--format=ustar", "-C"]).arg(dir).arg("-cf").arg(&file).args(names));
    file
}

const SMALL: [&str; 2] = ["manifest.json", "root."];

fn import(lab: &Lab, release: OwnedFd) -> anyhow::Result<()> {
    let node = Updater::new(lab.paths(), lab.host("boot"))?;
    let imported = node.import(release)?;
    assert_eq!(imported, version("1.1"));
    let kept = lab.open(&lab.path("state/releases/1.1"));
    kept.check_all(|_, _, _| Ok(()))
}

fn import_file(lab: &Lab, path: &Path) -> anyhow::Result<()> {
    import(lab, Folder::open_release(path)?.into_fd())
}

#[test]
fn a_release_in_one_file_is_taken_in_whole_or_not_at_all() {
    let (lab, dir) = lab();
    let file = pack(&lab, &dir, &SMALL);
    import_file(&lab, &file).unwrap();
    fs::remove_dir_all(lab.path("state")).unwrap();

    let whole = fs::read(&file).unwrap();
    for length in [0, 700, whole.len() / 2, whole.len() - 11 * 1024] {
        fs::write(&file, &whole[..length]).unwrap();
        let error = format!("{:#}", import_file(&lab, &file).unwrap_err());
        assert!(error.contains("cut off") || error.contains("no tar archive"), "{length}: {error}");
    }
    let mut changed = whole.clone();
    let at = whole.len() / 2;
    changed[at] ^= 1;
    fs::write(&file, changed).unwrap();
    let error = format!("{:#}", import_file(&lab, &file).unwrap_err());
    assert!(error.contains("damaged or changed"), "{error}");
    assert!(!lab.path("state/releases/1.1").exists());
}

/// What else is in an archive is not looked at, and never written anywhere.
#[test]
fn an_archive_with_other_things_in_it_brings_the_release_and_nothing_else() {
    let (lab, dir) = lab();
    fs::write(dir.join("other.txt"), "x").unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    fs::write(dir.join("sub/manifest.json"), "not this one").unwrap();
    let parent = dir.parent().unwrap();
    let file = lab.path("release.tar");
    run(Command::new("tar").args(["--format=ustar", "-C"]).arg(parent).arg("-cf").arg(&file).arg("1.1"));
    import_file(&lab, &file).unwrap();
    let kept: Vec<String> = Folder::open(&lab.path("state/releases/1.1")).unwrap().names().unwrap();
    assert!(!kept.iter().any(|name| name.contains("other")), "{kept:?}");

    // Links are not what they lead to.
    std::os::unix::fs::symlink("/etc/hostname", dir.join("link")).unwrap();
    run(Command::new("tar").args(["--format=ustar", "-C"]).arg(parent).arg("-cf").arg(&file).arg("1.1"));
    let error = format!("{:#}", import_file(&lab, &file).unwrap_err());
    assert!(error.contains("`1.1/link` in the archive is no plain file (type `2`)"), "{error}");
}

struct Client<'a> {
    lab: &'a Lab,
    spool: PathBuf,
    accepted: Cell<bool>,
}

impl<'a> Client<'a> {
    fn of(lab: &'a Lab) -> Self {
        let spool = lab.path("spool");
        fs::create_dir_all(&spool).unwrap();
        Self { lab, spool, accepted: Cell::new(false) }
    }

    fn fetch(&self, url: &str) -> anyhow::Result<OwnedFd> {
        let fetch = Fetch {
            program: env!("CARGO_BIN_EXE_cluster-update").into(),
            user: None,
            spool: self.spool.clone(),
            limits: Limits { tries: 3, pause: Duration::from_millis(1), stall: Duration::from_secs(1) },
        };
        let accept = |manifest: &Verified<Manifest>| {
            self.accepted.set(true);
            Ok(slot::may_follow(manifest, &version(RUNNING), "x86-64")?)
        };
        let trusted = self.lab.trusted();
        let wanted = Wanted { trusted: &trusted, accept: &accept };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let fetched = runtime.block_on(fetch.release(url, &wanted, &mut |_, _| {}));
        // It never had a name.
        assert_eq!(fs::read_dir(&self.spool).unwrap().count(), 0);
        fetched
    }

    fn import(&self, url: &str) -> anyhow::Result<()> {
        import(self.lab, self.fetch(url)?)
    }

    fn refused(&self, url: &str, wanted: &str) {
        let error = format!("{:#}", self.import(url).unwrap_err());
        assert!(error.contains(wanted), "`{wanted}` is not in: {error}");
    }
}

#[test]
fn a_folder_on_a_web_server_is_taken_in_by_either_of_its_names() {
    let (lab, dir) = lab();
    let server = Server::start(serve_folder(dir));
    let client = Client::of(&lab);
    for name in ["/0.2/", "/0.2/manifest.json"] {
        client.import(&format!("{}{name}", server.url)).unwrap();
        fs::remove_dir_all(lab.path("state")).unwrap();
    }
    // There is no list: only what can be there is asked for.
    let signature = format!("manifest.json.{}.sig", common::key().public().id());
    assert_eq!((server.count(&signature), server.count("root.2.json")), (2, 2));
}

#[test]
fn a_rotation_on_a_web_server_is_followed() {
    let (lab, dir) = lab();
    let new = SecretKey::from_seed(&[2; 32]);
    let roots = lab.path("roots");
    fs::create_dir(&roots).unwrap();
    for entry in fs::read_dir(lab.path("root")).unwrap().flatten() {
        fs::copy(entry.path(), roots.join(entry.file_name())).unwrap();
    }
    make::next_root(&roots, &[new.public()], 1, true, &[common::key(), SecretKey::from_seed(&[2; 32])])
        .unwrap();
    for entry in fs::read_dir(&roots).unwrap().flatten() {
        fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    fs::remove_file(dir.join(format!("manifest.json.{}.sig", common::key().public().id()))).unwrap();
    make::sign(&dir.join("manifest.json"), &new).unwrap();
    let server = Server::start(serve_folder(dir));
    let node = Updater::new(lab.paths(), lab.host("boot")).unwrap();
    node.import(Client::of(&lab).fetch(&format!("{}/0.2/", server.url)).unwrap()).unwrap();
    assert_eq!(node.status().trust.root_version, 2);
}

#[test]
fn a_server_that_goes_half_way_is_asked_for_the_rest() {
    let (lab, dir) = lab();
    let content = fs::read(pack(&lab, &dir, &SMALL)).unwrap();
    let half = content.len() / 2;
    let first = AtomicUsize::new(0);
    let server = Server::start(move |_, from, stream| {
        let give = if first.fetch_add(1, Ordering::SeqCst) == 0 { half } else { usize::MAX };
        send(stream, &content, from, give);
    });
    Client::of(&lab).import(&format!("{}/r.tar", server.url)).unwrap();
    assert_eq!(server.count("r.tar"), 2);
}

/// A server without ranges begins anew, and says so.
#[test]
fn a_server_that_cannot_go_on_begins_anew_and_is_given_up_when_it_never_ends() {
    let (lab, dir) = lab();
    let content = fs::read(pack(&lab, &dir, &SMALL)).unwrap();
    let (half, whole) = (content.len() / 2, content.clone());
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |_, _, stream| {
        let give = if asked.fetch_add(1, Ordering::SeqCst) == 0 { half } else { usize::MAX };
        send(stream, &whole, 0, give);
    });
    Client::of(&lab).import(&format!("{}/r.tar", server.url)).unwrap();
    fs::remove_dir_all(lab.path("state")).unwrap();

    let length = content.len();
    let server = Server::start(move |_, _, stream| send(stream, &content, 0, half));
    let client = Client::of(&lab);
    client.refused(
        &format!("{}/r.tar", server.url),
        &format!("the answer ended early: error reading a body from connection; given up after 3 attempts, {half} of {length} bytes came"),
    );
}

#[test]
fn a_server_that_says_nothing_or_drips_is_given_up() {
    let (lab, dir) = lab();
    let content = fs::read(pack(&lab, &dir, &SMALL)).unwrap();
    let silent = Server::start(|_, _, stream| {
        // Until the other end goes.
        let _ = stream.read(&mut [0]);
    });
    let client = Client::of(&lab);
    client.refused(&format!("{}/r.tar", silent.url), "within 1 s; given up after 3 attempts, 0 bytes came");
    let stalls = Server::start(move |_, from, stream| {
        send(stream, &content, from, 100);
        let _ = stream.read(&mut [0]);
    });
    client.refused(&format!("{}/r.tar", stalls.url), "sent nothing for 1 s; given up after 3 attempts");
    assert_eq!(stalls.count("r.tar"), 3);
}

#[test]
fn what_has_no_end_is_ended_by_the_signed_manifest() {
    let (lab, dir) = lab();
    let content = fs::read(pack(&lab, &dir, &SMALL)).unwrap();
    let chunk = |stream: &mut TcpStream, bytes: &[u8]| {
        write!(stream, "{:x}\r\n", bytes.len())
            .and_then(|()| stream.write_all(bytes))
            .and_then(|()| stream.write_all(b"\r\n"))
    };
    let whole = content.clone();
    let server = Server::start(move |path, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        if path.starts_with("/zeros") {
            while chunk(stream, &[0; 4096]).is_ok() {}
        }
        chunk(stream, &whole).unwrap();
        if path.starts_with("/endless") {
            while chunk(stream, &[7; 65536]).is_ok() {}
        }
        let _ = stream.write_all(b"0\r\n\r\n");
    });
    let client = Client::of(&lab);
    client.refused(&format!("{}/zeros", server.url), "no tar archive of a release");
    client.refused(&format!("{}/endless", server.url), "does not end after");
    // A length that is not told is none that is needed.
    client.import(&format!("{}/whole", server.url)).unwrap();
    fs::remove_dir_all(lab.path("state")).unwrap();

    // Told beforehand, it is refused before it comes.
    let long = Server::start(move |_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 900000000000\r\n\r\n");
        let _ = stream.write_all(&content);
        let _ = stream.read(&mut [0]);
    });
    client.refused(
        &format!("{}/r.tar", long.url),
        "the file has 900000000000 bytes; the signed manifest allows",
    );
}

#[test]
fn files_of_a_folder_that_have_other_sizes_are_refused() {
    let (lab, dir) = lab();
    let files = lab.open(&dir).manifest.files();
    let uki = fs::read(dir.join(&files.uki)).unwrap();
    fs::write(dir.join(&files.uki), &uki[..uki.len() - 1]).unwrap();
    let server = Server::start(serve_folder(dir.clone()));
    let client = Client::of(&lab);
    client.refused(&format!("{}/0.2/", server.url), "the signed manifest says");
    fs::write(dir.join(&files.uki), [&uki[..], b"1"].concat()).unwrap();
    client.refused(&format!("{}/0.2/", server.url), "and may have");
    fs::write(dir.join(&files.uki), uki).unwrap();
    fs::remove_file(dir.join(&files.boot_loader)).unwrap();
    client.refused(&format!("{}/0.2/", server.url), "there is no `http://");
    fs::write(dir.join("manifest.json"), vec![b' '; 70_000]).unwrap();
    client.refused(&format!("{}/0.2/", server.url), "and may have 65536");
    fs::remove_file(dir.join("manifest.json")).unwrap();
    client.refused(&format!("{}/0.2/", server.url), "a URL of a folder ends in `/`");
    assert_eq!(server.count(".root.raw"), 0);
}

#[test]
fn redirects_are_followed_and_circles_are_not() {
    let (lab, dir) = lab();
    let content = fs::read(pack(&lab, &dir, &SMALL)).unwrap();
    let server = Server::start(move |path, from, stream| {
        let to = match path {
            "/there" => return send(stream, &content, from, usize::MAX),
            "/circle" => "circle",
            "/away" => "ftp://elsewhere/r.tar",
            _ => "/there",
        };
        write!(stream, "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let client = Client::of(&lab);
    client.import(&format!("{}/here", server.url)).unwrap();
    client.refused(&format!("{}/circle", server.url), "to another place more than 5 times");
    client.refused(&format!("{}/away", server.url), "names no place");
}

#[test]
fn what_is_no_release_of_ours_is_refused_before_it_is_fetched() {
    let (lab, dir) = lab();
    let client = Client::of(&lab);
    let page = Server::start(|_, _, stream| send(stream, &[b'<'; 5000], 0, usize::MAX));
    client.refused(&format!("{}/r.tar", page.url), "no tar archive of a release");
    let none = Server::start(|_, _, stream| absent(stream));
    client.refused(&format!("{}/r.tar", none.url), "the server has no `http://");
    let broken = Server::start(|_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    });
    client.refused(&format!("{}/r.tar", broken.url), "answers `503 Service Unavailable`; given up after 3");
    let denied = Server::start(|_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
    });
    client.refused(&format!("{}/r.tar", denied.url), "answers `403 Forbidden`");
    assert_eq!(denied.count("r.tar"), 1);
    client.refused("http://user:word@host/r.tar", "a user name is not supported");
    // Another protocol than the server's.
    client.refused(&none.url.replace("http:", "https:"), "http:// brings the same");
    assert!(!client.accepted.get());

    // The large parts first: what it is would be known at the end.
    let server = Server::start(serve_folder(lab.dir.path().to_owned()));
    fs::write(lab.path("late.tar"), {
        let name = "cluster-os_1.1.efi";
        let large = vec![1; 3 << 20];
        [&archive::header(name, large.len() as u64).unwrap()[..], &large, &archive::END].concat()
    })
    .unwrap();
    client.refused(&format!("{}/0.2/late.tar", server.url), "`manifest.json`");

    // Signed by nobody that counts; older than what runs.
    let forged = fs::read_to_string(dir.join("manifest.json")).unwrap().replace("normal", "critical");
    let good = fs::read(dir.join("manifest.json")).unwrap();
    fs::write(dir.join("manifest.json"), forged).unwrap();
    let server = Server::start(serve_folder(dir.clone()));
    client.refused(&format!("{}/0.2/", server.url), "changed or damaged");
    fs::write(dir.join("manifest.json"), good).unwrap();
    let same = lab.release(RUNNING, &bytes(62, 300 * BLOCK_BYTES));
    let old = Server::start(serve_folder(same));
    client.refused(&format!("{}/0.2/", old.url), "is what runs");
    for server in [&server, &old] {
        assert_eq!((server.count(".root.raw"), server.count(".efi")), (0, 0));
    }
}

/// What a stick shows, without the stick.
fn on_stick(lab: &Lab, dir: &Path, asked: Option<&str>) -> anyhow::Result<String> {
    let found = search(File::open(dir)?.into(), "/dev/sdb1", &lab.trusted())?;
    let (asked, running) = (asked.map(version), version(RUNNING));
    let wanted = device::Wanted { version: asked.as_ref(), running: &running, trusted: &lab.trusted() };
    let found = choose(found, &wanted)?;
    import_any(lab, found.folder.into_fd())?;
    Ok(found.place)
}

fn import_any(lab: &Lab, release: OwnedFd) -> anyhow::Result<()> {
    Updater::new(lab.paths(), lab.host("boot"))?.import(release).map(drop)
}

#[test]
fn on_a_stick_the_newest_release_that_may_follow_is_found() {
    let (lab, dir) = lab();
    let stick = lab.path("stick");
    fs::create_dir(&stick).unwrap();
    let empty = search(File::open(&stick).unwrap().into(), "/dev/sdb1", &lab.trusted()).unwrap();
    assert!(empty.is_empty());
    fs::write(stick.join("holiday.jpg"), "x").unwrap();
    fs::write(stick.join("backup.tar"), "not one of ours").unwrap();
    fs::create_dir(stick.join("System Volume Information")).unwrap();

    fs::create_dir(stick.join("releases")).unwrap();
    fs::rename(pack(&lab, &dir, &SMALL), stick.join("releases/cluster-os_1.1.update.tar")).unwrap();
    assert_eq!(on_stick(&lab, &stick, None).unwrap(), "/dev/sdb1: /releases/cluster-os_1.1.update.tar");

    let newer = lab.release("1.2", &bytes(63, 300 * BLOCK_BYTES));
    fs::rename(&newer, stick.join("1.2")).unwrap();
    assert_eq!(on_stick(&lab, &stick, None).unwrap(), "/dev/sdb1: /1.2");
    let asked = on_stick(&lab, &stick, Some("1.1")).unwrap();
    assert_eq!(asked, "/dev/sdb1: /releases/cluster-os_1.1.update.tar");
    let error = on_stick(&lab, &stick, Some("1.3")).unwrap_err().to_string();
    assert!(error.contains("version 1.3 is not there") && error.contains("/1.2: version 1.2"), "{error}");

    // Forged, and older: each with its reason.
    let manifest = stick.join("1.2/manifest.json");
    let forged = fs::read_to_string(&manifest).unwrap().replace("normal", "critical");
    fs::write(&manifest, forged).unwrap();
    assert!(on_stick(&lab, &stick, None).unwrap().ends_with("1.1.update.tar"));
    fs::remove_dir_all(stick.join("releases")).unwrap();
    let old = lab.release(RUNNING, &bytes(64, 300 * BLOCK_BYTES));
    for entry in fs::read_dir(old).unwrap().flatten() {
        fs::rename(entry.path(), stick.join(entry.file_name())).unwrap();
    }
    let error = on_stick(&lab, &stick, None).unwrap_err().to_string();
    for part in
        ["none of the releases", "/1.2: ", "changed or damaged", "/dev/sdb1: /: version 1.0 is what runs"]
    {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}

/// Somebody made the stick for this node.
#[test]
fn a_stick_leads_nowhere_else() {
    let (lab, dir) = lab();
    let stick = lab.path("stick");
    fs::create_dir(&stick).unwrap();
    std::os::unix::fs::symlink(&dir, stick.join("release")).unwrap();
    fs::create_dir(stick.join("pipes")).unwrap();
    nix::unistd::mkfifo(&stick.join("pipes/manifest.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    nix::unistd::mkfifo(&stick.join("a.tar"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(stick.join("many")).unwrap();
    for number in 0..1100 {
        fs::write(stick.join(format!("many/{number}")), "").unwrap();
    }
    let error = on_stick(&lab, &stick, None).unwrap_err().to_string();
    assert!(error.contains("/pipes: ") && error.contains("not a regular file"), "{error}");
    assert!(!error.contains("/release"), "{error}");
}
