// SPDX-License-Identifier: Apache-2.0
//! Paths to members: those that are not used are tried when there is a reason, and members without one are named to people.

use std::collections::BTreeSet;

use super::dialer::taken_paths;
use super::mesh::Whereabouts;
use super::parts::Node;
use super::place::Cluster;
use super::problems::listed;
use crate::command::LogLevel;
use crate::consts::paths::*;
use crate::id::NodeId;
use crate::input::MeshPeerStats;
use crate::session::Path;

impl Node {
    /// A member gave no answer to gossip.
    pub(super) fn watch_paths(&mut self, id: NodeId) {
        let now = self.ctx.boottime();
        self.name_paths(&id);
        if let Some(cluster) = self.place.cluster_mut() {
            cluster.dialer.watch(id, now);
        }
    }

    /// Counters of WireGuard: for views, and to see with whom the mesh is busy.
    pub(super) fn mesh_stats(&mut self, stats: Vec<MeshPeerStats>) {
        let Some(cluster) = self.place.cluster_mut() else { return };
        for id in cluster.mesh.hear_stats(stats) {
            self.watch_paths(id);
        }
    }

    /// Remembers where members are heard, and names those that are out of reach. Gives the members whose path is another
    /// than at the last tick.
    pub(super) fn paths_tick(&mut self) -> BTreeSet<NodeId> {
        let now = self.ctx.boottime();
        let Some(cluster) = self.place.cluster_mut() else { return BTreeSet::new() };
        let Cluster { membership, sessions, dialer, .. } = cluster;
        let moved = sessions.take_moved();
        if dialer.note_moved(&moved, membership, sessions) {
            self.files.note_records(now);
        }
        let renamed = dialer.watch_tick(membership, sessions, now);
        if renamed.out_of_reach {
            self.name_those_out_of_reach();
        }
        if renamed.narrow {
            self.name_those_behind_narrow_paths();
        }
        moved
    }

    /// Asks for the mesh when it should be different. `moved`: members whose path is another.
    pub(super) fn mesh_tick(&mut self, moved: &BTreeSet<NodeId>) {
        let now = self.ctx.boottime();
        let Some(cluster) = self.place.cluster_mut() else { return };
        if cluster.membership.is_leaving() {
            return;
        }
        let quiet = cluster.membership.watch_quiet(now);
        for id in cluster.mesh.lost(&cluster.membership, &mut self.ctx) {
            self.name_paths(&id);
            self.with_sessions(|sessions, context| sessions.open(id, context));
        }
        let Some(cluster) = self.place.cluster_mut() else { return };
        let Cluster { membership, sessions, dialer, mesh, .. } = cluster;
        let at = Whereabouts { membership, sessions, dialer };
        mesh.tick(&at, quiet, moved, &mut self.clock, &mut self.ctx);
    }

    fn name_those_out_of_reach(&mut self) {
        let Some(cluster) = self.place.cluster() else { return };
        if cluster.dialer.out_of_reach().is_empty() {
            self.problems.clear("path");
            return self.ctx.log(LogLevel::Info, "all members are reachable again", vec![]);
        }
        let names = names(cluster, cluster.dialer.out_of_reach());
        let fields = vec![("members", names.clone())];
        self.ctx.log(LogLevel::Warn, "members that others reach do not answer this node", fields);
        self.problems.set(
            "path",
            &format!(
                "unreachable: {names}; other members reach them, this node does not, and members do not relay"
            ),
            "check cables, VLANs and firewalls between the two: UDP and TCP 41410 and UDP 41411 must pass",
        );
    }

    fn name_those_behind_narrow_paths(&mut self) {
        let Some(cluster) = self.place.cluster() else { return };
        if cluster.dialer.narrow().is_empty() {
            self.problems.clear("mtu");
            return self.ctx.log(LogLevel::Info, "full packets get through to all members again", vec![]);
        }
        let names = names(cluster, cluster.dialer.narrow());
        let fields = vec![("members", names.clone())];
        self.ctx.log(LogLevel::Warn, "full packets do not get through to members, small ones do", fields);
        self.problems.set(
            "mtu",
            &format!("full packets do not reach {names}, small ones do: connections through the mesh stall"),
            "let packets of 1400 bytes pass between the two: look at the MTU of switches, VLANs, tunnels and VPNs on the way",
        );
    }

    /// Adds all paths to a member that its record and our memory name.
    pub(super) fn name_paths(&mut self, id: &NodeId) {
        let paths = self.paths_to(id);
        if let Some(cluster) = self.place.cluster_mut() {
            for path in paths {
                cluster.sessions.name(*id, path);
            }
        }
    }

    pub(super) fn paths_to(&self, id: &NodeId) -> Vec<Path> {
        let Some(Cluster { membership, sessions, dialer, .. }) = self.place.cluster() else {
            return Vec::new();
        };
        dialer.paths_to(id, membership, sessions, &self.links)
    }

    /// Forgets paths to a member that does not answer, as far as another one is there now.
    pub(super) fn forget_taken_paths(&mut self, id: &NodeId) {
        let Some(cluster) = self.place.cluster_mut() else { return };
        let taken = taken_paths(id, &cluster.membership, &cluster.sessions, &self.links);
        if !taken.is_empty() {
            cluster.sessions.forget_paths(id, |path| taken.contains(&path));
        }
    }
}

/// Names of members, in order; of many the first ones.
fn names(cluster: &Cluster, of: &BTreeSet<NodeId>) -> String {
    let mut names: Vec<_> = of.iter().map(|id| cluster.membership.name_of(id)).collect();
    names.sort();
    listed(names, MAX_NAMES)
}
