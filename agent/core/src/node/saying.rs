// SPDX-License-Identifier: Apache-2.0
//! What the node does on streams, whatever it is said for: opens them, says things page by page, ends them.

use std::net::{IpAddr, SocketAddr};

use super::conversation::{Conversation, Purpose};
use super::output::{Next, Page, Then};
use super::parts::Node;
use crate::command::{NetCommand, StreamId};
use crate::consts::push_pull::KEPT;
use crate::consts::streams::PER_LATE;
use crate::id::NodeId;
use crate::record::is_endpoint;
use crate::stream::Kind;
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
            self.streams.abandon(silent, &mut self.ctx);
        }
        let conversation = Conversation::outbound(kind, purpose, node, to, self.ctx.boottime());
        let id = self.streams.add_outbound(conversation);
        self.ctx.push(NetCommand::Connect { stream: id, to });
    }

    /// Goes on with a conversation, unless it has ended.
    pub(super) fn converse(&mut self, id: StreamId, go_on: impl FnOnce(&mut Self, &mut Conversation)) {
        let Some(mut conversation) = self.streams.take(id) else { return };
        go_on(self, &mut conversation);
        self.streams.put(id, conversation);
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
        conversation.output().queue(pages, then);
        self.go_on_saying(id, conversation);
    }

    /// Says something on a stream, after all that is still to be said.
    pub(super) fn say(&mut self, id: StreamId, conversation: &mut Conversation, message: Message) {
        self.answer(id, conversation, vec![Page::Say(message)], None);
    }

    /// The socket took what was said.
    pub(super) fn stream_sent(&mut self, id: StreamId, bytes: usize) {
        self.converse(id, |node, conversation| {
            conversation.output().sent(bytes, node.ctx.boottime());
            node.go_on_saying(id, conversation);
        });
    }

    fn go_on_saying(&mut self, id: StreamId, conversation: &mut Conversation) {
        while self.streams.has(id) && !conversation.output().waits() {
            let membership = self.place.cluster().map(|cluster| &cluster.membership);
            match conversation.output().next(membership) {
                Next::Say(message) => {
                    self.make_room_to_say(conversation);
                    if conversation.send(id, &message, &mut self.ctx).is_err() {
                        self.end(id);
                    }
                }
                Next::Do(Then::Rest) => return self.rest(id, conversation),
                Next::Do(Then::End) => return self.end(id),
                Next::Nothing => return,
            }
        }
    }

    /// Whoever has read nothing for the longest time gives way when all streams together hold too much.
    fn make_room_to_say(&mut self, conversation: &Conversation) {
        while let Some(slowest) = self.streams.slowest_of_too_much(conversation.unsent()) {
            self.ctx.rejects.count("stream that is not read");
            self.end(slowest);
        }
    }

    /// All of a push-pull was said. On a busy machine its stream is kept for the next one, if that will come soon.
    pub(super) fn rest(&mut self, id: StreamId, conversation: &mut Conversation) {
        let learning = self.place.cluster().is_some_and(|cluster| cluster.push_pull.is_learning());
        let keeps = self.ctx.load.is_busy() && learning && self.streams.kept().len() < KEPT;
        // Who opened it decides.
        let may = conversation.kind() == Kind::Member && (keeps || !conversation.is_ours());
        if !may || !conversation.rest(self.ctx.boottime()) {
            self.end(id);
        }
    }

    /// Ends a stream after what was said on it.
    pub(super) fn end(&mut self, id: StreamId) {
        self.streams.end(id, &mut self.ctx);
    }

    /// Whoever says what has no place there says it once.
    pub(super) fn out_of_place(&mut self, id: StreamId) {
        self.ctx.rejects.count("stream message out of place");
        self.end(id);
    }
}
