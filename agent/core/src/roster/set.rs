// SPDX-License-Identifier: Apache-2.0
//! The set itself: union, what follows from it, and comparing two of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::{Admission, Genesis, Leave};
use crate::id::{ClusterId, NodeId};
use crate::record::NodeRecord;
use crate::signed::{ObjectDigest, Signed, Verified};
use crate::summary::Folded;
use crate::wire::Malformed;

/// Most nodes that a roster names; far beyond what one cluster is meant for.
const MAX_NODES: usize = 4096;
/// Most admissions kept for one node.
const MAX_ADMISSIONS_PER_NODE: usize = 8;

/// A signed object as it travels between members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Record(Verified<NodeRecord>),
    Admission(Verified<Admission>),
    Leave(Verified<Leave>),
}

impl Object {
    /// The signed bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Record(record) => record.as_bytes(),
            Self::Admission(admission) => admission.as_bytes(),
            Self::Leave(leave) => leave.as_bytes(),
        }
    }

    /// Short name of the signed bytes.
    pub(crate) fn digest(&self) -> ObjectDigest {
        match self {
            Self::Record(record) => record.digest(),
            Self::Admission(admission) => admission.digest(),
            Self::Leave(leave) => leave.digest(),
        }
    }

    /// Whom it is about.
    pub(crate) fn about(&self) -> NodeId {
        match self {
            Self::Record(record) => record.node_id(),
            Self::Admission(admission) => admission.subject_id(),
            Self::Leave(leave) => leave.subject_id(),
        }
    }

    /// Whom it lets in, and when by the admitter's clock.
    pub(crate) fn admitted(&self) -> Option<(NodeId, u64)> {
        match self {
            Self::Admission(admission) => Some((admission.subject_id(), admission.at)),
            _ => None,
        }
    }

    /// Decodes and checks the signature.
    pub(crate) fn open(bytes: &[u8]) -> Result<Self, Malformed> {
        match bytes.get(1).copied() {
            Some(NodeRecord::KIND) => Verified::open(bytes).map(Self::Record),
            Some(Admission::KIND) => Verified::open(bytes).map(Self::Admission),
            Some(Leave::KIND) => Verified::open(bytes).map(Self::Leave),
            _ => Err(Malformed("object")),
        }
    }
}

/// What adding an object changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learned {
    /// Nothing: known or older.
    Nothing,
    /// A newer record of a member.
    Record,
    /// Who belongs to the cluster may have changed; must be persisted.
    Membership,
    /// It contradicts what is known (a key of another node, another cluster).
    Refused,
    /// It is about a node that is not known as a member: news of a newcomer may overtake its admission.
    Unknown,
}

/// How a node stands to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Member,
    Left,
}

/// Admissions, leaves and records of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Roster {
    genesis: Verified<Genesis>,
    admissions: BTreeMap<NodeId, Vec<Verified<Admission>>>,
    leaves: BTreeMap<NodeId, Verified<Leave>>,
    records: BTreeMap<NodeId, Verified<NodeRecord>>,
    /// Follows from the above: standing and round in which it was reached, admitter.
    standings: BTreeMap<NodeId, (Standing, NodeId)>,
    session_keys: BTreeMap<[u8; 32], NodeId>,
    wireguard_keys: BTreeMap<[u8; 32], NodeId>,
    digests: Digests,
    /// Grows with every change.
    version: u64,
}

/// Of all objects of a roster, and the same in short.
#[derive(Clone, Debug, Default)]
struct Digests {
    all: BTreeSet<ObjectDigest>,
    folded: Folded,
}

impl Digests {
    fn insert(&mut self, digest: ObjectDigest) {
        if self.all.insert(digest) {
            self.folded.object(&digest);
        }
    }

    fn remove(&mut self, digest: &ObjectDigest) {
        if self.all.remove(digest) {
            self.folded.object(digest);
        }
    }
}

/// Where an object is among all of a roster: its sort, whom it is about, and its number among several.
pub(crate) type ObjectPlace = (u8, NodeId, usize);

/// What a union of objects changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Union {
    /// Newer records of members came.
    pub(crate) records: bool,
    /// Who belongs to the cluster may have changed; must be persisted.
    pub(crate) membership: bool,
    /// Whom new leaves are about.
    pub(crate) leaves: Vec<NodeId>,
    /// Objects that contradict what is known.
    pub(crate) refused: usize,
    /// Objects about nodes that are not known as members.
    pub(crate) unknown: usize,
}

impl Roster {
    pub(crate) fn new(genesis: Verified<Genesis>) -> Self {
        let mut roster = Self {
            genesis,
            admissions: BTreeMap::new(),
            leaves: BTreeMap::new(),
            records: BTreeMap::new(),
            standings: BTreeMap::new(),
            session_keys: BTreeMap::new(),
            wireguard_keys: BTreeMap::new(),
            digests: Digests::default(),
            version: 0,
        };
        roster.derive();
        roster
    }

    pub(crate) fn genesis(&self) -> &Verified<Genesis> {
        &self.genesis
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        self.genesis.cluster
    }

    /// Grows with every change, so that what follows from the roster is worked out again only then.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Whether this very object is part of the roster. Much cheaper than checking its signature again.
    pub(crate) fn knows(&self, digest: &ObjectDigest) -> bool {
        self.digests.all.contains(digest)
    }

    /// Nothing but founding and automatic admissions happened: the cluster may dissolve itself into another.
    pub(crate) fn is_blank(&self) -> bool {
        self.leaves.is_empty()
    }

    pub(crate) fn standing(&self, id: &NodeId) -> Option<Standing> {
        self.standings.get(id).map(|(standing, _)| *standing)
    }

    pub(crate) fn is_member(&self, id: &NodeId) -> bool {
        self.standing(id) == Some(Standing::Member)
    }

    pub(crate) fn admitted_by(&self, id: &NodeId) -> Option<NodeId> {
        self.standings.get(id).map(|(_, admitter)| *admitter)
    }

    /// All members.
    pub(crate) fn members(&self) -> impl Iterator<Item = NodeId> {
        self.standings.iter().filter(|(_, (standing, _))| *standing == Standing::Member).map(|(id, _)| *id)
    }

    /// Members and nodes that left.
    pub(crate) fn everybody(&self) -> impl Iterator<Item = (NodeId, Standing)> {
        self.standings.iter().map(|(id, (standing, _))| (*id, *standing))
    }

    pub(crate) fn record(&self, id: &NodeId) -> Option<&Verified<NodeRecord>> {
        self.records.get(id)
    }

    /// The member whose session key this is.
    pub(crate) fn member_by_session_key(&self, key: &[u8; 32]) -> Option<NodeId> {
        self.session_keys.get(key).copied().filter(|id| self.is_member(id))
    }

    pub(crate) fn admissions(&self) -> impl Iterator<Item = &Verified<Admission>> {
        self.admissions.values().flatten()
    }

    pub(crate) fn leaves(&self) -> impl Iterator<Item = &Verified<Leave>> {
        self.leaves.values()
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = (&NodeId, &Verified<NodeRecord>)> {
        self.records.iter()
    }

    /// The round that an admission of `subject` must have to count now.
    pub(crate) fn next_round(&self, subject: &NodeId) -> u32 {
        self.leaves.get(subject).map_or(1, |leave| leave.round.saturating_add(1))
    }

    /// The round in which a member stands.
    pub(crate) fn current_round(&self, subject: &NodeId) -> u32 {
        let admitted = self.admissions.get(subject).into_iter().flatten().map(|admission| admission.round);
        admitted.max().unwrap_or(0)
    }

    /// Adds one object. Records of nodes that are not (yet) known as members are refused; send them after admissions.
    pub(crate) fn add(&mut self, object: Object) -> Learned {
        let newcomer = match &object {
            Object::Admission(admission) => {
                Some((admission.subject_id(), admission.admitter_id(), admission.round))
            }
            _ => None,
        };
        let learned = self.insert(object);
        if learned == Learned::Membership && !newcomer.is_some_and(|newcomer| self.enter(newcomer)) {
            self.derive();
        }
        learned
    }

    /// The usual case, without working out everybody anew: a member lets in somebody who was not known before. Gives
    /// whether it was that case.
    fn enter(&mut self, (subject, admitter, round): (NodeId, NodeId, u32)) -> bool {
        if self.standings.contains_key(&subject) || !self.standings.contains_key(&admitter) {
            return false;
        }
        let left = self.leaves.get(&subject).is_some_and(|leave| leave.round >= round);
        self.standings.insert(subject, (if left { Standing::Left } else { Standing::Member }, admitter));
        // Admissions that hung in the air may hang on this one.
        let founder = NodeId::of_public_key(&self.genesis.founder);
        let founder_too = usize::from(!self.admissions.contains_key(&founder));
        self.admissions.len() + founder_too == self.standings.len()
    }

    /// Adds many objects, in any order. Who stands how is worked out once, not once for each.
    pub(crate) fn unite(&mut self, objects: impl IntoIterator<Item = Object>) -> Union {
        let mut union = Union::default();
        let (mut leaves, mut records) = (Vec::new(), Vec::new());
        for object in objects {
            match object {
                Object::Admission(_) => union.count(self.insert(object)),
                Object::Leave(_) => leaves.push(object),
                Object::Record(_) => records.push(object),
            }
        }
        // A leave counts only of who was admitted, a record too.
        if union.membership {
            self.derive();
        }
        for leave in leaves {
            let about = leave.about();
            let learned = self.insert(leave);
            if learned == Learned::Membership {
                union.leaves.push(about);
            }
            union.count(learned);
        }
        if !union.leaves.is_empty() {
            self.derive();
        }
        for record in records {
            union.count(self.insert(record));
        }
        union
    }

    /// Adds one object without working out what follows.
    fn insert(&mut self, object: Object) -> Learned {
        let digest = object.digest();
        let learned = match object {
            Object::Admission(admission) => self.add_admission(admission),
            Object::Leave(leave) => self.add_leave(leave),
            Object::Record(record) => self.add_record(record),
        };
        if matches!(learned, Learned::Record | Learned::Membership) {
            self.digests.insert(digest);
            self.version += 1;
        }
        learned
    }

    fn add_admission(&mut self, admission: Verified<Admission>) -> Learned {
        let subject = admission.subject_id();
        if admission.cluster != self.cluster() {
            return Learned::Refused;
        }
        if !self.admissions.contains_key(&subject) && self.admissions.len() >= MAX_NODES {
            return Learned::Refused;
        }
        let known = self.admissions.entry(subject).or_default();
        if known.iter().any(|known| known.round == admission.round && known.admitter == admission.admitter) {
            return Learned::Nothing;
        }
        if known.len() >= MAX_ADMISSIONS_PER_NODE {
            // Rounds only grow, so the lowest can no longer matter once a later one is there.
            let lowest = known
                .iter()
                .enumerate()
                .min_by_key(|(_, known)| known.round)
                .map(|(at, known)| (at, known.round));
            match lowest {
                Some((at, round)) if round < admission.round => {
                    self.digests.remove(&known.remove(at).digest());
                }
                _ => return Learned::Nothing,
            }
        }
        known.push(admission);
        known.sort_by_key(|admission| (admission.round, admission.admitter));
        Learned::Membership
    }

    fn add_leave(&mut self, leave: Verified<Leave>) -> Learned {
        let subject = leave.subject_id();
        if leave.cluster != self.cluster() {
            return Learned::Refused;
        }
        if !self.standings.contains_key(&subject) {
            return Learned::Unknown;
        }
        if self.leaves.get(&subject).is_some_and(|known| known.round >= leave.round) {
            return Learned::Nothing;
        }
        if let Some(old) = self.leaves.insert(subject, leave) {
            self.digests.remove(&old.digest());
        }
        Learned::Membership
    }

    fn add_record(&mut self, record: Verified<NodeRecord>) -> Learned {
        let id = record.node_id();
        if !self.standings.contains_key(&id) {
            return Learned::Unknown;
        }
        let other = |keys: &BTreeMap<[u8; 32], NodeId>, key| keys.get(key).is_some_and(|owner| *owner != id);
        if other(&self.session_keys, &record.session_key)
            || other(&self.wireguard_keys, &record.wireguard_key)
        {
            return Learned::Refused;
        }
        if let Some(known) = self.records.get(&id) {
            if known.sequence >= record.sequence {
                return Learned::Nothing;
            }
            self.session_keys.remove(&known.session_key);
            self.wireguard_keys.remove(&known.wireguard_key);
            self.digests.remove(&known.digest());
        }
        self.session_keys.insert(record.session_key, id);
        self.wireguard_keys.insert(record.wireguard_key, id);
        self.records.insert(id, record);
        Learned::Record
    }

    /// Works out who stands how: start from the founder, follow admissions of the admitted until nothing is new.
    fn derive(&mut self) {
        let founder = NodeId::of_public_key(&self.genesis.founder);
        let mut by_admitter: BTreeMap<NodeId, Vec<&Verified<Admission>>> = BTreeMap::new();
        for admission in self.admissions.values().flatten() {
            by_admitter.entry(admission.admitter_id()).or_default().push(admission);
        }
        let mut reached: BTreeMap<NodeId, (u32, NodeId)> = [(founder, (0, founder))].into();
        let mut queue = vec![founder];
        let mut spread = BTreeSet::new();
        while let Some(admitter) = queue.pop() {
            if !spread.insert(admitter) {
                continue;
            }
            for admission in by_admitter.get(&admitter).into_iter().flatten() {
                let subject = admission.subject_id();
                let best = reached.entry(subject).or_insert((admission.round, admitter));
                if (admission.round, std::cmp::Reverse(admitter)) > (best.0, std::cmp::Reverse(best.1)) {
                    *best = (admission.round, admitter);
                }
                queue.push(subject);
            }
        }
        self.standings = reached
            .into_iter()
            .map(|(id, (round, admitter))| {
                let left = self.leaves.get(&id).is_some_and(|leave| leave.round >= round);
                (id, (if left { Standing::Left } else { Standing::Member }, admitter))
            })
            .collect();
    }

    /// Digests of all objects.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn digests(&self) -> impl Iterator<Item = ObjectDigest> {
        self.digests.all.iter().copied()
    }

    /// The same in short.
    pub(crate) fn folded(&self) -> &Folded {
        &self.digests.folded
    }

    /// Digests of objects behind one, in order.
    pub(crate) fn digests_after(&self, after: Option<ObjectDigest>) -> impl Iterator<Item = ObjectDigest> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.digests.all.range((from, Bound::Unbounded)).copied()
    }

    /// All objects, in an order in which another roster accepts them.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn objects(&self) -> impl Iterator<Item = (ObjectDigest, &[u8])> {
        self.objects_after(None).map(|(_, digest, bytes)| (digest, bytes))
    }

    /// Those behind one place of that order, which stays what it is while objects come and go.
    pub(crate) fn objects_after(
        &self,
        after: Option<ObjectPlace>,
    ) -> impl Iterator<Item = (ObjectPlace, ObjectDigest, &[u8])> {
        let from = move |class: u8| match after {
            Some((reached, _, _)) if reached > class => Bound::Excluded(NodeId([0xff; 32])),
            Some((reached, node, _)) if reached == class => Bound::Included(node),
            _ => Bound::Unbounded,
        };
        let admissions = self.admissions.range((from(0), Bound::Unbounded)).flat_map(|(id, all)| {
            let numbered = all.iter().enumerate();
            numbered.map(|(n, admission)| ((0, *id, n), admission.digest(), admission.as_bytes()))
        });
        let leaves = self.leaves.range((from(1), Bound::Unbounded));
        let leaves = leaves.map(|(id, leave)| ((1, *id, 0), leave.digest(), leave.as_bytes()));
        let records = self.records.range((from(2), Bound::Unbounded));
        let records = records.map(|(id, record)| ((2, *id, 0), record.digest(), record.as_bytes()));
        admissions.chain(leaves).chain(records).filter(move |(place, _, _)| Some(*place) > after)
    }
}

impl Union {
    fn count(&mut self, learned: Learned) {
        match learned {
            Learned::Nothing => {}
            Learned::Record => self.records = true,
            Learned::Membership => self.membership = true,
            Learned::Refused => self.refused += 1,
            Learned::Unknown => self.unknown += 1,
        }
    }
}
