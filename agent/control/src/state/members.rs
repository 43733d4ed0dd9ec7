// SPDX-License-Identifier: Apache-2.0
//! Members, those who were, host names and addresses.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use cluster_agent_proto::NodeId;
use cluster_agent_proto::name::is_dns_label;
use cluster_agent_proto::wire::{Malformed, Reader, Writer};

use super::join::{Candidate, JoinKeyId};
use super::settings::{Setting, SettingKind};
use super::{Refusal, State};
use crate::consts::{MAX_DEPARTED, MAX_EVICTED, MAX_MEMBERS};
use crate::wire::{put_option, take_option};

/// Names that mean something already, or will.
const RESERVED: [&str; 8] =
    ["localhost", "cluster", "gateway", "slurm", "kubernetes", "jupyter", "registry", "wpad"];

/// A raft id that a member has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaOf {
    /// Raft id; was nobody's before and will be nobody's after.
    pub id: u64,
    /// What the member drew when it offered itself.
    pub nonce: u64,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Ed25519; its hash is the node id.
    pub public_key: [u8; 32],
    /// X25519 key of its sessions, certified by its record.
    pub session_key: [u8; 32],
    /// Key of its WireGuard interface, certified by its record.
    pub wireguard_key: [u8; 32],
    /// Host name, unique in the cluster.
    pub name: String,
    /// The host name that it asked for.
    pub wanted_name: String,
    /// Its own for as long as it is remembered.
    pub ipv4: Ipv4Addr,
    /// When it was admitted, in milliseconds since 1970.
    pub since: u64,
    /// The join key it was admitted with; the founder has none.
    pub join_key: Option<JoinKeyId>,
    /// Its replica of this state, if it has one.
    pub replica: Option<ReplicaOf>,
}

impl Member {
    /// Hash of its key.
    pub fn node(&self) -> NodeId {
        NodeId::of_public_key(&self.public_key)
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.raw(&self.public_key).raw(&self.session_key).raw(&self.wireguard_key);
        w.text(&self.name).text(&self.wanted_name).raw(&self.ipv4.octets()).u64(self.since);
        put_option(w, self.join_key, |w, key| {
            w.raw(&key.0);
        });
        put_option(w, self.replica, |w, replica| {
            w.u64(replica.id).u64(replica.nonce);
        });
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (public_key, session_key, wireguard_key) = (r.array()?, r.array()?, r.array()?);
        let (name, wanted_name) = (r.text(63)?, r.text(63)?);
        let (ipv4, since) = (Ipv4Addr::from(r.array::<4>()?), r.u64()?);
        let join_key = take_option(r, |r| r.array().map(JoinKeyId))?;
        let replica = take_option(r, |r| Ok(ReplicaOf { id: r.u64()?, nonce: r.u64()? }))?;
        if !is_dns_label(&name) || !is_dns_label(&wanted_name) {
            return Err(r.malformed());
        }
        Ok(Self { public_key, session_key, wireguard_key, name, wanted_name, ipv4, since, join_key, replica })
    }
}

/// How a member went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// Hostile: it never comes back.
    Evicted,
    /// Dead hardware: it may join again.
    Removed,
    /// By itself: it may join again.
    Left,
}

impl Departure {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Evicted => 1,
            Self::Removed => 2,
            Self::Left => 3,
        }
    }

    pub(crate) fn of_number(number: u8) -> Option<Self> {
        [Self::Evicted, Self::Removed, Self::Left].into_iter().find(|how| how.number() == number)
    }
}

/// Who was a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departed {
    /// How it went.
    pub how: Departure,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Its host name, which others may have now.
    pub name: String,
    /// Its address, kept for it while it is remembered. An evicted node has none.
    pub ipv4: Option<Ipv4Addr>,
}

impl Departed {
    pub(super) fn write(&self, w: &mut Writer) {
        w.u8(self.how.number()).u64(self.at).text(&self.name);
        put_option(w, self.ipv4, |w, ipv4| {
            w.raw(&ipv4.octets());
        });
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let how = Departure::of_number(r.u8()?).ok_or(r.malformed())?;
        let (at, name) = (r.u64()?, r.text(63)?);
        let ipv4 = take_option(r, |r| r.array::<4>().map(Ipv4Addr::from))?;
        Ok(Self { how, at, name, ipv4 })
    }
}

impl State {
    /// All members.
    pub fn members(&self) -> impl Iterator<Item = (&NodeId, &Member)> {
        self.members.iter()
    }

    /// One of them.
    pub fn member(&self, node: &NodeId) -> Option<&Member> {
        self.members.get(node)
    }

    /// Nodes that were members and are not.
    pub fn departed(&self, node: &NodeId) -> Option<&Departed> {
        self.departed.get(node)
    }

    /// Members whose host name is not the one they asked for, because another had it first: a problem that people are told.
    pub fn renamed(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.name != member.wanted_name)
    }

    pub(super) fn admit(&mut self, candidate: Candidate, key: Option<JoinKeyId>) -> Result<(), Refusal> {
        let node = candidate.node();
        self.may_become_member(&candidate)?;
        if self.members.len() >= MAX_MEMBERS {
            return Err(Refusal::Full);
        }
        let before = self.departed.get(&node).and_then(|departed| departed.ipv4);
        let ipv4 = match before.filter(|ipv4| self.in_range(*ipv4)) {
            Some(ipv4) => ipv4,
            None => self.free_address().ok_or(Refusal::NoAddress)?,
        };
        let name = self.free_name(&candidate.name, &node);
        self.departed.remove(&node);
        self.requests.remove(&node);
        let member = Member {
            public_key: candidate.public_key,
            session_key: candidate.session_key,
            wireguard_key: candidate.wireguard_key,
            name,
            wanted_name: candidate.name,
            ipv4,
            since: self.time,
            join_key: key,
            replica: None,
        };
        self.members.insert(node, member);
        Ok(())
    }

    /// Whether it was not evicted, and has no key of another.
    pub(super) fn may_become_member(&self, candidate: &Candidate) -> Result<(), Refusal> {
        let node = candidate.node();
        if self.departed.get(&node).is_some_and(|departed| departed.how == Departure::Evicted) {
            return Err(Refusal::Evicted);
        }
        let clash = self.members.iter().filter(|(id, _)| **id != node).any(|(_, member)| {
            member.session_key == candidate.session_key || member.wireguard_key == candidate.wireguard_key
        });
        if clash { Err(Refusal::KeyTaken) } else { Ok(()) }
    }

    pub(super) fn depart(&mut self, node: &NodeId, how: Departure) -> Result<(), Refusal> {
        let evicted = |departed: &&super::Departed| departed.how == Departure::Evicted;
        if how == Departure::Evicted && self.departed.values().filter(evicted).count() >= MAX_EVICTED {
            return Err(Refusal::TooManyEvicted);
        }
        let Some(member) = self.members.get(node) else {
            // Who left, was removed, or waits can still be evicted; saying the same twice changes nothing.
            let waited = self.requests.remove(node).is_some();
            return match (self.departed.get_mut(node), how) {
                (Some(departed), Departure::Evicted) => {
                    (departed.how, departed.ipv4) = (how, None);
                    Ok(())
                }
                (Some(_), _) => Ok(()),
                (None, Departure::Evicted) if waited => {
                    let departed = Departed { how, at: self.time, name: node.default_hostname(), ipv4: None };
                    self.departed.insert(*node, departed);
                    Ok(())
                }
                (None, _) => Err(Refusal::NotAMember),
            };
        };
        if member.replica.is_some_and(|replica| self.conf.votes(replica.id)) {
            return Err(Refusal::StillVotes);
        }
        let ipv4 = (how != Departure::Evicted).then_some(member.ipv4);
        let departed = Departed { how, at: self.time, name: member.name.clone(), ipv4 };
        self.members.remove(node);
        self.departed.insert(*node, departed);
        self.forget_oldest();
        Ok(())
    }

    /// Of those who may come back only so many are remembered; the evicted ones all are.
    fn forget_oldest(&mut self) {
        let gone = self.departed.iter().filter(|(_, departed)| departed.how != Departure::Evicted);
        if gone.clone().count() > MAX_DEPARTED
            && let Some((oldest, _)) = gone.min_by_key(|(node, departed)| (departed.at, **node))
        {
            let oldest = *oldest;
            self.departed.remove(&oldest);
        }
    }

    pub(super) fn rename(&mut self, node: &NodeId, name: &str) -> Result<(), Refusal> {
        if !self.members.contains_key(node) {
            return Err(Refusal::NotAMember);
        }
        if !is_dns_label(name) || RESERVED.contains(&name) {
            return Err(Refusal::BadName);
        }
        let free = self.free_name(name, node);
        if let Some(member) = self.members.get_mut(node) {
            (member.name, member.wanted_name) = (free, name.to_owned());
        }
        Ok(())
    }

    /// The name, or with the first suffix that nobody has.
    fn free_name(&self, wanted: &str, node: &NodeId) -> String {
        let others = self.members.iter().filter(|(id, _)| *id != node);
        let taken: BTreeSet<&str> = others.map(|(_, member)| member.name.as_str()).chain(RESERVED).collect();
        let numbered = |n: usize| {
            let suffix = format!("-{n}");
            format!("{}{suffix}", wanted[..wanted.len().min(63 - suffix.len())].trim_end_matches('-'))
        };
        let mut name = wanted.to_owned();
        let mut n = 2;
        while taken.contains(name.as_str()) {
            name = numbered(n);
            n += 1;
        }
        name
    }

    pub(super) fn new_replica(&mut self, node: &NodeId, nonce: u64) -> Result<(), Refusal> {
        let id = self.next_replica;
        // The old one may still have a vote, which nobody can cast: the leader gives it to another.
        self.members.get_mut(node).ok_or(Refusal::NotAMember)?.replica = Some(ReplicaOf { id, nonce });
        self.next_replica = id + 1;
        Ok(())
    }

    pub(super) fn drop_replica(&mut self, id: u64) -> Result<(), Refusal> {
        if self.conf.votes(id) {
            return Err(Refusal::StillVotes);
        }
        for member in self.members.values_mut() {
            member.replica = member.replica.filter(|replica| replica.id != id);
        }
        Ok(())
    }

    /// First address and number of addresses of the range that members get theirs from.
    pub(super) fn range(&self) -> (u32, u32) {
        let (base, length) = match self.setting(SettingKind::Ipv4Range) {
            Some(Setting::Ipv4Range(base, length)) => (*base, *length),
            _ => (Ipv4Addr::new(10, 41, 0, 0), 16),
        };
        (u32::from(base), 1 << (32 - u32::from(length)))
    }

    fn in_range(&self, ipv4: Ipv4Addr) -> bool {
        let (base, count) = self.range();
        u32::from(ipv4).checked_sub(base).is_some_and(|at| (1..count - 1).contains(&at))
    }

    /// The lowest address that nobody has or had. Network and broadcast address are nobody's.
    fn free_address(&self) -> Option<Ipv4Addr> {
        let (base, count) = self.range();
        let taken: BTreeSet<u32> =
            self.members.values().map(|member| member.ipv4).chain(self.kept()).map(u32::from).collect();
        let free = (1..count - 1).map(|at| base + at).find(|ipv4| !taken.contains(ipv4));
        // Rather an address that somebody who left had than none.
        let members: BTreeSet<u32> = self.members.values().map(|member| u32::from(member.ipv4)).collect();
        free.or_else(|| (1..count - 1).map(|at| base + at).find(|ipv4| !members.contains(ipv4)))
            .map(Ipv4Addr::from)
    }

    fn kept(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.departed.values().filter_map(|departed| departed.ipv4)
    }

    /// After a change of the range: everybody gets an address of the new one, in the order of admission.
    pub(super) fn renumber(&mut self) -> Result<(), Refusal> {
        let (base, count) = self.range();
        if self.members.len() + 2 > count as usize {
            return Err(Refusal::NoAddress);
        }
        for departed in self.departed.values_mut() {
            departed.ipv4 = None;
        }
        let mut order: Vec<_> = self.members.iter().map(|(node, member)| (member.since, *node)).collect();
        order.sort_unstable();
        for (at, (_, node)) in (1..).zip(order) {
            if let Some(member) = self.members.get_mut(&node) {
                member.ipv4 = Ipv4Addr::from(base + at);
            }
        }
        Ok(())
    }
}
