// SPDX-License-Identifier: Apache-2.0
//! What may be proposed, and how it stands in the log.

use cluster_agent_proto::NodeId;
use cluster_agent_proto::consts::{MAX_RECORD, WIRE_VERSION};
use cluster_agent_proto::wire::{Malformed, Reader, Writer};

use super::join::{JoinKeyId, StoredJoinKey};
use super::members::Departure;
use super::settings::{Setting, SettingKind};
use crate::consts::MAX_ENTRY;
use crate::wire::{put_option, take_option};

/// Drawn at random by whoever asks: a request that is repeated under its id is done once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub [u8; 16]);

/// A change of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A node that proved a join key to a member asks to be let in. Policy decides, or a person.
    Join {
        /// Its signed [`NodeRecord`](cluster_agent_proto::record::NodeRecord), which certifies its keys.
        record: Vec<u8>,
        /// The join key that it proved.
        key: JoinKeyId,
    },
    /// A person lets it in.
    Approve {
        /// Who waits.
        node: NodeId,
    },
    /// A person does not.
    Reject {
        /// Who waits.
        node: NodeId,
    },
    /// A member goes.
    Depart {
        /// Who.
        node: NodeId,
        /// Evicted, removed, or left.
        how: Departure,
    },
    /// Gives a member another host name.
    Rename {
        /// Who.
        node: NodeId,
        /// A DNS label.
        name: String,
    },
    /// Changes a setting.
    Set {
        /// Its new value.
        setting: Setting,
        /// Only if it still has this version (0: is not set).
        if_version: Option<u64>,
    },
    /// Makes a setting what it is by itself.
    Unset {
        /// Which.
        kind: SettingKind,
    },
    /// Takes a change of a setting back.
    Undo {
        /// That made this version; `None`: the last one.
        version: Option<u64>,
    },
    /// A new join key.
    CreateJoinKey(StoredJoinKey),
    /// Nobody joins with it any more.
    RevokeJoinKey {
        /// Which.
        id: JoinKeyId,
    },
    /// The leader gives a member a raft id. Not for others.
    NewReplica {
        /// Who.
        node: NodeId,
        /// Drawn by the member in this run: a disk that was wiped since does not know it.
        nonce: u64,
    },
    /// A raft id is used no more. Not for others.
    DropReplica {
        /// Which.
        id: u64,
    },
}

impl Command {
    /// Whether another node than the leader may propose it.
    pub(crate) fn is_for_all(&self) -> bool {
        !matches!(self, Self::NewReplica { .. } | Self::DropReplica { .. })
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        match self {
            Self::Join { record, key } => w.u8(1).bytes(record).raw(&key.0),
            Self::Approve { node } => w.u8(2).raw(&node.0),
            Self::Reject { node } => w.u8(3).raw(&node.0),
            Self::Depart { node, how } => w.u8(4).raw(&node.0).u8(how.number()),
            Self::Rename { node, name } => w.u8(5).raw(&node.0).text(name),
            Self::Set { setting, if_version } => {
                setting.write(w.u8(6));
                put_option(w, *if_version, |w, version| {
                    w.u64(version);
                });
                w
            }
            Self::Unset { kind } => w.u8(7).u8(kind.number()),
            Self::Undo { version } => {
                put_option(w.u8(8), *version, |w, version| {
                    w.u64(version);
                });
                w
            }
            Self::CreateJoinKey(key) => {
                key.write(w.u8(9));
                w
            }
            Self::RevokeJoinKey { id } => w.u8(10).raw(&id.0),
            Self::NewReplica { node, nonce } => w.u8(11).raw(&node.0).u64(*nonce),
            Self::DropReplica { id } => w.u8(12).u64(*id),
        };
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let node = |r: &mut Reader<'_>| r.array().map(NodeId);
        Ok(match r.u8()? {
            1 => Self::Join { record: r.bytes(MAX_RECORD)?.to_vec(), key: JoinKeyId(r.array()?) },
            2 => Self::Approve { node: node(r)? },
            3 => Self::Reject { node: node(r)? },
            4 => Self::Depart { node: node(r)?, how: Departure::of_number(r.u8()?).ok_or(r.malformed())? },
            5 => Self::Rename { node: node(r)?, name: r.text(63)? },
            6 => Self::Set { setting: Setting::read(r)?, if_version: take_option(r, |r| r.u64())? },
            7 => Self::Unset { kind: SettingKind::of_number(r.u8()?).ok_or(r.malformed())? },
            8 => Self::Undo { version: take_option(r, |r| r.u64())? },
            9 => Self::CreateJoinKey(StoredJoinKey::read(r)?),
            10 => Self::RevokeJoinKey { id: JoinKeyId(r.array()?) },
            11 => Self::NewReplica { node: node(r)?, nonce: r.u64()? },
            12 => Self::DropReplica { id: r.u64()? },
            _ => return Err(r.malformed()),
        })
    }
}

/// An entry of the log: a command, who asked, and when by the leader's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Of the request.
    pub request: RequestId,
    /// Milliseconds since 1970.
    pub time: u64,
    /// The node at which it was asked, for the audit log.
    pub origin: NodeId,
    /// What.
    pub command: Command,
}

impl Proposal {
    /// One proposal has one encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(WIRE_VERSION).raw(&self.request.0).u64(self.time).raw(&self.origin.0);
        self.command.write(&mut w);
        w.finish()
    }

    /// Reads and checks. What this release does not know is an error, and the replica stops.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new("proposal", bytes);
        if bytes.len() > MAX_ENTRY || r.u8()? != WIRE_VERSION {
            return Err(r.malformed());
        }
        let (request, time, origin) = (RequestId(r.array()?), r.u64()?, NodeId(r.array()?));
        let proposal = Self { request, time, origin, command: Command::read(&mut r)? };
        r.end()?;
        Ok(proposal)
    }
}
