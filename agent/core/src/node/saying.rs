// SPDX-License-Identifier: Apache-2.0
//! What the node does on streams, whatever it is said for: opens them, says things page by page, ends them.

use std::net::{IpAddr, SocketAddr};

use super::conversation::{Conversation, PER_LATE, Purpose, State};
use super::output::{Page, Then};
use super::parts::Node;
use super::push_pull::KEPT;
use crate::command::{NetCommand, StreamId};
use crate::id::NodeId;
use crate::record::is_endpoint;
use crate::stream::{Kind, Stream};
use crate::sync::Message;

impl Node {
    /// Opens a stream to a node.
    pub(super) fn connect(&mut self, kind: Kind, purpose: Purpose, node: NodeId, to: SocketAddr) {
        if !is_endpoint(&to) {
            return;
        }
        if !self.streams.has_room_for(purpose) {
            let late = self.ctx.load.late() * PER_LATE;
            let Some(silent) = self.streams.gives_way(purpose, self.ctx.boottime(), late) else { return };
            self.abandon(silent);
        }
        let stream = Stream::outbound(kind, node, self.ctx.boottime());
        let id = self.streams.add_outbound(Conversation::new(stream, purpose, to));
        self.ctx.push(NetCommand::Connect { stream: id, to });
    }

    /// Whether a source may begin one more conversation.
    pub(super) fn allows_one_more(&mut self, source: IpAddr) -> bool {
        let now = self.ctx.boottime();
        let sessions = self.place.cluster_mut().map(|cluster| &mut cluster.sessions);
        self.streams.limits().allow(source, sessions, now)
    }

    /// Says several things, as the other side takes them.
    pub(super) fn answer(
        &mut self,
        id: StreamId,
        conversation: &mut Conversation,
        pages: Vec<Page>,
        then: Option<Then>,
    ) {
        conversation.output.pages.extend(pages);
        conversation.output.then = then;
        self.go_on_saying(id, conversation);
    }

    /// Says something on a stream, after all that is still to be said.
    pub(super) fn say(&mut self, id: StreamId, conversation: &mut Conversation, message: Message) {
        self.answer(id, conversation, vec![Page::Say(message)], None);
    }

    /// The socket took what was said.
    pub(super) fn stream_sent(&mut self, id: StreamId, bytes: usize) {
        let Some(mut conversation) = self.streams.take(id) else { return };
        conversation.output.sent(bytes, self.ctx.boottime());
        self.go_on_saying(id, &mut conversation);
        self.streams.put(id, conversation);
    }

    fn go_on_saying(&mut self, id: StreamId, conversation: &mut Conversation) {
        while self.streams.has(id) && !conversation.output.waits() {
            let Some(mut page) = conversation.output.pages.pop_front() else {
                return match conversation.output.then.take() {
                    Some(Then::Rest) => self.rest(id, conversation),
                    Some(Then::End) => self.end(id),
                    None => {}
                };
            };
            let membership = self.place.cluster().map(|cluster| &cluster.membership);
            let (message, more) = page.part(membership);
            if more {
                conversation.output.pages.push_front(page);
            }
            if let Some(message) = message {
                self.make_room_to_say(conversation);
                match conversation.stream.send(&message) {
                    Ok(()) => self.flush(id, conversation),
                    Err(_) => self.end(id),
                }
            }
        }
    }

    /// Whoever has read nothing for the longest time gives way when all streams together hold too much.
    fn make_room_to_say(&mut self, conversation: &Conversation) {
        while let Some(slowest) = self.streams.slowest_of_too_much(conversation.output.unsent()) {
            self.ctx.rejects.count("stream that is not read");
            self.end(slowest);
        }
    }

    pub(super) fn flush(&mut self, id: StreamId, conversation: &mut Conversation) {
        let bytes = conversation.stream.take_output();
        if !bytes.is_empty() {
            conversation.output.said(bytes.len(), self.ctx.boottime());
            self.ctx.push(NetCommand::StreamSend { stream: id, bytes });
        }
    }

    /// All of a push-pull was said. On a busy machine its stream is kept for the next one, if that will come soon.
    pub(super) fn rest(&mut self, id: StreamId, conversation: &mut Conversation) {
        let learning = self.place.cluster().is_some_and(|cluster| cluster.push_pull.is_learning());
        let keeps = self.ctx.load.is_busy() && learning && self.streams.kept().len() < KEPT;
        let State::Talking(talk) = &conversation.state else { return self.end(id) };
        // Who opened it decides.
        if conversation.stream.kind != Kind::Member || (conversation.stream.outbound && !keeps) {
            return self.end(id);
        }
        conversation.state = State::Resting { peer: talk.peer, since: self.ctx.boottime() };
    }

    /// Ends a stream after what was said on it.
    pub(super) fn end(&mut self, id: StreamId) {
        self.streams.end(id, &mut self.ctx);
    }

    /// Ends a stream at once: nobody reads what is still to be said on it, or it holds a place that others need.
    pub(super) fn abandon(&mut self, id: StreamId) {
        self.ctx.outbox.abandon(id);
        self.streams.remove(id);
    }

    /// Whoever says what has no place there says it once.
    pub(super) fn out_of_place(&mut self, id: StreamId) {
        self.ctx.rejects.count("stream message out of place");
        self.end(id);
    }
}
