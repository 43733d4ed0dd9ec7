// SPDX-License-Identifier: Apache-2.0
//! What happens to streams: bytes in and out, and which give way when there are too many. What is said on them is in
//! `introduce` and `reconcile`.

use std::net::{IpAddr, SocketAddr};

use super::conversation::Conversation;
use super::ctx::Ctx;
use super::parts::Node;
use super::place::{Cluster, Join};
use super::streams::Streams;
use crate::command::{NetCommand, StreamId};
use crate::consts::streams::PER_LATE;
use crate::stream::{Kind, Stream, StreamEvent, StreamKeys};
use crate::wire::Malformed;

/// What handshakes need to know of the node.
struct Side<'a> {
    secret: &'a [u8; 32],
    join: Option<&'a Join>,
    cluster: Option<&'a mut Cluster>,
}

impl Streams {
    /// Somebody opened a stream. `expected`: perhaps with the join key.
    fn accept(&mut self, id: StreamId, from: SocketAddr, expected: bool, ctx: &mut Ctx) {
        if let Some(busiest) = self.unproven_to_end() {
            ctx.rejects.count("stream that gave way unproven");
            self.abandon(busiest, ctx);
        }
        self.add_inbound(id, Conversation::inbound(from, expected, ctx.boottime()));
    }

    /// The connection of one of ours stands.
    fn start(&mut self, id: StreamId, side: &mut Side<'_>, ctx: &mut Ctx) {
        let Some(mut conversation) = self.take(id) else { return };
        let roster = side.cluster.as_ref().map(|cluster| cluster.membership.roster());
        let remote = conversation.target().and_then(|node| Some(roster?.record(&node)?.session_key));
        let started =
            self.run(id, &mut conversation, side, ctx, |stream, keys| stream.start(keys, remote.as_ref()));
        self.put(id, conversation);
        if started.is_err() {
            self.end(id, ctx);
        }
    }

    /// Bytes came. Gives what they say.
    fn receive(
        &mut self,
        id: StreamId,
        bytes: &[u8],
        side: &mut Side<'_>,
        ctx: &mut Ctx,
    ) -> Vec<StreamEvent> {
        let Some(mut conversation) = self.take(id) else { return Vec::new() };
        let was_unproven = conversation.is_unproven();
        let events = self.run(id, &mut conversation, side, ctx, |stream, keys| stream.receive(keys, bytes));
        let (is_proven, kind, source) =
            (conversation.is_proven(), conversation.kind(), conversation.source());
        if is_proven
            && (conversation.is_being_answered() || events.as_ref().is_ok_and(|events| !events.is_empty()))
        {
            conversation.note_heard(ctx.boottime());
        }
        self.put(id, conversation);
        if is_proven && was_unproven && !self.counts(id, kind, source, ctx) {
            return Vec::new();
        }
        events.unwrap_or_else(|malformed| {
            ctx.rejects.count(malformed.0);
            self.end(id, ctx);
            Vec::new()
        })
    }

    /// The first word under the keys of the handshake: whoever opened the stream is there, and it counts among those of its
    /// source. Gives whether it may stay.
    fn counts(&mut self, id: StreamId, kind: Kind, source: IpAddr, ctx: &mut Ctx) -> bool {
        let late = ctx.load.late() * PER_LATE;
        if let Some(unused) = self.makes_room(id, kind, source, ctx.boottime(), late) {
            self.abandon(unused, ctx);
        }
        let stays = self.has_room_of(kind, source);
        if !stays {
            ctx.rejects.count("stream over limit");
            self.abandon(id, ctx);
        }
        stays
    }

    /// Runs something on a stream with all it needs to know, and sends what it has to say.
    fn run<R>(
        &mut self,
        id: StreamId,
        conversation: &mut Conversation,
        side: &mut Side<'_>,
        ctx: &mut Ctx,
        run: impl FnOnce(&mut Stream, &mut StreamKeys<'_>) -> Result<R, Malformed>,
    ) -> Result<R, Malformed> {
        let (now, source, limits) = (ctx.boottime(), conversation.source(), self.limits());
        let mut sessions = side
            .cluster
            .as_deref_mut()
            .map(|cluster| (cluster.membership.roster().cluster(), &mut cluster.sessions));
        let cluster = sessions.as_ref().map(|(id, sessions)| (*id, sessions.stream_tag().clone()));
        let mut agree = |frame: &[u8]| {
            if limits.came_before(frame, now) {
                return Err(Malformed("stream whose first frame came before"));
            }
            let allowed = limits.allow(source, sessions.as_mut().map(|(_, sessions)| &mut **sessions), now);
            if allowed { Ok(()) } else { Err(Malformed("stream over limit")) }
        };
        conversation.run(id, ctx, |stream, ctx| {
            let mut keys = StreamKeys {
                rng: &mut ctx.rng,
                secret: side.secret,
                join: side.join.map(|join| (&join.seal, &join.psk)),
                cluster: cluster.as_ref().map(|(id, tag)| (*id, tag)),
                agree: &mut agree,
            };
            run(stream, &mut keys)
        })
    }

    /// Closes streams that take too long, and those that nobody uses any more. Gives how many push-pulls of
    /// ours came to nothing.
    fn tick(&mut self, ctx: &mut Ctx) -> usize {
        let (now, late) = (ctx.boottime(), ctx.load.late() * PER_LATE);
        self.note_held(ctx.outbox.held_back(), now);
        for id in self.unread(now) {
            ctx.rejects.count("stream that is not read");
            self.abandon(id, ctx);
        }
        let silent = self.silent(now, late).into_iter().filter_map(|id| self.abandon(id, ctx));
        let failed = silent.filter(|one| one.is_unfinished_push_pull()).count();
        for id in self.stalled(now, late) {
            ctx.rejects.count("stream on which nothing goes on");
            self.abandon(id, ctx);
        }
        for id in self.overdue(now, late) {
            self.abandon(id, ctx);
        }
        failed
    }
}

impl Node {
    pub(super) fn stream_accepted(&mut self, id: StreamId, from: SocketAddr) {
        if self.place.join().is_none() {
            self.ctx.rejects.count("stream over limit");
            return self.ctx.push(NetCommand::StreamClose { stream: id });
        }
        let (now, ip) = (self.ctx.boottime(), from.ip());
        let cluster = self.place.cluster_mut();
        let expected = cluster.is_some_and(|cluster| cluster.sessions.is_address_of_member(ip, now))
            || self.discovery.is_expected(ip, now);
        self.streams.accept(id, from, expected, &mut self.ctx);
    }

    pub(super) fn stream_connected(&mut self, id: StreamId) {
        self.with_streams(|streams, side, ctx| streams.start(id, side, ctx));
    }

    pub(super) fn stream_data(&mut self, id: StreamId, bytes: &[u8]) {
        for event in self.with_streams(|streams, side, ctx| streams.receive(id, bytes, side, ctx)) {
            self.converse(id, |node, conversation| match event {
                StreamEvent::Opened => node.stream_opened(id, conversation),
                StreamEvent::Message(message) => node.stream_message(id, conversation, message),
            });
        }
    }

    fn with_streams<R>(&mut self, run: impl FnOnce(&mut Streams, &mut Side<'_>, &mut Ctx) -> R) -> R {
        let (cluster, join) = self.place.both_mut();
        let mut side = Side { secret: self.keys.session_secret(), join, cluster };
        run(&mut self.streams, &mut side, &mut self.ctx)
    }

    pub(super) fn stream_closed(&mut self, id: StreamId) {
        if self.streams.remove(id).is_some_and(|closed| closed.is_unfinished_push_pull()) {
            self.push_pull_failed();
        }
    }

    /// Its member does not know us yet, or needed the room just when we used again what was kept. Another one is asked soon,
    /// unless so many failed that there is no hurry any more.
    fn push_pull_failed(&mut self) {
        if let Some(cluster) = self.place.cluster_mut()
            && cluster.push_pull.is_learning()
        {
            cluster.push_pull.again(&mut self.ctx);
        }
    }

    /// Closes streams that are of no use.
    pub(super) fn stream_tick(&mut self) {
        for _ in 0..self.streams.tick(&mut self.ctx) {
            self.push_pull_failed();
        }
    }
}
