// SPDX-License-Identifier: Apache-2.0
//! A disk after some writes: an image, and pieces of a log over it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use cluster_updater_core::Digest;

use super::{Write, WriteLog};
use crate::image::run;

/// Bytes that are copied at once.
const PIECE: u64 = 1 << 20;

/// A disk that was made of an image and is written to. Copies share both.
#[derive(Clone)]
pub struct Medium<'a> {
    base: &'a File,
    base_bytes: u64,
    log: &'a WriteLog,
    bytes: u64,
    /// By first byte; they do not overlap.
    pieces: BTreeMap<u64, Piece>,
}

#[derive(Clone, Copy)]
struct Piece {
    end: u64,
    source: Option<u64>,
}

impl<'a> Medium<'a> {
    /// A disk of `bytes` bytes that begins with what is in `base`; the rest of it is zeros.
    pub fn new(base: &'a File, bytes: u64, log: &'a WriteLog) -> io::Result<Self> {
        Ok(Self { base, base_bytes: base.metadata()?.len(), log, bytes, pieces: BTreeMap::new() })
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes `part` of `write` reach the medium.
    pub fn put(&mut self, write: &Write, part: Range<u64>) {
        let (at, end) = (write.at + part.start, write.at + part.end);
        if at >= end {
            return;
        }
        if let Some((&begin, &before)) = self.pieces.range(..at).next_back()
            && before.end > at
        {
            self.pieces.insert(begin, Piece { end: at, ..before });
            if before.end > end {
                self.pieces.insert(end, before.from(end - begin));
            }
        }
        while let Some((&begin, &inside)) = self.pieces.range(at..end).next() {
            self.pieces.remove(&begin);
            if inside.end > end {
                self.pieces.insert(end, inside.from(end - begin));
            }
        }
        self.pieces.insert(at, Piece { end, source: write.source.map(|source| source + part.start) });
    }

    /// Fills `buffer` from `at`.
    pub fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let here = at + done as u64;
            let left = &mut buffer[done..];
            let covering = self.pieces.range(..=here).next_back().filter(|(_, piece)| piece.end > here);
            let count = if let Some((begin, piece)) = covering {
                let count = (piece.end - here).min(left.len() as u64) as usize;
                match piece.source {
                    Some(source) => self.log.read(source + (here - begin), &mut left[..count])?,
                    None => left[..count].fill(0),
                }
                count
            } else {
                let next = self.pieces.range(here..).next().map_or(u64::MAX, |(begin, _)| *begin);
                let count = (next - here).min(left.len() as u64) as usize;
                self.read_base(here, &mut left[..count])?;
                count
            };
            done += count;
        }
        Ok(())
    }

    fn read_base(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let inside = self.base_bytes.saturating_sub(at).min(buffer.len() as u64) as usize;
        self.base.read_exact_at(&mut buffer[..inside], at)?;
        buffer[inside..].fill(0);
        Ok(())
    }

    /// Equal for media of one base and log whose `range` was made by the same writes.
    #[must_use]
    pub fn origin(&self, range: Range<u64>) -> Digest {
        let mut text = Vec::new();
        let first = self.pieces.range(..range.start).next_back().map_or(range.start, |(begin, _)| *begin);
        for (begin, piece) in self.pieces.range(first..range.end) {
            if piece.end > range.start {
                for number in [*begin, piece.end, piece.source.map_or(0, |source| source + 1)] {
                    text.extend(number.to_le_bytes());
                }
            }
        }
        Digest::of(&text)
    }

    /// Writes the disk to `path` as a raw image whose base is also at `base`.
    pub fn save(&self, base: &Path, path: &Path) -> Result<()> {
        let failed = || format!("failed to write `{}`", path.display());
        run(Command::new("cp").args(["--reflink=auto", "--sparse=always", "--"]).arg(base).arg(path))?;
        let file = File::options().write(true).open(path).with_context(failed)?;
        file.set_len(self.bytes).with_context(failed)?;
        let mut buffer = vec![0; PIECE as usize];
        for (begin, piece) in &self.pieces {
            let mut at = *begin;
            while at < piece.end {
                let count = (piece.end - at).min(PIECE) as usize;
                self.read(at, &mut buffer[..count])?;
                // Behind the base there is nothing that zeros would have to hide.
                if at < self.base_bytes || buffer[..count].iter().any(|byte| *byte != 0) {
                    file.write_all_at(&buffer[..count], at).with_context(failed)?;
                }
                at += count as u64;
            }
        }
        Ok(())
    }
}

impl Piece {
    /// What is left of it behind its first `skip` bytes.
    fn from(self, skip: u64) -> Self {
        Self { end: self.end, source: self.source.map(|source| source + skip) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuts::Recorder;

    #[test]
    fn the_last_write_wins_byte_for_byte() {
        let dir = tempfile::tempdir().expect("a folder");
        let (base, log) = (dir.path().join("base"), dir.path().join("log"));
        std::fs::write(&base, [1; 8 * 512]).expect("written");
        let mut recorder = Recorder::create(&log).expect("a log");
        // Beside, over, inside and across each other, and behind the base.
        let writes = [(0, 2), (2, 4), (3, 1), (1, 2), (5, 6), (0, 1), (9, 3), (6, 1)];
        let mut wanted = [vec![1; 8 * 512], vec![0; 8 * 512]].concat();
        for (fill, (at, sectors)) in (10..).zip(writes) {
            recorder.write(at * 512, &vec![fill; sectors * 512]).expect("written");
            wanted[at as usize * 512..][..sectors * 512].fill(fill);
        }
        let log = WriteLog::open(&log).expect("a log");
        let file = File::open(&base).expect("a file");
        let mut medium = Medium::new(&file, 16 * 512, &log).expect("a medium");
        let untouched = medium.origin(0..512);
        log.writes().iter().for_each(|write| medium.put(write, 0..write.bytes));
        let mut found = vec![9; 16 * 512];
        medium.read(0, &mut found).expect("read");
        assert!(found == wanted);
        let mut part = [0; 1000];
        medium.read(700, &mut part).expect("read");
        assert_eq!(part[..], wanted[700..1700]);
        assert_ne!(medium.origin(0..512), untouched);

        // The last 256 bytes of a sector.
        medium.put(&log.writes()[1], 256..512);
        wanted[2 * 512 + 256..3 * 512].fill(11);
        medium.read(0, &mut found).expect("read");
        assert!(found == wanted);
        let saved = dir.path().join("saved");
        medium.save(&base, &saved).expect("saved");
        assert!(std::fs::read(saved).expect("read") == wanted);
    }
}
