// SPDX-License-Identifier: Apache-2.0
//! From which member a release is taken: one at a time, another when it stalls, vanishes or lies. What a member gives is
//! checked by whoever calls this; what is decided here is only whom to ask next. docs/release-format.md, Serving.

use std::{fmt, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, version::Version};

/// TCP port on the mesh.
pub const PORT: u16 = 41412;
/// Most bytes that a server gives at once.
pub const MAX_RANGE: u64 = 1 << 20;
/// Bytes that are asked for at once: at the slowest rate that is borne, a request ends within about a minute.
pub const RANGE: usize = 256 << 10;
/// Without a byte for so long, a source has stalled.
pub const STALL: Duration = Duration::from_secs(5);
/// A source is measured over so much waiting.
pub const WINDOW: Duration = Duration::from_secs(20);
/// Bytes a second below which another source is better.
pub const SLOW: u64 = 64 << 10;
/// Bytes a second below which no source is better.
pub const FLOOR: u64 = 4 << 10;
/// Of every request, not counted as waiting: the way there and back says nothing about the rate, and most ranges of an
/// update are a few blocks.
pub const ROUND_TRIP: Duration = Duration::from_millis(250);
/// Faults in a row after which a source is given up.
pub const STRIKES: u32 = 3;
/// More members than this are not kept: one is enough, and somebody could announce thousands.
pub const MAX_SOURCES: usize = 32;

/// The first 8 bytes of a root hash: what tells releases apart in records and URLs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(pub [u8; 8]);

impl Prefix {
    /// The prefix of a root hash.
    #[must_use]
    pub fn of(hash: &Digest) -> Self {
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&hash.0[..8]);
        Self(prefix)
    }

    /// Reads 16 lower-case hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok()?;
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not 16 lower-case hex digits"))
    }
}

/// A member that says it holds a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its host name, for people.
    pub name: String,
    /// Its mesh address, and the port.
    pub address: SocketAddr,
    /// The release.
    pub version: Version,
    /// Of its root hash.
    pub prefix: Prefix,
}

/// What is wrong with a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// No connection, an error, or an early end.
    Gone,
    /// No byte for [`STALL`].
    Stalled,
    /// Fewer bytes than there must be.
    Slow,
    /// A block that does not match, or an answer that no server of ours gives.
    Lied,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "gone",
            Self::Stalled => "stalled",
            Self::Slow => "slow",
            Self::Lied => "gave what the signed manifest does not name",
        })
    }
}

/// A source and what came from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Whom to ask.
    pub holder: Holder,
    /// Bytes that came from it and were right.
    pub bytes: u64,
    /// What was wrong with it last.
    pub fault: Option<Fault>,
    strikes: u32,
    /// Bytes and time of waiting since it was measured last.
    window: (u64, Duration),
}

impl Source {
    fn is_usable(&self) -> bool {
        self.fault != Some(Fault::Lied) && self.strikes < STRIKES
    }
}

/// Nobody is left to ask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no member gives the release any more ({0}): stage again when one is there; what is written already stays"
)]
pub struct GaveUp(pub String);

/// The sources of one release, and which of them is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    sources: Vec<Source>,
    current: usize,
}

impl Sources {
    /// The sources of one release. `spread`, such as a part of this node's id, says where to begin, so that not everybody
    /// asks the same member.
    #[must_use]
    pub fn new(holders: impl IntoIterator<Item = Holder>, spread: u64) -> Self {
        let mut sources: Vec<Source> = Vec::new();
        for holder in holders {
            if sources.len() < MAX_SOURCES
                && sources.iter().all(|known| known.holder.address != holder.address)
            {
                sources.push(Source {
                    holder,
                    bytes: 0,
                    fault: None,
                    strikes: 0,
                    window: (0, Duration::ZERO),
                });
            }
        }
        let current = usize::try_from(spread % sources.len().max(1) as u64).unwrap_or(0);
        Self { sources, current }
    }

    /// Whom to ask now.
    ///
    /// # Errors
    /// When all lied or failed too often.
    pub fn current(&self) -> Result<&Holder, GaveUp> {
        let current = self.sources.get(self.current).filter(|source| source.is_usable());
        current.map(|source| &source.holder).ok_or_else(|| GaveUp(self.why()))
    }

    /// All of them, with what came from each and what was wrong.
    #[must_use]
    pub fn all(&self) -> &[Source] {
        &self.sources
    }

    /// The current source gave a whole range, and it was right. `waited` is the time from request to last byte. Returns
    /// what is wrong nevertheless; another one is current then.
    pub fn delivered(&mut self, bytes: u64, waited: Duration) -> Option<Fault> {
        let alone = self.sources.iter().filter(|source| source.is_usable()).count() < 2;
        let source = self.sources.get_mut(self.current)?;
        source.bytes += bytes;
        source.window.0 += bytes;
        source.window.1 += waited.saturating_sub(ROUND_TRIP);
        let (got, time) = source.window;
        if time < WINDOW {
            // Whether a slow one has become faster is not known before the window ends.
            if source.fault != Some(Fault::Slow) {
                source.strikes = 0;
            }
            return None;
        }
        source.window = (0, Duration::ZERO);
        let least = if alone { FLOOR } else { SLOW };
        if u128::from(got) * 1000 >= u128::from(least) * time.as_millis() {
            source.strikes = 0;
            return None;
        }
        self.failed(Fault::Slow);
        Some(Fault::Slow)
    }

    /// The current source failed. Another one is current then, or the same where there is no other; [`Sources::current`]
    /// says when there is none.
    pub fn failed(&mut self, fault: Fault) {
        let Some(source) = self.sources.get_mut(self.current) else { return };
        // A lie is never forgotten.
        if source.fault != Some(Fault::Lied) {
            source.fault = Some(fault);
        }
        source.strikes += 1;
        source.window = (0, Duration::ZERO);
        let count = self.sources.len();
        let after = (1..=count).map(|step| (self.current + step) % count);
        // The fewest faults first; of equal ones whoever comes next.
        let next =
            after.filter(|&at| self.sources[at].is_usable()).min_by_key(|&at| self.sources[at].strikes);
        self.current = next.unwrap_or(self.current);
    }

    fn why(&self) -> String {
        if self.sources.is_empty() {
            return "no member that can be reached says that it holds it".to_owned();
        }
        let words = self.sources.iter().map(|source| match source.fault {
            Some(fault) => format!("{} {fault}", source.holder.name),
            None => source.holder.name.clone(),
        });
        words.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(count: u16, spread: u64) -> Sources {
        let holders = (0..count).map(|number| Holder {
            name: format!("n{number}"),
            address: SocketAddr::from(([0xfdc1, 0x505, 0, 0, 0, 0, 0, number], PORT)),
            version: Version::parse("1.1").unwrap(),
            prefix: Prefix([7; 8]),
        });
        Sources::new(holders, spread)
    }

    fn name(sources: &Sources) -> &str {
        sources.current().map_or("nobody", |holder| &holder.name)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn begins_where_it_is_told_and_stays_while_all_is_well() {
        let mut three = sources(3, 4);
        assert_eq!(name(&three), "n1");
        for _ in 0..1000 {
            assert_eq!(three.delivered(RANGE as u64, SECOND), None);
        }
        assert_eq!(name(&three), "n1");
        assert_eq!(three.all()[1].bytes, 1000 * RANGE as u64);
    }

    #[test]
    fn a_source_that_fails_is_asked_again_after_the_others_and_three_times_at_most() {
        let mut three = sources(3, 0);
        let mut asked = Vec::new();
        while let Ok(holder) = three.current() {
            asked.push(holder.name.clone());
            three.failed(Fault::Gone);
        }
        assert_eq!(asked, ["n0", "n1", "n2", "n0", "n1", "n2", "n0", "n1", "n2"]);
        let said = three.current().unwrap_err().to_string();
        assert!(said.contains("n1 gone") && said.contains("stage again"), "{said}");
    }

    #[test]
    fn a_whole_range_clears_what_was_before_it() {
        let mut one = sources(1, 0);
        for _ in 0..50 {
            one.failed(Fault::Stalled);
            one.failed(Fault::Gone);
            assert_eq!(one.delivered(4096, SECOND), None);
        }
        assert_eq!(name(&one), "n0");
    }

    #[test]
    fn a_liar_is_dropped_for_good_also_when_it_is_the_only_one() {
        let mut two = sources(2, 0);
        two.failed(Fault::Lied);
        for _ in 0..2 {
            assert_eq!(name(&two), "n1");
            two.failed(Fault::Gone);
        }
        assert_eq!(two.delivered(4096, SECOND), None);
        two.failed(Fault::Lied);
        assert_eq!(name(&two), "nobody");
        assert!(two.all().iter().all(|source| source.fault == Some(Fault::Lied)));
    }

    #[test]
    fn a_slow_source_is_left_for_another_but_not_for_nobody() {
        // 16 KiB/s.
        let crawl =
            |sources: &mut Sources| (0..100).find_map(|_| sources.delivered(16 << 10, SECOND + ROUND_TRIP));
        let mut two = sources(2, 0);
        assert_eq!(crawl(&mut two), Some(Fault::Slow));
        assert_eq!(name(&two), "n1");
        assert_eq!(crawl(&mut sources(1, 0)), None);
        let mut trickle = sources(1, 0);
        let mut waited = 0;
        while trickle.current().is_ok() {
            trickle.delivered(100, SECOND);
            waited += 1;
            assert!(waited < 100, "100 bytes a second are borne for ever");
        }
    }

    #[test]
    fn small_ranges_over_a_long_way_are_not_slow() {
        let mut two = sources(2, 0);
        for _ in 0..10_000 {
            assert_eq!(two.delivered(4096, Duration::from_millis(240)), None);
        }
        assert_eq!(name(&two), "n0");
    }

    #[test]
    fn nobody_and_too_many_are_no_trouble() {
        let mut nobody = sources(0, 3);
        assert!(nobody.current().is_err());
        nobody.failed(Fault::Gone);
        assert_eq!(nobody.delivered(1, SECOND), None);
        assert_eq!(sources(4000, 1).all().len(), MAX_SOURCES);
        let two = sources(2, 0);
        let twice = two.all().iter().chain(two.all()).map(|source| source.holder.clone());
        assert_eq!(Sources::new(twice, 0).all().len(), 2);
    }

    #[test]
    fn prefixes_come_back() {
        let prefix = Prefix::of(&Digest([0xab; 32]));
        assert_eq!(prefix.to_string(), "abababababababab");
        assert_eq!(Prefix::parse("abababababababab"), Some(prefix));
        for bad in ["", "ABABABABABABABAB", "abababababababa", "ababababababababab", "zz"] {
            assert_eq!(Prefix::parse(bad), None, "{bad}");
        }
    }
}
