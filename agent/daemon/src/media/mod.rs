// SPDX-License-Identifier: Apache-2.0
//! Sticks, disks and image files: what may be written to ([`target`]), how a whole image gets onto one ([`image`]), and
//! how cluster.toml gets into its FAT so that a cut at any moment leaves the old file or the new one ([`config`]).
//!
//! Everything is written through [`Storage`], so that tests use memory and can pull the stick at any write.

pub mod config;
mod device;
mod fat;
pub mod image;
pub mod target;

use std::{
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::FileExt as _},
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// GPT name of the partition that holds cluster.toml.
pub const CONFIG_PARTITION: &str = "CLUSTER-OS";

/// Something with bytes at offsets that keeps them.
pub trait Storage {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The medium's own, or one of kind `UnexpectedEof`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The medium's own.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns when everything written is on the medium; later reads come from there, not from a cache.
    ///
    /// # Errors
    /// The medium's own: what was written before may be lost.
    fn flush(&self) -> io::Result<()>;
}

impl Storage for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.sync_all()?;
        // Only clean pages can be dropped: after the flush all are.
        Ok(posix_fadvise(self.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
    }
}

#[cfg(test)]
pub(crate) mod memory {
    use std::cell::{Cell, RefCell};

    use super::{Storage, io};

    /// A medium in memory that can be pulled after so many writes.
    #[derive(Debug, Default)]
    pub(crate) struct Memory {
        pub(crate) bytes: RefCell<Vec<u8>>,
        pub(crate) writes_left: Cell<Option<usize>>,
        pub(crate) writes: Cell<usize>,
    }

    impl Memory {
        pub(crate) fn new(bytes: Vec<u8>) -> Self {
            Self { bytes: RefCell::new(bytes), ..Self::default() }
        }
    }

    impl Storage for Memory {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            let bytes = self.bytes.borrow();
            let at = usize::try_from(offset).unwrap();
            let from = bytes.get(at..at + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(from);
            Ok(())
        }

        fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
            if let Some(left) = self.writes_left.get() {
                self.writes_left.set(Some(left.checked_sub(1).ok_or(io::ErrorKind::NotConnected)?));
            }
            self.writes.set(self.writes.get() + 1);
            let mut bytes = self.bytes.borrow_mut();
            let at = usize::try_from(offset).unwrap();
            bytes.get_mut(at..at + from.len()).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(from);
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            match self.writes_left.get() {
                Some(0) => Err(io::ErrorKind::NotConnected.into()),
                _ => Ok(()),
            }
        }
    }
}
