// SPDX-License-Identifier: Apache-2.0
//! What this node says of itself: its signed record, and the numbers that make a later one win.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::files::Pace;
use crate::consts::FEATURE_LEVEL;
use crate::consts::own::*;
use crate::gossip::GossipId;
use crate::keys::Keys;
use crate::record::{NodeRecord, Release, Sequence};
use crate::signed::Verified;

/// A generation from here on was signed by somebody with a copy of this node's key who wants it to run out of numbers.
const LAST_GENERATION: u32 = u32::MAX - (1 << 16);

/// This node's record.
pub(super) struct OwnRecord {
    signed: Verified<NodeRecord>,
    generation: u32,
    /// Records made in this generation.
    counter: u32,
    /// Bump that our gossip identity begins with.
    bump: u32,
    /// When the generation last jumped because a later record of ours came.
    advanced: Option<Duration>,
    hostname: String,
    /// What this node gives to others.
    releases: Vec<Release>,
    /// Records that were signed because of other addresses, and whether one is to be.
    endpoints_signed: Pace,
    endpoints_due: bool,
}

/// What a later record of ours leads to.
pub(super) enum Advance {
    /// To this generation, which must be saved.
    Generation(u32),
    /// The last jump was a moment ago.
    TooSoon,
    /// There is none.
    Exhausted,
}

impl OwnRecord {
    pub(super) fn new(keys: &Keys, generation: u32) -> Self {
        let hostname = keys.node_id().default_hostname();
        let record = NodeRecord {
            public_key: keys.public(),
            sequence: Sequence { generation, counter: 0 },
            session_key: keys.session_public(),
            wireguard_key: keys.wireguard_public(),
            feature_level: FEATURE_LEVEL,
            hostname: hostname.clone(),
            version: String::new(),
            endpoints: Vec::new(),
            labels: BTreeMap::new(),
            releases: Vec::new(),
        };
        Self {
            signed: Verified::sign(record, keys),
            generation,
            counter: 0,
            bump: 0,
            advanced: None,
            hostname,
            releases: Vec::new(),
            endpoints_signed: Pace::default(),
            endpoints_due: false,
        }
    }

    pub(super) fn signed(&self) -> &Verified<NodeRecord> {
        &self.signed
    }

    pub(super) fn sequence(&self) -> Sequence {
        self.signed.sequence
    }

    pub(super) fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Identity under which gossip begins in a cluster. `former`: the one in the cluster before.
    pub(super) fn begin_gossip(&mut self, former: Option<GossipId>) -> GossipId {
        if let Some(former) = former {
            self.bump = former.bump + 1;
        }
        self.advanced = None;
        GossipId { node: self.signed.node_id(), generation: self.generation, bump: self.bump }
    }

    /// Whether the record covers the gossip identity that began last. It must be signed again if not.
    pub(super) fn covers_gossip(&self) -> bool {
        self.counter >= self.bump
    }

    pub(super) fn set_hostname(&mut self, hostname: String) {
        self.hostname = hostname;
    }

    pub(super) fn set_releases(&mut self, releases: Vec<Release>) {
        self.releases = releases;
    }

    /// Whether a record is signed now because of other addresses: at once, but ever more rarely while they change all the time.
    pub(super) fn wants_endpoints(&mut self, endpoints: &[SocketAddr], now: Duration) -> bool {
        self.endpoints_due = self.signed.endpoints != endpoints;
        let wants = self.endpoints_due && self.endpoints_signed.allows(now);
        self.endpoints_due &= !wants;
        wants
    }

    /// Whether other addresses wait for their turn.
    pub(super) fn is_endpoints_due(&self) -> bool {
        self.endpoints_due
    }

    /// Signs a new record if anything in it changed; gives whether.
    pub(super) fn renew(
        &mut self,
        version: &str,
        labels: BTreeMap<String, String>,
        endpoints: Vec<SocketAddr>,
        keys: &Keys,
    ) -> bool {
        let mut version: String = version.chars().filter(|c| !c.is_control()).collect();
        version.truncate(version.floor_char_boundary(32));
        let mut record = NodeRecord {
            sequence: self.next_sequence(),
            hostname: self.hostname.clone(),
            version,
            endpoints,
            labels,
            ..(*self.signed).clone()
        };
        record.set_releases(&self.releases);
        let changed = record != *self.signed;
        if changed {
            self.counter += 1;
            self.sign(record, keys);
        }
        changed
    }

    /// Signs it again under a new sequence that covers a gossip identity with this bump.
    pub(super) fn renew_sequence(&mut self, bump: Option<u32>, keys: &Keys) {
        self.counter = self.counter.saturating_add(1).max(bump.unwrap_or(self.bump));
        self.sign((*self.signed).clone(), keys);
    }

    /// A record of ours came that is later than what we know: state was lost or restored. The next one is later still.
    pub(super) fn advance_generation(&mut self, theirs: Sequence, now: Duration) -> Advance {
        if theirs.generation >= LAST_GENERATION {
            return Advance::Exhausted;
        }
        if self.advanced.is_some_and(|last| now.saturating_sub(last) < ADVANCE_GAP) {
            return Advance::TooSoon;
        }
        self.advanced = Some(now);
        (self.generation, self.counter) = (theirs.generation + 1, 0);
        Advance::Generation(self.generation)
    }

    fn next_sequence(&self) -> Sequence {
        Sequence { generation: self.generation, counter: self.counter }
    }

    fn sign(&mut self, record: NodeRecord, keys: &Keys) {
        self.signed = Verified::sign(NodeRecord { sequence: self.next_sequence(), ..record }, keys);
    }
}
