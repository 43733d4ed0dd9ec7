// SPDX-License-Identifier: Apache-2.0
//! The log of a disk's writes: the format of the kernel's dm-log-writes (drivers/md/dm-log-writes.c), which QEMU's
//! `blklogwrites` writes.
//!
//! A superblock in the first sector, then entries: a sector of header, and the data that were written. A write is there when the
//! drive has confirmed it, so that everything in front of a flush survived.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::SECTOR;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
/// Survives although no flush follows.
const FUA: u64 = 1 << 1;
/// Without data; what is read afterwards is anything.
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
const HEADER: usize = 32;

/// One request to the disk. A flush has no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where it begins on the disk.
    pub at: u64,
    /// How long it is.
    pub bytes: u64,
    /// Where its data are in the log; none: zeros.
    pub source: Option<u64>,
    /// It is on the medium when it is confirmed, and with a flush all before it.
    pub kept: bool,
}

impl Write {
    /// Whether it is a flush.
    #[must_use]
    pub fn is_flush(&self) -> bool {
        self.bytes == 0
    }
}

/// The writes of a disk, in the order in which it confirmed them.
#[derive(Debug)]
pub struct WriteLog {
    file: File,
    writes: Vec<Write>,
}

impl WriteLog {
    /// Reads the log at `path`; its writer may still be at work.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("failed to open `{}`", path.display()))?;
        let end = file.metadata()?.len();
        let not_one = || format!("`{}` is no log of writes in sectors of {SECTOR} bytes", path.display());
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).with_context(not_one)?;
        let sector = u32::from_le_bytes([header[24], header[25], header[26], header[27]]);
        ensure!(
            (number(&header, 0), number(&header, 8), u64::from(sector)) == (MAGIC, VERSION, SECTOR),
            not_one()
        );
        let mut writes = Vec::new();
        let mut at = SECTOR;
        // The count in the superblock lags behind; where nothing was written yet there are zeros, or the file ends.
        while at + SECTOR <= end {
            file.read_exact_at(&mut header, at)?;
            let (sector, sectors, flags, marked) =
                (number(&header, 0), number(&header, 8), number(&header, 16), number(&header, 24));
            if sectors == 0 && flags & (FLUSH | MARK) == 0 {
                break;
            }
            at += SECTOR;
            let bytes = sectors * SECTOR;
            let discard = flags & DISCARD != 0;
            let kept = flags & (FLUSH | FUA) != 0;
            let data = if discard { 0 } else { bytes };
            if at + data > end.next_multiple_of(SECTOR) {
                break;
            }
            let source = (!discard).then_some(at);
            if flags & MARK == 0 {
                if bytes > 0 {
                    writes.push(Write { at: sector * SECTOR, bytes, source, kept });
                }
                if flags & FLUSH != 0 {
                    writes.push(Write { at: 0, bytes: 0, source: None, kept: true });
                }
                at += data;
            } else {
                at += marked.next_multiple_of(SECTOR);
            }
        }
        Ok(Self { file, writes })
    }

    /// The log of a disk that nobody writes to; `file` is any.
    pub(super) fn empty(file: &File) -> io::Result<Self> {
        Ok(Self { file: file.try_clone()?, writes: Vec::new() })
    }

    /// All requests.
    #[must_use]
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// Fills `buffer` with what lies at `source` of the log.
    pub(super) fn read(&self, source: u64, buffer: &mut [u8]) -> io::Result<()> {
        // A log that ends in zeros may end before them.
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], source + done as u64)? {
                0 => {
                    buffer[done..].fill(0);
                    break;
                }
                count => done += count,
            }
        }
        Ok(())
    }
}

/// Writes such a log, for disks that no QEMU has.
#[derive(Debug)]
pub struct Recorder {
    file: File,
}

impl Recorder {
    /// A new log at `path`.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut file = File::create(path)?;
        let mut superblock = [0; SECTOR as usize];
        superblock[..8].copy_from_slice(&MAGIC.to_le_bytes());
        superblock[8..16].copy_from_slice(&VERSION.to_le_bytes());
        superblock[24..28].copy_from_slice(&(SECTOR as u32).to_le_bytes());
        file.write_all(&superblock)?;
        Ok(Self { file })
    }

    /// `bytes`, whole sectors of them, were written at `at`.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.entry(at / SECTOR, bytes.len() as u64 / SECTOR, 0)?;
        self.file.write_all(bytes)
    }

    /// All before this is on the medium.
    pub fn flush(&mut self) -> io::Result<()> {
        self.entry(0, 0, FLUSH)
    }

    fn entry(&mut self, sector: u64, sectors: u64, flags: u64) -> io::Result<()> {
        let mut header = [0; SECTOR as usize];
        header[..8].copy_from_slice(&sector.to_le_bytes());
        header[8..16].copy_from_slice(&sectors.to_le_bytes());
        header[16..24].copy_from_slice(&flags.to_le_bytes());
        self.file.write_all(&header)
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_wrote_and_stops_where_nothing_was_written_yet() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        let mut recorder = Recorder::create(&path).expect("a log");
        recorder.write(4096, &[7; 1024]).expect("written");
        recorder.flush().expect("written");
        recorder.write(512, &[8; 512]).expect("written");
        let log = WriteLog::open(&path).expect("a log");
        let shape: Vec<(u64, u64)> = log.writes().iter().map(|write| (write.at, write.bytes)).collect();
        assert_eq!(shape, [(4096, 1024), (0, 0), (512, 512)]);
        assert!(log.writes()[1].is_flush() && log.writes()[1].kept && !log.writes()[0].kept);
        let mut data = [0; 512];
        log.read(log.writes()[2].source.expect("data"), &mut data).expect("read");
        assert_eq!(data, [8; 512]);

        File::options().write(true).open(&path).expect("a file").set_len(1 << 20).expect("longer");
        assert_eq!(WriteLog::open(&path).expect("a log").writes().len(), 3);
        std::fs::write(&path, [0; 4096]).expect("written");
        assert!(WriteLog::open(&path).is_err());
    }
}
