// SPDX-License-Identifier: Apache-2.0
//! What is said in a push-pull: two members compare what they hold and give each other what is missing, and what their gossip
//! knows. Broadcasts are only hints; this is what makes all know all. Summaries come first, so that two who know the same say
//! little.

use std::collections::BTreeSet;

use super::output::{Page, Which};
use crate::consts::exchange::*;
use crate::gossip::Liveness;
use crate::signed::ObjectDigest;
use crate::summary::Difference;
use crate::sync::Message;

/// What was said in a push-pull so far.
#[derive(Default)]
pub(super) struct Exchange {
    step: Step,
    messages: u32,
    /// What the peer listed, asked for and gave. Honest ones say nothing twice.
    listed: usize,
    wanted: usize,
    given: usize,
    /// Of what we have: what the peer has, too, or what it wants.
    pub(super) named: BTreeSet<ObjectDigest>,
    /// Of what the peer has: what we lack.
    pub(super) lacking: Vec<ObjectDigest>,
    alive_said: usize,
    /// What the two summaries say is different.
    pub(super) differs: Difference,
}

/// What may be said next in a push-pull. Anything else ends the stream, so that nothing that takes work is asked for twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    /// Clock. Who opened the stream has said its own clock and summary.
    #[default]
    Begin,
    /// Summary; to who opened the stream also Done.
    Compare,
    /// To who opened the stream: Have. To the other: Objects, Alive, Want.
    List,
    /// To who opened the stream: Objects, Alive, Done.
    Give,
}

impl Exchange {
    pub(super) fn counts_alive(&mut self, known: &[Liveness]) -> bool {
        self.alive_said += known.len();
        self.alive_said <= MAX_ALIVE
    }

    /// Whether nothing of a push-pull was said.
    pub(super) fn is_new(&self) -> bool {
        self.step == Step::Begin
    }

    /// The other side listed what it has where we differ: give what it lacks, ask for what we lack.
    pub(super) fn give_and_ask(&mut self) -> Vec<Page> {
        let theirs = std::mem::take(&mut self.named);
        vec![
            Page::Objects(Which::Lacked(self.differs, theirs), None),
            // After the objects: liveness of nodes that are no members yet would be dropped.
            Page::Alive(Some(self.differs), 0),
            Page::Want(std::mem::take(&mut self.lacking)),
        ]
    }

    /// The other side said what it lacks.
    pub(super) fn give_wanted(&mut self) -> Vec<Page> {
        let wanted = Which::Wanted(std::mem::take(&mut self.named));
        let alive = Page::Alive(Some(self.differs), 0);
        vec![Page::Objects(wanted, None), alive, Page::Say(Message::Done)]
    }

    /// Whether a message is in its place; goes on to what may come next.
    pub(super) fn takes(&mut self, message: &Message, opened_it: bool) -> bool {
        self.messages += 1;
        match message {
            Message::Have(digests, _) => self.listed += digests.len(),
            Message::Want(digests, _) => self.wanted += digests.len(),
            Message::Objects(objects) => self.given += objects.len(),
            _ => {}
        }
        let next = match (self.step, message, opened_it) {
            // Whoever has said all may say so at any time.
            (step, Message::Done, _) => step,
            (Step::Begin, Message::Clock(_), _) => Step::Compare,
            (Step::Compare, Message::Summary(_), _) => Step::List,
            (Step::List, Message::Have(_, last), true) => {
                if *last {
                    Step::Give
                } else {
                    Step::List
                }
            }
            (Step::List, Message::Objects(_) | Message::Alive(_) | Message::Want(..), false) => Step::List,
            (Step::Give, Message::Objects(_) | Message::Alive(_), true) => Step::Give,
            _ => return false,
        };
        self.step = next;
        self.messages <= MAX_MESSAGES
            && self.listed.max(self.given) <= MAX_OBJECTS
            && self.wanted <= MAX_LACKING
    }
}
