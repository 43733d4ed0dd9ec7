// SPDX-License-Identifier: Apache-2.0
//! Streams of the agent: bytes in, bytes out, each in a task of its own; what the bytes mean is the core's matter.
//!
//! Anyone on the LAN can open one, so everything is bounded: how many there are, how long a connect may take, how much
//! may wait to be written, and (by the event channel's own bound) how much may wait to be read.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::AbortHandle,
    time::timeout,
};
use tracing::{debug, warn};

/// Streams open at once, both ways. Each is a short exchange (a pull of the state), so this is plenty at a thousand
/// members, and few enough that a flood costs little memory.
const MAX_STREAMS: usize = 256;
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
    events: mpsc::Sender<StreamEvent>,
}

#[derive(Debug)]
struct Open {
    queue: mpsc::Sender<Vec<u8>>,
    task: AbortHandle,
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
        Ok((Self { open: BTreeMap::new(), events }, receiver))
    }

    /// Gives an accepted connection its id and starts reading it. False (and the connection dropped) when too many
    /// are open.
    pub fn adopt(&mut self, id: u64, stream: TcpStream) -> bool {
        self.start(id, |chunks, events| carry(id, stream, chunks, events))
    }

    /// Opens a connection; ends in `Connected` or `Closed`.
    pub fn connect(&mut self, id: u64, to: SocketAddr) {
        if !self.start(id, |chunks, events| open(id, to, chunks, events)) {
            // Entered all the same, so that its `Closed` counts.
            let (queue, _) = mpsc::channel(1);
            let events = self.events.clone();
            let task = tokio::spawn(async move { events.send(StreamEvent::Closed { id }).await });
            self.open.insert(id, Open { queue, task: task.abort_handle() });
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
        self.open.remove(&id).is_some()
    }

    /// Whether the stream is still one: events of others are late and to be dropped.
    #[must_use]
    pub fn is_open(&self, id: u64) -> bool {
        self.open.contains_key(&id)
    }

    fn start<F>(
        &mut self,
        id: u64,
        task: impl FnOnce(mpsc::Receiver<Vec<u8>>, mpsc::Sender<StreamEvent>) -> F,
    ) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.open.len() >= MAX_STREAMS {
            warn!(limit = MAX_STREAMS, "too many connections; refused one");
            return false;
        }
        let (queue, chunks) = mpsc::channel(WRITE_QUEUE);
        let task = tokio::spawn(task(chunks, self.events.clone())).abort_handle();
        self.open.insert(id, Open { queue, task });
        true
    }

    fn report_closed(&self, id: u64) {
        let events = self.events.clone();
        tokio::spawn(async move { events.send(StreamEvent::Closed { id }).await });
    }
}

async fn open(id: u64, to: SocketAddr, chunks: mpsc::Receiver<Vec<u8>>, events: mpsc::Sender<StreamEvent>) {
    match timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await {
        Ok(Ok(stream)) => {
            if events.send(StreamEvent::Connected { id }).await.is_ok() {
                carry(id, stream, chunks, events).await;
            }
            return;
        }
        Ok(Err(error)) => debug!(%to, %error, "cannot connect"),
        Err(_elapsed) => debug!(%to, "no answer to a connect"),
    }
    let _ = events.send(StreamEvent::Closed { id }).await;
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
async fn carry(
    id: u64,
    stream: TcpStream,
    chunks: mpsc::Receiver<Vec<u8>>,
    events: mpsc::Sender<StreamEvent>,
) {
    if let Err(error) = exchange(id, stream, chunks, &events).await {
        debug!(stream = id, %error, "stream ended");
    }
    let _ = events.send(StreamEvent::Closed { id }).await;
}

async fn exchange(
    id: u64,
    stream: TcpStream,
    mut chunks: mpsc::Receiver<Vec<u8>>,
    events: &mpsc::Sender<StreamEvent>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A peer that lost power sends no FIN.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(10))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    SockRef::from(&stream).set_tcp_user_timeout(Some(STALL_LIMIT))?;
    let (mut reader, mut writer) = stream.into_split();
    let read = async {
        let mut buffer = vec![0; READ_CHUNK];
        loop {
            let length = reader.read(&mut buffer).await?;
            let event = StreamEvent::Data { id, bytes: buffer[..length].to_vec() };
            if length == 0 || events.send(event).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async {
        while let Some(bytes) = chunks.recv().await {
            writer.write_all(&bytes).await?;
        }
        writer.shutdown().await
    };
    // Both at once: two peers that each wrote before they read would wait for each other for ever.
    tokio::select! {
        ended = read => ended,
        ended = write => ended,
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
                StreamEvent::Connected { .. } => {}
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
        assert!(matches!(events.recv().await.unwrap(), StreamEvent::Closed { id: 9 }));
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
