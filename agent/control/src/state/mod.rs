// SPDX-License-Identifier: Apache-2.0
//! What the cluster agrees on. [`State::apply`] is a pure function of the state and the entry: same entries, same state, on
//! every node and in every release.

mod codec;
mod command;
mod join;
mod members;
#[cfg(test)]
pub(crate) mod samples;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use cluster_agent_proto::wire::Malformed;
use cluster_agent_proto::{ClusterId, NodeId};
use sha2::{Digest as _, Sha256};

pub(crate) use codec::{read_outcome, write_outcome};
pub use command::{Command, Proposal, RequestId};
pub use join::{JoinKeyId, JoinRequest, StoredJoinKey};
pub use members::{Departed, Departure, Member, ReplicaOf};
pub use settings::{Change, Setting, SettingKind, Versioned};

use crate::consts::MAX_REMEMBERED;
use crate::genesis::Genesis;
use crate::raft::{Conf, LogEntry};

/// SHA-256 over all entries so far, each with the digest before it: two nodes with the same one agreed on the same.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "Digest({a:02x}{b:02x}{c:02x}{d:02x})")
    }
}

/// Why a command was refused. The text is shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[repr(u8)]
pub enum Refusal {
    /// The signed record of a joiner is not one.
    #[error("the node's record is not signed by it")]
    BadRecord = 1,
    /// It was evicted.
    #[error("the node was evicted, and never comes back under this identity")]
    Evicted = 2,
    /// One of its keys is another member's.
    #[error("one of the node's keys belongs to another member")]
    KeyTaken = 3,
    /// No such join key.
    #[error("the cluster has no such join key")]
    UnknownJoinKey = 4,
    /// The join key was revoked.
    #[error("the join key was revoked")]
    RevokedJoinKey = 5,
    /// The join key expired.
    #[error("the join key has expired")]
    ExpiredJoinKey = 6,
    /// The join key admitted as many as it may.
    #[error("the join key has been used as often as it may")]
    UsedUpJoinKey = 7,
    /// Too many requests wait.
    #[error("too many join requests wait for approval")]
    TooManyRequests = 8,
    /// Nobody of this name asked.
    #[error("no such node waits for approval")]
    NoSuchRequest = 9,
    /// No such member.
    #[error("the node is no member")]
    NotAMember = 10,
    /// The cluster is full.
    #[error("the cluster has as many members as it can have")]
    Full = 11,
    /// No address is left.
    #[error("all IPv4 addresses of the cluster's range are taken; set a larger `ipv4-range`")]
    NoAddress = 12,
    /// A value that makes no sense.
    #[error("the value is not valid for this setting")]
    BadValue = 13,
    /// Nothing to undo.
    #[error("there is no such change to undo")]
    NothingToUndo = 14,
    /// The list only grows.
    #[error("the list of evicted nodes is full")]
    TooManyEvicted = 15,
    /// As many join keys as there may be.
    #[error("too many join keys: revoke and delete some first")]
    TooManyJoinKeys = 16,
    /// A join key of this id exists.
    #[error("a join key with this id exists")]
    JoinKeyExists = 17,
    /// The name cannot be one.
    #[error("the name is not a DNS label, or is reserved")]
    BadName = 18,
    /// A voter gives its vote away before it goes.
    #[error("the node has a vote that nobody else can take over")]
    StillVotes = 19,
    /// The setting was changed meanwhile.
    #[error("the setting was changed by somebody else meanwhile")]
    Conflict = 20,
}

impl Refusal {
    /// All, by number: the tests and the decoder count on it.
    const ALL: [Self; 20] = [
        Self::BadRecord,
        Self::Evicted,
        Self::KeyTaken,
        Self::UnknownJoinKey,
        Self::RevokedJoinKey,
        Self::ExpiredJoinKey,
        Self::UsedUpJoinKey,
        Self::TooManyRequests,
        Self::NoSuchRequest,
        Self::NotAMember,
        Self::Full,
        Self::NoAddress,
        Self::BadValue,
        Self::NothingToUndo,
        Self::TooManyEvicted,
        Self::TooManyJoinKeys,
        Self::JoinKeyExists,
        Self::BadName,
        Self::StillVotes,
        Self::Conflict,
    ];

    pub(crate) fn of_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is so now, or was before.
    Done,
    /// The join request waits for a person.
    Waiting,
    /// Nothing changed.
    Refused(Refusal),
}

/// An entry that this release cannot read, or that does not follow: the replica stops, and never skips it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// A newer release made it.
    #[error("entry {0} of the control state is of a kind that this release does not know: update this node")]
    Unknown(u64),
    /// Not the next one.
    #[error("entry {0} of the control state does not follow what is known")]
    Gap(u64),
}

/// The replicated state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    genesis: Genesis,
    /// One more with every `recover`.
    incarnation: u32,
    index: u64,
    digest: Digest,
    /// Milliseconds since 1970 by the clocks of the leaders; never goes back.
    time: u64,
    conf: Conf,
    /// The next raft id; none is given twice.
    next_replica: u64,
    members: BTreeMap<NodeId, Member>,
    departed: BTreeMap<NodeId, Departed>,
    settings: BTreeMap<SettingKind, Versioned>,
    history: VecDeque<Change>,
    join_keys: BTreeMap<JoinKeyId, StoredJoinKey>,
    requests: BTreeMap<NodeId, JoinRequest>,
    remembered: VecDeque<(RequestId, Outcome)>,
}

impl State {
    /// The state of a new cluster: its founder is its only member and voter, with raft id 1.
    pub fn found(genesis: Genesis, record: &[u8], first_key: StoredJoinKey) -> Result<Self, Refusal> {
        let mut state = Self {
            index: 1,
            digest: Digest(Sha256::digest(genesis.encode()).into()),
            time: genesis.created,
            incarnation: 1,
            conf: Conf { voters: vec![1], ..Conf::default() },
            next_replica: 2,
            genesis,
            members: BTreeMap::new(),
            departed: BTreeMap::new(),
            settings: BTreeMap::new(),
            history: VecDeque::new(),
            join_keys: BTreeMap::from([(first_key.id, first_key)]),
            requests: BTreeMap::new(),
            remembered: VecDeque::new(),
        };
        let candidate = join::Candidate::read(record)?;
        if candidate.public_key != state.genesis.founder {
            return Err(Refusal::BadRecord);
        }
        let founder = candidate.node();
        state.admit(candidate, None)?;
        if let Some(member) = state.members.get_mut(&founder) {
            member.replica = Some(ReplicaOf { id: 1, nonce: 0 });
        }
        Ok(state)
    }

    /// Takes the next entry. `conf` is what raft made of an entry that changes the configuration.
    pub fn apply(&mut self, entry: &LogEntry, conf: Option<&Conf>) -> Result<Option<Applied>, Stop> {
        if self.index.checked_add(1) != Some(entry.index) {
            return Err(Stop::Gap(entry.index));
        }
        let proposal = if entry.is_conf || entry.data.is_empty() {
            None
        } else {
            Some(Proposal::decode(&entry.data).map_err(|_| Stop::Unknown(entry.index))?)
        };
        self.index = entry.index;
        self.digest = self.digest.then(entry, conf);
        if let Some(conf) = conf {
            self.conf = conf.clone();
        }
        let Some(proposal) = proposal else { return Ok(None) };
        self.time = self.time.max(proposal.time);
        let outcome = match self.outcome(&proposal.request) {
            Some(known) => known,
            None => {
                let outcome = self.execute(proposal.command);
                if self.remembered.len() >= MAX_REMEMBERED {
                    self.remembered.pop_front();
                }
                self.remembered.push_back((proposal.request, outcome));
                outcome
            }
        };
        Ok(Some(Applied { request: proposal.request, outcome }))
    }

    fn execute(&mut self, command: Command) -> Outcome {
        let done = match command {
            Command::Join { record, key } => return self.join(&record, key),
            Command::Approve { node } => self.approve(&node),
            Command::Reject { node } => self.reject(&node),
            Command::Depart { node, how } => self.depart(&node, how),
            Command::Rename { node, name } => self.rename(&node, &name),
            Command::Set { setting, if_version } => self.set(setting, if_version),
            Command::Unset { kind } => self.unset(kind),
            Command::Undo { version } => self.undo(version),
            Command::CreateJoinKey(key) => self.create_join_key(key),
            Command::RevokeJoinKey { id } => self.revoke_join_key(&id),
            Command::NewReplica { node, nonce } => self.new_replica(&node, nonce),
            Command::DropReplica { id } => self.drop_replica(id),
        };
        done.map_or_else(Outcome::Refused, |()| Outcome::Done)
    }

    /// What a request did, if that is still remembered.
    pub fn outcome(&self, request: &RequestId) -> Option<Outcome> {
        self.remembered.iter().rev().find(|(id, _)| id == request).map(|(_, outcome)| *outcome)
    }

    /// Where it all began.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// Hash of the genesis.
    pub fn cluster(&self) -> ClusterId {
        self.genesis.cluster()
    }

    /// Counts recoveries from the loss of a majority; others' votes and entries of another one mean nothing.
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// Of the last entry in it.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// See [`Digest`].
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Milliseconds since 1970 by the leaders' clocks.
    pub fn time(&self) -> u64 {
        self.time
    }

    /// Who votes.
    pub fn conf(&self) -> &Conf {
        &self.conf
    }

    /// The node that a raft id belongs to.
    pub fn node_of(&self, replica: u64) -> Option<NodeId> {
        let of = |member: &&Member| member.replica.is_some_and(|one| one.id == replica);
        self.members.values().find(of).map(Member::node)
    }

    /// The nodes that vote.
    pub fn voters(&self) -> Vec<NodeId> {
        let ids = self.conf.voters.iter().chain(&self.conf.outgoing);
        let mut nodes: Vec<_> = ids.filter_map(|id| self.node_of(*id)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// How many voters this cluster wants: 1 below three members, 3 below seven, else 5, unless a setting says less.
    pub fn voters_wanted(&self) -> usize {
        let by_size = match self.members.len() {
            0..3 => 1,
            3..7 => 3,
            _ => 5,
        };
        match self.setting(SettingKind::Voters) {
            Some(Setting::Voters(wanted)) => by_size.min(usize::from(*wanted)),
            _ => by_size,
        }
    }

    /// As [`crate::recover`] opens it: a new incarnation, of which one node is the only voter.
    pub(crate) fn reopen(&mut self, node: &NodeId) -> Option<u64> {
        let replica = self.next_replica;
        self.members.get_mut(node)?;
        for member in self.members.values_mut() {
            member.replica = (member.node() == *node).then_some(ReplicaOf { id: replica, nonce: 0 });
        }
        self.next_replica = replica + 1;
        self.incarnation = self.incarnation.checked_add(1)?;
        self.index += 1;
        self.conf = Conf { voters: vec![replica], ..Conf::default() };
        let hash = Sha256::new().chain_update(self.digest.0).chain_update(b"recovered");
        let hash = hash.chain_update(self.incarnation.to_be_bytes()).chain_update(node.0);
        self.digest = Digest(hash.finalize().into());
        Some(replica)
    }

    /// The whole state, bounded by [`crate::MAX_STATE`].
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads and checks.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        codec::decode(bytes)
    }
}

/// An entry that was a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Whose.
    pub request: RequestId,
    /// What it did.
    pub outcome: Outcome,
}

impl Digest {
    fn then(&self, entry: &LogEntry, conf: Option<&Conf>) -> Self {
        let mut w = cluster_agent_proto::wire::Writer::new();
        w.raw(&self.0);
        entry.write(&mut w);
        if let Some(conf) = conf {
            conf.write(&mut w);
        }
        Self(Sha256::digest(w.finish()).into())
    }
}
