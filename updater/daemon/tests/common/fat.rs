// SPDX-License-Identifier: Apache-2.0
//! The ESP of a disk in a file, for the library that reads and writes FAT.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Range,
    os::unix::fs::FileExt as _,
    rc::Rc,
};

use cluster_harness::cuts::Recorder;

use super::MIB;

const SECTOR: u64 = 512;
/// Size of the ESP.
pub(crate) const ESP_MIB: u64 = 20;
/// Where it begins.
pub(crate) const ESP_AT: u64 = MIB;

/// The ESP of the disk as a stream, whose changes wait in memory.
pub(crate) struct Window {
    disk: Rc<File>,
    recorder: Rc<RefCell<Option<Recorder>>>,
    position: u64,
    dirty: Rc<RefCell<BTreeMap<u64, [u8; SECTOR as usize]>>>,
}

impl Window {
    /// Of this disk; its writes are recorded while there is a recorder.
    pub(crate) fn new(disk: Rc<File>, recorder: Rc<RefCell<Option<Recorder>>>) -> Self {
        Self { disk, recorder, position: 0, dirty: Rc::default() }
    }

    /// A second one with the same changes.
    pub(crate) fn again(&self) -> Self {
        let (disk, recorder, dirty) = (self.disk.clone(), self.recorder.clone(), self.dirty.clone());
        Self { disk, recorder, position: 0, dirty }
    }

    fn sector(&self, number: u64) -> io::Result<[u8; SECTOR as usize]> {
        if let Some(sector) = self.dirty.borrow().get(&number) {
            return Ok(*sector);
        }
        let mut sector = [0; SECTOR as usize];
        self.disk.read_exact_at(&mut sector, ESP_AT + number * SECTOR)?;
        Ok(sector)
    }

    /// The part of the sector at the position that `wanted` bytes reach.
    fn here(&self, wanted: usize) -> (u64, Range<usize>) {
        let within = (self.position % SECTOR) as usize;
        let left = (ESP_MIB * MIB).saturating_sub(self.position);
        let count = (SECTOR as usize - within).min(wanted).min(left as usize);
        (self.position / SECTOR, within..within + count)
    }

    /// Sectors in a row are one write.
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (number, sector) in std::mem::take(&mut *self.dirty.borrow_mut()) {
            let at = ESP_AT + number * SECTOR;
            match runs.last_mut() {
                Some((begin, run)) if *begin + run.len() as u64 == at && run.len() < MIB as usize / 4 => {
                    run.extend(sector)
                }
                _ => runs.push((at, sector.to_vec())),
            }
        }
        for (at, run) in runs {
            self.disk.write_all_at(&run, at)?;
            if let Some(recorder) = self.recorder.borrow_mut().as_mut() {
                recorder.write(at, &run)?;
            }
        }
        Ok(())
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (number, within) = self.here(buffer.len());
        buffer[..within.len()].copy_from_slice(&self.sector(number)?[within.clone()]);
        self.position += within.len() as u64;
        Ok(within.len())
    }
}

impl Write for Window {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let (number, within) = self.here(buffer.len());
        let mut sector = self.sector(number)?;
        let before = sector;
        sector[within.clone()].copy_from_slice(&buffer[..within.len()]);
        if sector != before {
            self.dirty.borrow_mut().insert(number, sector);
        }
        self.position += within.len() as u64;
        Ok(within.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => (ESP_MIB * MIB).checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
