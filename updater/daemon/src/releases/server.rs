// SPDX-License-Identifier: Apache-2.0
//! Gives files of releases to members over HTTP/1.1. docs/release-format.md, Serving.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::IpAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cluster_updater_core::{
    outline,
    serving::{Asked, parse_path},
};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tracing::debug;

use super::{
    encoding,
    shelf::{Files, Shelf},
};

/// Longest head of a request; hyper takes no less.
const MAX_HEAD: usize = 8 << 10;
const MAX_HEADERS: usize = 32;

/// What a server bears.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Of these from one address.
    pub each: usize,
    /// For the head of a request.
    pub head: Duration,
    /// A connection on which no request was finished for so long is closed: nobody asks, or nobody reads.
    pub idle: Duration,
    /// Bytes a second, all connections together; a small part counts as a block.
    pub rate: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16,
            each: 2,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            rate: 64 << 20,
        }
    }
}

/// Serves until the socket fails.
///
/// # Errors
/// When it fails.
pub async fn serve(listener: TcpListener, shelf: Arc<Shelf>, limits: Limits) -> io::Result<()> {
    let seats = Seats::default();
    let pace = Arc::new(Pace { rate: limits.rate, free: tokio::sync::Mutex::new(Instant::now()) });
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            // Whoever it was has gone again.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        // Dropped, it is closed: the asker takes another member.
        let Some(seat) = seats.take(from.ip(), limits) else { continue };
        let (shelf, pace) = (shelf.clone(), pace.clone());
        tokio::spawn(async move {
            converse(stream, shelf, pace, limits).await;
            drop(seat);
        });
    }
}

async fn converse(stream: TcpStream, shelf: Arc<Shelf>, pace: Arc<Pace>, limits: Limits) {
    let finished = watch::Sender::new(());
    let mut seen = finished.subscribe();
    let service = service_fn(|request: Request<Incoming>| {
        let (shelf, pace, finished) = (shelf.clone(), pace.clone(), finished.clone());
        async move {
            let response = answer(&request, &shelf, &pace).await;
            finished.send_replace(());
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        // An asker has a clock of its own, and most answers are short.
        .auto_date_header(false)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    debug!(%error, "a connection ended early");
                }
                return;
            }
            more = timeout(limits.idle, seen.changed()) => {
                if more.is_err() {
                    return;
                }
            }
        }
    }
}

async fn answer(request: &Request<Incoming>, shelf: &Arc<Shelf>, pace: &Pace) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let asked = parse_path(request.uri().path());
    let Some((files, name)) = asked.and_then(|(prefix, name)| Some((shelf.get(prefix)?, name))) else {
        return empty(StatusCode::NOT_FOUND);
    };
    if name.is_empty() {
        let mut response = Response::new(Full::from(files.list()));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        return response;
    }
    let Some(size) = files.size(name) else { return empty(StatusCode::NOT_FOUND) };
    parts(request, name, size, files.clone(), pace).await
}

/// Several parts of a file, or what a part looks like.
async fn parts(
    request: &Request<Incoming>,
    name: &str,
    size: u64,
    files: Arc<Files>,
    pace: &Pace,
) -> Response<Full<Bytes>> {
    let Some(asked) = request.uri().query().and_then(|query| Asked::parse_query(query, size)) else {
        return unsatisfiable(size);
    };
    if !asked.is_about(name) {
        return empty(StatusCode::NOT_FOUND);
    }
    let accepts = request.headers().get(header::ACCEPT_ENCODING).is_some_and(|value| value == encoding::NAME);
    let name = name.to_owned();
    let made = read(asked.work(), pace, move || {
        let plain = match asked {
            Asked::Parts(ranges) => files.read(&name, &ranges)?,
            Asked::Outline(range) => outline::of(&files.read(&name, &[range])?),
        };
        let compressed = accepts.then(|| encoding::compress(&plain)).flatten();
        Ok((compressed.is_some(), compressed.unwrap_or(plain)))
    });
    let Some((is_compressed, bytes)) = made.await else { return empty(StatusCode::INTERNAL_SERVER_ERROR) };
    let mut response = Response::new(Full::from(bytes));
    if is_compressed {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding::NAME));
    }
    response
}

/// Reads, and what else takes a while, when it is the turn of so much work.
async fn read<T: Send + 'static>(
    work: u64,
    pace: &Pace,
    read: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Option<T> {
    pace.wait(work).await;
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(got)) => Some(got),
        Ok(Err(error)) => {
            debug!(%error, "a file that is served cannot be read");
            None
        }
        Err(error) => {
            debug!(%error, "a file that is served was not read");
            None
        }
    }
}

fn unsatisfiable(size: u64) -> Response<Full<Bytes>> {
    let mut response = empty(StatusCode::RANGE_NOT_SATISFIABLE);
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{size}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, value);
    }
    response
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// Spreads what is served over time.
struct Pace {
    rate: u64,
    /// When all that was begun has been served.
    free: tokio::sync::Mutex<Instant>,
}

impl Pace {
    /// Waits for the turn of so many bytes, in order. Whoever leaves before has taken nothing from those behind.
    async fn wait(&self, bytes: u64) {
        let mut free = self.free.lock().await;
        sleep_until(*free).await;
        *free = Instant::now() + Duration::from_micros(bytes.saturating_mul(1_000_000) / self.rate.max(1));
    }
}

/// Who is connected.
#[derive(Clone, Default)]
struct Seats(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

struct Seat(Seats, IpAddr);

impl Seats {
    fn take(&self, from: IpAddr, limits: Limits) -> Option<Seat> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = taken.values().sum::<usize>() >= limits.connections
            || taken.get(&from).is_some_and(|own| *own >= limits.each);
        if full {
            return None;
        }
        *taken.entry(from).or_default() += 1;
        Some(Seat(self.clone(), from))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.1) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.1);
            }
        }
    }
}
