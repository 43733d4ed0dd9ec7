// SPDX-License-Identifier: Apache-2.0
//! What members say of each other, and how far it counts.
//!
//! Gossip carries unsigned claims: "X is down in its boot 7, renewal 2". Of two claims about a node the one with the higher
//! identity wins, so whoever may invent identities decides for ever: X would have to outbid a number near its end. Therefore:
//!
//! * An identity counts only if its node's own signed record covers it: the record is of a later boot, or of that boot with a
//!   counter that is not below the renewals. So it is for the source of a packet, too. A node gives its record to whoever it
//!   opens a session with.
//! * A node answers claims about itself at a limited rate: it signs and gossips for each answer. What it cannot answer yet it
//!   answers later, so a liar that speaks more often delays no answer beyond that. foca never renews by itself: it would
//!   take the next identity, and a liar may have named all up to the record's counter. The node goes beyond that.

use std::time::Duration;

use foca::State;

use super::members::Members;
use super::{GossipId, Liveness};
use crate::consts::claims::*;
use crate::record::Sequence;

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

/// Decides which claims of others reach foca, and notes what is said of this node.
pub(super) struct Claims<'a> {
    me: GossipId,
    members: &'a Members,
    answers: &'a mut Answers,
}

impl<'a> Claims<'a> {
    pub(super) fn new(me: GossipId, members: &'a Members, answers: &'a mut Answers) -> Self {
        Self { me, members, answers }
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
        match one.state {
            _ if one.id > self.me => self.answers.renew = true,
            State::Alive => {}
            State::Suspect => self.answers.suspected = self.answers.suspected.max(Some(one.incarnation)),
            State::Down => self.answers.renew = true,
        }
        false
    }
}

/// What is said of this node and not answered yet, and when it may be.
#[derive(Default)]
pub(super) struct Answers {
    /// Others believe that this identity is down, or another one that we do not have.
    pub(super) renew: bool,
    /// The highest incarnation at which this identity is suspected.
    suspected: Option<u16>,
    renewed: Option<Duration>,
    gap: Duration,
    refuted: Option<Duration>,
}

impl Answers {
    /// Whether a new identity is wanted and due; notes it.
    pub(super) fn renew_now(&mut self, now: Duration) -> bool {
        if !self.renew || self.renew_at().is_some_and(|at| now < at) {
            return false;
        }
        let calm = self.renewed.is_none_or(|last| now.saturating_sub(last) >= RENEW_CALM);
        self.gap = if calm { RENEW_GAP } else { (self.gap * 2).min(RENEW_GAP_MAX) };
        (self.renewed, self.renew, self.suspected) = (Some(now), false, None);
        true
    }

    /// The incarnation of a suspicion that is to be answered now; notes it. One that leaves no higher incarnation needs a
    /// new identity.
    pub(super) fn refute_now(&mut self, now: Duration) -> Option<u16> {
        let incarnation = self.suspected?;
        if incarnation >= u16::MAX - 1 {
            (self.renew, self.suspected) = (true, None);
            return None;
        }
        if self.refute_at().is_some_and(|at| now < at) {
            return None;
        }
        (self.refuted, self.suspected) = (Some(now), None);
        Some(incarnation)
    }

    /// When there is something to answer next.
    pub(super) fn due(&self) -> Option<Duration> {
        let renewal = self.renew.then(|| self.renew_at().unwrap_or_default());
        let refutation = self.suspected.map(|_| self.refute_at().unwrap_or_default());
        renewal.into_iter().chain(refutation).min()
    }

    fn renew_at(&self) -> Option<Duration> {
        self.renewed.map(|last| last + self.gap)
    }

    fn refute_at(&self) -> Option<Duration> {
        self.refuted.map(|last| last + REFUTE_GAP)
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
        let mut answers = Answers::default();
        let mut renew = |ms| {
            answers.renew = true;
            answers.renew_now(Duration::from_millis(ms))
        };
        let renewed: Vec<_> = (0..600u64).filter(|tenths| renew(tenths * 100)).collect();
        assert_eq!(renewed, [0, 10, 30, 70, 150, 310, 470]);
        assert!(renew(107_000));
        assert!(renew(108_000));
    }

    #[test]
    fn what_is_not_answered_yet_is_answered_later() {
        let mut answers = Answers { renew: true, suspected: Some(3), ..Answers::default() };
        let now = Duration::from_secs(100);
        assert_eq!(answers.refute_now(now), Some(3));
        assert_eq!(answers.refute_now(now), None);
        answers.suspected = Some(7);
        assert_eq!(answers.refute_now(now + REFUTE_GAP / 2), None);
        assert_eq!(answers.refute_now(now + REFUTE_GAP), Some(7));
        assert!(answers.renew_now(now));
        answers.renew = true;
        assert!(!answers.renew_now(now + RENEW_GAP / 2));
        assert_eq!(answers.due(), Some(now + RENEW_GAP));
        assert!(answers.renew_now(now + RENEW_GAP));
        assert_eq!(answers.due(), None);
    }

    #[test]
    fn the_last_incarnations_are_answered_by_a_new_identity() {
        let mut answers = Answers { suspected: Some(u16::MAX - 1), ..Answers::default() };
        assert_eq!(answers.refute_now(Duration::ZERO), None);
        assert!(answers.renew_now(Duration::ZERO));
    }
}
