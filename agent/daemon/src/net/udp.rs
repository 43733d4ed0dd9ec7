// SPDX-License-Identifier: Apache-2.0
//! Datagrams of the agent: one IPv4 and one IPv6 socket, each told and telling which interface a packet used.
//!
//! The interface matters twice. A link-local address means nothing without it, and LANs without DHCP have no other.
//! And a limited broadcast would otherwise leave by the default route only, which such a LAN does not have.

use std::{
    collections::BTreeSet,
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};
use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg,
        sendmsg, setsockopt, sockopt,
    },
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};
use tracing::{debug, warn};

/// Nothing the agents say is longer; what is, is cut by the kernel and dropped here.
const MAX_DATAGRAM: usize = 2048;
/// A thousand members answering at once must not overflow the default 208 KiB, nor must a tenth of a second of a flood, or what
/// members say is lost among it. Beyond `rmem_max` only who administers the network may have it.
const RECEIVE_BUFFER: usize = 4 << 20;

/// One datagram as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Source; for link-local sources with its scope.
    pub from: SocketAddr,
    /// Index of the interface it came in by.
    pub interface: u32,
    /// The payload.
    pub bytes: Vec<u8>,
}

/// The agent's datagram sockets.
#[derive(Debug)]
pub struct UdpSockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    port: u16,
    group: Ipv6Addr,
    joined: Mutex<BTreeSet<u32>>,
    /// Which family is looked at first the next time.
    v6_first: AtomicBool,
}

impl UdpSockets {
    /// Binds `port` for both families. A family that the kernel lacks is left out; both missing is an error, and so
    /// is a port somebody else holds.
    ///
    /// # Errors
    /// Names the port, the family and how to find its holder.
    pub fn bind(port: u16, group: Ipv6Addr) -> Result<Self> {
        let v4 = open(Domain::IPV4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
        let v6 = open(Domain::IPV6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
        if v4.is_none() && v6.is_none() {
            bail!("the kernel has neither IPv4 nor IPv6: the agent needs one of them");
        }
        Ok(Self { v4, v6, port, group, joined: Mutex::default(), v6_first: AtomicBool::new(false) })
    }

    /// False when the kernel has no IPv6 (`ipv6.disable=1`): then there is no mesh either.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.v6.is_some()
    }

    /// Listens to the solicitation group on exactly these interfaces. Safe to call at every change: the kernel forgets
    /// a membership with its interface, and an index is never used twice for another while it is in the set.
    pub fn join_group_on(&self, interfaces: &BTreeSet<u32>) {
        let Some(v6) = &self.v6 else { return };
        let socket = SockRef::from(v6);
        let mut before = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in before.difference(interfaces) {
            // An error only says that the interface, and with it the membership, is gone.
            let _ = socket.leave_multicast_v6(&self.group, *gone);
        }
        let mut joined: BTreeSet<u32> = before.intersection(interfaces).copied().collect();
        for new in interfaces.difference(&before) {
            match socket.join_multicast_v6(&self.group, *new) {
                Ok(()) => {
                    joined.insert(*new);
                }
                Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {
                    joined.insert(*new);
                }
                // Left out of `joined`, so that the next change tries again.
                Err(error) => debug!(interface = *new, %error, "cannot join the solicitation group yet"),
            }
        }
        *before = joined;
    }

    /// Waits for the next datagram of either family.
    ///
    /// # Errors
    /// Only for errors of the socket itself; those of single packets are skipped.
    pub async fn receive(&self) -> io::Result<Received> {
        tokio::select! {
            received = receive_on(self.v4.as_ref()) => received,
            received = receive_on(self.v6.as_ref()) => received,
        }
    }

    /// A datagram that is there already. The families take turns, or a flood of one would keep out the other.
    #[must_use]
    pub fn receive_more(&self) -> Option<Received> {
        let v6_first = self.v6_first.fetch_xor(true, Ordering::Relaxed);
        let sockets = if v6_first { [&self.v6, &self.v4] } else { [&self.v4, &self.v6] };
        let mut sockets = sockets.into_iter().flatten();
        // What is no datagram to hand on, and an error, [`UdpSockets::receive`] meets as well.
        sockets.find_map(|socket| socket.try_io(Interest::READABLE, || receive_now(socket)).ok().flatten())
    }

    /// Sends to one address; `interface` 0 leaves the choice to the routing table.
    ///
    /// # Errors
    /// As from sendmsg(2). UDP may lose any packet, so callers count and go on.
    pub fn send(&self, to: SocketAddr, interface: u32, bytes: &[u8]) -> io::Result<()> {
        match to {
            SocketAddr::V4(to) => self.send_v4(to, interface, bytes),
            SocketAddr::V6(to) => {
                let scope = if to.scope_id() == 0 { interface } else { to.scope_id() };
                self.send_v6(SocketAddrV6::new(*to.ip(), to.port(), 0, scope), interface, bytes)
            }
        }
    }

    /// To every agent on the link of `interface` that listens to the group.
    ///
    /// # Errors
    /// As [`UdpSockets::send`].
    pub fn multicast(&self, interface: u32, bytes: &[u8]) -> io::Result<()> {
        self.send_v6(SocketAddrV6::new(self.group, self.port, 0, interface), interface, bytes)
    }

    /// To every IPv4 host on the link of `interface`.
    ///
    /// # Errors
    /// As [`UdpSockets::send`]; an interface without an IPv4 address gives "network is unreachable".
    pub fn broadcast(&self, interface: u32, bytes: &[u8]) -> io::Result<()> {
        self.send_v4(SocketAddrV4::new(Ipv4Addr::BROADCAST, self.port), interface, bytes)
    }

    fn send_v4(&self, to: SocketAddrV4, interface: u32, bytes: &[u8]) -> io::Result<()> {
        let socket = self.v4.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let pktinfo = libc::in_pktinfo {
            ipi_ifindex: interface.cast_signed(),
            ipi_spec_dst: libc::in_addr { s_addr: 0 },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let control: &[ControlMessage<'_>] =
            if interface == 0 { &[] } else { &[ControlMessage::Ipv4PacketInfo(&pktinfo)] };
        let address = SockaddrIn::from(to);
        // Straight to the kernel: a full send buffer loses the datagram like any router on the way would.
        let descriptor = socket.as_raw_fd();
        sendmsg(descriptor, &[IoSlice::new(bytes)], control, MsgFlags::MSG_DONTWAIT, Some(&address))?;
        Ok(())
    }

    fn send_v6(&self, to: SocketAddrV6, interface: u32, bytes: &[u8]) -> io::Result<()> {
        let socket = self.v6.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let pktinfo =
            libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: [0; 16] }, ipi6_ifindex: interface };
        let control: &[ControlMessage<'_>] =
            if interface == 0 { &[] } else { &[ControlMessage::Ipv6PacketInfo(&pktinfo)] };
        let address = SockaddrIn6::from(to);
        // Straight to the kernel: a full send buffer loses the datagram like any router on the way would.
        let descriptor = socket.as_raw_fd();
        sendmsg(descriptor, &[IoSlice::new(bytes)], control, MsgFlags::MSG_DONTWAIT, Some(&address))?;
        Ok(())
    }
}

/// `None` when the kernel does not know the family at all.
fn open(domain: Domain, address: SocketAddr) -> Result<Option<UdpSocket>> {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let socket = match Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP)) {
        Ok(socket) => socket,
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            warn!(family, "the kernel does not support this address family");
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("failed to open an {family} UDP socket")),
    };
    let configure = || -> io::Result<()> {
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
            socket.set_multicast_loop_v6(false)?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            socket.set_broadcast(true)?;
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        Ok(())
    };
    configure().with_context(|| format!("failed to configure the {family} UDP socket"))?;
    let forced = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
    if let Err(error) = forced.or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)) {
        debug!(family, %error, "keeping the default receive buffer");
    }
    match socket.bind(&address.into()) {
        Ok(()) => {}
        // A kernel with IPv6 compiled in but disabled for all interfaces has no `::` to bind.
        Err(error) if address.is_ipv6() && error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
            warn!(family, "this address family is disabled in the kernel");
            return Ok(None);
        }
        Err(error) => {
            return Err(error).with_context(|| {
                let port = address.port();
                format!("failed to bind {family} UDP port {port}: see who holds it with `ss -ulpn sport = :{port}`")
            });
        }
    }
    Ok(Some(UdpSocket::from_std(socket.into())?))
}

async fn receive_on(socket: Option<&UdpSocket>) -> io::Result<Received> {
    let Some(socket) = socket else { return std::future::pending().await };
    loop {
        if let Some(received) = socket.async_io(Interest::READABLE, || receive_now(socket)).await? {
            return Ok(received);
        }
    }
}

/// One recvmsg(2). `None` for what is not a datagram to hand on: too long, or an error of an earlier send.
fn receive_now(socket: &UdpSocket) -> io::Result<Option<Received>> {
    let mut buffer = [0u8; MAX_DATAGRAM];
    let mut control = cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = match recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    ) {
        Ok(message) => message,
        Err(Errno::EAGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
        // ICMP errors of earlier sends surface here; they concern one peer, not the socket.
        Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EINTR) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    if message.flags.intersects(MsgFlags::MSG_TRUNC) {
        return Ok(None);
    }
    let interface = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4PacketInfo(info) => Some(info.ipi_ifindex.cast_unsigned()),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(info.ipi6_ifindex),
        _ => None,
    });
    let from = message.address.as_ref().and_then(socket_address);
    let (Some(interface), Some(from), length) = (interface, from, message.bytes) else { return Ok(None) };
    Ok(Some(Received { from, interface, bytes: buffer[..length].to_vec() }))
}

fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::new(IpAddr::V4(v4.ip()), v4.port()));
    }
    let v6 = storage.as_sockaddr_in6()?;
    Some(SocketAddr::V6(SocketAddrV6::new(v6.ip(), v6.port(), 0, v6.scope_id())))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, UdpSocket};

    use super::{MAX_DATAGRAM, UdpSockets};

    const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0x6343, 0x6c75, 0x7374);

    fn free_port() -> u16 {
        UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn names_source_and_interface_of_a_datagram() {
        let port = free_port();
        let sockets = UdpSockets::bind(port, GROUP).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"hello", ("127.0.0.1", port)).unwrap();
        let received = sockets.receive().await.unwrap();
        assert_eq!(received.bytes, b"hello");
        assert_eq!(received.from, sender.local_addr().unwrap());
        assert_ne!(received.interface, 0);
    }

    #[tokio::test]
    async fn a_flood_of_one_family_leaves_the_other_its_turn() {
        let port = free_port();
        let sockets = UdpSockets::bind(port, GROUP).unwrap();
        if !sockets.has_ipv6() {
            return;
        }
        let (v4, v6) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("[::1]:0").unwrap());
        for _ in 0..20 {
            v4.send_to(b"flood", ("127.0.0.1", port)).unwrap();
        }
        v6.send_to(b"a member", ("::1", port)).unwrap();
        // Both sockets are known to be readable from now on.
        let mut heard = vec![sockets.receive().await.unwrap().bytes];
        while !heard.iter().any(|bytes| bytes == b"a member") {
            match sockets.receive_more() {
                Some(received) => heard.push(received.bytes),
                None => heard.push(sockets.receive().await.unwrap().bytes),
            }
        }
        assert!(heard.len() <= 10, "{} datagrams came before it", heard.len());
    }

    #[tokio::test]
    async fn sends_out_of_the_interface_asked_for() {
        let port = free_port();
        let sockets = UdpSockets::bind(port, GROUP).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        sockets.send(peer.local_addr().unwrap(), 1, b"to lo").unwrap();
        let mut buffer = [0; 16];
        let (length, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"to lo");
        assert_eq!(from.port(), port);
        assert!(sockets.send(peer.local_addr().unwrap(), 0x7fff_0000, b"nowhere").is_err());
    }

    #[tokio::test]
    async fn drops_what_is_longer_than_any_message() {
        let port = free_port();
        let sockets = UdpSockets::bind(port, GROUP).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(&[7; MAX_DATAGRAM + 1], ("127.0.0.1", port)).unwrap();
        sender.send_to(b"short", ("127.0.0.1", port)).unwrap();
        assert_eq!(sockets.receive().await.unwrap().bytes, b"short");
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_how_to_find_its_holder() {
        let holder = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let error = format!("{:#}", UdpSockets::bind(port, GROUP).unwrap_err());
        assert!(error.contains(&format!("ss -ulpn sport = :{port}")), "{error}");
    }
}
