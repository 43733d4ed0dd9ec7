// SPDX-License-Identifier: Apache-2.0
//! Becoming a member, letting others in, what follows from what is learned, and leaving.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rand::Rng;

use super::checks::Word;
use super::leaving::{Leaving, Step};
use super::membership::Membership;
use super::outbox::Hold;
use super::own::Outdone;
use super::{Cluster, Dialer, Join, MeshPlanner, Node, Place, PushPull, views};
use crate::command::{HostCommand, LogLevel, Ticket};
use crate::gossip::Liveness;
use crate::id::NodeId;
use crate::join_key::JoinKey;
use crate::record::{NodeRecord, Sequence};
use crate::roster::{Admission, Learned, Leave, Object, Roster};
use crate::session::{PAYLOAD_OBJECT, Sessions};
use crate::signed::Verified;

/// Whoever passes on an object has checked it, so who says this has made it up.
pub(super) const FORGED: &str = "object malformed or forged";
const TOO_MANY: &str = "objects over limit";
impl Node {
    /// Makes this node a member of the cluster that the roster describes. The caller persists it.
    pub(super) fn enter(&mut self, roster: Roster, key: JoinKey, seen: BTreeMap<NodeId, SocketAddr>) {
        let now = self.ctx.boottime();
        let former = self.cluster().map(|cluster| cluster.membership.gossip().me());
        let id = self.own.begin_gossip(former);
        let mut seed = [0; 32];
        self.ctx.rng.fill_bytes(&mut seed);
        let theirs = roster.record(&self.me).map(|record| record.sequence);
        self.place = Place::Member(Box::new(Cluster {
            sessions: Sessions::new(roster.cluster(), &self.keys.session_public(), &mut self.ctx.rng),
            membership: Membership::new(roster, id, seed, now),
            dialer: Dialer::new(seen, now),
            push_pull: PushPull::new(now),
            mesh: MeshPlanner::new(self.keys.wireguard_secret(), now),
            told: views::Told::default(),
        }));
        self.files.begin(now);
        self.join = Some(Join::new(key));
        self.problems.clear("membership");
        self.problems.clear("cluster");
        self.discovery.restart(now);
        if !self.own.covers_gossip() {
            self.resign_record();
        }
        let record = self.own.signed().clone();
        if let Some(cluster) = self.cluster_mut() {
            cluster.membership.take_own(record);
        }
        self.choose_join_key();
        // Other streams were opened under other assumptions.
        self.streams.end_joining(&mut self.ctx);
        // The members know a later boot of ours: our state is older than our membership. It is in the roster, so nobody will
        // bring it again.
        if let Some(theirs) = theirs.filter(|theirs| *theirs > self.own.sequence()) {
            self.outdo(theirs);
        }
    }

    /// Admits a node that proved itself, unless it is a member already, and takes its record.
    pub(super) fn admit(&mut self, record: &Verified<NodeRecord>) {
        let subject = record.node_id();
        let at = self.ctx.now.wall_secs();
        let Place::Member(cluster) = &self.place else { return };
        let roster = cluster.membership.roster();
        if !roster.is_member(&subject) {
            let admission = Admission {
                cluster: roster.cluster(),
                subject: record.public_key,
                round: roster.next_round(&subject),
                admitter: self.keys.public(),
                at,
            };
            let admission = Object::Admission(Verified::sign(admission, &self.keys));
            self.ctx.log(
                LogLevel::Info,
                "admitted a node",
                vec![("node", subject.to_string()), ("name", record.hostname.clone())],
            );
            self.learn(admission, None);
        }
        self.learn(Object::Record(record.clone()), None);
    }

    /// Takes over a verified object, and does what follows from it. `from` is who told us, if anybody did.
    pub(super) fn learn(&mut self, object: Object, from: Option<NodeId>) {
        let now = self.ctx.boottime();
        let about = object.about();
        if let Object::Record(record) = &object
            && about == self.me
        {
            return if record.sequence > self.own.sequence() {
                self.outdo(record.sequence)
            };
        }
        // Our own word, and that somebody goes, is on the disk before it is told, and our own leave before anything is.
        let hold = match (&object, from) {
            (Object::Leave(_), _) if about == self.me => Hold::All,
            (Object::Leave(_), _) | (_, None) => Hold::Word,
            _ => Hold::Nothing,
        };
        let Place::Member(cluster) = &mut self.place else { return };
        let bytes = object.as_bytes().to_vec();
        let learned = cluster.membership.learn(object, from, hold != Hold::Nothing, &mut self.ctx);
        match learned {
            Learned::Nothing | Learned::Refused | Learned::Unknown => return,
            Learned::Record => self.files.note_records(now),
            Learned::Membership => {
                if !cluster.membership.roster().is_member(&about) {
                    cluster.sessions.forget(&about);
                }
                if hold == Hold::Nothing {
                    self.files.note_membership(now);
                } else if let Some(ticket) = self.save_place(hold)
                    && let Some(cluster) = self.cluster_mut()
                {
                    cluster.membership.tell_when_saved(ticket, bytes);
                }
                self.mind_own_leave(about);
            }
        }
        if from.is_some()
            && let Some(cluster) = self.cluster_mut()
        {
            cluster.membership.hear_news_of(about, now);
        }
    }

    /// A write is on the disk: what waited for it may be told.
    pub(super) fn persisted(&mut self, ticket: Ticket) {
        self.ctx.outbox.persisted(ticket);
        let now = self.ctx.boottime();
        if let Some(cluster) = self.cluster_mut() {
            cluster.membership.tell_saved(ticket, now);
        }
    }

    /// An old copy of our disk came back: the cluster remembers our leave, we did not.
    fn mind_own_leave(&mut self, about: NodeId) {
        let me = self.me;
        let out = self.cluster().is_some_and(|cluster| {
            let membership = &cluster.membership;
            about == me && !membership.roster().is_member(&me) && !membership.is_leaving()
        });
        if out {
            self.finish_leave();
        }
    }

    /// Our own record, newer than what we know: state was lost or restored. Say something newer still.
    /// Only a record with our own signature leads here, never what others say.
    fn outdo(&mut self, theirs: Sequence) {
        match self.own.outdo(theirs, self.ctx.boottime()) {
            Outdone::TooSoon => {}
            Outdone::NoneLeft => self.problems.set(
                "identity",
                "somebody with a copy of this node's key signed the last records that the key can have; the other members \
                 believe those",
                "write the image anew to this disk, so that the node gets an identity of its own",
            ),
            Outdone::Generation(generation) => {
                self.files.save_generation(generation, &mut self.ctx);
                let now = self.ctx.boottime();
                if let Some(cluster) = self.cluster_mut() {
                    cluster.membership.reidentify(generation, 0, now);
                }
                self.resign_record();
            }
        }
    }

    /// Many objects that a member gave in a push-pull. Gives false when there was one among them that nobody signed, or more
    /// than are checked for it.
    pub(super) fn learn_all(&mut self, objects: &[Vec<u8>], from: NodeId) -> bool {
        let now = self.ctx.boottime();
        let (me, own) = (self.me, self.own.sequence());
        let Place::Member(cluster) = &mut self.place else { return false };
        let whose =
            if cluster.membership.roster().is_member(&from) { Word::Member(from) } else { Word::Other };
        let mut refused = None;
        let mut newer_self = None;
        let mut opened = Vec::new();
        for bytes in objects {
            if cluster.membership.knows(bytes) {
                continue;
            }
            if !self.streams.may_check(whose, now) {
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
            self.ctx.rejects.count(reason);
        }
        let dated: Vec<_> = opened.iter().filter_map(Object::admitted).collect();
        let union = cluster.membership.learn_all(opened, from, &mut self.ctx);
        if union.records {
            self.files.note_records(now);
        }
        if union.membership {
            self.files.note_membership(now);
        }
        for about in &union.leaves {
            if !cluster.membership.roster().is_member(about) {
                cluster.sessions.forget(about);
            }
        }
        if !union.leaves.is_empty() {
            let own = union.leaves.contains(&me);
            self.save_place(if own { Hold::All } else { Hold::Word });
        }
        if let Some(theirs) = newer_self.filter(|theirs| *theirs > own) {
            self.outdo(theirs);
        }
        if union.records || union.membership {
            self.hurry_push_pull();
        }
        if let Place::Member(cluster) = &mut self.place {
            cluster.membership.hear_admitted(&dated, &self.ctx);
        }
        self.mind_own_leave(me);
        refused.is_none()
    }

    /// Bytes that a member passed on.
    pub(super) fn learn_bytes(&mut self, bytes: &[u8], from: NodeId) {
        // Each object comes many times; once it is known its signature need not be checked again.
        if self.cluster().is_some_and(|cluster| cluster.membership.knows(bytes)) {
            return;
        }
        if !self.streams.may_check(Word::Member(from), self.ctx.boottime()) {
            return self.ctx.rejects.count(TOO_MANY);
        }
        match Object::open(bytes) {
            Ok(object) => self.learn(object, Some(from)),
            Err(_) => self.ctx.rejects.count(FORGED),
        }
    }

    /// What another member's gossip knows. Who learns something new asks again soon.
    pub(super) fn learn_alive(&mut self, known: Vec<Liveness>) {
        let now = self.ctx.boottime();
        if self.cluster_mut().is_some_and(|cluster| cluster.membership.hear_alive(known, now)) {
            self.hurry_push_pull();
        }
    }

    /// Signs our record again under a new sequence that covers our gossip identity.
    pub(super) fn resign_record(&mut self) {
        let bump = self.cluster().map(|cluster| cluster.membership.gossip().me().bump);
        self.own.renew_sequence(bump, &self.keys);
        self.tell_own_record();
    }

    /// Makes our record part of the roster and tells the others.
    pub(super) fn tell_own_record(&mut self) {
        let (record, now) = (self.own.signed().clone(), self.ctx.boottime());
        if let Some(cluster) = self.cluster_mut() {
            cluster.membership.tell_own(record, now);
            self.files.note_records(now);
        }
    }

    /// Another live machine has our identity and was there first.
    pub(super) fn stand_aside(&mut self) {
        let why = "another machine runs with this node's identity and was there first; this one stands aside";
        self.quarantine = Some(why.to_owned());
        self.problems.set(
            "identity",
            why,
            "this disk is a copy of another node's disk: write the image to it again, so that it gets its own identity",
        );
        self.ctx.log(LogLevel::Error, why, vec![("node", self.me.to_string())]);
        self.streams.end_all(&mut self.ctx);
        if let Place::Member(cluster) = &mut self.place {
            cluster.mesh.take_down(&mut self.ctx);
        }
    }

    /// Signs a leave and starts telling it.
    pub(super) fn leave(&mut self) {
        let now = self.ctx.boottime();
        let at = self.ctx.now.wall_secs();
        let Place::Member(cluster) = &mut self.place else { return };
        let roster = cluster.membership.roster();
        let leave = Leave {
            cluster: roster.cluster(),
            subject: self.keys.public(),
            round: roster.current_round(&self.me),
            at,
        };
        let leave = Verified::sign(leave, &self.keys);
        cluster.membership.begin_leave(Leaving::new(&leave, now));
        self.ctx.log(LogLevel::Info, "leaving the cluster on request", vec![]);
        self.learn(Object::Leave(leave), None);
        self.leaving_tick();
    }

    /// Goes on telling a leave that was signed and saved before the agent stopped.
    pub(super) fn resume_leave(&mut self) {
        let (me, now) = (self.me, self.ctx.boottime());
        let Some(cluster) = self.cluster_mut() else { return };
        let leave = cluster.membership.roster().leaves().find(|leave| leave.subject_id() == me);
        if let Some(leaving) = leave.map(|leave| Leaving::resumed(leave, now)) {
            cluster.membership.begin_leave(leaving);
        }
        self.ctx.log(LogLevel::Info, "stopped while leaving; tells the others again", vec![]);
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.cluster().is_some_and(|cluster| cluster.membership.is_leaving())
    }

    /// Tells the others, and at last is out.
    pub(super) fn leaving_tick(&mut self) {
        let now = self.ctx.boottime();
        let Some(cluster) = self.cluster_mut() else { return };
        let peers = cluster.sessions.open_peers();
        match cluster.membership.leave_tick(&peers, now) {
            None | Some(Step::Wait) => {}
            Some(Step::Tell(object)) => {
                for peer in peers {
                    self.send_payload(peer, PAYLOAD_OBJECT, &object);
                }
            }
            Some(Step::Out) => {
                self.pump();
                self.finish_leave();
            }
        }
    }

    /// Is out: nothing of the cluster but the memory of it stays.
    fn finish_leave(&mut self) {
        let Place::Member(cluster) = std::mem::replace(&mut self.place, Place::Outside { may_found: false })
        else {
            return;
        };
        self.place = Place::Left(Box::new(cluster.membership.into_roster()));
        self.save_place(Hold::All);
        self.ctx.push(HostCommand::MeshRemove);
        self.ctx.log(LogLevel::Info, "left the cluster", vec![]);
        self.streams.end_all(&mut self.ctx);
        self.choose_join_key();
    }

    /// After a leave: look for a cluster again. Never founds one.
    pub(super) fn rejoin(&mut self) {
        self.place = Place::Outside { may_found: false };
        self.save_place(Hold::All);
        self.discovery.restart(self.ctx.boottime());
        self.ctx.log(LogLevel::Info, "joining the cluster again on request", vec![]);
    }
}
