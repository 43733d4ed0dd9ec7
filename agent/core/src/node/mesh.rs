// SPDX-License-Identifier: Apache-2.0
//! The mesh as it should be: all members but us, whatever gossip says of liveness, each where it was last heard.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use rand::seq::IndexedRandom;

use super::clock::{Clock, Correction, Uncertain};
use super::ctx::Ctx;
use super::dialer::Dialer;
use super::membership::Membership;
use crate::command::{Command, HostCommand, MeshPeer, MeshPlan};
use crate::consts::mesh::*;
use crate::consts::{MESH_KEEPALIVE, WIREGUARD_PORT};
use crate::id::NodeId;
use crate::input::MeshPeerStats;
use crate::roster::Roster;
use crate::session::Sessions;
use crate::wire::needs_interface;

/// Tunnels that are kept alive. After a power cut, or in a crowd that joins, a node would else shake hands with a thousand
/// others in one moment.
#[derive(Default)]
struct KeptAlive {
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

/// The mesh that was asked for last, and what is known of its tunnels.
pub(super) struct MeshPlanner {
    private_key: [u8; 32],
    plan: Option<MeshPlan>,
    /// Version of the roster that `plan` was made from.
    planned_version: u64,
    /// When members were added to the mesh last, after it began.
    planned_at: Option<Duration>,
    next_ways: Duration,
    kept_alive: KeptAlive,
    stats: BTreeMap<[u8; 32], MeshPeerStats>,
}

/// Who the members are, and where.
pub(super) struct Whereabouts<'a> {
    pub(super) membership: &'a Membership,
    pub(super) sessions: &'a Sessions,
    pub(super) dialer: &'a Dialer,
}

impl MeshPlanner {
    pub(super) fn new(private_key: [u8; 32], now: Duration) -> Self {
        Self {
            private_key,
            plan: None,
            planned_version: 0,
            planned_at: None,
            next_ways: now,
            kept_alive: KeptAlive::default(),
            stats: BTreeMap::new(),
        }
    }

    /// What WireGuard says of a peer.
    pub(super) fn stats(&self, public_key: &[u8; 32]) -> Option<&MeshPeerStats> {
        self.stats.get(public_key)
    }

    /// Takes counters of WireGuard. Gives the members with whom the mesh is busy, the busiest first.
    pub(super) fn hear_stats(&mut self, stats: Vec<MeshPeerStats>) -> Vec<NodeId> {
        let stats: BTreeMap<_, _> = stats.into_iter().map(|peer| (peer.public_key, peer)).collect();
        let before = std::mem::replace(&mut self.stats, stats);
        let busy = |key: &[u8; 32]| {
            let (before, now) = (before.get(key)?, self.stats.get(key)?);
            (now.rx + now.tx).checked_sub(before.rx + before.tx).filter(|more| *more >= BUSY_BYTES)
        };
        let peers = self.plan.iter().flat_map(|plan| &plan.peers);
        let mut found: Vec<_> = peers.filter_map(|peer| Some((busy(&peer.public_key)?, peer.id))).collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.into_iter().map(|(_, id)| id).collect()
    }

    /// This node stands aside.
    pub(super) fn take_down(&mut self, ctx: &mut Ctx) {
        if self.plan.take().is_some() {
            ctx.push(HostCommand::MeshRemove);
        }
    }

    /// Some members without a way for their tunnel: without routable addresses only a session tells where it goes, and gossip
    /// has one with some of them only.
    pub(super) fn lost(&mut self, membership: &Membership, ctx: &mut Ctx) -> Vec<NodeId> {
        let now = ctx.boottime();
        let Some(plan) = self.plan.as_ref().filter(|_| now >= self.next_ways) else { return Vec::new() };
        self.next_ways = now + WAYS_EVERY;
        let lost = plan.peers.iter().filter(|peer| peer.endpoint.is_none()).map(|peer| peer.id);
        let lost: Vec<_> = lost.filter(|id| membership.is_up(id)).collect();
        lost.sample(&mut ctx.rng, WAYS_AT_ONCE).copied().collect()
    }

    /// Asks for the mesh whenever it should be different: all of it when the roster changed, else only where members are
    /// that moved. `quiet`: how long the roster has been as it is.
    pub(super) fn tick(
        &mut self,
        at: &Whereabouts<'_>,
        quiet: Duration,
        moved: &BTreeSet<NodeId>,
        clock: &mut Clock,
        ctx: &mut Ctx,
    ) {
        let (now, roster) = (ctx.boottime(), at.membership.roster());
        // A machine that has too much to do may be one of a crowd that it does not know of yet.
        let crowd = ctx.load.is_busy() || is_crowd(roster);
        let kept = self.kept_alive.members.len();
        self.kept_alive.add_some(roster, crowd, quiet, at.membership.me(), now);
        let keep_more = self.kept_alive.members.len() != kept;
        let due = self.is_due(at.membership, crowd, quiet, ctx);
        let Some(plan) = &self.plan else {
            if due {
                self.begin(at, clock, ctx);
            }
            return;
        };
        late_clock(at.membership, clock, ctx);
        let whole = (self.planned_version != roster.version() && due) || keep_more;
        let next = match whole {
            true => self.make(at),
            false if moved.is_empty() => return,
            false => self.follow(plan, at, moved),
        };
        if whole {
            self.planned_version = roster.version();
            self.planned_at = Some(now);
        }
        if *plan != next {
            self.plan = Some(next.clone());
            ctx.push(HostCommand::MeshApply(next));
        }
    }

    /// Whether members may be added now.
    fn is_due(&self, membership: &Membership, crowd: bool, quiet: Duration, ctx: &Ctx) -> bool {
        let planned = self.plan.as_ref().map_or(0, |plan| plan.peers.len());
        let many = membership.roster().members().nth(planned + CROWD).is_some();
        let longer = if many { (ctx.load.late() * PER_LATE).min(CROWD_PLAN_GAP) } else { Duration::ZERO };
        let (enough, gap) = match (crowd, self.planned_at) {
            (true, _) => (CROWD_PLAN_QUIET, CROWD_PLAN_GAP),
            (false, None) => (PLAN_QUIET, Duration::ZERO),
            (false, Some(_)) => (PLAN_QUIET, PLAN_GAP),
        };
        let last = self.planned_at.unwrap_or(membership.since());
        quiet >= enough + longer || ctx.boottime() >= last + gap + longer
    }

    /// The mesh begins once there is a clock to begin it with.
    fn begin(&mut self, at: &Whereabouts<'_>, clock: &mut Clock, ctx: &mut Ctx) {
        let now = ctx.now;
        let others: Vec<_> = at.membership.others().collect();
        let wait = match clock.uncertain(&others, now) {
            Uncertain::No => Duration::ZERO,
            Uncertain::Silent => WAIT_FOR_CLOCK,
            Uncertain::FarAhead => WAIT_FOR_MAJORITY,
        };
        if now.boottime.saturating_sub(at.membership.since()) < wait {
            return;
        }
        ctx.push(match clock.before_mesh(&others, now) {
            Correction::Floor(wall) => Command::Host(HostCommand::SetClockFloor { wall }),
            Correction::Back(wall) => Command::Host(HostCommand::SetClock { wall }),
        });
        let plan = self.make(at);
        self.planned_version = at.membership.roster().version();
        self.plan = Some(plan.clone());
        ctx.push(HostCommand::MeshApply(plan));
    }

    fn make(&self, at: &Whereabouts<'_>) -> MeshPlan {
        let peers = at.membership.others().filter_map(|id| {
            let record = at.membership.roster().record(&id)?;
            let (endpoint, also_at) = at.of(&id, self.planned(&id));
            let kept = self.kept_alive.members.contains(&id);
            Some(MeshPeer {
                id,
                public_key: record.wireguard_key,
                endpoint,
                also_at,
                allowed_ips: vec![(IpAddr::V6(id.mesh_address()), 128)],
                keepalive: if kept { MESH_KEEPALIVE } else { Duration::ZERO },
            })
        });
        MeshPlan {
            private_key: self.private_key,
            listen_port: WIREGUARD_PORT,
            address: at.membership.me().mesh_address(),
            peers: peers.collect(),
        }
    }

    /// The same plan, but for where members are that moved.
    fn follow(&self, plan: &MeshPlan, at: &Whereabouts<'_>, moved: &BTreeSet<NodeId>) -> MeshPlan {
        let mut next = plan.clone();
        for id in moved {
            if let Ok(n) = plan.peers.binary_search_by_key(id, |peer| peer.id) {
                let peer = &mut next.peers[n];
                (peer.endpoint, peer.also_at) = at.of(id, Some(&plan.peers[n]));
            }
        }
        next
    }

    fn planned(&self, id: &NodeId) -> Option<&MeshPeer> {
        let peers = &self.plan.as_ref()?.peers;
        peers.binary_search_by_key(id, |peer| peer.id).ok().map(|n| &peers[n])
    }
}

/// Too few members were heard before the mesh began, so it began with the time that was saved: up to a minute before the last
/// handshakes. The first member's time mends that, once, and a majority's, once: who has a time server may be nearer to the
/// truth than they.
fn late_clock(membership: &Membership, clock: &mut Clock, ctx: &mut Ctx) {
    if clock.has_news() {
        let others: Vec<_> = membership.others().collect();
        if let Some(wall) = clock.while_mesh(&others, ctx.now) {
            ctx.push(HostCommand::SetClockFloor { wall });
        }
    }
}

impl Whereabouts<'_> {
    /// The path in use with the member, and its other link-local addresses. Before there is a path, where it was seen in an
    /// earlier boot or what its record says, if that means something without a scope.
    fn of(&self, id: &NodeId, planned: Option<&MeshPeer>) -> (Option<SocketAddr>, Vec<SocketAddrV6>) {
        let tunnel = |mut address: SocketAddr| {
            address.set_port(WIREGUARD_PORT);
            address
        };
        if let Some(path) = self.sessions.path(id) {
            let link_local = self.sessions.link_local(id).map(|path| tunnel(path.address));
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
        let routable = |address: &SocketAddr| !needs_interface(address);
        let remembered = || self.dialer.seen().get(id).copied().filter(routable);
        let named = || self.membership.roster().record(id)?.endpoints.iter().copied().find(routable);
        let endpoint = planned.and_then(|peer| peer.endpoint).or_else(remembered).or_else(named);
        (endpoint.map(tunnel), planned.map(|peer| peer.also_at.clone()).unwrap_or_default())
    }
}
