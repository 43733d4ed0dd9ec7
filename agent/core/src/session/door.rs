// SPDX-License-Identifier: Apache-2.0
//! Which handshakes of others are worth a key agreement. What has no right tag is not. With little to do all others are; beyond
//! that, those whose source has proven that it can hear us, and of these the addresses of members have a share that nobody else
//! can use up: so a member comes in however many handshakes somebody sends who can make tags.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::Path;
use super::cookie::Cookies;
use super::peer::Peer;
use crate::consts::door::*;
use crate::id::{ClusterId, NodeId};
use crate::limit::Limiter;
use crate::noise::Carrier;
use crate::tag::{TAG, TagKey};

/// What becomes of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Agree,
    TellCookie,
    Refuse,
}

/// A handshake as it came.
pub(super) struct Knock<'a> {
    /// With its tag: the same bytes get the same answer.
    pub(super) bytes: &'a [u8],
    pub(super) message: &'a [u8],
    pub(super) tag: &'a [u8],
    proof: &'a [u8],
}

pub(super) struct Door {
    tag: TagKey,
    pub(super) cookies: Cookies,
    unproven: Limiter,
    proven: Limiter,
    members: Limiter,
    repeats: Limiter,
    members_repeats: Limiter,
    cookie_answers: Limiter,
    /// Where members say that they are, and where they were heard before this boot.
    pub(super) named: BTreeSet<IpAddr>,
    /// Where they were heard, and when that was gathered.
    known: BTreeSet<IpAddr>,
    gathered: Option<Duration>,
}

impl Door {
    pub(super) fn new(cluster: &ClusterId, session_key: &[u8; 32], rng: &mut StdRng) -> Self {
        let mut shared = |rate| Limiter::new(rate, rng.next_u64());
        let (unproven, proven, repeats) = (shared(UNPROVEN), shared(PROVEN), shared(UNPROVEN));
        let (members, members_repeats) = (shared(MEMBERS), shared(MEMBERS));
        Self {
            tag: TagKey::new(Carrier::Datagrams, cluster, session_key),
            cookies: Cookies::new(cluster, session_key, rng),
            unproven,
            proven,
            members,
            repeats,
            members_repeats,
            cookie_answers: Limiter::new(COOKIES, rng.next_u64()),
            named: BTreeSet::new(),
            known: BTreeSet::new(),
            gathered: None,
        }
    }

    /// Takes a handshake apart, if its tag says that it is for us.
    pub(super) fn open<'a>(&self, datagram: &'a [u8]) -> Option<Knock<'a>> {
        let (bytes, proof) = datagram.split_at_checked(datagram.len().checked_sub(TAG)?)?;
        let message = self.tag.open(bytes)?;
        Some(Knock { bytes, message, tag: &bytes[message.len()..], proof })
    }

    /// What is in front of the tag of an answer, if that says that it is for us.
    pub(super) fn untag<'a>(&self, datagram: &'a [u8]) -> Option<&'a [u8]> {
        self.tag.open(datagram)
    }

    /// Whether the answer that was given may be given again.
    pub(super) fn repeats(&mut self, from: Path, peers: &BTreeMap<NodeId, Peer>, now: Duration) -> bool {
        let ip = from.address.ip();
        self.repeats.allow(ip, now) || (self.is_known(ip, peers, now) && self.members_repeats.allow(ip, now))
    }

    /// Whether the source of a handshake has proven that it hears us.
    pub(super) fn is_proven(&self, from: Path, knock: &Knock<'_>) -> bool {
        self.cookies.is_proven(from.address, knock.bytes, knock.proof)
    }

    /// What to do about a handshake that has to be worked out.
    pub(super) fn judge(
        &mut self,
        from: Path,
        knock: &Knock<'_>,
        peers: &BTreeMap<NodeId, Peer>,
        now: Duration,
    ) -> Verdict {
        let ip = from.address.ip();
        if self.unproven.allow(ip, now) {
            return Verdict::Agree;
        }
        let known = self.is_known(ip, peers, now);
        if self.is_proven(from, knock) {
            let share = if known { &mut self.members } else { &mut self.proven };
            return if share.allow(ip, now) { Verdict::Agree } else { Verdict::Refuse };
        }
        // To members always: it is less than they, or who speaks in their name, said.
        if known || self.cookie_answers.allow(ip, now) { Verdict::TellCookie } else { Verdict::Refuse }
    }

    /// Whether a member may be at an address. A beacon is no reason to think so.
    pub(super) fn is_known(&mut self, ip: IpAddr, peers: &BTreeMap<NodeId, Peer>, now: Duration) -> bool {
        if self.gathered.is_none_or(|gathered| now.saturating_sub(gathered) >= GATHER_EVERY) {
            self.known = peers.values().flat_map(|peer| peer.paths.addresses()).collect();
            self.gathered = Some(now);
        }
        self.known.contains(&ip) || self.named.contains(&ip)
    }
}
