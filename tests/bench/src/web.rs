// SPDX-License-Identifier: Apache-2.0
//! Servers on loopback that count what they send: one of files, and one that passes on what another says.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, bail};

/// A server that lives as long as this program.
pub(crate) struct Web {
    pub(crate) address: SocketAddr,
    sent: Arc<AtomicU64>,
}

impl Web {
    /// Serves the files of a folder to whatever speaks HTTP/1.1, with single ranges.
    pub(crate) fn of(dir: &Path) -> Result<Self> {
        let dir = dir.to_owned();
        Self::start(move |stream, counted| files(&dir, stream, counted))
    }

    /// Passes on what `to` says.
    pub(crate) fn before(to: SocketAddr) -> Result<Self> {
        Self::start(move |stream, counted| {
            let server = TcpStream::connect(to)?;
            for end in [&server, &stream] {
                end.set_nodelay(true)?;
            }
            let (mut asks, mut hears) = (stream, server.try_clone()?);
            thread::spawn(move || {
                let _ = io::copy(&mut asks, &mut hears);
                hears.shutdown(Shutdown::Write)
            });
            let mut server = server;
            io::copy(&mut server, counted).map(drop)
        })
    }

    fn start(
        converse: impl Fn(TcpStream, &mut Counted) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to listen on loopback")?;
        let address = listener.local_addr()?;
        let sent = Arc::new(AtomicU64::new(0));
        let (converse, count) = (Arc::new(converse), sent.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (converse, count) = (converse.clone(), count.clone());
                thread::spawn(move || {
                    let mut counted = Counted(stream.try_clone()?, count);
                    let ended = converse(stream, &mut counted);
                    counted.0.shutdown(Shutdown::Both)?;
                    ended
                });
            }
        });
        Ok(Self { address, sent })
    }

    /// Bytes that went to askers.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }
}

struct Counted(TcpStream, Arc<AtomicU64>);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.0.write(bytes)?;
        self.1.fetch_add(count as u64, Ordering::SeqCst);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn files(dir: &Path, stream: TcpStream, counted: &mut Counted) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut asked = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if asked.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
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
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if answer.read_line(&mut head)? == 0 {
            bail!("no answer from {address}");
        }
    }
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
