// SPDX-License-Identifier: Apache-2.0
//! Where the node stands, and under which join key. Only the verbs here change either.

use super::dialer::Dialer;
use super::files::SavedPlaceRef;
use super::membership::Membership;
use super::mesh::MeshPlanner;
use super::push_pull::PushPull;
use super::told::Told;
use crate::beacon::Seal;
use crate::join_key::JoinKey;
use crate::roster::Roster;
use crate::session::Sessions;

/// Where the node stands.
pub(super) enum At {
    /// In no cluster. One that was ever admitted does not found.
    Outside {
        may_found: bool,
    },
    Member(Box<Cluster>),
    /// Left on request; `clusterctl join` brings it back.
    Left(Box<Roster>),
}

/// Everything about the cluster this node belongs to.
pub(super) struct Cluster {
    pub(super) membership: Membership,
    pub(super) sessions: Sessions,
    pub(super) dialer: Dialer,
    pub(super) push_pull: PushPull,
    pub(super) mesh: MeshPlanner,
    pub(super) told: Told,
}

/// A join key and what follows from it.
pub(super) struct Join {
    pub(super) key: JoinKey,
    pub(super) seal: Seal,
    pub(super) psk: [u8; 32],
}

impl Join {
    fn new(key: JoinKey) -> Self {
        Self { seal: Seal::new(&key.discovery_key()), psk: key.admission_psk(), key }
    }
}

pub(super) struct Place {
    at: At,
    /// The join key in force: the cluster's for a member, else the file's.
    join: Option<Join>,
}

/// What became of the join key when the file was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyChoice {
    Same,
    Changed,
    /// The file has another one than the cluster; the cluster's stays.
    FileDiffers,
}

impl Place {
    /// A new node, in no cluster.
    pub(super) fn new() -> Self {
        Self { at: At::Outside { may_found: true }, join: None }
    }

    pub(super) fn at(&self) -> &At {
        &self.at
    }

    pub(super) fn cluster(&self) -> Option<&Cluster> {
        match &self.at {
            At::Member(cluster) => Some(cluster),
            _ => None,
        }
    }

    pub(super) fn cluster_mut(&mut self) -> Option<&mut Cluster> {
        self.both_mut().0
    }

    /// The cluster and the join key at once.
    pub(super) fn both_mut(&mut self) -> (Option<&mut Cluster>, Option<&Join>) {
        let cluster = match &mut self.at {
            At::Member(cluster) => Some(&mut **cluster),
            _ => None,
        };
        (cluster, self.join.as_ref())
    }

    pub(super) fn is_left(&self) -> bool {
        matches!(self.at, At::Left(_))
    }

    /// The join key in force.
    pub(super) fn join(&self) -> Option<&Join> {
        self.join.as_ref()
    }

    /// A member from now on.
    pub(super) fn enter(&mut self, cluster: Cluster, key: JoinKey) {
        self.at = At::Member(Box::new(cluster));
        self.join = Some(Join::new(key));
    }

    /// In no cluster, but it was in one: it founds none.
    pub(super) fn search(&mut self) {
        self.at = At::Outside { may_found: false };
    }

    /// Left, and remembers whom.
    pub(super) fn stay_left(&mut self, roster: Roster) {
        self.at = At::Left(Box::new(roster));
    }

    /// A member leaves. Gives false when it is none.
    pub(super) fn leave(&mut self) -> bool {
        let At::Member(cluster) = std::mem::replace(&mut self.at, At::Outside { may_found: false }) else {
            return false;
        };
        self.stay_left(cluster.membership.into_roster());
        true
    }

    /// A member keeps the key it was admitted under; anybody else takes that of the file.
    pub(super) fn choose_key(&mut self, file: Option<JoinKey>) -> KeyChoice {
        let current = self.join.as_ref().map(|join| &join.key);
        let is_member = matches!(self.at, At::Member(_));
        match file {
            file if file.as_ref() == current => KeyChoice::Same,
            Some(_) if is_member && current.is_some() => KeyChoice::FileDiffers,
            _ if is_member => KeyChoice::Same,
            file => {
                self.join = file.map(Join::new);
                KeyChoice::Changed
            }
        }
    }

    /// As the membership file says it.
    pub(super) fn saved(&self) -> Option<SavedPlaceRef<'_>> {
        match (&self.at, &self.join) {
            (At::Outside { .. }, _) => Some(SavedPlaceRef::Returning),
            (At::Left(roster), _) => Some(SavedPlaceRef::Left(roster)),
            (At::Member(cluster), Some(join)) => {
                Some(SavedPlaceRef::Member(cluster.membership.roster(), &join.key))
            }
            (At::Member(_), None) => None,
        }
    }
}
