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
/// It may stall twice in a file.
const START: Duration = Duration::from_secs(2 * STALL.as_secs());
/// Of every request, not counted as waiting: the way there and back says nothing about the rate, and most ranges of an
/// update are a few blocks.
pub const ROUND_TRIP: Duration = Duration::from_millis(250);
/// Windows in a row in which a source may be too slow.
pub const SLOW_WINDOWS: u32 = 3;
/// The longest that a source which failed is left alone.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(16);
/// Failures in a row after which a source is none that a slow one is left for,
const REFUSALS: u32 = 2;
/// and for how long.
const FORGIVEN: Duration = Duration::from_secs(60);
/// Characters of what a source said that are kept for people.
const MAX_SAID: usize = 160;
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

/// How long members are borne with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// When each member has failed and none has given anything right for so long, it ends.
    pub silence: Duration,
    /// A member that failed is left alone for so long; twice as long after each further failure in a row.
    pub pause: Duration,
    /// What it may take for a file beside the time that its bytes need.
    pub start: Duration,
    /// Bytes a second that the only member left must give.
    pub floor: u64,
}

impl Patience {
    /// There are other versions to be had: no member holds all of them up.
    pub const SHORT: Self =
        Self { silence: Duration::from_secs(20), pause: Duration::from_secs(1), start: START, floor: SLOW };
    /// There is nothing else. Longer than it takes a member to be done with its own update's moments of not serving.
    pub const LONG: Self =
        Self { silence: Duration::from_secs(120), pause: Duration::from_secs(1), start: START, floor: FLOOR };
}

/// A source and what came from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Whom to ask.
    pub holder: Holder,
    /// Bytes that came from it and were right.
    pub bytes: u64,
    /// Bytes that came from it and that nobody can judge yet; none where nothing of that kind was asked for.
    unproven: Option<u64>,
    /// What could not be judged at once was wrong, or did not come in time.
    misled: bool,
    /// What was wrong with it last.
    pub fault: Option<Fault>,
    /// How that showed, for people.
    said: String,
    /// Failures in a row.
    strikes: u32,
    /// Windows in a row in which it was too slow.
    slow: u32,
    /// It is left alone until then.
    not_before: Duration,
    /// Bytes and time of waiting since it was measured last.
    window: (u64, Duration),
}

impl Source {
    fn is_usable(&self) -> bool {
        self.fault != Some(Fault::Lied) && self.slow < SLOW_WINDOWS
    }
}

/// Nobody is left to ask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no member gives the release any more ({0}): stage again when one is there; what is written already stays"
)]
pub struct GaveUp(pub String);

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn<'a> {
    /// Ask this one.
    Ask(&'a Holder),
    /// Each has just failed: wait for so long.
    Wait(Duration),
}

/// The sources of one release, and which of them is asked. `now` is the time since any fixed moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    sources: Vec<Source>,
    current: usize,
    /// The current one failed: another one is to be chosen.
    moves_on: bool,
    patience: Patience,
    /// The first failure since something right came.
    failing_since: Option<Duration>,
    gave_up: bool,
}

impl Sources {
    /// The sources of one release. `spread`, such as a part of this node's id, says where to begin, so that not everybody
    /// asks the same member.
    #[must_use]
    pub fn new(holders: impl IntoIterator<Item = Holder>, spread: u64, patience: Patience) -> Self {
        let mut sources: Vec<Source> = Vec::new();
        for holder in holders {
            if sources.len() < MAX_SOURCES
                && sources.iter().all(|known| known.holder.address != holder.address)
            {
                sources.push(Source {
                    holder,
                    bytes: 0,
                    unproven: None,
                    misled: false,
                    fault: None,
                    said: String::new(),
                    strikes: 0,
                    slow: 0,
                    not_before: Duration::ZERO,
                    window: (0, Duration::ZERO),
                });
            }
        }
        let current = usize::try_from(spread % sources.len().max(1) as u64).unwrap_or(0);
        Self { sources, current, moves_on: false, patience, failing_since: None, gave_up: false }
    }

    /// The one that is asked, or was asked last.
    ///
    /// # Errors
    /// When it is not asked again.
    pub fn current(&self) -> Result<&Holder, GaveUp> {
        let current = self.sources.get(self.current).filter(|source| source.is_usable());
        current.map(|source| &source.holder).ok_or_else(|| GaveUp(self.why()))
    }

    /// Whom to ask now.
    ///
    /// # Errors
    /// When all lied or were slow, or all failed and none has given anything right for too long.
    pub fn turn(&mut self, now: Duration) -> Result<Turn<'_>, GaveUp> {
        self.gave_up = true;
        let ready = |source: &Source| source.is_usable() && source.not_before <= now;
        if self.moves_on || !self.sources.get(self.current).is_some_and(ready) {
            let count = self.sources.len();
            let after = (1..=count).map(|step| (self.current + step) % count);
            // The fewest failures first; of equal ones whoever comes next.
            let next =
                after.filter(|&at| ready(&self.sources[at])).min_by_key(|&at| self.sources[at].strikes);
            self.moves_on = next.is_none();
            self.current = next.unwrap_or(self.current);
        }
        let usable = || self.sources.iter().filter(|source| source.is_usable());
        let Some(first) = usable().map(|source| source.not_before).min() else {
            return Err(GaveUp(self.why()));
        };
        let mut left = Duration::MAX;
        if let Some(since) = self.failing_since
            && usable().all(|source| source.strikes > 0)
        {
            left = (since + self.patience.silence).saturating_sub(now);
            if left.is_zero() {
                return Err(GaveUp(self.why()));
            }
        }
        self.gave_up = false;
        match self.sources.get(self.current).filter(|source| ready(source)) {
            Some(source) => Ok(Turn::Ask(&source.holder)),
            None => Ok(Turn::Wait(first.saturating_sub(now).min(left))),
        }
    }

    /// Nobody was left when it was asked last who is.
    #[must_use]
    pub fn have_given_up(&self) -> bool {
        self.gave_up
    }

    /// All of them, with what came from each and what was wrong.
    #[must_use]
    pub fn all(&self) -> &[Source] {
        &self.sources
    }

    /// How long the current source may take for a file or a part of one.
    #[must_use]
    pub fn time_for(&self, bytes: u64, now: Duration) -> Duration {
        let ranges = u32::try_from(bytes.div_ceil(RANGE as u64)).unwrap_or(u32::MAX);
        self.patience.start + ROUND_TRIP.saturating_mul(ranges) + Duration::from_secs(bytes / self.least(now))
    }

    /// How long it may take for the list of its files.
    #[must_use]
    pub fn time_for_list(&self) -> Duration {
        self.patience.start
    }

    /// How long it may take for that list, manifest, root documents and signatures, all together: nothing is known yet of what it
    /// announces, and somebody else may have the same or another version.
    #[must_use]
    pub fn time_for_small_files(&self, bytes: u64) -> Duration {
        self.patience.start * 2 + Duration::from_secs(bytes / SLOW)
    }

    /// Bytes a second that are enough. A member that refuses again and again is nobody else to turn to, until it is tried again.
    fn least(&self, now: Duration) -> u64 {
        let gives = |source: &Source| {
            let refuses = source.strikes >= REFUSALS && now < source.not_before + FORGIVEN;
            source.is_usable() && !refuses
        };
        let others =
            self.sources.iter().enumerate().filter(|(at, source)| *at != self.current && gives(source));
        if others.count() == 0 { self.patience.floor.max(1) } else { SLOW }
    }

    /// The current source gave what was asked for, and it was right. `waited` is the time from request to last byte. Returns
    /// what is wrong nevertheless; another one is asked next then.
    pub fn delivered(&mut self, bytes: u64, waited: Duration, now: Duration) -> Option<Fault> {
        self.failing_since = None;
        let source = self.sources.get_mut(self.current)?;
        source.bytes += bytes;
        source.strikes = 0;
        self.measure(bytes, waited, now)
    }

    /// The current source is about to be asked for what nobody can judge at once. False when such things were wrong before: it
    /// is asked for nothing but the rest then.
    pub fn trust(&mut self) -> bool {
        let Some(source) = self.sources.get_mut(self.current).filter(|source| !source.misled) else {
            return false;
        };
        source.unproven.get_or_insert(0);
        true
    }

    /// The current source gave what was asked for, and whether it is right shows later ([`Self::judged`]). It is measured like
    /// the rest and makes good for nothing: garbage between failures must not go on for ever.
    pub fn received(&mut self, bytes: u64, waited: Duration, now: Duration) -> Option<Fault> {
        // Nor is this time in which nothing came.
        self.failing_since = self.failing_since.map(|since| (since + waited).min(now));
        *self.sources.get_mut(self.current)?.unproven.get_or_insert(0) += bytes;
        self.measure(bytes, waited, now)
    }

    /// Whether all that was trusted since this was said last is there and right. Of several that gave it nobody knows which one
    /// was wrong.
    pub fn judged(&mut self, are_right: bool) {
        for source in &mut self.sources {
            let Some(bytes) = source.unproven.take() else { continue };
            source.misled = !are_right;
            if are_right && bytes > 0 {
                source.bytes += bytes;
                source.strikes = 0;
                self.failing_since = None;
            }
        }
    }

    fn measure(&mut self, bytes: u64, waited: Duration, now: Duration) -> Option<Fault> {
        let least = self.least(now);
        let source = self.sources.get_mut(self.current)?;
        source.window.0 += bytes;
        source.window.1 += waited.saturating_sub(ROUND_TRIP);
        let (got, time) = source.window;
        if time < WINDOW {
            // Whether a slow one has become faster is not known before the window ends.
            return None;
        }
        if u128::from(got) * 1000 >= u128::from(least) * time.as_millis() {
            source.window = (0, Duration::ZERO);
            source.slow = 0;
            return None;
        }
        let rate = u128::from(got) * 1000 / time.as_millis().max(1);
        self.failed(Fault::Slow, &format!("{rate} bytes a second"), now, 0);
        Some(Fault::Slow)
    }

    /// The current source failed and is left alone for a while. `chance` is any number: where many nodes were refused at the
    /// same moment, they come back at different ones.
    pub fn failed(&mut self, fault: Fault, said: &str, now: Duration, chance: u64) {
        let Some(source) = self.sources.get_mut(self.current) else { return };
        // A lie is never forgotten.
        if source.fault != Some(Fault::Lied) {
            source.fault = Some(fault);
            source.said = said.chars().filter(|c| !c.is_control()).take(MAX_SAID).collect();
        }
        // Only then: whoever fails before each window ends would never be measured.
        if fault == Fault::Slow {
            source.slow += 1;
            source.window = (0, Duration::ZERO);
        }
        let doubled = self.patience.pause.saturating_mul(1 << source.strikes.min(16));
        source.strikes = source.strikes.saturating_add(1);
        // Between a half and all of it.
        let half = doubled.min(LONGEST_PAUSE) / 2;
        source.not_before = now + half + half * (chance % 1024) as u32 / 1024;
        self.failing_since.get_or_insert(now);
        self.moves_on = true;
    }

    fn why(&self) -> String {
        if self.sources.is_empty() {
            return "no member that can be reached says that it holds it".to_owned();
        }
        let words = self.sources.iter().map(|source| match source.fault {
            Some(fault) if source.said.is_empty() => format!("{} {fault}", source.holder.name),
            Some(fault) => format!("{} {fault}: {}", source.holder.name, source.said),
            None => source.holder.name.clone(),
        });
        words.collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
#[path = "sources_tests.rs"]
mod tests;
