// SPDX-License-Identifier: Apache-2.0
//! Ways to members: which there are, whether those in use still are, and pairs that have none. Members with whom the mesh
//! is busy, and those that did not answer gossip, are watched (`session::watch`); all others cost nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::{Cluster, Node, Place};
use crate::command::LogLevel;
use crate::id::NodeId;
use crate::input::MeshPeerStats;
use crate::session::Path;
use crate::view::MemberState;

/// More than keepalives and handshakes carry between two looks at the counters.
const BUSY_BYTES: u64 = 1000;
/// A member is watched for so long after it gave reason to.
const WATCH_FOR: Duration = Duration::from_secs(15);
const MAX_WATCHED: usize = 32;
/// A member that others reach, and that has not answered us on any way for so long, is named. On a network that loses one
/// datagram in twenty eight handshakes in a row must fail until then.
const NAMED_AFTER: Duration = Duration::from_secs(10);
/// A member that is down is not called at another member's address any more after so many calls in vain.
const CALLED_IN_VAIN: u32 = 3;
/// Names in one problem.
const MAX_NAMES: usize = 8;

/// Members that are watched, and until when.
#[derive(Default)]
pub(super) struct Watched {
    until: BTreeMap<NodeId, Duration>,
    /// Up as all say, but not for us.
    pub(super) out_of_reach: BTreeSet<NodeId>,
    /// Within reach of small datagrams only.
    narrow: BTreeSet<NodeId>,
}

impl Watched {
    fn add(&mut self, id: NodeId, now: Duration) {
        if self.until.len() < MAX_WATCHED || self.until.contains_key(&id) {
            self.until.insert(id, now + WATCH_FOR);
        }
    }
}

impl Node {
    /// A member gave no answer to gossip.
    pub(super) fn look_after(&mut self, id: NodeId) {
        let now = self.ctx.boottime();
        self.suggest_paths(&id);
        if let Some(cluster) = self.cluster_mut() {
            cluster.watched.add(id, now);
        }
    }

    /// Counters of WireGuard: for views, and to see with whom the mesh is busy.
    pub(super) fn mesh_stats(&mut self, stats: Vec<MeshPeerStats>) {
        let now = self.ctx.boottime();
        let Place::Member(cluster) = &mut self.place else { return };
        let stats: BTreeMap<_, _> = stats.into_iter().map(|peer| (peer.public_key, peer)).collect();
        let busy = |key: &[u8; 32]| {
            let (before, now) = (cluster.stats.get(key)?, stats.get(key)?);
            (now.rx + now.tx).checked_sub(before.rx + before.tx).filter(|more| *more >= BUSY_BYTES)
        };
        let peers = cluster.plan.iter().flat_map(|plan| &plan.peers);
        let mut found: Vec<_> = peers.filter_map(|peer| Some((busy(&peer.public_key)?, peer.id))).collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        for (_, id) in &found {
            cluster.watched.add(*id, now);
        }
        cluster.stats = stats;
        for (_, id) in found {
            self.suggest_paths(&id);
        }
    }

    /// Remembers where members are heard, says who is watched, and names those that are out of reach. Gives the members
    /// whose path is another than at the last tick.
    pub(super) fn paths_tick(&mut self) -> BTreeSet<NodeId> {
        let now = self.ctx.boottime();
        let Place::Member(cluster) = &mut self.place else { return BTreeSet::new() };
        let moved = cluster.sessions.take_moved();
        for id in &moved {
            if let Some(path) = cluster.sessions.path(id)
                && cluster.membership.roster().standing(id).is_some()
                && cluster.seen.insert(*id, path.address) != Some(path.address)
            {
                cluster.records_dirty.get_or_insert(now);
            }
        }
        if cluster.watched.until.is_empty() {
            return moved;
        }
        let Cluster { watched, membership, sessions, .. } = &mut **cluster;
        let up = |id: &NodeId| membership.is_up(id);
        let out_of_reach: BTreeSet<_> = sessions.unanswered(NAMED_AFTER, now).filter(up).collect();
        let narrow: BTreeSet<_> = sessions.narrow().filter(up).collect();
        watched.until.retain(|id, until| *until > now || out_of_reach.contains(id) || narrow.contains(id));
        sessions.watch(&watched.until.keys().copied().collect());
        if watched.out_of_reach != out_of_reach {
            watched.out_of_reach = out_of_reach;
            self.name_those_out_of_reach();
        }
        if let Some(cluster) = self.cluster_mut()
            && cluster.watched.narrow != narrow
        {
            cluster.watched.narrow = narrow;
            self.name_those_behind_narrow_paths();
        }
        moved
    }

    fn name_those_out_of_reach(&mut self) {
        let Some(cluster) = self.cluster() else { return };
        if cluster.watched.out_of_reach.is_empty() {
            self.problems.clear("path");
            return self.ctx.log(LogLevel::Info, "all members are reachable again", vec![]);
        }
        let names = names(cluster, &cluster.watched.out_of_reach);
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
        let Some(cluster) = self.cluster() else { return };
        if cluster.watched.narrow.is_empty() {
            self.problems.clear("mtu");
            return self.ctx.log(LogLevel::Info, "full packets get through to all members again", vec![]);
        }
        let names = names(cluster, &cluster.watched.narrow);
        let fields = vec![("members", names.clone())];
        self.ctx.log(LogLevel::Warn, "full packets do not get through to members, small ones do", fields);
        self.problems.set(
            "mtu",
            &format!("full packets do not reach {names}, small ones do: connections through the mesh stall"),
            "let packets of 1400 bytes pass between the two: look at the MTU of switches, VLANs, tunnels and VPNs on the way",
        );
    }

    /// Adds all ways to a member that its record and our memory name.
    pub(super) fn suggest_paths(&mut self, id: &NodeId) {
        let paths = self.paths_to(id);
        if let Some(cluster) = self.cluster_mut() {
            for path in paths {
                cluster.sessions.name(*id, path);
            }
        }
    }

    /// Paths to a member that no beacon told: where it was last heard, then what its record says.
    pub(super) fn paths_to(&self, id: &NodeId) -> Vec<Path> {
        let Some(cluster) = self.cluster() else { return Vec::new() };
        let seen = cluster.seen.get(id).copied();
        let named =
            cluster.membership.roster().record(id).map(|record| record.endpoints.clone()).unwrap_or_default();
        let mut paths = Vec::new();
        for address in seen.into_iter().chain(named) {
            paths.extend(self.links.paths_to(address));
        }
        paths.dedup();
        if self.is_lost(cluster, id) {
            paths.retain(|path| !self.leads_elsewhere(cluster, id, *path));
        }
        paths
    }

    /// Forgets paths to a member that does not answer, as far as another one is there now.
    pub(super) fn forget_paths_of_others(&mut self, id: &NodeId) {
        let Some(cluster) = self.cluster().filter(|cluster| self.is_lost(cluster, id)) else { return };
        let known = cluster.sessions.paths(id);
        let taken: BTreeSet<Path> =
            known.into_iter().filter(|path| self.leads_elsewhere(cluster, id, *path)).collect();
        if let Some(cluster) = self.cluster_mut()
            && !taken.is_empty()
        {
            cluster.sessions.forget_paths(id, |path| taken.contains(&path));
        }
    }

    /// Whether a member is down and was called in vain.
    fn is_lost(&self, cluster: &Cluster, id: &NodeId) -> bool {
        let down = || cluster.membership.gossip().state(id).is_none_or(|state| state == MemberState::Down);
        cluster.sessions.attempts(id) >= CALLED_IN_VAIN && down()
    }

    /// Whether this node or another member that is up is at the end of a path. So it is when a machine was installed anew and is
    /// a node of another id now: it would refuse, and count, each handshake for the one that it was.
    fn leads_elsewhere(&self, cluster: &Cluster, id: &NodeId, path: Path) -> bool {
        let theirs = |other: NodeId| {
            let named = || {
                let record = cluster.membership.roster().record(&other);
                record.is_some_and(|record| record.endpoints.contains(&without_scope(path.address)))
            };
            other != *id
                && cluster.membership.gossip().state(&other) == Some(MemberState::Up)
                && (cluster.sessions.path(&other) == Some(path) || named())
        };
        self.links.lead_here(path) || cluster.membership.roster().members().any(theirs)
    }
}

/// As records have it.
fn without_scope(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

/// Names of members, in order; of many the first ones.
fn names(cluster: &Cluster, of: &BTreeSet<NodeId>) -> String {
    let mut names: Vec<_> = of.iter().map(|id| cluster.membership.name_of(id)).collect();
    names.sort();
    let more = names.len().saturating_sub(MAX_NAMES);
    names.truncate(MAX_NAMES);
    names.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}
