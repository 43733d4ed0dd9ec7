// SPDX-License-Identifier: Apache-2.0
//! A part of a medium as a stream of its own, whose changes stay in memory until they are carried out in a chosen order:
//! what stands between the FAT library, which writes in any order, and a stick that may be pulled.

use std::{
    collections::BTreeMap,
    io::{self, Read, Seek, SeekFrom, Write},
};

use fatfs::{Date, DateTime, Time, TimeProvider};

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

/// What a written file is dated; UTC, for FAT knows no zones. A clock that was never set gives the first day that FAT knows.
#[derive(Debug)]
pub(super) struct Clock(pub(super) fn() -> u64);

impl Clock {
    /// The machine's own.
    pub(super) const SYSTEM: &'static Self = &Self(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |since| since.as_secs())
    });
}

impl TimeProvider for Clock {
    fn get_current_date(&self) -> Date {
        self.get_current_date_time().date
    }

    fn get_current_date_time(&self) -> DateTime {
        date_time((self.0)())
    }
}

/// Seconds since 1970 as FAT has them: from 1980 to 2107.
fn date_time(unix: u64) -> DateTime {
    const DAY: u64 = 86_400;
    const FIRST: u64 = 3_652 * DAY;
    const LAST: u64 = 50_403 * DAY - 1;
    let unix = unix.clamp(FIRST, LAST);
    let is_leap = |year: u64| year.is_multiple_of(4) && year != 2100;
    let (mut year, mut days) = (1970, unix / DAY);
    let mut take = |count: u64| days.checked_sub(count).map(|left| days = left).is_some();
    while take(365 + u64::from(is_leap(year))) {
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if !take(length) {
            break;
        }
        month += 1;
    }
    let second = unix % DAY;
    DateTime {
        date: Date { year: year as u16, month, day: days as u16 + 1 },
        time: Time {
            hour: (second / 3600) as u16,
            min: (second / 60 % 60) as u16,
            sec: (second % 60) as u16,
            millis: 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(unix: u64) -> String {
        let DateTime { date, time } = date_time(unix);
        let (year, month, day) = (date.year, date.month, date.day);
        format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02}", time.hour, time.min, time.sec)
    }

    #[test]
    fn dates_are_the_calendars_within_what_fat_can_say() {
        for (unix, wanted) in [
            (0, "1980-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_767_225_599, "2025-12-31 23:59:59"),
            (1_767_225_600, "2026-01-01 00:00:00"),
            (1_795_737_645, "2026-11-27 00:00:45"),
            (4_107_542_399, "2100-02-28 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (u64::MAX, "2107-12-31 23:59:59"),
        ] {
            assert_eq!(shown(unix), wanted);
        }
    }
}
