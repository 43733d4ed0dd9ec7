// SPDX-License-Identifier: Apache-2.0
//! A release as one file: a tar archive (POSIX.1, ustar) of the folder's plain files, the small ones first.
//!
//! The reader is fed one header after the other and gives the place of each file. It reads less than tar(1) does: links, devices,
//! sparse files and sizes beyond eight octal groups are refused, pax headers are skipped unread. What a header says is only
//! where to look; every byte is checked against the signed manifest afterwards.

use std::collections::BTreeMap;

use crate::serving::is_name;

/// Headers begin at multiples of this.
pub const BLOCK: u64 = 512;
/// More headers than any release needs, folders and comments of other programs included.
pub const MAX_HEADERS: usize = 1024;
/// Longest pax header that is skipped: time stamps and attributes of one file.
const MAX_EXTENDED: u64 = 64 << 10;
/// Two blocks of zeros end an archive.
pub const END: [u8; 1024] = [0; 1024];
/// Longest name that needs no second field.
const MAX_NAME: usize = 100;

/// Where a file lies in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Of its first byte.
    pub offset: u64,
    /// Its size.
    pub bytes: u64,
}

/// Why an archive is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// Not one, or a compressed one.
    #[error("it is no tar archive of a release; one that is compressed must be unpacked first")]
    NoArchive,
    /// A header does not add up.
    #[error("the tar header at byte {0} is damaged")]
    Header(u64),
    /// A file is larger than a tar header can say in digits.
    #[error("the tar header at byte {0} gives no size that a release can have")]
    Size(u64),
    /// Something that is no plain file.
    #[error(
        "`{name}` in the archive is no plain file (type `{kind}`); make it with `tar --format=ustar --dereference`"
    )]
    Kind {
        /// Its name, as far as it can be printed.
        name: String,
        /// Type flag.
        kind: char,
    },
    /// A name that could mean two things.
    #[error("the archive has `{0}` twice")]
    Twice(String),
    /// Too many.
    #[error("the archive has more than {MAX_HEADERS} entries: it is no release")]
    TooMany,
    /// It ends too early.
    #[error("the archive ends after {found} bytes and needs at least {needed}: it was cut off")]
    Cut {
        /// Bytes that are there.
        found: u64,
        /// Bytes that headers ask for.
        needed: u64,
    },
}

/// Finds the files in an archive, header by header.
#[derive(Clone, Debug)]
pub struct Reader {
    size: u64,
    next: Option<u64>,
    headers: usize,
    parts: BTreeMap<String, Part>,
}

impl Reader {
    /// A reader of an archive of `size` bytes; `u64::MAX` where that is not known.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { size, next: Some(0), headers: 0, parts: BTreeMap::new() }
    }

    /// Where the next header begins; `None` when there is no other.
    #[must_use]
    pub fn wants(&self) -> Option<u64> {
        self.next
    }

    /// The files found so far. Names lead nowhere: they are single words.
    #[must_use]
    pub fn parts(&self) -> &BTreeMap<String, Part> {
        &self.parts
    }

    /// Reads the header that [`Self::wants`] asked for.
    ///
    /// # Errors
    /// When it is none, or of something that a release has not.
    pub fn take(&mut self, block: &[u8; BLOCK as usize]) -> Result<(), ArchiveError> {
        let Some(at) = self.next else { return Ok(()) };
        if block.iter().all(|byte| *byte == 0) {
            self.next = None;
            return if self.headers == 0 { Err(ArchiveError::NoArchive) } else { Ok(()) };
        }
        let header = Header::parse(block, at, self.headers == 0)?;
        self.headers += 1;
        if self.headers > MAX_HEADERS {
            return Err(ArchiveError::TooMany);
        }
        let part = Part { offset: at + BLOCK, bytes: header.bytes };
        match header.kind {
            b'0' | 0 => self.insert(&header.name, part)?,
            b'5' if header.bytes == 0 => {}
            // Time stamps and the like. One that gives name or size another meaning makes the file unknown, and no other.
            b'x' | b'g' if header.bytes <= MAX_EXTENDED => {}
            kind => return Err(ArchiveError::Kind { name: printable(&header.name), kind: shown(kind) }),
        }
        let needed = header
            .bytes
            .checked_next_multiple_of(BLOCK)
            .and_then(|bytes| bytes.checked_add(part.offset))
            .ok_or(ArchiveError::Size(at))?;
        // The end mark belongs to it as well.
        if needed.saturating_add(BLOCK) > self.size {
            return Err(ArchiveError::Cut { found: self.size, needed: needed.saturating_add(BLOCK) });
        }
        self.next = Some(needed);
        Ok(())
    }

    /// Keeps what can be a file of a release: at the top, or in one folder.
    fn insert(&mut self, path: &[u8], part: Part) -> Result<(), ArchiveError> {
        let Ok(path) = str::from_utf8(path) else { return Ok(()) };
        let path = path.strip_prefix("./").unwrap_or(path);
        let name = match path.split_once('/') {
            None => path,
            Some((folder, name)) if is_name(folder) => name,
            Some(_) => return Ok(()),
        };
        if !is_name(name) {
            return Ok(());
        }
        match self.parts.insert(name.to_owned(), part) {
            None => Ok(()),
            Some(_) => Err(ArchiveError::Twice(name.to_owned())),
        }
    }
}

struct Header {
    name: Vec<u8>,
    kind: u8,
    bytes: u64,
}

impl Header {
    fn parse(block: &[u8; BLOCK as usize], at: u64, first: bool) -> Result<Self, ArchiveError> {
        let posix = &block[257..265] == b"ustar\x0000";
        // GNU tar writes its own by default; of that only the common part is read.
        let gnu = &block[257..265] == b"ustar  \x00";
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(index, byte)| u64::from(if (148..156).contains(&index) { b' ' } else { *byte }))
            .sum();
        if !(posix || gnu) || octal(&block[148..156]) != Some(sum) {
            return Err(if first { ArchiveError::NoArchive } else { ArchiveError::Header(at) });
        }
        let bytes = octal(&block[124..136]).ok_or(ArchiveError::Size(at))?;
        let mut name = Vec::new();
        if posix && block[345] != 0 {
            name.extend_from_slice(text(&block[345..500]));
            name.push(b'/');
        }
        name.extend_from_slice(text(&block[..MAX_NAME]));
        Ok(Self { name, kind: block[156], bytes })
    }
}

/// The header of a plain file, as [`Reader`] and tar(1) read it; `None` for a name that is too long.
#[must_use]
pub fn header(name: &str, bytes: u64) -> Option<[u8; BLOCK as usize]> {
    let mut block = [0; BLOCK as usize];
    let size = format!("{bytes:011o}");
    if name.len() > MAX_NAME || size.len() > 11 {
        return None;
    }
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, size.as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Some(block)
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits, with blanks around them; none for anything else, such as GNU's binary sizes.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = text(field).trim_ascii();
    if digits.is_empty() || !digits.iter().all(|digit| (b'0'..=b'7').contains(digit)) {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| value * 8 + u64::from(digit - b'0')))
}

/// For a message.
fn printable(name: &[u8]) -> String {
    name.iter().take(MAX_NAME).map(|byte| shown(*byte)).collect()
}

fn shown(byte: u8) -> char {
    if byte.is_ascii_graphic() || byte == b' ' { byte.into() } else { '?' }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in files {
            bytes.extend(header(name, content.len() as u64).unwrap());
            bytes.extend(*content);
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        }
        bytes.extend(END);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<BTreeMap<String, Part>, ArchiveError> {
        let mut reader = Reader::new(bytes.len() as u64);
        while let Some(at) = reader.wants() {
            let at = at as usize;
            let needed = at as u64 + BLOCK;
            let block = bytes.get(at..).and_then(|rest| rest.first_chunk());
            reader.take(block.ok_or(ArchiveError::Cut { found: bytes.len() as u64, needed })?)?;
        }
        Ok(reader.parts().clone())
    }

    /// A header that was changed and adds up again.
    fn changed(name: &str, bytes: u64, change: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
        let mut block = header(name, bytes).unwrap();
        change(&mut block);
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        [&block[..], &END].concat()
    }

    #[test]
    fn files_are_where_they_were_put() {
        let bytes = archive(&[("manifest.json", b"{}"), ("./a.efi", &[7; 600]), ("folder/b.raw", b"")]);
        let parts = read(&bytes).unwrap();
        assert_eq!(parts.keys().collect::<Vec<_>>(), ["a.efi", "b.raw", "manifest.json"]);
        let part = parts["a.efi"];
        assert_eq!(part.bytes, 600);
        assert!(bytes[part.offset as usize..][..600].iter().all(|byte| *byte == 7));
    }

    #[test]
    fn names_that_lead_elsewhere_are_no_files_of_a_release() {
        for name in
            ["../manifest.json", "/manifest.json", "a/b/c", "a/../b", ".hidden", "a/", "./../x", "a b"]
        {
            assert_eq!(read(&archive(&[(name, b"x")])).unwrap().len(), 0, "{name}");
        }
    }

    #[test]
    fn tricks_are_refused() {
        let kind = |flag: u8| changed("manifest.json", 0, |block| block[156] = flag);
        for flag in *b"123467LKSVM" {
            assert!(matches!(read(&kind(flag)), Err(ArchiveError::Kind { .. })), "{}", flag as char);
        }
        // A pax header without end; a folder with content; a size that is no digits, and one beyond the end.
        let long = changed("x", MAX_EXTENDED + 1, |block| block[156] = b'x');
        assert!(matches!(read(&long), Err(ArchiveError::Kind { .. })));
        let folder = changed("x", 5, |block| block[156] = b'5');
        assert!(matches!(read(&folder), Err(ArchiveError::Kind { .. })));
        let binary = changed("x", 5, |block| block[124] = 0x80);
        assert_eq!(read(&binary), Err(ArchiveError::Size(0)));
        let huge = changed("x", 5, |block| block[124..136].copy_from_slice(b"777777777777"));
        assert!(matches!(read(&huge), Err(ArchiveError::Cut { .. })));
        let twice = archive(&[("manifest.json", b"a"), ("f/manifest.json", b"b")]);
        assert_eq!(read(&twice), Err(ArchiveError::Twice("manifest.json".into())));
        let many = vec![("x", &b""[..]); 1];
        let many: Vec<_> = many.into_iter().cycle().take(MAX_HEADERS + 1).map(|(_, b)| ("a b", b)).collect();
        assert_eq!(read(&archive(&many)), Err(ArchiveError::TooMany));
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_named() {
        let bytes = archive(&[("manifest.json", &[1; 2000])]);
        for length in [0, 100, 511] {
            assert!(read(&bytes[..length]).is_err());
        }
        assert!(matches!(read(&bytes[..1500]), Err(ArchiveError::Cut { .. })));
        // The end mark is missing.
        assert!(matches!(read(&bytes[..bytes.len() - 1024]), Err(ArchiveError::Cut { .. })));
        assert_eq!(read(&END), Err(ArchiveError::NoArchive));
        assert_eq!(read(&[b'z'; 1024]), Err(ArchiveError::NoArchive));
        let mut damaged = archive(&[("a", b"1"), ("b", b"2")]);
        damaged[1024] ^= 1;
        assert_eq!(read(&damaged), Err(ArchiveError::Header(1024)));
    }
}
