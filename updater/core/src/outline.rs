// SPDX-License-Identifier: Apache-2.0
//! What a list of digests looks like, in a fiftieth of its size: the leaves of a hash tree or the block list of a UKI, cut into
//! chunks. A chunk ends where a digest begins with a small number, so that a list into which something was inserted is cut at
//! the same digests again. Whoever has an older list finds the chunks that it has already, wherever they lie.
//!
//! Nobody signs an outline. It only says where to look: the list that is put together is checked as a whole.

use std::{
    collections::BTreeMap,
    ops::{ControlFlow, Range},
};

use crate::digest::Digest;

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 32;
/// Bytes of a chunk in an outline: how many digests, and the begin of the digest of these.
pub const CHUNK_BYTES: usize = 1 + ID_BYTES;
/// Two chunks of an image are taken for each other once in a million updates; the list is fetched as a whole then.
const ID_BYTES: usize = 6;
/// A digest whose first byte is less ends a chunk: one in 32.
const END: u8 = 8;
/// Most digests of a chunk: equal ones in a row may have no end.
const MOST: usize = 128;
/// Missing parts that lie nearer to each other are one: digests that are here cost less than a part by itself does, and an outline
/// cannot make thousands of requests of a list.
const NEAR: usize = 4 << 10;

/// Which chunk it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Id([u8; ID_BYTES]);

impl Id {
    fn of(digests: &[u8]) -> Self {
        let digest = Digest::of(digests);
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&digest.0[..ID_BYTES]);
        Self(id)
    }
}

/// The chunks of a list, one behind the other. Bytes after the last whole digest are none of its.
fn chunks(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (digests, _) = list.as_chunks::<DIGEST_BYTES>();
    let mut count = 0;
    digests
        .chunk_by(move |digest, _| {
            count += 1;
            let ends = digest[0] < END || count == MOST;
            if ends {
                count = 0;
            }
            !ends
        })
        .map(|chunk| chunk.as_flattened())
}

/// The outline of a list of digests, or of a part of one.
#[must_use]
pub fn of(list: &[u8]) -> Vec<u8> {
    let mut outline = Vec::new();
    for chunk in chunks(list) {
        // MOST fits a byte.
        outline.push((chunk.len() / DIGEST_BYTES) as u8);
        outline.extend(Id::of(chunk).0);
    }
    outline
}

/// The longest outline of so many bytes of a list.
#[must_use]
pub fn most_bytes(list: u64) -> u64 {
    list / DIGEST_BYTES as u64 * CHUNK_BYTES as u64
}

/// Where the chunks of a list lie that is here.
#[derive(Clone, Debug, Default)]
pub struct Known(BTreeMap<Id, Range<u64>>);

impl Known {
    /// Adds the chunks of a part of a list; it begins at byte `at`. Parts may be cut anywhere: a chunk across two is not known.
    pub fn add(&mut self, at: u64, list: &[u8]) {
        let mut at = at;
        for chunk in chunks(list) {
            let end = at + chunk.len() as u64;
            self.0.entry(Id::of(chunk)).or_insert(at..end);
            at = end;
        }
    }

    /// Fills `list` with what is here of it, which `read` reads from an offset and may fail to. Returns which parts of `list` are
    /// still missing, in order and at least 4 KiB apart; all of it where the outline is none of such a list.
    pub fn fill(
        &self,
        outline: &[u8],
        list: &mut [u8],
        mut read: impl FnMut(u64, &mut [u8]) -> bool,
    ) -> Vec<Range<usize>> {
        let mut missing: Vec<Range<usize>> = Vec::new();
        let mut at = 0;
        let (chunks, rest) = outline.as_chunks::<CHUNK_BYTES>();
        let ended = chunks.iter().try_for_each(|[digests, id @ ..]| {
            let end = at + usize::from(*digests) * DIGEST_BYTES;
            let Some(chunk) = list.get_mut(at..end).filter(|chunk| !chunk.is_empty()) else {
                return ControlFlow::Break(());
            };
            let id = Id(*id);
            let here = self.0.get(&id).filter(|here| here.end - here.start == chunk.len() as u64);
            // Read again: what is known of it may have been damaged since.
            if !here.is_some_and(|here| read(here.start, chunk) && Id::of(chunk) == id) {
                match missing.last_mut() {
                    Some(last) if at - last.end < NEAR => last.end = end,
                    _ => missing.push(at..end),
                }
            }
            at = end;
            ControlFlow::Continue(())
        });
        if ended.is_break() || !rest.is_empty() || at != list.len() {
            missing.clear();
            missing.extend((!list.is_empty()).then_some(0..list.len()));
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of so many digests that look random.
    fn list(seed: u32, digests: u32) -> Vec<u8> {
        (0..digests).flat_map(|at| Digest::of(&[seed.to_le_bytes(), at.to_le_bytes()].concat()).0).collect()
    }

    fn fill(old: &[u8], outline: &[u8], bytes: usize) -> (Vec<u8>, Vec<Range<usize>>) {
        let mut known = Known::default();
        known.add(0, old);
        let mut new = vec![0; bytes];
        let missing = known.fill(outline, &mut new, |at, chunk| {
            chunk.copy_from_slice(&old[at as usize..at as usize + chunk.len()]);
            true
        });
        (new, missing)
    }

    #[test]
    fn what_is_inserted_and_removed_is_all_that_is_missing() {
        let old = list(1, 5000);
        let new = [&old[..100 * 32], &list(2, 3), &old[100 * 32..3000 * 32], &old[3100 * 32..]].concat();
        let outline = of(&new);
        assert!(outline.len() as u64 <= most_bytes(new.len() as u64) && outline.len() < new.len() / 50);
        let (filled, missing) = fill(&old, &outline, new.len());
        let bytes: usize = missing.iter().map(Range::len).sum();
        // A chunk at each of the two places, which may be four times as long as most.
        assert!(!missing.is_empty() && bytes <= 2 * MOST * 32, "{missing:?}");
        let mut at = 0;
        for part in missing.iter().chain([&(new.len()..new.len())]) {
            assert_eq!(filled[at..part.start], new[at..part.start]);
            at = part.end;
        }
    }

    #[test]
    fn an_outline_that_alternates_does_not_scatter_what_is_missing() {
        let old = list(1, 300);
        let first = chunks(&old).next().unwrap();
        let known = [&[(first.len() / 32) as u8][..], &Id::of(first).0].concat();
        // One digest that nobody has, then a chunk that is here, again and again.
        let twice = [&[1, 0, 0, 0, 0, 0, 0][..], &known].concat();
        let count = (1 << 20) / (32 + first.len());
        let (_, missing) = fill(&old, &twice.repeat(count), count * (32 + first.len()));
        assert!(missing.len() <= (1 << 20) / NEAR, "{} parts", missing.len());
        assert!(missing.windows(2).all(|pair| pair[1].start - pair[0].end >= NEAR));
    }

    #[test]
    fn equal_digests_without_an_end_are_cut_all_the_same() {
        let equal = [0xff; 32].repeat(1000);
        assert_eq!(of(&equal).len(), 1000_usize.div_ceil(MOST) * CHUNK_BYTES);
        assert_eq!(fill(&equal, &of(&equal), equal.len()), (equal.clone(), Vec::new()));
    }

    #[test]
    fn an_outline_that_is_none_makes_all_missing() {
        let old = list(1, 300);
        let good = of(&old);
        let mut none = good.clone();
        none[0] = 0;
        for bad in [&good[..good.len() - 1], &good[CHUNK_BYTES..], &[&good[..], &good].concat(), &none, &[]] {
            assert!(fill(&old, bad, old.len()).1.into_iter().eq(std::iter::once(0..old.len())));
        }
    }

    #[test]
    fn what_cannot_be_read_or_was_damaged_is_missing() {
        let old = list(1, 300);
        let mut known = Known::default();
        known.add(0, &old);
        let mut new = vec![0; old.len()];
        assert!(known.fill(&of(&old), &mut new, |_, _| false).into_iter().eq(std::iter::once(0..old.len())));
        assert!(known.fill(&of(&old), &mut new, |_, _| true).into_iter().eq(std::iter::once(0..old.len())));
    }
}
