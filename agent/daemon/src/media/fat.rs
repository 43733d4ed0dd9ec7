// SPDX-License-Identifier: Apache-2.0
//! A part of a medium as a stream of its own, whose changes stay in memory until they are carried out in a chosen order:
//! what stands between the FAT library, which writes in any order, and a stick that may be pulled.

use std::{
    collections::BTreeMap,
    io::{self, Read, Seek, SeekFrom, Write},
};

use super::Storage;

/// A power cut leaves each of these whole: no medium has smaller sectors.
const SECTOR: u64 = 512;
/// A damaged FAT may lead in circles; finding and writing one small file takes a fraction of this many steps.
const MAX_STEPS: u32 = 4_000_000;

/// A window of a medium, with pending changes.
pub(super) struct Window<'a, S> {
    storage: &'a S,
    start: u64,
    length: u64,
    position: u64,
    cache: BTreeMap<u64, Sector>,
    steps: u32,
}

struct Sector {
    bytes: [u8; SECTOR as usize],
    changed: bool,
}

impl<'a, S: Storage> Window<'a, S> {
    /// `length` bytes of `storage` from `start`.
    pub(super) fn new(storage: &'a S, start: u64, length: u64) -> Self {
        Self { storage, start, length, position: 0, cache: BTreeMap::new(), steps: 0 }
    }

    /// Where the allocation tables end and directories and files begin (the FAT specification's BIOS parameter block).
    pub(super) fn end_of_tables(&mut self) -> io::Result<u64> {
        let boot = self.sector(0)?.bytes;
        let u16_at = |at: usize| u64::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let per_table = match u16_at(22) {
            0 => u16_at(36) | u16_at(38) << 16,
            small => small,
        };
        Ok(u16_at(11) * (u16_at(14) + u64::from(boot[16]) * per_table))
    }

    /// Writes the changed sectors that lie `from` or behind, in order, and returns when the medium has them.
    pub(super) fn commit_from(&mut self, from: u64) -> io::Result<()> {
        for (number, sector) in self.cache.range_mut(from.div_ceil(SECTOR)..) {
            if sector.changed {
                self.storage.write_at(&sector.bytes, self.start + number * SECTOR)?;
                sector.changed = false;
            }
        }
        self.storage.flush()
    }

    /// The same for those before `end`.
    pub(super) fn commit_before(&mut self, end: u64) -> io::Result<()> {
        for (number, sector) in self.cache.range_mut(..end.div_ceil(SECTOR)) {
            if sector.changed {
                self.storage.write_at(&sector.bytes, self.start + number * SECTOR)?;
                sector.changed = false;
            }
        }
        self.storage.flush()
    }

    fn sector(&mut self, number: u64) -> io::Result<&mut Sector> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(io::Error::other("it leads in circles"));
        }
        match self.cache.entry(number) {
            std::collections::btree_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let mut bytes = [0; SECTOR as usize];
                self.storage.read_at(&mut bytes, self.start + number * SECTOR)?;
                Ok(entry.insert(Sector { bytes, changed: false }))
            }
        }
    }

    /// Runs `with` on the part of a sector that lies at the position, at most `wanted` bytes of it.
    fn at_position(
        &mut self,
        wanted: usize,
        with: impl FnOnce(&mut Sector, std::ops::Range<usize>),
    ) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.position);
        let within = self.position % SECTOR;
        let count = (SECTOR - within).min(left).min(wanted as u64);
        if count == 0 {
            return Ok(0);
        }
        let within = within as usize..(within + count) as usize;
        with(self.sector(self.position / SECTOR)?, within);
        self.position += count;
        Ok(count as usize)
    }
}

impl<S: Storage> Read for Window<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.at_position(buffer.len(), |sector, within| {
            buffer[..within.len()].copy_from_slice(&sector.bytes[within]);
        })
    }
}

impl<S: Storage> Write for Window<'_, S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.at_position(buffer.len(), |sector, within| {
            let new = &buffer[..within.len()];
            if sector.bytes[within.clone()] != *new {
                sector.bytes[within].copy_from_slice(new);
                sector.changed = true;
            }
        })
    }

    /// Nothing: the owner says when and in what order.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S> Seek for Window<'_, S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
