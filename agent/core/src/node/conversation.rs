// SPDX-License-Identifier: Apache-2.0
//! One stream and how far the conversation on it has come.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::ctx::Ctx;
use super::exchange::Exchange;
use super::output::Output;
use crate::command::{NetCommand, StreamId};
use crate::consts::streams::*;
use crate::gossip::Liveness;
use crate::id::NodeId;
use crate::record::NodeRecord;
use crate::roster::{Genesis, Object};
use crate::signed::{ObjectDigest, Verified};
use crate::stream::{Kind, Stream};
use crate::sync::Message;
use crate::wire::Malformed;

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
    stream: Stream,
    purpose: Purpose,
    remote: SocketAddr,
    state: State,
    output: Output,
    /// When what is under way on it began.
    began: Duration,
    /// When something was said on it last, or bytes of an answer came.
    heard: Duration,
    /// When a write last held back what we have to say on it: until then the other side's silence is ours.
    held: Duration,
    /// Whether somebody with the join key is thought to be at its address.
    expected: bool,
}

/// How far a conversation has come.
enum State {
    /// The other side has not said who it is. `uptime`: that in our `Hello`, in milliseconds.
    Opening { uptime: u64 },
    /// It is this node, and may ask to be admitted or begin a push-pull.
    Talking(Box<Talk>),
    /// It is asked to admit us.
    Joining(Box<Joining>),
    /// Nothing is under way since then: the stream is kept for the next push-pull.
    Resting { peer: NodeId, since: Duration },
}

/// With a node that proved itself.
pub(super) struct Talk {
    pub(super) peer: NodeId,
    /// From its `Hello`; members that open a stream as such say none.
    pub(super) introduced: Option<Introduction>,
    /// It asked to be admitted and got its answer; asking again is not answered, or a few bytes would cost a roster.
    pub(super) is_answered: bool,
    pub(super) exchange: Exchange,
}

/// Record and cluster of a node.
pub(super) struct Introduction {
    pub(super) record: Verified<NodeRecord>,
    pub(super) genesis: Option<Verified<Genesis>>,
}

/// An admission we asked for, with what came so far.
pub(super) struct Joining {
    pub(super) peer: NodeId,
    pub(super) genesis: Verified<Genesis>,
    pub(super) objects: BTreeMap<ObjectDigest, Object>,
    /// What the peer's gossip knows, kept until we are a member.
    pub(super) alive: Vec<Liveness>,
}

impl Conversation {
    /// One that we begin.
    pub(super) fn outbound(
        kind: Kind,
        purpose: Purpose,
        node: NodeId,
        to: SocketAddr,
        now: Duration,
    ) -> Self {
        Self::new(Stream::outbound(kind, node, now), purpose, to, false)
    }

    /// One that somebody else began.
    pub(super) fn inbound(from: SocketAddr, expected: bool, now: Duration) -> Self {
        Self::new(Stream::inbound(now), Purpose::Introduce, from, expected)
    }

    fn new(stream: Stream, purpose: Purpose, remote: SocketAddr, expected: bool) -> Self {
        let began = stream.opened;
        Self {
            stream,
            purpose,
            remote,
            state: State::Opening { uptime: 0 },
            output: Output::default(),
            began,
            heard: began,
            held: Duration::ZERO,
            expected,
        }
    }

    /// Runs something on the stream, and sends what it has to say.
    pub(super) fn run<R>(
        &mut self,
        id: StreamId,
        ctx: &mut Ctx,
        run: impl FnOnce(&mut Stream, &mut Ctx) -> R,
    ) -> R {
        let outcome = run(&mut self.stream, ctx);
        let bytes = self.stream.take_output();
        if !bytes.is_empty() {
            self.output.said(bytes.len(), ctx.boottime());
            ctx.push(NetCommand::StreamSend { stream: id, bytes });
        }
        outcome
    }

    /// Something came from the other side.
    pub(super) fn note_heard(&mut self, now: Duration) {
        self.heard = now;
    }

    /// A write holds back what we have to say on it.
    pub(super) fn note_held(&mut self, now: Duration) {
        self.held = now;
    }

    /// Somebody with the join key is at its address.
    pub(super) fn expect(&mut self) {
        self.expected = true;
    }

    /// What is still to be said.
    pub(super) fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Says a message.
    pub(super) fn send(&mut self, id: StreamId, message: &Message, ctx: &mut Ctx) -> Result<(), Malformed> {
        self.run(id, ctx, |stream, _| stream.send(message))
    }

    /// Our `Hello` says this uptime, in milliseconds.
    pub(super) fn introduce(&mut self, uptime: u64) {
        self.state = State::Opening { uptime };
    }

    /// The uptime in our `Hello`, as long as the other side has not said who it is.
    pub(super) fn introduces(&self) -> Option<u64> {
        match self.state {
            State::Opening { uptime } => Some(uptime),
            _ => None,
        }
    }

    /// The other side is this node.
    pub(super) fn talk_with(&mut self, peer: NodeId, introduced: Option<Introduction>) {
        let exchange = Exchange::default();
        self.state = State::Talking(Box::new(Talk { peer, introduced, is_answered: false, exchange }));
    }

    /// What was said with a node that proved itself.
    pub(super) fn talk(&mut self) -> Option<&mut Talk> {
        match &mut self.state {
            State::Talking(talk) => Some(talk),
            _ => None,
        }
    }

    /// The node that introduced itself is asked to admit us. Gives false if it has named no cluster.
    pub(super) fn join(&mut self) -> bool {
        let State::Talking(talk) = &mut self.state else { return false };
        let Some(genesis) = talk.introduced.as_mut().and_then(|introduced| introduced.genesis.take()) else {
            return false;
        };
        let (peer, objects, alive) = (talk.peer, BTreeMap::new(), Vec::new());
        self.state = State::Joining(Box::new(Joining { peer, genesis, objects, alive }));
        true
    }

    /// The admission that we asked for.
    pub(super) fn joining(&mut self) -> Option<&mut Joining> {
        match &mut self.state {
            State::Joining(joining) => Some(joining),
            _ => None,
        }
    }

    /// The admission that we asked for is complete.
    pub(super) fn take_joining(&mut self) -> Option<Joining> {
        match std::mem::replace(&mut self.state, State::Opening { uptime: 0 }) {
            State::Joining(joining) => Some(*joining),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// The other side is of our cluster: from now on it is a push-pull.
    pub(super) fn become_push_pull(&mut self) {
        self.purpose = Purpose::PushPull;
    }

    /// All was said: it is kept for the next push-pull. Gives false if there was none.
    pub(super) fn rest(&mut self, now: Duration) -> bool {
        let State::Talking(talk) = &self.state else { return false };
        self.state = State::Resting { peer: talk.peer, since: now };
        true
    }

    /// Something is under way again on one that was kept.
    pub(super) fn begin_again(&mut self, now: Duration) {
        if let State::Resting { peer, .. } = self.state {
            self.talk_with(peer, None);
            self.began = now;
        }
    }

    /// Whether we opened it.
    pub(super) fn is_ours(&self) -> bool {
        self.stream.outbound
    }

    /// Whether we opened it for a purpose.
    pub(super) fn is_ours_for(&self, purpose: Purpose) -> bool {
        self.stream.outbound && self.purpose == purpose
    }

    pub(super) fn kind(&self) -> Kind {
        self.stream.kind
    }

    /// Session key that the other side proved.
    pub(super) fn remote_key(&self) -> Option<[u8; 32]> {
        self.stream.remote_static
    }

    /// Where the other side is.
    pub(super) fn remote(&self) -> SocketAddr {
        self.remote
    }

    pub(super) fn source(&self) -> IpAddr {
        self.remote.ip()
    }

    /// Whom we wanted to reach.
    pub(super) fn target(&self) -> Option<NodeId> {
        self.stream.target
    }

    pub(super) fn began(&self) -> Duration {
        self.began
    }

    /// When it began, or was held back last.
    pub(super) fn began_or_held(&self) -> Duration {
        self.began.max(self.held)
    }

    pub(super) fn is_proven(&self) -> bool {
        self.stream.proven
    }

    /// Whether its first frame was such as only somebody with a key can have made.
    pub(super) fn is_knocked(&self) -> bool {
        self.stream.knocked
    }

    pub(super) fn is_expected(&self) -> bool {
        self.expected
    }

    pub(super) fn is_joining(&self) -> bool {
        matches!(self.state, State::Joining(_))
    }

    /// Whether it is an introduction on which something was said.
    pub(super) fn is_introduction(&self) -> bool {
        (self.stream.outbound || self.stream.knocked)
            && matches!(self.purpose, Purpose::Introduce | Purpose::Seek)
    }

    /// Whether it is a push-pull of ours that is under way.
    pub(super) fn is_unfinished_push_pull(&self) -> bool {
        self.is_ours_for(Purpose::PushPull) && self.rests().is_none()
    }

    /// Whether a member of a cluster is looked for on it, and nobody has proven anything.
    pub(super) fn is_tried(&self) -> bool {
        self.purpose == Purpose::Seek && !self.stream.proven
    }

    /// Since when it is kept for the next push-pull.
    pub(super) fn rests(&self) -> Option<Duration> {
        match self.state {
            State::Resting { since, .. } => Some(since),
            _ => None,
        }
    }

    /// Whether the other side asked to be admitted and got its answer.
    pub(super) fn is_answered(&self) -> bool {
        matches!(&self.state, State::Talking(talk) if talk.is_answered)
    }

    /// Whether bytes that come are of an answer.
    pub(super) fn is_being_answered(&self) -> bool {
        match &self.state {
            State::Talking(talk) => !talk.exchange.is_new(),
            State::Joining(_) => true,
            State::Opening { .. } | State::Resting { .. } => false,
        }
    }

    /// Whether it was begun with a node, and something is under way on it.
    pub(super) fn is_busy_with(&self, node: &NodeId) -> bool {
        self.stream.target == Some(*node) && self.rests().is_none()
    }

    /// Whether one of ours may still come to something: others are tried beside one on which nobody proves anything for a
    /// while. An answer to the handshake proves nothing: it may have been sent on from elsewhere.
    pub(super) fn is_promising(&self, now: Duration, late: Duration) -> bool {
        let within = if self.stream.is_connecting() { CONNECTS_WITHIN } else { PROVES_WITHIN };
        self.stream.proven || now.saturating_sub(self.began) <= within + late * PER_LATE
    }

    /// How long the other side has said nothing although what we said was on its way.
    pub(super) fn silent_for(&self, now: Duration) -> Duration {
        now.saturating_sub(self.heard.max(self.held))
    }

    /// How long it has had all that we said, and has said nothing.
    pub(super) fn idle_for(&self, now: Duration) -> Option<Duration> {
        self.output.taken().map(|taken| now.saturating_sub(taken).min(self.silent_for(now)))
    }

    /// Whether somebody else opened it and has proven nothing yet.
    pub(super) fn is_unproven(&self) -> bool {
        !self.stream.outbound && !self.stream.proven
    }

    /// Whether somebody else opened it and proved himself in this way.
    pub(super) fn is_inbound_of(&self, kind: Kind) -> bool {
        !self.stream.outbound && self.stream.proven && self.stream.kind == kind
    }

    /// Whether a stranger opened it who was not let in, asks for nothing just now, and is being told nothing.
    pub(super) fn is_idle_stranger(&self) -> bool {
        self.is_inbound_of(Kind::Stranger)
            && !self.is_joining()
            && !self.is_answered()
            && self.output.is_empty()
    }

    /// Whether the other side has stopped reading.
    pub(super) fn is_not_read(&self, now: Duration) -> bool {
        self.output.is_not_read(self.held, now)
    }

    /// Bytes that the socket has not taken.
    pub(super) fn unsent(&self) -> usize {
        self.output.unsent()
    }

    /// When the socket took something last, if much waits.
    pub(super) fn unread_since(&self) -> Option<Duration> {
        self.output.is_unread().then(|| self.output.last_taken())
    }

    /// Whether it takes too long, or nobody uses it any more.
    pub(super) fn is_overdue(&self, now: Duration, late: Duration) -> bool {
        if self.is_unproven() && self.silent_for(now) > UNPROVEN_FOR + late {
            return true;
        }
        let (since, limit) = match self.state {
            State::Resting { since, .. } if self.stream.outbound => (since, REST),
            State::Resting { since, .. } => (since, REST * 2),
            _ => (self.began, STREAM_DEADLINE),
        };
        now.saturating_sub(since) > limit
    }
}
