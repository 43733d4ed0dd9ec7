// SPDX-License-Identifier: Apache-2.0
//! Versions of releases: numbers with dots between them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// With it, the longest partition name that systemd-sysupdate would give (`cluster-os_VERSION_verity`) fills the 36
/// characters of a GPT entry.
pub const MAX_CHARS: usize = 18;

/// `[0-9]+(\.[0-9]+)*`, at most [`MAX_CHARS`] characters, no number with a zero in front.
///
/// Ordered number by number; of two that begin alike the longer is newer. systemd-boot orders boot entries the same way
/// (UAPI.10 Version Format Specification). Letters, `-` and `+` are not allowed: `+` begins a boot counter.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(Vec<u64>);

impl Version {
    /// Reads a version.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_CHARS {
            return None;
        }
        let number = |part: &str| {
            let plain = part.bytes().all(|c| c.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
            if plain { part.parse().ok() } else { None }
        };
        text.split('.').map(number).collect::<Option<Vec<u64>>>().map(Self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, number) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            write!(f, "{number}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format!("a version is numbers with dots, at most {MAX_CHARS} characters"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn orders_numbers_not_letters() {
        let ordered = ["0.1", "0.1.0", "0.1.0.1", "0.1.9", "0.1.10", "0.2", "1", "10.0"];
        assert!(ordered.windows(2).all(|pair| version(pair[0]) < version(pair[1])));
    }

    #[test]
    fn refuses_what_could_be_read_in_two_ways() {
        for text in [
            "",
            ".",
            "1.",
            ".1",
            "1..2",
            "01",
            "1.00",
            "1-2",
            "1+2",
            "v1",
            "1.2a",
            " 1",
            "1234567890.12345678",
        ] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
        assert_eq!(version("0.1.10").to_string(), "0.1.10");
    }
}
