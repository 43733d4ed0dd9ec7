// SPDX-License-Identifier: Apache-2.0
//! The process that talks to a web server: one request, under a user that owns nothing. It knows neither files nor keys; what
//! it gets it writes to its output, behind one line of JSON ([`Head`]). How it went is its exit code.

use std::{
    fmt::Display,
    io::{self, Write},
    net::IpAddr,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    client::conn::http1::Builder,
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

/// Debian's authorities (package ca-certificates).
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// What must come within [`WINDOW`]: a server that drips is as good as gone.
const FLOOR: u64 = 64 << 10;
const WINDOW: Duration = Duration::from_secs(60);
/// Mirrors send to others; a circle has no end.
const REDIRECTS: usize = 5;
/// Longest head of an answer; hyper takes no less.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

/// What comes before the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The offset of the first one in the file: what was asked for, or 0 if the server gives no ranges.
    pub first: u64,
    /// Size of the whole file, if the server says it.
    pub total: Option<u64>,
}

/// Why there are not all bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server has no such file.
    Absent(String),
    /// It may go better next time.
    Again(String),
    /// It will not.
    Final(String),
}

impl Failure {
    /// Exit code of [`Failure::Absent`].
    pub const ABSENT: u8 = 20;
    /// Exit code of [`Failure::Again`].
    pub const AGAIN: u8 = 21;
    /// Exit code of [`Failure::Final`].
    pub const FINAL: u8 = 22;
}

fn again(error: impl Display) -> Failure {
    Failure::Again(error.to_string())
}

fn finally(error: impl Display) -> Failure {
    Failure::Final(error.to_string())
}

/// Fetches, and tells on stdout and stderr.
pub async fn main(url: &str, from: u64, stall: Duration) -> ExitCode {
    match fetch(url, from, stall, &mut io::stdout().lock()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (code, text) = match &failure {
                Failure::Absent(text) => (Failure::ABSENT, text),
                Failure::Again(text) => (Failure::AGAIN, text),
                Failure::Final(text) => (Failure::FINAL, text),
            };
            eprintln!("{text}");
            code.into()
        }
    }
}

async fn fetch(url: &str, from: u64, stall: Duration, out: &mut impl Write) -> Result<(), Failure> {
    let mut uri = parse(url)?;
    for _ in 0..=REDIRECTS {
        let response = timeout(stall, ask(&uri, from))
            .await
            .map_err(|_| Failure::Again(format!("no answer from {uri} within {} s", stall.as_secs())))??;
        if !response.status().is_redirection() {
            return body(response, from, stall, out).await;
        }
        let place = text(&response, header::LOCATION)
            .and_then(|location| join(&uri, location))
            .ok_or_else(|| finally(format!("{uri} answers `{}` and names no place", response.status())))?;
        if uri.scheme_str() == Some("https") && place.scheme_str() != Some("https") {
            return Err(finally(format!(
                "{uri} sends to {place}, which is not encrypted: give that URL if you mean it"
            )));
        }
        uri = place;
    }
    Err(finally(format!("{url} sends to another place more than {REDIRECTS} times")))
}

/// A URL that can be asked for.
///
/// # Errors
/// When it is none.
pub fn parse(url: &str) -> Result<Uri, Failure> {
    let uri: Uri = url.parse().map_err(|error| finally(format!("`{url}` is no URL: {error}")))?;
    match (uri.scheme_str(), uri.authority()) {
        (Some("http" | "https"), Some(authority)) if !authority.as_str().contains('@') => Ok(uri),
        (Some("http" | "https"), Some(_)) => Err(finally("a URL with a user name is not supported")),
        _ => Err(finally(format!("`{url}` is no URL of a web server"))),
    }
}

/// Where a redirect leads (RFC 3986, 5.2, as far as servers use it).
fn join(base: &Uri, location: &str) -> Option<Uri> {
    if location.contains("://") {
        return parse(location).ok();
    }
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let whole = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    parse(&whole).ok()
}

async fn ask(uri: &Uri, from: u64) -> Result<Response<Incoming>, Failure> {
    let host = uri.host().unwrap_or_default();
    let plain = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = TcpStream::connect((plain.as_str(), port))
        .await
        .map_err(|error| Failure::Again(format!("no connection to {host} port {port}: {error}")))?;
    if !secure {
        return exchange(TokioIo::new(stream), uri, from).await;
    }
    let name = match plain.parse::<IpAddr>() {
        Ok(address) => ServerName::IpAddress(address.into()),
        Err(_) => ServerName::try_from(plain).map_err(finally)?,
    };
    let stream = tls()?.connect(name, stream).await.map_err(|error| {
        Failure::Final(format!(
            "no encrypted connection to {host} port {port}: {error}. A release is signed: http:// brings the same"
        ))
    })?;
    exchange(TokioIo::new(stream), uri, from).await
}

fn tls() -> Result<TlsConnector, Failure> {
    let mut authorities = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(AUTHORITIES)
        .map_err(|error| finally(format!("failed to read `{AUTHORITIES}`: {error}")))?;
    // One that is not understood vouches for nobody.
    authorities.add_parsable_certificates(certificates.flatten());
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(finally)?
        .with_root_certificates(authorities)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn exchange<T>(io: TokioIo<T>, uri: &Uri, from: u64) -> Result<Response<Incoming>, Failure>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        Builder::new().max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS).handshake(io).await.map_err(again)?;
    // How it ends shows in the body.
    tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let mut request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("cluster-update/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT_ENCODING, "identity");
    if from > 0 {
        request = request.header(header::RANGE, format!("bytes={from}-"));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(finally)?;
    let response = sender.send_request(request).await;
    response.map_err(|error| Failure::Again(format!("no answer from {uri}: {error}")))
}

async fn body(
    response: Response<Incoming>,
    from: u64,
    stall: Duration,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let head = head(&response, from)?;
    let gone = |error: io::Error| finally(format!("nobody takes what comes: {error}"));
    let line = serde_json::to_string(&head).map_err(finally)?;
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(gone)?;
    let mut body = response.into_body();
    let (mut since, mut came) = (Instant::now(), 0);
    loop {
        let frame = timeout(stall, body.frame())
            .await
            .map_err(|_| Failure::Again(format!("the server sent nothing for {} s", stall.as_secs())))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| Failure::Again(format!("the answer ended early: {error}")))?;
        if let Ok(data) = frame.into_data() {
            out.write_all(&data).map_err(gone)?;
            came += data.len() as u64;
        }
        if since.elapsed() > WINDOW {
            if came < FLOOR {
                return Err(Failure::Again(format!(
                    "the server sent {came} bytes within {} s",
                    WINDOW.as_secs()
                )));
            }
            (since, came) = (Instant::now(), 0);
        }
    }
    out.flush().map_err(gone)
}

/// What an answer is about, if it can be used.
fn head(response: &Response<Incoming>, from: u64) -> Result<Head, Failure> {
    let status = response.status();
    if text(response, header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(finally("the server sends the file compressed, which was not asked for"));
    }
    match status {
        StatusCode::OK => {
            let total = text(response, header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
            Ok(Head { first: 0, total })
        }
        StatusCode::PARTIAL_CONTENT => {
            let range = text(response, header::CONTENT_RANGE).and_then(content_range);
            match range {
                Some((first, total)) if first == from => Ok(Head { first, total }),
                _ => Err(finally("the server sends another part of the file than was asked for")),
            }
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            Err(Failure::Absent(format!("the server answers `{status}`")))
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Err(again(format!("the server answers `{status}`")))
        }
        _ if status.is_server_error() => Err(again(format!("the server answers `{status}`"))),
        _ => Err(finally(format!("the server answers `{status}`"))),
    }
}

/// First byte and size of the whole (RFC 9110, 14.4).
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total: Option<u64> = if total == "*" { None } else { Some(total.parse().ok()?) };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

fn text(response: &Response<Incoming>, name: header::HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_servers_mean() {
        let base = parse("http://h:8080/a/b.tar?x").unwrap();
        let cases = [
            ("https://other/c", "https://other/c"),
            ("//other/c", "http://other/c"),
            ("/c", "http://h:8080/c"),
            ("c", "http://h:8080/a/c"),
        ];
        for (location, wanted) in cases {
            assert_eq!(join(&base, location).unwrap().to_string(), wanted);
        }
        for location in ["ftp://other/c", "http://user@other/c", "http://", ""] {
            let joined = join(&base, location);
            assert!(joined.is_none() || location.is_empty(), "{location}: {joined:?}");
        }
    }

    #[test]
    fn ranges_that_make_no_sense_are_none() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for text in ["bytes 9-5/10", "bytes 5-10/10", "5-9/10", "bytes */10", "bytes 5-9", "bytes a-b/c"] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
