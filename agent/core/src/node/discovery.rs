// SPDX-License-Identifier: Apache-2.0
//! Beacons: when they are sent, and what hearing one leads to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, RngExt};

use super::ctx::ANSWERERS;
use super::dialer::enough_open;
use super::streams::Purpose;
use super::{Node, Place};
use crate::beacon::{Beacon, DATAGRAM_BEACON};
use crate::command::Command;
use crate::consts::{AGENT_PORT, MAX_DATAGRAM, MAX_WIDE_DATAGRAM, WIRE_VERSION};
use crate::id::{ClusterId, NodeId};
use crate::limit::Limiter;
use crate::record::is_endpoint;
use crate::repeats::Repeats;
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
/// How long a member counts as new: a thousand nodes that boot at once know each other by then, on slow machines too.
const NEW_FOR: Duration = Duration::from_secs(30);
const MAX_STRANGERS: usize = 256;
/// Introductions to members of a cluster that are tried at once.
const MAX_SEEKING: usize = 2;
const MAX_REMEMBERED: usize = 4096;
/// Beacons of which it is remembered that they came.
const REPEATS: usize = 16_384;
/// One beacon to all comes by IPv4 and by IPv6, by each of a few cards.
const PER_BEACON: u8 = 8;
/// Addresses whence a member of a cluster answered us, and how long such an answer is worth an introduction.
const MAX_SENDERS: usize = 64;
const SENDER_FOR: Duration = Duration::from_secs(5);
/// Addresses whence somebody named us, and how long a stream from there is expected.
const MAX_EXPECTED: usize = 256;
const EXPECTED_FOR: Duration = Duration::from_secs(10);
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
    /// Answers to who asks this node by its instance: who has no key can record no such question in advance, so the flood that
    /// uses up the others leaves these.
    answers_by_name: Limiter,
    /// Questions to nodes that say they have a cluster.
    questions: Limiter,
    introduced: BTreeMap<NodeId, Duration>,
    crowd: Crowd,
    /// Nodes without a cluster, where each was heard last, under which instance, and when.
    strangers: BTreeMap<NodeId, (Path, [u8; 8], Duration)>,
    /// Members of a cluster that answered us and were not tried yet.
    senders: BTreeMap<IpAddr, Sender>,
    /// Those that were tried just now, and where.
    sought: BTreeMap<(NodeId, IpAddr), Duration>,
    /// Whence somebody named us, and when.
    expected: BTreeMap<IpAddr, Duration>,
    /// Nodes that should begin the first handshake, or that we should be told of, and since when.
    waiting: BTreeMap<NodeId, Duration>,
}

/// A member of a cluster that is not ours.
#[derive(Clone, Copy)]
struct Sender {
    node: NodeId,
    instance: [u8; 8],
    cluster: ClusterId,
    path: Path,
    heard: Duration,
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
    pub(super) fn new(now: Duration, rng: &mut StdRng) -> Self {
        Self {
            next: now,
            last: now,
            wait: FIRST,
            put_off: false,
            heard_before: Repeats::new(PER_BEACON, REPEATS, rng.next_u64()),
            answers: Limiter::new(2, 6, 100, rng.next_u64()),
            answers_by_name: Limiter::new(2, 6, 100, rng.next_u64()),
            questions: Limiter::of_each(4, 8, rng.next_u64()),
            introduced: BTreeMap::new(),
            crowd: Crowd::default(),
            strangers: BTreeMap::new(),
            senders: BTreeMap::new(),
            sought: BTreeMap::new(),
            expected: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Something changed: solicit fast again.
    pub(super) fn restart(&mut self, now: Duration) {
        self.next = self.next.min(now + FIRST / 2);
        self.wait = FIRST;
    }

    /// A node without a cluster was heard.
    fn hear_stranger(&mut self, node: NodeId, path: Path, instance: [u8; 8], now: Duration) {
        if self.strangers.len() >= MAX_STRANGERS {
            self.strangers.retain(|_, (_, _, heard)| now.saturating_sub(*heard) < INVITED_AFTER);
        }
        if self.strangers.len() < MAX_STRANGERS {
            self.strangers.insert(node, (path, instance, now));
        }
    }

    /// A member of a cluster answered us. The newest counts for its address; of too many addresses any gives way.
    fn remember(&mut self, sender: Sender, rng: &mut StdRng) {
        self.senders.insert(sender.path.address.ip(), sender);
        if self.senders.len() > MAX_SENDERS
            && let Some(other) = self.senders.keys().choose(rng).copied()
        {
            self.senders.remove(&other);
        }
    }

    /// Whether a node may be tried again at an address; notes it if so.
    fn may_seek(&mut self, sender: &Sender, now: Duration) -> bool {
        self.sought.retain(|_, last| now.saturating_sub(*last) < INTRODUCTION_GAP);
        let place = (sender.node, sender.path.address.ip());
        let may = self.sought.len() < MAX_SENDERS && !self.sought.contains_key(&place);
        if may {
            self.sought.insert(place, now);
        }
        may
    }

    /// Somebody named us: a stream from there is more than a stranger's.
    fn expect(&mut self, ip: IpAddr, now: Duration) {
        if self.expected.len() >= MAX_EXPECTED {
            self.expected.retain(|_, heard| now.saturating_sub(*heard) < EXPECTED_FOR);
        }
        if self.expected.len() < MAX_EXPECTED || self.expected.contains_key(&ip) {
            self.expected.insert(ip, now);
        }
    }

    /// Whether somebody with the join key is at an address, as far as a fresh beacon says.
    pub(super) fn is_expected(&self, ip: IpAddr, now: Duration) -> bool {
        self.expected.get(&ip).is_some_and(|heard| now.saturating_sub(*heard) < EXPECTED_FOR)
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
        assert!(self.strangers.len() <= MAX_STRANGERS && self.senders.len() <= MAX_SENDERS);
        assert!(self.expected.len() <= MAX_EXPECTED && self.sought.len() <= MAX_SENDERS);
        self.heard_before.assert_bounded();
    }
}

impl Node {
    /// Sends beacons when it is time.
    pub(super) fn beacon_tick(&mut self) {
        let now = self.ctx.boottime();
        if now < self.discovery.next || self.join.is_none() || matches!(self.place, Place::Left(_)) {
            return;
        }
        // Where each answer is too much: who asks to be let in needs no more, unless it asks in vain.
        let asking = self.cluster().is_none() && self.streams.outbound_for(Purpose::Seek) > 0;
        if asking && self.ctx.load.is_busy() && !std::mem::replace(&mut self.discovery.put_off, true) {
            self.discovery.next = now + self.ctx.jitter(FIRST);
            return;
        }
        self.discovery.put_off = false;
        let settled = self.cluster().is_some_and(|cluster| {
            let up = |id| id == self.me || cluster.membership.gossip().state(&id) == Some(MemberState::Up);
            cluster.dialer.out_of_reach().is_empty() && cluster.membership.roster().members().all(up)
        });
        let wait = if settled { SETTLED } else { self.discovery.wait };
        self.discovery.wait = (self.discovery.wait * 2).min(SEARCHING_MAX);
        // Who was just admitted knows few as up, but has heard how many there are.
        let about = if self.cluster().is_some() { self.nodes_about() + 1 } else { 1 };
        self.discovery.next = now
            + self.ctx.jitter(
                wait.mul_f64((f64::from(about) / f64::from(BEACON_EVERY)).max(1.0))
                    + self.ctx.load.late() * PER_LATE,
            );
        if self.is_new() {
            self.discovery.next = self.discovery.next.min(now + NEW_FOR);
        }
        self.solicit();
    }

    /// One beacon on each physical interface and to each seed.
    fn solicit(&mut self) {
        self.discovery.last = self.ctx.boottime();
        let Some(bytes) = self.beacon(true, None) else { return };
        let links: Vec<(u32, bool, bool)> = self
            .links
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
            let only_v6 = crowd && v4 && v6 && self.ctx.rng.random();
            let (v4, v6) = (v4 && !only_v6, v6 && (!crowd || !v4 || only_v6));
            if v6 {
                self.ctx.push(Command::Multicast { interface, bytes: bytes.clone() });
            }
            if v4 {
                self.ctx.push(Command::Broadcast { interface, bytes: bytes.clone() });
            }
        }
        let seeds =
            self.provisioning.settings.as_ref().map(|settings| settings.seeds.clone()).unwrap_or_default();
        for seed in seeds {
            let bytes = bytes.clone();
            self.ctx.push(match seed {
                Seed::Address(to) => Command::SendDatagram { to, interface: 0, bytes },
                Seed::Name { host, port } => Command::SendToName { host, port, bytes },
            });
        }
    }

    fn beacon(&mut self, solicits: bool, to: Option<[u8; 8]>) -> Option<Vec<u8>> {
        let cluster = self.cluster().map(|cluster| cluster.membership.roster().cluster());
        let beacon = Beacon { node: self.me, instance: self.instance, cluster, solicits, to };
        let mut nonce = [0; 24];
        self.ctx.rng.fill_bytes(&mut nonce);
        self.join.as_ref().map(|join| beacon.to_datagram(&join.seal, nonce))
    }

    /// One beacon to one path, and for the node of this instance if it is known.
    pub(super) fn beacon_to(&mut self, path: Path, solicits: bool, to: Option<[u8; 8]>) {
        if let Some(bytes) = self.beacon(solicits, to) {
            self.ctx.push(Command::SendDatagram { to: path.address, interface: path.interface, bytes });
        }
    }

    /// We were just let in. On a machine that has too much to do others wait for what we waited for, and those who were there
    /// first have no time for them.
    pub(super) fn invite(&mut self) {
        let now = self.ctx.boottime();
        let heard = std::mem::take(&mut self.discovery.strangers);
        if !self.ctx.load.is_busy() {
            return;
        }
        let is_member =
            |node: &NodeId| self.cluster().is_some_and(|cluster| cluster.membership.roster().is_member(node));
        let waiting: Vec<(Path, [u8; 8])> = heard
            .into_iter()
            .filter(|(node, (_, _, heard))| now.saturating_sub(*heard) < INVITED_AFTER && !is_member(node))
            .map(|(_, (path, instance, _))| (path, instance))
            .collect();
        let chosen: Vec<_> = waiting.sample(&mut self.ctx.rng, INVITED).copied().collect();
        for (path, instance) in chosen {
            self.beacon_to(path, false, Some(instance));
        }
        if self.nodes_about() >= BEACON_EVERY {
            self.discovery.next = now + self.ctx.jitter(CROWD_BEACON);
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
            _ if bytes.len() > limit => self.ctx.rejects.count("datagram too large"),
            _ if !is_endpoint(&from) => self.ctx.rejects.count("datagram from an impossible address"),
            [WIRE_VERSION, DATAGRAM_BEACON, ..] => self.heard_beacon(path, bytes),
            [WIRE_VERSION, kind, ..] => {
                let kind = *kind;
                self.with_sessions(|sessions, context| sessions.handle(kind, path, bytes, context));
            }
            _ => self.ctx.rejects.count("datagram of another version"),
        }
    }

    fn heard_beacon(&mut self, path: Path, bytes: &[u8]) {
        let now = self.ctx.boottime();
        let Some(join) = &self.join else { return };
        // That costs as much as to remember who sends them would, and garbage cannot use up anybody's share of anything.
        let Ok(beacon) = Beacon::open(&join.seal, bytes) else {
            return self.ctx.rejects.count("beacon under another join key");
        };
        // One to a single node comes once.
        let heard_before = &mut self.discovery.heard_before;
        let repeated = match beacon.to {
            Some(_) => heard_before.came_before(bytes, now),
            None => heard_before.too_often(bytes, now),
        };
        if repeated {
            return self.ctx.rejects.count("beacon heard before");
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
        let names_us = beacon.to == Some(self.instance);
        if names_us {
            self.discovery.expect(path.address.ip(), now);
            self.streams.expect(path.address.ip());
        }
        let mine = self.cluster().map(|cluster| cluster.membership.roster().cluster());
        let fellow = mine.is_some()
            && beacon.cluster == mine
            && self.cluster().is_some_and(|cluster| cluster.membership.roster().is_member(&beacon.node));
        if fellow {
            self.heard_fellow(beacon, path);
            return;
        }
        self.discovery.crowd.hear(beacon.node, now);
        if mine.is_none() && beacon.cluster.is_none() {
            self.discovery.hear_stranger(beacon.node, path, beacon.instance, now);
        }
        // Who beacons itself in a moment need not answer now.
        let soon = mine.is_none() && self.discovery.next < now + ANSWERED_BY_BEACON;
        if beacon.solicits && (names_us || (!soon && self.ctx.is_drawn(self.nodes_about(), ANSWERS))) {
            self.answer_beacon(&beacon, path);
        }
        match (mine, beacon.cluster) {
            // It will come to us; we only answer.
            (Some(_), None) => {}
            (None, None) => self.heard_other_without_cluster(beacon.node, path),
            (Some(mine), Some(cluster)) if mine == cluster => self.heard_unknown_fellow(beacon.node, path),
            (_, Some(cluster)) => {
                let Beacon { node, instance, .. } = beacon;
                self.heard_of_cluster(Sender { node, instance, cluster, path, heard: now }, names_us);
            }
        }
    }

    /// Shakes hands with another node without a cluster.
    fn heard_other_without_cluster(&mut self, node: NodeId, path: Path) {
        let now = self.ctx.boottime();
        // Streams are looked at last: most beacons of a crowd need no look.
        let enough = !self.wants_to_shake(&node)
            || self.streams.is_busy_with(&node)
            || self.streams.is_joining()
            || self.lets_the_other_begin(&node);
        if !enough && self.discovery.may_introduce(node, SHAKE_AGAIN, now) {
            self.connect(Kind::Stranger, Purpose::Introduce, node, path.address);
        }
    }

    /// One of our own cluster whom we do not know yet comes by push-pull too; a few make sure.
    fn heard_unknown_fellow(&mut self, node: NodeId, path: Path) {
        let now = self.ctx.boottime();
        let enough = self.streams.is_busy_with(&node)
            || self.seeking() >= MAX_SEEKING
            || self.streams.is_tried_at(path.address.ip())
            || !self.goes_and_sees(node);
        if !enough && self.discovery.may_introduce(node, INTRODUCTION_GAP, now) {
            self.connect(Kind::Stranger, Purpose::Seek, node, path.address);
        }
    }

    /// A node says that it has a cluster, and we have none or another one. What it answers us is worth an introduction. All else
    /// may have been recorded, and somebody else's address may be where it comes from: it is asked, by its name, and answers.
    fn heard_of_cluster(&mut self, sender: Sender, names_us: bool) {
        let now = self.ctx.boottime();
        if self.cluster().is_none() {
            self.founding.named_cluster(now);
        }
        if names_us {
            // The first one is tried at once, and chance chooses among those that answered besides: not who is fastest.
            if self.seeking() > 0 || !self.seek(sender) {
                self.discovery.remember(sender, &mut self.ctx.rng);
            }
        } else if self.seeking() < MAX_SEEKING
            && !self.is_let_in()
            && self.discovery.questions.allow(sender.path.address.ip(), now)
        {
            self.beacon_to(sender.path, true, Some(sender.instance));
        }
    }

    /// Tries those that answered us.
    pub(super) fn seek_tick(&mut self) {
        if self.discovery.senders.is_empty() {
            return;
        }
        let now = self.ctx.boottime();
        let mine = self.cluster().map(|cluster| cluster.membership.roster().cluster());
        let left = matches!(self.place, Place::Left(_));
        self.discovery.senders.retain(|_, sender| {
            !left && Some(sender.cluster) != mine && now.saturating_sub(sender.heard) < SENDER_FOR
        });
        while self.seeking() < MAX_SEEKING {
            let senders = self.discovery.senders.iter().filter(|(_, sender)| self.may_try(sender));
            let senders: Vec<IpAddr> = senders.map(|(ip, _)| *ip).collect();
            let Some(ip) = senders.choose(&mut self.ctx.rng) else { return };
            if let Some(sender) = self.discovery.senders.remove(ip) {
                self.seek(sender);
            }
        }
    }

    /// Whether nothing else is under way with a member of a cluster. At one address one is tried until it answers the handshake.
    /// Its answer may have been sent on from another address: what was tried there in vain keeps nobody from the true one.
    fn may_try(&self, sender: &Sender) -> bool {
        !self.is_let_in()
            && !self.streams.is_tried(&sender.node, self.ctx.boottime(), self.ctx.load.late())
            && !self.streams.is_tried_at(sender.path.address.ip())
    }

    /// Asks a member of a cluster to let us in. Gives whether it is tried.
    fn seek(&mut self, sender: Sender) -> bool {
        let tries = self.may_try(&sender) && self.discovery.may_seek(&sender, self.ctx.boottime());
        if tries {
            // So that it expects us.
            self.beacon_to(sender.path, false, Some(sender.instance));
            self.connect(Kind::Stranger, Purpose::Seek, sender.node, sender.path.address);
        }
        tries
    }

    /// Whether a node without a cluster is being let in.
    fn is_let_in(&self) -> bool {
        self.cluster().is_none() && self.streams.is_joining()
    }

    /// Introductions to members of a cluster that are under way.
    fn seeking(&self) -> usize {
        self.streams.seeking(self.ctx.boottime(), self.ctx.load.late())
    }

    /// Answers whoever asks, within limits. Beyond them a beacon to all answers everybody, or one who repeats others' beacons
    /// could use up the answers that a new node waits for.
    fn answer_beacon(&mut self, beacon: &Beacon, path: Path) {
        let (now, names_us) = (self.ctx.boottime(), beacon.to == Some(self.instance));
        let Discovery { answers, answers_by_name, .. } = &mut self.discovery;
        let share = if names_us { answers_by_name } else { answers };
        if share.allow(path.address.ip(), now) {
            self.beacon_to(path, false, Some(beacon.instance));
        } else if self.discovery.answers.is_used_up(now) {
            self.discovery.next = self.discovery.next.min(self.discovery.last + ANSWER_ALL);
        }
    }

    /// Whether another node without a cluster matters for who founds.
    fn wants_to_shake(&self, node: &NodeId) -> bool {
        let counts = self.provisioning.settings.as_ref().is_some_and(|settings| settings.expect.is_some());
        let now = self.ctx.boottime();
        let settling = !self.founding.has_listened(SHAKE_AFTER, now);
        let found_one =
            self.founding.knows_cluster() || self.founding.was_just_named(now) || self.seeking() > 0;
        if settling || found_one {
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
        let now = self.ctx.boottime();
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
        self.ctx.is_drawn(self.nodes_about(), few)
    }

    fn may_yet_be_told(&mut self, node: NodeId) -> bool {
        self.nodes_about() > ANSWERERS && self.waited_for(node) < TOLD_WITHIN
    }

    /// Since this was first asked.
    fn waited_for(&mut self, node: NodeId) -> Duration {
        if self.discovery.waiting.len() >= MAX_REMEMBERED {
            self.discovery.waiting.clear();
        }
        let now = self.ctx.boottime();
        now.saturating_sub(*self.discovery.waiting.entry(node).or_insert(now))
    }

    /// A member of our cluster is there: make sure of a session with it.
    fn heard_fellow(&mut self, beacon: Beacon, path: Path) {
        let now = self.ctx.boottime();
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
        let enough = enough_open(self.ctx.load);
        let Some(cluster) = self.cluster_mut() else { return };
        // Gossip vouches for it, and has enough sessions to do so. One opens when there is something to say.
        if !cluster.sessions.is_open(&beacon.node)
            && cluster.membership.gossip().state(&beacon.node) == Some(MemberState::Up)
            && cluster.sessions.open_peers().len() >= enough
        {
            return;
        }
        // Its record was lost, or never came: without its session key only an introduction helps.
        if cluster.membership.roster().record(&beacon.node).is_none() {
            if !self.streams.is_busy_with(&beacon.node)
                && !self.may_yet_be_told(beacon.node)
                && self.discovery.may_introduce(beacon.node, INTRODUCTION_GAP, now)
            {
                self.connect(Kind::Stranger, Purpose::Introduce, beacon.node, path.address);
            }
            return;
        }
        cluster.sessions.suggest(beacon.node, path);
        cluster.dialer.dial_anew(&beacon.node);
        if beacon.solicits {
            self.answer_beacon(&beacon, path);
        }
        self.with_sessions(|sessions, context| {
            if !sessions.doubt(beacon.node, path, context) {
                sessions.open(beacon.node, context);
            }
        });
    }

    /// Whether this node is one of about eight, of all that hear the same.
    fn is_one_of_few(&mut self) -> bool {
        self.ctx.is_drawn(self.nodes_about(), ANSWERERS)
    }

    /// Number of other nodes. A member counts the members that are up: anybody with the join key can sound like a crowd, and a
    /// member that takes turns with a crowd hardly ever answers. A new member also counts the nodes it hears, because a
    /// thousand others may be joining with it.
    fn nodes_about(&self) -> u32 {
        let heard = self.discovery.crowd.size();
        let counts = if self.is_new() { heard } else { 0 };
        self.cluster().map_or(heard, |cluster| cluster.membership.gossip().up().max(counts)) as u32
    }

    /// Whether this node joined other members less than [`NEW_FOR`] ago. A founder that is still alone is not new: nobody else
    /// can answer for its cluster.
    fn is_new(&self) -> bool {
        self.cluster().is_some_and(|cluster| {
            self.ctx.boottime().saturating_sub(cluster.membership.since()) < NEW_FOR
                && cluster.membership.roster().members().nth(1).is_some()
        })
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
