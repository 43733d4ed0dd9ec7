// SPDX-License-Identifier: Apache-2.0
//! Which cuts are tried, and the disk after each.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;

use anyhow::Result;

use super::judge::esp_range;
use super::{Medium, SECTOR, Write, WriteLog};
use crate::random::SplitMix64;

/// Sectors at either end of a disk that belong to its partition table: the protective one, a header, 16 KiB of entries.
const TABLE_SECTORS: u64 = 34;

/// Writes of tables and folders of a FAT are not longer.
const METADATA: u64 = 64 << 10;

/// The power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// When this many requests of the log were made.
    pub after: usize,
    /// What of them is not on the medium.
    pub lost: Lost,
}

/// What a cut takes away. What was written before the last flush is never lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Nothing: every write is on the medium.
    Nothing,
    /// Of the last write all but its first bytes.
    Tail(u64),
    /// Of the last write its first bytes: the rest came first.
    Head(u64),
    /// All that was not flushed, except for the last write.
    AllButLast,
    /// Any part of what was not flushed: of each write all, nothing, or some of its sectors, as this seed has it.
    Random(u64),
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after write {}", self.after)?;
        match self.lost {
            Lost::Nothing => Ok(()),
            Lost::Tail(bytes) => write!(f, ", of which only the first {bytes} bytes are there"),
            Lost::Head(bytes) => write!(f, ", of which the first {bytes} bytes are not there"),
            Lost::AllButLast => write!(f, ", without the others since the last flush"),
            Lost::Random(seed) => write!(f, ", with random losses since the last flush (seed {seed})"),
        }
    }
}

/// The parts of a disk that firmware and boot loader read: both partition tables, and the ESP.
pub fn boot_regions(medium: &Medium<'_>) -> Result<[Range<u64>; 3]> {
    let table = TABLE_SECTORS * SECTOR;
    Ok([0..table, medium.bytes() - table..medium.bytes(), esp_range(medium)?])
}

/// The cuts to try between two points of a log: around every write to `regions` (the first two are partition tables, cut at
/// every sector), and `random` ones anywhere.
#[must_use]
pub fn cuts(
    log: &WriteLog,
    between: Range<usize>,
    regions: &[Range<u64>; 3],
    random: usize,
    seed: u64,
) -> Vec<Cut> {
    let mut rng = SplitMix64(seed);
    let mut cuts = Vec::new();
    let mut unflushed = false;
    for after in between.start + 1..=between.end {
        let write = log.writes()[after - 1];
        let mut cut = |lost| cuts.push(Cut { after, lost });
        if write.is_flush() {
            if unflushed {
                cut(Lost::Nothing);
            }
            unflushed = false;
            continue;
        }
        let touches = |region: &Range<u64>| write.at < region.end && region.start < write.at + write.bytes;
        if !regions.iter().any(touches) {
            continue;
        }
        unflushed = true;
        cut(Lost::Nothing);
        cut(Lost::AllButLast);
        cut(Lost::Random(rng.next()));
        for table in regions[..2].iter().filter(|region| touches(region)) {
            // From the first byte of the table in this write to its last.
            let begin = table.start.max(write.at) - write.at;
            let end = table.end.min(write.at + write.bytes) - write.at;
            for at in (begin..end).step_by(SECTOR as usize).skip(1) {
                cut(Lost::Tail(at));
                cut(Lost::Head(at));
            }
            // In the midst of a sector, which drives promise not to do: the first one is the primary's header or the one before.
            for at in [begin + SECTOR / 2, begin + SECTOR + 48, end - SECTOR / 2] {
                if at < write.bytes {
                    cut(Lost::Tail(at));
                }
            }
        }
        // Allocation tables and folders; a torn piece of a large file is no other case than one that is not there.
        if touches(&regions[2]) && (SECTOR + 1..=METADATA).contains(&write.bytes) {
            let at = rng.below(write.bytes / SECTOR - 1) + 1;
            cut(Lost::Tail(at * SECTOR));
            cut(Lost::Head(at * SECTOR));
        }
    }
    let count = between.len() as u64;
    for _ in 0..if count == 0 { 0 } else { random } {
        let after = between.start + 1 + rng.below(count) as usize;
        cuts.push(Cut { after, lost: Lost::Random(rng.next()) });
    }
    cuts.sort_by_key(|cut| cut.after);
    cuts
}

/// A disk whose log is replayed, cut after cut.
pub struct Replay<'a> {
    log: &'a WriteLog,
    /// What survives whatever happens.
    flushed: Medium<'a>,
    /// Requests that are in there.
    done: usize,
}

impl<'a> Replay<'a> {
    /// The disk of `bytes` bytes whose log began when it held `base`.
    pub fn new(base: &'a File, bytes: u64, log: &'a WriteLog) -> io::Result<Self> {
        Ok(Self { log, flushed: Medium::new(base, bytes, log)?, done: 0 })
    }

    /// The disk after `cut`. Cuts come in the order of the log.
    #[must_use]
    pub fn state(&mut self, cut: &Cut) -> Medium<'a> {
        let writes = &self.log.writes()[..cut.after];
        let flushed = writes.iter().rposition(Write::is_flush).map_or(0, |at| at + 1).max(self.done);
        for write in &writes[self.done.min(flushed)..flushed] {
            self.flushed.put(write, 0..write.bytes);
        }
        self.done = flushed;
        let mut medium = self.flushed.clone();
        let pending = &writes[flushed.min(cut.after)..];
        let mut rng = SplitMix64(match cut.lost {
            Lost::Random(seed) => seed,
            _ => 0,
        });
        for (index, write) in pending.iter().enumerate() {
            let last = index + 1 == pending.len();
            match cut.lost {
                _ if write.kept => medium.put(write, 0..write.bytes),
                Lost::Tail(bytes) if last => medium.put(write, 0..bytes.min(write.bytes)),
                Lost::Head(bytes) if last => medium.put(write, bytes.min(write.bytes)..write.bytes),
                Lost::AllButLast if !last => {}
                Lost::Nothing | Lost::Tail(_) | Lost::Head(_) | Lost::AllButLast => {
                    medium.put(write, 0..write.bytes);
                }
                Lost::Random(_) => part(&mut rng, write, |part| medium.put(write, part)),
            }
        }
        medium
    }
}

/// All of a write, nothing of it, its beginning, its end, or any of its sectors.
fn part(random: &mut SplitMix64, write: &Write, mut put: impl FnMut(Range<u64>)) {
    let sectors = write.bytes / SECTOR;
    match random.below(6) {
        0 | 1 => put(0..write.bytes),
        2 | 3 => {}
        4 => {
            let at = random.below(sectors + 1) * SECTOR;
            put(if random.below(2) == 0 { 0..at } else { at..write.bytes });
        }
        _ => {
            for sector in 0..sectors {
                if random.below(2) == 0 {
                    put(sector * SECTOR..(sector + 1) * SECTOR);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuts::Recorder;

    /// A disk of ones on which twos, threes and fours are written, with a flush behind the twos.
    fn replayed(lost: &[Lost]) -> Vec<Vec<u8>> {
        let dir = tempfile::tempdir().expect("a folder");
        let (base, log) = (dir.path().join("base"), dir.path().join("log"));
        std::fs::write(&base, [1; 4 * 512]).expect("written");
        let mut recorder = Recorder::create(&log).expect("a log");
        recorder.write(0, &[2; 512]).expect("written");
        recorder.flush().expect("written");
        recorder.write(512, &[3; 512]).expect("written");
        recorder.write(1024, &[4; 1024]).expect("written");
        let (log, file) = (WriteLog::open(&log).expect("a log"), File::open(&base).expect("a file"));
        let mut replay = Replay::new(&file, 2048, &log).expect("a replay");
        let states = lost.iter().map(|lost| {
            let medium = replay.state(&Cut { after: 4, lost: *lost });
            let mut disk = vec![0; 2048];
            medium.read(0, &mut disk).expect("read");
            disk.chunks(512).map(|sector| sector[0]).collect()
        });
        states.collect()
    }

    #[test]
    fn what_was_flushed_is_never_lost_and_the_rest_may_be() {
        let states = replayed(&[Lost::Nothing, Lost::Tail(512), Lost::Head(512), Lost::AllButLast]);
        assert_eq!(states, [[2, 3, 4, 4], [2, 3, 4, 1], [2, 3, 1, 4], [2, 1, 4, 4]]);
        let random = replayed(&(0..200).map(Lost::Random).collect::<Vec<_>>());
        assert!(random.iter().all(|state| state[0] == 2));
        for state in [[2, 1, 1, 1], [2, 3, 1, 1], [2, 1, 4, 4], [2, 3, 1, 4], [2, 1, 4, 1], [2, 3, 4, 4]] {
            assert!(random.contains(&state.to_vec()), "never {state:?}");
        }
    }

    #[test]
    fn a_partition_table_is_cut_at_every_sector() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        let mut recorder = Recorder::create(&path).expect("a log");
        recorder.write(0, &[1; 8 * 512]).expect("written");
        recorder.write(64 << 20, &[1; 512]).expect("written");
        recorder.flush().expect("written");
        recorder.flush().expect("written");
        let log = WriteLog::open(&path).expect("a log");
        let regions = [0..34 * 512, 1000 << 20..1001 << 20, 1 << 20..2 << 20];
        let cuts = cuts(&log, 0..4, &regions, 10, 1);
        for at in 1..8 {
            assert!(cuts.contains(&Cut { after: 1, lost: Lost::Tail(at * 512) }), "{at}");
        }
        let of = |after| {
            cuts.iter().filter(|cut| cut.after == after && !matches!(cut.lost, Lost::Random(_))).count()
        };
        // The second write is of no interest, and so is the second flush.
        assert_eq!((of(2), of(3), of(4)), (0, 1, 0));
        assert_eq!(cuts.iter().filter(|cut| matches!(cut.lost, Lost::Random(_))).count(), 11);
    }
}
