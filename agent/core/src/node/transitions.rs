// SPDX-License-Identifier: Apache-2.0
//! How the node comes to stand elsewhere: it enters a cluster, leaves it, joins again, or stands aside.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rand::Rng;

use super::dialer::Dialer;
use super::membership::Membership;
use super::mesh::MeshPlanner;
use super::parts::Node;
use super::place::{Cluster, KeyChoice};
use super::push_pull::PushPull;
use super::told::Told;
use crate::command::{HostCommand, LogLevel, Ticket};
use crate::id::NodeId;
use crate::join_key::JoinKey;
use crate::roster::Roster;
use crate::session::Sessions;

impl Node {
    /// Makes this node a member of the cluster that the roster describes. The caller persists it.
    pub(super) fn enter(&mut self, roster: Roster, key: JoinKey, seen: BTreeMap<NodeId, SocketAddr>) {
        let now = self.ctx.boottime();
        let former = self.place.cluster().map(|cluster| cluster.membership.gossip().me());
        let id = self.own.begin_gossip(former);
        let mut seed = [0; 32];
        self.ctx.rng.fill_bytes(&mut seed);
        let theirs = roster.record(&self.me).map(|record| record.sequence);
        let cluster = Cluster {
            sessions: Sessions::new(roster.cluster(), &self.keys.session_public(), &mut self.ctx.rng),
            membership: Membership::new(roster, id, seed, now),
            dialer: Dialer::new(seen, now),
            push_pull: PushPull::new(now),
            mesh: MeshPlanner::new(self.keys.wireguard_secret(), now),
            told: Told::default(),
        };
        self.place.enter(cluster, key);
        self.files.begin(now);
        self.problems.clear("membership");
        self.problems.clear("cluster");
        self.discovery.restart(now);
        if !self.own.covers_gossip() {
            self.resign_record();
        }
        let record = self.own.signed().clone();
        if let Some(cluster) = self.place.cluster_mut() {
            cluster.membership.take_own(record);
        }
        self.choose_join_key();
        // Other streams were opened under other assumptions.
        self.streams.end_joining(&mut self.ctx);
        // The members know a later boot of ours: our state is older than our membership. It is in the roster, so nobody will
        // bring it again.
        if let Some(theirs) = theirs.filter(|theirs| *theirs > self.own.sequence()) {
            self.advance_generation(theirs);
        }
    }

    /// A member keeps the key it was admitted under; another one in the file waits and is shown.
    pub(super) fn choose_join_key(&mut self) {
        let file = self.provisioning.settings.as_ref().map(|settings| settings.join_key.clone());
        self.problems.clear("join key");
        match self.place.choose_key(file) {
            KeyChoice::Same => {}
            KeyChoice::Changed => self.discovery.forget_founding(self.ctx.boottime()),
            KeyChoice::FileDiffers => self.problems.set(
                "join key",
                "cluster.toml has another join key than the one this node was admitted with; it is not used",
                "put the old key back, or run `clusterctl leave` and then `clusterctl join` to use the new one",
            ),
        }
    }

    /// Persists where the node stands; until then it says nothing.
    pub(super) fn save_place(&mut self) -> Option<Ticket> {
        let place = self.place.saved()?;
        Some(self.files.save_place(&place, &mut self.ctx))
    }

    /// Persists who is a member; what may tell of it waits, heartbeats go on.
    pub(super) fn save_members(&mut self) -> Option<Ticket> {
        let place = self.place.saved()?;
        Some(self.files.save_members(&place, &mut self.ctx))
    }

    /// The interface may have outlived the agent that was to remove it.
    pub(super) fn stay_left(&mut self, roster: Roster) {
        self.place.stay_left(roster);
        self.ctx.push(HostCommand::MeshRemove);
    }

    /// Is out: nothing of the cluster but the memory of it stays.
    pub(super) fn finish_leave(&mut self) {
        if !self.place.leave() {
            return;
        }
        self.save_place();
        self.ctx.push(HostCommand::MeshRemove);
        self.ctx.log(LogLevel::Info, "left the cluster", vec![]);
        self.streams.end_all(&mut self.ctx);
        self.choose_join_key();
    }

    /// After a leave: look for a cluster again. Never founds one.
    pub(super) fn rejoin(&mut self) {
        self.place.search();
        self.save_place();
        self.discovery.restart(self.ctx.boottime());
        self.ctx.log(LogLevel::Info, "joining the cluster again on request", vec![]);
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
        if let Some(cluster) = self.place.cluster_mut() {
            cluster.mesh.take_down(&mut self.ctx);
        }
    }
}
