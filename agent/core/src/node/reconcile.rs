// SPDX-License-Identifier: Apache-2.0
//! Push-pull: two members compare digests of all they hold and give each other what is missing, and what their gossip
//! knows. Broadcasts are only hints; this is what makes all know all.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::seq::IndexedRandom;

use super::streams::Purpose;
use super::{Node, Place};
use crate::command::StreamId;
use crate::consts::PUSH_PULL_INTERVAL;
use crate::gossip::Liveness;
use crate::id::NodeId;
use crate::signed::ObjectDigest;
use crate::stream::Kind;
use crate::sync::{self, Message};
use crate::view::MemberState;

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
}

impl Exchange {
    /// What the peer's gossip knows, kept until we are a member.
    pub(super) fn take_alive(&mut self) -> Vec<Liveness> {
        std::mem::take(&mut self.alive)
    }
}

impl Node {
    /// Starts a push-pull with a random member when it is time.
    pub(super) fn reconcile_tick(&mut self) {
        let now = self.now.boottime;
        let Place::Member(cluster) = &mut self.place else { return };
        if now < cluster.next_push_pull {
            return;
        }
        let up: Vec<(NodeId, std::net::SocketAddr)> = cluster
            .gossip
            .states()
            .into_iter()
            .filter(|(id, state)| *state == MemberState::Up && cluster.roster.is_member(id))
            .filter_map(|(id, _)| Some((id, cluster.sessions.path(&id)?.address)))
            .collect();
        let chosen = up.choose(&mut self.rng).copied();
        let wait = if chosen.is_some() { PUSH_PULL_INTERVAL } else { Duration::from_secs(1) };
        let next = now + self.jitter(wait);
        if let Some(cluster) = self.cluster_mut() {
            cluster.next_push_pull = next;
        }
        if let Some((node, to)) = chosen {
            self.connect(Kind::Member, Purpose::PushPull, node, to);
        }
    }

    /// Says what we have. The side that opened the stream begins.
    pub(super) fn begin_exchange(&mut self, id: StreamId) {
        let wall = self.now.wall_ms();
        let Some(cluster) = self.cluster() else { return self.end(id) };
        let mut messages = vec![Message::Clock(wall)];
        messages.extend(sync::alive(&cluster.gossip.liveness()));
        messages.extend(sync::have(&cluster.roster.digests()));
        self.say_all(id, &messages);
    }

    /// One message of a push-pull.
    pub(super) fn exchange_message(&mut self, id: StreamId, peer: NodeId, message: Message) {
        let now = self.now;
        let Some(conversation) = self.streams.open.get(&id) else { return };
        let fellow = self.cluster().is_some_and(|cluster| {
            // A member may have been admitted while we were away. What it brings is signed, so it can prove that.
            let claimed = conversation.introduced.as_ref().and_then(|(_, genesis)| genesis.as_ref());
            cluster.roster.is_member(&peer)
                || claimed.is_some_and(|genesis| genesis.cluster == cluster.roster.cluster())
        });
        let Some(conversation) = self.streams.open.get_mut(&id) else { return };
        let joining = conversation.joining.is_some();
        let exchange = &mut conversation.exchange;
        match message {
            Message::Done => self.end(id),
            Message::Alive(known) if joining => {
                exchange.alive.extend(known);
                exchange.alive.truncate(MAX_DIGESTS);
            }
            _ if !fellow => {
                self.rejects.count("push-pull of a node that is no member");
                self.end(id);
            }
            Message::Clock(wall) => self.clock.heard(peer, wall, now),
            Message::Alive(known) => self.apply_alive(known),
            Message::Objects(objects) => {
                for object in objects {
                    self.learn_bytes(&object, peer);
                }
            }
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
                    self.answer_exchange(id, &theirs);
                }
            }
            Message::Want(digests, last) => {
                exchange.wanted.extend(digests);
                if exchange.wanted.len() > MAX_DIGESTS {
                    self.rejects.count("push-pull too large");
                    return self.end(id);
                }
                if last {
                    let wanted = std::mem::take(&mut exchange.wanted).into_iter().collect();
                    let messages = self.objects_where(|digest| BTreeSet::contains(&wanted, digest));
                    self.say_all(id, &messages);
                    self.say(id, &Message::Done);
                    self.end(id);
                }
            }
            _ => {
                self.rejects.count("stream message out of place");
                self.end(id);
            }
        }
    }

    /// The other side said all it has: give what it lacks, ask for what we lack.
    fn answer_exchange(&mut self, id: StreamId, theirs: &[ObjectDigest]) {
        let wall = self.now.wall_ms();
        let theirs: BTreeSet<_> = theirs.iter().copied().collect();
        let mut messages = vec![Message::Clock(wall)];
        messages.extend(self.objects_where(|digest| !theirs.contains(digest)));
        let Some(cluster) = self.cluster() else { return self.end(id) };
        messages.extend(sync::alive(&cluster.gossip.liveness()));
        let ours: BTreeSet<_> = cluster.roster.digests().into_iter().collect();
        let lacking: Vec<_> = theirs.difference(&ours).copied().collect();
        messages.extend(sync::want(&lacking));
        self.say_all(id, &messages);
    }

    fn objects_where(&self, wanted: impl Fn(&ObjectDigest) -> bool) -> Vec<Message> {
        let Some(cluster) = self.cluster() else { return Vec::new() };
        sync::objects(cluster.roster.objects().filter(|object| wanted(&ObjectDigest::of(object))))
    }

    /// Takes over what another member's gossip knows, as far as it is about members.
    pub(super) fn apply_alive(&mut self, known: Vec<Liveness>) {
        let now = self.now.boottime;
        if let Place::Member(cluster) = &mut self.place {
            let roster = &cluster.roster;
            cluster.gossip.apply(now, known.into_iter().filter(|one| roster.is_member(&one.id.node)));
        }
    }
}
