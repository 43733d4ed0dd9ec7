// SPDX-License-Identifier: Apache-2.0
//! Whether an ESP holds a boot entry. Its FAT is read here and not mounted: udevd's filter of system calls forbids that.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};

use fatfs::{FileSystem, FsOptions};

/// Looking one name up reads a few directories. A damaged FAT may lead in circles.
const MOST_READ: u64 = 64 << 20;

/// Whether the FAT file system `esp` has a file at `path`.
///
/// # Errors
/// When that cannot be told: it cannot be read, or is no FAT.
pub fn has(esp: impl Read + Seek, path: &str) -> io::Result<bool> {
    let esp = FileSystem::new(ReadOnly { inner: esp, left: MOST_READ }, FsOptions::new())?;
    let found = esp.root_dir().open_file(path);
    match found {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

struct ReadOnly<T> {
    inner: T,
    left: u64,
}

impl<T: Read> Read for ReadOnly<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left =
            self.left.checked_sub(read as u64).ok_or_else(|| io::Error::other("it leads in circles"))?;
        Ok(read)
    }
}

impl<T: Seek> Seek for ReadOnly<T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

impl<T> Write for ReadOnly<T> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use fatfs::{FormatVolumeOptions, format_volume};

    use super::*;

    fn esp() -> Vec<u8> {
        let mut disk = Cursor::new(vec![0; 4 << 20]);
        format_volume(&mut disk, FormatVolumeOptions::new()).unwrap();
        disk.set_position(0);
        let esp = FileSystem::new(&mut disk, FsOptions::new()).unwrap();
        let linux = esp.root_dir().create_dir("EFI").unwrap().create_dir("Linux").unwrap();
        linux.create_file("cluster-os_0.1.0+2-1.efi").unwrap();
        drop(linux);
        drop(esp);
        disk.into_inner()
    }

    #[test]
    fn finds_the_counted_entry_and_no_other() {
        let esp = esp();
        for (path, there) in [
            ("EFI/Linux/cluster-os_0.1.0+2-1.efi", true),
            ("EFI/LINUX/Cluster-OS_0.1.0+2-1.efi", true),
            ("EFI/Linux/cluster-os_0.1.0+3-0.efi", false),
            ("EFI/BOOT/x.efi", false),
        ] {
            assert_eq!(has(Cursor::new(&esp), path).unwrap(), there, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_no_answer() {
        assert!(has(Cursor::new(vec![0; 1 << 20]), "x").is_err());
        assert!(has(Cursor::new(b""), "x").is_err());
        let circles = ReadOnly { inner: Cursor::new(esp()), left: 600 };
        assert!(has(circles, "EFI/x").is_err());
    }
}
