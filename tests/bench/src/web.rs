// SPDX-License-Identifier: Apache-2.0
//! Servers on loopback that count what they send: one of files, and one that passes on what another says.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result, bail};

/// A server that lives as long as this program.
pub(crate) struct Web {
    pub(crate) address: SocketAddr,
    sent: Sent,
}

/// Bytes that went to askers, by what they were.
type Sent = Arc<Mutex<BTreeMap<&'static str, u64>>>;

/// What is not the content of a file.
const HEADS: &str = "HTTP";

impl Web {
    /// Serves the files of a folder to whatever speaks HTTP/1.1, with single ranges.
    pub(crate) fn of(dir: &Path) -> Result<Self> {
        let dir = dir.to_owned();
        Self::start(move |stream, counted| files(&dir, stream, counted))
    }

    /// Passes on what `to` says, one answer after the other.
    pub(crate) fn before(to: SocketAddr) -> Result<Self> {
        Self::start(move |stream, counted| pass_on(TcpStream::connect(to)?, stream, counted))
    }

    fn start(
        converse: impl Fn(TcpStream, &mut Counted) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to listen on loopback")?;
        let address = listener.local_addr()?;
        let sent = Sent::default();
        let (converse, count) = (Arc::new(converse), sent.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (converse, count) = (converse.clone(), count.clone());
                thread::spawn(move || {
                    let mut counted = Counted { stream: stream.try_clone()?, sent: count, what: HEADS };
                    let ended = converse(stream, &mut counted);
                    counted.stream.shutdown(Shutdown::Both)?;
                    ended
                });
            }
        });
        Ok(Self { address, sent })
    }

    /// Bytes that went to askers.
    pub(crate) fn sent(&self) -> u64 {
        self.kinds().iter().map(|(_, bytes)| bytes).sum()
    }

    /// The same by what they were.
    pub(crate) fn kinds(&self) -> Vec<(&'static str, u64)> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        sent.iter().map(|(what, bytes)| (*what, *bytes)).collect()
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }
}

struct Counted {
    stream: TcpStream,
    sent: Sent,
    /// What is sent now.
    what: &'static str,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        *sent.entry(self.what).or_default() += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Which part of a release a request is about.
fn kind(request: &str) -> &'static str {
    let target = request.split_ascii_whitespace().nth(1).unwrap_or_default();
    let name = target.split(['?']).next().unwrap_or_default();
    let kinds = [
        (".verity.raw", "tree"),
        (".efi.blocks", "block list"),
        (".root.raw", "root image"),
        ("systemd-bootx64.efi", "boot loader"),
        (".efi", "UKI"),
    ];
    kinds.iter().find(|(ending, _)| name.ends_with(ending)).map_or("signed files", |(_, kind)| kind)
}

fn head(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if from.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(head))
}

fn pass_on(server: TcpStream, stream: TcpStream, counted: &mut Counted) -> io::Result<()> {
    for end in [&server, &stream] {
        end.set_nodelay(true)?;
    }
    let (mut asks, mut hears) = (BufReader::new(stream), server.try_clone()?);
    let mut says = BufReader::new(server);
    while let Some(request) = head(&mut asks)? {
        hears.write_all(request.as_bytes())?;
        let Some(answer) = head(&mut says)? else { break };
        let length = answer.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: u64 = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        counted.what = HEADS;
        counted.write_all(answer.as_bytes())?;
        counted.what = kind(&request);
        io::copy(&mut (&mut says).take(length), counted)?;
    }
    Ok(())
}

fn files(dir: &Path, stream: TcpStream, counted: &mut Counted) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut asked = BufReader::new(stream);
    loop {
        let Some(head) = head(&mut asked)? else { return Ok(()) };
        let mut words = head.split_ascii_whitespace();
        let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
        let path: PathBuf = dir.join(path.trim_start_matches('/'));
        let (Ok(mut file), true) = (File::open(&path), path.is_file()) else {
            counted.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")?;
            continue;
        };
        let size = file.metadata()?.len();
        let range = head.lines().find_map(|line| {
            let line = line.to_ascii_lowercase();
            let (first, last) = line.strip_prefix("range: bytes=")?.split_once('-')?;
            let first: u64 = first.parse().ok()?;
            Some((first, last.parse::<u64>().unwrap_or(u64::MAX).min(size.saturating_sub(1))))
        });
        let (first, bytes, status) = match range {
            Some((first, last)) if first <= last => (
                first,
                last - first + 1,
                format!("206 Partial Content\r\ncontent-range: bytes {first}-{last}/{size}"),
            ),
            _ => (0, size, "200 OK".to_owned()),
        };
        let answer = format!("HTTP/1.1 {status}\r\naccept-ranges: bytes\r\ncontent-length: {bytes}\r\n\r\n");
        counted.write_all(answer.as_bytes())?;
        if method != "HEAD" {
            file.seek(SeekFrom::Start(first))?;
            io::copy(&mut file.take(bytes), counted)?;
        }
    }
}

/// The plainest that a program could do: a file over HTTP to the disk.
pub(crate) fn download(url: &str, to: &Path) -> Result<()> {
    let rest = url.strip_prefix("http://").context("not a URL")?;
    let (address, path) = rest.split_once('/').context("not a URL")?;
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("failed to connect to {address}"))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: {address}\r\n\r\n")?;
    let mut answer = BufReader::with_capacity(256 << 10, stream);
    let Some(head) = head(&mut answer)? else { bail!("no answer from {address}") };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: u64 = length.and_then(|length| length.parse().ok()).context("an answer without a length")?;
    let mut file = File::create(to)?;
    let got = io::copy(&mut answer.take(length), &mut file)?;
    if !head.starts_with("HTTP/1.1 200 ") || got != length {
        bail!("`{url}` was not given");
    }
    file.sync_all()?;
    Ok(())
}

/// Whether two files hold the same.
pub(crate) fn same(one: &Path, other: &Path) -> Result<bool> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("failed to read `{}`", path.display()));
    Ok(read(one)? == read(other)?)
}
