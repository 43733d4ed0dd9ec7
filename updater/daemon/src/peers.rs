// SPDX-License-Identifier: Apache-2.0
//! A release from members of the cluster: whatever they give is checked here before it is used, and whoever gives what is
//! wrong is not asked again.

use std::{
    io,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use cluster_updater_core::{
    BlockSource, outline,
    serving::Range,
    sources::{Fault, Holder, RANGE, Sources, Turn},
    verity::{BLOCK_BYTES, Tree},
};
use tracing::warn;

use crate::{
    folder::Part,
    releases::seam::{FetchError, Link, Place},
    writer::are_blocks,
};

/// The time since this program first asked: what members are measured by. A wrong clock does not change it.
pub(crate) fn now() -> Duration {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed()
}

/// Parts that are asked for at once: a disk that needs 100 ms for each is in time for [`cluster_updater_core::sources::STALL`].
const PARTS: usize = 32;

/// A file's name and its content.
pub type Named = (String, Vec<u8>);

/// Takes a release from one member at a time.
pub struct Taking<'a> {
    /// To `cluster-releases`, which sees the network.
    pub link: &'a mut Link,
    /// Who holds the release.
    pub sources: &'a mut Sources,
    /// Is told whenever something came or a source failed.
    pub told: &'a dyn Fn(&Sources),
}

impl Taking<'_> {
    /// Fills `buffer` with parts of a file, one behind the other, from whoever gives what is `right`; it is asked with each part's
    /// offset and bytes.
    ///
    /// # Errors
    /// When nobody does.
    pub fn parts(
        &mut self,
        name: &str,
        ranges: &[Range],
        buffer: &mut [u8],
        right: impl Fn(u64, &[u8]) -> bool,
    ) -> Result<()> {
        let (mut ranges, mut buffer) = (ranges, buffer);
        while !ranges.is_empty() {
            let (now, later) = at_once(ranges);
            let (filled, rest) = buffer.split_at_mut(usize::try_from(bytes_of(now))?);
            self.parts_at_once(name, now, filled, &right)?;
            (ranges, buffer) = (later, rest);
        }
        Ok(())
    }

    fn parts_at_once(
        &mut self,
        name: &str,
        ranges: &[Range],
        buffer: &mut [u8],
        right: impl Fn(u64, &[u8]) -> bool,
    ) -> Result<()> {
        loop {
            let holder = self.whom()?;
            let begun = Instant::now();
            self.link.limit(self.sources.time_for(buffer.len() as u64, now()));
            if let Err(error) = self.link.get(place(&holder), name, ranges, buffer) {
                self.judge(&holder, error)?;
                continue;
            }
            let mut rest = &*buffer;
            let wrong = ranges.iter().find(|range| {
                let (part, later) = rest.split_at(range.bytes as usize);
                rest = later;
                !right(range.first, part)
            });
            let Some(range) = wrong else {
                self.delivered(&holder, buffer.len() as u64, begun);
                return Ok(());
            };
            let what = format!("`{name}` from byte {} on is not what the signed manifest names", range.first);
            self.failed(&holder, Fault::Lied, &what);
        }
    }

    /// Parts of a file, one behind the other, that nobody can judge yet. None when they are not here at `until`, or whoever is asked
    /// has misled before.
    ///
    /// # Errors
    /// When nobody is left to ask.
    pub fn unproven_parts(
        &mut self,
        name: &str,
        ranges: &[Range],
        until: Duration,
    ) -> Result<Option<Vec<u8>>> {
        let (mut ranges, mut all) = (ranges, Vec::new());
        while !ranges.is_empty() {
            let (now, later) = at_once(ranges);
            let bytes = bytes_of(now);
            let got = self.unproven(bytes, until, |link, place| {
                let mut got = vec![0; bytes as usize];
                link.get(place, name, now, &mut got).map(|()| got)
            })?;
            let Some(got) = got else { return Ok(None) };
            all.extend(got);
            ranges = later;
        }
        Ok(Some(all))
    }

    /// The outline of a part of a file. None when it is not here at `until`, or whoever is asked has misled before.
    ///
    /// # Errors
    /// When nobody is left to ask.
    pub fn outline(&mut self, name: &str, range: Range, until: Duration) -> Result<Option<Vec<u8>>> {
        let most = outline::most_bytes(range.bytes);
        self.unproven(most, until, |link, place| link.outline(place, name, range))
    }

    /// What nobody can judge yet, from whoever gives it and has not misled before. What was begun before `until` goes on.
    fn unproven(
        &mut self,
        most_bytes: u64,
        until: Duration,
        mut ask: impl FnMut(&mut Link, Place) -> Result<Vec<u8>, FetchError>,
    ) -> Result<Option<Vec<u8>>> {
        while now() < until {
            let holder = self.whom()?;
            if !self.sources.trust() {
                break;
            }
            let begun = Instant::now();
            self.link.limit(self.sources.time_for(most_bytes, now()));
            match ask(self.link, place(&holder)) {
                Ok(got) => {
                    let fault = self.sources.received(got.len() as u64, begun.elapsed(), now());
                    self.came(&holder, fault);
                    return Ok(Some(got));
                }
                Err(error) => self.judge(&holder, error)?,
            }
        }
        Ok(None)
    }

    /// Whether all that could not be judged before is right.
    pub fn judged(&mut self, are_right: bool) {
        self.sources.judged(are_right);
        (self.told)(self.sources);
    }

    /// A whole file that can only be judged as a whole, from whoever gives one that is `right`.
    ///
    /// # Errors
    /// When nobody does.
    pub fn whole(&mut self, name: &str, bytes: u64, right: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let mut file = vec![0; usize::try_from(bytes)?];
        'sources: loop {
            let holder = self.whom()?;
            let begun = Instant::now();
            // For all of it: each part by itself could be given as slowly as it may.
            let limit = self.sources.time_for(bytes, now());
            let mut offset = 0;
            for range in file.chunks_mut(RANGE) {
                let left = limit.saturating_sub(begun.elapsed());
                if left.is_zero() {
                    let what = format!("{offset} of {bytes} bytes of `{name}` in {} s", limit.as_secs());
                    self.failed(&holder, Fault::Slow, &what);
                    continue 'sources;
                }
                self.link.limit(left.min(self.sources.time_for(range.len() as u64, now())));
                let part = Range { first: offset, bytes: range.len() as u64 };
                if let Err(error) = self.link.get(place(&holder), name, &[part], range) {
                    self.judge(&holder, error)?;
                    continue 'sources;
                }
                offset += range.len() as u64;
            }
            if right(&file) {
                self.delivered(&holder, bytes, begun);
                return Ok(file);
            }
            self.failed(&holder, Fault::Lied, &format!("`{name}` is not what the signed manifest names"));
        }
    }

    /// Small files that belong together, all from one member, which has little time for all of them: nothing is known yet of
    /// what it announces.
    ///
    /// # Errors
    /// When nobody is left to ask, or it is not the member's fault that it does not give them.
    pub fn small_files(&mut self, limit: impl Fn(&str) -> Option<usize>) -> Result<Option<Vec<Named>>> {
        let holder = self.whom()?;
        let begun = Instant::now();
        match small_files(self.link, self.sources, place(&holder), &limit) {
            Ok(files) => {
                let bytes = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
                self.delivered(&holder, bytes, begun);
                Ok(Some(files))
            }
            Err(error) => self.judge(&holder, error).map(|()| None),
        }
    }

    /// What the current member gave is wrong as a whole.
    ///
    /// # Errors
    /// When there is none.
    pub fn lied(&mut self, reason: &str) -> Result<()> {
        let holder = self.sources.current()?.clone();
        self.failed(&holder, Fault::Lied, reason);
        Ok(())
    }

    /// Whom to ask. Where each has just failed, this waits: there is nothing that would tell when one is ready again.
    fn whom(&mut self) -> Result<Holder> {
        loop {
            match self.sources.turn(now())? {
                Turn::Ask(holder) => return Ok(holder.clone()),
                Turn::Wait(time) => thread::sleep(time),
            }
        }
    }

    fn judge(&mut self, holder: &Holder, error: FetchError) -> Result<()> {
        match error {
            FetchError::Source(fault, reason) => self.failed(holder, fault, &reason),
            seam @ FetchError::Seam(_) => bail!(seam),
        }
        Ok(())
    }

    fn delivered(&mut self, holder: &Holder, bytes: u64, begun: Instant) {
        let fault = self.sources.delivered(bytes, begun.elapsed(), now());
        self.came(holder, fault);
    }

    fn came(&mut self, holder: &Holder, fault: Option<Fault>) {
        if let Some(fault) = fault {
            warn!(member = holder.name, address = %holder.address, %fault, "another member is asked");
        }
        (self.told)(self.sources);
    }

    fn failed(&mut self, holder: &Holder, fault: Fault, reason: &str) {
        // Without chance it is what it would be with the least of it.
        let chance = getrandom::u64().unwrap_or_default();
        self.sources.failed(fault, reason, now(), chance);
        warn!(member = holder.name, address = %holder.address, %fault, reason, "a member did not give what it holds");
        (self.told)(self.sources);
    }
}

fn small_files(
    link: &mut Link,
    sources: &Sources,
    place: Place,
    limit: &dyn Fn(&str) -> Option<usize>,
) -> Result<Vec<Named>, FetchError> {
    let begun = Instant::now();
    link.limit(sources.time_for_list());
    let listed = link.list(place)?.into_iter().filter_map(|(name, bytes)| {
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes > 0)?;
        (bytes <= limit(&name)?).then_some((name, bytes))
    });
    let listed: Vec<(String, usize)> = listed.collect();
    let total: u64 = listed.iter().map(|(_, bytes)| *bytes as u64).sum();
    let time = sources.time_for_small_files(total);
    let file = |(name, bytes): (String, usize)| {
        let left = time.saturating_sub(begun.elapsed());
        if left.is_zero() {
            let what = format!("manifest and root documents did not come within {} s", time.as_secs());
            return Err(FetchError::Source(Fault::Slow, what));
        }
        link.limit(left);
        let mut buffer = vec![0; bytes];
        link.get(place, &name, &[Range { first: 0, bytes: bytes as u64 }], &mut buffer)?;
        Ok((name, buffer))
    };
    listed.into_iter().map(file).collect()
}

/// The first of these parts that are asked for at once; at least one.
fn at_once(ranges: &[Range]) -> (&[Range], &[Range]) {
    let mut bytes = 0;
    let fits = ranges.iter().take(PARTS).take_while(|range| {
        bytes += range.bytes;
        bytes <= RANGE as u64
    });
    let count = fits.count().max(1);
    ranges.split_at(count.min(ranges.len()))
}

fn bytes_of(ranges: &[Range]) -> u64 {
    ranges.iter().map(|range| range.bytes).sum()
}

/// A part of a file in parts that can be asked for at once.
pub(crate) fn in_ranges(first: u64, bytes: u64) -> impl Iterator<Item = Range> {
    let range = move |at: u64| Range { first: first + at, bytes: (bytes - at).min(RANGE as u64) };
    (0..bytes).step_by(RANGE).map(range)
}

fn place(holder: &Holder) -> Place {
    Place { address: holder.address, prefix: holder.prefix }
}

/// The root image from members, the UKI from a file that is here already.
pub struct PeerSource<'a> {
    /// Where from.
    pub taking: Taking<'a>,
    /// The root image's file name.
    pub root: String,
    /// What its blocks must be.
    pub tree: &'a Tree,
    /// The UKI.
    pub uki: Part,
}

impl BlockSource for PeerSource<'_> {
    fn root(&mut self, runs: &[(u64, u64)], buffer: &mut [u8]) -> io::Result<()> {
        let block = BLOCK_BYTES as u64;
        let ranges: Vec<Range> =
            runs.iter().flat_map(|(first, blocks)| in_ranges(first * block, blocks * block)).collect();
        let tree = self.tree;
        self.taking
            .parts(&self.root, &ranges, buffer, |at, bytes| are_blocks(tree, at / block, bytes))
            .map_err(|error| io::Error::other(format!("{error:#}")))
    }

    fn uki(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.uki.read_exact_at(buffer, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_at_once_is_answered_before_it_looks_like_a_stall() {
        let parts = |count: usize, bytes: u64| vec![Range { first: 0, bytes }; count];
        let counts = |parts: &[Range]| (at_once(parts).0.len(), at_once(parts).1.len());
        assert_eq!(counts(&parts(100, 4096)), (32, 68));
        assert_eq!(counts(&parts(100, 128 << 10)), (2, 98));
        assert_eq!(counts(&parts(3, 1 << 20)), (1, 2));
        assert_eq!(counts(&parts(5, 1)), (5, 0));
    }
}
