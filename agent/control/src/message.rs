// SPDX-License-Identifier: Apache-2.0
//! What the control planes of two nodes say to each other, inside a session that says who each is.

use cluster_agent_proto::NodeId;
use cluster_agent_proto::consts::WIRE_VERSION;
use cluster_agent_proto::wire::{Malformed, Reader, Writer};

use crate::consts::{MAX_ENTRIES, MAX_ENTRY, MAX_MESSAGE, MAX_STATE};
use crate::raft::{self, LogEntry, read_message, write_message};
use crate::state::{Command, Departure, Digest, Outcome, RequestId, read_outcome, write_outcome};
use crate::wire::{put_large, put_option, take_large, take_option};

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Message {
    /// From one replica to another.
    Raft {
        incarnation: u32,
        /// Id of the sender's last write that is on its disk.
        stored: u64,
        /// Of the receiver's replica, from the state: who drew it takes the raft id.
        nonce: u64,
        message: raft::Message,
    },
    /// A replica that starts asks what others heard of it.
    RollCall { replica: u64, stored: u64 },
    /// The answer: its last write that was heard of.
    Heard { replica: u64, stored: u64 },
    /// The sender has no such replica any more.
    Gone { replica: u64 },
    /// A request, for the leader.
    Forward { request: RequestId, command: Command },
    /// What became of it.
    Answered { request: RequestId, index: u64, outcome: Outcome },
    /// Asks the leader what is committed now.
    Read { request: RequestId },
    /// At least this was.
    ReadAt { request: RequestId, index: u64 },
    /// The leader asks whether a member will have a replica.
    Invite,
    /// It will.
    Offer { nonce: u64 },
    /// Asks a voter for what is newer than this.
    Pull { incarnation: u32, index: u64, digest: Digest },
    /// The sender is in a later incarnation than a replica that spoke to it.
    Incarnation { incarnation: u32 },
    /// What is.
    News { leader: Option<NodeId>, age: u64, news: News },
}

/// An answer to a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing.
    Same,
    /// Entries after the index that was asked with, and the digest after the last.
    Entries(Vec<LogEntry>, Digest),
    /// All of it.
    State(Vec<u8>),
    /// You are no member any more.
    Departed(Departure),
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(WIRE_VERSION);
        match self {
            Self::Raft { incarnation, stored, nonce, message } => {
                w.u8(1).u32(*incarnation).u64(*stored).u64(*nonce);
                if write_message(&mut w, message).is_none() {
                    return Vec::new();
                }
            }
            Self::RollCall { replica, stored } => {
                w.u8(2).u64(*replica).u64(*stored);
            }
            Self::Heard { replica, stored } => {
                w.u8(3).u64(*replica).u64(*stored);
            }
            Self::Gone { replica } => {
                w.u8(4).u64(*replica);
            }
            Self::Forward { request, command } => command.write(w.u8(5).raw(&request.0)),
            Self::Answered { request, index, outcome } => {
                write_outcome(w.u8(6).raw(&request.0).u64(*index), *outcome);
            }
            Self::Read { request } => {
                w.u8(7).raw(&request.0);
            }
            Self::ReadAt { request, index } => {
                w.u8(8).raw(&request.0).u64(*index);
            }
            Self::Invite => {
                w.u8(9);
            }
            Self::Offer { nonce } => {
                w.u8(10).u64(*nonce);
            }
            Self::Pull { incarnation, index, digest } => {
                w.u8(11).u32(*incarnation).u64(*index).raw(&digest.0);
            }
            Self::Incarnation { incarnation } => {
                w.u8(13).u32(*incarnation);
            }
            Self::News { leader, age, news } => {
                put_option(w.u8(12), *leader, |w, leader| {
                    w.raw(&leader.0);
                });
                w.u64(*age);
                match news {
                    News::Same => {
                        w.u8(0);
                    }
                    News::Entries(entries, digest) => {
                        w.u8(1).raw(&digest.0).u16(entries.len() as u16);
                        for entry in entries {
                            entry.write(&mut w);
                        }
                    }
                    News::State(state) => put_large(w.u8(2), state),
                    News::Departed(how) => {
                        w.u8(3).u8(how.number());
                    }
                }
            }
        }
        w.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new("control message", bytes);
        if bytes.len() > MAX_MESSAGE || r.u8()? != WIRE_VERSION {
            return Err(r.malformed());
        }
        let request = |r: &mut Reader<'_>| r.array().map(RequestId);
        let message = match r.u8()? {
            1 => Self::Raft {
                incarnation: r.u32()?,
                stored: r.u64()?,
                nonce: r.u64()?,
                message: read_message(&mut r)?,
            },
            2 => Self::RollCall { replica: r.u64()?, stored: r.u64()? },
            3 => Self::Heard { replica: r.u64()?, stored: r.u64()? },
            4 => Self::Gone { replica: r.u64()? },
            5 if bytes.len() <= MAX_ENTRY - 64 => {
                Self::Forward { request: request(&mut r)?, command: Command::read(&mut r)? }
            }
            6 => {
                Self::Answered { request: request(&mut r)?, index: r.u64()?, outcome: read_outcome(&mut r)? }
            }
            7 => Self::Read { request: request(&mut r)? },
            8 => Self::ReadAt { request: request(&mut r)?, index: r.u64()? },
            9 => Self::Invite,
            10 => Self::Offer { nonce: r.u64()? },
            11 => Self::Pull { incarnation: r.u32()?, index: r.u64()?, digest: Digest(r.array()?) },
            13 => Self::Incarnation { incarnation: r.u32()? },
            12 => {
                let (leader, age) = (take_option(&mut r, |r| r.array().map(NodeId))?, r.u64()?);
                let news = match r.u8()? {
                    0 => News::Same,
                    1 => {
                        let digest = Digest(r.array()?);
                        let count = usize::from(r.u16()?);
                        if count > MAX_ENTRIES {
                            return Err(r.malformed());
                        }
                        let entries = (0..count).map(|_| LogEntry::read(&mut r)).collect::<Result<_, _>>()?;
                        News::Entries(entries, digest)
                    }
                    2 => News::State(take_large(&mut r, MAX_STATE)?.to_vec()),
                    3 => News::Departed(Departure::of_number(r.u8()?).ok_or(r.malformed())?),
                    _ => return Err(r.malformed()),
                };
                Self::News { leader, age, news }
            }
            _ => return Err(r.malformed()),
        };
        r.end()?;
        Ok(message)
    }
}
