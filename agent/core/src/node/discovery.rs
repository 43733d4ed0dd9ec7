// SPDX-License-Identifier: Apache-2.0
//! Beacons: when they are sent, and what hearing one leads to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::{Rng, RngExt};

use super::streams::Purpose;
use super::{Node, Place};
use crate::beacon::{Beacon, DATAGRAM_BEACON};
use crate::command::Command;
use crate::consts::{AGENT_PORT, MAX_DATAGRAM, WIRE_VERSION};
use crate::id::NodeId;
use crate::limit::Limiter;
use crate::record::is_endpoint;
use crate::session::Path;
use crate::settings::Seed;
use crate::stream::Kind;
use crate::view::MemberState;
use crate::wire::{needs_interface, with_scope};

const FIRST: Duration = Duration::from_millis(500);
const SEARCHING_MAX: Duration = Duration::from_secs(10);
const SETTLED: Duration = Duration::from_secs(30);
/// A node that heard us this recently through a session needs no beacon.
const FRESH: Duration = Duration::from_secs(5);
/// At least so long between two introductions of one node.
const INTRODUCTION_GAP: Duration = Duration::from_secs(2);
/// Two nodes without a cluster shake hands again when the last time is this long ago.
const SHAKE_AGAIN: Duration = Duration::from_secs(6);
/// The higher id begins a handshake itself after so long.
const BEGIN_ANYWAY: Duration = Duration::from_millis(1200);
/// About so many nodes answer a beacon, however many hear it.
const ANSWERERS: u32 = 8;
/// Members of a larger cluster beacon more rarely, so that a LAN hears as many beacons as from a cluster of this size.
const BEACON_EVERY: u32 = 32;
/// A node without a cluster shakes hands with so many others like it; beyond that only with lower ids, because only the
/// lowest counts. A thousand that are switched on at once would else shake hands half a million times.
const ENOUGH_SHAKEN: usize = 6;
/// It begins with that so long after its network came up: until then a member may have answered, and there is nothing to
/// found.
const SHAKE_AFTER: Duration = Duration::from_millis(700);
/// Introductions to members of a cluster that are tried at once.
const MAX_SEEKING: usize = 2;
const MAX_REMEMBERED: usize = 4096;

/// Schedule of our beacons and memory of introductions.
pub(super) struct Discovery {
    next: Duration,
    wait: Duration,
    beacons: Limiter,
    answers: Limiter,
    introduced: BTreeMap<NodeId, Duration>,
    crowd: Crowd,
    /// Nodes that should begin the first handshake, and since when.
    waiting: BTreeMap<NodeId, Duration>,
}

/// How many nodes are about that are not known as members.
#[derive(Default)]
struct Crowd {
    heard: BTreeSet<NodeId>,
    since: Duration,
    before: usize,
}

impl Crowd {
    fn hear(&mut self, node: NodeId, now: Duration) {
        if now.saturating_sub(self.since) > SEARCHING_MAX {
            self.before = std::mem::take(&mut self.heard).len();
            self.since = now;
        }
        if self.heard.len() < MAX_REMEMBERED {
            self.heard.insert(node);
        }
    }

    fn size(&self) -> usize {
        self.heard.len().max(self.before)
    }
}

impl Discovery {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            next: now,
            wait: FIRST,
            beacons: super::beacon_limiter(),
            answers: Limiter::new(2, 6, 100),
            introduced: BTreeMap::new(),
            crowd: Crowd::default(),
            waiting: BTreeMap::new(),
        }
    }

    /// Something changed: solicit fast again.
    pub(super) fn restart(&mut self, now: Duration) {
        self.next = self.next.min(now + FIRST / 2);
        self.wait = FIRST;
    }

    /// Whether a node may be introduced to again; notes it if so.
    pub(super) fn may_introduce(&mut self, node: NodeId, gap: Duration, now: Duration) -> bool {
        if self.introduced.get(&node).is_some_and(|last| now.saturating_sub(*last) < gap) {
            return false;
        }
        if self.introduced.len() >= MAX_REMEMBERED {
            self.introduced.retain(|_, last| now.saturating_sub(*last) < Duration::from_secs(60));
        }
        if self.introduced.len() >= MAX_REMEMBERED {
            return false;
        }
        self.introduced.insert(node, now);
        true
    }
}

#[cfg(any(test, feature = "fuzz"))]
impl Discovery {
    /// Panics when more is remembered than there may be.
    pub(super) fn assert_bounded(&self) {
        assert!(self.introduced.len() <= MAX_REMEMBERED && self.waiting.len() <= MAX_REMEMBERED);
    }
}

impl Node {
    /// Sends beacons when it is time.
    pub(super) fn beacon_tick(&mut self) {
        let now = self.now.boottime;
        if now < self.discovery.next || self.join.is_none() || matches!(self.place, Place::Left(_)) {
            return;
        }
        let settled = self.cluster().is_some_and(|cluster| {
            let up = |id| id == self.me || cluster.gossip.state(&id) == Some(MemberState::Up);
            cluster.watched.out_of_reach.is_empty() && cluster.roster.members().all(up)
        });
        let wait = if settled { SETTLED } else { self.discovery.wait };
        self.discovery.wait = (self.discovery.wait * 2).min(SEARCHING_MAX);
        // Who was just admitted knows few as up, but has heard how many there are.
        let about = self.cluster().map_or(0, |cluster| cluster.gossip.up().max(self.discovery.crowd.size()))
            as u32
            + 1;
        self.discovery.next =
            now + self.jitter(wait.mul_f64((f64::from(about) / f64::from(BEACON_EVERY)).max(1.0)));
        self.solicit();
    }

    /// One beacon on each physical interface and to each seed.
    fn solicit(&mut self) {
        let Some(bytes) = self.beacon(true) else { return };
        let links: Vec<(u32, bool, bool)> = self
            .physical()
            .map(|interface| {
                let fits = |ip: IpAddr| is_endpoint(&SocketAddr::new(ip, AGENT_PORT));
                let has =
                    |v4: bool| interface.addresses.iter().any(|(ip, _)| ip.is_ipv4() == v4 && fits(*ip));
                (interface.index, has(true), has(false))
            })
            .collect();
        for (interface, v4, v6) in links {
            if v6 {
                self.outbox.push(Command::Multicast { interface, bytes: bytes.clone() });
            }
            if v4 {
                self.outbox.push(Command::Broadcast { interface, bytes: bytes.clone() });
            }
        }
        let seeds =
            self.provisioning.settings.as_ref().map(|settings| settings.seeds.clone()).unwrap_or_default();
        for seed in seeds {
            let bytes = bytes.clone();
            self.outbox.push(match seed {
                Seed::Address(to) => Command::SendDatagram { to, interface: 0, bytes },
                Seed::Name { host, port } => Command::SendToName { host, port, bytes },
            });
        }
    }

    fn beacon(&mut self, solicits: bool) -> Option<Vec<u8>> {
        let cluster = self.cluster().map(|cluster| cluster.roster.cluster());
        let beacon = Beacon { node: self.me, instance: self.instance, cluster, solicits };
        let mut nonce = [0; 24];
        self.rng.fill_bytes(&mut nonce);
        self.join.as_ref().map(|join| beacon.to_datagram(&join.seal, nonce))
    }

    /// One beacon to one path.
    pub(super) fn beacon_to(&mut self, path: Path, solicits: bool) {
        if let Some(bytes) = self.beacon(solicits) {
            self.outbox.push(Command::SendDatagram { to: path.address, interface: path.interface, bytes });
        }
    }

    /// A datagram arrived.
    pub(super) fn datagram(&mut self, from: SocketAddr, interface: u32, bytes: &[u8]) {
        let from = with_scope(unmapped(from), interface);
        let path = Path { address: from, interface: if needs_interface(&from) { interface } else { 0 } };
        if matches!(self.place, Place::Left(_)) {
            return;
        }
        match bytes {
            _ if bytes.len() > MAX_DATAGRAM => self.rejects.count("datagram too large"),
            _ if !is_endpoint(&from) => self.rejects.count("datagram from an impossible address"),
            [WIRE_VERSION, DATAGRAM_BEACON, ..] => self.heard_beacon(path, bytes),
            [WIRE_VERSION, kind, ..] => {
                let kind = *kind;
                self.with_sessions(|sessions, context| sessions.handle(kind, path, bytes, context));
            }
            _ => self.rejects.count("datagram of another version"),
        }
    }

    fn heard_beacon(&mut self, path: Path, bytes: &[u8]) {
        let now = self.now.boottime;
        let Some(join) = &self.join else { return };
        if !self.discovery.beacons.allow(path.address.ip(), now) {
            return self.rejects.count("beacon over rate limit");
        }
        let Ok(beacon) = Beacon::open(&join.seal, bytes) else {
            return self.rejects.count("beacon under another join key");
        };
        if beacon.node == self.me {
            // Our own echo, or a clone. Only a handshake can tell a clone from a replay of our last boot.
            if beacon.instance != self.instance
                && self.discovery.may_introduce(beacon.node, Duration::from_secs(30), now)
            {
                self.connect(Kind::Stranger, Purpose::Introduce, beacon.node, path.address);
            }
            return;
        }
        let mine = self.cluster().map(|cluster| cluster.roster.cluster());
        let fellow = mine.is_some()
            && beacon.cluster == mine
            && self.cluster().is_some_and(|cluster| cluster.roster.is_member(&beacon.node));
        if fellow {
            self.heard_fellow(beacon, path);
            return;
        }
        self.discovery.crowd.hear(beacon.node, now);
        if beacon.solicits && self.is_one_of_few() && self.discovery.answers.allow(path.address.ip(), now) {
            self.beacon_to(path, false);
        }
        let gap = match (mine, beacon.cluster) {
            // It will come to us; we only answer.
            (Some(_), None) => return,
            (None, None) => SHAKE_AGAIN,
            _ => INTRODUCTION_GAP,
        };
        let purpose = if beacon.cluster.is_some() { Purpose::Seek } else { Purpose::Introduce };
        let streams = &self.streams;
        let busy = || streams.is_busy_with(&beacon.node) || (mine.is_none() && streams.is_joining());
        let enough = match purpose {
            // One of our own cluster whom we do not know yet comes by push-pull too; a few make sure.
            Purpose::Seek => {
                busy()
                    || streams.outbound_for(Purpose::Seek) >= MAX_SEEKING
                    || (mine == beacon.cluster && !self.is_one_of_few())
            }
            // Streams are looked at last: most beacons of a crowd need no look.
            _ => !self.wants_to_shake(&beacon.node) || busy() || self.lets_the_other_begin(&beacon.node),
        };
        if !enough && self.discovery.may_introduce(beacon.node, gap, now) {
            self.connect(Kind::Stranger, purpose, beacon.node, path.address);
        }
    }

    /// Whether another node without a cluster matters for who founds.
    fn wants_to_shake(&self, node: &NodeId) -> bool {
        let counts = self.provisioning.settings.as_ref().is_some_and(|settings| settings.expect.is_some());
        let settling = !self.founding.has_listened(SHAKE_AFTER, self.now.boottime);
        if settling || self.founding.knows_cluster() || self.streams.outbound_for(Purpose::Seek) > 0 {
            return false;
        }
        let (shaken, lowest) = self.founding.others();
        let lowest = lowest.map_or(self.me, |(lowest, _)| lowest.min(self.me));
        let few = || shaken + self.streams.outbound_for(Purpose::Introduce) < ENOUGH_SHAKEN;
        counts || *node <= lowest || (shaken < ENOUGH_SHAKEN && few())
    }

    /// Of two nodes without a cluster one handshake is enough: the lower id begins, the higher one only if it was waited
    /// for in vain.
    fn lets_the_other_begin(&mut self, node: &NodeId) -> bool {
        let now = self.now.boottime;
        if self.founding.has_shaken(node, SHAKE_AGAIN, now) {
            return true;
        }
        if self.me < *node {
            return false;
        }
        if self.discovery.waiting.len() >= MAX_REMEMBERED {
            self.discovery.waiting.clear();
        }
        let since = *self.discovery.waiting.entry(*node).or_insert(now);
        now.saturating_sub(since) < BEGIN_ANYWAY
    }

    /// A member of our cluster is there: make sure of a session with it.
    fn heard_fellow(&mut self, beacon: Beacon, path: Path) {
        let now = self.now.boottime;
        let Some(cluster) = self.cluster_mut() else { return };
        // One more way to it, perhaps: beacons come on every card that both sides have.
        cluster.sessions.suggest_last(beacon.node, path);
        let heard = cluster.sessions.last_heard(&beacon.node);
        let fresh = cluster.sessions.is_open(&beacon.node)
            && heard.is_some_and(|heard| now.saturating_sub(heard) < FRESH)
            && cluster
                .sessions
                .greeting(&beacon.node)
                .is_some_and(|greeting| greeting.instance == beacon.instance);
        // In a large cluster a few look after it; gossip tells the others.
        if fresh || !self.is_one_of_few() {
            return;
        }
        let Some(cluster) = self.cluster_mut() else { return };
        // Its record was lost, or never came: without its session key only an introduction helps.
        if cluster.roster.record(&beacon.node).is_none() {
            if !self.streams.is_busy_with(&beacon.node)
                && self.discovery.may_introduce(beacon.node, INTRODUCTION_GAP, now)
            {
                self.connect(Kind::Stranger, Purpose::Introduce, beacon.node, path.address);
            }
            return;
        }
        cluster.sessions.suggest(beacon.node, path);
        cluster.dials.remove(&beacon.node);
        cluster.dials_of = None;
        if beacon.solicits && self.discovery.answers.allow(path.address.ip(), now) {
            self.beacon_to(path, false);
        }
        self.with_sessions(|sessions, context| sessions.open(beacon.node, context));
    }

    /// Whether this node is one of about eight, of all that hear the same.
    fn is_one_of_few(&mut self) -> bool {
        let fellows = self.cluster().map_or(0, |cluster| cluster.gossip.up());
        self.is_drawn(fellows.max(self.discovery.crowd.size()))
    }

    /// Whether this node is one of about eight, of the members that are up. What is heard of others does not count here:
    /// whoever has the join key can sound like a crowd.
    pub(super) fn is_one_of_few_members(&mut self) -> bool {
        let fellows = self.cluster().map_or(0, |cluster| cluster.gossip.up());
        self.is_drawn(fellows)
    }

    fn is_drawn(&mut self, others: usize) -> bool {
        let nodes = others as u32 + 1;
        nodes <= ANSWERERS || self.rng.random_range(0..nodes) < ANSWERERS
    }
}

fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}
