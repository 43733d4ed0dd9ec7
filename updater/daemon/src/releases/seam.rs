// SPDX-License-Identifier: Apache-2.0
//! The unix socket between `cluster-updater` (root, no network) and `cluster-releases` (network, no rights). The first
//! asks, the second answers. A message is its length (u32, little-endian) and JSON; open files come with it. Bytes that an
//! answer announces follow it as they are.

use std::{
    io::{self, IoSlice, IoSliceMut, Write as _},
    mem::MaybeUninit,
    net::SocketAddr,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

use cluster_updater_core::{
    outline,
    serving::{MAX_FILES, MAX_PARTS, Range, is_name},
    sources::{Fault, MAX_RANGE, Prefix},
};
use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use socket2::{Domain, SockAddr, Socket, Type};

/// Where `cluster-releases` listens.
pub const SOCKET: &str = "/run/cluster-releases/control";
/// Longest message.
const MAX_MESSAGE: usize = 32 << 10;
/// For what needs no member, such as what is to be served.
pub const ANSWER: Duration = Duration::from_secs(5);

/// What `cluster-updater` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Question {
    /// Serve nothing any more.
    Clear,
    /// Serve a release; its open files come along, in this order.
    Serve(Offer),
    /// The list of files that a member serves.
    List {
        /// Whose.
        place: Place,
        /// Milliseconds that the member has.
        within: u32,
    },
    /// Parts of one of them.
    Get {
        /// Whose.
        place: Place,
        /// Which file.
        name: String,
        /// Which parts; at most [`MAX_PARTS`], of [`MAX_RANGE`] together.
        ranges: Vec<Range>,
        /// Milliseconds that the member has.
        within: u32,
    },
    /// What a part of a file looks like, which holds digests.
    Outline {
        /// Whose.
        place: Place,
        /// Which file.
        name: String,
        /// Which part, of at most [`MAX_RANGE`].
        range: Range,
        /// Milliseconds that the member has.
        within: u32,
    },
}

/// A release that is to be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Of its root hash.
    pub prefix: Prefix,
    /// Names and sizes. A partition is longer than the image in it.
    pub files: Vec<(String, u64)>,
}

/// A release on a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The member.
    pub address: SocketAddr,
    /// The release.
    pub prefix: Prefix,
}

/// What `cluster-releases` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Done.
    Done,
    /// Names and sizes.
    Files(Vec<(String, u64)>),
    /// So many bytes follow.
    Bytes(u32),
    /// The member did not give it.
    Failed {
        /// What is wrong with the member.
        fault: Fault,
        /// For people.
        reason: String,
    },
}

/// Why something was not fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The member's fault: another one may have it.
    #[error("{1}")]
    Source(Fault, String),
    /// No member's fault.
    #[error("cluster-releases.service does not answer: is this node a member, and the service running?")]
    Seam(#[source] io::Error),
}

/// `cluster-updater`'s end. After an error of the seam itself it is of no use any more: the answer may still come.
pub struct Link {
    stream: UnixStream,
    within: Duration,
}

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens, because this node has no mesh yet, or whoever does takes no connection.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Connecting waits, too, once as many wait as may.
        socket.set_write_timeout(Some(ANSWER))?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(Self::over(OwnedFd::from(socket).into()))
    }

    /// Asks over this socket.
    #[must_use]
    pub fn over(stream: UnixStream) -> Self {
        Self { stream, within: ANSWER }
    }

    /// How long everything that is asked for from now on may take, each by itself.
    pub fn limit(&mut self, within: Duration) {
        self.within = within;
    }

    /// Nothing is served any more when this returns.
    ///
    /// # Errors
    /// When it was not done.
    pub fn clear(&mut self) -> io::Result<()> {
        self.done(&Question::Clear, &[])
    }

    /// A release is served from now on.
    ///
    /// # Errors
    /// When it was not done.
    pub fn serve(&mut self, offer: &Offer, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.done(&Question::Serve(offer.clone()), files)
    }

    fn done(&mut self, question: &Question, files: &[BorrowedFd<'_>]) -> io::Result<()> {
        match self.ask(question, files, Instant::now() + self.within)? {
            Answer::Done => Ok(()),
            _ => Err(odd()),
        }
    }

    /// The files that a member serves of a release.
    ///
    /// # Errors
    /// When it does not say.
    pub fn list(&mut self, place: Place) -> Result<Vec<(String, u64)>, FetchError> {
        let question = Question::List { place, within: self.millis() };
        match self.ask(&question, &[], self.of_member()).map_err(FetchError::Seam)? {
            // The other end is not trusted more than the member is.
            Answer::Files(files)
                if files.len() <= MAX_FILES && files.iter().all(|(name, _)| is_name(name)) =>
            {
                Ok(files)
            }
            Answer::Failed { fault, reason } => Err(FetchError::Source(fault, reason)),
            _ => Err(FetchError::Seam(odd())),
        }
    }

    /// Fills `buffer` with parts of a file, one behind the other.
    ///
    /// # Errors
    /// When the member does not give them.
    pub fn get(
        &mut self,
        place: Place,
        name: &str,
        ranges: &[Range],
        buffer: &mut [u8],
    ) -> Result<(), FetchError> {
        let bytes = u32::try_from(buffer.len()).map_err(|_| FetchError::Seam(odd()))?;
        let question =
            Question::Get { place, name: name.to_owned(), ranges: ranges.to_vec(), within: self.millis() };
        let until = self.of_member();
        let count = self.bytes(&question, until)?;
        if count != bytes {
            return Err(FetchError::Seam(odd()));
        }
        self.follow(buffer, until)
    }

    /// The outline of a part of a file.
    ///
    /// # Errors
    /// When the member does not give it.
    pub fn outline(&mut self, place: Place, name: &str, range: Range) -> Result<Vec<u8>, FetchError> {
        let question = Question::Outline { place, name: name.to_owned(), range, within: self.millis() };
        let until = self.of_member();
        let count = self.bytes(&question, until)?;
        if u64::from(count) > outline::most_bytes(range.bytes.min(MAX_RANGE)) {
            return Err(FetchError::Seam(odd()));
        }
        let mut outline = vec![0; count as usize];
        self.follow(&mut outline, until)?;
        Ok(outline)
    }

    /// How many bytes follow.
    fn bytes(&mut self, question: &Question, until: Instant) -> Result<u32, FetchError> {
        match self.ask(question, &[], until).map_err(FetchError::Seam)? {
            Answer::Bytes(count) => Ok(count),
            Answer::Failed { fault, reason } => Err(FetchError::Source(fault, reason)),
            _ => Err(FetchError::Seam(odd())),
        }
    }

    fn follow(&mut self, buffer: &mut [u8], until: Instant) -> Result<(), FetchError> {
        let filled = fill(&self.stream, buffer, &mut Vec::new(), Some(until)).map_err(FetchError::Seam)?;
        if filled || buffer.is_empty() {
            Ok(())
        } else {
            Err(FetchError::Seam(io::ErrorKind::UnexpectedEof.into()))
        }
    }

    fn millis(&self) -> u32 {
        u32::try_from(self.within.as_millis()).unwrap_or(u32::MAX)
    }

    /// The other end says when a member has not answered in time; it is given up itself if it does not.
    fn of_member(&self) -> Instant {
        Instant::now() + self.within + ANSWER
    }

    fn ask(&mut self, question: &Question, files: &[BorrowedFd<'_>], until: Instant) -> io::Result<Answer> {
        self.stream.set_write_timeout(Some(left(until)?))?;
        send(&self.stream, question, files)?;
        let answer = receive_until(&self.stream, &mut Vec::new(), Some(until))?;
        answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// However steadily the other end drips, it has no more than this.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time")) } else { Ok(left) }
}

fn odd() -> io::Error {
    io::Error::other("an answer that belongs to no question")
}

/// Whether a member can be asked for these parts.
#[must_use]
pub fn can_be_asked(ranges: &[Range]) -> bool {
    let bytes = ranges.iter().map(|range| range.bytes).fold(0, u64::saturating_add);
    let are_some =
        ranges.iter().all(|range| range.bytes > 0 && range.first.checked_add(range.bytes).is_some());
    (1..=MAX_PARTS).contains(&ranges.len()) && are_some && bytes <= MAX_RANGE
}

/// Sends a message with open files.
///
/// # Errors
/// When it is too long or the other end is gone.
pub fn send(stream: &UnixStream, message: &impl Serialize, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    if body.len() > MAX_MESSAGE || files.len() > MAX_FILES {
        return Err(io::Error::other("a message that is too long for the other end"));
    }
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend(body);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many open files for one message"));
    }
    let sent = loop {
        match sendmsg(stream.as_fd(), &[IoSlice::new(&frame)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => break sent?,
        }
    };
    let mut stream = stream;
    stream.write_all(&frame[sent..])
}

/// Waits for a message; its open files are added to `files`. `None`: the other end is gone.
///
/// # Errors
/// When it is too long, not understood or cut off.
pub fn receive<T: DeserializeOwned>(stream: &UnixStream, files: &mut Vec<OwnedFd>) -> io::Result<Option<T>> {
    receive_until(stream, files, None)
}

fn receive_until<T: DeserializeOwned>(
    stream: &UnixStream,
    files: &mut Vec<OwnedFd>,
    until: Option<Instant>,
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    if !fill(stream, &mut length, files, until)? {
        return Ok(None);
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::other("a message that is too long"));
    }
    let mut body = vec![0; length];
    if !fill(stream, &mut body, files, until)? && length > 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&body).map(Some).map_err(io::Error::other)
}

/// False when the other end is gone before the first byte.
fn fill(
    stream: &UnixStream,
    buffer: &mut [u8],
    files: &mut Vec<OwnedFd>,
    until: Option<Instant>,
) -> io::Result<bool> {
    let mut done = 0;
    while done < buffer.len() {
        if let Some(until) = until {
            stream.set_read_timeout(Some(left(until)?))?;
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut rest = [IoSliceMut::new(&mut buffer[done..])];
        let got = match recvmsg(stream.as_fd(), &mut rest, &mut control, RecvFlags::CMSG_CLOEXEC) {
            // Out of time: the next turn says so.
            Err(Errno::INTR | Errno::AGAIN) if until.is_some() => continue,
            Err(Errno::INTR) => continue,
            got => got?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(open) = message {
                files.extend(open);
            }
        }
        match got.bytes {
            0 if done == 0 => return Ok(false),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => done += bytes,
        }
    }
    Ok(done > 0)
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, thread};

    use super::*;

    const PLACE: Place = Place {
        address: SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 1)),
        prefix: Prefix([1; 8]),
    };

    /// Whoever waits for each read by itself waits for ever.
    #[test]
    fn an_answer_that_drips_ends_when_its_time_is_over() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let other = thread::spawn(move || {
            let mut theirs = theirs;
            let _ = theirs.read(&mut [0; 1000]);
            // The length of a long message, then its bytes.
            let mut message = 30_000_u32.to_le_bytes().into_iter().chain(std::iter::repeat(b' '));
            while theirs.write_all(&[message.next().unwrap()]).is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        let mut link = Link::over(ours);
        link.limit(Duration::from_millis(300));
        let begun = Instant::now();
        assert_eq!(link.clear().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < ANSWER);
        drop(link);
        other.join().unwrap();
    }

    #[test]
    fn who_takes_a_question_and_never_answers_is_given_up() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut link = Link::over(ours);
        link.limit(Duration::from_millis(100));
        let begun = Instant::now();
        assert!(matches!(link.list(PLACE), Err(FetchError::Seam(_))));
        assert!(begun.elapsed() < 2 * ANSWER);
    }
}
