// SPDX-License-Identifier: Apache-2.0
//! Push-pull: two members compare what they hold and give each other what is missing, and what their gossip knows.
//! Broadcasts are only hints; this is what makes all know all. Summaries come first, so that two who know the same say
//! little. Who learns something new asks again soon, which is how a thousand nodes that join at once know each other
//! after seconds; who learns nothing asks ever more rarely.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::seq::IndexedRandom;

use super::introduce::MAX_OBJECTS;
use super::output::{Page, Then, Which};
use super::streams::{KEPT, Purpose};
use super::{Node, Place};
use crate::command::{LogLevel, StreamId};
use crate::consts::PUSH_PULL_INTERVAL;
use crate::gossip::Liveness;
use crate::id::NodeId;
use crate::signed::ObjectDigest;
use crate::stream::Kind;
use crate::summary::{Difference, Summary};
use crate::sync::Message;
use crate::view::MemberState;

/// Wait after an exchange that taught something; doubles with each that did not, up to [`PUSH_PULL_INTERVAL`].
pub(super) const PUSH_PULL_SOON: Duration = Duration::from_millis(250);
/// It is longer by so many times what ticks were late lately.
const PER_LATE: u32 = 4;
/// With fewer sessions open a busy machine asks any member: else each of a crowd would ask the one that let it in again and
/// again.
const ENOUGH_TO_ASK: usize = 4;
/// So many exchanges are under way at once; one that takes longer than that does not count, its peer may be gone.
const MAX_AT_ONCE: usize = 2;
const SLOW: Duration = Duration::from_secs(2);
/// More is not asked for at once; what is missing then comes with the next push-pull.
const MAX_LACKING: usize = 12_288;
/// More than gossip knows of the largest cluster.
const MAX_ALIVE: usize = 8192;
/// Messages of one push-pull. The largest takes half of that.
const MAX_MESSAGES: u32 = 1024;
/// Push-pulls in a row with members that spoke of what we do not know; the next one is with any.
const IN_A_ROW: u32 = 12;

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
    /// What the peer's gossip knows, kept until we are a member.
    alive: Vec<Liveness>,
    /// How many of those were said.
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
    /// What the peer's gossip knows, kept until we are a member.
    pub(super) fn take_alive(&mut self) -> Vec<Liveness> {
        std::mem::take(&mut self.alive)
    }

    /// Keeps some of it. Gives false when it is more than anybody knows.
    pub(super) fn keep_alive(&mut self, known: Vec<Liveness>) -> bool {
        let fits = self.counts_alive(&known);
        if fits {
            self.alive.extend(known);
        }
        fits
    }

    fn counts_alive(&mut self, known: &[Liveness]) -> bool {
        self.alive_said += known.len();
        self.alive_said <= MAX_ALIVE
    }

    /// Whether nothing of a push-pull was said.
    pub(super) fn is_new(&self) -> bool {
        self.step == Step::Begin
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
    /// Starts a push-pull with a random member when it is time. Suspects are asked too: who hears from us that it is
    /// suspected can say that it is not.
    pub(super) fn reconcile_tick(&mut self) {
        let now = self.ctx.boottime();
        let late = self.ctx.load.late();
        let enough = if self.ctx.load.is_busy() { ENOUGH_TO_ASK } else { 1 };
        let Place::Member(cluster) = &mut self.place else { return };
        if now < cluster.next_push_pull {
            return;
        }
        // Where each takes seconds, more at once would only make all of them slower.
        if self.streams.begun_since(now.saturating_sub(SLOW + late * 2), Purpose::PushPull) >= MAX_AT_ONCE {
            cluster.next_push_pull = now + PUSH_PULL_SOON;
            return;
        }
        let there: Vec<NodeId> = cluster
            .membership
            .gossip()
            .states()
            .iter()
            .filter(|(id, one)| one.shown() != MemberState::Down && cluster.membership.roster().is_member(id))
            .map(|(id, _)| *id)
            .collect();
        let learning = cluster.push_pull_wait < PUSH_PULL_INTERVAL;
        let mut kept = self.streams.kept();
        kept.retain(|(_, with)| there.contains(with));
        // Who speaks of nodes that we do not know has what we lack, and a session with us, so it knows us.
        let speakers = cluster.membership.gossip().speakers(now);
        let speakers: Vec<_> = speakers.iter().filter(|id| cluster.sessions.is_open(id)).collect();
        // One that always speaks of something new keeps us from nobody for long.
        let speaker =
            speakers.choose(&mut self.ctx.rng).map(|id| **id).filter(|_| cluster.spoken_to < IN_A_ROW);
        cluster.spoken_to = if speaker.is_some() { cluster.spoken_to + 1 } else { 0 };
        // While there is much to learn: who has a session with us knows us as a member, many others do not yet.
        let is_new = |id: &&NodeId| kept.iter().all(|(_, with)| with != *id);
        let open: Vec<_> = there.iter().filter(|id| cluster.sessions.is_open(id)).filter(is_new).collect();
        let again = match speaker {
            Some(speaker) => kept.iter().find(|(_, with)| *with == speaker),
            None => kept.first().filter(|_| learning && kept.len() >= KEPT),
        };
        let chosen = match open.choose(&mut self.ctx.rng).filter(|_| learning && open.len() >= enough) {
            _ if again.is_some() => again.map(|(_, with)| *with),
            _ if speaker.is_some() => speaker,
            Some(open) => Some(**open),
            None => there.choose(&mut self.ctx.rng).copied(),
        };
        let again = again.map(|(id, _)| *id);
        if let Some(chosen) = &chosen {
            cluster.membership.asks(chosen);
        }
        let wait = match chosen {
            Some(_) => cluster.push_pull_wait,
            None => Duration::from_secs(1),
        };
        cluster.push_pull_wait = (cluster.push_pull_wait * 2).min(PUSH_PULL_INTERVAL);
        let heard = chosen.and_then(|node| Some(cluster.sessions.path(&node)?.address));
        let next = now + self.ctx.jitter(wait);
        if let Some(cluster) = self.cluster_mut() {
            cluster.next_push_pull = next;
        }
        if let Some(chosen) = &chosen {
            let fields = vec![("with", chosen.short()), ("kept", again.is_some().to_string())];
            self.ctx.log(LogLevel::Debug, "push-pull begins", fields);
        }
        if let Some(id) = again {
            return self.begin_again(id);
        }
        let named = |node| self.paths_to(node).first().map(|path| path.address);
        if let Some(node) = chosen
            && let Some(to) = heard.or_else(|| named(&node))
        {
            self.connect(Kind::Member, Purpose::PushPull, node, to);
        }
    }

    /// Something new was learned from another member: there may be more, and others lack it.
    pub(super) fn reconcile_soon(&mut self) {
        // On a machine that has too much to do already, fewer exchanges bring more each.
        let wait = PUSH_PULL_SOON + self.ctx.load.late() * PER_LATE;
        let soon = self.ctx.boottime() + self.ctx.jitter(wait);
        if let Some(cluster) = self.cluster_mut() {
            cluster.push_pull_wait = wait;
            cluster.next_push_pull = cluster.next_push_pull.min(soon);
        }
    }

    /// One more on a stream that was kept.
    fn begin_again(&mut self, id: StreamId) {
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        conversation.rests = None;
        conversation.began = self.ctx.boottime();
        self.begin_exchange(id);
    }

    /// The next one comes soon: this one did not come to its end.
    pub(super) fn reconcile_again(&mut self) {
        let soon = self.ctx.boottime() + self.ctx.jitter(PUSH_PULL_SOON);
        if let Some(cluster) = self.cluster_mut() {
            cluster.next_push_pull = cluster.next_push_pull.min(soon);
        }
    }

    /// Whether there was something new lately.
    pub(super) fn is_learning(&self) -> bool {
        self.cluster().is_some_and(|cluster| cluster.push_pull_wait < PUSH_PULL_INTERVAL)
    }

    /// Says what we have, in short. The side that opened the stream begins.
    pub(super) fn begin_exchange(&mut self, id: StreamId) {
        let wall = self.clock.said(self.ctx.now);
        let Some(summary) = self.summary() else { return self.end(id) };
        let first = [Message::Clock(wall), Message::Summary(Box::new(summary))];
        self.answer(id, first.map(Page::Say).into(), None);
    }

    fn summary(&self) -> Option<Summary> {
        self.cluster().map(|cluster| cluster.membership.summary())
    }

    /// One message of a push-pull.
    pub(super) fn exchange_message(&mut self, id: StreamId, peer: NodeId, message: Message) {
        let now = self.ctx.now;
        let Some(conversation) = self.streams.open.get(&id) else { return };
        let is_member = self.cluster().is_some_and(|cluster| cluster.membership.roster().is_member(&peer));
        let fellow = is_member
            || self.cluster().is_some_and(|cluster| {
                // A member may have been admitted while we were away. What it brings is signed, so it can prove that.
                let claimed = conversation.introduced.as_ref().and_then(|(_, genesis)| genesis.as_ref());
                claimed.is_some_and(|genesis| genesis.cluster == cluster.membership.roster().cluster())
            });
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        if conversation.rests.is_some() {
            if conversation.stream.outbound || !matches!(message, Message::Clock(_)) {
                return self.out_of_place(id);
            }
            conversation.rests = None;
            conversation.began = now.boottime;
            // It may cost a roster, as one on a new stream.
            let source = conversation.remote.ip();
            if !self.allows_one_more(source) {
                self.ctx.rejects.count("stream over limit");
                return self.end(id);
            }
        }
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        let exchange = &mut conversation.exchange;
        let done = matches!(message, Message::Done);
        if !fellow && !done {
            self.ctx.rejects.count("push-pull of a node that is no member");
            return self.end(id);
        }
        if !exchange.takes(&message, conversation.stream.outbound) {
            return self.out_of_place(id);
        }
        match message {
            Message::Done => {
                self.vouch_for_newcomer(id);
                self.rest(id);
            }
            Message::Clock(wall) if is_member => self.clock.heard(peer, wall, now),
            Message::Clock(_) => {}
            Message::Summary(theirs) => self.compare(id, peer, &theirs),
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
                    self.give_and_ask(id);
                }
            }
            Message::Want(digests, last) => {
                let Place::Member(cluster) = &self.place else { return self.end(id) };
                exchange
                    .named
                    .extend(digests.iter().filter(|digest| cluster.membership.roster().knows(digest)));
                if last {
                    let wanted = Which::Wanted(std::mem::take(&mut exchange.named));
                    let alive = Page::Alive(Some(exchange.differs), 0);
                    let pages = vec![Page::Objects(wanted, None), alive, Page::Say(Message::Done)];
                    self.answer(id, pages, Some(Then::Rest));
                }
            }
            _ => self.out_of_place(id),
        }
    }

    /// The other side's summary came. Who was asked answers with its own and lists what it has where they differ.
    fn compare(&mut self, id: StreamId, peer: NodeId, theirs: &Summary) {
        let (wall, now) = (self.clock.said(self.ctx.now), self.ctx.boottime());
        let Some(conversation) = self.streams.open.get(&id) else { return };
        let asked = !conversation.stream.outbound;
        if asked && !self.streams.may_ask(&peer, now) {
            self.ctx.rejects.count("push-pulls over limit");
            return self.end(id);
        }
        let Some(ours) = self.summary() else { return self.end(id) };
        let differs = ours.difference(theirs);
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        conversation.exchange.differs = differs;
        if !asked {
            return;
        }
        let clock = Page::Say(Message::Clock(wall));
        if differs.is_none() {
            return self.answer(id, vec![clock, Page::Say(Message::Done)], Some(Then::Rest));
        }
        let summary = Page::Say(Message::Summary(Box::new(ours)));
        self.answer(id, vec![clock, summary, Page::Have(differs, None)], None);
    }

    /// The other side listed what it has where we differ: give what it lacks, ask for what we lack.
    fn give_and_ask(&mut self, id: StreamId) {
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        let exchange = &mut conversation.exchange;
        let (differs, theirs) = (exchange.differs, std::mem::take(&mut exchange.named));
        let lacking = std::mem::take(&mut exchange.lacking);
        let pages = vec![
            Page::Objects(Which::Lacked(differs, theirs), None),
            // After the objects: liveness of nodes that are no members yet would be dropped.
            Page::Alive(Some(differs), 0),
            Page::Want(lacking),
        ];
        self.answer(id, pages, None);
    }
}
