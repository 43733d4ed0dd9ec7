// SPDX-License-Identifier: Apache-2.0
//! What happens to streams: bytes in and out, and which give way when there are too many. What is said on them is in
//! `introduce`, `exchange` and `output`.

use std::net::{IpAddr, SocketAddr};

use super::conversation::{Conversation, PER_LATE, Purpose};
use super::parts::Node;
use crate::command::{NetCommand, StreamId};
use crate::stream::{Kind, Stream, StreamEvent, StreamKeys};
use crate::wire::Malformed;

impl Node {
    pub(super) fn stream_accepted(&mut self, id: StreamId, from: SocketAddr) {
        if self.place.join().is_none() {
            self.ctx.rejects.count("stream over limit");
            return self.ctx.push(NetCommand::StreamClose { stream: id });
        }
        if let Some(busiest) = self.streams.unproven_to_end() {
            self.ctx.rejects.count("stream that gave way unproven");
            self.abandon(busiest);
        }
        let (now, ip) = (self.ctx.boottime(), from.ip());
        let expected = self.is_address_of_member(ip) || self.discovery.is_expected(ip, now);
        let conversation = Conversation::new(Stream::inbound(now), Purpose::Introduce, from);
        self.streams.add_inbound(id, Conversation { expected, ..conversation });
    }

    fn is_address_of_member(&mut self, ip: IpAddr) -> bool {
        let now = self.ctx.boottime();
        self.place.cluster_mut().is_some_and(|cluster| cluster.sessions.is_address_of_member(ip, now))
    }

    /// The first word under the keys of the handshake: whoever opened the stream is there, and it counts among those of its
    /// source. Gives whether it may stay.
    fn stream_proven(&mut self, id: StreamId, kind: Kind, source: IpAddr) -> bool {
        let late = self.ctx.load.late() * PER_LATE;
        if let Some(unused) = self.streams.makes_room(id, kind, source, self.ctx.boottime(), late) {
            self.abandon(unused);
        }
        let stays = self.streams.has_room_of(kind, source);
        if !stays {
            self.ctx.rejects.count("stream over limit");
            self.abandon(id);
        }
        stays
    }

    pub(super) fn stream_connected(&mut self, id: StreamId) {
        let Some(mut conversation) = self.streams.take(id) else { return };
        let remote = conversation.stream.target;
        let remote = remote
            .and_then(|node| Some(self.place.cluster()?.membership.roster().record(&node)?.session_key));
        let start = |stream: &mut Stream, keys: &mut StreamKeys<'_>| stream.start(keys, remote.as_ref());
        let started = self.with_stream(id, &mut conversation, start);
        self.streams.put(id, conversation);
        if started.is_err() {
            self.end(id);
        }
    }

    pub(super) fn stream_data(&mut self, id: StreamId, bytes: &[u8]) {
        let Some(mut conversation) = self.streams.take(id) else { return };
        let was_unproven = conversation.is_unproven();
        let receive = |stream: &mut Stream, keys: &mut StreamKeys<'_>| stream.receive(keys, bytes);
        let events = self.with_stream(id, &mut conversation, receive);
        let (is_proven, kind, source) =
            (conversation.stream.proven, conversation.stream.kind, conversation.remote.ip());
        if is_proven
            && (conversation.is_being_answered() || events.as_ref().is_ok_and(|events| !events.is_empty()))
        {
            conversation.heard = self.ctx.boottime();
        }
        self.streams.put(id, conversation);
        if is_proven && was_unproven && !self.stream_proven(id, kind, source) {
            return;
        }
        match events {
            Ok(events) => events.into_iter().for_each(|event| self.stream_event(id, event)),
            Err(malformed) => {
                self.ctx.rejects.count(malformed.0);
                self.end(id);
            }
        }
    }

    fn stream_event(&mut self, id: StreamId, event: StreamEvent) {
        let Some(mut conversation) = self.streams.take(id) else { return };
        match event {
            StreamEvent::Opened => self.stream_opened(id, &mut conversation),
            StreamEvent::Message(message) => self.stream_message(id, &mut conversation, message),
        }
        self.streams.put(id, conversation);
    }

    /// Runs something on a stream with all it needs to know, and sends what it has to say.
    fn with_stream<R>(
        &mut self,
        id: StreamId,
        conversation: &mut Conversation,
        run: impl FnOnce(&mut Stream, &mut StreamKeys<'_>) -> Result<R, Malformed>,
    ) -> Result<R, Malformed> {
        let now = self.ctx.boottime();
        let source = conversation.remote.ip();
        let (cluster, join) = self.place.both_mut();
        let id_and_tag = cluster
            .as_ref()
            .map(|cluster| (cluster.membership.roster().cluster(), cluster.sessions.stream_tag().clone()));
        let mut sessions = cluster.map(|cluster| &mut cluster.sessions);
        let limits = self.streams.limits();
        let mut agree = |frame: &[u8]| {
            if limits.came_before(frame, now) {
                return Err(Malformed("stream whose first frame came before"));
            }
            let allowed = limits.allow(source, sessions.as_deref_mut(), now);
            if allowed { Ok(()) } else { Err(Malformed("stream over limit")) }
        };
        let mut stream_keys = StreamKeys {
            rng: &mut self.ctx.rng,
            secret: self.keys.session_secret(),
            join: join.map(|join| (&join.seal, &join.psk)),
            cluster: id_and_tag.as_ref().map(|(id, tag)| (*id, tag)),
            agree: &mut agree,
        };
        let outcome = run(&mut conversation.stream, &mut stream_keys);
        self.flush(id, conversation);
        outcome
    }

    pub(super) fn stream_closed(&mut self, id: StreamId) {
        let closed = self.streams.remove(id);
        let failed = |one: Box<Conversation>| {
            one.stream.outbound && one.purpose == Purpose::PushPull && one.rests().is_none()
        };
        // It does not know us yet, or needed the room just when we used again what was kept. Another one is asked soon, unless
        // so many failed that there is no hurry any more.
        if closed.is_some_and(failed)
            && let Some(cluster) = self.place.cluster_mut()
            && cluster.push_pull.is_learning()
        {
            cluster.push_pull.again(&mut self.ctx);
        }
    }

    /// Ends one of ours on which nothing comes: another node is asked.
    fn give_up(&mut self, id: StreamId) {
        self.ctx.outbox.abandon(id);
        self.stream_closed(id);
    }

    /// Closes streams that take too long, and those that nobody uses any more.
    pub(super) fn stream_tick(&mut self) {
        let (now, late) = (self.ctx.boottime(), self.ctx.load.late() * PER_LATE);
        self.streams.note_held(self.ctx.outbox.held_back(), now);
        for id in self.streams.unread(now) {
            self.ctx.rejects.count("stream that is not read");
            self.abandon(id);
        }
        for id in self.streams.silent(now, late) {
            self.give_up(id);
        }
        for id in self.streams.stalled(now, late) {
            self.ctx.rejects.count("stream on which nothing goes on");
            self.abandon(id);
        }
        for id in self.streams.overdue(now, late) {
            self.abandon(id);
        }
    }
}
