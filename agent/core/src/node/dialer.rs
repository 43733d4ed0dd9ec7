// SPDX-License-Identifier: Apache-2.0
//! Where members are and when each is dialled. Those with whom the mesh is busy, and those that did not answer gossip, are
//! watched (`session::watch`); all others cost nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::ctx::Load;
use super::links::Links;
use super::membership::{Membership, Versions};
use crate::consts::dialer::*;
use crate::id::NodeId;
use crate::session::{Path, Sessions};
use crate::view::MemberState;

/// Sessions that are enough to hear all news.
pub(super) fn enough_open(load: Load) -> usize {
    if load.is_busy() { FEW_OPEN } else { ENOUGH_OPEN }
}

/// Addresses of members, and the dials of those that gossip does not count as up.
pub(super) struct Dialer {
    /// Where members were last heard, remembered over restarts.
    seen: BTreeMap<NodeId, SocketAddr>,
    dials: BTreeMap<NodeId, Dial>,
    /// Versions that `dials` was computed from.
    dials_version: Option<Versions>,
    /// Version of the roster whose addresses were gathered last, and when they may be again.
    gathered_version: Option<u64>,
    next_gather: Duration,
    /// Until when each is watched.
    watched: BTreeMap<NodeId, Duration>,
    /// Up as all say, but not for us.
    out_of_reach: BTreeSet<NodeId>,
    /// Within reach of small datagrams only.
    narrow: BTreeSet<NodeId>,
}

/// When a member is dialled next.
#[derive(Clone, Copy, Debug)]
struct Dial {
    next: Duration,
    wait: Duration,
}

/// Which of the members that are named to people are others than before.
pub(super) struct Renamed {
    pub(super) out_of_reach: bool,
    pub(super) narrow: bool,
}

impl Dialer {
    pub(super) fn new(seen: BTreeMap<NodeId, SocketAddr>, now: Duration) -> Self {
        Self {
            seen,
            dials: BTreeMap::new(),
            dials_version: None,
            gathered_version: None,
            next_gather: now,
            watched: BTreeMap::new(),
            out_of_reach: BTreeSet::new(),
            narrow: BTreeSet::new(),
        }
    }

    pub(super) fn seen(&self) -> &BTreeMap<NodeId, SocketAddr> {
        &self.seen
    }

    /// Members that others reach and this node does not.
    pub(super) fn out_of_reach(&self) -> &BTreeSet<NodeId> {
        &self.out_of_reach
    }

    /// Members that only small datagrams reach.
    pub(super) fn narrow(&self) -> &BTreeSet<NodeId> {
        &self.narrow
    }

    /// This node's cards are others: all are dialled at once.
    pub(super) fn dial_all(&mut self) {
        self.dials.clear();
        self.dials_version = None;
    }

    /// A member is there again: if it must be dialled, then at once.
    pub(super) fn dial_anew(&mut self, id: &NodeId) {
        self.dials.remove(id);
        self.dials_version = None;
    }

    /// Where members may be: what their records name, and where they were heard before this boot. None: as before.
    pub(super) fn gather(&mut self, membership: &Membership, now: Duration) -> Option<BTreeSet<IpAddr>> {
        let roster = membership.roster();
        if self.gathered_version == Some(roster.version()) || now < self.next_gather {
            return None;
        }
        self.gathered_version = Some(roster.version());
        self.next_gather = now + GATHER_EVERY;
        let records = membership.others().filter_map(|id| roster.record(&id));
        let signed = records.flat_map(|record| record.endpoints.iter());
        let seen = self.seen.iter().filter(|(id, _)| roster.is_member(id)).map(|(_, address)| address);
        Some(signed.chain(seen).map(SocketAddr::ip).collect())
    }

    /// Members to dial now. Those that gossip vouches for are only reached when there is something to say.
    pub(super) fn due(
        &mut self,
        membership: &Membership,
        sessions: &Sessions,
        load: Load,
        now: Duration,
    ) -> Vec<NodeId> {
        let versions = membership.versions();
        if self.dials_version != Some(versions) {
            let absent = membership.others().filter(|id| !membership.is_there(id));
            // With enough members to hear it from, gossip says soon enough who else is there.
            let enough = enough_open(load);
            let many = sessions.open_peers().len() >= enough
                || (load.is_busy() && membership.gossip().up() >= enough);
            let next = if many { now + DIAL_FIRST + (load.late() * PER_LATE).min(MOST_LATER) } else { now };
            let fresh = Dial { next, wait: DIAL_FIRST };
            self.dials = absent.map(|id| (id, self.dials.get(&id).copied().unwrap_or(fresh))).collect();
            self.dials_version = Some(versions);
        }
        let due = self.dials.iter_mut().filter(|(_, dial)| dial.next <= now).take(DIALS_PER_TICK);
        due.map(|(id, dial)| {
            dial.next = now + dial.wait;
            dial.wait = (dial.wait * 2).min(DIAL_MAX);
            *id
        })
        .collect()
    }

    /// A member gave reason to look whether its paths still work.
    pub(super) fn watch(&mut self, id: NodeId, now: Duration) {
        if self.watched.len() < MAX_WATCHED || self.watched.contains_key(&id) {
            self.watched.insert(id, now + WATCH_FOR);
        }
    }

    /// Remembers where members are heard that moved. Gives whether anything is other than before.
    pub(super) fn note_moved(
        &mut self,
        moved: &BTreeSet<NodeId>,
        membership: &Membership,
        sessions: &Sessions,
    ) -> bool {
        let mut changed = false;
        for id in moved.iter().filter(|id| membership.roster().standing(id).is_some()) {
            if let Some(path) = sessions.path(id) {
                changed |= self.seen.insert(*id, path.address) != Some(path.address);
            }
        }
        changed
    }

    /// Says who is watched, and finds those that are out of reach.
    pub(super) fn watch_tick(
        &mut self,
        membership: &Membership,
        sessions: &mut Sessions,
        now: Duration,
    ) -> Renamed {
        if self.watched.is_empty() {
            return Renamed { out_of_reach: false, narrow: false };
        }
        let up = |id: &NodeId| membership.is_up(id);
        let out_of_reach: BTreeSet<_> = sessions.unanswered(NAMED_AFTER, now).filter(up).collect();
        let narrow: BTreeSet<_> = sessions.narrow().filter(up).collect();
        self.watched.retain(|id, until| *until > now || out_of_reach.contains(id) || narrow.contains(id));
        sessions.watch(&self.watched.keys().copied().collect());
        let renamed =
            Renamed { out_of_reach: self.out_of_reach != out_of_reach, narrow: self.narrow != narrow };
        (self.out_of_reach, self.narrow) = (out_of_reach, narrow);
        renamed
    }

    /// Paths to a member that no beacon told: where it was last heard, then what its record says.
    pub(super) fn paths_to(
        &self,
        id: &NodeId,
        membership: &Membership,
        sessions: &Sessions,
        links: &Links,
    ) -> Vec<Path> {
        let seen = self.seen.get(id).copied();
        let named = membership.roster().record(id).map(|record| &record.endpoints);
        let addresses = seen.into_iter().chain(named.into_iter().flatten().copied());
        let mut paths: Vec<_> = addresses.flat_map(|address| links.paths_to(address)).collect();
        paths.dedup();
        if is_lost(id, membership, sessions) {
            paths.retain(|path| !leads_elsewhere(id, *path, membership, sessions, links));
        }
        paths
    }
}

/// Known paths to a member that does not answer, as far as another node is there now.
pub(super) fn taken_paths(
    id: &NodeId,
    membership: &Membership,
    sessions: &Sessions,
    links: &Links,
) -> BTreeSet<Path> {
    if !is_lost(id, membership, sessions) {
        return BTreeSet::new();
    }
    let known = sessions.paths(id).into_iter();
    known.filter(|path| leads_elsewhere(id, *path, membership, sessions, links)).collect()
}

/// Whether a member is down and was called in vain.
fn is_lost(id: &NodeId, membership: &Membership, sessions: &Sessions) -> bool {
    sessions.attempts(id) >= CALLED_IN_VAIN
        && membership.gossip().state(id).is_none_or(|state| state == MemberState::Down)
}

/// Whether this node or another member that is up is at the end of a path. So it is when a machine was installed anew and is
/// a node of another id now: it would refuse, and count, each handshake for the one that it was.
fn leads_elsewhere(
    id: &NodeId,
    path: Path,
    membership: &Membership,
    sessions: &Sessions,
    links: &Links,
) -> bool {
    // As records have it, without a scope.
    let address = SocketAddr::new(path.address.ip(), path.address.port());
    let theirs = |other: NodeId| {
        let named =
            || membership.roster().record(&other).is_some_and(|record| record.endpoints.contains(&address));
        other != *id && membership.is_up(&other) && (sessions.path(&other) == Some(path) || named())
    };
    links.lead_here(path) || membership.roster().members().any(theirs)
}
