// SPDX-License-Identifier: Apache-2.0
//! What is said on streams, page by page: the next page of a long answer is made when the socket has taken most of what was
//! said before. So a peer that asks and does not read costs a page, and not what it asked for.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::membership::Membership;
use crate::consts::output::*;
use crate::id::NodeId;
use crate::roster::ObjectPlace;
use crate::signed::ObjectDigest;
use crate::summary::Difference;
use crate::sync::{ALIVE_PER_MESSAGE, DIGESTS_PER_MESSAGE, Message, OBJECT_BYTES_PER_MESSAGE};

/// What is still to be said on one stream.
#[derive(Default)]
pub(super) struct Output {
    pages: VecDeque<Page>,
    /// What happens when all is said.
    then: Option<Then>,
    /// Bytes that the socket has not taken, as far as was told.
    unsent: usize,
    /// When it took something, or had taken all.
    taken: Duration,
}

/// A part of an answer. What it is made of is looked up when its turn comes.
pub(super) enum Page {
    Say(Message),
    Objects(Which, Option<ObjectPlace>),
    /// What gossip knows where two summaries differ (none: all of it), and how many of all have been looked at.
    Alive(Option<Difference>, usize),
    /// Digests of what we have where two summaries differ.
    Have(Difference, Option<ObjectDigest>),
    Want(Vec<ObjectDigest>),
}

/// Which objects.
pub(super) enum Which {
    All,
    /// Those where two summaries differ, but not those that the other side has.
    Lacked(Difference, BTreeSet<ObjectDigest>),
    Wanted(BTreeSet<ObjectDigest>),
}

/// After an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Rest,
    End,
}

/// What comes next.
pub(super) enum Next {
    Say(Message),
    Do(Then),
    Nothing,
}

impl Output {
    /// Adds to what is still to be said, and says what happens then.
    pub(super) fn queue(&mut self, pages: Vec<Page>, then: Option<Then>) {
        self.pages.extend(pages);
        self.then = then;
    }

    /// The next message, or what happens when all is said.
    pub(super) fn next(&mut self, membership: Option<&Membership>) -> Next {
        while let Some(page) = self.pages.front_mut() {
            let (message, more) = page.part(membership);
            if !more {
                self.pages.pop_front();
            }
            if let Some(message) = message {
                return Next::Say(message);
            }
        }
        self.then.take().map_or(Next::Nothing, Next::Do)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.then.is_none()
    }

    /// Bytes that the socket has not taken.
    pub(super) fn unsent(&self) -> usize {
        self.unsent
    }

    /// Whether so much waits that it was worth a word.
    pub(super) fn is_unread(&self) -> bool {
        self.unsent >= UNTOLD
    }

    /// When the socket took something last, or had taken all.
    pub(super) fn last_taken(&self) -> Duration {
        self.taken
    }

    /// The socket took bytes.
    pub(super) fn sent(&mut self, bytes: usize, now: Duration) {
        self.unsent = self.unsent.saturating_sub(bytes);
        self.taken = now;
    }

    pub(super) fn waits(&self) -> bool {
        self.unsent >= LOW_WATER
    }

    /// Whether the other side has stopped reading. Until `held` nothing went to it.
    pub(super) fn is_not_read(&self, held: Duration, now: Duration) -> bool {
        self.is_unread() && now.saturating_sub(self.taken.max(held)) > NOT_READ
    }

    /// Since when the other side has all that was said.
    pub(super) fn taken(&self) -> Option<Duration> {
        (self.is_empty() && !self.is_unread()).then_some(self.taken)
    }

    /// Bytes go to the socket.
    pub(super) fn said(&mut self, bytes: usize, now: Duration) {
        if !self.is_unread() {
            self.taken = now;
        }
        self.unsent += bytes;
    }
}

impl Which {
    fn has(&self, digest: &ObjectDigest) -> bool {
        match self {
            Self::All => true,
            Self::Lacked(differs, theirs) => differs.has_object(digest) && !theirs.contains(digest),
            Self::Wanted(wanted) => wanted.contains(digest),
        }
    }
}

impl Page {
    /// The next message of a page, and whether there may be more. Gives none when there is nothing to say.
    fn part(&mut self, membership: Option<&Membership>) -> (Option<Message>, bool) {
        match self {
            Self::Say(message) => (Some(std::mem::replace(message, Message::Done)), false),
            Self::Objects(which, reached) => {
                let Some(membership) = membership else { return (None, false) };
                let (mut objects, mut size, mut more) = (Vec::new(), 0, false);
                for (place, digest, bytes) in membership.roster().objects_after(*reached) {
                    if which.has(&digest) {
                        if size + bytes.len() + 2 > OBJECT_BYTES_PER_MESSAGE {
                            more = true;
                            break;
                        }
                        size += bytes.len() + 2;
                        objects.push(bytes.to_vec());
                    }
                    *reached = Some(place);
                }
                ((!objects.is_empty()).then_some(Message::Objects(objects)), more)
            }
            Self::Alive(differs, reached) => {
                let Some(membership) = membership else { return (None, false) };
                let here = |node: &NodeId| differs.is_none() || membership.roster().is_member(node);
                let (mut known, mut more) = (Vec::new(), false);
                for one in membership.gossip().liveness().skip(*reached) {
                    if known.len() >= ALIVE_PER_MESSAGE {
                        more = true;
                        break;
                    }
                    *reached += 1;
                    if here(&one.id.node) && differs.is_none_or(|differs| differs.has_alive(&one)) {
                        known.push(one);
                    }
                }
                ((!known.is_empty()).then_some(Message::Alive(known)), more)
            }
            Self::Have(differs, reached) => {
                let Some(membership) = membership else { return (None, false) };
                let after =
                    membership.roster().digests_after(*reached).filter(|digest| differs.has_object(digest));
                let mut digests: Vec<_> = after.take(DIGESTS_PER_MESSAGE + 1).collect();
                let more = digests.len() > DIGESTS_PER_MESSAGE;
                digests.truncate(DIGESTS_PER_MESSAGE);
                *reached = digests.last().copied().or(*reached);
                (Some(Message::Have(digests, !more)), more)
            }
            Self::Want(lacking) => {
                let rest = lacking.split_off(lacking.len().min(DIGESTS_PER_MESSAGE));
                let part = std::mem::replace(lacking, rest);
                (Some(Message::Want(part, lacking.is_empty())), !lacking.is_empty())
            }
        }
    }
}
