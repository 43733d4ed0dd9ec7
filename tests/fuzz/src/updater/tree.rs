// SPDX-License-Identifier: Apache-2.0
//! Hash trees, superblocks and block lists that somebody changed: only what leads to the signed digest is read.

use cluster_updater_core::{
    Digest,
    gpt::Guid,
    manifest::{RootImage, Uki},
    outline::{self, Known},
    plan::{From, plan},
    uki::BlockList,
    verity::{self, BLOCK_BYTES, Tree},
};

use super::Script;

const TREE: u8 = 0;
const LIST: u8 = 1;
const SUPERBLOCK: u8 = 2;
const OUTLINE: u8 = 3;
const KINDS: u8 = 4;
/// Enough for three levels.
const MOST_BLOCKS: u64 = 128 * 128 + 200;
const SALT: [u8; 32] = [9; 32];

pub(super) fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    match script.u8() % KINDS {
        TREE => tree(&mut script),
        LIST => list(&mut script),
        OUTLINE => put_together(&mut script),
        _ => superblock(script.0),
    }
}

/// Digests of data that needs not be there: `step` makes two images share blocks at other places.
fn leaves(blocks: u64, step: u64) -> Vec<Digest> {
    let digest = |number: u64| {
        let mut digest = [7; 32];
        digest[..8].copy_from_slice(&(number.wrapping_mul(step) % 5000).to_le_bytes());
        Digest(digest)
    };
    (0..blocks).map(digest).collect()
}

fn image(blocks: u64, step: u64) -> (RootImage, Tree) {
    let (tree, hash) = Tree::build(&SALT, &leaves(blocks, step));
    let root = RootImage {
        data_bytes: blocks * BLOCK_BYTES as u64,
        data_blocks: blocks,
        tree_bytes: verity::tree_bytes(blocks),
        hash,
        salt: SALT,
        uuid: Guid([3; 16]),
    };
    (root, tree)
}

/// Bytes written over others, and the length changed.
fn change(script: &mut Script<'_>, file: &mut Vec<u8>) {
    while !script.is_empty() {
        let at = script.u32() as usize % (file.len() + 1);
        let bytes = script.bytes();
        if bytes.is_empty() {
            file.truncate(at);
            continue;
        }
        let end = (at + bytes.len()).min(file.len());
        file[at..end].copy_from_slice(&bytes[..end - at]);
        if at == file.len() {
            file.extend_from_slice(bytes);
        }
    }
}

fn tree(script: &mut Script<'_>) {
    let blocks = 2 + u64::from(script.u16()) % MOST_BLOCKS;
    let said = 2 + u64::from(script.u16()) % MOST_BLOCKS;
    let step = u64::from(script.u8());
    let (mut root, built) = image(blocks, 1);
    if script.u8() & 1 == 1 {
        root.data_blocks = said;
    }
    let mut file = [&verity::superblock(&root)[..], built.bytes()].concat();
    change(script, &mut file);
    let same = file.get(BLOCK_BYTES..) == Some(built.bytes());
    let read = Tree::check(&file, &root);
    assert_eq!(read.is_ok(), Tree::verify(&file, &root).is_ok());
    if root.data_blocks == blocks {
        assert_eq!(read.is_ok(), same, "{:?}", read.as_ref().err());
    }
    let Ok(read) = read else { return };
    assert!(same, "another tree leads to the root hash");
    assert_eq!((read.data_blocks(), read.leaf(root.data_blocks)), (root.data_blocks, None));
    assert!((0..root.data_blocks.min(blocks)).all(|number| read.leaf(number) == built.leaf(number)));

    let (_, running) = image(said, step);
    let plan = plan(&read, Some(&running));
    assert_eq!(plan.local + plan.missing, read.data_blocks());
    let mut next = 0;
    for run in &plan.runs {
        assert!(run.to == next && run.blocks > 0, "{run:?} after block {next}");
        next += run.blocks;
        if let From::Local(from) = run.from {
            let same = (0..run.blocks).all(|at| {
                let here = running.leaf(from + at);
                here.is_some() && here == read.leaf(run.to + at)
            });
            assert!(same, "{run:?}");
        }
    }
    assert_eq!(next, read.data_blocks());
}

fn list(script: &mut Script<'_>) {
    let bytes = u64::from(script.u16());
    let uki: Vec<u8> = (0..bytes).map(|at| (at / 1000) as u8).collect();
    let list = BlockList::of(&uki);
    let mut file = list.to_bytes();
    let named = Uki { bytes, blocks: Digest::of(&file) };
    let whole = file.clone();
    change(script, &mut file);
    let read = BlockList::check(&file, &named);
    assert_eq!(read.is_ok(), file == whole);
    let Ok(read) = read else { return };
    assert!(read.matches(0, &uki));
    let blocks = bytes.div_ceil(BLOCK_BYTES as u64);
    assert!(read.digest(blocks).is_none() && !read.matches(blocks, &[0]));
    assert!(!read.matches(u64::MAX, &[0]));
}

/// A tree from one that is here, an outline that somebody changed, and a member that gives what is missing.
fn put_together(script: &mut Script<'_>) {
    let blocks = 2 + u64::from(script.u16()) % MOST_BLOCKS;
    let others = 2 + u64::from(script.u16()) % MOST_BLOCKS;
    let step = u64::from(script.u8());
    let ((root, new), (_, old)) = (image(blocks, 1), image(others, step));
    let (at, bytes) = verity::leaves(blocks);
    let (old_at, old_bytes) = verity::leaves(others);
    // Without a superblock.
    let of = |tree: &Tree, at: u64, bytes: u64| {
        let at = at as usize - BLOCK_BYTES;
        tree.bytes()[at..at + bytes as usize].to_vec()
    };
    let (wanted, here) = (of(&new, at, bytes), of(&old, old_at, old_bytes));
    let good = outline::of(&wanted);
    assert!(good.len() as u64 <= outline::most_bytes(bytes));
    let mut said = good.clone();
    change(script, &mut said);
    let mut known = Known::default();
    known.add(0, &here);
    let mut file = vec![1; root.tree_bytes as usize];
    let list = &mut file[at as usize..(at + bytes) as usize];
    let missing = known.fill(&said, list, |at, digests| {
        digests.copy_from_slice(&here[at as usize..at as usize + digests.len()]);
        true
    });
    let mut last = 0;
    for part in missing {
        assert!(part.start >= last && part.start < part.end && part.end <= list.len(), "{part:?}");
        last = part.end;
        list[part.clone()].copy_from_slice(&wanted[part]);
    }
    let same = *list == *wanted;
    assert!(same || said != good, "an outline that nobody changed led to another list");
    assert_eq!(verity::complete(&mut file, &root), same);
    if same {
        assert!(file[BLOCK_BYTES..] == *new.bytes() && file[..BLOCK_BYTES] == verity::superblock(&root));
    }
}

fn superblock(bytes: &[u8]) {
    let Some((data_blocks, salt, uuid)) = verity::read_superblock(bytes) else { return };
    assert!((2..=verity::MAX_DATA_BLOCKS).contains(&data_blocks));
    let root = RootImage {
        data_bytes: data_blocks * BLOCK_BYTES as u64,
        data_blocks,
        tree_bytes: verity::tree_bytes(data_blocks),
        hash: Digest([0; 32]),
        salt,
        uuid: Guid(uuid),
    };
    // Behind the salt there may be anything: nobody reads it.
    assert_eq!(verity::superblock(&root)[..120], bytes[..120]);
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let tree = |blocks: u16, said: u16, step: u8, lie: u8, changes: &[u8]| {
        [&[TREE][..], &(blocks - 2).to_be_bytes(), &(said - 2).to_be_bytes(), &[step, lie], changes].concat()
    };
    let mut seeds = Vec::new();
    for blocks in [2, 127, 128, 129, 300, 128 * 128, 128 * 128 + 1] {
        seeds.push(tree(blocks, 200, 1, 0, &[]));
    }
    seeds.push(tree(300, 299, 3, 1, &[]));
    seeds.push(tree(300, 600, 3, 1, &[]));
    seeds.push(tree(300, 10, 0, 0, &[0, 0, 0x10, 5, 1, 0xff]));
    seeds.push(tree(300, 10, 0, 0, &[0, 0, 0x40, 0, 0]));
    let outline = |blocks: u16, others: u16, step: u8, changes: &[u8]| {
        [&[OUTLINE][..], &(blocks - 2).to_be_bytes(), &(others - 2).to_be_bytes(), &[step], changes].concat()
    };
    for (blocks, others) in [(300, 300), (300, 200), (128 * 128 + 1, 128 * 128), (2, 3)] {
        seeds.push(outline(blocks, others, 1, &[]));
    }
    seeds.push(outline(300, 300, 3, &[]));
    seeds.push(outline(300, 300, 1, &[0, 0, 0, 3, 1, 7]));
    seeds.push(outline(300, 300, 1, &[0, 0, 0, 7, 1, 0]));
    seeds.push(outline(300, 300, 1, &[0, 0, 0, 8, 0]));
    seeds.push([&[LIST, 0x20, 1][..], &[]].concat());
    seeds.push(vec![LIST, 0, 0]);
    seeds.push(vec![LIST, 0x30, 0, 0, 0, 0, 33, 1, 7]);
    let (root, _) = image(300, 1);
    seeds.push([&[SUPERBLOCK][..], &verity::superblock(&root)[..128]].concat());
    seeds.push([&[SUPERBLOCK][..], &verity::superblock(&root)[..60]].concat());
    seeds
}
