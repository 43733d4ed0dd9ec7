// SPDX-License-Identifier: Apache-2.0
//! The LAN between machines: addresses, faults, cuts, datagrams and streams.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use cluster_agent_core::consts::{AGENT_PORT, MAX_DATAGRAM};
use cluster_agent_core::{Input, StreamId};
use rand::RngExt;

use super::World;
use super::machine::INTERFACE;
use super::queue::Happening;

/// A lost segment of a stream is sent again after so long.
const RETRANSMIT: Duration = Duration::from_millis(200);
/// Machines for each /24 of the LAN.
const PER_BLOCK: usize = 250;

/// What the network does to datagrams. Streams feel the delay, and a loss as a retransmission.
#[derive(Clone, Copy)]
pub struct Faults {
    pub loss: f64,
    pub duplicate: f64,
    pub delay: Duration,
    /// Up to so much more for each datagram, which is also what reorders them.
    pub jitter: Duration,
}

impl Faults {
    pub const NONE: Self =
        Self { loss: 0.0, duplicate: 0.0, delay: Duration::from_millis(1), jitter: Duration::from_millis(1) };
    /// A LAN that loses one datagram in twenty.
    pub const LOSSY: Self = Self { loss: 0.05, ..Self::NONE };
    pub const ROUGH: Self = Self {
        loss: 0.05,
        duplicate: 0.02,
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(50),
    };
}

/// A datagram as somebody on the LAN sees it.
#[derive(Clone)]
pub struct Seen {
    pub from: usize,
    pub to: usize,
    pub source: SocketAddr,
    pub bytes: Vec<u8>,
}

/// The other end of a stream, and when what was said last arrives there: streams keep their order.
#[derive(Clone, Copy)]
pub struct FarEnd {
    machine: usize,
    stream: StreamId,
    arrives: Duration,
    /// Something was lost in a cut: nothing later can arrive either.
    torn: bool,
}

/// What is cut.
#[derive(Default)]
pub struct Cuts {
    /// Machines that cannot reach each other: those in different groups. Empty: all can.
    groups: Vec<BTreeSet<usize>>,
    links: BTreeSet<usize>,
    /// One direction only: from, to.
    ways: BTreeSet<(usize, usize)>,
}

impl Cuts {
    fn passes(&self, from: usize, to: usize) -> bool {
        !self.links.contains(&from)
            && !self.links.contains(&to)
            && !self.ways.contains(&(from, to))
            && (self.groups.is_empty()
                || self.groups.iter().any(|group| group.contains(&from) && group.contains(&to)))
    }
}

/// Streams by the machine and number of their near end.
pub type Streams = BTreeMap<(usize, StreamId), FarEnd>;

impl World {
    /// Cuts or mends one machine's link. The machine does not notice: its own carrier stays.
    pub fn link(&mut self, n: usize, on: bool) {
        if on {
            self.cuts.links.remove(&n);
        } else {
            self.cuts.links.insert(n);
        }
    }

    /// Cuts or mends what `from` says to `to`; the way back stays as it is.
    pub fn one_way(&mut self, from: usize, to: usize, on: bool) {
        if on {
            self.cuts.ways.remove(&(from, to));
        } else {
            self.cuts.ways.insert((from, to));
        }
    }

    pub fn partition(&mut self, groups: &[&[usize]]) {
        self.cuts.groups = groups.iter().map(|group| group.iter().copied().collect()).collect();
    }

    pub fn heal(&mut self) {
        self.cuts.groups.clear();
        self.cuts.ways.clear();
    }

    /// A datagram from an attacker.
    pub fn inject(&mut self, to: usize, from: SocketAddr, bytes: impl Into<Arc<[u8]>>) {
        self.later(to, Duration::from_millis(1), Happening::Datagram(from, bytes.into()));
    }

    pub(super) fn everybody(&mut self, n: usize, interface: u32, v6: bool, bytes: Vec<u8>) {
        assert_eq!(interface, INTERFACE);
        self.machines[n].traffic.sent(&bytes);
        let bytes: Arc<[u8]> = bytes.into();
        let source = self.source(n, v6);
        for far in 0..self.machines.len() {
            // Broadcasts come back to their sender, as they do on real networks.
            self.deliver(n, far, source, &bytes);
        }
    }

    pub(super) fn datagram(&mut self, n: usize, to: SocketAddr, bytes: Vec<u8>) {
        assert!(bytes.len() <= MAX_DATAGRAM, "a datagram of {} bytes", bytes.len());
        if let SocketAddr::V6(v6) = to
            && v6.ip().is_unicast_link_local()
        {
            assert_eq!(v6.scope_id(), INTERFACE, "link-local addresses need their scope");
        }
        self.machines[n].traffic.sent(&bytes);
        if let Some(far) = self.find(to.ip()) {
            self.deliver(n, far, self.source(n, to.is_ipv6()), &bytes.into());
        }
    }

    fn deliver(&mut self, from: usize, to: usize, source: SocketAddr, bytes: &Arc<[u8]>) {
        if !self.cuts.passes(from, to) || !self.machines[to].is_on() {
            return;
        }
        if let Some(capture) = &mut self.capture {
            capture.push(Seen { from, to, source, bytes: bytes.to_vec() });
        }
        let copies = 1 + usize::from(self.chance(self.faults.duplicate));
        for _ in 0..copies {
            if self.chance(self.faults.loss) {
                continue;
            }
            let delay = self.delay();
            self.later(to, delay, Happening::Datagram(source, bytes.clone()));
        }
    }

    fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.random_bool(probability)
    }

    fn delay(&mut self) -> Duration {
        self.faults.delay + self.faults.jitter.mul_f64(self.rng.random())
    }

    pub(super) fn connect(&mut self, n: usize, stream: StreamId, to: SocketAddr) {
        self.machines[n].traffic.connects += 1;
        let far = self.find(to.ip()).filter(|far| self.machines[*far].is_on() && self.both_ways(n, *far));
        let Some(far) = far else {
            let refused = Input::StreamClosed { stream };
            return self.later(n, Duration::from_millis(900), Happening::Input(Box::new(refused)));
        };
        self.machines[far].accepted += 1;
        let inbound = StreamId::inbound(self.machines[far].accepted);
        let end = |machine, stream| FarEnd { machine, stream, arrives: Duration::ZERO, torn: false };
        self.streams.insert((n, stream), end(far, inbound));
        self.streams.insert((far, inbound), end(n, stream));
        let from = self.source(n, to.is_ipv6());
        self.along((n, stream), Input::StreamAccepted { stream: inbound, from });
        self.along((far, inbound), Input::StreamConnected { stream });
    }

    fn both_ways(&self, a: usize, b: usize) -> bool {
        self.cuts.passes(a, b) && self.cuts.passes(b, a)
    }

    /// Sends something to the far end of a stream, after all that was sent before.
    fn along(&mut self, near: (usize, StreamId), input: Input) {
        let lost = self.chance(self.faults.loss);
        let delay = self.delay() + if lost { RETRANSMIT } else { Duration::ZERO };
        let Some(far) = self.streams.get(&near).copied() else { return };
        let passes = self.both_ways(near.0, far.machine) && !far.torn;
        let arrives = (self.now + delay).max(far.arrives);
        if let Some(far) = self.streams.get_mut(&near) {
            (far.arrives, far.torn) = (arrives, !passes);
        }
        if passes {
            self.later(far.machine, arrives - self.now, Happening::Input(Box::new(input)));
        }
    }

    pub(super) fn stream_send(&mut self, n: usize, stream: StreamId, bytes: Vec<u8>) {
        self.machines[n].traffic.streamed(bytes.len());
        if let Some(far) = self.streams.get(&(n, stream)) {
            let data = Input::StreamData { stream: far.stream, bytes };
            self.along((n, stream), data);
        }
    }

    pub(super) fn stream_close(&mut self, n: usize, stream: StreamId) {
        if let Some(far) = self.streams.get(&(n, stream)).copied() {
            self.along((n, stream), Input::StreamClosed { stream: far.stream });
            self.streams.remove(&(n, stream));
            self.streams.remove(&(far.machine, far.stream));
        }
    }

    /// All streams of a machine break; the other ends learn of it.
    pub(super) fn break_streams(&mut self, n: usize) {
        let mine = (n, StreamId(0))..=(n, StreamId(u64::MAX));
        let broken: Vec<_> = self.streams.range(mine).map(|(near, far)| (*near, *far)).collect();
        for (near, far) in broken {
            self.streams.remove(&near);
            if self.streams.remove(&(far.machine, far.stream)).is_some() {
                let closed = Input::StreamClosed { stream: far.stream };
                self.later(far.machine, Duration::from_millis(500), Happening::Input(Box::new(closed)));
            }
        }
    }

    fn source(&self, n: usize, v6: bool) -> SocketAddr {
        match self.machines[n].ip(v6) {
            ip @ IpAddr::V4(_) => SocketAddr::new(ip, AGENT_PORT),
            IpAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(v6, AGENT_PORT, 0, INTERFACE)),
        }
    }

    /// The machine that has an address.
    pub(super) fn find(&self, ip: IpAddr) -> Option<usize> {
        let n = match ip {
            IpAddr::V4(v4) => match v4.octets() {
                [10, 0, block, host @ 1..=250] => usize::from(block) * PER_BLOCK + usize::from(host) - 1,
                _ => return None,
            },
            IpAddr::V6(v6) if v6.segments()[0] == 0xfe80 => usize::from(v6.segments()[7]).checked_sub(1)?,
            IpAddr::V6(_) => return None,
        };
        (n < self.machines.len()).then_some(n)
    }
}

/// Address of machine `n` on the LAN, a /16.
pub fn v4(n: usize) -> Ipv4Addr {
    let block = u8::try_from(n / PER_BLOCK).expect("the LAN has room for 64,000 machines");
    Ipv4Addr::new(10, 0, block, (n % PER_BLOCK) as u8 + 1)
}

/// Link-local address of machine `n`.
pub fn v6(n: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n as u16 + 1)
}
