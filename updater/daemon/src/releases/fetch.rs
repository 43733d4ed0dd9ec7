// SPDX-License-Identifier: Apache-2.0
//! Asks one member at a time for files of a release. What comes is not checked here beyond its length: `cluster-updater`
//! does that. An answer that no server of ours gives is a lie all the same.

use std::{fmt::Display, net::SocketAddr, time::Duration};

use cluster_updater_core::{
    outline,
    serving::{self, Asked, MAX_LIST, Range},
    sources::{FLOOR, Fault, RANGE, STALL},
};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{Builder, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{error::Elapsed, timeout},
};
use tracing::debug;

use super::{encoding, seam::Place};

/// Longest head of an answer; hyper takes no less.
const MAX_HEAD: usize = 8 << 10;
const MAX_HEADERS: usize = 32;

/// What a request begins with.
type Head = hyper::http::request::Builder;

/// How long a member may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Without a byte.
    pub stall: Duration,
    /// For a whole answer, however steadily it drips, at most.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { stall: STALL, answer: STALL * 2 + Duration::from_secs(RANGE as u64 / FLOOR) }
    }
}

/// What is wrong with a member, and how it showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What.
    pub fault: Fault,
    /// For people.
    pub reason: String,
}

fn failure(fault: Fault, reason: impl Display) -> Failure {
    Failure { fault, reason: reason.to_string() }
}

/// Asks members; the connection to the last one is kept.
pub struct Fetcher {
    limits: Limits,
    /// For the answer to what is asked now.
    within: Duration,
    open: Option<(SocketAddr, SendRequest<Empty<Bytes>>)>,
}

impl Fetcher {
    /// One that has asked nobody yet.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, within: limits.answer, open: None }
    }

    /// What is asked next is to be answered within this time, however steadily it drips.
    pub fn within(&mut self, within: Duration) -> &mut Self {
        self.within = within.min(self.limits.answer);
        self
    }

    /// One that has this connection to `address`: for tests.
    ///
    /// # Errors
    /// When it breaks at once.
    pub async fn over<T>(limits: Limits, address: SocketAddr, stream: T) -> Result<Self, Failure>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Ok(Self { open: Some((address, converse(stream, address).await?)), ..Self::new(limits) })
    }

    /// The files that a member serves of a release.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn list(&mut self, place: Place) -> Result<Vec<(String, u64)>, Failure> {
        let ended = timeout(self.within, self.list_now(place)).await;
        let text = String::from_utf8(self.settle(ended)?).ok();
        let files = text.and_then(|text| serving::parse_list(&text));
        files.ok_or_else(|| failure(Fault::Lied, "its list of files is none"))
    }

    /// Parts of a file, one behind the other.
    ///
    /// # Errors
    /// When the member does not give exactly that.
    pub async fn get(&mut self, place: Place, name: &str, ranges: &[Range]) -> Result<Vec<u8>, Failure> {
        let ended = timeout(self.within, self.get_now(place, name, ranges)).await;
        self.settle(ended)
    }

    /// The outline of a part of a file.
    ///
    /// # Errors
    /// When the member does not give it.
    pub async fn outline(&mut self, place: Place, name: &str, range: Range) -> Result<Vec<u8>, Failure> {
        let ended = timeout(self.within, self.outline_now(place, name, range)).await;
        self.settle(ended)
    }

    /// A connection on which an exchange did not end well is not used again.
    fn settle(&mut self, ended: Result<Result<Vec<u8>, Failure>, Elapsed>) -> Result<Vec<u8>, Failure> {
        let seconds = self.within.as_secs();
        let ended = ended.unwrap_or_else(|_| {
            Err(failure(Fault::Slow, format!("it did not give a whole answer within {seconds} s")))
        });
        if ended.is_err() {
            self.open = None;
        }
        ended
    }

    async fn list_now(&mut self, place: Place) -> Result<Vec<u8>, Failure> {
        let response = self.ask(place.address, &serving::path(place.prefix, ""), |request| request).await?;
        expect(&response, StatusCode::OK)?;
        let length = length(&response, false)?;
        if length > MAX_LIST as u64 {
            return Err(failure(Fault::Lied, format!("its list of files has {length} bytes")));
        }
        self.body(response, length as usize).await
    }

    async fn get_now(&mut self, place: Place, name: &str, ranges: &[Range]) -> Result<Vec<u8>, Failure> {
        let asked = Asked::Parts(ranges.to_vec());
        let bytes = usize::try_from(asked.bytes()).map_err(|error| failure(Fault::Lied, error))?;
        let (got, is_compressed) = self.asked(place, name, &asked, bytes).await?;
        if is_compressed {
            // In a thread that may wait: there is one for each asker, and one asker.
            return encoding::decompress(&got, bytes)
                .map_err(|error| failure(Fault::Lied, format!("its answer is not what it says: {error}")));
        }
        if got.len() != bytes {
            return Err(failure(Fault::Lied, "its answer has another length than was asked for"));
        }
        Ok(got)
    }

    async fn outline_now(&mut self, place: Place, name: &str, range: Range) -> Result<Vec<u8>, Failure> {
        let most =
            usize::try_from(outline::most_bytes(range.bytes)).map_err(|error| failure(Fault::Lied, error))?;
        let (outline, _) = self.asked(place, name, &Asked::Outline(range), most).await?;
        Ok(outline)
    }

    /// At most `most` bytes, and whether they are compressed.
    async fn asked(
        &mut self,
        place: Place,
        name: &str,
        asked: &Asked,
        most: usize,
    ) -> Result<(Vec<u8>, bool), Failure> {
        let may_compress = matches!(asked, Asked::Parts(_));
        let ask = |request: Head| {
            if may_compress { request.header(header::ACCEPT_ENCODING, encoding::NAME) } else { request }
        };
        let response = self.ask(place.address, &asked.path(place.prefix, name), ask).await?;
        expect(&response, StatusCode::OK)?;
        let is_compressed = may_compress && text(&response, header::CONTENT_ENCODING) == Some(encoding::NAME);
        let length = length(&response, is_compressed)?;
        if length > most as u64 {
            return Err(failure(Fault::Lied, "its answer is longer than what was asked for"));
        }
        Ok((self.body(response, length as usize).await?, is_compressed))
    }

    /// Sends a request, over the connection that is open if it still is.
    async fn ask(
        &mut self,
        address: SocketAddr,
        path: &str,
        with: impl Fn(Head) -> Head,
    ) -> Result<Response<Incoming>, Failure> {
        let request = || {
            let request = with(Request::get(path).header(header::HOST, address.to_string()));
            request.body(Empty::new()).map_err(|error| failure(Fault::Gone, error))
        };
        let stall = self.limits.stall;
        let stalled = || failure(Fault::Stalled, format!("no answer for {} s", stall.as_secs()));
        if let Some((open, mut sender)) = self.open.take().filter(|(open, _)| *open == address)
            && let Ok(Ok(())) = timeout(stall, sender.ready()).await
        {
            match timeout(stall, sender.send_request(request()?)).await {
                Ok(Ok(response)) => {
                    self.open = Some((open, sender));
                    return Ok(response);
                }
                // The other end may have closed it meanwhile, which is its right.
                Ok(Err(error)) => debug!(%error, %address, "asking again over a new connection"),
                Err(_) => return Err(stalled()),
            }
        }
        let mut sender = self.connect(address).await?;
        let response = timeout(stall, sender.send_request(request()?)).await.map_err(|_| stalled())?;
        let response = response.map_err(|error| failure(Fault::Gone, format!("no answer: {error}")))?;
        self.open = Some((address, sender));
        Ok(response)
    }

    async fn connect(&self, address: SocketAddr) -> Result<SendRequest<Empty<Bytes>>, Failure> {
        let connected = timeout(self.limits.stall, TcpStream::connect(address)).await;
        let stream = connected
            .map_err(|_| failure(Fault::Stalled, "no connection"))?
            .map_err(|error| failure(Fault::Gone, format!("no connection: {error}")))?;
        stream.set_nodelay(true).map_err(broke)?;
        converse(stream, address).await
    }

    /// Exactly `length` bytes.
    async fn body(&self, response: Response<Incoming>, length: usize) -> Result<Vec<u8>, Failure> {
        let mut body = response.into_body();
        let mut bytes = Vec::with_capacity(length);
        loop {
            let frame = timeout(self.limits.stall, body.frame()).await.map_err(|_| {
                let got = bytes.len();
                let seconds = self.limits.stall.as_secs();
                failure(Fault::Stalled, format!("no byte for {seconds} s, {got} of {length} came"))
            })?;
            let Some(frame) = frame else { break };
            let frame =
                frame.map_err(|error| failure(Fault::Gone, format!("the answer ended early: {error}")))?;
            if let Ok(data) = frame.into_data() {
                if data.len() > length - bytes.len() {
                    return Err(failure(Fault::Lied, "it sent more than it announced"));
                }
                bytes.extend_from_slice(&data);
            }
        }
        if bytes.len() < length {
            return Err(failure(Fault::Gone, "the answer ended early"));
        }
        Ok(bytes)
    }
}

/// Speaks HTTP over a connection.
async fn converse<T>(stream: T, address: SocketAddr) -> Result<SendRequest<Empty<Bytes>>, Failure>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let made =
        Builder::new().max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS).handshake(TokioIo::new(stream)).await;
    let (sender, connection) = made.map_err(broke)?;
    // It ends when the sender is dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, %address, "a connection ended early");
        }
    });
    Ok(sender)
}

fn broke(error: impl Display) -> Failure {
    failure(Fault::Gone, format!("the connection broke: {error}"))
}

/// An error may pass; an answer of another kind does not.
fn expect(response: &Response<Incoming>, wanted: StatusCode) -> Result<(), Failure> {
    let status = response.status();
    if status == wanted {
        return Ok(());
    }
    let passes =
        [StatusCode::NOT_FOUND, StatusCode::TOO_MANY_REQUESTS].contains(&status) || status.is_server_error();
    let fault = if passes { Fault::Gone } else { Fault::Lied };
    Err(failure(fault, format!("it answered `{status}`")))
}

/// What `Content-Length` says. A body without one could be endless, and one that is encoded although nobody asked for that is
/// not what was asked for.
fn length(response: &Response<Incoming>, may_be_encoded: bool) -> Result<u64, Failure> {
    let has = |name| response.headers().contains_key(name);
    if has(header::TRANSFER_ENCODING) || has(header::CONTENT_ENCODING) && !may_be_encoded {
        return Err(failure(Fault::Lied, "its answer is chunked or encoded"));
    }
    let length = text(response, header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
    length.ok_or_else(|| failure(Fault::Lied, "its answer has no length"))
}

fn text(response: &Response<Incoming>, name: header::HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}
