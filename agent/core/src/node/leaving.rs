// SPDX-License-Identifier: Apache-2.0
//! Leaving by request, and coming back.

use std::time::Duration;

use super::{Node, Place};
use crate::command::{Command, LogLevel};
use crate::roster::{Leave, Object};
use crate::session::PAYLOAD_OBJECT;
use crate::signed::Verified;

/// How long the others are told, from when the first of them can be.
const TELL_FOR: Duration = Duration::from_secs(2);
const TELL_EVERY: Duration = Duration::from_millis(500);
/// How long a node that leaves waits for a member that it can tell.
const NOBODY_FOR: Duration = Duration::from_secs(5);
/// The same after a restart in the middle of a leave: the network may come up late.
const NOBODY_FOR_RESUMED: Duration = Duration::from_secs(30);

/// A leave under way.
pub(super) struct Leaving {
    /// When it ends if no member can be told.
    at_last: Duration,
    /// When it ends; known once there is somebody to tell.
    until: Option<Duration>,
    next: Duration,
    object: Vec<u8>,
}

impl Leaving {
    fn new(leave: &Verified<Leave>, now: Duration, patience: Duration) -> Self {
        Self { at_last: now + patience, until: None, next: now, object: leave.as_bytes().to_vec() }
    }
}

impl Node {
    /// Signs a leave and starts telling it.
    pub(super) fn leave(&mut self) {
        let now = self.now.boottime;
        let at = self.now.wall_secs();
        let Place::Member(cluster) = &mut self.place else {
            return self.outbox.log(
                LogLevel::Warn,
                "asked to leave, but this node is not in a cluster",
                vec![],
            );
        };
        if cluster.leaving.is_some() {
            return;
        }
        let leave = Leave {
            cluster: cluster.roster.cluster(),
            subject: self.keys.public(),
            round: cluster.roster.current_round(&self.me),
            at,
        };
        let leave = Verified::sign(leave, &self.keys);
        cluster.leaving = Some(Leaving::new(&leave, now, NOBODY_FOR));
        self.outbox.log(LogLevel::Info, "leaving the cluster on request", vec![]);
        self.learn(Object::Leave(leave), None);
        self.leaving_tick();
    }

    /// Goes on telling a leave that was signed and saved before the agent stopped.
    pub(super) fn resume_leave(&mut self) {
        let (me, now) = (self.me, self.now.boottime);
        let Some(cluster) = self.cluster_mut() else { return };
        let leave = cluster.roster.leaves().find(|leave| leave.subject_id() == me);
        cluster.leaving = leave.map(|leave| Leaving::new(leave, now, NOBODY_FOR_RESUMED));
        self.outbox.log(LogLevel::Info, "stopped while leaving; tells the others again", vec![]);
    }

    /// Whether nothing that a person asked for is under way: no leave, and where the node stands is on the disk.
    pub fn is_settled(&self) -> bool {
        self.cluster().is_none_or(|cluster| cluster.leaving.is_none()) && self.outbox.is_saved()
    }

    /// Tells the others, and at last is out.
    pub(super) fn leaving_tick(&mut self) {
        let (me, now) = (self.me, self.now.boottime);
        let Place::Member(cluster) = &mut self.place else { return };
        let Some(leaving) = &mut cluster.leaving else { return };
        let peers = cluster.sessions.open_peers();
        if cluster.roster.members().all(|id| id == me) {
            leaving.until = Some(now);
        } else if !peers.is_empty() {
            leaving.until.get_or_insert(now + TELL_FOR);
        }
        if now < leaving.until.unwrap_or(leaving.at_last) {
            if now >= leaving.next {
                leaving.next = now + TELL_EVERY;
                let object = leaving.object.clone();
                for peer in peers {
                    self.send_payload(peer, PAYLOAD_OBJECT, &object);
                }
            }
            return;
        }
        cluster.gossip.leave(now);
        self.pump();
        self.finish_leave();
    }

    /// Is out: nothing of the cluster but the memory of it stays.
    pub(super) fn finish_leave(&mut self) {
        let Place::Member(cluster) = std::mem::replace(&mut self.place, Place::Outside { may_found: false })
        else {
            return;
        };
        self.place = Place::Left(Box::new(cluster.roster));
        self.save_membership();
        self.outbox.push(Command::MeshRemove);
        self.outbox.log(LogLevel::Info, "left the cluster", vec![]);
        let open: Vec<_> = self.streams.open.keys().copied().collect();
        for id in open {
            self.end(id);
        }
        self.choose_join_key();
    }

    /// After a leave: look for a cluster again. Never founds one.
    pub(super) fn rejoin(&mut self) {
        if !matches!(self.place, Place::Left(_)) {
            return self.outbox.log(LogLevel::Warn, "asked to join, but this node did not leave", vec![]);
        }
        self.place = Place::Outside { may_found: false };
        self.save_membership();
        self.discovery.restart(self.now.boottime);
        self.outbox.log(LogLevel::Info, "joining the cluster again on request", vec![]);
    }
}
