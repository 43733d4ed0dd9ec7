// SPDX-License-Identifier: Apache-2.0
//! Rate limits per source and counters of what was refused.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Twice the largest cluster: each machine has an address of each family.
const MAX_SOURCES: usize = 8192;
/// A full table is cleaned at most this often, or a flood from many addresses would make each datagram cost a walk.
const CLEAN_EVERY: Duration = Duration::from_secs(1);

/// Token buckets, one per source address, and one for all together.
pub(crate) struct Limiter {
    per_second: f64,
    burst: f64,
    /// By address as a number: whoever is among a thousand neighbours looks this up for each of their datagrams.
    sources: BTreeMap<u128, Bucket>,
    all: Bucket,
    all_factor: f64,
    cleaned: Option<Duration>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Duration,
}

impl Bucket {
    fn take(&mut self, per_second: f64, burst: f64, now: Duration) -> bool {
        let elapsed = now.saturating_sub(self.filled).as_secs_f64();
        self.tokens = (self.tokens + elapsed * per_second).min(burst);
        self.filled = now;
        let granted = self.tokens >= 1.0;
        if granted {
            self.tokens -= 1.0;
        }
        granted
    }
}

impl Limiter {
    /// Each source may do `per_second` on average and `burst` at once; all together `all_factor` times that.
    pub(crate) fn new(per_second: u32, burst: u32, all_factor: u32) -> Self {
        let (per_second, burst, all_factor) =
            (f64::from(per_second), f64::from(burst), f64::from(all_factor));
        let all = Bucket { tokens: burst * all_factor, filled: Duration::ZERO };
        Self { per_second, burst, sources: BTreeMap::new(), all, all_factor, cleaned: None }
    }

    /// Whether one more from this source is fine now.
    pub(crate) fn allow(&mut self, source: IpAddr, now: Duration) -> bool {
        let source = match source {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            if self.cleaned.is_none_or(|cleaned| now.saturating_sub(cleaned) >= CLEAN_EVERY) {
                // Sources that have been quiet long enough to be full again carry no information.
                let full = Duration::from_secs_f64(self.burst / self.per_second);
                self.sources.retain(|_, bucket| now.saturating_sub(bucket.filled) < full);
                self.cleaned = Some(now);
            }
            if self.sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        let fresh = Bucket { tokens: self.burst, filled: now };
        let bucket = self.sources.entry(source).or_insert(fresh);
        bucket.take(self.per_second, self.burst, now)
            && self.all.take(self.per_second * self.all_factor, self.burst * self.all_factor, now)
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

    #[test]
    fn a_noisy_source_does_not_starve_a_quiet_one() {
        let mut limiter = Limiter::new(1, 3, 10);
        let (noisy, quiet) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let granted = (0..100).filter(|_| limiter.allow(noisy, Duration::ZERO)).count();
        assert_eq!(granted, 3);
        assert!(limiter.allow(quiet, Duration::ZERO));
        assert!(limiter.allow(noisy, Duration::from_secs(1)));
    }

    #[test]
    fn remembers_a_bounded_number_of_sources() {
        let mut limiter = Limiter::new(1, 3, 1_000_000);
        for n in 0..20_000u32 {
            limiter.allow(IpAddr::from(n.to_be_bytes()), Duration::ZERO);
        }
        assert_eq!(limiter.sources.len(), MAX_SOURCES);
        assert!(limiter.allow("203.0.113.1".parse().unwrap(), Duration::from_secs(10)));
    }
}
