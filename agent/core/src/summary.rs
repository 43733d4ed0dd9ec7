// SPDX-License-Identifier: Apache-2.0
//! All that a node holds in 64 parts, each folded into 8 bytes: two nodes that know the same need not list it, and where
//! they differ they list only that part. So a push-pull costs the same in a cluster of three and of a thousand.

use crate::gossip::Liveness;
use crate::signed::ObjectDigest;

/// Parts of a [`Summary`].
pub(crate) const PARTS: usize = 64;

/// A set in 64 parts, each the exclusive or of the digests in it, so that a change costs the same however large the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Folded(pub(crate) [u64; PARTS]);

/// What a node holds, in short.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) objects: Folded,
    pub(crate) alive: Folded,
}

/// In which parts two summaries differ; a bit for each part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    objects: u64,
    alive: u64,
}

impl Default for Folded {
    fn default() -> Self {
        Self([0; PARTS])
    }
}

impl Folded {
    /// Adds an object, or takes it out again.
    pub(crate) fn object(&mut self, digest: &ObjectDigest) {
        self.0[part(&digest.0)] ^= u64::from_be_bytes(digest.0);
    }

    /// Adds what gossip knows of a member, or takes it out again.
    pub(crate) fn alive(&mut self, one: &Liveness) {
        self.0[part(&one.id.node.0)] ^= u64::from_be_bytes(one.digest().0);
    }

    fn difference(&self, other: &Self) -> u64 {
        let parts = self.0.iter().zip(&other.0).enumerate();
        parts.filter(|(_, (ours, theirs))| ours != theirs).fold(0, |bits, (at, _)| bits | 1 << at)
    }
}

impl Summary {
    pub(crate) fn difference(&self, other: &Self) -> Difference {
        Difference {
            objects: self.objects.difference(&other.objects),
            alive: self.alive.difference(&other.alive),
        }
    }
}

impl Difference {
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }

    pub(crate) fn has_object(self, digest: &ObjectDigest) -> bool {
        self.objects >> part(&digest.0) & 1 == 1
    }

    pub(crate) fn has_alive(self, one: &Liveness) -> bool {
        self.alive >> part(&one.id.node.0) & 1 == 1
    }
}

fn part(hash: &[u8]) -> usize {
    hash.first().map_or(0, |byte| usize::from(byte >> 2))
}
