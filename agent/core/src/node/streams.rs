// SPDX-License-Identifier: Apache-2.0
//! Streams by number: opening, bytes in and out, limits and deadlines. What is said on them is in `introduce` and
//! `reconcile`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::checks::Checks;
use super::output::{Output, Page};
use super::push_pull::KEPT;
use super::reconcile::Exchange;
use super::{Node, Place};
use crate::command::{Command, StreamId};
use crate::id::NodeId;
use crate::limit::Limiter;
use crate::record::{NodeRecord, is_endpoint};
use crate::repeats::Repeats;
use crate::roster::{Genesis, Object};
use crate::signed::{ObjectDigest, Verified};
use crate::stream::{Kind, STREAM_DEADLINE, Stream, StreamEvent, StreamKeys};
use crate::sync::Message;
use crate::wire::Malformed;

const MAX_OUTBOUND: usize = 32;
/// Of these so many are not for introductions to nodes without a cluster: whoever recorded the beacons of many can have all of them
/// tried.
const NOT_TO_INTRODUCE: usize = 8;
/// Inbound ones on which something was proven: those of members, and those of others who have the join key.
const MAX_MEMBERS: usize = 128;
const MAX_STRANGERS: usize = 128;
const MAX_INBOUND_PER_SOURCE: usize = 16;
/// A stranger that neither asks nor is answered gives way to the next one after so long.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// First frames of others of which it is remembered that they came. An honest one comes once.
const FIRST_FRAMES: usize = 16_384;
/// One that asked to be let in and had its answer gives way after so long without a word.
const ANSWERED_IDLE_AFTER: Duration = Duration::from_secs(5);
/// Inbound ones on which nothing was proven yet, and how long they may be that.
const MAX_UNPROVEN: usize = 256;
const UNPROVEN_FOR: Duration = Duration::from_secs(3);
/// Ours on which nobody proved anything, and those on which nothing more comes of an admission. A crowd waits in one queue for
/// the key agreements of a slow machine.
const SILENT_FOR: Duration = Duration::from_secs(10);
/// An introduction is tried with a node that does not take the connection, or does not prove itself on it, for so long before
/// others are tried beside it. A slow machine has a crowd to prove itself to.
const CONNECTS_WITHIN: Duration = Duration::from_secs(1);
const PROVES_WITHIN: Duration = Duration::from_secs(3);
/// When there is no room for another one of ours, one on which nobody proved anything gives way after so long.
const GIVES_WAY_AFTER: Duration = Duration::from_secs(3);
/// Longer by so many times what ticks are late: the key agreements of a crowd take their time.
const PER_LATE: u32 = 2;
/// So long when nothing is said on them. The other side waits twice as long, so that it does not close one that is just
/// being used.
const REST: Duration = Duration::from_secs(5);

/// What we opened a stream for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Introduce,
    /// An introduction to a node that said it has a cluster.
    Seek,
    PushPull,
}

/// One stream and what was said on it so far.
pub(super) struct Conversation {
    pub(super) stream: Stream,
    pub(super) purpose: Purpose,
    pub(super) remote: SocketAddr,
    /// The uptime in our `Hello`, in milliseconds.
    pub(super) uptime_said: u64,
    /// Who the peer proved to be.
    pub(super) peer: Option<NodeId>,
    /// Its record and cluster, from its `Hello`.
    pub(super) introduced: Option<(Verified<NodeRecord>, Option<Verified<Genesis>>)>,
    /// The cluster we asked to be admitted to, with what came so far.
    pub(super) joining: Option<Joining>,
    /// The peer asked to be admitted and got its answer; asking again is not answered, or a few bytes would cost a roster.
    pub(super) admission_answered: bool,
    pub(super) exchange: Exchange,
    pub(super) output: Output,
    /// When what is under way on it began.
    pub(super) began: Duration,
    /// When something was said on it last, or bytes of an answer came.
    heard: Duration,
    /// When a write last held back what we have to say on it: until then the other side's silence is ours.
    held: Duration,
    /// Whether somebody with the join key was thought to be at its address when it was accepted.
    expected: bool,
    /// Since when nothing is under way on it: it is kept for the next push-pull.
    pub(super) rests: Option<Duration>,
}

/// An admission we asked for.
pub(super) struct Joining {
    pub(super) genesis: Verified<Genesis>,
    pub(super) objects: BTreeMap<ObjectDigest, Object>,
}

/// All streams.
pub(super) struct Streams {
    pub(super) open: BTreeMap<StreamId, Conversation>,
    next: u64,
    /// Key agreements and push-pulls of one source.
    accepts: Limiter,
    /// The same of the addresses of members.
    accepts_of_members: Limiter,
    /// Who has no key can repeat a first frame that he recorded.
    first_frames: Repeats,
    /// What somebody asked for by name, on however many streams.
    answers: Limiter,
    pub(super) checks: Checks,
}

impl Streams {
    pub(super) fn new(rng: &mut StdRng) -> Self {
        Self {
            open: BTreeMap::new(),
            next: 0,
            accepts: Limiter::new(10, 40, 20, rng.next_u64()),
            accepts_of_members: Limiter::new(10, 40, 20, rng.next_u64()),
            first_frames: Repeats::new(1, FIRST_FRAMES, rng.next_u64()),
            answers: Limiter::of_each(8, 20, rng.next_u64()),
            checks: Checks::new(rng),
        }
    }

    /// Whether somebody who proved who he is may have one more answer that takes work. Who asks the same again and again is
    /// turned away.
    pub(super) fn may_ask(&mut self, node: &NodeId, now: Duration) -> bool {
        self.answers.allow_name(node.as_bytes(), now)
    }

    /// Somebody with the join key is at an address, as a beacon says that came just now.
    pub(super) fn expect(&mut self, ip: IpAddr) {
        let from_there = self.open.values_mut().filter(|open| open.is_unproven() && open.remote.ip() == ip);
        from_there.for_each(|open| open.expected = true);
    }

    /// Introductions to members of a cluster that are under way.
    pub(super) fn seeking(&self, now: Duration, late: Duration) -> usize {
        let seeks = self.open.values().filter(|open| open.stream.outbound && open.purpose == Purpose::Seek);
        seeks.filter(|open| open.is_promising(now, late)).count()
    }

    /// Whether an introduction to a member of a cluster is tried at an address where nobody has proven anything.
    pub(super) fn is_tried_at(&self, ip: IpAddr) -> bool {
        self.open
            .values()
            .any(|open| open.purpose == Purpose::Seek && !open.stream.proven && open.remote.ip() == ip)
    }

    /// Whether something is under way that we began with a node.
    pub(super) fn is_busy_with(&self, node: &NodeId) -> bool {
        self.open.values().any(|open| open.stream.target == Some(*node) && open.rests.is_none())
    }

    /// Whether something is under way that we began with a node, and may still come to something.
    pub(super) fn is_tried(&self, node: &NodeId, now: Duration, late: Duration) -> bool {
        self.open.values().any(|open| {
            open.stream.target == Some(*node) && open.rests.is_none() && open.is_promising(now, late)
        })
    }

    /// Streams of ours that are kept for the next push-pull, and with whom; the one that rests longest is first.
    pub(super) fn kept(&self) -> Vec<(StreamId, NodeId)> {
        let ours = self.open.iter().filter(|(_, open)| open.stream.outbound);
        let mut kept: Vec<_> =
            ours.filter_map(|(id, open)| Some((open.rests?, *id, open.stream.target?))).collect();
        kept.sort_unstable();
        kept.into_iter().map(|(_, id, node)| (id, node)).collect()
    }

    /// Whether an admission of ours is under way.
    pub(super) fn is_joining(&self) -> bool {
        self.open.values().any(|conversation| conversation.joining.is_some())
    }

    /// Whether an introduction is under way. A connection on which nothing was said is none.
    pub(super) fn is_introducing(&self) -> bool {
        self.open.values().any(|open| {
            let begun = open.stream.outbound || open.stream.knocked;
            begun && matches!(open.purpose, Purpose::Introduce | Purpose::Seek)
        })
    }

    /// Number of streams that we opened for a purpose.
    pub(super) fn outbound_for(&self, purpose: Purpose) -> usize {
        self.open.values().filter(|open| open.stream.outbound && open.purpose == purpose).count()
    }

    /// Number of those on which something is under way that began since then.
    pub(super) fn begun_since(&self, since: Duration, purpose: Purpose) -> usize {
        let young = |open: &&Conversation| {
            open.stream.outbound && open.purpose == purpose && open.rests.is_none() && open.began >= since
        };
        self.open.values().filter(young).count()
    }

    fn outbound(&self) -> usize {
        self.open.values().filter(|conversation| conversation.stream.outbound).count()
    }

    /// The one of ours on which nobody has proven anything for longest, if that is long enough to give way to one for a purpose.
    fn gives_way(&self, purpose: Purpose, now: Duration, late: Duration) -> Option<StreamId> {
        let ours = self.open.iter().filter(|(_, open)| {
            let may = open.purpose == purpose || open.purpose == Purpose::Introduce;
            open.stream.outbound && !open.stream.proven && may
        });
        let (id, oldest) = ours.min_by_key(|(id, open)| (open.began.max(open.held), **id))?;
        (oldest.silent_since(Duration::ZERO, now) >= GIVES_WAY_AFTER + late).then_some(*id)
    }

    /// Inbound ones on which something was proven: all of a kind, and those of one source among them.
    fn inbound_of(&self, kind: Kind, source: IpAddr) -> (usize, usize) {
        let inbound = self.open.values().filter(|open| open.is_inbound_of(kind));
        inbound.fold((0, 0), |(all, same), conversation| {
            (all + 1, same + usize::from(conversation.remote.ip() == source))
        })
    }

    /// When there is no room for one more on which nothing is proven: the oldest of the busiest address, but one whose first
    /// frame had a right tag or seal comes last. Half of the places are for who is expected, the other half for all others.
    fn unproven_to_end(&self) -> Option<StreamId> {
        let unproven = || self.open.iter().filter(|(_, open)| open.is_unproven());
        if unproven().count() < MAX_UNPROVEN {
            return None;
        }
        let of_expected = unproven().filter(|(_, open)| open.expected).count() > MAX_UNPROVEN / 2;
        let mut addresses = BTreeMap::new();
        for (_, open) in unproven() {
            *addresses.entry(open.remote.ip()).or_insert(0) += 1;
        }
        let same_half = unproven().filter(|(_, open)| open.expected == of_expected);
        let busiest = same_half.max_by_key(|(id, open)| {
            (!open.stream.knocked, addresses[&open.remote.ip()], Reverse((open.began, **id)))
        });
        busiest.map(|(id, _)| *id)
    }

    /// Which stranger gives way to another one: who has neither asked nor been answered for a while, then who was answered and says
    /// no more, else the oldest of an address that is busier than the other's.
    fn stranger_to_end(
        &self,
        new: StreamId,
        source: IpAddr,
        now: Duration,
        late: Duration,
    ) -> Option<StreamId> {
        let strangers: Vec<_> =
            self.open.iter().filter(|(_, open)| open.is_inbound_of(Kind::Stranger)).collect();
        let mut addresses = BTreeMap::new();
        for (_, open) in &strangers {
            *addresses.entry(open.remote.ip()).or_insert(0) += 1;
        }
        let same = addresses.get(&source).copied().unwrap_or(0);
        let ranked = strangers.into_iter().filter(|(id, _)| **id != new).map(|(id, open)| {
            let silent = |since| open.silent_since(since, now).saturating_sub(late);
            let idle = match open.output.taken() {
                _ if open.is_idle_stranger() && silent(Duration::ZERO) >= IDLE_AFTER => 2,
                Some(taken) if open.admission_answered && silent(taken) >= ANSWERED_IDLE_AFTER => 1,
                _ => 0,
            };
            let ip = open.remote.ip();
            (idle, addresses[&ip], Reverse((open.began, *id)), ip)
        });
        let (idle, busy, Reverse((_, id)), ip) = ranked.max()?;
        (idle > 0 || busy > same || ip == source).then_some(id)
    }

    /// Of those that others opened and nobody uses, the one that rests longest.
    fn longest_rest(&self, of: impl Fn(&Conversation) -> bool) -> Option<StreamId> {
        let resting = self.open.iter().filter(|(_, open)| !open.stream.outbound && of(open));
        resting.filter_map(|(id, open)| Some((open.rests?, *id))).min().map(|(_, id)| id)
    }
}

impl Node {
    /// Opens a stream to a node.
    pub(super) fn connect(&mut self, kind: Kind, purpose: Purpose, node: NodeId, to: SocketAddr) {
        let most = match purpose {
            Purpose::Introduce => MAX_OUTBOUND - NOT_TO_INTRODUCE,
            Purpose::Seek | Purpose::PushPull => MAX_OUTBOUND,
        };
        if !is_endpoint(&to) {
            return;
        }
        if self.streams.outbound() >= most {
            let late = self.ctx.load.late() * PER_LATE;
            let Some(silent) = self.streams.gives_way(purpose, self.ctx.boottime(), late) else { return };
            self.abandon(silent);
            self.stream_closed(silent);
        }
        let id = StreamId(self.streams.next);
        self.streams.next += 1;
        let stream = Stream::outbound(kind, node, self.ctx.boottime());
        self.streams.open.insert(id, Conversation::new(stream, purpose, to));
        self.ctx.push(Command::Connect { stream: id, to });
    }

    /// A stream that somebody uses comes before one that is only kept, and among strangers nobody has all places.
    fn make_room(&mut self, id: StreamId, kind: Kind, source: IpAddr) {
        let (all, same) = self.streams.inbound_of(kind, source);
        let unused = match kind {
            _ if same > MAX_INBOUND_PER_SOURCE => {
                self.streams.longest_rest(|open| open.stream.kind == kind && open.remote.ip() == source)
            }
            Kind::Member if all > MAX_MEMBERS => {
                self.streams.longest_rest(|open| open.stream.kind == Kind::Member)
            }
            Kind::Stranger if all > MAX_STRANGERS => {
                self.streams.stranger_to_end(id, source, self.ctx.boottime(), self.ctx.load.late() * PER_LATE)
            }
            _ => None,
        };
        if let Some(unused) = unused {
            self.abandon(unused);
        }
    }

    pub(super) fn stream_accepted(&mut self, id: StreamId, from: SocketAddr) {
        if self.join.is_none() {
            self.ctx.rejects.count("stream over limit");
            return self.stream_close(id);
        }
        if let Some(busiest) = self.streams.unproven_to_end() {
            self.ctx.rejects.count("stream that gave way unproven");
            self.abandon(busiest);
        }
        let (now, ip) = (self.ctx.boottime(), from.ip());
        let of_member =
            self.cluster_mut().is_some_and(|cluster| cluster.sessions.is_address_of_member(ip, now));
        let expected = of_member || self.discovery.is_expected(ip, now);
        let conversation = Conversation::new(Stream::inbound(now), Purpose::Introduce, from);
        self.streams.open.insert(id, Conversation { expected, ..conversation });
    }

    /// The first word under the keys of the handshake: whoever opened the stream is there, and it counts among those of its
    /// source. Gives whether it may stay.
    fn stream_proven(&mut self, id: StreamId, kind: Kind, source: IpAddr) -> bool {
        self.make_room(id, kind, source);
        let (all, same) = self.streams.inbound_of(kind, source);
        let most = match kind {
            Kind::Member => MAX_MEMBERS,
            Kind::Stranger => MAX_STRANGERS,
        };
        let stays = all <= most && same <= MAX_INBOUND_PER_SOURCE;
        if !stays {
            self.ctx.rejects.count("stream over limit");
            self.abandon(id);
        }
        stays
    }

    /// Whether a source may begin one more conversation.
    pub(super) fn allows_one_more(&mut self, source: IpAddr) -> bool {
        let now = self.ctx.boottime();
        self.streams.accepts.allow(source, now)
            || (self.cluster_mut().is_some_and(|cluster| cluster.sessions.is_address_of_member(source, now))
                && self.streams.accepts_of_members.allow(source, now))
    }

    pub(super) fn stream_connected(&mut self, id: StreamId) {
        let remote = self.streams.open.get(&id).and_then(|conversation| conversation.stream.target);
        let remote =
            remote.and_then(|node| Some(self.cluster()?.membership.roster().record(&node)?.session_key));
        let started =
            self.with_stream(id, |stream, keys| stream.start(keys, remote.as_ref()).map(|()| Vec::new()));
        if started.is_some_and(|started| started.is_err()) {
            self.end(id);
        }
    }

    pub(super) fn stream_data(&mut self, id: StreamId, bytes: &[u8]) {
        let Some(conversation) = self.streams.open.get(&id) else { return };
        let (was_unproven, source) = (conversation.is_unproven(), conversation.remote.ip());
        let events = self.with_stream(id, |stream, keys| stream.receive(keys, bytes));
        let now = self.ctx.boottime();
        if let Some(conversation) = self.streams.open.get_mut(&id).filter(|open| open.stream.proven) {
            let answers = conversation.joining.is_some() || !conversation.exchange.is_new();
            if answers || matches!(&events, Some(Ok(events)) if !events.is_empty()) {
                conversation.heard = now;
            }
            let kind = conversation.stream.kind;
            if was_unproven && !self.stream_proven(id, kind, source) {
                return;
            }
        }
        match events {
            Some(Ok(events)) => {
                for event in events {
                    match event {
                        StreamEvent::Opened => self.stream_opened(id),
                        StreamEvent::Message(message) => self.stream_message(id, message),
                    }
                }
            }
            Some(Err(malformed)) => {
                self.ctx.rejects.count(malformed.0);
                self.end(id);
            }
            None => {}
        }
    }

    /// Runs something on a stream with all it needs to know, and sends what it has to say.
    fn with_stream(
        &mut self,
        id: StreamId,
        run: impl FnOnce(&mut Stream, &mut StreamKeys<'_>) -> Result<Vec<StreamEvent>, Malformed>,
    ) -> Option<Result<Vec<StreamEvent>, Malformed>> {
        let now = self.ctx.boottime();
        let Self { streams, ctx, keys, join, place, .. } = self;
        let Streams { open, accepts, accepts_of_members, first_frames, .. } = streams;
        let conversation = open.get_mut(&id)?;
        let source = conversation.remote.ip();
        let cluster = match place {
            Place::Member(cluster) => Some(&mut **cluster),
            _ => None,
        };
        let id_and_tag = cluster
            .as_ref()
            .map(|cluster| (cluster.membership.roster().cluster(), cluster.sessions.stream_tag().clone()));
        let sessions = cluster.map(|cluster| &mut cluster.sessions);
        let mut sessions = sessions;
        let mut agree = |frame: &[u8]| {
            if first_frames.too_often(frame, now) {
                return Err(Malformed("stream whose first frame came before"));
            }
            let allowed = accepts.allow(source, now)
                || (sessions.as_mut().is_some_and(|sessions| sessions.is_address_of_member(source, now))
                    && accepts_of_members.allow(source, now));
            if allowed { Ok(()) } else { Err(Malformed("stream over limit")) }
        };
        let mut stream_keys = StreamKeys {
            rng: &mut ctx.rng,
            secret: keys.session_secret(),
            join: join.as_ref().map(|join| (&join.seal, &join.psk)),
            cluster: id_and_tag.as_ref().map(|(id, tag)| (*id, tag)),
            agree: &mut agree,
        };
        let outcome = run(&mut conversation.stream, &mut stream_keys);
        self.flush(id);
        Some(outcome)
    }

    pub(super) fn stream_closed(&mut self, id: StreamId) {
        let closed = self.streams.open.remove(&id);
        let failed = |one: Conversation| {
            one.stream.outbound && one.purpose == Purpose::PushPull && one.rests.is_none()
        };
        // It does not know us yet, or needed the room just when we used again what was kept. Another one is asked soon, unless
        // so many failed that there is no hurry any more.
        if closed.is_some_and(failed)
            && self.is_learning()
            && let Place::Member(cluster) = &mut self.place
        {
            cluster.push_pull.again(&mut self.ctx);
        }
    }

    /// Says something on a stream, after all that is still to be said.
    pub(super) fn say(&mut self, id: StreamId, message: Message) {
        self.answer(id, vec![Page::Say(message)], None);
    }

    pub(super) fn say_now(&mut self, id: StreamId, message: &Message) {
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        if conversation.stream.send(message).is_err() {
            return self.end(id);
        }
        self.flush(id);
    }

    /// Ends a stream after what was said on it.
    pub(super) fn end(&mut self, id: StreamId) {
        if self.streams.open.remove(&id).is_some() {
            self.stream_close(id);
        }
    }

    pub(super) fn end_all_streams(&mut self) {
        let open: Vec<_> = self.streams.open.keys().copied().collect();
        for id in open {
            self.end(id);
        }
    }

    /// Ends a stream at once: nobody reads what is still to be said on it, or it holds a place that others need.
    fn abandon(&mut self, id: StreamId) {
        self.ctx.outbox.abandon(id);
        self.streams.open.remove(&id);
    }

    fn flush(&mut self, id: StreamId) {
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        let bytes = conversation.stream.take_output();
        if !bytes.is_empty() {
            conversation.output.said(bytes.len(), self.ctx.boottime());
            self.ctx.push(Command::StreamSend { stream: id, bytes });
        }
    }

    /// All of a push-pull was said. On a busy machine its stream is kept for the next one, if that will come soon.
    pub(super) fn rest(&mut self, id: StreamId) {
        let now = self.ctx.boottime();
        let keeps = self.ctx.load.is_busy() && self.is_learning() && self.streams.kept().len() < KEPT;
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        // Who opened it decides.
        if conversation.stream.kind != Kind::Member || (conversation.stream.outbound && !keeps) {
            return self.end(id);
        }
        conversation.exchange = Exchange::default();
        conversation.rests = Some(now);
    }

    /// Closes streams that take too long, and those that nobody uses any more.
    pub(super) fn stream_tick(&mut self) {
        let now = self.ctx.boottime();
        for id in self.ctx.outbox.held_back() {
            if let Some(conversation) = self.streams.open.get_mut(&id) {
                conversation.held = now;
            }
        }
        let unread = self.streams.open.iter().filter(|(_, open)| open.output.is_not_read(open.held, now));
        for id in unread.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.ctx.rejects.count("stream that is not read");
            self.abandon(id);
        }
        let unproven_for = UNPROVEN_FOR + self.ctx.load.late() * PER_LATE;
        let silent_for = SILENT_FOR + self.ctx.load.late() * PER_LATE;
        // Who does not answer is no better than one at whose address nobody is: another member is asked.
        let silent = self.streams.open.iter().filter(|(_, open)| {
            open.stream.outbound && !open.stream.proven && open.silent_since(Duration::ZERO, now) > silent_for
        });
        for id in silent.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.ctx.outbox.abandon(id);
            self.stream_closed(id);
        }
        // Who only introduced himself, and who lets us in and says no more, holds no place.
        let stalled = self.streams.open.iter().filter(|(_, open)| {
            let silent = open.silent_since(Duration::ZERO, now);
            (open.is_idle_stranger() && silent > unproven_for)
                || (open.joining.is_some() && silent > silent_for)
        });
        for id in stalled.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.ctx.rejects.count("stream on which nothing goes on");
            self.abandon(id);
        }
        let late = self.streams.open.iter().filter(|(_, open)| {
            if open.is_unproven() && open.silent_since(Duration::ZERO, now) > unproven_for {
                return true;
            }
            let limit = match (open.rests, open.stream.outbound) {
                (None, _) => STREAM_DEADLINE,
                (Some(_), true) => REST,
                (Some(_), false) => REST * 2,
            };
            now.saturating_sub(open.rests.unwrap_or(open.began)) > limit
        });
        for id in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.abandon(id);
        }
    }
}

impl Conversation {
    /// Whether one of ours may still come to something: others are tried beside one on which nobody proves anything for a while. An
    /// answer to the handshake proves nothing: it may have been sent on from elsewhere.
    fn is_promising(&self, now: Duration, late: Duration) -> bool {
        let within = if self.stream.is_connecting() { CONNECTS_WITHIN } else { PROVES_WITHIN };
        self.stream.proven || now.saturating_sub(self.began) <= within + late * PER_LATE
    }

    /// How long the other side has said nothing, since then at the earliest, although what we said was on its way.
    fn silent_since(&self, then: Duration, now: Duration) -> Duration {
        now.saturating_sub(self.heard.max(self.held).max(then))
    }

    /// Whether somebody else opened it and has proven nothing yet.
    fn is_unproven(&self) -> bool {
        !self.stream.outbound && !self.stream.proven
    }

    /// Whether somebody else opened it and proved himself in this way.
    fn is_inbound_of(&self, kind: Kind) -> bool {
        !self.stream.outbound && self.stream.proven && self.stream.kind == kind
    }

    /// Whether a stranger opened it who was not let in, asks for nothing just now, and is being told nothing.
    fn is_idle_stranger(&self) -> bool {
        self.is_inbound_of(Kind::Stranger)
            && self.joining.is_none()
            && !self.admission_answered
            && self.output.is_empty()
    }

    fn new(stream: Stream, purpose: Purpose, remote: SocketAddr) -> Self {
        let exchange = Exchange::default();
        let began = stream.opened;
        Self {
            stream,
            purpose,
            remote,
            peer: None,
            introduced: None,
            joining: None,
            admission_answered: false,
            uptime_said: 0,
            exchange,
            output: Output::default(),
            began,
            heard: began,
            held: Duration::ZERO,
            expected: false,
            rests: None,
        }
    }
}
