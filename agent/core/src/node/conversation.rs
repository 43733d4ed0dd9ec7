// SPDX-License-Identifier: Apache-2.0
//! One stream and how far the conversation on it has come.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::exchange::Exchange;
use super::output::Output;
use crate::gossip::Liveness;
use crate::id::NodeId;
use crate::record::NodeRecord;
use crate::roster::{Genesis, Object};
use crate::signed::{ObjectDigest, Verified};
use crate::stream::{Kind, Stream};

/// One of ours is tried with a node that does not take the connection, or does not prove itself on it, for so long before
/// others are tried beside it. A slow machine has a crowd to prove itself to.
const CONNECTS_WITHIN: Duration = Duration::from_secs(1);
const PROVES_WITHIN: Duration = Duration::from_secs(3);
/// Longer by so many times what ticks are late: the key agreements of a crowd take their time.
pub(super) const PER_LATE: u32 = 2;

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
    pub(super) state: State,
    pub(super) output: Output,
    /// When what is under way on it began.
    pub(super) began: Duration,
    /// When something was said on it last, or bytes of an answer came.
    pub(super) heard: Duration,
    /// When a write last held back what we have to say on it: until then the other side's silence is ours.
    pub(super) held: Duration,
    /// Whether somebody with the join key was thought to be at its address when it was accepted.
    pub(super) expected: bool,
}

/// How far a conversation has come.
pub(super) enum State {
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

impl State {
    pub(super) fn talking(peer: NodeId, introduced: Option<Introduction>) -> Self {
        Self::Talking(Box::new(Talk { peer, introduced, is_answered: false, exchange: Exchange::default() }))
    }
}

impl Conversation {
    pub(super) fn new(stream: Stream, purpose: Purpose, remote: SocketAddr) -> Self {
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
            expected: false,
        }
    }

    pub(super) fn is_joining(&self) -> bool {
        matches!(self.state, State::Joining(_))
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

    /// How long the other side has said nothing, since then at the earliest, although what we said was on its way.
    pub(super) fn silent_since(&self, then: Duration, now: Duration) -> Duration {
        now.saturating_sub(self.heard.max(self.held).max(then))
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
}
