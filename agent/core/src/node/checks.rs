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
/// In answers of one member to who asks to be let in: the largest roster at once. Less than twice as many objects have a place in
/// it. Two may say so much, so that one that wastes it keeps nobody out.
const OF_ADMISSION: (u16, u16) = (1000, 40_960);
const ADMISSIONS: u16 = 2;
/// Name of all that are no members.
const OTHERS: &[u8] = b"others";

/// Whose word it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Member(NodeId),
    /// Of somebody who has the join key.
    Other,
    /// The answer of this member of a cluster that we asked to let us in.
    Admission(NodeId),
}

/// Shares of all.
pub(super) struct Checks {
    members: Limiter,
    admissions: Limiter,
}

impl Checks {
    pub(super) fn new(rng: &mut StdRng) -> Self {
        let ((rate, burst), (admission_rate, admission_burst)) = (OF_MEMBER, OF_ADMISSION);
        Self {
            members: Limiter::of_each(rate, burst, rng.next_u64()),
            admissions: Limiter::new(admission_rate, admission_burst, ADMISSIONS, rng.next_u64()),
        }
    }

    /// Whether one more signature is checked for somebody now.
    pub(super) fn allow(&mut self, whose: Word, now: Duration) -> bool {
        match whose {
            Word::Member(node) => self.members.allow_name(node.as_bytes(), now),
            Word::Other => self.members.allow_name(OTHERS, now),
            Word::Admission(node) => self.admissions.allow_name(node.as_bytes(), now),
        }
    }
}
