// SPDX-License-Identifier: Apache-2.0
//! What is said in a push-pull: two members compare what they hold and give each other what is missing, and what their gossip
//! knows. Broadcasts are only hints; this is what makes all know all. Summaries come first, so that two who know the same say
//! little.

use std::collections::BTreeSet;

use super::conversation::{Conversation, State};
use super::introduce::MAX_OBJECTS;
use super::output::{Page, Then, Which};
use super::push_pull::{Begin, PushPull};
use super::streams::Purpose;
use super::{Node, Place};
use crate::command::StreamId;
use crate::gossip::Liveness;
use crate::id::NodeId;
use crate::signed::ObjectDigest;
use crate::stream::Kind;
use crate::summary::{Difference, Summary};
use crate::sync::Message;

/// More is not asked for at once; what is missing then comes with the next push-pull.
const MAX_LACKING: usize = 12_288;
/// More than gossip knows of the largest cluster.
pub(super) const MAX_ALIVE: usize = 8192;
/// Messages of one push-pull. The largest takes half of that.
const MAX_MESSAGES: u32 = 1024;
/// What was said in a push-pull so far.
#[derive(Default)]
pub(super) struct Exchange {
    step: Step,
    messages: u32,
    /// What the peer listed, asked for and gave. Honest ones say nothing twice.
    listed: usize,
    wanted: usize,
    given: usize,
    /// Of what we have: what the peer has, too, or what it wants.
    named: BTreeSet<ObjectDigest>,
    /// Of what the peer has: what we lack.
    lacking: Vec<ObjectDigest>,
    alive_said: usize,
    /// What the two summaries say is different.
    differs: Difference,
}

/// What may be said next in a push-pull. Anything else ends the stream, so that nothing that takes work is asked for twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    /// Clock. Who opened the stream has said its own clock and summary.
    #[default]
    Begin,
    /// Summary; to who opened the stream also Done.
    Compare,
    /// To who opened the stream: Have. To the other: Objects, Alive, Want.
    List,
    /// To who opened the stream: Objects, Alive, Done.
    Give,
}

impl Exchange {
    fn counts_alive(&mut self, known: &[Liveness]) -> bool {
        self.alive_said += known.len();
        self.alive_said <= MAX_ALIVE
    }

    /// Whether nothing of a push-pull was said.
    pub(super) fn is_new(&self) -> bool {
        self.step == Step::Begin
    }

    /// The other side listed what it has where we differ: give what it lacks, ask for what we lack.
    fn give_and_ask(&mut self) -> Vec<Page> {
        let theirs = std::mem::take(&mut self.named);
        vec![
            Page::Objects(Which::Lacked(self.differs, theirs), None),
            // After the objects: liveness of nodes that are no members yet would be dropped.
            Page::Alive(Some(self.differs), 0),
            Page::Want(std::mem::take(&mut self.lacking)),
        ]
    }

    /// The other side said what it lacks.
    fn give_wanted(&mut self) -> Vec<Page> {
        let wanted = Which::Wanted(std::mem::take(&mut self.named));
        let alive = Page::Alive(Some(self.differs), 0);
        vec![Page::Objects(wanted, None), alive, Page::Say(Message::Done)]
    }

    /// Whether a message is in its place; goes on to what may come next.
    fn takes(&mut self, message: &Message, opened_it: bool) -> bool {
        self.messages += 1;
        match message {
            Message::Have(digests, _) => self.listed += digests.len(),
            Message::Want(digests, _) => self.wanted += digests.len(),
            Message::Objects(objects) => self.given += objects.len(),
            _ => {}
        }
        let next = match (self.step, message, opened_it) {
            // Whoever has said all may say so at any time.
            (step, Message::Done, _) => step,
            (Step::Begin, Message::Clock(_), _) => Step::Compare,
            (Step::Compare, Message::Summary(_), _) => Step::List,
            (Step::List, Message::Have(_, last), true) => {
                if *last {
                    Step::Give
                } else {
                    Step::List
                }
            }
            (Step::List, Message::Objects(_) | Message::Alive(_) | Message::Want(..), false) => Step::List,
            (Step::Give, Message::Objects(_) | Message::Alive(_), true) => Step::Give,
            _ => return false,
        };
        self.step = next;
        self.messages <= MAX_MESSAGES
            && self.listed.max(self.given) <= MAX_OBJECTS
            && self.wanted <= MAX_LACKING
    }
}

impl Node {
    /// Begins a push-pull with a member when it is time.
    pub(super) fn push_pull_tick(&mut self) {
        let Place::Member(cluster) = &mut self.place else { return };
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
        if let Some(id) = on
            && let Some(mut conversation) = self.streams.take(id)
        {
            self.begin_again(with, &mut conversation);
            self.begin_exchange(id, &mut conversation);
            return self.streams.put(id, conversation);
        }
        let heard = cluster.sessions.path(&with).map(|path| path.address);
        if let Some(to) = heard.or_else(|| Some(self.paths_to(&with).first()?.address)) {
            self.connect(Kind::Member, Purpose::PushPull, with, to);
        }
    }

    /// Something new was learned from another member: the next push-pull comes soon.
    pub(super) fn hurry_push_pull(&mut self) {
        if let Place::Member(cluster) = &mut self.place {
            cluster.push_pull.hurry(&mut self.ctx);
        }
    }

    /// Something is under way again on a stream that was kept.
    fn begin_again(&self, peer: NodeId, conversation: &mut Conversation) {
        conversation.state = State::talking(peer, None);
        conversation.began = self.ctx.boottime();
    }

    /// Says what we have, in short. The side that opened the stream begins.
    pub(super) fn begin_exchange(&mut self, id: StreamId, conversation: &mut Conversation) {
        let wall = self.clock.said(self.ctx.now);
        let Some(summary) = self.summary() else { return self.end(id) };
        let first = [Message::Clock(wall), Message::Summary(Box::new(summary))];
        self.answer(id, conversation, first.map(Page::Say).into(), None);
    }

    fn summary(&self) -> Option<Summary> {
        self.cluster().map(|cluster| cluster.membership.summary())
    }

    /// One message of a push-pull.
    pub(super) fn exchange_message(
        &mut self,
        id: StreamId,
        conversation: &mut Conversation,
        message: Message,
    ) {
        if let State::Resting { peer, .. } = conversation.state {
            if conversation.stream.outbound || !matches!(message, Message::Clock(_)) {
                return self.out_of_place(id);
            }
            self.begin_again(peer, conversation);
            // It may cost a roster, as one on a new stream.
            if !self.allows_one_more(conversation.remote.ip()) {
                self.ctx.rejects.count("stream over limit");
                return self.end(id);
            }
        }
        let State::Talking(talk) = &mut conversation.state else { return };
        let peer = talk.peer;
        let is_member = self.cluster().is_some_and(|cluster| cluster.membership.roster().is_member(&peer));
        // A member may have been admitted while we were away. What it brings is signed, so it can prove that.
        let claimed = talk.introduced.as_ref().and_then(|introduced| introduced.genesis.as_ref());
        let is_fellow = is_member
            || self.cluster().is_some_and(|cluster| {
                claimed.is_some_and(|genesis| genesis.cluster == cluster.membership.roster().cluster())
            });
        if !is_fellow && !matches!(message, Message::Done) {
            self.ctx.rejects.count("push-pull of a node that is no member");
            return self.end(id);
        }
        let exchange = &mut talk.exchange;
        if !exchange.takes(&message, conversation.stream.outbound) {
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
                let Place::Member(cluster) = &self.place else { return self.end(id) };
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
                let Place::Member(cluster) = &self.place else { return self.end(id) };
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
        let asked = !conversation.stream.outbound;
        if asked && !self.streams.may_ask(&peer, self.ctx.boottime()) {
            self.ctx.rejects.count("push-pulls over limit");
            return self.end(id);
        }
        let Some(ours) = self.summary() else { return self.end(id) };
        let differs = ours.difference(theirs);
        if let State::Talking(talk) = &mut conversation.state {
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
}
