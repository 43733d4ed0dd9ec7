// SPDX-License-Identifier: Apache-2.0
//! Push-pulls with members: when one begins, and what is done with what is said in it.

use super::conversation::Conversation;
use super::output::{Page, Then};
use super::parts::Node;
use super::push_pull::{Begin, PushPull};
use super::streams::Purpose;
use crate::command::StreamId;
use crate::consts::exchange::MAX_LACKING;
use crate::id::NodeId;
use crate::stream::Kind;
use crate::summary::Summary;
use crate::sync::Message;

impl Node {
    /// Begins a push-pull with a member when it is time.
    pub(super) fn push_pull_tick(&mut self) {
        let Some(cluster) = self.place.cluster_mut() else { return };
        if self.ctx.boottime() < cluster.push_pull.next() {
            return;
        }
        let under_way = self.streams.begun_since(PushPull::counts_since(&self.ctx), Purpose::PushPull);
        let (membership, sessions, kept) = (&cluster.membership, &cluster.sessions, self.streams.kept());
        let Some(Begin { with, on }) =
            cluster.push_pull.tick(membership, sessions, under_way, kept, &mut self.ctx)
        else {
            return;
        };
        cluster.membership.asks(&with);
        if let Some(id) = on {
            return self.converse(id, |node, conversation| {
                conversation.begin_again(node.ctx.boottime());
                node.begin_exchange(id, conversation);
            });
        }
        let heard = cluster.sessions.path(&with).map(|path| path.address);
        if let Some(to) = heard.or_else(|| Some(self.paths_to(&with).first()?.address)) {
            self.connect(Kind::Member, Purpose::PushPull, with, to);
        }
    }

    /// Says what we have, in short. The side that opened the stream begins.
    pub(super) fn begin_exchange(&mut self, id: StreamId, conversation: &mut Conversation) {
        let wall = self.clock.said(self.ctx.now);
        let Some(summary) = self.summary() else { return self.end(id) };
        let first = [Message::Clock(wall), Message::Summary(Box::new(summary))];
        self.answer(id, conversation, first.map(Page::Say).into(), None);
    }

    fn summary(&self) -> Option<Summary> {
        self.place.cluster().map(|cluster| cluster.membership.summary())
    }

    /// One message of a push-pull.
    pub(super) fn exchange_message(
        &mut self,
        id: StreamId,
        conversation: &mut Conversation,
        message: Message,
    ) {
        if conversation.rests().is_some() {
            if conversation.is_ours() || !matches!(message, Message::Clock(_)) {
                return self.out_of_place(id);
            }
            conversation.begin_again(self.ctx.boottime());
            // It may cost a roster, as one on a new stream.
            if !self.allows_one_more(conversation.source()) {
                self.ctx.rejects.count("stream over limit");
                return self.end(id);
            }
        }
        let ours = conversation.is_ours();
        let Some(talk) = conversation.talk() else { return };
        let peer = talk.peer;
        let is_member = self.is_member(&peer);
        // A member may have been admitted while we were away. What it brings is signed, so it can prove that.
        let claimed = talk.introduced.as_ref().and_then(|introduced| introduced.genesis.as_ref());
        let is_fellow = is_member
            || self.place.cluster().is_some_and(|cluster| {
                claimed.is_some_and(|genesis| genesis.cluster == cluster.membership.roster().cluster())
            });
        if !is_fellow && !matches!(message, Message::Done) {
            self.ctx.rejects.count("push-pull of a node that is no member");
            return self.end(id);
        }
        let exchange = &mut talk.exchange;
        if !exchange.takes(&message, ours) {
            return self.out_of_place(id);
        }
        match message {
            Message::Done => {
                self.vouch_for_newcomer(conversation);
                self.rest(id, conversation);
            }
            Message::Clock(wall) if is_member => self.clock.heard(peer, wall, self.ctx.now),
            Message::Clock(_) => {}
            Message::Summary(theirs) => self.compare(id, conversation, peer, &theirs),
            Message::Alive(known) => {
                if !exchange.counts_alive(&known) {
                    return self.out_of_place(id);
                }
                self.learn_alive(known);
            }
            Message::Objects(objects) => {
                if !self.learn_all(&objects, peer) {
                    self.end(id);
                }
            }
            Message::Have(digests, last) => {
                let Some(cluster) = self.place.cluster() else { return self.end(id) };
                for digest in digests {
                    if cluster.membership.roster().knows(&digest) {
                        exchange.named.insert(digest);
                    } else if exchange.lacking.len() < MAX_LACKING {
                        exchange.lacking.push(digest);
                    }
                }
                if last {
                    let pages = exchange.give_and_ask();
                    self.answer(id, conversation, pages, None);
                }
            }
            Message::Want(digests, last) => {
                let Some(cluster) = self.place.cluster() else { return self.end(id) };
                let known = digests.iter().filter(|digest| cluster.membership.roster().knows(digest));
                exchange.named.extend(known);
                if last {
                    let pages = exchange.give_wanted();
                    self.answer(id, conversation, pages, Some(Then::Rest));
                }
            }
            _ => self.out_of_place(id),
        }
    }

    /// The other side's summary came. Who was asked answers with its own and lists what it has where they differ.
    fn compare(&mut self, id: StreamId, conversation: &mut Conversation, peer: NodeId, theirs: &Summary) {
        let asked = !conversation.is_ours();
        if asked && !self.streams.may_ask(&peer, self.ctx.boottime()) {
            self.ctx.rejects.count("push-pulls over limit");
            return self.end(id);
        }
        let Some(ours) = self.summary() else { return self.end(id) };
        let differs = ours.difference(theirs);
        if let Some(talk) = conversation.talk() {
            talk.exchange.differs = differs;
        }
        if !asked {
            return;
        }
        let clock = Page::Say(Message::Clock(self.clock.said(self.ctx.now)));
        let (pages, then) = if differs.is_none() {
            (vec![clock, Page::Say(Message::Done)], Some(Then::Rest))
        } else {
            let summary = Page::Say(Message::Summary(Box::new(ours)));
            (vec![clock, summary, Page::Have(differs, None)], None)
        };
        self.answer(id, conversation, pages, then);
    }

    /// Whom we admitted said that it has all it asked for: it is up, and gossip says so from now on. It would be some time
    /// before its first session said the same. Before that it could not answer those who hear that it is up.
    fn vouch_for_newcomer(&mut self, conversation: &mut Conversation) {
        if let Some(talk) = conversation.talk()
            && let Some(newcomer) = talk.introduced.as_ref().filter(|_| talk.is_answered)
            && let Some(cluster) = self.place.cluster_mut()
        {
            cluster.membership.vouch_for(&newcomer.record, self.ctx.boottime());
        }
    }
}
