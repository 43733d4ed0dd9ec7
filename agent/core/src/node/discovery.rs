// SPDX-License-Identifier: Apache-2.0
//! Beacons: when they are sent, and what hearing one leads to.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

use super::streams::Purpose;
use super::{Node, Place};
use crate::beacon::{Beacon, DATAGRAM_BEACON};
use crate::command::Command;
use crate::consts::{AGENT_PORT, MAX_DATAGRAM, MAX_WIDE_DATAGRAM, WIRE_VERSION};
use crate::id::NodeId;
use crate::limit::Limiter;
use crate::record::is_endpoint;
use crate::session::{DATAGRAM_TRANSPORT, Path};
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
/// About so many nodes look after one that is heard, however many hear it.
const ANSWERERS: u32 = 8;
/// About so many answer the beacon of a stranger. It beacons again soon.
const ANSWERS: u32 = 5;
/// A crowd that joins tells each other of each within so long.
const TOLD_WITHIN: Duration = Duration::from_secs(2);
/// About so many do not wait for that: if all did, all would ask the few that know more.
const GO_AND_SEE: u32 = 2;
/// A node without a cluster that beacons itself this soon does not answer.
const ANSWERED_BY_BEACON: Duration = Duration::from_secs(1);
/// Members of a larger cluster beacon more rarely, so that a LAN hears as many beacons as from a cluster of this size.
const BEACON_EVERY: u32 = 32;
/// A node without a cluster shakes hands with so many others like it; beyond that only with lower ids, because only the
/// lowest counts. A thousand that are switched on at once would else shake hands half a million times.
const ENOUGH_SHAKEN: usize = 6;
/// It begins with that so long after its network came up: until then a member may have answered, and there is nothing to
/// found.
const SHAKE_AFTER: Duration = Duration::from_millis(700);
/// On a machine that has too much to do beacons are that much rarer: so many times what ticks are late.
const PER_LATE: u32 = 4;
/// Who was just let in on a busy machine tells so many of the nodes without a cluster that it heard before where there is one.
/// So a crowd comes in as a tree, and not all to the few that were there first.
const INVITED: usize = 4;
/// Those that were heard this recently; who was not will beacon again.
const INVITED_AFTER: Duration = Duration::from_secs(3);
/// In a crowd, who was let in need not beacon at once: those who let it in speak for it, and it invites by name.
const CROWD_BEACON: Duration = Duration::from_secs(2);
const MAX_STRANGERS: usize = 256;
/// Introductions to members of a cluster that are tried at once.
const MAX_SEEKING: usize = 2;
const MAX_REMEMBERED: usize = 4096;
/// Beacons of which it is remembered that they came, 16 bytes each.
const REPEATS: usize = 2048;
/// One beacon comes by IPv4 and by IPv6, by each of a few cards.
const PER_BEACON: u8 = 8;
/// An introduction is tried at an address where nobody answers for so long before others may be tried beside it.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// When more ask than are answered one by one, all are answered at once, at most so often.
const ANSWER_ALL: Duration = Duration::from_secs(1);

/// Schedule of our beacons and memory of introductions.
pub(super) struct Discovery {
    next: Duration,
    /// When one went to all.
    last: Duration,
    wait: Duration,
    /// The next one was put off, because we were asking to be let in.
    put_off: bool,
    heard_before: Repeats,
    answers: Limiter,
    introduced: BTreeMap<NodeId, Duration>,
    crowd: Crowd,
    /// Nodes without a cluster, where and when each was heard last.
    strangers: BTreeMap<NodeId, (Path, Duration)>,
    /// Nodes that should begin the first handshake, or that we should be told of, and since when.
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

/// Who cannot seal beacons can still repeat those of others, from any address. One that is heard again and again says nothing
/// new: it is left out, so that those of nodes that are there are not lost among its repetitions.
struct Repeats {
    secret: u64,
    /// By a secret hash of what was sealed: that hash and how often it came.
    cells: Vec<(u64, u8)>,
}

impl Repeats {
    fn new(secret: u64) -> Self {
        Self { secret, cells: Vec::new() }
    }

    /// Whether a beacon came too often already; counts it.
    fn too_often(&mut self, beacon: &[u8]) -> bool {
        if self.cells.is_empty() {
            self.cells = vec![(0, 0); REPEATS];
        }
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.secret);
        hasher.write(beacon);
        let hash = hasher.finish();
        let cell = &mut self.cells[hash as usize % REPEATS];
        if cell.0 != hash {
            *cell = (hash, 0);
        }
        cell.1 = cell.1.saturating_add(1);
        cell.1 > PER_BEACON
    }
}

impl Discovery {
    pub(super) fn new(now: Duration, rng: &mut StdRng) -> Self {
        Self {
            next: now,
            last: now,
            wait: FIRST,
            put_off: false,
            heard_before: Repeats::new(rng.next_u64()),
            answers: Limiter::new(2, 6, 100, rng.next_u64()),
            introduced: BTreeMap::new(),
            crowd: Crowd::default(),
            strangers: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Something changed: solicit fast again.
    pub(super) fn restart(&mut self, now: Duration) {
        self.next = self.next.min(now + FIRST / 2);
        self.wait = FIRST;
    }

    /// A node without a cluster was heard.
    fn hear_stranger(&mut self, node: NodeId, path: Path, now: Duration) {
        if self.strangers.len() >= MAX_STRANGERS {
            self.strangers.retain(|_, (_, heard)| now.saturating_sub(*heard) < INVITED_AFTER);
        }
        if self.strangers.len() < MAX_STRANGERS {
            self.strangers.insert(node, (path, now));
        }
    }

    /// Whether a node may be introduced to again; notes it if so.
    pub(super) fn may_introduce(&mut self, node: NodeId, gap: Duration, now: Duration) -> bool {
        if self.introduced.get(&node).is_some_and(|last| now.saturating_sub(*last) < gap) {
            return false;
        }
        if self.introduced.len() >= MAX_REMEMBERED {
            self.introduced.retain(|_, last| now.saturating_sub(*last) < Duration::from_secs(60));
        }
        // Whoever has the join key can name any number of nodes; that must not keep others out.
        if self.introduced.len() >= MAX_REMEMBERED
            && let Some(oldest) = self.introduced.iter().min_by_key(|(_, last)| **last).map(|(node, _)| *node)
        {
            self.introduced.remove(&oldest);
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
        assert!(self.strangers.len() <= MAX_STRANGERS);
    }
}

impl Node {
    /// Sends beacons when it is time.
    pub(super) fn beacon_tick(&mut self) {
        let now = self.now.boottime;
        if now < self.discovery.next || self.join.is_none() || matches!(self.place, Place::Left(_)) {
            return;
        }
        // Where each answer is too much: who asks to be let in needs no more, unless it asks in vain.
        let asking = self.cluster().is_none() && self.streams.outbound_for(Purpose::Seek) > 0;
        if asking && self.is_busy() && !std::mem::replace(&mut self.discovery.put_off, true) {
            self.discovery.next = now + self.jitter(FIRST);
            return;
        }
        self.discovery.put_off = false;
        let settled = self.cluster().is_some_and(|cluster| {
            let up = |id| id == self.me || cluster.gossip.state(&id) == Some(MemberState::Up);
            cluster.watched.out_of_reach.is_empty() && cluster.roster.members().all(up)
        });
        let wait = if settled { SETTLED } else { self.discovery.wait };
        self.discovery.wait = (self.discovery.wait * 2).min(SEARCHING_MAX);
        // Who was just admitted knows few as up, but has heard how many there are.
        let about = if self.cluster().is_some() { self.nodes_about() + 1 } else { 1 };
        self.discovery.next = now
            + self.jitter(
                wait.mul_f64((f64::from(about) / f64::from(BEACON_EVERY)).max(1.0)) + self.late * PER_LATE,
            );
        self.solicit();
    }

    /// One beacon on each physical interface and to each seed.
    fn solicit(&mut self) {
        self.discovery.last = self.now.boottime;
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
        // In a crowd each beacon goes by one of the two: who misses it there hears the next one.
        let crowd = self.nodes_about() >= BEACON_EVERY;
        for (interface, v4, v6) in links {
            let only_v6 = crowd && v4 && v6 && self.rng.random();
            let (v4, v6) = (v4 && !only_v6, v6 && (!crowd || !v4 || only_v6));
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

    /// We were just let in. On a machine that has too much to do others wait for what we waited for, and those who were there
    /// first have no time for them.
    pub(super) fn invite(&mut self) {
        let now = self.now.boottime;
        let heard = std::mem::take(&mut self.discovery.strangers);
        if !self.is_busy() {
            return;
        }
        let is_member = |node: &NodeId| self.cluster().is_some_and(|cluster| cluster.roster.is_member(node));
        let waiting: Vec<Path> = heard
            .into_iter()
            .filter(|(node, (_, heard))| now.saturating_sub(*heard) < INVITED_AFTER && !is_member(node))
            .map(|(_, (path, _))| path)
            .collect();
        for path in waiting.sample(&mut self.rng, INVITED) {
            self.beacon_to(*path, false);
        }
        if self.nodes_about() >= BEACON_EVERY {
            self.discovery.next = now + self.jitter(CROWD_BEACON);
        }
    }

    /// A datagram arrived.
    pub(super) fn datagram(&mut self, from: SocketAddr, interface: u32, bytes: &[u8]) {
        let from = with_scope(unmapped(from), interface);
        let path = Path { address: from, interface: if needs_interface(&from) { interface } else { 0 } };
        if matches!(self.place, Place::Left(_)) {
            return;
        }
        let limit = match bytes {
            [_, DATAGRAM_TRANSPORT, ..] => MAX_WIDE_DATAGRAM,
            _ => MAX_DATAGRAM,
        };
        match bytes {
            _ if bytes.len() > limit => self.rejects.count("datagram too large"),
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
        // That costs as much as to remember who sends them would, and garbage cannot use up anybody's share of anything.
        let Ok(beacon) = Beacon::open(&join.seal, bytes) else {
            return self.rejects.count("beacon under another join key");
        };
        if self.discovery.heard_before.too_often(bytes) {
            return self.rejects.count("beacon heard before");
        }
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
        if mine.is_none() && beacon.cluster.is_none() {
            self.discovery.hear_stranger(beacon.node, path, now);
        }
        // Who beacons itself in a moment need not answer now.
        let soon = mine.is_none() && self.discovery.next < now + ANSWERED_BY_BEACON;
        if beacon.solicits && !soon && self.is_drawn(self.nodes_about(), ANSWERS) {
            self.answer_beacon(path);
        }
        let gap = match (mine, beacon.cluster) {
            // It will come to us; we only answer.
            (Some(_), None) => return,
            (None, None) => SHAKE_AGAIN,
            _ => INTRODUCTION_GAP,
        };
        let purpose = if beacon.cluster.is_some() { Purpose::Seek } else { Purpose::Introduce };
        let seeking = self.streams.seeking(now.saturating_sub(ANSWERS_WITHIN + self.late * 2));
        let streams = &self.streams;
        let busy = || streams.is_busy_with(&beacon.node) || (mine.is_none() && streams.is_joining());
        let enough = match purpose {
            // One of our own cluster whom we do not know yet comes by push-pull too; a few make sure.
            Purpose::Seek => {
                busy()
                    || seeking >= MAX_SEEKING
                    || (mine == beacon.cluster && !self.goes_and_sees(beacon.node))
            }
            // Streams are looked at last: most beacons of a crowd need no look.
            _ => !self.wants_to_shake(&beacon.node) || busy() || self.lets_the_other_begin(&beacon.node),
        };
        if !enough && self.discovery.may_introduce(beacon.node, gap, now) {
            self.connect(Kind::Stranger, purpose, beacon.node, path.address);
        }
    }

    /// Answers whoever asks, within limits. Beyond them a beacon to all answers everybody, or one who repeats others' beacons
    /// could use up the answers that a new node waits for.
    fn answer_beacon(&mut self, path: Path) {
        let now = self.now.boottime;
        if self.discovery.answers.allow(path.address.ip(), now) {
            self.beacon_to(path, false);
        } else if self.discovery.answers.is_used_up(now) {
            self.discovery.next = self.discovery.next.min(self.discovery.last + ANSWER_ALL);
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
        self.waited_for(*node) < BEGIN_ANYWAY
    }

    /// Whether this node shakes hands with one of its own cluster whom it does not know: one or two of a crowd do at once,
    /// the others once they should have been told of it.
    fn goes_and_sees(&mut self, node: NodeId) -> bool {
        let few = if self.may_yet_be_told(node) { GO_AND_SEE } else { ANSWERERS };
        self.is_drawn(self.nodes_about(), few)
    }

    fn may_yet_be_told(&mut self, node: NodeId) -> bool {
        self.nodes_about() > ANSWERERS && self.waited_for(node) < TOLD_WITHIN
    }

    /// Since this was first asked.
    fn waited_for(&mut self, node: NodeId) -> Duration {
        if self.discovery.waiting.len() >= MAX_REMEMBERED {
            self.discovery.waiting.clear();
        }
        let now = self.now.boottime;
        now.saturating_sub(*self.discovery.waiting.entry(node).or_insert(now))
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
        let enough = self.enough_open();
        let Some(cluster) = self.cluster_mut() else { return };
        // Gossip vouches for it, and has enough sessions to do so. One opens when there is something to say.
        if !cluster.sessions.is_open(&beacon.node)
            && cluster.gossip.state(&beacon.node) == Some(MemberState::Up)
            && cluster.sessions.open_peers().len() >= enough
        {
            return;
        }
        // Its record was lost, or never came: without its session key only an introduction helps.
        if cluster.roster.record(&beacon.node).is_none() {
            if !self.streams.is_busy_with(&beacon.node)
                && !self.may_yet_be_told(beacon.node)
                && self.discovery.may_introduce(beacon.node, INTRODUCTION_GAP, now)
            {
                self.connect(Kind::Stranger, Purpose::Introduce, beacon.node, path.address);
            }
            return;
        }
        cluster.sessions.suggest(beacon.node, path);
        cluster.dials.remove(&beacon.node);
        cluster.dials_of = None;
        if beacon.solicits {
            self.answer_beacon(path);
        }
        self.with_sessions(|sessions, context| sessions.open(beacon.node, context));
    }

    /// Whether this node is one of about eight, of all that hear the same.
    fn is_one_of_few(&mut self) -> bool {
        self.is_drawn(self.nodes_about(), ANSWERERS)
    }

    /// How many others there are, members and such as were only heard.
    fn nodes_about(&self) -> u32 {
        let fellows = self.cluster().map_or(0, |cluster| cluster.gossip.up());
        fellows.max(self.discovery.crowd.size()) as u32
    }

    /// Whether this node is one of about eight, of the members that are up. What is heard of others does not count here:
    /// whoever has the join key can sound like a crowd.
    pub(super) fn is_one_of_few_members(&mut self) -> bool {
        let fellows = self.cluster().map_or(0, |cluster| cluster.gossip.up());
        self.is_drawn(fellows as u32, ANSWERERS)
    }

    fn is_drawn(&mut self, others: u32, few: u32) -> bool {
        others < few || self.rng.random_range(0..=others) < few
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
