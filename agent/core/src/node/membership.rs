// SPDX-License-Identifier: Apache-2.0
//! Becoming a member, letting others in, and learning what the cluster knows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::checks::Word;
use super::overlay::word;
use super::reconcile::PUSH_PULL_SOON;
use super::{Cluster, Join, Node, Place};
use crate::command::{Command, LogLevel, StateItem};
use crate::gossip::{Gossip, GossipId};
use crate::id::NodeId;
use crate::join_key::JoinKey;
use crate::record::{NodeRecord, Sequence};
use crate::roster::{Admission, Learned, Object, Roster};
use crate::session::Sessions;
use crate::signed::{ObjectDigest, Verified};

/// Whoever passes on an object has checked it, so who says this has made it up.
pub(super) const FORGED: &str = "object malformed or forged";
const TOO_MANY: &str = "objects over limit";
/// Shortest time between two jumps to a later generation. Each costs a write.
const OUTDO_GAP: Duration = Duration::from_secs(1);
/// A generation from here on was signed by somebody with a copy of this node's key who wants it to run out of numbers.
const LAST_GENERATION: u32 = u32::MAX - (1 << 16);

const CONTRADICTS: &str = "object that contradicts what is known";
/// Usual while nodes join: a newcomer's record may come before its admission.
const ABOUT_NO_MEMBER: &str = "object about a node that is no member";

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
        let theirs = roster.record(&self.me).map(|record| record.sequence);
        self.place = Place::Member(Box::new(Cluster {
            sessions: Sessions::new(roster.cluster(), &self.keys.session_public(), &mut self.rng),
            gossip: Gossip::new(id, StdRng::from_seed(seed)),
            roster,
            seen,
            since: now,
            dials: BTreeMap::new(),
            dials_of: None,
            named_of: None,
            next_named: now,
            next_push_pull: now + PUSH_PULL_SOON,
            push_pull_wait: PUSH_PULL_SOON,
            records_dirty: Some(now),
            records_written: super::files::Pace::default(),
            membership_dirty: None,
            plan: None,
            plan_of: 0,
            planned_at: None,
            next_ways: now,
            kept_alive: super::mesh::KeptAlive::default(),
            quiet: super::mesh::Quiet::default(),
            stats: BTreeMap::new(),
            watched: super::paths::Watched::default(),
            outdid: None,
            told: BTreeMap::new(),
            spoken_to: 0,
            states: BTreeMap::new(),
            leaving: None,
            newcomers: super::newcomers::Newcomers::default(),
        }));
        self.join = Some(Join::new(key));
        self.problems.remove("membership");
        self.problems.remove("cluster");
        self.discovery.restart(now);
        if self.record_counter < self.bump {
            self.resign_record();
        }
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
        // The members know a later boot of ours: our state is older than our membership. It is in the roster, so nobody will
        // bring it again.
        if let Some(theirs) = theirs.filter(|theirs| *theirs > self.record.sequence) {
            self.outdo(theirs);
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
            if record.sequence > own {
                self.outdo(record.sequence);
            }
            return Learned::Nothing;
        }
        // Our own word, and that somebody goes, is on the disk before anything else is said.
        let at_once = from.is_none() || matches!(object, Object::Leave(_));
        let learned = cluster.roster.add(object);
        match learned {
            Learned::Nothing => {}
            Learned::Refused | Learned::Unknown => {
                self.rejects.count(if learned == Learned::Refused { CONTRADICTS } else { ABOUT_NO_MEMBER });
                if let Some(from) = from {
                    let fields = vec![("about", about.short()), ("from", from.short())];
                    self.outbox.log(LogLevel::Debug, "refused an object", fields);
                }
            }
            Learned::Record => {
                cluster.gossip.broadcast(now, &bytes);
                cluster.gossip.recall(now, |node| word(&cluster.roster, node));
                cluster.records_dirty.get_or_insert(now);
            }
            Learned::Membership => {
                cluster.gossip.broadcast(now, &bytes);
                if !cluster.roster.is_member(&about) {
                    cluster.sessions.forget(&about);
                }
                cluster.gossip.recall(now, |node| word(&cluster.roster, node));
                if at_once {
                    self.save_membership();
                } else {
                    cluster.membership_dirty.get_or_insert(now);
                }
                self.mind_own_leave(about);
            }
        }
        if from.is_some() && matches!(learned, Learned::Record | Learned::Membership) {
            self.heard_news_of(about);
        }
        learned
    }

    /// An old copy of our disk came back: the cluster remembers our leave, we did not.
    fn mind_own_leave(&mut self, about: NodeId) {
        let me = self.me;
        let out = self.cluster().is_some_and(|cluster| {
            about == me && !cluster.roster.is_member(&me) && cluster.leaving.is_none()
        });
        if out {
            self.finish_leave();
        }
    }

    /// Our own record, newer than what we know: state was lost or restored. Say something newer still.
    /// Only a record with our own signature leads here, never what others say.
    fn outdo(&mut self, theirs: Sequence) {
        let now = self.now.boottime;
        if theirs.generation >= LAST_GENERATION {
            return self.problem(
                "identity",
                "somebody with a copy of this node's key signed the last records that the key can have; the other members \
                 believe those",
                "write the image anew to this disk, so that the node gets an identity of its own",
            );
        }
        let Some(cluster) = self.cluster_mut() else { return };
        if cluster.outdid.is_some_and(|last| now.saturating_sub(last) < OUTDO_GAP) {
            return;
        }
        cluster.outdid = Some(now);
        self.generation = theirs.generation + 1;
        self.outbox.persist(StateItem::Generation, super::files::write_generation(self.generation));
        self.record_counter = 0;
        let generation = self.generation;
        if let Some(cluster) = self.cluster_mut() {
            cluster.gossip.reidentify(now, generation, 0);
        }
        self.resign_record();
    }

    /// Many objects that a member gave in a push-pull. They are not passed on: the others push and pull too. Gives false when
    /// there was one among them that nobody signed, or more than are checked for it.
    pub(super) fn learn_all(&mut self, objects: &[Vec<u8>], from: NodeId) -> bool {
        let now = self.now.boottime;
        let (me, own) = (self.me, self.record.sequence);
        let Place::Member(cluster) = &mut self.place else { return false };
        let whose = if cluster.roster.is_member(&from) { Word::Member(from) } else { Word::Other };
        let mut refused = None;
        let mut newer_self = None;
        let mut opened = Vec::new();
        for bytes in objects {
            if cluster.roster.knows(&ObjectDigest::of(bytes)) {
                continue;
            }
            if !self.streams.checks.allow(whose, now) {
                refused = Some(TOO_MANY);
                break;
            }
            match Object::open(bytes) {
                Ok(Object::Record(record)) if record.node_id() == me => {
                    newer_self = newer_self.max(Some(record.sequence));
                }
                Ok(object) => opened.push(object),
                Err(_) => {
                    refused = Some(FORGED);
                    break;
                }
            }
        }
        if let Some(reason) = refused {
            self.rejects.count(reason);
        }
        let dated: Vec<_> = opened.iter().filter_map(Object::admitted).collect();
        let union = cluster.roster.unite(opened);
        for _ in 0..union.refused {
            self.rejects.count(CONTRADICTS);
        }
        for _ in 0..union.unknown {
            self.rejects.count(ABOUT_NO_MEMBER);
        }
        if union.refused > 0 {
            let fields = vec![("objects", union.refused.to_string()), ("from", from.short())];
            self.outbox.log(LogLevel::Debug, "refused objects", fields);
        }
        if union.records {
            cluster.records_dirty.get_or_insert(now);
        }
        if union.records || union.membership {
            cluster.gossip.recall(now, |node| word(&cluster.roster, node));
        }
        if union.membership {
            cluster.membership_dirty.get_or_insert(now);
        }
        for about in &union.leaves {
            if !cluster.roster.is_member(about) {
                cluster.sessions.forget(about);
            }
        }
        if !union.leaves.is_empty() {
            self.save_membership();
        }
        if let Some(theirs) = newer_self.filter(|theirs| *theirs > own) {
            self.outdo(theirs);
        }
        if union.records || union.membership {
            self.reconcile_soon();
        }
        self.heard_of_admitted(&dated);
        self.mind_own_leave(me);
        refused.is_none()
    }

    /// Bytes that a member passed on.
    pub(super) fn learn_bytes(&mut self, bytes: &[u8], from: NodeId) {
        // Each object comes many times; once it is known its signature need not be checked again.
        let known = |cluster: &Cluster| cluster.roster.knows(&ObjectDigest::of(bytes));
        if self.cluster().is_some_and(known) {
            return;
        }
        if !self.streams.checks.allow(Word::Member(from), self.now.boottime) {
            return self.rejects.count(TOO_MANY);
        }
        match Object::open(bytes) {
            Ok(object) => {
                self.learn(object, Some(from));
            }
            Err(_) => self.rejects.count(FORGED),
        }
    }

    /// Signs our record again under a new sequence that covers our gossip identity.
    pub(super) fn resign_record(&mut self) {
        let bump = self.cluster().map_or(self.bump, |cluster| cluster.gossip.me().bump);
        self.record_counter = self.record_counter.saturating_add(1).max(bump);
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
            "this disk is a copy of another node's disk: write the image to it again, so that it gets its own identity",
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
