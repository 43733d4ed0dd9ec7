// SPDX-License-Identifier: Apache-2.0
//! Push-pull: two members compare what they hold and give each other what is missing, and what their gossip knows.
//! Broadcasts are only hints; this is what makes all know all. Summaries come first, so that two who know the same say
//! little. Who learns something new asks again soon, which is how a thousand nodes that join at once know each other
//! after seconds; who learns nothing asks ever more rarely.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::seq::IndexedRandom;

use super::overlay::word;
use super::streams::{KEPT, Purpose};
use super::{Node, Place};
use crate::command::{LogLevel, StreamId};
use crate::consts::PUSH_PULL_INTERVAL;
use crate::gossip::Liveness;
use crate::id::NodeId;
use crate::roster::Standing;
use crate::signed::ObjectDigest;
use crate::stream::Kind;
use crate::summary::{Difference, Summary};
use crate::sync::{self, Message};
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
/// More digests than this are no cluster of ours.
const MAX_DIGESTS: usize = 100_000;

/// What was said in a push-pull so far.
#[derive(Default)]
pub(super) struct Exchange {
    digests: Vec<ObjectDigest>,
    wanted: Vec<ObjectDigest>,
    alive: Vec<Liveness>,
    /// The peer said all it has and got its answer; saying so again is not answered, or a few bytes would cost a roster.
    answered: bool,
    /// What the two summaries say is different.
    differs: Difference,
}

impl Exchange {
    /// What the peer's gossip knows, kept until we are a member.
    pub(super) fn take_alive(&mut self) -> Vec<Liveness> {
        std::mem::take(&mut self.alive)
    }
}

impl Node {
    /// Starts a push-pull with a random member when it is time. Suspects are asked too: who hears from us that it is
    /// suspected can say that it is not.
    pub(super) fn reconcile_tick(&mut self) {
        let now = self.now.boottime;
        let late = self.late;
        let enough = if self.is_busy() { ENOUGH_TO_ASK } else { 1 };
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
            .gossip
            .states()
            .iter()
            .filter(|(id, one)| one.shown() != MemberState::Down && cluster.roster.is_member(id))
            .map(|(id, _)| *id)
            .collect();
        let learning = cluster.push_pull_wait < PUSH_PULL_INTERVAL;
        let mut kept = self.streams.kept();
        kept.retain(|(_, with)| there.contains(with));
        // Who speaks of nodes that we do not know has what we lack, and a session with us, so it knows us.
        let speakers = cluster.gossip.speakers(now);
        let speakers: Vec<_> = speakers.iter().filter(|id| cluster.sessions.is_open(id)).collect();
        let speaker = speakers.choose(&mut self.rng).map(|id| **id);
        // While there is much to learn: who has a session with us knows us as a member, many others do not yet.
        let is_new = |id: &&NodeId| kept.iter().all(|(_, with)| with != *id);
        let open: Vec<_> = there.iter().filter(|id| cluster.sessions.is_open(id)).filter(is_new).collect();
        let again = match speaker {
            Some(speaker) => kept.iter().find(|(_, with)| *with == speaker),
            None => kept.first().filter(|_| learning && kept.len() >= KEPT),
        };
        let chosen = match open.choose(&mut self.rng).filter(|_| learning && open.len() >= enough) {
            _ if again.is_some() => again.map(|(_, with)| *with),
            _ if speaker.is_some() => speaker,
            Some(open) => Some(**open),
            None => there.choose(&mut self.rng).copied(),
        };
        let again = again.map(|(id, _)| *id);
        if let Some(chosen) = &chosen {
            cluster.gossip.ask(chosen);
        }
        let wait = match chosen {
            Some(_) => cluster.push_pull_wait,
            None => Duration::from_secs(1),
        };
        cluster.push_pull_wait = (cluster.push_pull_wait * 2).min(PUSH_PULL_INTERVAL);
        let heard = chosen.and_then(|node| Some(cluster.sessions.path(&node)?.address));
        let next = now + self.jitter(wait);
        if let Some(cluster) = self.cluster_mut() {
            cluster.next_push_pull = next;
        }
        if let Some(chosen) = &chosen {
            let fields = vec![("with", chosen.short()), ("kept", again.is_some().to_string())];
            self.outbox.log(LogLevel::Debug, "push-pull begins", fields);
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
        let wait = PUSH_PULL_SOON + self.late * PER_LATE;
        let soon = self.now.boottime + self.jitter(wait);
        if let Some(cluster) = self.cluster_mut() {
            cluster.push_pull_wait = wait;
            cluster.next_push_pull = cluster.next_push_pull.min(soon);
        }
    }

    /// One more on a stream that was kept.
    fn begin_again(&mut self, id: StreamId) {
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        conversation.rests = None;
        conversation.began = self.now.boottime;
        self.begin_exchange(id);
    }

    /// The next one comes soon: this one did not come to its end.
    pub(super) fn reconcile_again(&mut self) {
        let soon = self.now.boottime + self.jitter(PUSH_PULL_SOON);
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
        let wall = self.clock.said(self.now);
        let Some(summary) = self.summary() else { return self.end(id) };
        self.say_all(id, &[Message::Clock(wall), Message::Summary(Box::new(summary))]);
    }

    fn summary(&self) -> Option<Summary> {
        let cluster = self.cluster()?;
        let roster = &cluster.roster;
        let gone = roster.everybody().filter(|(_, standing)| *standing == Standing::Left);
        let alive = cluster.gossip.folded(&gone.map(|(id, _)| id).collect());
        Some(Summary { objects: roster.folded().clone(), alive })
    }

    /// What gossip knows of members.
    fn liveness(&self) -> Vec<Liveness> {
        let Some(cluster) = self.cluster() else { return Vec::new() };
        cluster.gossip.liveness().filter(|one| cluster.roster.is_member(&one.id.node)).collect()
    }

    /// One message of a push-pull.
    pub(super) fn exchange_message(&mut self, id: StreamId, peer: NodeId, message: Message) {
        let now = self.now;
        let Some(conversation) = self.streams.open.get(&id) else { return };
        let is_member = self.cluster().is_some_and(|cluster| cluster.roster.is_member(&peer));
        let fellow = is_member
            || self.cluster().is_some_and(|cluster| {
                // A member may have been admitted while we were away. What it brings is signed, so it can prove that.
                let claimed = conversation.introduced.as_ref().and_then(|(_, genesis)| genesis.as_ref());
                claimed.is_some_and(|genesis| genesis.cluster == cluster.roster.cluster())
            });
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        if conversation.rests.is_some() {
            if conversation.stream.outbound || !matches!(message, Message::Clock(_)) {
                self.rejects.count("stream message out of place");
                return self.end(id);
            }
            conversation.rests = None;
            conversation.began = now.boottime;
            // It may cost a roster, as one on a new stream.
            let source = conversation.remote.ip();
            if !self.streams.allows_one_more(source, now.boottime) {
                self.rejects.count("stream over limit");
                return self.end(id);
            }
        }
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        let joining = conversation.joining.is_some();
        let exchange = &mut conversation.exchange;
        match message {
            Message::Done => {
                self.vouch_for_newcomer(id);
                self.rest(id);
            }
            Message::Alive(known) if joining => {
                exchange.alive.extend(known);
                exchange.alive.truncate(MAX_DIGESTS);
            }
            _ if !fellow => {
                self.rejects.count("push-pull of a node that is no member");
                self.end(id);
            }
            Message::Clock(wall) if is_member => self.clock.heard(peer, wall, now),
            Message::Clock(_) => {}
            Message::Summary(theirs) => self.compare(id, &theirs),
            Message::Alive(known) => self.apply_alive(known),
            Message::Objects(objects) => self.learn_all(&objects, peer),
            Message::Have(digests, last) => {
                exchange.digests.extend(digests);
                if exchange.digests.len() > MAX_DIGESTS {
                    self.rejects.count("push-pull too large");
                    return self.end(id);
                }
                if last && std::mem::replace(&mut exchange.answered, true) {
                    self.rejects.count("stream message out of place");
                    return self.end(id);
                }
                if last {
                    let theirs = std::mem::take(&mut exchange.digests);
                    self.give_and_ask(id, &theirs);
                }
            }
            Message::Want(digests, last) => {
                exchange.wanted.extend(digests);
                if exchange.wanted.len() > MAX_DIGESTS {
                    self.rejects.count("push-pull too large");
                    return self.end(id);
                }
                if last {
                    let wanted: BTreeSet<_> = std::mem::take(&mut exchange.wanted).into_iter().collect();
                    let differs = exchange.differs;
                    let messages = self.objects_where(|digest| wanted.contains(digest));
                    self.say_all(id, &messages);
                    self.say_alive(id, differs);
                    self.say(id, &Message::Done);
                    self.rest(id);
                }
            }
            _ => {
                self.rejects.count("stream message out of place");
                self.end(id);
            }
        }
    }

    /// The other side's summary came. Who was asked answers with its own and lists what it has where they differ.
    fn compare(&mut self, id: StreamId, theirs: &Summary) {
        let wall = self.clock.said(self.now);
        let Some(ours) = self.summary() else { return self.end(id) };
        let differs = ours.difference(theirs);
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        conversation.exchange.differs = differs;
        if conversation.stream.outbound {
            return;
        }
        self.say(id, &Message::Clock(wall));
        if differs.is_none() {
            self.say(id, &Message::Done);
            return self.rest(id);
        }
        self.say(id, &Message::Summary(Box::new(ours)));
        let have = sync::have(&self.digests_where(differs));
        self.say_all(id, &have);
    }

    /// The other side listed what it has where we differ: give what it lacks, ask for what we lack.
    fn give_and_ask(&mut self, id: StreamId, theirs: &[ObjectDigest]) {
        let Some(conversation) = self.streams.open.get(&id) else { return };
        let differs = conversation.exchange.differs;
        let theirs: BTreeSet<_> = theirs.iter().copied().collect();
        let give = self.objects_where(|digest| differs.has_object(digest) && !theirs.contains(digest));
        let Some(cluster) = self.cluster() else { return self.end(id) };
        let lacking: Vec<_> = theirs.into_iter().filter(|digest| !cluster.roster.knows(digest)).collect();
        self.say_all(id, &give);
        // After the objects: liveness of nodes that are no members yet would be dropped.
        self.say_alive(id, differs);
        self.say_all(id, &sync::want(&lacking));
    }

    fn say_alive(&mut self, id: StreamId, differs: Difference) {
        let known: Vec<_> = self.liveness().into_iter().filter(|one| differs.has_alive(one)).collect();
        self.say_all(id, &sync::alive(&known));
    }

    fn digests_where(&self, differs: Difference) -> Vec<ObjectDigest> {
        let Some(cluster) = self.cluster() else { return Vec::new() };
        cluster.roster.digests().filter(|digest| differs.has_object(digest)).collect()
    }

    fn objects_where(&self, wanted: impl Fn(&ObjectDigest) -> bool) -> Vec<Message> {
        let Some(cluster) = self.cluster() else { return Vec::new() };
        let objects = cluster.roster.objects().filter(|(digest, _)| wanted(digest));
        sync::objects(objects.map(|(_, bytes)| bytes))
    }

    /// Takes over what another member's gossip knows, as far as it is about members.
    pub(super) fn apply_alive(&mut self, known: Vec<Liveness>) {
        let now = self.now.boottime;
        let Place::Member(cluster) = &mut self.place else { return };
        let (roster, before) = (&cluster.roster, cluster.gossip.version());
        cluster.gossip.hear_all(now, known, |node| word(roster, node));
        if cluster.gossip.version() != before {
            self.reconcile_soon();
        }
    }
}
