// SPDX-License-Identifier: Apache-2.0
//! How many signatures are checked for whom. A check takes tens of microseconds, and a stream brings thousands of objects a
//! second: each member has its own share, those who are none share one.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::id::NodeId;
use crate::limit::Limiter;

/// Of one member: all that a cluster of thousands has to say at once, and then what takes a few hundredths of a processor.
const OF_MEMBER: (u16, u16) = (500, 8192);
/// In answers to who asks to be let in: the largest roster at once. Less than twice as many objects have a place in it.
const OF_ADMISSION: (u16, u16) = (1000, 40_960);
/// Name of all that are no members.
const OTHERS: &[u8] = b"others";

/// Whose word it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Member(NodeId),
    /// Of somebody who has the join key.
    Other,
    /// The answer of a cluster that we asked to let us in.
    Admission,
}

/// Shares of all.
pub(super) struct Checks {
    members: Limiter,
    admissions: Limiter,
}

impl Checks {
    pub(super) fn new(rng: &mut StdRng) -> Self {
        let mut of_each = |(rate, burst)| Limiter::of_each(rate, burst, rng.next_u64());
        Self { members: of_each(OF_MEMBER), admissions: of_each(OF_ADMISSION) }
    }

    /// Whether one more signature is checked for somebody now.
    pub(super) fn allow(&mut self, whose: Word, now: Duration) -> bool {
        match whose {
            Word::Member(node) => self.members.allow_name(node.as_bytes(), now),
            Word::Other => self.members.allow_name(OTHERS, now),
            Word::Admission => self.admissions.allow_name(OTHERS, now),
        }
    }
}
