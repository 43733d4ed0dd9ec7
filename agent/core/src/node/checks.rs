// SPDX-License-Identifier: Apache-2.0
//! How many signatures are checked for whom. A check takes tens of microseconds, and a stream brings thousands of objects a
//! second: each member has its own share, those who are none share one.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use crate::consts::checks::*;
use crate::id::NodeId;
use crate::limit::Limiter;

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
        Self {
            members: Limiter::new(OF_MEMBER, rng.next_u64()),
            admissions: Limiter::new(OF_ADMISSION, rng.next_u64()),
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
