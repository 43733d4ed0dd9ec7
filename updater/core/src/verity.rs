// SPDX-License-Identifier: Apache-2.0
//! dm-verity's hash tree, as the kernel reads it (Documentation/admin-guide/device-mapper/verity.rst, cryptsetup's
//! superblock): SHA-256, hash type 1 (salt first), blocks of 4096 bytes, 128 digests a block.
//!
//! In the file: superblock, then the levels from the root's down to the leaves'.

use sha2::{Digest as _, Sha256};

use crate::{digest::Digest, manifest::RootImage};

/// Of data and of the tree.
pub const BLOCK_BYTES: usize = 4096;
/// 16 GiB: four times what a slot has, and a tree that fits into memory.
pub const MAX_DATA_BLOCKS: u64 = 1 << 22;
const DIGESTS: u64 = 128;

/// Blocks of each level, the leaves' level first. An image of one block would have none and is not used.
fn levels(data_blocks: u64) -> Vec<u64> {
    let mut levels = Vec::new();
    let mut blocks = data_blocks;
    while blocks > 1 {
        blocks = blocks.div_ceil(DIGESTS);
        levels.push(blocks);
    }
    levels
}

/// Size of the tree of `data_blocks` blocks, superblock included.
#[must_use]
pub fn tree_bytes(data_blocks: u64) -> u64 {
    (1 + levels(data_blocks).iter().sum::<u64>()) * BLOCK_BYTES as u64
}

/// Where the leaves lie in the tree's file: offset and bytes, without the unused end.
#[must_use]
pub fn leaves(data_blocks: u64) -> (u64, u64) {
    let level = levels(data_blocks).first().copied().unwrap_or(0);
    (tree_bytes(data_blocks) - level * BLOCK_BYTES as u64, data_blocks * 32)
}

/// Makes all of a tree's file from its leaves, which lie at their place in `bytes`. False when it is not the tree of `root`.
#[must_use]
pub fn complete(bytes: &mut [u8], root: &RootImage) -> bool {
    if bytes.len() as u64 != tree_bytes(root.data_blocks) || root.data_blocks < 2 {
        return false;
    }
    bytes[..BLOCK_BYTES].copy_from_slice(&superblock(root));
    let (at, used) = leaves(root.data_blocks);
    bytes[(at + used) as usize..].fill(0);
    let mut level = at as usize..bytes.len();
    let mut up = levels(root.data_blocks).into_iter().skip(1);
    loop {
        let (above, below) = bytes.split_at_mut(level.start);
        let mut digests = below[..level.len()].chunks(BLOCK_BYTES).map(|block| hash_block(&root.salt, block));
        let Some(blocks) = up.next() else { return digests.next() == Some(root.hash) };
        level = level.start - blocks as usize * BLOCK_BYTES..level.start;
        let level = &mut above[level.clone()];
        level.fill(0);
        for (to, digest) in level.chunks_mut(32).zip(digests) {
            to.copy_from_slice(&digest.0);
        }
    }
}

/// The digest of a block: of `salt` and the block.
#[must_use]
pub fn hash_block(salt: &[u8; 32], block: &[u8]) -> Digest {
    Digest(Sha256::new().chain_update(salt).chain_update(block).finalize().into())
}

/// The superblock that veritysetup would write; nothing in it is taken from a release's own.
#[must_use]
pub fn superblock(root: &RootImage) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"verity\0\0");
    put(8, &1_u32.to_le_bytes());
    put(12, &1_u32.to_le_bytes());
    put(16, &root.uuid.0);
    put(32, b"sha256");
    put(64, &(BLOCK_BYTES as u32).to_le_bytes());
    put(68, &(BLOCK_BYTES as u32).to_le_bytes());
    put(72, &root.data_blocks.to_le_bytes());
    put(80, &(root.salt.len() as u16).to_le_bytes());
    put(88, &root.salt);
    block
}

/// What a superblock says: number of data blocks, salt, UUID. For whoever makes a manifest; a node goes by the manifest.
#[must_use]
pub fn read_superblock(block: &[u8]) -> Option<(u64, [u8; 32], [u8; 16])> {
    let at = |from: usize, to: usize| block.get(from..to);
    let salt = at(88, 120)?.try_into().ok()?;
    let data_blocks = u64::from_le_bytes(at(72, 80)?.try_into().ok()?);
    let uuid = at(16, 32)?.try_into().ok()?;
    let known = at(0, 8)? == b"verity\0\0"
        && at(8, 16)? == [1, 0, 0, 0, 1, 0, 0, 0]
        && at(32, 64)?.strip_prefix(b"sha256").is_some_and(|rest| rest.iter().all(|byte| *byte == 0))
        && at(64, 72)? == [0, 0x10, 0, 0, 0, 0x10, 0, 0]
        && at(80, 82)? == [32, 0]
        && (2..=MAX_DATA_BLOCKS).contains(&data_blocks);
    known.then_some((data_blocks, salt, uuid))
}

/// A tree whose every block leads to its root.
#[derive(Clone)]
pub struct Tree {
    /// Without the superblock.
    bytes: Vec<u8>,
    leaves_at: usize,
    data_blocks: u64,
    salt: [u8; 32],
}

/// A tree that does not lead to the root hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Not of the size that belongs to the number of data blocks.
    #[error("the hash tree has {found} bytes and must have {wanted}")]
    Size {
        /// Bytes it has, superblock included.
        found: u64,
        /// Bytes it must have.
        wanted: u64,
    },
    /// A block is not what the level above says.
    #[error(
        "block {0} of the hash tree does not lead to the root hash: the tree is of another image, or damaged"
    )]
    Block(u64),
}

impl Tree {
    /// The tree over data whose blocks have these digests, and its root hash.
    #[must_use]
    pub fn build(salt: &[u8; 32], leaves: &[Digest]) -> (Self, Digest) {
        let mut all: Vec<Vec<u8>> = Vec::new();
        let mut digests = leaves.to_vec();
        while digests.len() > 1 {
            let level: Vec<u8> = digests
                .chunks(DIGESTS as usize)
                .flat_map(|digests| {
                    let mut block: Vec<u8> = digests.iter().flat_map(|digest| digest.0).collect();
                    block.resize(BLOCK_BYTES, 0);
                    block
                })
                .collect();
            digests = level.chunks(BLOCK_BYTES).map(|block| hash_block(salt, block)).collect();
            all.push(level);
        }
        let leaf_level = all.first().map_or(0, Vec::len);
        all.reverse();
        let bytes = all.concat();
        let root = digests.first().copied().unwrap_or(Digest([0; 32]));
        let leaves_at = bytes.len() - leaf_level;
        (Self { bytes, leaves_at, data_blocks: leaves.len() as u64, salt: *salt }, root)
    }

    /// The tree in a file's `bytes` (superblock first, which is skipped), checked from the root down.
    ///
    /// # Errors
    /// When it is not the tree of `root`.
    pub fn check(bytes: &[u8], root: &RootImage) -> Result<Self, TreeError> {
        Self::take(bytes.to_vec(), root)
    }

    /// The same without a copy: a tree may be the largest thing that a node holds in memory.
    ///
    /// # Errors
    /// When it is not the tree of `root`.
    pub fn take(mut bytes: Vec<u8>, root: &RootImage) -> Result<Self, TreeError> {
        Self::verify(&bytes, root)?;
        bytes.drain(..BLOCK_BYTES);
        let leaves_at = bytes.len() - levels(root.data_blocks)[0] as usize * BLOCK_BYTES;
        Ok(Self { bytes, leaves_at, data_blocks: root.data_blocks, salt: root.salt })
    }

    /// The same without keeping it.
    ///
    /// # Errors
    /// When it is not the tree of `root`.
    pub fn verify(bytes: &[u8], root: &RootImage) -> Result<(), TreeError> {
        let wanted = tree_bytes(root.data_blocks);
        if bytes.len() as u64 != wanted || root.data_blocks < 2 {
            return Err(TreeError::Size { found: bytes.len() as u64, wanted });
        }
        Self::leads_to(&bytes[BLOCK_BYTES..], root)
    }

    fn leads_to(bytes: &[u8], root: &RootImage) -> Result<(), TreeError> {
        let blocks: Vec<&[u8]> = bytes.chunks(BLOCK_BYTES).collect();
        // Every block but the root's is named by the one above; both are in the order of the file.
        let mut named = vec![root.hash];
        let mut at = 0;
        let levels = levels(root.data_blocks);
        for (up, count) in levels.iter().rev().enumerate() {
            let below = levels.len().checked_sub(up + 2).map_or(0, |level| levels[level]) as usize;
            let mut next = Vec::with_capacity(below);
            for digest in named.iter().take(*count as usize) {
                if hash_block(&root.salt, blocks[at]) != *digest {
                    return Err(TreeError::Block(at as u64));
                }
                let (digests, _) = blocks[at].as_chunks::<32>();
                next.extend(digests.iter().take(below - next.len()).copied().map(Digest));
                at += 1;
            }
            named = next;
        }
        Ok(())
    }

    /// The digest of data block `block`.
    #[must_use]
    pub fn leaf(&self, block: u64) -> Option<Digest> {
        if block >= self.data_blocks {
            return None;
        }
        let at = self.leaves_at + usize::try_from(block).ok()? * 32;
        self.bytes.get(at..at + 32)?.try_into().ok().map(Digest)
    }

    /// Whether `block` is what data block `number` must be.
    #[must_use]
    pub fn matches(&self, number: u64, block: &[u8]) -> bool {
        block.len() == BLOCK_BYTES && self.leaf(number) == Some(hash_block(&self.salt, block))
    }

    /// How many data blocks it covers.
    #[must_use]
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// In front of every block.
    #[must_use]
    pub fn salt(&self) -> &[u8; 32] {
        &self.salt
    }

    /// What follows the superblock in a hash partition.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpt::Guid;

    const SALT: [u8; 32] = [9; 32];

    fn image(blocks: u64) -> (RootImage, Vec<u8>) {
        let leaves: Vec<Digest> = (0..blocks).map(|n| hash_block(&SALT, &[n as u8; BLOCK_BYTES])).collect();
        let (tree, hash) = Tree::build(&SALT, &leaves);
        let root = RootImage {
            data_bytes: blocks * BLOCK_BYTES as u64,
            data_blocks: blocks,
            tree_bytes: tree_bytes(blocks),
            hash,
            salt: SALT,
            uuid: Guid([3; 16]),
        };
        let file = [&superblock(&root)[..], tree.bytes()].concat();
        (root, file)
    }

    #[test]
    fn what_is_built_is_accepted_at_every_edge_of_a_level() {
        for blocks in [2, 127, 128, 129, 255, 256, 128 * 128, 128 * 128 + 1] {
            let (root, file) = image(blocks);
            assert_eq!(file.len() as u64, tree_bytes(blocks), "{blocks}");
            let tree = Tree::check(&file, &root).unwrap_or_else(|error| panic!("{blocks}: {error}"));
            assert!(tree.matches(blocks - 1, &[(blocks - 1) as u8; BLOCK_BYTES]));
            assert!(!tree.matches(blocks - 1, &[blocks as u8; BLOCK_BYTES]));
            assert_eq!(tree.leaf(blocks), None);
            assert_eq!(read_superblock(&file), Some((blocks, SALT, [3; 16])));
            let (at, used) = leaves(blocks);
            let mut made = vec![7; file.len()];
            let place = at as usize..(at + used) as usize;
            made[place.clone()].copy_from_slice(&file[place.clone()]);
            assert!(complete(&mut made, &root) && made == file, "{blocks}");
            made[place.end - 1] ^= 1;
            assert!(!complete(&mut made, &root), "{blocks}");
        }
    }

    #[test]
    fn refuses_one_flipped_bit_anywhere_and_every_other_length() {
        let (root, file) = image(300);
        for at in (BLOCK_BYTES..file.len()).step_by(997) {
            let mut bad = file.clone();
            bad[at] ^= 1;
            let block = ((at - BLOCK_BYTES) / BLOCK_BYTES) as u64;
            assert_eq!(Tree::check(&bad, &root).err(), Some(TreeError::Block(block)));
        }
        assert!(matches!(Tree::check(&file[..file.len() - 1], &root), Err(TreeError::Size { .. })));
        assert!(matches!(Tree::check(&[], &root), Err(TreeError::Size { .. })));
    }

    #[test]
    fn a_superblock_of_another_kind_is_not_read() {
        let (_, file) = image(2);
        for at in [0, 8, 12, 32, 38, 64, 68, 80] {
            let mut bad = file.clone();
            bad[at] ^= 1;
            assert_eq!(read_superblock(&bad), None, "byte {at}");
        }
        assert_eq!(read_superblock(&file[..100]), None);
    }
}
