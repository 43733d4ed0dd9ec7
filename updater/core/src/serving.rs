// SPDX-License-Identifier: Apache-2.0
//! What members say to each other about files of a release: URLs, ranges, lists. docs/release-format.md, Serving.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::{
    sources::{MAX_RANGE, Prefix},
    verity::BLOCK_BYTES,
};

/// Most files of a release that are served: manifest, signatures, root documents, images.
pub const MAX_FILES: usize = 64;
/// Longest list of them.
pub const MAX_LIST: usize = 8 << 10;
/// Longest name of a file.
const MAX_NAME: usize = 128;
/// Most parts of a file that are asked for at once: with their longest numbers they fit into the head of a request.
pub const MAX_PARTS: usize = 128;

/// The path of a file, or of the list where `name` is empty.
#[must_use]
pub fn path(prefix: Prefix, name: &str) -> String {
    format!("/1/{prefix}/{name}")
}

/// Release and file name in the path of a URL; the list has no name.
#[must_use]
pub fn parse_path(path: &str) -> Option<(Prefix, &str)> {
    let (prefix, name) = path.strip_prefix("/1/")?.split_once('/')?;
    (name.is_empty() || is_name(name)).then_some((Prefix::parse(prefix)?, name))
}

/// What is asked of a file, in the query of a URL: HTTP's own ranges cannot say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Parts, one behind the other.
    Parts(Vec<Range>),
    /// The [`crate::outline`] of a part, which holds digests.
    Outline(Range),
}

impl Asked {
    /// Path and query.
    #[must_use]
    pub fn path(&self, prefix: Prefix, name: &str) -> String {
        let mut path = format!("{}?{}=", path(prefix, name), self.word());
        for (number, range) in self.ranges().iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let _ = write!(path, "{comma}{}-{}", range.first, range.last());
        }
        path
    }

    /// Reads the query about a file of `size` bytes: at most [`MAX_PARTS`] parts that lie in the file and have at most
    /// [`MAX_RANGE`] together.
    #[must_use]
    pub fn parse_query(query: &str, size: u64) -> Option<Self> {
        let (word, ranges) = query.split_once('=')?;
        if ranges.split(',').count() > MAX_PARTS {
            return None;
        }
        let ranges: Vec<Range> =
            ranges.split(',').map(|range| Range::read(range, size)).collect::<Option<_>>()?;
        let asked = match (word, ranges.as_slice()) {
            ("bytes", _) => Self::Parts(ranges),
            ("outline", [range]) => Self::Outline(*range),
            _ => return None,
        };
        (asked.bytes() <= MAX_RANGE).then_some(asked)
    }

    /// Bytes of the file that it is about.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges().iter().map(|range| range.bytes).fold(0, u64::saturating_add)
    }

    /// What the answer costs, in bytes that are read in a row: to find and read a part costs no less than a block does.
    #[must_use]
    pub fn work(&self) -> u64 {
        let work = |range: &Range| range.bytes.max(BLOCK_BYTES as u64);
        self.ranges().iter().map(work).fold(0, u64::saturating_add)
    }

    /// Whether such a file can be asked so: only lists of digests have outlines.
    #[must_use]
    pub fn is_about(&self, name: &str) -> bool {
        match self {
            Self::Parts(_) => true,
            Self::Outline(_) => name.ends_with(".verity.raw") || name.ends_with(".blocks"),
        }
    }

    fn word(&self) -> &str {
        match self {
            Self::Parts(_) => "bytes",
            Self::Outline(_) => "outline",
        }
    }

    fn ranges(&self) -> &[Range] {
        match self {
            Self::Parts(ranges) => ranges,
            Self::Outline(range) => std::slice::from_ref(range),
        }
    }
}

/// Whether it can be the name of a file of a release. No name leads out of a folder.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain)
}

/// The bytes of a file that are asked for: first byte and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Offset in the file.
    pub first: u64,
    /// How many, at least one.
    pub bytes: u64,
}

impl Range {
    fn read(text: &str, size: u64) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let bytes = last.checked_sub(first)?.checked_add(1)?;
        (last < size && bytes <= MAX_RANGE).then_some(Self { first, bytes })
    }

    fn last(&self) -> u64 {
        self.first.saturating_add(self.bytes.saturating_sub(1))
    }
}

/// Digits only: `str::parse` takes a plus sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|c| c.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The list of files with their sizes, as it is served.
#[must_use]
pub fn list<'a>(files: impl IntoIterator<Item = (&'a str, u64)>) -> String {
    let mut text = String::new();
    for (name, bytes) in files {
        let _ = writeln!(text, "{name} {bytes}");
    }
    text
}

/// Reads a list.
#[must_use]
pub fn parse_list(text: &str) -> Option<Vec<(String, u64)>> {
    if text.len() > MAX_LIST || text.lines().count() > MAX_FILES {
        return None;
    }
    let file = |line: &str| {
        let (name, bytes) = line.split_once(' ')?;
        Some((is_name(name).then(|| name.to_owned())?, number(bytes)?))
    };
    text.lines().map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_back_and_none_leads_out_of_the_folder() {
        let prefix = Prefix([0x1a; 8]);
        assert_eq!(parse_path(&path(prefix, "manifest.json")), Some((prefix, "manifest.json")));
        assert_eq!(parse_path(&path(prefix, "")), Some((prefix, "")));
        for bad in [
            "/1/1a1a1a1a1a1a1a1a",
            "/2/1a1a1a1a1a1a1a1a/a",
            "/1/1a/a",
            "/1/1a1a1a1a1a1a1a1a/../a",
            "/1/1a1a1a1a1a1a1a1a/a/b",
            "/1/1a1a1a1a1a1a1a1a/.hidden",
            "/1/1a1a1a1a1a1a1a1a/%2e%2e",
            "/1/1a1a1a1a1a1a1a1a//",
            "",
        ] {
            assert_eq!(parse_path(bad), None, "{bad}");
        }
    }

    #[test]
    fn parts_come_back_and_are_bounded_together() {
        let prefix = Prefix([0x1a; 8]);
        let range = |first, bytes| Range { first, bytes };
        let most = (0..MAX_PARTS as u64).map(|at| range(u64::MAX - 4096 * (at + 1), 4096)).collect();
        for asked in [
            Asked::Parts(vec![range(0, 1)]),
            Asked::Parts(vec![range(4096, 4096), range(0, 12)]),
            Asked::Parts(most),
            Asked::Outline(range(8192, MAX_RANGE)),
        ] {
            let text = asked.path(prefix, "a.efi");
            assert!(text.len() < 7 << 10, "{}", text.len());
            let (path, query) = text.split_once('?').unwrap();
            assert_eq!(parse_path(path), Some((prefix, "a.efi")));
            assert_eq!(Asked::parse_query(query, u64::MAX), Some(asked));
        }
        for bad in [
            "bytes=",
            "bytes=0-0,",
            "bytes=0-4",
            "bytes=1-0",
            "bytes=-1",
            "bytes=0-",
            "bytes=+0-0",
            "bytes= 0-0",
            "bytes=0-18446744073709551615",
            "bytes=0-18446744073709551616",
            "outline=0-0,1-1",
            "a=0-0",
            "0-0",
            "",
        ] {
            assert_eq!(Asked::parse_query(bad, 4), None, "{bad}");
        }
        assert_eq!(Asked::parse_query("bytes=0-0", 0), None);
        assert_eq!(Asked::parse_query(&format!("bytes=0-{MAX_RANGE}"), u64::MAX), None);
        let half = MAX_RANGE / 2;
        assert_eq!(Asked::parse_query(&format!("bytes=0-{},0-{half}", half - 1), u64::MAX), None);
        assert_eq!(Asked::parse_query(&format!("bytes={}0-0", "0-0,".repeat(MAX_PARTS)), 1), None);
    }

    #[test]
    fn a_small_part_costs_as_much_as_a_block() {
        let asked = |parts: &[u64]| {
            Asked::Parts(parts.iter().map(|&bytes| Range { first: 0, bytes }).collect()).work()
        };
        assert_eq!([asked(&[1; MAX_PARTS]), asked(&[4096]), asked(&[1, 9000])], [128 * 4096, 4096, 13_096]);
        assert_eq!(Asked::Outline(Range { first: 0, bytes: MAX_RANGE }).work(), MAX_RANGE);
    }

    #[test]
    fn lists_come_back_and_are_bounded() {
        let files = [("manifest.json", 700), ("cluster-os_1.1.efi", 1 << 40)];
        let text = list(files);
        let read = parse_list(&text).unwrap();
        assert!(read.iter().map(|(name, bytes)| (name.as_str(), *bytes)).eq(files));
        for bad in ["a", "a -1", "../a 1", "a 1 2", "a 18446744073709551616", "\u{e9} 1", " 1"] {
            assert_eq!(parse_list(bad), None, "{bad}");
        }
        assert_eq!(parse_list(&"a 1\n".repeat(MAX_FILES + 1)), None);
        assert_eq!(parse_list(&"a".repeat(MAX_LIST + 1)), None);
    }
}
