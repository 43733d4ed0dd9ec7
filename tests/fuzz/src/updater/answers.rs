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
    serving::{MAX_FILES, Range, is_name},
    sources::Prefix,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    runtime::{Builder, Runtime},
};

use super::Script;

const LIST: u8 = 0;
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
    let asked = script.u8() % 2;
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
        } else {
            match fetcher.get(PLACE, "manifest.json", range).await {
                Ok(got) => assert_eq!(got.len() as u64, range.bytes),
                Err(failure) => return assert!(!failure.reason.is_empty()),
            }
        }
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // Four bytes from byte 16 on.
    let get = |answer: &str| [&[1, 0, 0, 0, 16, 0, 3, 0, 40][..], answer.as_bytes()].concat();
    let list = |answer: &str| [&[0, 0, 0, 0, 0, 0, 0, 0, 9][..], answer.as_bytes()].concat();
    let good =
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 16-19/700\r\ncontent-length: 4\r\n\r\nabcd";
    vec![
        get(good),
        get(&good.repeat(3)),
        get(&good.replace("16-19", "0-19")),
        get(&good.replace("length: 4", "length: 99999999999")),
        get(&good.replace("length: 4", "length: 5")),
        get(&good.replace("content-length: 4\r\n", "")),
        get(&good.replace("content-length: 4", "transfer-encoding: chunked")),
        get(&good.replace("\r\n\r\n", "\r\ncontent-encoding: gzip\r\n\r\n")),
        get(&good.replace("206 Partial Content", "200 OK")),
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
