// SPDX-License-Identifier: Apache-2.0
//! A release from members of the cluster: whatever they give is checked here before it is used, and whoever gives what is
//! wrong is not asked again.

use std::{io, time::Instant};

use anyhow::{Result, bail};
use cluster_updater_core::{
    BlockSource,
    sources::{Fault, Holder, RANGE, Sources},
    verity::{BLOCK_BYTES, Tree},
};
use tracing::warn;

use crate::{
    folder::Part,
    releases::seam::{FetchError, Link, Place},
    writer::are_blocks,
};

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
    /// Fills `buffer` from `offset` of a file, from whoever gives what is `right`.
    ///
    /// # Errors
    /// When nobody does.
    pub fn part(
        &mut self,
        name: &str,
        offset: u64,
        buffer: &mut [u8],
        right: impl Fn(&[u8]) -> bool,
    ) -> Result<()> {
        loop {
            let holder = self.sources.current()?.clone();
            let begun = Instant::now();
            match self.link.get(place(&holder), name, offset, buffer) {
                Ok(()) if right(buffer) => {
                    self.delivered(&holder, buffer.len() as u64, begun);
                    return Ok(());
                }
                Ok(()) => {
                    let what =
                        format!("`{name}` from byte {offset} on is not what the signed manifest names");
                    self.failed(&holder, Fault::Lied, &what);
                }
                Err(error) => self.judge(&holder, error)?,
            }
        }
    }

    /// A whole file that can only be judged as a whole, from whoever gives one that is `right`.
    ///
    /// # Errors
    /// When nobody does.
    pub fn whole(&mut self, name: &str, bytes: u64, right: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let mut file = vec![0; usize::try_from(bytes)?];
        'sources: loop {
            let holder = self.sources.current()?.clone();
            let begun = Instant::now();
            let mut offset = 0;
            for range in file.chunks_mut(RANGE) {
                if let Err(error) = self.link.get(place(&holder), name, offset, range) {
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

    /// Something that only one member can be asked for.
    ///
    /// # Errors
    /// When it is not this member's fault that it does not give it.
    pub fn from_one<T>(
        &mut self,
        ask: impl FnOnce(&mut Link, Place) -> Result<T, FetchError>,
    ) -> Result<Option<T>> {
        let holder = self.sources.current()?.clone();
        match ask(self.link, place(&holder)) {
            Ok(got) => Ok(Some(got)),
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

    fn judge(&mut self, holder: &Holder, error: FetchError) -> Result<()> {
        match error {
            FetchError::Source(fault, reason) => self.failed(holder, fault, &reason),
            seam @ FetchError::Seam(_) => bail!(seam),
        }
        Ok(())
    }

    fn delivered(&mut self, holder: &Holder, bytes: u64, begun: Instant) {
        if let Some(fault) = self.sources.delivered(bytes, begun.elapsed()) {
            warn!(member = holder.name, address = %holder.address, %fault, "another member is asked");
        }
        (self.told)(self.sources);
    }

    fn failed(&mut self, holder: &Holder, fault: Fault, reason: &str) {
        self.sources.failed(fault);
        warn!(member = holder.name, address = %holder.address, %fault, reason, "a member did not give what it holds");
        (self.told)(self.sources);
    }
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
    fn root(&mut self, first: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut block = first;
        for range in buffer.chunks_mut(RANGE) {
            let blocks = (range.len() / BLOCK_BYTES) as u64;
            let tree = self.tree;
            self.taking
                .part(&self.root, block * BLOCK_BYTES as u64, range, |bytes| are_blocks(tree, block, bytes))
                .map_err(|error| io::Error::other(format!("{error:#}")))?;
            block += blocks;
        }
        Ok(())
    }

    fn uki(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.uki.read_exact_at(buffer, offset)
    }
}
