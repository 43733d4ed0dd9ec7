// SPDX-License-Identifier: Apache-2.0
//! The UKI's block list: one SHA-256 per 4096 bytes, so that a part of it can be checked before all of it is there.

use crate::{digest::Digest, manifest::Uki, verity::BLOCK_BYTES};

/// The ESP has 1 GiB for two.
pub const MAX_BYTES: u64 = 400 << 20;

/// Digests of the UKI's blocks, in order; the last block is as short as the file leaves it.
#[derive(Clone, PartialEq, Eq)]
pub struct BlockList(Vec<Digest>);

/// The list does not belong to the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the block list of the UKI is not the one that the manifest names")]
pub struct WrongList;

impl BlockList {
    /// Size of the list of a UKI of `bytes` bytes.
    #[must_use]
    pub fn file_bytes(bytes: u64) -> u64 {
        bytes.div_ceil(BLOCK_BYTES as u64) * 32
    }

    /// The list of this UKI.
    #[must_use]
    pub fn of(uki: &[u8]) -> Self {
        Self(uki.chunks(BLOCK_BYTES).map(Digest::of).collect())
    }

    /// The list in these bytes, if it is the one that `uki` names.
    ///
    /// # Errors
    /// When it is another one.
    pub fn check(bytes: &[u8], uki: &Uki) -> Result<Self, WrongList> {
        if bytes.len() as u64 != Self::file_bytes(uki.bytes) || Digest::of(bytes) != uki.blocks {
            return Err(WrongList);
        }
        let (digests, _) = bytes.as_chunks::<32>();
        Ok(Self(digests.iter().copied().map(Digest).collect()))
    }

    /// As it stands in its file: the digests one behind the other.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|digest| digest.0).collect()
    }

    /// The digest of a block.
    #[must_use]
    pub fn digest(&self, block: u64) -> Option<Digest> {
        self.0.get(usize::try_from(block).ok()?).copied()
    }

    /// Whether `bytes`, which begin at block `first`, are what they should be.
    #[must_use]
    pub fn matches(&self, first: u64, bytes: &[u8]) -> bool {
        let wanted = usize::try_from(first).ok().and_then(|first| self.0.get(first..)).unwrap_or_default();
        let blocks = bytes.chunks(BLOCK_BYTES);
        blocks.len() <= wanted.len() && blocks.zip(wanted).all(|(block, digest)| Digest::of(block) == *digest)
    }
}
