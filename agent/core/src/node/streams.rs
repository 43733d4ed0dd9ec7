// SPDX-License-Identifier: Apache-2.0
//! Streams by number: opening, bytes in and out, limits and deadlines. What is said on them is in `introduce` and
//! `reconcile`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::reconcile::Exchange;
use super::{Join, Node};
use crate::command::{Command, StreamId};
use crate::id::{ClusterId, NodeId};
use crate::keys::Keys;
use crate::limit::Limiter;
use crate::record::{NodeRecord, is_endpoint};
use crate::roster::Genesis;
use crate::signed::Verified;
use crate::stream::{Kind, STREAM_DEADLINE, Stream, StreamEvent, StreamKeys};
use crate::sync::Message;

const MAX_OUTBOUND: usize = 32;
const MAX_INBOUND: usize = 128;
const MAX_INBOUND_PER_SOURCE: usize = 16;
/// A busy machine keeps so many streams for its next push-pulls: the key agreements of a new one are most of what a
/// push-pull costs.
pub(super) const KEPT: usize = 3;
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
    /// When what is under way on it began.
    pub(super) began: Duration,
    /// Since when nothing is under way on it: it is kept for the next push-pull.
    pub(super) rests: Option<Duration>,
}

/// An admission we asked for.
pub(super) struct Joining {
    pub(super) genesis: Verified<Genesis>,
    pub(super) objects: Vec<Vec<u8>>,
}

/// All streams.
pub(super) struct Streams {
    pub(super) open: BTreeMap<StreamId, Conversation>,
    next: u64,
    accepts: Limiter,
}

impl Default for Streams {
    fn default() -> Self {
        Self { open: BTreeMap::new(), next: 0, accepts: Limiter::new(10, 40, 20) }
    }
}

impl Streams {
    /// Whether something is under way that we began with a node.
    pub(super) fn is_busy_with(&self, node: &NodeId) -> bool {
        self.open.values().any(|open| open.stream.target == Some(*node) && open.rests.is_none())
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

    /// Whether an introduction is under way.
    pub(super) fn is_introducing(&self) -> bool {
        self.open.values().any(|open| matches!(open.purpose, Purpose::Introduce | Purpose::Seek))
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

    fn inbound_from(&self, source: IpAddr) -> (usize, usize) {
        let inbound = self.open.values().filter(|conversation| !conversation.stream.outbound);
        inbound.fold((0, 0), |(all, same), conversation| {
            (all + 1, same + usize::from(conversation.remote.ip() == source))
        })
    }

    /// Whether a source may begin one more conversation.
    pub(super) fn allows_one_more(&mut self, source: IpAddr, now: Duration) -> bool {
        self.accepts.allow(source, now)
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
        if self.streams.outbound() >= MAX_OUTBOUND || !is_endpoint(&to) {
            return;
        }
        let id = StreamId(self.streams.next);
        self.streams.next += 1;
        let stream = Stream::outbound(kind, node, self.now.boottime);
        self.streams.open.insert(id, Conversation::new(stream, purpose, to));
        self.outbox.push(Command::Connect { stream: id, to });
    }

    /// A stream that somebody uses comes before one that is only kept.
    fn make_room(&mut self, source: IpAddr) {
        let (all, same) = self.streams.inbound_from(source);
        let unused = if same >= MAX_INBOUND_PER_SOURCE {
            self.streams.longest_rest(|open| open.remote.ip() == source)
        } else if all >= MAX_INBOUND {
            self.streams.longest_rest(|_| true)
        } else {
            None
        };
        if let Some(unused) = unused {
            self.end(unused);
        }
    }

    pub(super) fn stream_accepted(&mut self, id: StreamId, from: SocketAddr) {
        self.make_room(from.ip());
        let (all, same) = self.streams.inbound_from(from.ip());
        let allowed = all < MAX_INBOUND
            && same < MAX_INBOUND_PER_SOURCE
            && self.join.is_some()
            && self.streams.allows_one_more(from.ip(), self.now.boottime);
        if !allowed {
            self.rejects.count("stream over limit");
            return self.stream_close(id);
        }
        let stream = Stream::inbound(self.now.boottime);
        self.streams.open.insert(id, Conversation::new(stream, Purpose::Introduce, from));
    }

    pub(super) fn stream_connected(&mut self, id: StreamId) {
        let remote = self.streams.open.get(&id).and_then(|conversation| conversation.stream.target);
        let remote = remote.and_then(|node| Some(self.cluster()?.roster.record(&node)?.session_key));
        let cluster = self.cluster().map(|cluster| cluster.roster.cluster());
        let Self { streams, rng, keys, join, .. } = self;
        let Some(conversation) = streams.open.get_mut(&id) else { return };
        let mut stream_keys = stream_keys(rng, keys, join, cluster);
        match conversation.stream.start(&mut stream_keys, remote.as_ref()) {
            Ok(()) => self.flush(id),
            Err(_) => self.end(id),
        }
    }

    pub(super) fn stream_data(&mut self, id: StreamId, bytes: &[u8]) {
        let cluster = self.cluster().map(|cluster| cluster.roster.cluster());
        let Self { streams, rng, keys, join, .. } = self;
        let Some(conversation) = streams.open.get_mut(&id) else { return };
        let events = conversation.stream.receive(&mut stream_keys(rng, keys, join, cluster), bytes);
        self.flush(id);
        match events {
            Ok(events) => {
                for event in events {
                    match event {
                        StreamEvent::Opened => self.stream_opened(id),
                        StreamEvent::Message(message) => self.stream_message(id, message),
                    }
                }
            }
            Err(malformed) => {
                self.rejects.count(malformed.0);
                self.end(id);
            }
        }
    }

    pub(super) fn stream_closed(&mut self, id: StreamId) {
        let closed = self.streams.open.remove(&id);
        let failed = |one: Conversation| {
            one.stream.outbound && one.purpose == Purpose::PushPull && one.rests.is_none()
        };
        // It does not know us yet, or needed the room just when we used again what was kept. Another one is asked soon, unless
        // so many failed that there is no hurry any more.
        if closed.is_some_and(failed) && self.is_learning() {
            self.reconcile_again();
        }
    }

    /// Says something on a stream.
    pub(super) fn say(&mut self, id: StreamId, message: &Message) {
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        if conversation.stream.send(message).is_err() {
            return self.end(id);
        }
        self.flush(id);
    }

    /// Says several things.
    pub(super) fn say_all(&mut self, id: StreamId, messages: &[Message]) {
        for message in messages {
            self.say(id, message);
        }
    }

    /// Ends a stream after what was said on it.
    pub(super) fn end(&mut self, id: StreamId) {
        if self.streams.open.remove(&id).is_some() {
            self.stream_close(id);
        }
    }

    fn flush(&mut self, id: StreamId) {
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        let bytes = conversation.stream.take_output();
        if !bytes.is_empty() {
            self.outbox.push(Command::StreamSend { stream: id, bytes });
        }
    }

    /// All of a push-pull was said. On a busy machine its stream is kept for the next one, if that will come soon.
    pub(super) fn rest(&mut self, id: StreamId) {
        let now = self.now.boottime;
        let keeps = self.is_busy() && self.is_learning() && self.streams.kept().len() < KEPT;
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
        let now = self.now.boottime;
        let late = self.streams.open.iter().filter(|(_, open)| {
            let limit = match (open.rests, open.stream.outbound) {
                (None, _) => STREAM_DEADLINE,
                (Some(_), true) => REST,
                (Some(_), false) => REST * 2,
            };
            now.saturating_sub(open.rests.unwrap_or(open.began)) > limit
        });
        for id in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end(id);
        }
    }
}

impl Conversation {
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
            began,
            rests: None,
        }
    }
}

fn stream_keys<'a>(
    rng: &'a mut rand::rngs::StdRng,
    keys: &'a Keys,
    join: &'a Option<Join>,
    cluster: Option<ClusterId>,
) -> StreamKeys<'a> {
    let join = join.as_ref().map(|join| (&join.seal, &join.psk));
    StreamKeys { rng, secret: keys.session_secret(), join, cluster }
}
