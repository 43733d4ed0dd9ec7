// SPDX-License-Identifier: Apache-2.0
//! Beacons: when they are sent, what hearing one leads to, and who founds when nobody answers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

use super::crowd::Crowd;
use super::ctx::Ctx;
use super::founding::Founding;
use super::links::Links;
use super::membership::Membership;
use super::senders::{Sender, Senders};
use super::streams::{Purpose, Streams};
use crate::beacon::{Beacon, Seal};
use crate::command::{Command, NetCommand};
use crate::consts::AGENT_PORT;
use crate::consts::ctx::ANSWERERS;
use crate::consts::discovery::*;
use crate::id::{ClusterId, NodeId};
use crate::limit::Limiter;
use crate::record::is_endpoint;
use crate::repeats::Repeats;
use crate::session::Path;
use crate::settings::{Seed, Settings};

/// Schedule of our beacons and memory of introductions.
pub(super) struct Discovery {
    founding: Founding,
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
    senders: Senders,
    /// Whence somebody named us, and when.
    expected: BTreeMap<IpAddr, Duration>,
    /// Nodes that should begin the first handshake, or that we should be told of, and since when.
    waiting: BTreeMap<NodeId, Duration>,
}

/// What discovery needs to know of the node.
pub(super) struct Around<'a> {
    pub(super) me: NodeId,
    pub(super) instance: [u8; 8],
    pub(super) seal: &'a Seal,
    /// The cluster that the node belongs to.
    pub(super) membership: Option<&'a Membership>,
    /// There are members that others reach and this node does not.
    pub(super) lacks_paths: bool,
    pub(super) streams: &'a Streams,
    pub(super) links: &'a Links,
    pub(super) settings: Option<&'a Settings>,
}

/// What a beacon leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reaction {
    #[default]
    Nothing,
    /// An introduction to the node, where the beacon came from.
    Introduce(Purpose),
    /// A member of this node's own cluster is there.
    Fellow,
}

impl Around<'_> {
    fn cluster(&self) -> Option<ClusterId> {
        self.membership.map(|membership| membership.roster().cluster())
    }

    /// Whether this node joined other members less than [`NEW_FOR`] ago. A founder that is still alone is not new: nobody else
    /// can answer for its cluster.
    fn is_new(&self, now: Duration) -> bool {
        self.membership.is_some_and(|membership| {
            now.saturating_sub(membership.since()) < NEW_FOR && membership.others().next().is_some()
        })
    }

    /// Whether a node without a cluster is being let in.
    fn is_let_in(&self) -> bool {
        self.membership.is_none() && self.streams.is_joining()
    }

    /// Introductions to members of a cluster that are under way.
    fn seeking(&self, ctx: &Ctx) -> usize {
        self.streams.seeking(ctx.boottime(), ctx.load.late())
    }

    /// Whether nothing else is under way with a member of a cluster. At one address one is tried until it answers the
    /// handshake. Its answer may have been sent on from another address: what was tried there in vain keeps nobody from the
    /// true one.
    fn may_try(&self, sender: &Sender, ctx: &Ctx) -> bool {
        !self.is_let_in()
            && !self.streams.is_tried(&sender.node, ctx.boottime(), ctx.load.late())
            && !self.streams.is_tried_at(sender.path.address.ip())
    }

    fn expects(&self) -> Option<u32> {
        self.settings.and_then(|settings| settings.expect)
    }
}

impl Discovery {
    pub(super) fn new(now: Duration, rng: &mut StdRng) -> Self {
        Self {
            founding: Founding::default(),
            next: now,
            last: now,
            wait: FIRST,
            put_off: false,
            heard_before: Repeats::new(PER_BEACON, REPEATS, rng.next_u64()),
            answers: Limiter::new(ANSWERED, rng.next_u64()),
            answers_by_name: Limiter::new(ANSWERED, rng.next_u64()),
            questions: Limiter::new(ASKED, rng.next_u64()),
            introduced: BTreeMap::new(),
            crowd: Crowd::default(),
            senders: Senders::default(),
            expected: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// What is known of other nodes without a cluster, and of clusters.
    pub(super) fn founding(&self) -> &Founding {
        &self.founding
    }

    /// Something changed: solicit fast again.
    pub(super) fn restart(&mut self, now: Duration) {
        self.next = self.next.min(now + FIRST / 2);
        self.wait = FIRST;
    }

    /// Another join key: what was heard under the old one means nothing.
    pub(super) fn forget_founding(&mut self, now: Duration) {
        self.founding.reset(now);
    }

    pub(super) fn note_network(&mut self, up: bool, now: Duration) {
        self.founding.interfaces(up, now);
    }

    /// A node without a cluster proved itself.
    pub(super) fn shook_hands(&mut self, node: NodeId, name: String, now: Duration) {
        self.founding.shaken(node, name, now);
    }

    /// A member of a cluster proved itself.
    pub(super) fn met_member(&mut self, node: &NodeId, now: Duration) {
        self.founding.heard_cluster(node, now);
    }

    /// Whether it is this node's turn to found.
    pub(super) fn founds(&mut self, around: &Around<'_>, ctx: &Ctx) -> bool {
        self.founding.tick(ctx.boottime());
        let introducing = around.streams.is_introducing();
        !around.streams.is_joining()
            && self.founding.is_turn_of(&around.me, around.expects(), introducing, ctx.boottime())
    }

    /// Sends beacons when it is time.
    pub(super) fn tick(&mut self, around: &Around<'_>, ctx: &mut Ctx) {
        let now = ctx.boottime();
        if now < self.next || ctx.outbox.is_failing() {
            return;
        }
        // Where each answer is too much: who asks to be let in needs no more, unless it asks in vain.
        let asking = around.membership.is_none() && around.streams.outbound_for(Purpose::Seek) > 0;
        if asking && ctx.load.is_busy() && !std::mem::replace(&mut self.put_off, true) {
            self.next = now + ctx.jitter(FIRST);
            return;
        }
        self.put_off = false;
        let settled = around.membership.is_some_and(|membership| {
            !around.lacks_paths && membership.others().all(|id| membership.is_up(&id))
        });
        let wait = if settled { SETTLED } else { self.wait };
        self.wait = (self.wait * 2).min(SEARCHING_MAX);
        // Who was just admitted knows few as up, but has heard how many there are.
        let about = if around.membership.is_some() { self.nodes_about(around, now) + 1 } else { 1 };
        let every = (f64::from(about) / f64::from(BEACON_EVERY)).max(1.0);
        self.next = now + ctx.jitter(wait.mul_f64(every) + ctx.load.late() * PER_LATE);
        if around.is_new(now) {
            self.next = self.next.min(now + NEW_FOR);
        }
        self.solicit(around, ctx);
    }

    /// One beacon on each physical interface and to each seed.
    fn solicit(&mut self, around: &Around<'_>, ctx: &mut Ctx) {
        self.last = ctx.boottime();
        let bytes = beacon(true, None, around, ctx);
        // In a crowd each beacon goes by one of the two: who misses it there hears the next one.
        let crowd = self.nodes_about(around, ctx.boottime()) >= BEACON_EVERY;
        for interface in around.links.physical() {
            let fits = |ip: IpAddr| is_endpoint(&SocketAddr::new(ip, AGENT_PORT));
            let has = |v4: bool| interface.addresses.iter().any(|(ip, _)| ip.is_ipv4() == v4 && fits(*ip));
            let (interface, v4, v6) = (interface.index, has(true), has(false));
            let only_v6 = crowd && v4 && v6 && ctx.rng.random();
            let (v4, v6) = (v4 && !only_v6, v6 && (!crowd || !v4 || only_v6));
            if v6 {
                ctx.push(NetCommand::Multicast { interface, bytes: bytes.clone() });
            }
            if v4 {
                ctx.push(NetCommand::Broadcast { interface, bytes: bytes.clone() });
            }
        }
        for seed in around.settings.into_iter().flat_map(|settings| &settings.seeds) {
            let bytes = bytes.clone();
            ctx.push(match seed.clone() {
                Seed::Address(to) => Command::Net(NetCommand::SendDatagram { to, interface: 0, bytes }),
                Seed::Name { host, port } => Command::Net(NetCommand::SendToName { host, port, bytes }),
            });
        }
    }

    /// This node was just let in. On a machine that has too much to do others wait for what it waited for, and those who were
    /// there first have no time for them.
    pub(super) fn invite(&mut self, around: &Around<'_>, ctx: &mut Ctx) {
        let now = ctx.boottime();
        let heard = self.crowd.take_strangers(now);
        if !ctx.load.is_busy() {
            return;
        }
        let is_member =
            |node: &NodeId| around.membership.is_some_and(|membership| membership.roster().is_member(node));
        let waiting: Vec<_> = heard.filter(|(node, ..)| !is_member(node)).collect();
        let chosen: Vec<_> = waiting.sample(&mut ctx.rng, INVITED).copied().collect();
        for (_, path, instance) in chosen {
            beacon_to(path, false, Some(instance), around, ctx);
        }
        if self.nodes_about(around, now) >= BEACON_EVERY {
            self.next = now + ctx.jitter(CROWD_BEACON);
        }
    }

    /// Opens a beacon, and counts it. Nothing is done for one that came before.
    pub(super) fn open(&mut self, bytes: &[u8], around: &Around<'_>, ctx: &mut Ctx) -> Option<Beacon> {
        // That costs as much as to remember who sends them would, and garbage cannot use up anybody's share of anything.
        let Ok(beacon) = Beacon::open(around.seal, bytes) else {
            ctx.rejects.count("beacon under another join key");
            return None;
        };
        // One to a single node comes once.
        let repeated = match beacon.to {
            Some(_) => self.heard_before.came_before(bytes, ctx.boottime()),
            None => self.heard_before.too_often(bytes, ctx.boottime()),
        };
        if repeated {
            ctx.rejects.count("beacon heard before");
        }
        (!repeated).then_some(beacon)
    }

    /// What a beacon leads to.
    pub(super) fn heard(
        &mut self,
        beacon: &Beacon,
        path: Path,
        around: &Around<'_>,
        ctx: &mut Ctx,
    ) -> Reaction {
        let (now, node) = (ctx.boottime(), beacon.node);
        if node == around.me {
            // Our own echo, or a clone. Only a handshake can tell a clone from a replay of our last boot.
            let may = beacon.instance != around.instance && self.may_introduce(node, MYSELF_AGAIN, now);
            return if may { Reaction::Introduce(Purpose::Introduce) } else { Reaction::Nothing };
        }
        let names_us = beacon.to == Some(around.instance);
        if names_us {
            self.expect(path.address.ip(), now);
        }
        let mine = around.cluster();
        if mine.is_some()
            && beacon.cluster == mine
            && around.membership.is_some_and(|membership| membership.roster().is_member(&node))
        {
            return Reaction::Fellow;
        }
        self.crowd.hear(node, now);
        if mine.is_none() && beacon.cluster.is_none() {
            self.crowd.hear_stranger(node, path, beacon.instance, now);
        }
        // Who beacons itself in a moment need not answer now.
        let soon = mine.is_none() && self.next < now + ANSWERED_BY_BEACON;
        if beacon.solicits && (names_us || (!soon && ctx.is_sampled(self.nodes_about(around, now), ANSWERS)))
        {
            self.answer(beacon, path, around, ctx);
        }
        let introduce = match (mine, beacon.cluster) {
            // It will come to us; we only answer.
            (Some(_), None) => None,
            (None, None) => self.shakes_hands(node, around, ctx).then_some(Purpose::Introduce),
            (Some(mine), Some(cluster)) if mine == cluster => {
                self.introduces_unknown_fellow(node, path, around, ctx).then_some(Purpose::Seek)
            }
            (_, Some(cluster)) => {
                let sender = Sender { node, instance: beacon.instance, cluster, path, heard: now };
                self.heard_of_cluster(sender, names_us, around, ctx).then_some(Purpose::Seek)
            }
        };
        introduce.map_or(Reaction::Nothing, Reaction::Introduce)
    }

    /// Whether this node shakes hands with another one without a cluster now.
    fn shakes_hands(&mut self, node: NodeId, around: &Around<'_>, ctx: &Ctx) -> bool {
        // Streams are looked at last: most beacons of a crowd need no look.
        self.wants_to_shake(&node, around, ctx)
            && !around.streams.is_busy_with(&node)
            && !around.streams.is_joining()
            && !self.defers_to(node, around.me, ctx.boottime())
            && self.may_introduce(node, SHAKE_AGAIN, ctx.boottime())
    }

    /// One of our own cluster whom we do not know yet comes by push-pull too; a few make sure: one or two of a crowd at once,
    /// the others once they should have been told of it.
    fn introduces_unknown_fellow(
        &mut self,
        node: NodeId,
        path: Path,
        around: &Around<'_>,
        ctx: &mut Ctx,
    ) -> bool {
        let now = ctx.boottime();
        if around.streams.is_busy_with(&node)
            || around.seeking(ctx) >= MAX_SEEKING
            || around.streams.is_tried_at(path.address.ip())
        {
            return false;
        }
        let few = if self.may_yet_be_told(node, around, now) { AT_ONCE } else { ANSWERERS };
        ctx.is_sampled(self.nodes_about(around, now), few) && self.may_introduce(node, INTRODUCTION_GAP, now)
    }

    /// A node says that it has a cluster, and we have none or another one. What it answers us is worth an introduction. All
    /// else may have been recorded, and somebody else's address may be where it comes from: it is asked, by its name, and
    /// answers. Gives whether it is asked to let us in.
    fn heard_of_cluster(
        &mut self,
        sender: Sender,
        names_us: bool,
        around: &Around<'_>,
        ctx: &mut Ctx,
    ) -> bool {
        let now = ctx.boottime();
        if around.membership.is_none() {
            self.founding.named_cluster(now);
        }
        if names_us {
            // The first one is tried at once, and chance chooses among those that answered besides: not who is fastest.
            if around.seeking(ctx) == 0 && self.seeks(&sender, around, ctx) {
                return true;
            }
            self.senders.remember(sender, &mut ctx.rng);
        } else if around.seeking(ctx) < MAX_SEEKING
            && !around.is_let_in()
            && self.questions.allow(sender.path.address.ip(), now)
        {
            beacon_to(sender.path, true, Some(sender.instance), around, ctx);
        }
        false
    }

    /// One of those that answered us, to ask it now to let us in.
    pub(super) fn next_to_seek(&mut self, around: &Around<'_>, ctx: &mut Ctx) -> Option<Sender> {
        self.senders.forget_old(around.cluster(), ctx.boottime());
        while around.seeking(ctx) < MAX_SEEKING {
            let sender = self.senders.draw(|sender, ctx| around.may_try(sender, ctx), ctx)?;
            if self.seeks(&sender, around, ctx) {
                return Some(sender);
            }
        }
        None
    }

    /// This node left: nobody is asked any more.
    pub(super) fn forget_senders(&mut self) {
        self.senders.forget_all();
    }

    /// Whether a member of a cluster is asked now to let us in. It is told, so that it expects us.
    fn seeks(&mut self, sender: &Sender, around: &Around<'_>, ctx: &mut Ctx) -> bool {
        let seeks = around.may_try(sender, ctx) && self.senders.note_sought(sender, ctx.boottime());
        if seeks {
            beacon_to(sender.path, false, Some(sender.instance), around, ctx);
        }
        seeks
    }

    /// Answers whoever asks, within limits. Beyond them a beacon to all answers everybody, or one who repeats others' beacons
    /// could use up the answers that a new node waits for.
    pub(super) fn answer(&mut self, beacon: &Beacon, path: Path, around: &Around<'_>, ctx: &mut Ctx) {
        let (now, names_us) = (ctx.boottime(), beacon.to == Some(around.instance));
        let share = if names_us { &mut self.answers_by_name } else { &mut self.answers };
        if share.allow(path.address.ip(), now) {
            beacon_to(path, false, Some(beacon.instance), around, ctx);
        } else if self.answers.is_used_up(now) {
            self.next = self.next.min(self.last + ANSWER_ALL);
        }
    }

    /// Whether another node without a cluster matters for who founds.
    fn wants_to_shake(&self, node: &NodeId, around: &Around<'_>, ctx: &Ctx) -> bool {
        let now = ctx.boottime();
        let settling = !self.founding.has_listened(SHAKE_AFTER, now);
        let found_one =
            self.founding.knows_cluster() || self.founding.was_just_named(now) || around.seeking(ctx) > 0;
        if settling || found_one {
            return false;
        }
        let (shaken, lowest) = self.founding.others();
        let lowest = lowest.map_or(around.me, |(lowest, _)| lowest.min(around.me));
        let few = || shaken + around.streams.outbound_for(Purpose::Introduce) < ENOUGH_SHAKEN;
        around.expects().is_some() || *node <= lowest || (shaken < ENOUGH_SHAKEN && few())
    }

    /// Of two nodes without a cluster one handshake is enough: the lower id begins, the higher one only if it was waited
    /// for in vain.
    fn defers_to(&mut self, node: NodeId, me: NodeId, now: Duration) -> bool {
        self.founding.has_shaken(&node, SHAKE_AGAIN, now)
            || (me > node && self.note_and_elapsed(node, now) < BEGIN_ANYWAY)
    }

    /// Whether members that know more may tell us of a node yet.
    fn may_yet_be_told(&mut self, node: NodeId, around: &Around<'_>, now: Duration) -> bool {
        self.nodes_about(around, now) > ANSWERERS && self.note_and_elapsed(node, now) < TOLD_WITHIN
    }

    /// Notes a node that is waited for; gives since when it is.
    fn note_and_elapsed(&mut self, node: NodeId, now: Duration) -> Duration {
        if self.waiting.len() >= MAX_REMEMBERED {
            self.waiting.clear();
        }
        now.saturating_sub(*self.waiting.entry(node).or_insert(now))
    }

    /// Whether this node is one of the few, of all that hear the same, that look after a member.
    pub(super) fn is_one_of_few(&self, around: &Around<'_>, ctx: &mut Ctx) -> bool {
        let about = self.nodes_about(around, ctx.boottime());
        ctx.is_sampled(about, ANSWERERS)
    }

    /// Whether a member is to be introduced to because its record was lost, or never came: without its session key only that
    /// helps.
    pub(super) fn introduces_fellow(&mut self, node: NodeId, around: &Around<'_>, ctx: &Ctx) -> bool {
        let now = ctx.boottime();
        !around.streams.is_busy_with(&node)
            && !self.may_yet_be_told(node, around, now)
            && self.may_introduce(node, INTRODUCTION_GAP, now)
    }

    /// Number of other nodes. A member counts the members that are up: anybody with the join key can sound like a crowd, and a
    /// member that takes turns with a crowd hardly ever answers. A new member also counts the nodes it hears, because a
    /// thousand others may be joining with it.
    fn nodes_about(&self, around: &Around<'_>, now: Duration) -> u32 {
        let heard = self.crowd.size();
        let counts = if around.is_new(now) { heard } else { 0 };
        around.membership.map_or(heard, |membership| membership.gossip().up().max(counts)) as u32
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
    fn may_introduce(&mut self, node: NodeId, gap: Duration, now: Duration) -> bool {
        if self.introduced.get(&node).is_some_and(|last| now.saturating_sub(*last) < gap) {
            return false;
        }
        if self.introduced.len() >= MAX_REMEMBERED {
            self.introduced.retain(|_, last| now.saturating_sub(*last) < INTRODUCED_FOR);
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

/// One beacon to one path, and for the node of this instance if it is known. None while this node can say nothing on a stream:
/// whoever came would wait in vain.
pub(super) fn beacon_to(path: Path, solicits: bool, to: Option<[u8; 8]>, around: &Around<'_>, ctx: &mut Ctx) {
    if ctx.outbox.is_failing() {
        return;
    }
    let bytes = beacon(solicits, to, around, ctx);
    ctx.push(NetCommand::SendDatagram { to: path.address, interface: path.interface, bytes });
}

fn beacon(solicits: bool, to: Option<[u8; 8]>, around: &Around<'_>, ctx: &mut Ctx) -> Vec<u8> {
    let beacon =
        Beacon { node: around.me, instance: around.instance, cluster: around.cluster(), solicits, to };
    let mut nonce = [0; 24];
    ctx.rng.fill_bytes(&mut nonce);
    beacon.to_datagram(around.seal, nonce)
}

#[cfg(any(test, feature = "fuzz"))]
impl Discovery {
    /// Panics when more is remembered than there may be.
    pub(super) fn assert_bounded(&self) {
        assert!(self.introduced.len() <= MAX_REMEMBERED && self.waiting.len() <= MAX_REMEMBERED);
        assert!(self.expected.len() <= MAX_EXPECTED);
        self.crowd.assert_bounded();
        self.senders.assert_bounded();
        self.heard_before.assert_bounded();
    }
}
