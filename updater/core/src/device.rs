// SPDX-License-Identifier: Apache-2.0
//! What the slot writer works on: small enough that a test can be the disk, keep a log of every write and stop anywhere.

use std::io;

/// A whole disk. Offsets and lengths are bytes; writes are in whole sectors.
pub trait Disk {
    /// Its size.
    fn bytes(&self) -> u64;
    /// Bytes of what it calls a sector; partition tables count in these.
    fn sector(&self) -> u64;
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// When the disk cannot be read.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes `bytes` at `offset`. Until [`Disk::flush`] any part of it may be lost, in any order.
    ///
    /// # Errors
    /// When the disk cannot be written.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Everything written so far survives a power cut, and reads after it come from the medium.
    ///
    /// # Errors
    /// When the disk does not confirm it.
    fn flush(&mut self) -> io::Result<()>;
}

/// The folder of boot entries on the ESP. Names are of files in it.
pub trait Esp {
    /// The files, with sizes.
    ///
    /// # Errors
    /// When the folder cannot be read.
    fn list(&mut self) -> io::Result<Vec<(String, u64)>>;
    /// Bytes free on the ESP.
    ///
    /// # Errors
    /// When the file system does not say.
    fn free(&mut self) -> io::Result<u64>;
    /// Appends to a file, which is made when `offset` is 0.
    ///
    /// # Errors
    /// When it cannot be written.
    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// The file's content survives a power cut, and reads after it come from the medium.
    ///
    /// # Errors
    /// When the file system does not confirm it.
    fn sync_file(&mut self, name: &str) -> io::Result<()>;
    /// Fills `buffer` from `offset` of a file.
    ///
    /// # Errors
    /// When it is shorter or cannot be read.
    fn read(&mut self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Renames a file.
    ///
    /// # Errors
    /// When it cannot be renamed.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; one that is not there is no error.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Everything done so far survives a power cut.
    ///
    /// # Errors
    /// When the file system does not confirm it.
    fn sync(&mut self) -> io::Result<()>;
}

/// Where blocks of a release come from: an imported folder today, members of the cluster later. What it gives is hashed
/// before it is used, so it need not be trusted.
pub trait BlockSource {
    /// Blocks of 4096 bytes of the root image: for each of `runs` (first block, how many), one behind the other, which fills
    /// `buffer`.
    ///
    /// # Errors
    /// When the source has gone or has not got them.
    fn root(&mut self, runs: &[(u64, u64)], buffer: &mut [u8]) -> io::Result<()>;
    /// Bytes of the UKI from `offset` on.
    ///
    /// # Errors
    /// When the source has gone or has not got them.
    fn uki(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}
