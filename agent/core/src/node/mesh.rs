// SPDX-License-Identifier: Apache-2.0
//! The mesh as it should be: all members but us, whatever gossip says of liveness, each where it was last heard.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use rand::seq::IndexedRandom;

use super::clock::{Correction, Uncertain};
use super::{Cluster, Node, Place};
use crate::command::{Command, MeshPeer, MeshPlan};
use crate::consts::{MESH_KEEPALIVE, WIREGUARD_PORT};
use crate::id::NodeId;
use crate::roster::Roster;
use crate::wire::needs_interface;

/// The mesh waits so long for a member to tell the time.
const WAIT_FOR_CLOCK: Duration = Duration::from_secs(5);
/// When some say that the clock is far ahead, it waits this long for a majority: it can go back only before.
const WAIT_FOR_MAJORITY: Duration = Duration::from_secs(30);
/// The problem of a wrong clock stays until the next look, and a little longer.
const CLOCK_PROBLEM: Duration = Duration::from_secs(70);

/// Members are added once nobody has joined for so long, or so long after the last ones: a crowd that joins is added in a
/// few heaps.
const PLAN_QUIET: Duration = Duration::from_millis(500);
const PLAN_GAP: Duration = Duration::from_secs(1);
/// The same for more members than that: who is there comes first, then tunnels.
const CROWD_PLAN_GAP: Duration = Duration::from_secs(10);
const CROWD_PLAN_QUIET: Duration = Duration::from_secs(1);
const CROWD: usize = 16;
/// A heap of that many to be added waits longer on a machine that has too much to do: so many times what ticks were late.
const PER_LATE: u32 = 20;
/// So many members that no tunnel reaches yet are dialled each time.
const WAYS_AT_ONCE: usize = 8;
const WAYS_EVERY: Duration = Duration::from_secs(1);
/// A keepalive makes both ends shake hands at once. So many more tunnels get theirs at a time; one that is needed earlier
/// comes up with its first packet.
const KEPT_ALIVE_AT_ONCE: usize = 8;
const KEEP_MORE_AFTER: Duration = Duration::from_secs(2);
/// WireGuard drops its own handshake when the other's comes meanwhile, and both try again 5 s later: two that begin in one moment on a
/// machine that stands still now and then missed each other for 15 s. So the higher id begins this much later, and so do its repeats.
const OTHER_BEGINS: Duration = Duration::from_millis(1500);
/// A crowd has more urgent work: there they wait until nobody has joined for so long, but not longer than that.
const KEEP_QUIET: Duration = Duration::from_secs(3);
const KEEP_ANYWAY: Duration = Duration::from_secs(30);

/// Tunnels that are kept alive. After a power cut, or in a crowd that joins, a node would else shake hands with a thousand
/// others in one moment.
#[derive(Default)]
pub(super) struct KeptAlive {
    members: BTreeSet<NodeId>,
    next: Duration,
    /// Of which roster all are.
    all_of: u64,
    /// Since when some are missing.
    missing_since: Option<Duration>,
    /// Of those with lower ids, since when.
    lower_since: BTreeMap<NodeId, Duration>,
}

fn is_crowd(roster: &Roster) -> bool {
    roster.members().nth(CROWD).is_some()
}

impl KeptAlive {
    /// Adds some of those that are not yet.
    fn add_some(&mut self, roster: &Roster, crowd: bool, quiet: Duration, me: NodeId, now: Duration) {
        if now < self.next || self.all_of == roster.version() {
            return;
        }
        let missing_since = *self.missing_since.get_or_insert(now);
        if crowd && quiet < KEEP_QUIET && now.saturating_sub(missing_since) < KEEP_ANYWAY {
            return;
        }
        self.members.retain(|id| roster.is_member(id));
        // Each begins after itself, or all would shake hands with the same eight.
        let absent = |id: &NodeId| *id != me && !self.members.contains(id);
        let (lower, higher): (Vec<_>, Vec<_>) = roster.members().filter(absent).partition(|id| *id < me);
        let before = std::mem::take(&mut self.lower_since);
        self.lower_since = lower.iter().map(|id| (*id, before.get(id).copied().unwrap_or(now))).collect();
        let begins = |id: &NodeId| self.lower_since.get(id).is_none_or(|since| now >= *since + OTHER_BEGINS);
        let (due, later): (Vec<_>, Vec<_>) = higher.into_iter().chain(lower).partition(begins);
        let missing: Vec<_> = due.into_iter().take(KEPT_ALIVE_AT_ONCE).collect();
        if missing.len() < KEPT_ALIVE_AT_ONCE && later.is_empty() {
            self.all_of = roster.version();
            self.missing_since = None;
        }
        if !missing.is_empty() {
            self.next = now + KEEP_MORE_AFTER;
        }
        self.members.extend(missing);
    }
}

impl Node {
    /// Asks for the mesh whenever it should be different: all of it when the roster changed, else only where members are
    /// that moved.
    pub(super) fn mesh_tick(&mut self, moved: &BTreeSet<NodeId>) {
        let (me, now, late, busy) =
            (self.me, self.ctx.boottime(), self.ctx.load.late(), self.ctx.load.is_busy());
        let Place::Member(cluster) = &mut self.place else { return };
        if cluster.membership.is_leaving() {
            return;
        }
        let quiet = cluster.membership.watch_quiet(now);
        let Cluster { kept_alive, membership, planned_at, plan, .. } = &mut **cluster;
        let (roster, since) = (membership.roster(), membership.since());
        // A machine that has too much to do may be one of a crowd that it does not know of yet.
        let crowd = busy || is_crowd(roster);
        let kept = kept_alive.members.len();
        kept_alive.add_some(roster, crowd, quiet, me, now);
        let keep_more = kept_alive.members.len() != kept;
        let planned = plan.as_ref().map_or(0, |plan| plan.peers.len());
        let heap = roster.members().nth(planned + CROWD).is_some();
        let longer = if heap { (late * PER_LATE).min(CROWD_PLAN_GAP) } else { Duration::ZERO };
        let (enough, gap) = match (crowd, *planned_at) {
            (true, _) => (CROWD_PLAN_QUIET, CROWD_PLAN_GAP),
            (false, None) => (PLAN_QUIET, Duration::ZERO),
            (false, Some(_)) => (PLAN_QUIET, PLAN_GAP),
        };
        let due = quiet >= enough + longer || now >= planned_at.unwrap_or(since) + gap + longer;
        if self.cluster().is_some_and(|cluster| cluster.plan.is_none()) {
            if due {
                self.first_mesh();
            }
            return;
        }
        self.find_ways();
        self.late_clock();
        let Some(cluster) = self.cluster() else { return };
        let Some(plan) = &cluster.plan else { return };
        let roster = cluster.membership.roster().version();
        let whole = (cluster.plan_of != roster && due) || keep_more;
        let plan = if whole {
            self.mesh_plan(cluster)
        } else {
            let whereabouts = |id: &NodeId| {
                let at = plan.peers.binary_search_by_key(id, |peer| peer.id).ok()?;
                let (endpoint, also_at) = self.whereabouts(cluster, id);
                let peer = &plan.peers[at];
                (peer.endpoint != endpoint || peer.also_at != also_at).then_some((at, endpoint, also_at))
            };
            let changes: Vec<_> = moved.iter().filter_map(whereabouts).collect();
            if changes.is_empty() {
                return;
            }
            let mut plan = plan.clone();
            for (at, endpoint, also_at) in changes {
                let peer = &mut plan.peers[at];
                (peer.endpoint, peer.also_at) = (endpoint, also_at);
            }
            plan
        };
        let changed = cluster.plan.as_ref() != Some(&plan);
        if let Some(cluster) = self.cluster_mut() {
            if whole {
                cluster.plan_of = roster;
                cluster.planned_at = Some(now);
            }
            if changed {
                cluster.plan = Some(plan.clone());
                self.ctx.push(Command::MeshApply(plan));
            }
        }
    }

    /// Without routable addresses only a session tells where a member's tunnel goes: gossip has one with some of them only.
    fn find_ways(&mut self) {
        let now = self.ctx.boottime();
        let Place::Member(cluster) = &mut self.place else { return };
        if now < cluster.next_ways {
            return;
        }
        cluster.next_ways = now + WAYS_EVERY;
        let up = |id: &NodeId| cluster.membership.is_up(id);
        let peers = cluster.plan.iter().flat_map(|plan| &plan.peers);
        let lost: Vec<_> =
            peers.filter(|peer| peer.endpoint.is_none()).map(|peer| peer.id).filter(up).collect();
        let some: Vec<_> = lost.sample(&mut self.ctx.rng, WAYS_AT_ONCE).copied().collect();
        for id in some {
            self.suggest_paths(&id);
            self.with_sessions(|sessions, context| sessions.open(id, context));
        }
    }

    /// The mesh begins once there is a clock to begin it with.
    fn first_mesh(&mut self) {
        let now = self.ctx.now;
        let others = self.others();
        let Some(cluster) = self.cluster() else { return };
        let wait = match self.clock.uncertain(&others, now) {
            Uncertain::No => Duration::ZERO,
            Uncertain::Silent => WAIT_FOR_CLOCK,
            Uncertain::FarAhead => WAIT_FOR_MAJORITY,
        };
        if now.boottime.saturating_sub(cluster.membership.since()) < wait {
            return;
        }
        let (plan, roster) = (self.mesh_plan(cluster), cluster.membership.roster().version());
        match self.clock.before_mesh(&others, now) {
            Correction::Floor(wall) => self.ctx.push(Command::SetClockFloor { wall }),
            Correction::Back(wall) => self.ctx.push(Command::SetClock { wall }),
        }
        self.ctx.push(Command::MeshApply(plan.clone()));
        if let Some(cluster) = self.cluster_mut() {
            cluster.plan = Some(plan);
            cluster.plan_of = roster;
        }
    }

    /// Too few members were heard before the mesh began, so it began with the time that was saved: up to a minute before
    /// the last handshakes. The first member's time mends that, once, and a majority's, once: who has a time server may be
    /// nearer to the truth than they.
    fn late_clock(&mut self) {
        if !self.clock.has_news() {
            return;
        }
        if let Some(wall) = self.clock.while_mesh(&self.others(), self.ctx.now) {
            self.ctx.push(Command::SetClockFloor { wall });
        }
    }

    /// Names a clock that can only be put right before the next start of the mesh.
    pub(super) fn mind_clock(&mut self) {
        if let Some(ahead) = self.clock.ahead(&self.others(), self.ctx.now) {
            let hours = ahead.as_secs() / 3600;
            self.problems.set_until(
                "clock",
                &format!("the clock of this node is {hours} hours ahead of most members"),
                "check its time server and the clock of its firmware, then restart the node: before its mesh starts the \
                 clock follows the majority",
                self.ctx.boottime() + CLOCK_PROBLEM,
            );
        }
    }

    /// All members but this node.
    fn others(&self) -> Vec<NodeId> {
        self.cluster().into_iter().flat_map(|cluster| cluster.membership.others()).collect()
    }

    fn mesh_plan(&self, cluster: &Cluster) -> MeshPlan {
        let peers = cluster.membership.others().filter_map(|id| {
            let record = cluster.membership.roster().record(&id)?;
            let (endpoint, also_at) = self.whereabouts(cluster, &id);
            Some(MeshPeer {
                id,
                public_key: record.wireguard_key,
                endpoint,
                also_at,
                allowed_ips: vec![(IpAddr::V6(id.mesh_address()), 128)],
                keepalive: if cluster.kept_alive.members.contains(&id) {
                    MESH_KEEPALIVE
                } else {
                    Duration::ZERO
                },
            })
        });
        MeshPlan {
            private_key: self.keys.wireguard_secret(),
            listen_port: WIREGUARD_PORT,
            address: self.me.mesh_address(),
            peers: peers.collect(),
        }
    }

    /// The path in use with the member, and its other link-local addresses. Before there is a path, where it was seen in an
    /// earlier boot or what its record says, if that means something without a scope.
    fn whereabouts(&self, cluster: &Cluster, id: &NodeId) -> (Option<SocketAddr>, Vec<SocketAddrV6>) {
        let tunnel = |mut address: SocketAddr| {
            address.set_port(WIREGUARD_PORT);
            address
        };
        if let Some(path) = cluster.sessions.path(id) {
            let link_local = cluster.sessions.link_local(id).map(|path| tunnel(path.address));
            let others = link_local.filter(|other| other.ip() != path.address.ip());
            let mut also_at: Vec<_> = others
                .filter_map(|other| match other {
                    SocketAddr::V6(other) => Some(other),
                    SocketAddr::V4(_) => None,
                })
                .collect();
            also_at.sort_unstable();
            return (Some(tunnel(path.address)), also_at);
        }
        let planned = cluster.plan.as_ref().and_then(|plan| {
            let at = plan.peers.binary_search_by_key(id, |peer| peer.id).ok()?;
            Some(&plan.peers[at])
        });
        let routable = |address: &SocketAddr| !needs_interface(address);
        let remembered = || cluster.seen.get(id).copied().filter(routable);
        let named = || cluster.membership.roster().record(id)?.endpoints.iter().copied().find(routable);
        let endpoint = planned.and_then(|peer| peer.endpoint).or_else(remembered).or_else(named);
        (endpoint.map(tunnel), planned.map(|peer| peer.also_at.clone()).unwrap_or_default())
    }
}
