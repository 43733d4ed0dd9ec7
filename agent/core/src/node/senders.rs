// SPDX-License-Identifier: Apache-2.0
//! Members of a cluster that answered this node: they are asked one after the other to let it in.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};

use super::ctx::Ctx;
use crate::consts::discovery::{INTRODUCTION_GAP, MAX_SENDERS, SENDER_FOR};
use crate::id::{ClusterId, NodeId};
use crate::session::Path;

/// A member of a cluster that is not ours.
#[derive(Clone, Copy)]
pub(super) struct Sender {
    pub(super) node: NodeId,
    pub(super) instance: [u8; 8],
    pub(super) cluster: ClusterId,
    pub(super) path: Path,
    pub(super) heard: Duration,
}

#[derive(Default)]
pub(super) struct Senders {
    /// Those that were not tried yet.
    untried: BTreeMap<IpAddr, Sender>,
    /// Those that were tried just now, and where.
    sought: BTreeMap<(NodeId, IpAddr), Duration>,
}

impl Senders {
    /// One answered. The newest counts for its address; of too many addresses any gives way.
    pub(super) fn remember(&mut self, sender: Sender, rng: &mut StdRng) {
        self.untried.insert(sender.path.address.ip(), sender);
        if self.untried.len() > MAX_SENDERS
            && let Some(other) = self.untried.keys().choose(rng).copied()
        {
            self.untried.remove(&other);
        }
    }

    /// Forgets those that answered long ago, or are of this node's own cluster.
    pub(super) fn forget_old(&mut self, mine: Option<ClusterId>, now: Duration) {
        self.untried.retain(|_, sender| {
            Some(sender.cluster) != mine && now.saturating_sub(sender.heard) < SENDER_FOR
        });
    }

    /// Forgets those that were not tried.
    pub(super) fn forget_all(&mut self) {
        self.untried.clear();
    }

    /// Takes any of those that may be tried.
    pub(super) fn draw(&mut self, may: impl Fn(&Sender, &Ctx) -> bool, ctx: &mut Ctx) -> Option<Sender> {
        let untried = self.untried.iter().filter(|(_, sender)| may(sender, ctx));
        let addresses: Vec<IpAddr> = untried.map(|(ip, _)| *ip).collect();
        self.untried.remove(addresses.choose(&mut ctx.rng)?)
    }

    /// Whether one may be tried again at its address; notes it if so.
    pub(super) fn note_sought(&mut self, sender: &Sender, now: Duration) -> bool {
        self.sought.retain(|_, last| now.saturating_sub(*last) < INTRODUCTION_GAP);
        let place = (sender.node, sender.path.address.ip());
        let may = self.sought.len() < MAX_SENDERS && !self.sought.contains_key(&place);
        if may {
            self.sought.insert(place, now);
        }
        may
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn assert_bounded(&self) {
        assert!(self.untried.len() <= MAX_SENDERS && self.sought.len() <= MAX_SENDERS);
    }
}
