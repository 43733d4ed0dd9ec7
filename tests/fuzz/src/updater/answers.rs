// SPDX-License-Identifier: Apache-2.0
//! What a member answers over HTTP: `cluster-releases` gets exactly the bytes that it asked for, or says what is wrong.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use cluster_updater::releases::{
    fetch::{Fetcher, Limits},
    seam::Place,
};
use cluster_updater_core::{
    outline,
    serving::{MAX_FILES, Range, is_name},
    sources::Prefix,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    runtime::{Builder, Runtime},
};

use super::Script;

const LIST: u8 = 0;
const GET: u8 = 1;
const OUTLINE: u8 = 2;
const KINDS: u8 = 3;
const PLACE: Place = Place {
    // Nobody can be reached there: when the connection breaks that is the end.
    address: SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
    prefix: Prefix([0x1a; 8]),
};
/// Nothing waits here: whoever has said all hangs up.
const LIMITS: Limits = Limits { stall: Duration::from_secs(60), answer: Duration::from_secs(60) };

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime starts");
}

pub(super) fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    let asked = script.u8() % KINDS;
    let range = Range { first: script.u32().into(), bytes: 1 + u64::from(script.u16()) };
    // Answers to one question after the other, over one connection.
    let cut = usize::from(script.u16());
    let answers = script.0.to_vec();
    RUNTIME.with(|runtime| runtime.block_on(ask(asked, range, answers, cut)));
}

async fn ask(asked: u8, range: Range, answers: Vec<u8>, cut: usize) {
    let (ours, theirs) = duplex(64 << 10);
    let (mut hear, mut speak) = tokio::io::split(theirs);
    // In two parts: an answer may be cut anywhere.
    tokio::spawn(async move {
        let mut request = [0; 16];
        let _ = hear.read(&mut request).await;
        let (first, second) = answers.split_at(cut.min(answers.len()));
        let _ = speak.write_all(first).await;
        tokio::task::yield_now().await;
        let _ = speak.write_all(second).await;
        let _ = speak.shutdown().await;
        // What else is asked is read, or asking would fail before the answer is seen.
        while hear.read(&mut request).await.is_ok_and(|count| count > 0) {}
    });
    let Ok(mut fetcher) = Fetcher::over(LIMITS, PLACE.address, ours).await else { return };
    for _ in 0..3 {
        if asked == LIST {
            match fetcher.list(PLACE).await {
                Ok(files) => {
                    assert!(files.len() <= MAX_FILES && files.iter().all(|(name, _)| is_name(name)));
                }
                Err(failure) => return assert!(!failure.reason.is_empty()),
            }
        } else if asked == OUTLINE {
            match fetcher.outline(PLACE, "cluster-os_1.1.efi.blocks", range).await {
                Ok(got) => assert!(got.len() as u64 <= outline::most_bytes(range.bytes)),
                Err(failure) => return assert!(!failure.reason.is_empty()),
            }
        } else {
            // Some in two parts.
            let half = Range { bytes: range.bytes / 3, ..range };
            let rest = Range { first: range.first + half.bytes, bytes: range.bytes - half.bytes };
            let parts = if range.bytes.is_multiple_of(3) { vec![half, rest] } else { vec![range] };
            match fetcher.get(PLACE, "manifest.json", &parts).await {
                Ok(got) => assert_eq!(got.len() as u64, range.bytes),
                Err(failure) => return assert!(!failure.reason.is_empty()),
            }
        }
    }
}

/// A frame of zstd (RFC 8878) that says it holds `said` zeros, in as few bytes as there can be.
fn zeros(said: u64, blocks: &[u32]) -> Vec<u8> {
    // Magic number; the content's size follows in eight bytes, and is the window's.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    frame.extend(said.to_le_bytes());
    for (at, bytes) in blocks.iter().enumerate() {
        let is_last = u32::from(at + 1 == blocks.len());
        // One byte, as often as the block has bytes.
        let head = bytes << 3 | 1 << 1 | is_last;
        frame.extend(&head.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // Four bytes from byte 16 on.
    let get = |answer: &str| [&[GET, 0, 0, 0, 16, 0, 3, 0, 40][..], answer.as_bytes()].concat();
    let zstd = |bytes: &[u8]| {
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-encoding: zstd\r\ncontent-length: {}\r\n\r\n", bytes.len());
        // 500 bytes from byte 16 on.
        [&[GET, 0, 0, 0, 16, 1, 243, 0, 40][..], head.as_bytes(), bytes].concat()
    };
    // Of 640 bytes.
    let outline = |answer: &str| [&[OUTLINE, 0, 0, 0, 0, 2, 127, 0, 40][..], answer.as_bytes()].concat();
    let list = |answer: &str| [&[0, 0, 0, 0, 0, 0, 0, 0, 9][..], answer.as_bytes()].concat();
    let good = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd";
    vec![
        get("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcde"),
        get("HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-encoding: zstd\r\n\r\nabcd"),
        zstd(&zeros(500, &[500])),
        zstd(&zeros(500, &[499])),
        zstd(&zeros(499, &[499])),
        zstd(&zeros(500, &[128 << 10; 100])),
        zstd(&zeros(100 * (128 << 10), &[128 << 10; 100])),
        zstd(&zeros(u64::MAX, &[500])),
        outline("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n\u{14}abcdef"),
        outline("HTTP/1.1 200 OK\r\ncontent-length: 141\r\n\r\n"),
        outline("HTTP/1.1 200 OK\r\ncontent-length: 7\r\ncontent-encoding: zstd\r\n\r\n\u{14}abcdef"),
        outline("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
        get(good),
        get(&good.repeat(3)),
        get(&good.replace("length: 4", "length: 99999999999")),
        get(&good.replace("length: 4", "length: 5")),
        get(&good.replace("content-length: 4\r\n", "")),
        get(&good.replace("content-length: 4", "transfer-encoding: chunked")),
        get(&good.replace("\r\n\r\n", "\r\ncontent-encoding: gzip\r\n\r\n")),
        get(&good.replace("200 OK", "206 Partial Content")),
        get("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
        get("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"),
        get("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\n\r\n"),
        get("SSH-2.0-OpenSSH_10.0\r\n"),
        get(&format!("HTTP/1.1 206 x\r\n{}", "x: y\r\n".repeat(40))),
        get(""),
        list("HTTP/1.1 200 OK\r\ncontent-length: 18\r\n\r\nmanifest.json 700\n"),
        list("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        list("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n../../a 1"),
        list("HTTP/1.1 200 OK\r\ncontent-length: 8193\r\n\r\n"),
        list("HTTP/1.0 200 OK\r\n\r\nmanifest.json 700\n"),
    ]
}
