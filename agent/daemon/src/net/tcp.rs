// SPDX-License-Identifier: Apache-2.0
//! Streams of the agent: bytes in, bytes out, each in a task of its own; what the bytes mean is the core's matter.
//!
//! Anyone on the LAN can open one, so everything is bounded: how many there are, how long a connect may take, how much
//! may wait to be written, and (by the event channel's own bound) how much may wait to be read.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use cluster_agent_core::consts::SENT_STEP;
use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

/// Streams open at once, both ways. More than the core allows (32 of its own, 256 of others, and 256 on which nothing was proven yet), so
/// that it says which one gives way; and few enough that a flood costs little memory and no descriptors that others need.
const MAX_STREAMS: usize = 576;
/// Closed by the core, with bytes that the peer has not read yet. The oldest are cut when there are more.
const MAX_CLOSING: usize = 16;
/// And each after so long.
const CLOSING_FOR: Duration = Duration::from_secs(5);
/// What the kernel may hold of one stream, each way (it doubles that for its own needs). On a LAN a round trip takes less than
/// a millisecond, so more would not make it faster; left to itself the kernel would hold megabytes.
const KERNEL_BUFFER: usize = 64 * 1024;
/// Connections that wait to be accepted. A crowd comes to whom it hears first, and a SYN that finds no room is said again
/// only after a second.
const BACKLOG: i32 = 1024;
/// A peer that does not answer a SYN on a LAN in this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Chunks waiting to be written to a peer that does not read; past it the stream is cut.
const WRITE_QUEUE: usize = 64;
/// Unacknowledged bytes, or a window that stays shut, end a stream after this long.
const STALL_LIMIT: Duration = Duration::from_secs(15);
/// How much one read hands to the core.
const READ_CHUNK: usize = 16 * 1024;

/// What happened on a stream. Ids are the core's for streams it opened, ours for accepted ones.
#[derive(Debug)]
pub enum StreamEvent {
    /// Somebody connected to us.
    Accepted {
        /// Whose it is.
        from: SocketAddr,
        /// The connection, to be given an id by [`Streams::adopt`].
        stream: TcpStream,
    },
    /// A connection the core asked for stands.
    Connected {
        /// Stream id.
        id: u64,
    },
    /// Bytes came.
    Data {
        /// Stream id.
        id: u64,
        /// In order, at least one.
        bytes: Vec<u8>,
    },
    /// The kernel took bytes that were queued.
    Sent {
        /// Stream id.
        id: u64,
        /// How many since the last time, at least [`SENT_STEP`].
        bytes: usize,
    },
    /// The stream is over, by the peer, an error, or because a connect failed; no more events of it follow.
    Closed {
        /// Stream id.
        id: u64,
    },
}

/// All streams of this agent.
#[derive(Debug)]
pub struct Streams {
    open: BTreeMap<u64, Open>,
    closing: VecDeque<AbortHandle>,
    events: mpsc::Sender<StreamEvent>,
    /// Whether the last connection was refused because there were too many.
    is_full: bool,
}

#[derive(Debug)]
struct Open {
    queue: mpsc::Sender<Vec<u8>>,
    task: AbortHandle,
    /// Dropped with the rest when the core closes the stream.
    _close: oneshot::Sender<()>,
}

/// What a stream's task has of it.
struct Carried {
    chunks: mpsc::Receiver<Vec<u8>>,
    events: mpsc::Sender<StreamEvent>,
    closed: oneshot::Receiver<()>,
}

impl Streams {
    /// Listens on `port` in both families and reports through the returned receiver.
    ///
    /// # Errors
    /// Names the port, the family and how to find its holder.
    pub fn listen(port: u16) -> Result<(Self, mpsc::Receiver<StreamEvent>)> {
        let (events, receiver) = mpsc::channel(64);
        for address in
            [SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))]
        {
            if let Some(listener) = listener(address)? {
                tokio::spawn(accept(listener, events.clone()));
            }
        }
        let (open, closing) = (BTreeMap::new(), VecDeque::new());
        Ok((Self { open, closing, events, is_full: false }, receiver))
    }

    /// Gives an accepted connection its id and starts reading it. False (and the connection dropped) when too many
    /// are open.
    pub fn adopt(&mut self, id: u64, stream: TcpStream) -> bool {
        self.start(id, |carried| carry(id, stream, carried))
    }

    /// Opens a connection; ends in `Connected` or `Closed`.
    pub fn connect(&mut self, id: u64, to: SocketAddr) {
        if !self.start(id, |carried| open(id, to, carried)) {
            // Entered all the same, so that its `Closed` counts.
            let ((queue, _), (_close, _)) = (mpsc::channel(1), oneshot::channel());
            let events = self.events.clone();
            let task = tokio::spawn(async move { events.send(StreamEvent::Closed { id }).await });
            self.open.insert(id, Open { queue, task: task.abort_handle(), _close });
        }
    }

    /// Queues bytes. A peer that lets its queue fill is cut off.
    pub fn send(&mut self, id: u64, bytes: Vec<u8>) {
        if let Some(open) = self.open.get(&id)
            && let Err(mpsc::error::TrySendError::Full(_)) = open.queue.try_send(bytes)
        {
            debug!(stream = id, "peer does not read, closing");
            open.task.abort();
            self.report_closed(id);
        }
    }

    /// Closes after what is queued has been written; no further event of this stream is worth telling. False when it
    /// was closed before. To be called for every `Closed` event too.
    pub fn close(&mut self, id: u64) -> bool {
        let Some(closed) = self.open.remove(&id) else { return false };
        self.closing.retain(|task| !task.is_finished());
        self.closing.push_back(closed.task);
        if self.closing.len() > MAX_CLOSING
            && let Some(oldest) = self.closing.pop_front()
        {
            oldest.abort();
        }
        true
    }

    /// Whether the stream is still one: events of others are late and to be dropped.
    #[must_use]
    pub fn is_open(&self, id: u64) -> bool {
        self.open.contains_key(&id)
    }

    fn start<F>(&mut self, id: u64, task: impl FnOnce(Carried) -> F) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.open.len() >= MAX_STREAMS {
            // Once, and not for each: whoever opens thousands would fill the journal.
            if !std::mem::replace(&mut self.is_full, true) {
                warn!(limit = MAX_STREAMS, "too many connections; refusing more");
            }
            return false;
        }
        self.is_full = false;
        let (queue, chunks) = mpsc::channel(WRITE_QUEUE);
        let (_close, closed) = oneshot::channel();
        let task = tokio::spawn(task(Carried { chunks, events: self.events.clone(), closed })).abort_handle();
        self.open.insert(id, Open { queue, task, _close });
        true
    }

    fn report_closed(&self, id: u64) {
        let events = self.events.clone();
        tokio::spawn(async move { events.send(StreamEvent::Closed { id }).await });
    }
}

async fn open(id: u64, to: SocketAddr, carried: Carried) {
    let events = carried.events.clone();
    match timeout(CONNECT_TIMEOUT, connect(to)).await {
        Ok(Ok(stream)) => {
            if events.send(StreamEvent::Connected { id }).await.is_ok() {
                carry(id, stream, carried).await;
            }
            return;
        }
        Ok(Err(error)) => debug!(%to, %error, "cannot connect"),
        Err(_elapsed) => debug!(%to, "no answer to a connect"),
    }
    let _ = events.send(StreamEvent::Closed { id }).await;
}

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    bound_buffers(&SockRef::from(&socket));
    socket.connect(to).await
}

fn bound_buffers(socket: &Socket) {
    let bounded =
        socket.set_send_buffer_size(KERNEL_BUFFER).and_then(|()| socket.set_recv_buffer_size(KERNEL_BUFFER));
    if let Err(error) = bounded {
        debug!(%error, "keeping the kernel's buffers of a stream");
    }
}

fn listener(address: SocketAddr) -> Result<Option<TcpListener>> {
    let (domain, family) = if address.is_ipv4() { (Domain::IPV4, "IPv4") } else { (Domain::IPV6, "IPv6") };
    let socket = match Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP)) {
        Ok(socket) => socket,
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("failed to open an {family} TCP socket")),
    };
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // An agent that restarts must not wait for the last one's connections to time out.
    socket.set_reuse_address(true)?;
    // What is accepted inherits them.
    bound_buffers(&socket);
    match socket.bind(&address.into()).and_then(|()| socket.listen(BACKLOG)) {
        Ok(()) => {}
        Err(error) if address.is_ipv6() && error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
            return Ok(None);
        }
        Err(error) => {
            return Err(error).with_context(|| {
                let port = address.port();
                format!("failed to bind {family} TCP port {port}: see who holds it with `ss -tlpn sport = :{port}`")
            });
        }
    }
    Ok(Some(TcpListener::from_std(socket.into())?))
}

async fn accept(listener: TcpListener, events: mpsc::Sender<StreamEvent>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                if events.send(StreamEvent::Accepted { from, stream }).await.is_err() {
                    return;
                }
            }
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) =>
            {
                // accept(2) would fail again at once, for as long as nothing is freed.
                warn!(%error, "failed to accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => debug!(%error, "a connection was gone before it was accepted"),
        }
    }
}

/// Moves bytes until one side ends: the peer closes, an error, or the core drops its queue (then what is queued is
/// still written).
async fn carry(id: u64, stream: TcpStream, carried: Carried) {
    let events = carried.events.clone();
    if let Err(error) = exchange(id, stream, carried).await {
        debug!(stream = id, %error, "stream ended");
    }
    let _ = events.send(StreamEvent::Closed { id }).await;
}

async fn exchange(id: u64, stream: TcpStream, carried: Carried) -> io::Result<()> {
    let Carried { mut chunks, events, closed } = carried;
    stream.set_nodelay(true)?;
    // A peer that lost power sends no FIN.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(STALL_LIMIT))?;
    let (reader, mut writer) = stream.into_split();
    let read = async {
        loop {
            reader.readable().await?;
            // Nothing is held for a stream on which nothing comes.
            let bytes = {
                let mut buffer = [0; READ_CHUNK];
                match reader.try_read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(length) => buffer[..length].to_vec(),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(error),
                }
            };
            if events.send(StreamEvent::Data { id, bytes }).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async {
        let mut taken = 0;
        while let Some(bytes) = chunks.recv().await {
            for part in bytes.chunks(SENT_STEP) {
                writer.write_all(part).await?;
                taken += part.len();
                if taken >= SENT_STEP && events.send(StreamEvent::Sent { id, bytes: taken }).await.is_ok() {
                    taken = 0;
                }
            }
        }
        writer.shutdown().await
    };
    let closing = async {
        let _ = closed.await;
        sleep(CLOSING_FOR).await;
        Err(io::Error::new(io::ErrorKind::TimedOut, "closed, and the rest was not read"))
    };
    // All at once: two peers that each wrote before they read would wait for each other for ever.
    tokio::select! {
        ended = read => ended,
        ended = write => ended,
        ended = closing => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_port() -> u16 {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    /// A client whose stream 1 is the server's stream 9.
    async fn connected() -> [(Streams, mpsc::Receiver<StreamEvent>); 2] {
        let port = free_port();
        let (mut server, mut at_server) = Streams::listen(port).unwrap();
        let (mut client, at_client) = Streams::listen(free_port()).unwrap();
        client.connect(1, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let StreamEvent::Accepted { stream, .. } = at_server.recv().await.unwrap() else {
            panic!("not accepted")
        };
        assert!(server.adopt(9, stream));
        [(client, at_client), (server, at_server)]
    }

    #[tokio::test]
    async fn carries_bytes_both_ways_and_reports_the_end() {
        let [(mut client, mut at_client), (mut server, mut at_server)] = connected().await;
        assert!(matches!(at_client.recv().await.unwrap(), StreamEvent::Connected { id: 1 }));

        client.send(1, b"ping".to_vec());
        let StreamEvent::Data { id: 9, bytes } = at_server.recv().await.unwrap() else { panic!("no data") };
        assert_eq!(bytes, b"ping");
        server.send(9, b"pong".to_vec());
        // What is queued before a close still arrives.
        server.close(9);
        let StreamEvent::Data { id: 1, bytes } = at_client.recv().await.unwrap() else { panic!("no answer") };
        assert_eq!(bytes, b"pong");
        assert!(matches!(at_client.recv().await.unwrap(), StreamEvent::Closed { id: 1 }));
    }

    #[tokio::test]
    async fn peers_that_both_write_much_before_reading_do_not_wait_for_each_other() {
        let [(mut client, mut at_client), (mut server, mut at_server)] = connected().await;
        const CHUNKS: usize = 50;
        for _ in 0..CHUNKS {
            client.send(1, vec![1; 1 << 18]);
            server.send(9, vec![2; 1 << 18]);
        }
        let mut left = [CHUNKS << 18, CHUNKS << 18];
        while left != [0, 0] {
            let (side, event) = tokio::select! {
                event = at_server.recv() => (0, event),
                event = at_client.recv() => (1, event),
            };
            match event.unwrap() {
                StreamEvent::Data { bytes, .. } => left[side] -= bytes.len(),
                StreamEvent::Connected { .. } | StreamEvent::Sent { .. } => {}
                other => panic!("{other:?} with {left:?} bytes left"),
            }
        }
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_cut_off() {
        let port = free_port();
        let (mut streams, mut events) = Streams::listen(port).unwrap();
        let _silent = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let StreamEvent::Accepted { stream, .. } = events.recv().await.unwrap() else {
            panic!("not accepted")
        };
        assert!(streams.adopt(9, stream));
        for _ in 0..=WRITE_QUEUE {
            streams.send(9, vec![0; 1 << 20]);
        }
        assert_eq!(until_closed(&mut events).await.0, 9);
    }

    /// The stream that is closed next, and how much sockets took until then.
    async fn until_closed(events: &mut mpsc::Receiver<StreamEvent>) -> (u64, usize) {
        let mut taken = 0;
        loop {
            match events.recv().await.unwrap() {
                StreamEvent::Sent { bytes, .. } => taken += bytes,
                StreamEvent::Closed { id } => return (id, taken),
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn tells_what_the_kernel_took_and_that_is_little_of_what_nobody_reads() {
        let port = free_port();
        let (mut streams, mut events) = Streams::listen(port).unwrap();
        let _silent = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let StreamEvent::Accepted { stream, .. } = events.recv().await.unwrap() else {
            panic!("not accepted")
        };
        assert!(streams.adopt(9, stream));
        streams.send(9, vec![0; 16 << 20]);
        let began = tokio::time::Instant::now();
        streams.close(9);
        let (closed, taken) = until_closed(&mut events).await;
        assert!(closed == 9 && taken >= KERNEL_BUFFER, "{taken}");
        // The reader's kernel is not ours to bound: it takes what `tcp_rmem` lets it.
        assert!(taken < 8 << 20, "{taken} bytes of what nobody reads");
        assert!(began.elapsed() < CLOSING_FOR * 2, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn what_is_closed_and_not_read_is_cut_when_there_is_too_much_of_it() {
        let port = free_port();
        let (mut streams, mut events) = Streams::listen(port).unwrap();
        let mut silent = Vec::new();
        for id in 0..=MAX_CLOSING as u64 {
            silent.push(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap());
            let accepted = loop {
                match events.recv().await.unwrap() {
                    StreamEvent::Accepted { stream, .. } => break stream,
                    StreamEvent::Sent { .. } => {}
                    other => panic!("{other:?}"),
                }
            };
            assert!(streams.adopt(id, accepted));
            streams.send(id, vec![0; 16 << 20]);
        }
        let first = streams.open[&0].task.clone();
        for id in 0..MAX_CLOSING as u64 {
            streams.close(id);
        }
        assert!(!first.is_finished());
        streams.close(MAX_CLOSING as u64);
        let began = tokio::time::Instant::now();
        while !first.is_finished() {
            assert!(began.elapsed() < CLOSING_FOR / 2, "the oldest is not cut");
            let _ = timeout(Duration::from_millis(10), events.recv()).await;
        }
    }

    #[tokio::test]
    async fn a_refused_connect_ends_in_closed() {
        let (mut streams, mut events) = Streams::listen(free_port()).unwrap();
        streams.connect(5, SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
        assert!(matches!(events.recv().await.unwrap(), StreamEvent::Closed { id: 5 }));
    }

    #[tokio::test]
    async fn refuses_more_streams_than_its_bound() {
        let port = free_port();
        let (mut streams, mut events) = Streams::listen(port).unwrap();
        let mut peers = Vec::new();
        for id in 0..=MAX_STREAMS as u64 {
            peers.push(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap());
            let StreamEvent::Accepted { stream, .. } = events.recv().await.unwrap() else {
                panic!("not accepted")
            };
            assert_eq!(streams.adopt(id, stream), id < MAX_STREAMS as u64);
        }
    }
}
