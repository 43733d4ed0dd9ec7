// SPDX-License-Identifier: Apache-2.0
//! Join keys, and the nodes that ask with them.

use cluster_agent_proto::record::NodeRecord;
use cluster_agent_proto::signed::Verified;
use cluster_agent_proto::wire::{Malformed, Reader, Writer};
use cluster_agent_proto::{JoinKey, NodeId};

use super::settings::{Setting, SettingKind};
use super::{Outcome, Refusal, State};
use crate::consts::{DEFAULT_MAX_MEMBERS, MAX_JOIN_KEYS, MAX_REQUESTS};
use crate::wire::{put_option, take_flag, take_option};

/// Public name of a join key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JoinKeyId(pub [u8; 5]);

/// A join key of the cluster. `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredJoinKey {
    /// Its public name.
    pub id: JoinKeyId,
    /// What its holders prove to know.
    pub secret: [u8; 32],
    /// Whether its text names the cluster. The founder's key, which was there before the cluster, does not.
    pub bound: bool,
    /// Nobody joins with it after this, in milliseconds since 1970.
    pub expires: Option<u64>,
    /// How many it may admit.
    pub max_uses: Option<u32>,
    /// How many it admitted.
    pub used: u32,
    /// Nobody joins with it.
    pub revoked: bool,
}

impl std::fmt::Debug for StoredJoinKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoredJoinKey({:?}, secret hidden)", self.id)
    }
}

impl StoredJoinKey {
    /// Id and secret from 37 bytes of randomness, as [`JoinKey::generate`] takes them.
    pub fn new(random: &[u8; 37], bound: bool) -> Self {
        let (mut id, mut secret) = ([0; 5], [0; 32]);
        id.copy_from_slice(&random[..5]);
        secret.copy_from_slice(&random[5..]);
        Self { id: JoinKeyId(id), secret, bound, expires: None, max_uses: None, used: 0, revoked: false }
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.raw(&self.id.0).raw(&self.secret).u8(u8::from(self.bound));
        put_option(w, self.expires, |w, at| {
            w.u64(at);
        });
        put_option(w, self.max_uses, |w, uses| {
            w.u32(uses);
        });
        w.u32(self.used).u8(u8::from(self.revoked));
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            id: JoinKeyId(r.array()?),
            secret: r.array()?,
            bound: take_flag(r)?,
            expires: take_option(r, |r| r.u64())?,
            max_uses: take_option(r, |r| r.u32())?,
            used: r.u32()?,
            revoked: take_flag(r)?,
        })
    }
}

/// A node that waits for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    /// Its keys and the name it wants.
    pub candidate: Candidate,
    /// The join key that it proved.
    pub key: JoinKeyId,
    /// Since when, in milliseconds since 1970.
    pub at: u64,
}

impl JoinRequest {
    pub(super) fn write(&self, w: &mut Writer) {
        let c = &self.candidate;
        w.raw(&c.public_key).raw(&c.session_key).raw(&c.wireguard_key).text(&c.name);
        w.raw(&self.key.0).u64(self.at);
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let candidate = Candidate {
            public_key: r.array()?,
            session_key: r.array()?,
            wireguard_key: r.array()?,
            name: r.text(63)?,
        };
        Ok(Self { candidate, key: JoinKeyId(r.array()?), at: r.u64()? })
    }
}

/// What a signed record says of a node that wants to be a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Ed25519.
    pub public_key: [u8; 32],
    /// X25519.
    pub session_key: [u8; 32],
    /// X25519.
    pub wireguard_key: [u8; 32],
    /// The host name it wants.
    pub name: String,
}

impl Candidate {
    /// From its signed record.
    pub(crate) fn read(record: &[u8]) -> Result<Self, Refusal> {
        let record = Verified::<NodeRecord>::open(record).map_err(|_| Refusal::BadRecord)?;
        Ok(Self {
            public_key: record.public_key,
            session_key: record.session_key,
            wireguard_key: record.wireguard_key,
            name: record.hostname.clone(),
        })
    }

    /// Hash of its key.
    pub fn node(&self) -> NodeId {
        NodeId::of_public_key(&self.public_key)
    }
}

impl State {
    /// Nodes that wait for a person.
    pub fn requests(&self) -> impl Iterator<Item = (&NodeId, &JoinRequest)> {
        self.requests.iter()
    }

    /// All join keys, also those that admit nobody any more.
    pub fn join_keys(&self) -> impl Iterator<Item = &StoredJoinKey> {
        self.join_keys.values()
    }

    /// A join key as people get it.
    pub fn join_key(&self, id: &JoinKeyId) -> Option<JoinKey> {
        let key = self.join_keys.get(id)?;
        let mut random = [0; 37];
        random[..5].copy_from_slice(&key.id.0);
        random[5..].copy_from_slice(&key.secret);
        let made = JoinKey::generate(&random);
        Some(if key.bound { made.for_cluster(self.cluster()) } else { made })
    }

    /// Whether a join key admits somebody now.
    pub fn usable(&self, id: &JoinKeyId) -> Result<(), Refusal> {
        let key = self.join_keys.get(id).ok_or(Refusal::UnknownJoinKey)?;
        if key.revoked {
            Err(Refusal::RevokedJoinKey)
        } else if key.expires.is_some_and(|at| self.time >= at) {
            Err(Refusal::ExpiredJoinKey)
        } else if key.max_uses.is_some_and(|max| key.used >= max) {
            Err(Refusal::UsedUpJoinKey)
        } else {
            Ok(())
        }
    }

    pub(super) fn join(&mut self, record: &[u8], key: JoinKeyId) -> Outcome {
        self.try_join(record, key).unwrap_or_else(Outcome::Refused)
    }

    fn try_join(&mut self, record: &[u8], key: JoinKeyId) -> Result<Outcome, Refusal> {
        let candidate = Candidate::read(record)?;
        let node = candidate.node();
        self.may_become_member(&candidate)?;
        if let Some(member) = self.members.get(&node) {
            let same = member.session_key == candidate.session_key
                && member.wireguard_key == candidate.wireguard_key;
            return if same { Ok(Outcome::Done) } else { Err(Refusal::KeyTaken) };
        }
        self.usable(&key)?;
        let automatic =
            !matches!(self.setting(SettingKind::Admission), Some(Setting::Admission { automatic: false }));
        if automatic && self.members.len() < self.max_members() {
            self.admit(candidate, Some(key))?;
            self.count_use(&key);
            return Ok(Outcome::Done);
        }
        if self.requests.len() >= MAX_REQUESTS && !self.requests.contains_key(&node) {
            return Err(Refusal::TooManyRequests);
        }
        self.requests.insert(node, JoinRequest { candidate, key, at: self.time });
        Ok(Outcome::Waiting)
    }

    fn max_members(&self) -> usize {
        match self.setting(SettingKind::MaxMembers) {
            Some(Setting::MaxMembers(max)) => usize::from(*max),
            _ => usize::from(DEFAULT_MAX_MEMBERS),
        }
    }

    fn count_use(&mut self, key: &JoinKeyId) {
        if let Some(key) = self.join_keys.get_mut(key) {
            key.used = key.used.saturating_add(1);
        }
    }

    /// A person may admit more than policy would, but not with a key that was revoked or used up meanwhile.
    pub(super) fn approve(&mut self, node: &NodeId) -> Result<(), Refusal> {
        if self.members.contains_key(node) {
            return Ok(());
        }
        let request = self.requests.get(node).ok_or(Refusal::NoSuchRequest)?.clone();
        match self.usable(&request.key) {
            // It asked in time.
            Ok(()) | Err(Refusal::ExpiredJoinKey) => {}
            Err(refusal) => return Err(refusal),
        }
        self.admit(request.candidate, Some(request.key))?;
        self.count_use(&request.key);
        Ok(())
    }

    pub(super) fn reject(&mut self, node: &NodeId) -> Result<(), Refusal> {
        self.requests.remove(node).map(|_| ()).ok_or(Refusal::NoSuchRequest)
    }

    pub(super) fn create_join_key(&mut self, key: StoredJoinKey) -> Result<(), Refusal> {
        if self.join_keys.contains_key(&key.id) {
            return Err(Refusal::JoinKeyExists);
        }
        if key.revoked
            || key.used > 0
            || key.max_uses == Some(0)
            || key.expires.is_some_and(|at| at <= self.time)
        {
            return Err(Refusal::BadValue);
        }
        if self.join_keys.len() >= MAX_JOIN_KEYS {
            // Room is made by what admits nobody any more: the first such key by its id, on every replica the same.
            let dead = self.join_keys.keys().find(|id| self.usable(id).is_err()).copied();
            self.join_keys.remove(&dead.ok_or(Refusal::TooManyJoinKeys)?);
        }
        self.join_keys.insert(key.id, key);
        Ok(())
    }

    pub(super) fn revoke_join_key(&mut self, id: &JoinKeyId) -> Result<(), Refusal> {
        self.join_keys.get_mut(id).ok_or(Refusal::UnknownJoinKey)?.revoked = true;
        // Whoever waits with it would be admitted by a key that admits nobody.
        self.requests.retain(|_, request| request.key != *id);
        Ok(())
    }
}
