// SPDX-License-Identifier: Apache-2.0
//! Rate limits per source and counters of what was refused.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;
use std::time::Duration;

use crate::consts::limits::*;

/// How often each source may do something.
#[derive(Clone, Copy)]
pub(crate) struct Rate {
    /// On average.
    pub(crate) per_second: u16,
    /// At once.
    pub(crate) burst: u16,
    /// How many sources may be as busy as they can at once; none: any number.
    pub(crate) sources: Option<u16>,
}

/// Token buckets: one for each source, by a secret hash, and one for all together, half of which is for sources that have used
/// less than half of their own. Nothing is remembered of a source, so no
/// number of them fills anything: whoever floods from many addresses empties buckets that others share, but refuses nobody for
/// ever.
pub(crate) struct Limiter {
    per_second: f32,
    burst: f32,
    /// So that nobody can choose addresses that share a bucket with somebody's.
    secret: u64,
    /// Made when the first source comes.
    sources: Vec<Bucket>,
    /// For all together, and how many times what a source may do.
    all: Option<(f32, Bucket)>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f32,
    /// In milliseconds; wraps after seven weeks, which gives a bucket that rested so long too few tokens once.
    filled: u32,
}

impl Bucket {
    fn fill(&mut self, per_second: f32, burst: f32, now: u32) {
        let elapsed = now.wrapping_sub(self.filled) as f32 / 1000.0;
        self.tokens = (self.tokens + elapsed * per_second).min(burst);
        self.filled = now;
    }

    fn take(&mut self, per_second: f32, burst: f32, now: u32) -> bool {
        self.fill(per_second, burst, now);
        let granted = self.tokens >= 1.0;
        if granted {
            self.tokens -= 1.0;
        }
        granted
    }
}

impl Limiter {
    pub(crate) fn new(rate: Rate, secret: u64) -> Self {
        let (per_second, burst) = (f32::from(rate.per_second), f32::from(rate.burst));
        let all = rate.sources.map(f32::from);
        let all = all.map(|factor| (factor, Bucket { tokens: burst * factor, filled: 0 }));
        Self { per_second, burst, secret, sources: Vec::new(), all }
    }

    /// Whether one more from this source is fine now.
    pub(crate) fn allow(&mut self, source: IpAddr, now: Duration) -> bool {
        match source {
            IpAddr::V4(v4) => self.allow_name(&v4.octets(), now),
            IpAddr::V6(v6) => self.allow_name(&v6.octets(), now),
        }
    }

    /// Whether all together have used up what there is for busy sources.
    pub(crate) fn is_used_up(&mut self, now: Duration) -> bool {
        let (per_second, burst, now) = (self.per_second, self.burst, now.as_millis() as u32);
        self.all.as_mut().is_some_and(|(factor, all)| {
            all.fill(per_second * *factor, burst * *factor, now);
            all.tokens < burst * *factor / 2.0 + 1.0
        })
    }

    /// [`Limiter::allow`] for a source that has another name than its address.
    pub(crate) fn allow_name(&mut self, source: &[u8], now: Duration) -> bool {
        let Self { per_second, burst, .. } = *self;
        let now = now.as_millis() as u32;
        if self.sources.is_empty() {
            self.sources = vec![Bucket { tokens: burst, filled: now }; BUCKETS];
        }
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.secret);
        hasher.write(source);
        let bucket = &mut self.sources[hasher.finish() as usize % BUCKETS];
        bucket.fill(per_second, burst, now);
        let is_quiet = bucket.tokens >= burst / 2.0;
        bucket.take(per_second, burst, now)
            && self.all.as_mut().is_none_or(|(factor, all)| {
                let (per_second, burst) = (per_second * *factor, burst * *factor);
                all.fill(per_second, burst, now);
                (is_quiet || all.tokens >= burst / 2.0 + 1.0) && all.take(per_second, burst, now)
            })
    }
}

/// Counters by reason.
#[derive(Default)]
pub(crate) struct Rejects(BTreeMap<&'static str, u64>);

impl Rejects {
    pub(crate) fn count(&mut self, reason: &'static str) {
        *self.0.entry(reason).or_default() += 1;
    }

    pub(crate) fn view(&self) -> BTreeMap<String, u64> {
        self.0.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + n).to_be_bytes())
    }

    #[test]
    fn a_noisy_source_does_not_starve_a_quiet_one() {
        let mut limiter = Limiter::new(Rate { per_second: 1, burst: 3, sources: Some(10) }, 7);
        let (noisy, quiet) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let granted = (0..100).filter(|_| limiter.allow(noisy, Duration::ZERO)).count();
        assert_eq!(granted, 3);
        assert!(limiter.allow(quiet, Duration::ZERO));
        assert!(limiter.allow(noisy, Duration::from_secs(1)));
    }

    #[test]
    fn all_together_have_a_limit_of_their_own() {
        let mut limiter = Limiter::new(Rate { per_second: 1, burst: 3, sources: Some(10) }, 7);
        let granted = (0..1000).filter(|n| limiter.allow(address(*n), Duration::ZERO)).count();
        assert_eq!(granted, 30);
        let granted = (0..1000).filter(|n| limiter.allow(address(*n), Duration::from_secs(1))).count();
        assert_eq!(granted, 10);
    }

    #[test]
    fn busy_sources_leave_half_of_what_is_for_all_to_quiet_ones() {
        let mut limiter = Limiter::new(Rate { per_second: 10, burst: 40, sources: Some(20) }, 7);
        let second = |n: u32| Duration::from_millis(u64::from(n) * 20);
        let (mut busy, mut quiet) = (0, 0);
        for n in 0..500 {
            // Fifty sources that ask all the time, and each time another one that does not.
            busy += (0..400).filter(|of| limiter.allow(address(of % 50), second(n))).count();
            quiet += u32::from(limiter.allow(address(1000 + n), second(n)));
        }
        assert!(quiet > 450, "{quiet} of 500");
        assert!((1500..2500).contains(&busy), "{busy} in ten seconds");
    }

    #[test]
    fn no_number_of_sources_refuses_another_one_for_ever() {
        let mut limiter = Limiter::new(Rate { per_second: 1, burst: 3, sources: None }, 7);
        for n in 0..100_000 {
            limiter.allow(address(n), Duration::ZERO);
        }
        let late =
            (0..1000).filter(|n| limiter.allow(address(1_000_000 + n), Duration::from_secs(3))).count();
        assert!(late > 900, "{late} of a thousand that come later, {BUCKETS} buckets between them");
    }

    #[test]
    fn who_shares_a_bucket_is_a_secret() {
        let starved = |secret| {
            let mut limiter = Limiter::new(Rate { per_second: 1, burst: 1, sources: None }, secret);
            limiter.allow(address(0), Duration::ZERO);
            (1..20_000).filter(|n| !limiter.allow(address(*n), Duration::ZERO)).take(3).collect::<Vec<_>>()
        };
        assert_ne!(starved(1), starved(2));
    }
}
