// SPDX-License-Identifier: Apache-2.0
//! What travels over framed streams: introductions, admission and push-pull of full state.

use crate::consts::{MAX_FRAME, MAX_RECORD};
use crate::gossip::{LIVENESS, Liveness};
use crate::signed::{MAX_OBJECT, ObjectDigest};
use crate::summary::{Folded, PARTS, Summary};
use crate::wire::{Malformed, Reader, Writer};

/// Largest plaintext of a frame: Noise adds 16 bytes.
const MAX_MESSAGE: usize = MAX_FRAME - 16;
/// Content of one message of objects; some room is left for the head.
pub(crate) const OBJECT_BYTES_PER_MESSAGE: usize = 60_000;
/// Digests in one message.
pub(crate) const DIGESTS_PER_MESSAGE: usize = OBJECT_BYTES_PER_MESSAGE / 8;
/// What gossip knows, in one message.
pub(crate) const ALIVE_PER_MESSAGE: usize = OBJECT_BYTES_PER_MESSAGE / LIVENESS;

/// What a node says first on an introduction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Its signed record; not verified yet.
    pub(crate) record: Vec<u8>,
    pub(crate) instance: [u8; 8],
    /// Milliseconds since this agent started; tells the newcomer of two clones.
    pub(crate) uptime: u64,
    /// Wall clock in milliseconds since 1970.
    pub(crate) wall: u64,
    /// Signed genesis of its cluster; empty when it belongs to none.
    pub(crate) genesis: Vec<u8>,
    /// Nothing but founding and automatic admissions happened in its cluster.
    pub(crate) blank: bool,
}

/// One message on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// First on an introduction, from both sides.
    Hello(Hello),
    /// A node without a cluster (or about to dissolve its own) asks to be admitted.
    Join,
    /// The answer to `Join` is complete.
    Admitted,
    /// The answer to `Join`: no, and why.
    Refused(String),
    /// Digests of all objects that the sender has. `true`: that was the last part.
    Have(Vec<ObjectDigest>, bool),
    /// Digests of objects that the sender lacks. `true`: that was the last part.
    Want(Vec<ObjectDigest>, bool),
    /// Signed objects, not verified yet.
    Objects(Vec<Vec<u8>>),
    /// What the sender's gossip knows.
    Alive(Vec<Liveness>),
    /// The sender has said all.
    Done,
    /// First on a push-pull: wall clock in milliseconds since 1970.
    Clock(u64),
    /// What the sender holds, in short.
    Summary(Box<Summary>),
}

impl Message {
    /// One of each kind, none of them empty.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn samples() -> Vec<Self> {
        let hello = Hello {
            record: vec![1; 300],
            instance: [2; 8],
            uptime: 3,
            wall: 4,
            genesis: vec![5; 200],
            blank: true,
        };
        let digests = || vec![ObjectDigest([1; 8]), ObjectDigest([2; 8])];
        let known = Liveness::since_boot(crate::id::NodeId([6; 32]), 7);
        let folded = |first: u64| Folded(std::array::from_fn(|part| first + part as u64));
        crate::one_of_each::one_of_each!(Self:
            Self::Hello(_) => Self::Hello(hello),
            Self::Join => Self::Join,
            Self::Admitted => Self::Admitted,
            Self::Refused(_) => Self::Refused("no".into()),
            Self::Have(..) => Self::Have(digests(), true),
            Self::Want(..) => Self::Want(digests(), false),
            Self::Objects(_) => Self::Objects(vec![vec![1; 10], vec![2; 20]]),
            Self::Alive(_) => Self::Alive(vec![known]),
            Self::Done => Self::Done,
            Self::Clock(_) => Self::Clock(7),
            Self::Summary(_) => Self::Summary(Box::new(Summary { objects: folded(1), alive: folded(1000) })),
        )
        .into()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        match self {
            Self::Hello(hello) => {
                w.u8(1).bytes(&hello.record).raw(&hello.instance).u64(hello.uptime).u64(hello.wall);
                w.bytes(&hello.genesis).u8(u8::from(hello.blank));
            }
            Self::Join => {
                w.u8(2);
            }
            Self::Admitted => {
                w.u8(3);
            }
            Self::Refused(why) => {
                w.u8(4).text(why);
            }
            Self::Have(digests, last) => write_digests(w.u8(5), digests, *last),
            Self::Want(digests, last) => write_digests(w.u8(6), digests, *last),
            Self::Objects(objects) => {
                w.u8(7).u16(objects.len() as u16);
                for object in objects {
                    w.bytes(object);
                }
            }
            Self::Alive(known) => {
                w.u8(8).u16(known.len() as u16);
                for one in known {
                    one.write(&mut w);
                }
            }
            Self::Done => {
                w.u8(9);
            }
            Self::Clock(wall) => {
                w.u8(10).u64(*wall);
            }
            Self::Summary(summary) => {
                w.u8(11);
                for part in summary.objects.0.iter().chain(&summary.alive.0) {
                    w.u64(*part);
                }
            }
        }
        w.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() > MAX_MESSAGE {
            return Err(Malformed("stream message"));
        }
        let mut r = Reader::new("stream message", bytes);
        let message = match r.u8()? {
            1 => Self::Hello(Hello {
                record: r.bytes(MAX_RECORD)?.to_vec(),
                instance: r.array()?,
                uptime: r.u64()?,
                wall: r.u64()?,
                genesis: r.bytes(MAX_OBJECT)?.to_vec(),
                blank: match r.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(r.malformed()),
                },
            }),
            2 => Self::Join,
            3 => Self::Admitted,
            4 => Self::Refused(r.text(255)?),
            5 => read_digests(&mut r).map(|(digests, last)| Self::Have(digests, last))?,
            6 => read_digests(&mut r).map(|(digests, last)| Self::Want(digests, last))?,
            7 => {
                let count = r.u16()?;
                Self::Objects(
                    (0..count).map(|_| r.bytes(MAX_OBJECT).map(<[u8]>::to_vec)).collect::<Result<_, _>>()?,
                )
            }
            8 => {
                let count = r.u16()?;
                if r.remaining() != usize::from(count) * LIVENESS {
                    return Err(r.malformed());
                }
                Self::Alive((0..count).map(|_| Liveness::read(&mut r)).collect::<Result<_, _>>()?)
            }
            9 => Self::Done,
            10 => Self::Clock(r.u64()?),
            11 => {
                let mut parts = || -> Result<Folded, Malformed> {
                    let mut parts = [0; PARTS];
                    for part in &mut parts {
                        *part = r.u64()?;
                    }
                    Ok(Folded(parts))
                };
                Self::Summary(Box::new(Summary { objects: parts()?, alive: parts()? }))
            }
            _ => return Err(r.malformed()),
        };
        r.end()?;
        Ok(message)
    }
}

fn write_digests(w: &mut Writer, digests: &[ObjectDigest], last: bool) {
    w.u8(u8::from(last)).u16(digests.len() as u16);
    for digest in digests {
        w.raw(&digest.0);
    }
}

fn read_digests(r: &mut Reader<'_>) -> Result<(Vec<ObjectDigest>, bool), Malformed> {
    let last = match r.u8()? {
        0 => false,
        1 => true,
        _ => return Err(r.malformed()),
    };
    let count = r.u16()?;
    if r.remaining() != usize::from(count) * 8 {
        return Err(r.malformed());
    }
    Ok(((0..count).map(|_| r.array().map(ObjectDigest)).collect::<Result<_, _>>()?, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_back_every_message() {
        for message in Message::samples() {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn refuses_every_message_that_is_cut_short_or_too_long() {
        for message in Message::samples() {
            let bytes = message.encode();
            for length in 0..bytes.len() {
                assert!(Message::decode(&bytes[..length]).is_err(), "{length} bytes of {message:?}");
            }
            assert!(Message::decode(&[&bytes[..], &[0]].concat()).is_err(), "a byte after {message:?}");
        }
    }

    #[test]
    fn full_messages_fit_into_a_frame() {
        let digests = vec![ObjectDigest([1; 8]); DIGESTS_PER_MESSAGE];
        assert!(Message::Have(digests, true).encode().len() <= MAX_MESSAGE);
        let size = MAX_OBJECT;
        let objects = vec![vec![7; size]; OBJECT_BYTES_PER_MESSAGE / (size + 2)];
        assert!(Message::Objects(objects).encode().len() <= MAX_MESSAGE);
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }

        /// One of each with a few bytes changed: most keep their shape, so that the fields are read.
        #[test]
        fn what_it_reads_of_a_changed_message_it_writes_again(
            kind: proptest::sample::Index,
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let samples = Message::samples();
            let mut bytes = samples[kind.index(samples.len())].encode();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
