// SPDX-License-Identifier: Apache-2.0
//! The ESP of a medium, read as firmware reads it: the first of the allocation tables, the volume's own flags ignored.

use std::io::{self, Read, Seek, SeekFrom, Write};

use anyhow::{Context, Result};
use fatfs::{FileSystem, FsOptions};

use super::Medium;

/// A FAT file system, read only.
pub struct Fat<'a> {
    system: FileSystem<Window<'a>>,
}

impl<'a> Fat<'a> {
    /// The file system in `bytes` bytes of `medium` from `start` on.
    pub fn open(medium: &'a Medium<'a>, start: u64, bytes: u64) -> Result<Self> {
        let window = Window { medium, start, bytes, position: 0 };
        Ok(Self { system: FileSystem::new(window, FsOptions::new().update_accessed_date(false))? })
    }

    /// Names of the files in a folder.
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let failed = || format!("failed to list `{folder}`");
        let entries = self.system.root_dir().open_dir(folder).with_context(failed)?.iter();
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.with_context(failed)?;
            if entry.is_file() {
                names.push(entry.file_name());
            }
        }
        Ok(names)
    }

    /// The content of a file, as far as its chain of clusters leads.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        let mut file = self.system.root_dir().open_file(path).with_context(|| format!("no file `{path}`"))?;
        // What was read before an error is in there, and what somebody would see who reads the beginning only.
        let _ = file.read_to_end(&mut content);
        Ok(content)
    }
}

/// The library wants to write, too: it may, for nothing.
struct Window<'a> {
    medium: &'a Medium<'a>,
    start: u64,
    bytes: u64,
    position: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.bytes.saturating_sub(self.position).min(buffer.len() as u64) as usize;
        self.medium.read(self.start + self.position, &mut buffer[..count])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Window<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.position += buffer.len() as u64;
        Ok(buffer.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
