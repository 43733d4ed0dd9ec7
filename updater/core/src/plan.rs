// SPDX-License-Identifier: Apache-2.0
//! Which blocks of a new image a node has already. Two trees with one salt say it: equal leaves are equal blocks,
//! wherever they lie.

use crate::{digest::Digest, verity::Tree};

/// Blocks in a row that come from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First block of the new image.
    pub to: u64,
    /// How many.
    pub blocks: u64,
    /// Where they are.
    pub from: From,
}

/// Where blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// In the running slot, from this block on.
    Local(u64),
    /// In the release only.
    Release,
}

/// Where every block of a new image comes from, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockPlan {
    /// The runs; together they are the whole image.
    pub runs: Vec<Run>,
    /// Blocks that are in the running slot.
    pub local: u64,
    /// Blocks that must come from elsewhere.
    pub missing: u64,
}

/// Compares the tree of a new image with the running one's. Without one, or with another salt, all is missing.
#[must_use]
pub fn plan(new: &Tree, running: Option<&Tree>) -> BlockPlan {
    let running = running.filter(|tree| tree.salt() == new.salt());
    let index = running.map(Index::new);
    let mut plan = BlockPlan::default();
    for to in 0..new.data_blocks() {
        let Some(leaf) = new.leaf(to) else { break };
        // Where the last run goes on, it goes on; elsewhere any equal block will do.
        let next = match plan.runs.last() {
            Some(Run { from: From::Local(start), blocks, .. }) => Some(start + blocks),
            _ => None,
        };
        let follows = next.filter(|&at| running.and_then(|tree| tree.leaf(at)) == Some(leaf));
        let found = follows.or_else(|| index.as_ref().and_then(|index| index.find(leaf)));
        let from = found.map_or(From::Release, From::Local);
        match from {
            From::Local(_) => plan.local += 1,
            From::Release => plan.missing += 1,
        }
        match plan.runs.last_mut() {
            Some(run) if continues(run, from) => run.blocks += 1,
            _ => plan.runs.push(Run { to, blocks: 1, from }),
        }
    }
    plan
}

fn continues(run: &Run, from: From) -> bool {
    match (run.from, from) {
        (From::Local(start), From::Local(at)) => start + run.blocks == at,
        (From::Release, From::Release) => true,
        _ => false,
    }
}

/// Block numbers of a tree in the order of their digests: four bytes a block, where a map would take sixty.
struct Index<'a> {
    tree: &'a Tree,
    order: Vec<u32>,
}

impl<'a> Index<'a> {
    fn new(tree: &'a Tree) -> Self {
        // MAX_DATA_BLOCKS is far below 2^32.
        let mut order: Vec<u32> = (0..tree.data_blocks() as u32).collect();
        order.sort_unstable_by_key(|&block| tree.leaf(block.into()));
        Self { tree, order }
    }

    fn find(&self, leaf: Digest) -> Option<u64> {
        let at = self.order.binary_search_by_key(&Some(leaf), |&block| self.tree.leaf(block.into())).ok()?;
        self.order.get(at).copied().map(u64::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verity::{BLOCK_BYTES, hash_block};

    fn tree(salt: u8, blocks: &[u8]) -> Tree {
        let salt = [salt; 32];
        let leaves: Vec<Digest> =
            blocks.iter().map(|&fill| hash_block(&salt, &[fill; BLOCK_BYTES])).collect();
        Tree::build(&salt, &leaves).0
    }

    #[test]
    fn finds_blocks_at_any_offset_and_keeps_runs_together() {
        let running = tree(1, &[10, 11, 12, 13, 14]);
        let new = tree(1, &[99, 11, 12, 13, 98, 10, 97]);
        let plan = plan(&new, Some(&running));
        assert_eq!((plan.local, plan.missing), (4, 3));
        assert_eq!(
            plan.runs,
            [
                Run { to: 0, blocks: 1, from: From::Release },
                Run { to: 1, blocks: 3, from: From::Local(1) },
                Run { to: 4, blocks: 1, from: From::Release },
                Run { to: 5, blocks: 1, from: From::Local(0) },
                Run { to: 6, blocks: 1, from: From::Release },
            ]
        );
    }

    #[test]
    fn equal_blocks_do_not_break_a_run() {
        let image = [0, 0, 5, 0, 0, 0, 6, 0];
        let plan = plan(&tree(1, &image), Some(&tree(1, &image)));
        assert_eq!(plan.local, 8);
        assert!(plan.runs.len() <= 3, "{:?}", plan.runs);
    }

    #[test]
    fn another_salt_or_no_tree_means_all_is_missing() {
        let new = tree(1, &[1, 2]);
        for running in [None, Some(tree(2, &[1, 2]))] {
            assert_eq!(plan(&new, running.as_ref()).missing, 2);
        }
    }
}
