// SPDX-License-Identifier: Apache-2.0
//! What members say of each other, and how far it counts.
//!
//! Gossip carries unsigned claims: "X is down in its boot 7, renewal 2". Of two claims about a node the one with the higher
//! identity wins, so whoever may invent identities decides for ever: X would have to outbid a number near its end. Therefore:
//!
//! * An identity counts only if its node's own signed record covers it: the record is of a later boot, or of that boot with a
//!   counter that is not below the renewals. So it is for the source of a packet, too. A node's record covers its next
//!   renewal in advance, and it gives its record to whoever it opens a session with.
//! * A node answers claims about itself at a limited rate. It signs and gossips for each that it answers.

use std::time::Duration;

use foca::State;

use super::members::Members;
use super::{GossipId, Liveness};
use crate::record::Sequence;

/// Shortest time between two new identities of this node.
const RENEW_GAP: Duration = Duration::from_secs(1);
/// It doubles with each that follows within [`RENEW_CALM`], up to this.
const RENEW_GAP_MAX: Duration = Duration::from_secs(16);
/// After this long without a new identity the next one comes at once.
const RENEW_CALM: Duration = Duration::from_secs(60);
/// Shortest time between two answers to a suspicion. One costs three packets.
const REFUTE_GAP: Duration = Duration::from_millis(200);

/// What is here of a node's own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// No member, to our knowledge.
    Stranger,
    /// A member without a record.
    Missing,
    /// Sequence of its newest record.
    Signed(Sequence),
}

impl Word {
    /// Whether it covers an identity.
    pub(crate) fn covers(self, id: &GossipId) -> bool {
        match self {
            Self::Signed(record) => (id.generation, id.bump) <= (record.generation, record.counter),
            Self::Stranger | Self::Missing => false,
        }
    }
}

/// Decides which claims of others reach foca.
pub(super) struct Claims<'a> {
    me: GossipId,
    now: Duration,
    members: &'a Members,
    renewals: &'a mut Renewals,
    /// One of them named us by an identity above ours, and it is time to go beyond it.
    pub(super) outbid: bool,
}

impl<'a> Claims<'a> {
    pub(super) fn new(me: GossipId, now: Duration, members: &'a Members, renewals: &'a mut Renewals) -> Self {
        Self { me, now, members, renewals, outbid: false }
    }

    /// Whether foca should hear this. `word` is of the node that is named. What is no news it need not: it searches all
    /// members for each.
    pub(super) fn takes(&mut self, one: &Liveness, word: Word) -> bool {
        if !word.covers(&one.id) {
            return false;
        }
        if one.id.node != self.me.node || one.id < self.me {
            return !self.members.holds(one);
        }
        if one.id > self.me {
            self.outbid |= self.renewals.may_renew(self.now);
            return false;
        }
        match one.state {
            State::Alive => false,
            State::Suspect => self.renewals.may_refute(self.now),
            State::Down => self.renewals.may_renew(self.now),
        }
    }
}

/// How often this node answers what is said of it.
#[derive(Default)]
pub(super) struct Renewals {
    renewed: Option<Duration>,
    gap: Duration,
    refuted: Option<Duration>,
}

impl Renewals {
    /// Whether a new identity is due; notes it.
    pub(super) fn may_renew(&mut self, now: Duration) -> bool {
        let since = self.renewed.map(|last| now.saturating_sub(last));
        let gap = match since {
            Some(since) if since < self.gap => return false,
            Some(since) if since < RENEW_CALM => (self.gap * 2).min(RENEW_GAP_MAX),
            _ => RENEW_GAP,
        };
        (self.renewed, self.gap) = (Some(now), gap);
        true
    }

    /// Whether a suspicion may be answered; notes it.
    fn may_refute(&mut self, now: Duration) -> bool {
        if self.refuted.is_some_and(|last| now.saturating_sub(last) < REFUTE_GAP) {
            return false;
        }
        self.refuted = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    fn id(generation: u32, bump: u32) -> GossipId {
        GossipId { node: NodeId([1; 32]), generation, bump }
    }

    fn signed(generation: u32, counter: u32) -> Word {
        Word::Signed(Sequence { generation, counter })
    }

    #[test]
    fn a_record_covers_its_boot_up_to_its_counter_and_all_earlier_boots() {
        let word = signed(5, 3);
        assert!(word.covers(&id(5, 3)) && word.covers(&id(4, u32::MAX)));
        assert!(!word.covers(&id(5, 4)) && !word.covers(&id(6, 0)) && !word.covers(&id(u32::MAX, 0)));
        assert!(!Word::Stranger.covers(&id(0, 0)) && !Word::Missing.covers(&id(0, 0)));
    }

    #[test]
    fn renewals_are_rarer_the_more_there_are_and_soon_again_after_calm() {
        let mut renewals = Renewals::default();
        let renewed: Vec<_> =
            (0..600u64).filter(|tenths| renewals.may_renew(Duration::from_millis(tenths * 100))).collect();
        assert_eq!(renewed, [0, 10, 30, 70, 150, 310, 470]);
        assert!(renewals.may_renew(Duration::from_secs(47 + 60)));
        assert!(renewals.may_renew(Duration::from_secs(47 + 61)));
    }
}
