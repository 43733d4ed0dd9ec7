// SPDX-License-Identifier: Apache-2.0
//! What `cluster-releases` gives to whoever connects, and what it does not bear.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    fs,
    io::{Read as _, Write as _},
    iter,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use cluster_updater::releases::server;
use cluster_updater_core::{outline, sources::Prefix, verity::BLOCK_BYTES};
use common::{
    BLOCKS, Lab, bytes,
    members::{member, patient},
};

/// A lab with release 1.1 in a folder.
fn shelf() -> (Lab, Prefix) {
    let lab = Lab::new();
    let dir = lab.release("1.1", &bytes(21, BLOCKS as usize * BLOCK_BYTES));
    let prefix = Prefix::of(&lab.open(&dir).manifest.root.hash);
    (lab, prefix)
}

/// Sends a request as it is and reads until the server has nothing more to say.
fn raw(address: SocketAddr, request: &str) -> String {
    String::from_utf8_lossy(&raw_bytes(address, request)).into_owned()
}

fn raw_bytes(address: SocketAddr, request: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let _ = stream.write_all(request.as_bytes());
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    said
}

fn get(address: SocketAddr, path: &str, more: &str) -> String {
    raw(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n"))
}

#[test]
fn a_server_gives_what_is_on_its_shelf_and_nothing_else() {
    let (lab, prefix) = shelf();
    let dir = lab.path("1.1");
    let address = member(&dir, prefix, patient());
    let list = get(address, &format!("/1/{prefix}/"), "");
    assert!(list.starts_with("HTTP/1.1 200") && list.contains("manifest.json "), "{list}");
    let part = get(address, &format!("/1/{prefix}/manifest.json?bytes=0-3"), "");
    assert!(part.starts_with("HTTP/1.1 200"), "{part}");
    assert!(part.ends_with(&fs::read_to_string(dir.join("manifest.json")).unwrap()[..4]), "{part}");
    let of = |name: &str| format!("/1/{prefix}/{name}");
    for (path, status) in [
        ("/".to_owned(), "404"),
        ("/1/0000000000000000/manifest.json?bytes=0-0".to_owned(), "404"),
        (format!("/2/{prefix}/manifest.json?bytes=0-0"), "404"),
        (of("../../etc/passwd?bytes=0-0"), "404"),
        (of("passwd?bytes=0-0"), "404"),
        (of("manifest.json?bytes=0-99999999"), "416"),
        (of("manifest.json"), "416"),
    ] {
        let said = get(address, &path, "");
        assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {said}");
    }
    let posted = raw(address, "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    assert!(posted.starts_with("HTTP/1.1 405"), "{posted}");
    let long = get(address, &format!("/1/{}", "a".repeat(20_000)), "");
    assert!(!long.contains(" 200 ") && !long.contains(" 206 "), "{long}");
}

/// Head and body of what is asked for.
fn parts(address: SocketAddr, path: &str, more: &str) -> (String, Vec<u8>) {
    let said =
        raw_bytes(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n"));
    let end = said.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    (String::from_utf8(said[..end].to_vec()).unwrap(), said[end..].to_vec())
}

#[test]
fn parts_come_in_one_answer_and_compressed_where_that_is_shorter() {
    const ZSTD: &str = "accept-encoding: zstd\r\n";
    let (lab, prefix) = shelf();
    let dir = lab.path("1.1");
    let address = member(&dir, prefix, patient());
    let of = |name: &str, query: &str| format!("/1/{prefix}/{name}?{query}");
    let manifest = fs::read(dir.join("manifest.json")).unwrap();
    let (head, body) = parts(address, &of("manifest.json", "bytes=8-11,0-3"), "");
    assert!(
        head.starts_with("HTTP/1.1 200") && body == [&manifest[8..12], &manifest[..4]].concat(),
        "{head}"
    );

    let all = of("manifest.json", &format!("bytes=0-{}", manifest.len() - 1));
    let (head, body) = parts(address, &all, ZSTD);
    assert!(head.contains("content-encoding: zstd") && body.len() < manifest.len(), "{head}");
    assert_eq!(zstd::bulk::decompress(&body, manifest.len()).unwrap(), manifest);
    let (head, body) = parts(address, &all, "accept-encoding: gzip\r\n");
    assert!(!head.contains("encoding") && body == manifest, "{head}");

    let files = lab.open(&dir).manifest.files();
    let (head, body) = parts(address, &of(&files.root, "bytes=4096-12287"), ZSTD);
    assert!(!head.contains("encoding") && body.len() == 8192, "random bytes get no shorter: {head}");

    let list = fs::read(dir.join(&files.uki_blocks)).unwrap();
    let (head, body) =
        parts(address, &of(&files.uki_blocks, &format!("outline=32-{}", list.len() - 1)), ZSTD);
    assert!(head.starts_with("HTTP/1.1 200") && !head.contains("encoding"), "{head}");
    assert_eq!(body, outline::of(&list[32..]));

    for (name, query, status) in [
        ("manifest.json", "", "416"),
        ("manifest.json", "bytes=0-99999", "416"),
        ("manifest.json", "bytes=0-0,1-", "416"),
        ("manifest.json", "outline=0-0,1-1", "416"),
        (&*files.root, "bytes=0-1048576", "416"),
        (&*files.root, "outline=0-4095", "404"),
        (&*files.uki, "outline=0-31", "404"),
        ("passwd", "bytes=0-0", "404"),
        ("..", "bytes=0-0", "404"),
    ] {
        let (head, body) = parts(address, &of(name, query), "");
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")) && body.is_empty(), "{name} {query}: {head}");
    }
}

#[test]
fn a_server_bears_two_connections_of_one_asker_and_drops_those_that_say_nothing() {
    let (lab, prefix) = shelf();
    let limits = server::Limits {
        head: Duration::from_millis(300),
        idle: Duration::from_millis(600),
        ..server::Limits::default()
    };
    let address = member(&lab.path("1.1"), prefix, limits);
    let mut silent: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(address).unwrap()).collect();
    // Both are taken, in order, before the third.
    let third = get(address, &format!("/1/{}/", prefix), "");
    assert_eq!(third, "", "a third connection of one asker is served");
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut said = Vec::new();
        let ended = stream.read_to_end(&mut said);
        assert!(ended.is_ok() || said.is_empty(), "a silent connection was kept");
    }
    let after = (0..100).any(|_| {
        thread::yield_now();
        get(address, &format!("/1/{}/", prefix), "").starts_with("HTTP/1.1 200")
    });
    assert!(after, "those that were dropped still count");
}

/// Each costs the disk as much as a block does.
#[test]
fn small_parts_count_as_blocks_against_the_rate() {
    let (lab, prefix) = shelf();
    let limits = server::Limits { rate: 64 << 10, ..server::Limits::default() };
    let address = member(&lab.path("1.1"), prefix, limits);
    let path = format!("/1/{prefix}/cluster-os_1.1.efi?bytes={}", ["0-0"; 32].join(","));
    let begun = Instant::now();
    for _ in 0..2 {
        let (head, body) = parts(address, &path, "");
        assert!(head.starts_with("HTTP/1.1 200") && body.len() == 32, "{head}");
    }
    // The first takes two seconds of what is served.
    assert!(begun.elapsed() > Duration::from_secs(1));
}

#[test]
fn who_hangs_up_takes_no_turn_from_those_behind() {
    let (lab, prefix) = shelf();
    let limits = server::Limits { rate: 64 << 10, ..server::Limits::default() };
    let address = member(&lab.path("1.1"), prefix, limits);
    let second_long = format!("/1/{prefix}/cluster-os_1.1.efi?bytes=0-65535");
    for _ in 0..30 {
        let mut stream = TcpStream::connect(address).unwrap();
        // One without a seat is reset.
        let _ = write!(stream, "GET {second_long} HTTP/1.1\r\nhost: x\r\n\r\n");
    }
    let begun = Instant::now();
    // Without a seat the connection is closed.
    let said = iter::repeat_with(|| get(address, &second_long, ""))
        .find(|said| !said.is_empty() || begun.elapsed() > Duration::from_secs(10));
    assert!(said.unwrap().starts_with("HTTP/1.1 200") && begun.elapsed() < Duration::from_secs(10));
}
