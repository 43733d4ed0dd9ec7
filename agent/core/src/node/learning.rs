// SPDX-License-Identifier: Apache-2.0
//! What the node learns about its cluster, from whomever, and what follows from it.

use super::checks::Word;
use super::leaving::Leaving;
use super::parts::Node;
use crate::command::{LogLevel, Ticket};
use crate::gossip::Liveness;
use crate::id::NodeId;
use crate::record::NodeRecord;
use crate::roster::{Admission, Learned, Leave, Object};
use crate::signed::Verified;

/// Whoever passes on an object has checked it, so who says this has made it up.
pub(super) const FORGED: &str = "object malformed or forged";
const TOO_MANY: &str = "objects over limit";

impl Node {
    /// Admits a node that proved itself, unless it is a member already, and takes its record.
    pub(super) fn admit(&mut self, record: &Verified<NodeRecord>) {
        let subject = record.node_id();
        let at = self.ctx.now.wall_secs();
        let Some(cluster) = self.place.cluster() else { return };
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
                self.advance_generation(record.sequence)
            };
        }
        // Our own word, and that somebody goes, is on the disk before it is told, and our own leave before anything is.
        let is_leave = matches!(object, Object::Leave(_));
        let saved_first = is_leave || from.is_none();
        let Some(cluster) = self.place.cluster_mut() else { return };
        let bytes = object.as_bytes().to_vec();
        let learned = cluster.membership.learn(object, from, saved_first, &mut self.ctx);
        match learned {
            Learned::Nothing | Learned::Refused | Learned::Unknown => return,
            Learned::Record => self.files.note_records(now),
            Learned::Membership => {
                if !cluster.membership.roster().is_member(&about) {
                    cluster.sessions.forget(&about);
                }
                let ticket = match saved_first {
                    true if is_leave && about == self.me => self.save_place(),
                    true => self.save_members(),
                    false => {
                        self.files.note_membership(now);
                        None
                    }
                };
                if let (Some(ticket), Some(cluster)) = (ticket, self.place.cluster_mut()) {
                    cluster.membership.broadcast_when_saved(ticket, about, bytes, &mut self.ctx);
                }
                self.mind_own_leave(about);
            }
        }
        if from.is_some()
            && let Some(cluster) = self.place.cluster_mut()
        {
            cluster.membership.hear_news_of(about, now);
        }
    }

    /// A write is on the disk: what waited for it may be told.
    pub(super) fn persisted(&mut self, ticket: Ticket) {
        self.ctx.outbox.persisted(ticket);
        let now = self.ctx.boottime();
        if let Some(cluster) = self.place.cluster_mut() {
            cluster.membership.broadcast_saved(ticket, now);
        }
    }

    /// An old copy of our disk came back: the cluster remembers our leave, we did not.
    fn mind_own_leave(&mut self, about: NodeId) {
        let me = self.me;
        let out = self.place.cluster().is_some_and(|cluster| {
            let membership = &cluster.membership;
            about == me && !membership.roster().is_member(&me) && !membership.is_leaving()
        });
        if out {
            self.finish_leave();
        }
    }

    /// Many objects that a member gave in a push-pull. Gives false when there was one among them that nobody signed, or more
    /// than are checked for it.
    pub(super) fn learn_all(&mut self, objects: &[Vec<u8>], from: NodeId) -> bool {
        let now = self.ctx.boottime();
        let (me, own) = (self.me, self.own.sequence());
        let Some(cluster) = self.place.cluster_mut() else { return false };
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
            if union.leaves.contains(&me) {
                self.save_place()
            } else {
                self.save_members()
            };
        }
        if let Some(theirs) = newer_self.filter(|theirs| *theirs > own) {
            self.advance_generation(theirs);
        }
        if union.records || union.membership {
            self.hurry_push_pull();
        }
        if let Some(cluster) = self.place.cluster_mut() {
            cluster.membership.hear_admitted(&dated, &self.ctx);
        }
        self.mind_own_leave(me);
        refused.is_none()
    }

    /// Bytes that a member passed on.
    pub(super) fn learn_bytes(&mut self, bytes: &[u8], from: NodeId) {
        // Each object comes many times; once it is known its signature need not be checked again.
        if self.place.cluster().is_some_and(|cluster| cluster.membership.knows(bytes)) {
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
        if self.place.cluster_mut().is_some_and(|cluster| cluster.membership.hear_alive(known, now)) {
            self.hurry_push_pull();
        }
    }

    /// Signs a leave and starts telling it.
    pub(super) fn leave(&mut self) {
        let now = self.ctx.boottime();
        let at = self.ctx.now.wall_secs();
        let Some(cluster) = self.place.cluster_mut() else { return };
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
    }

    /// Goes on telling a leave that was signed and saved before the agent stopped.
    pub(super) fn resume_leave(&mut self) {
        let (me, now) = (self.me, self.ctx.boottime());
        let Some(cluster) = self.place.cluster_mut() else { return };
        let leave = cluster.membership.roster().leaves().find(|leave| leave.subject_id() == me);
        if let Some(leaving) = leave.map(|leave| Leaving::resumed(leave, now)) {
            cluster.membership.begin_leave(leaving);
        }
        self.ctx.log(LogLevel::Info, "stopped while leaving; tells the others again", vec![]);
    }

    /// Something new was learned from another member: the next push-pull comes soon.
    pub(super) fn hurry_push_pull(&mut self) {
        if let Some(cluster) = self.place.cluster_mut() {
            cluster.push_pull.hurry(&mut self.ctx);
        }
    }
}
