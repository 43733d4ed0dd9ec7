// SPDX-License-Identifier: Apache-2.0
//! The LAN between machines: addresses, faults, cuts, datagrams and streams.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use cluster_agent_core::consts::{AGENT_PORT, MAX_WIDE_DATAGRAM, SENT_STEP};
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

/// A card of a machine.
pub type Card = (usize, usize);

/// The other end of a stream, and when what was said last arrives there: streams keep their order.
#[derive(Clone, Copy)]
pub struct FarEnd {
    machine: usize,
    card: usize,
    stream: StreamId,
    arrives: Duration,
    /// Bytes that its socket took and of which the near end was not told.
    taken: usize,
    /// Something was lost in a cut: nothing later can arrive either.
    torn: bool,
}

/// What is cut.
#[derive(Default)]
pub struct Cuts {
    /// Machines that cannot reach each other: those in different groups. Empty: all can.
    groups: Vec<BTreeSet<usize>>,
    links: BTreeSet<usize>,
    /// Cards whose port is dead; their carrier stays.
    ports: BTreeSet<Card>,
    /// One direction only: from, to.
    ways: BTreeSet<(usize, usize)>,
    /// Machines behind a link that drops datagrams that are larger.
    narrow: BTreeMap<usize, usize>,
}

impl Cuts {
    fn passes(&self, (from, from_card): Card, (to, to_card): Card) -> bool {
        !self.ports.contains(&(from, from_card))
            && !self.ports.contains(&(to, to_card))
            && !self.links.contains(&from)
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

    /// Kills or revives the port that one card hangs on. The machine does not notice: its carrier stays.
    pub fn port(&mut self, n: usize, card: usize, alive: bool) {
        if alive {
            self.cuts.ports.remove(&(n, card));
        } else {
            self.cuts.ports.insert((n, card));
        }
    }

    /// Pulls or plugs the cable of one card; the machine sees the carrier go or come.
    pub fn cable(&mut self, n: usize, card: usize, on: bool) {
        self.port(n, card, on);
        self.machines[n].cards[card].carrier = on;
        let interfaces = Input::Interfaces(self.machines[n].interfaces());
        self.tell(n, interfaces);
    }

    /// Has one machine's link drop datagrams with a larger payload; `None`: none.
    pub fn narrow(&mut self, n: usize, largest: Option<usize>) {
        match largest {
            Some(largest) => drop(self.cuts.narrow.insert(n, largest)),
            None => drop(self.cuts.narrow.remove(&n)),
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
        self.later(to, Duration::from_millis(1), Happening::Datagram(from, INTERFACE, bytes.into()));
    }

    pub(super) fn everybody(&mut self, n: usize, interface: u32, v6: bool, bytes: Vec<u8>) {
        let card = self.card_at(n, interface);
        self.machines[n].traffic.sent(&bytes);
        let bytes: Arc<[u8]> = bytes.into();
        for far in 0..self.machines.len() {
            for far_card in 0..self.machines[far].cards.len() {
                if self.same_lan((n, card), (far, far_card)) {
                    // Broadcasts come back to their sender, as they do on real networks.
                    self.deliver((n, card), (far, far_card), v6, &bytes);
                }
            }
        }
    }

    pub(super) fn datagram(&mut self, n: usize, to: SocketAddr, bytes: Vec<u8>) {
        assert!(bytes.len() <= MAX_WIDE_DATAGRAM, "a datagram of {} bytes", bytes.len());
        self.machines[n].traffic.sent(&bytes);
        if let Some((near, far)) = self.route(n, to) {
            self.deliver(near, far, to.is_ipv6(), &bytes.into());
        }
    }

    /// From which card to which a packet goes.
    fn route(&self, n: usize, to: SocketAddr) -> Option<(Card, Card)> {
        let far = self.find(to.ip())?;
        let near = match to {
            SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => (n, self.card_at(n, v6.scope_id())),
            // The kernel's choice: the first card on that LAN that has a carrier.
            _ => {
                let cards = 0..self.machines[n].cards.len();
                let usable =
                    |card: &usize| self.machines[n].cards[*card].carrier && self.same_lan((n, *card), far);
                (n, cards.into_iter().find(usable)?)
            }
        };
        self.same_lan(near, far).then_some((near, far))
    }

    fn card_at(&self, n: usize, interface: u32) -> usize {
        let card = interface.checked_sub(INTERFACE).expect("link-local addresses need their scope") as usize;
        assert!(card < self.machines[n].cards.len(), "machine {n} has no interface {interface}");
        card
    }

    fn same_lan(&self, (a, card_a): Card, (b, card_b): Card) -> bool {
        self.machines[a].cards[card_a].lan == self.machines[b].cards[card_b].lan
    }

    fn deliver(&mut self, from: Card, to: Card, v6: bool, bytes: &Arc<[u8]>) {
        if !self.cuts.passes(from, to) || !self.machines[to.0].is_on() {
            return;
        }
        let fits = |n: usize| self.cuts.narrow.get(&n).is_none_or(|largest| bytes.len() <= *largest);
        if !fits(from.0) || !fits(to.0) {
            return;
        }
        let source = self.source(from, to, v6);
        if let Some(capture) = &mut self.capture {
            capture.push(Seen { from: from.0, to: to.0, source, bytes: bytes.to_vec() });
        }
        let copies = 1 + usize::from(self.chance(self.faults.duplicate));
        for _ in 0..copies {
            if self.chance(self.faults.loss) {
                continue;
            }
            let delay = self.delay();
            self.later(to.0, delay, Happening::Datagram(source, to.1 as u32 + INTERFACE, bytes.clone()));
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
        if self.silent.contains(&to.ip()) {
            let connected = Input::StreamConnected { stream };
            return self.later(n, Duration::from_millis(1), Happening::Input(Box::new(connected)));
        }
        let route = self
            .route(n, to)
            .filter(|(near, far)| self.machines[far.0].is_on() && self.both_ways(*near, *far));
        let Some((near, (far, far_card))) = route else {
            let refused = Input::StreamClosed { stream };
            return self.later(n, Duration::from_millis(900), Happening::Input(Box::new(refused)));
        };
        self.machines[far].accepted += 1;
        let inbound = StreamId::inbound(self.machines[far].accepted);
        let end = |machine, card, stream| FarEnd {
            machine,
            card,
            stream,
            arrives: Duration::ZERO,
            taken: 0,
            torn: false,
        };
        self.streams.insert((n, stream), end(far, far_card, inbound));
        self.streams.insert((far, inbound), end(n, near.1, stream));
        let from = self.source(near, (far, far_card), to.is_ipv6());
        self.along((n, stream), Input::StreamAccepted { stream: inbound, from });
        self.along((far, inbound), Input::StreamConnected { stream });
    }

    fn both_ways(&self, a: Card, b: Card) -> bool {
        self.cuts.passes(a, b) && self.cuts.passes(b, a)
    }

    /// Sends something to the far end of a stream, after all that was sent before.
    fn along(&mut self, near: (usize, StreamId), input: Input) {
        let lost = self.chance(self.faults.loss);
        let delay = self.delay() + if lost { RETRANSMIT } else { Duration::ZERO };
        let Some(far) = self.streams.get(&near).copied() else { return };
        let back = self.streams.get(&(far.machine, far.stream)).map_or(0, |back| back.card);
        let passes = self.both_ways((near.0, back), (far.machine, far.card)) && !far.torn;
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
        if let Some(capture) = &mut self.stream_capture {
            capture.push(bytes.clone());
        }
        let Some(far) = self.streams.get_mut(&(n, stream)) else { return };
        far.taken += bytes.len();
        let taken = if far.taken >= SENT_STEP { std::mem::take(&mut far.taken) } else { 0 };
        let data = Input::StreamData { stream: far.stream, bytes };
        self.along((n, stream), data);
        // The socket is free again when the far end has read; never when the line is cut.
        if let Some(far) = self.streams.get(&(n, stream)).filter(|far| taken > 0 && !far.torn) {
            let sent = Input::StreamSent { stream, bytes: taken };
            self.later(n, far.arrives - self.now, Happening::Input(Box::new(sent)));
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

    /// A sender's address as the receiver sees it.
    fn source(&self, (n, card): Card, to: Card, v6: bool) -> SocketAddr {
        match self.machines[n].ip(card, v6) {
            ip @ IpAddr::V4(_) => SocketAddr::new(ip, AGENT_PORT),
            IpAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(v6, AGENT_PORT, 0, to.1 as u32 + INTERFACE)),
        }
    }

    /// The card that has an address.
    pub(super) fn find(&self, ip: IpAddr) -> Option<Card> {
        let (n, card) = match ip {
            IpAddr::V4(v4) => match v4.octets() {
                [10, card, block, host @ 1..=250] => {
                    (usize::from(block) * PER_BLOCK + usize::from(host) - 1, usize::from(card))
                }
                _ => return None,
            },
            IpAddr::V6(v6) if v6.segments()[0] == 0xfe80 => {
                (usize::from(v6.segments()[7]).checked_sub(1)?, usize::from(v6.segments()[6]))
            }
            IpAddr::V6(_) => return None,
        };
        (card < self.machines.get(n)?.cards.len()).then_some((n, card))
    }
}

/// Address of a card of machine `n`, in a /16 for the first cards, one for the second, …
pub fn v4(n: usize, card: usize) -> Ipv4Addr {
    let block = u8::try_from(n / PER_BLOCK).expect("the LAN has room for 64,000 machines");
    Ipv4Addr::new(10, card as u8, block, (n % PER_BLOCK) as u8 + 1)
}

/// Link-local address of a card of machine `n`.
pub fn v6(n: usize, card: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, card as u16, n as u16 + 1)
}
