// SPDX-License-Identifier: Apache-2.0
//! A unified kernel image (UAPI.5) as far as it is changed here: its sections (PE/COFF), and archives for its initrd.

use anyhow::{Context, Result, ensure};

/// Bytes of a section's header.
const HEADER: usize = 40;

/// A section: where it is, and where its header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    header: usize,
    at: usize,
    /// What it may have.
    room: usize,
    /// What it has.
    bytes: usize,
}

impl Section {
    /// The section called `name`.
    ///
    /// # Errors
    /// When `image` is no PE file or has none of that name.
    pub(crate) fn find(image: &[u8], name: &str) -> Result<Self> {
        Self::look(image, name).with_context(|| format!("the UKI has no section `{name}`"))
    }

    fn look(image: &[u8], name: &str) -> Option<Self> {
        let four = |at: usize| {
            let bytes = image.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_le_bytes(bytes)).ok()
        };
        let two = |at: usize| Some(four(at)? & 0xffff);
        let coff = four(0x3c)?;
        let first = coff + 24 + two(coff + 20)?;
        (0..two(coff + 6)?).map(|index| first + index * HEADER).find_map(|header| {
            let named = image.get(header..header + 8)?;
            let end = named.iter().position(|byte| *byte == 0).unwrap_or(named.len());
            let (at, room) = (four(header + 20)?, four(header + 16)?);
            let found = &named[..end] == name.as_bytes() && image.len() >= at + room;
            found.then_some(Self { header, at, room, bytes: four(header + 8)?.min(room) })
        })
    }

    /// Gives it other content.
    ///
    /// # Errors
    /// When that is longer than what the file has for it.
    pub(crate) fn set(self, image: &mut [u8], content: &[u8]) -> Result<()> {
        let (length, room) = (content.len(), self.room);
        ensure!(length <= room, "{length} bytes do not fit into a section of {room}");
        image[self.at..self.at + room].fill(0);
        image[self.at..self.at + length].copy_from_slice(content);
        let length = u32::try_from(length)?;
        image[self.header + 8..self.header + 12].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }
}

/// What the section `name` has, to be changed in place.
///
/// # Errors
/// When there is none.
pub(crate) fn content<'a>(image: &'a mut [u8], name: &str) -> Result<&'a mut [u8]> {
    let section = Section::find(image, name)?;
    Ok(&mut image[section.at..section.at + section.bytes])
}

/// The text in the section `name`, without the zeros that may follow.
///
/// # Errors
/// When there is none, or it is not UTF-8.
pub(crate) fn text(image: &[u8], name: &str) -> Result<String> {
    let section = Section::find(image, name)?;
    let text = std::str::from_utf8(&image[section.at..section.at + section.bytes])?;
    Ok(text.trim_end_matches('\0').to_owned())
}

/// An archive (cpio, newc) of these files, with the folders that they are in.
#[must_use]
pub(crate) fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut made = Vec::new();
    for (path, text) in files {
        for (at, _) in path.match_indices('/') {
            if !made.contains(&&path[..at]) {
                made.push(&path[..at]);
                member(&mut archive, &path[..at], 0o040_755, b"");
            }
        }
        member(&mut archive, path, 0o100_644, text.as_bytes());
    }
    member(&mut archive, "TRAILER!!!", 0, b"");
    archive
}

fn member(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    // Inode, mode, user, group, links, time, size, device and its like twice, length of the name, checksum. An inode of zero with
    // one link stands for nothing else.
    let fields = [0, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    archive.extend(b"070701");
    archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    archive.extend(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The least that is a PE file with these sections, each in whole units of 512 bytes.
    pub(crate) fn pe(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut image = vec![0; 0x40];
        image[0x3c] = 0x40;
        image.extend(b"PE\0\0\x64\x86");
        image.extend((sections.len() as u16).to_le_bytes());
        image.resize(0x40 + 24, 0);
        let mut at = 1024_usize;
        for (name, content) in sections {
            let room = content.len().next_multiple_of(512);
            let mut header = name.as_bytes().to_vec();
            header.resize(8, 0);
            for field in [content.len(), 0, room, at] {
                header.extend((field as u32).to_le_bytes());
            }
            header.resize(HEADER, 0);
            image.extend(header);
            at += room;
        }
        image.resize(1024, 0);
        for (_, content) in sections {
            image.extend(*content);
            image.resize(image.len().next_multiple_of(512), 0);
        }
        image
    }

    #[test]
    fn a_section_takes_what_fits_and_its_neighbours_stay() {
        let mut image = pe(&[(".osrel", b"before"), (".cmdline", b"ro quiet\0"), (".linux", b"kernel")]);
        assert_eq!(text(&image, ".cmdline").expect("a section"), "ro quiet");
        let section = Section::find(&image, ".cmdline").expect("a section");
        section.set(&mut image, &[b'x'; 512]).expect("it fits");
        assert_eq!(text(&image, ".cmdline").expect("a section"), "x".repeat(512));
        section.set(&mut image, b"short").expect("it fits");
        assert_eq!(text(&image, ".cmdline").expect("a section"), "short");
        assert!(section.set(&mut image, &[b'x'; 513]).is_err());
        assert_eq!(text(&image, ".osrel").expect("a section"), "before");
        assert_eq!(text(&image, ".linux").expect("a section"), "kernel");
        content(&mut image, ".linux").expect("a section").copy_from_slice(b"KERNEL");
        assert_eq!(text(&image, ".linux").expect("a section"), "KERNEL");
        assert!(Section::find(&image, ".uname").is_err());
    }

    #[test]
    fn an_image_that_is_cut_off_anywhere_is_no_image() {
        let image = pe(&[(".cmdline", b"ro")]);
        for length in 0..image.len() {
            assert!(Section::find(&image[..length], ".cmdline").is_err(), "{length}");
        }
    }

    #[test]
    fn an_archive_has_folders_before_files_and_each_once() {
        let archive = archive(&[("etc/a/x", "one"), ("etc/a/y", "")]);
        let text = String::from_utf8(archive).expect("text");
        let names: Vec<_> = text
            .split("070701")
            .skip(1)
            .map(|member| {
                let name = &member[104..];
                &name[..name.find('\0').expect("an end")]
            })
            .collect();
        assert_eq!(names, ["etc", "etc/a", "etc/a/x", "etc/a/y", "TRAILER!!!"]);
        assert_eq!(text.len() % 4, 0);
    }
}
