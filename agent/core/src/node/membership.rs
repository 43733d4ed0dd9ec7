// SPDX-License-Identifier: Apache-2.0
//! Becoming a member, letting others in, and learning what the cluster knows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Cluster, Join, Node, Place};
use crate::command::{Command, LogLevel};
use crate::gossip::{Gossip, GossipId};
use crate::id::NodeId;
use crate::join_key::JoinKey;
use crate::record::NodeRecord;
use crate::roster::{Admission, Learned, Object, Roster};
use crate::session::Sessions;
use crate::signed::Verified;

impl Node {
    /// Makes this node a member of the cluster that the roster describes. The caller persists it.
    pub(super) fn enter(&mut self, roster: Roster, key: JoinKey, seen: BTreeMap<NodeId, SocketAddr>) {
        let now = self.now.boottime;
        if let Place::Member(old) = &self.place {
            self.bump = old.gossip.me().bump + 1;
        }
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let id = GossipId { node: self.me, generation: self.generation, bump: self.bump };
        self.place = Place::Member(Box::new(Cluster {
            sessions: Sessions::new(roster.cluster()),
            gossip: Gossip::new(id, StdRng::from_seed(seed)),
            roster,
            seen,
            since: now,
            dials: BTreeMap::new(),
            next_push_pull: now + Duration::from_secs(3),
            records_dirty: Some(now),
            plan: None,
            stats: BTreeMap::new(),
            states: BTreeMap::new(),
            leaving: None,
        }));
        self.join = Some(Join::new(key));
        self.problems.remove("membership");
        self.problems.remove("cluster");
        self.discovery.restart(now);
        let record = Object::Record(self.record.clone());
        if let Some(cluster) = self.cluster_mut() {
            cluster.roster.add(record);
        }
        self.choose_join_key();
        // Other streams were opened under other assumptions.
        let stale: Vec<_> =
            self.streams.open.iter().filter(|(_, open)| open.joining.is_some()).map(|(id, _)| *id).collect();
        for id in stale {
            self.end(id);
        }
    }

    /// Admits a node that proved itself, unless it is a member already, and takes its record.
    pub(super) fn admit(&mut self, record: &Verified<NodeRecord>) {
        let subject = record.node_id();
        let at = self.now.wall_secs();
        let Place::Member(cluster) = &mut self.place else { return };
        if !cluster.roster.is_member(&subject) {
            let admission = Admission {
                cluster: cluster.roster.cluster(),
                subject: record.public_key,
                round: cluster.roster.next_round(&subject),
                admitter: self.keys.public(),
                at,
            };
            let admission = Object::Admission(Verified::sign(admission, &self.keys));
            self.outbox.log(
                LogLevel::Info,
                "admitted a node",
                vec![("node", subject.to_string()), ("name", record.hostname.clone())],
            );
            self.learn(admission, None);
        }
        self.learn(Object::Record(record.clone()), None);
    }

    /// Takes over a verified object; passes on and keeps what is new. `from` is who told us, if anybody did.
    pub(super) fn learn(&mut self, object: Object, from: Option<NodeId>) -> Learned {
        let now = self.now.boottime;
        let bytes = object.as_bytes().to_vec();
        let about = object.about();
        let (me, own) = (self.me, self.record.sequence);
        let Place::Member(cluster) = &mut self.place else { return Learned::Nothing };
        if let Object::Record(record) = &object
            && about == me
        {
            // Our own record, newer than what we know: state was lost or restored. Say something newer still.
            if record.sequence > own {
                self.generation = record.sequence.generation.saturating_add(1);
                self.outbox.persist(
                    crate::command::StateItem::Generation,
                    super::files::write_generation(self.generation),
                );
                self.record_counter = 0;
                cluster.gossip.reidentify(now, self.generation);
                self.resign_record();
            }
            return Learned::Nothing;
        }
        let learned = cluster.roster.add(object);
        match learned {
            Learned::Nothing => {}
            Learned::Refused => {
                self.rejects.count("object that contradicts what is known");
                if let Some(from) = from {
                    let fields = vec![("about", about.short()), ("from", from.short())];
                    self.outbox.log(LogLevel::Debug, "refused an object", fields);
                }
            }
            Learned::Record => {
                cluster.gossip.broadcast(now, &bytes);
                cluster.records_dirty.get_or_insert(now);
            }
            Learned::Membership => {
                cluster.gossip.broadcast(now, &bytes);
                cluster.dials.remove(&about);
                if !cluster.roster.is_member(&about) {
                    cluster.sessions.forget(&about);
                }
                let out = about == me && !cluster.roster.is_member(&me) && cluster.leaving.is_none();
                self.save_membership();
                if out {
                    // An old copy of our disk came back: the cluster remembers our leave, we did not.
                    self.finish_leave();
                }
            }
        }
        learned
    }

    /// Bytes that a member passed on.
    pub(super) fn learn_bytes(&mut self, bytes: &[u8], from: NodeId) {
        match Object::open(bytes) {
            Ok(object) => {
                self.learn(object, Some(from));
            }
            Err(_) => self.rejects.count("object malformed or forged"),
        }
    }

    /// Signs our record again under a new sequence.
    fn resign_record(&mut self) {
        self.record_counter += 1;
        let sequence = crate::record::Sequence { generation: self.generation, counter: self.record_counter };
        let record = NodeRecord { sequence, ..(*self.record).clone() };
        self.record = Verified::sign(record, &self.keys);
        self.learn_own_record();
    }

    /// Another live machine has our identity and was there first.
    pub(super) fn stand_aside(&mut self) {
        let why = "another machine runs with this node's identity and was there first; this one stands aside";
        self.quarantine = Some(why.to_owned());
        self.problem(
            "identity",
            why,
            "this disk is a copy of another node's disk: write the image anew to it, so that it gets an identity of its own",
        );
        self.outbox.log(LogLevel::Error, why, vec![("node", self.me.to_string())]);
        let open: Vec<_> = self.streams.open.keys().copied().collect();
        for id in open {
            self.end(id);
        }
        if self.cluster().is_some_and(|cluster| cluster.plan.is_some()) {
            self.outbox.push(Command::MeshRemove);
        }
        if let Some(cluster) = self.cluster_mut() {
            cluster.plan = None;
        }
    }
}
