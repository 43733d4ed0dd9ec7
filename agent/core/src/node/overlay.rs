// SPDX-License-Identifier: Apache-2.0
//! Sessions and gossip with members: who is dialled when, and what flows between the two.

use rand::RngExt;
use rand::seq::IndexedRandom;

use super::dialer::enough_open;
use super::discovery::beacon_to;
use super::leaving::Step;
use super::parts::Node;
use crate::command::{LogLevel, NetCommand};
use crate::consts::ctx::ANSWERERS;
use crate::consts::overlay::*;
use crate::gossip::{GossipId, Outcome, readdressed};
use crate::id::NodeId;
use crate::record::Sequence;
use crate::session::{Event, Greeting, PAYLOAD_GOSSIP, PAYLOAD_OBJECT};
use crate::view::MemberState;

impl Node {
    /// Retries of sessions, and dialling of members that gossip does not count as up.
    pub(super) fn overlay_tick(&mut self) {
        let now = self.ctx.boottime();
        if let Some(cluster) = self.place.cluster_mut()
            && let Some(named) = cluster.dialer.gather(&cluster.membership, now)
        {
            cluster.sessions.set_named(named);
        }
        self.with_sessions(|sessions, context| sessions.tick(context));
        let Some(cluster) = self.place.cluster_mut() else { return };
        for id in cluster.dialer.due(&cluster.membership, &cluster.sessions, self.ctx.load, now) {
            // In a large cluster a few dial at a time, and gossip tells the others; all do after enough rounds.
            let up = self.place.cluster().map_or(0, |cluster| cluster.membership.gossip().up());
            if self.ctx.is_sampled(up as u32, ANSWERERS) {
                self.dial(id);
            }
        }
    }

    fn dial(&mut self, id: NodeId) {
        let now = self.ctx.boottime();
        let Some(cluster) = self.place.cluster() else { return };
        let alive = cluster.sessions.last_heard(&id).is_some_and(|heard| now.saturating_sub(heard) < ALIVE);
        match cluster.sessions.greeting(&id).filter(|_| alive) {
            Some(greeting) => self.announce(id, greeting),
            None => {
                self.name_paths(&id);
                self.forget_taken_paths(&id);
                self.with_sessions(|sessions, context| sessions.open(id, context));
            }
        }
    }

    /// Moves what sessions and gossip have to say, until both are quiet.
    pub(super) fn pump(&mut self) {
        loop {
            let Some(cluster) = self.place.cluster_mut() else { return };
            let events = cluster.sessions.take_events();
            let outcomes = cluster.membership.take_outcomes();
            if events.is_empty() && outcomes.is_empty() {
                return;
            }
            for event in events {
                self.session_event(event);
            }
            for outcome in outcomes {
                self.gossip_outcome(outcome);
            }
        }
    }

    fn session_event(&mut self, event: Event) {
        match event {
            Event::Send(path, bytes) => {
                self.ctx.push(NetCommand::SendDatagram {
                    to: path.address,
                    interface: path.interface,
                    bytes,
                });
            }
            Event::Established(peer, greeting) => {
                self.clock.heard(peer, greeting.wall, self.ctx.now);
                let fields = vec![("peer", peer.short())];
                self.ctx.log(LogLevel::Debug, "session opened", fields);
                let known =
                    self.place.cluster().and_then(|cluster| cluster.membership.gossip().identity(&peer));
                if known != Some((gossip_id(peer, greeting), MemberState::Up)) {
                    // Without it the peer believes nothing that is said of this boot, not even by us.
                    let record = self.own.signed().as_bytes().to_vec();
                    self.send_payload(peer, PAYLOAD_OBJECT, &record);
                    self.announce(peer, greeting);
                }
            }
            Event::Received(peer, payload) => {
                if !self.is_member(&peer) {
                    return self.ctx.rejects.count("datagram of a node that is no member");
                }
                match payload.split_first() {
                    Some((&PAYLOAD_GOSSIP, packet)) => {
                        if let Some(cluster) = self.place.cluster_mut() {
                            cluster.membership.hear_packet(peer, packet, &mut self.ctx);
                        }
                    }
                    Some((&PAYLOAD_OBJECT, object)) => self.learn_bytes(object, peer),
                    _ => self.ctx.rejects.count("datagram payload of unknown kind"),
                }
            }
            // Perhaps it does not know us as a member: a beacon lets it find out.
            Event::Unanswered(path) => {
                self.with_discovery(|_, around, ctx| beacon_to(path, true, None, around, ctx));
            }
        }
    }

    fn gossip_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Send(to, packet) => self.send_gossip(to, &packet),
            Outcome::Spread(to, packet) => {
                let other = self.other_hearer_of_news(&to);
                match other.and_then(|other| Some((other.node, readdressed(&packet, other).ok()?))) {
                    Some((other, packet)) => self.send_gossip(other, &packet),
                    None => self.send_gossip(to, &packet),
                }
            }
            Outcome::Again(to, packet) => {
                self.name_paths(&to);
                let payload = [&[PAYLOAD_GOSSIP][..], &packet].concat();
                self.with_sessions(|sessions, context| sessions.send_widely(to, &payload, context));
            }
            Outcome::Silent(to) => self.watch_paths(to),
            Outcome::Heard(from, bytes) => self.learn_bytes(&bytes, from),
            // Who spoke is asked, unless its admission comes by itself until then.
            Outcome::Unknown => self.hurry_push_pull(),
            Outcome::Renew => self.renew_identity(),
        }
    }

    fn send_gossip(&mut self, to: NodeId, packet: &[u8]) {
        if self.is_member(&to) {
            self.send_payload(to, PAYLOAD_GOSSIP, packet);
        }
    }

    /// Who is to hear the news instead of whom gossip chose: by lot one of many with whom a session is open already.
    fn other_hearer_of_news(&mut self, chosen: &NodeId) -> Option<GossipId> {
        let (now, enough) = (self.ctx.boottime(), enough_open(self.ctx.load));
        let cluster = self.place.cluster().filter(|cluster| !cluster.sessions.is_open(chosen))?;
        // Most sessions of a crowd are with those who were there first, and they have too many to tell each member soon.
        if cluster.membership.quiet_for(now) >= SETTLED && self.ctx.rng.random_ratio(1, AMONG_ALL) {
            return None;
        }
        let up = |id: &NodeId| match cluster.membership.gossip().identity(id) {
            Some((identity, MemberState::Up)) => Some(identity),
            _ => None,
        };
        let open: Vec<GossipId> = cluster.sessions.open_peers().iter().filter_map(up).collect();
        let full = self.ctx.load.is_busy() && cluster.sessions.under_way() >= MOST_UNDER_WAY;
        open.choose(&mut self.ctx.rng).copied().filter(|_| open.len() >= enough || full)
    }

    /// Sends one payload to a member.
    pub(super) fn send_payload(&mut self, to: NodeId, kind: u8, body: &[u8]) {
        let payload = [&[kind][..], body].concat();
        let unknown = self.place.cluster().is_some_and(|cluster| !cluster.sessions.has_path(&to));
        if unknown {
            self.name_paths(&to);
        }
        self.with_sessions(|sessions, context| sessions.send(to, &payload, context));
    }

    fn announce(&mut self, peer: NodeId, greeting: Greeting) {
        let now = self.ctx.boottime();
        if let Some(cluster) = self.place.cluster_mut() {
            cluster.membership.announce_to(gossip_id(peer, greeting), now);
        }
    }

    /// Tells the others of a leave. Gives whether that is over, and this node is out.
    pub(super) fn tell_leave(&mut self) -> bool {
        let now = self.ctx.boottime();
        let Some(cluster) = self.place.cluster_mut().filter(|cluster| cluster.membership.is_leaving()) else {
            return false;
        };
        let peers = cluster.sessions.open_peers();
        match cluster.membership.leave_tick(&peers, now) {
            None | Some(Step::Wait) => false,
            Some(Step::Tell(object)) => {
                for peer in peers {
                    self.send_payload(peer, PAYLOAD_OBJECT, &object);
                }
                false
            }
            Some(Step::Out) => true,
        }
    }

    /// Others believe that we are down, or another identity of ours. The next one is above all that our record covers, so above
    /// all that anybody can have named. Gossip says how often.
    fn renew_identity(&mut self) {
        let now = self.ctx.boottime();
        const BACK: &str =
            "the other members had declared this node down; it is back under a new gossip identity";
        self.ctx.log(LogLevel::Warn, BACK, vec![]);
        self.resign_record();
        let Sequence { generation, counter } = self.own.sequence();
        if let Some(cluster) = self.place.cluster_mut() {
            cluster.membership.reidentify(generation, counter, now);
        }
        // Whom we suspected while nobody heard us, gossip neither declares down nor clears any more: its timers end with
        // the old identity.
        self.hurry_push_pull();
    }
}

fn gossip_id(node: NodeId, greeting: Greeting) -> GossipId {
    GossipId { node, generation: greeting.generation, bump: greeting.bump }
}
