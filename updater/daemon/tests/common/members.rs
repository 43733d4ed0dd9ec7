// SPDX-License-Identifier: Apache-2.0
//! Members that hold a release: good ones, and ones that are not.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use cluster_updater::releases::{
    Releases, fetch,
    seam::{Link, Offer},
    server,
};
use cluster_updater_core::{
    outline,
    serving::{Asked, Range, parse_path},
    sources::{FLOOR, Fault, Patience, Prefix},
};
use tokio::runtime::{Builder, Handle};

/// A loop that never ends, on a thread of its own.
pub(crate) fn runtime() -> Handle {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
}

/// What `cluster-updater` has to a `cluster-releases`.
pub(crate) fn link(releases: Releases, runtime: Handle) -> Link {
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || releases.converse(&theirs, &runtime));
    Link::over(ours)
}

/// Less patience than a node has: nothing here is slow unless it means to be.
pub(crate) fn fetcher() -> Link {
    link(Releases::with_limits(hasty()), runtime())
}

pub(crate) fn hasty() -> fetch::Limits {
    // A good member must keep to it on a machine that is busy with everything else.
    fetch::Limits { stall: Duration::from_secs(2), answer: Duration::from_secs(4) }
}

/// A member that serves the folder of a release.
pub(crate) fn member(dir: &Path, prefix: Prefix, limits: server::Limits) -> SocketAddr {
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
    serve(releases, &runtime, limits)
}

/// Serves on a port of its own.
pub(crate) fn serve(releases: Releases, runtime: &Handle, limits: server::Limits) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        releases.serve(listener, limits).await
    });
    address
}

pub(crate) fn patient() -> server::Limits {
    server::Limits { each: 16, ..server::Limits::default() }
}

/// A request as a fake member sees it.
pub(crate) struct Ask {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
    /// Parts, or an outline; nothing of the list.
    pub(crate) asked: Option<Asked>,
}

impl Ask {
    fn read(dir: &Path, stream: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let target = head.split(' ').nth(1)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (_, name) = parse_path(path)?;
        let path = dir.join(name);
        let size = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let asked = (!query.is_empty()).then(|| Asked::parse_query(query, size).unwrap());
        Some(Self { path, name: name.to_owned(), asked })
    }

    /// What a good member answers: head and body.
    fn answer(&self, dir: &Path) -> (String, Vec<u8>) {
        if let Some(asked) = &self.asked {
            let file = fs::read(&self.path).unwrap();
            let of = |range: &Range| &file[range.first as usize..(range.first + range.bytes) as usize];
            let body = match asked {
                Asked::Parts(ranges) => ranges.iter().map(of).collect::<Vec<_>>().concat(),
                Asked::Outline(range) => outline::of(of(range)),
            };
            return (format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()), body);
        }
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        let list: String = files
            .map(|entry| {
                format!("{} {}\n", entry.file_name().to_str().unwrap(), entry.metadata().unwrap().len())
            })
            .collect();
        (format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", list.len()), list.into_bytes())
    }
}

/// What a fake member does when it is asked for the root image; it is good at everything else.
pub(crate) type Trick = fn(&mut TcpStream, &Ask, (String, Vec<u8>)) -> io::Result<()>;

pub(crate) fn fake(dir: &Path, trick: Trick) -> SocketAddr {
    fake_at(dir, ".root.raw", trick)
}

/// The same where it is asked for files that end so; all do with an empty one.
pub(crate) fn fake_at(
    dir: &Path,
    ending: &'static str,
    trick: impl Fn(&mut TcpStream, &Ask, (String, Vec<u8>)) -> io::Result<()> + Send + Copy + 'static,
) -> SocketAddr {
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
                    if ask.name.ends_with(ending) {
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

pub(crate) const NOT_FOUND: &str = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";

pub(crate) fn send(stream: &mut TcpStream, head: &str, body: &[u8]) -> io::Result<()> {
    stream.write_all(&[head.as_bytes(), body].concat())
}

pub(crate) fn hang_up() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// Waits until the other end has had enough.
pub(crate) fn say_nothing(stream: &mut TcpStream) -> io::Result<()> {
    let _ = stream.read_to_end(&mut Vec::new());
    Err(hang_up())
}

pub(crate) const TRICKS: &[(&str, Fault, Trick)] = &[
    ("flips a bit", Fault::Lied, |stream, _, (head, mut body)| {
        let middle = body.len() / 2;
        body[middle] ^= 1;
        send(stream, &head, &body)
    }),
    ("flips a bit and compresses it", Fault::Lied, |stream, _, (_, mut body)| {
        body[0] ^= 1;
        // Random bytes get longer by a little: as many are announced as were asked for, and no more are taken.
        send_zstd(stream, &zstd_of(&body))
    }),
    ("gives too much", Fault::Lied, |stream, _, (_, body)| {
        let body = [&body[..], b"x"].concat();
        send(stream, &format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()), &body)
    }),
    ("gives too little", Fault::Lied, |stream, _, (_, body)| {
        let body = &body[1..];
        send(stream, &format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()), body)
    }),
    ("gives HTTP's own range", Fault::Lied, |stream, _, (head, body)| {
        send(stream, &head.replace("200 OK", "206 Partial Content"), &body)
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
    ("compresses in another way", Fault::Lied, |stream, _, (head, body)| {
        send(stream, &head.replace("\r\n\r\n", "\r\ncontent-encoding: gzip\r\n\r\n"), &body)
    }),
    ("sends a bomb", Fault::Lied, |stream, _, _| send_zstd(stream, &zstd_of(&vec![0; 64 << 20]))),
    ("compresses too little", Fault::Lied, |stream, _, (_, body)| {
        send_zstd(stream, &zstd_of(&vec![0; body.len() - 1]))
    }),
    ("says that it is compressed", Fault::Lied, |stream, _, (_, body)| send_zstd(stream, &body)),
    ("redirects", Fault::Lied, |stream, _, _| {
        send(stream, "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", b"")
    }),
    ("has it no more", Fault::Gone, |stream, _, _| send(stream, NOT_FOUND, b"")),
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
        send(stream, "HTTP/1.1 200 OK\r\n", b"")?;
        loop {
            stream.write_all(b"x: y\r\n")?;
        }
    }),
    ("does not answer", Fault::Stalled, |stream, _, _| say_nothing(stream)),
    ("stalls in the middle", Fault::Stalled, |stream, _, (head, body)| {
        send(stream, &head, &body[..body.len() / 2])?;
        say_nothing(stream)
    }),
    ("drips", Fault::Slow, |stream, _, answer| drip(stream, answer)),
];

/// Sends this as the compressed answer.
fn send_zstd(stream: &mut TcpStream, body: &[u8]) -> io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: zstd\r\ncontent-length: {}\r\n\r\n", body.len());
    send(stream, &head, body)
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).unwrap()
}

/// A byte now and then: it never stalls.
pub(crate) fn drip(stream: &mut TcpStream, (head, body): (String, Vec<u8>)) -> io::Result<()> {
    send(stream, &head, b"")?;
    for byte in body {
        stream.write_all(&[byte])?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A node would wait for minutes.
pub(crate) const HASTY: Patience = Patience {
    silence: Duration::from_secs(3),
    pause: Duration::from_millis(100),
    start: Duration::from_secs(10),
    floor: FLOOR,
};
