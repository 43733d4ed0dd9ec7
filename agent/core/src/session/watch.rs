// SPDX-License-Identifier: Apache-2.0
//! Members with whom much goes on are watched: is the way in use still one? They are asked every second, on that way; who
//! does not answer is asked on all ways, and the first that answers is used from then on.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;

use super::packet::encrypt;
use super::table::{Context, Sessions};
use super::width::Width;
use super::{Event, PAYLOAD_ANSWER, PAYLOAD_ASK, PAYLOAD_WIDE_ASK, Path};
use crate::consts::watch::*;
use crate::id::NodeId;
use crate::wire::{Reader, Writer};

/// One member that is watched.
#[derive(Default)]
pub(super) struct Watch {
    /// When the next question is due.
    next: Duration,
    question: Option<Question>,
    pub(super) width: Width,
}

/// A question that was not answered yet.
struct Question {
    number: u64,
    since: Duration,
    again: Duration,
}

impl Sessions {
    /// Watches these members and no others.
    pub(crate) fn watch(&mut self, members: &BTreeSet<NodeId>) {
        self.watched.retain(|id, _| members.contains(id));
        for id in members {
            self.watched.entry(*id).or_default();
        }
    }

    /// Watched members that have not answered on any way for so long.
    pub(crate) fn unanswered(&self, least: Duration, now: Duration) -> impl Iterator<Item = NodeId> {
        let late = move |watch: &Watch| {
            watch.question.as_ref().is_some_and(|question| now.saturating_sub(question.since) >= least)
        };
        self.watched.iter().filter(move |(_, watch)| late(watch)).map(|(id, _)| *id)
    }

    /// Asks again at once: an interface came or went.
    pub(crate) fn ask_now(&mut self, now: Duration) {
        for watch in self.watched.values_mut() {
            watch.next = now;
            if let Some(question) = &mut watch.question {
                question.again = now;
            }
        }
    }

    /// A beacon suggests that a member restarted or lost its session with us. The beacon may be a recording, so the open session
    /// is tested on its current path first. Only without an answer is another session opened, at the beacon's source if the
    /// member was never heard there. Nothing but an open is sent to that source: a relayed answer would make any address count
    /// as one where the member is heard. Returns false if there is no session to test.
    pub(crate) fn doubt(&mut self, id: NodeId, from: Path, context: &mut Context<'_>) -> bool {
        let Some(current) = self.path(&id).filter(|_| self.is_open(&id)) else { return false };
        if let Entry::Vacant(doubt) = self.doubts.entry(id) {
            doubt.insert(Doubt { since: context.now, from, settled: false });
            let payload = Writer::new().u8(PAYLOAD_ASK).u64(context.rng.next_u64()).finish();
            self.send_on(id, &payload, vec![current], context.now);
        }
        true
    }

    /// Gives those who did not answer, and where the beacon came from if they were never heard there.
    pub(super) fn doubts_tick(&mut self, now: Duration, late: Duration) -> Vec<(NodeId, Option<Path>)> {
        let (peers, mut silent) = (&self.peers, Vec::new());
        self.doubts.retain(|id, doubt| {
            let waited = now.saturating_sub(doubt.since);
            if !doubt.settled && waited >= ANSWER_WITHIN + late * PER_LATE {
                doubt.settled = true;
                let Some(peer) = peers.get(id) else { return false };
                if peer.last_heard.is_none_or(|heard| heard < doubt.since) {
                    silent.push((*id, (!peer.paths.is_heard_on(doubt.from)).then_some(doubt.from)));
                }
            }
            waited < DOUBT_EVERY
        });
        silent
    }

    /// Questions that are due. Gives those who have no session to be asked on.
    pub(super) fn watch_tick(&mut self, context: &mut Context<'_>) -> Vec<NodeId> {
        let now = context.now;
        let mut without_session = Vec::new();
        let mut watched = std::mem::take(&mut self.watched);
        for (id, watch) in &mut watched {
            let paths: Vec<Path> = match &mut watch.question {
                None if watch.next <= now => {
                    let number = context.rng.next_u64();
                    watch.question = Some(Question { number, since: now, again: now + ANSWER_WITHIN });
                    self.path(id).into_iter().collect()
                }
                Some(question) if question.again <= now => {
                    let longer = (now.saturating_sub(question.since) / 4).clamp(ANSWER_WITHIN, ASK_RARELY);
                    question.again = now + longer;
                    self.peers.get(id).map(|peer| peer.paths.to_ask().collect()).unwrap_or_default()
                }
                _ => continue,
            };
            if !self.is_open(id) {
                without_session.push(*id);
            } else if let Some(question) = &watch.question {
                let payload = Writer::new().u8(PAYLOAD_ASK).u64(question.number).finish();
                self.send_on(*id, &payload, paths, now);
            }
        }
        self.watched = watched;
        without_session
    }

    /// Says the same on several paths; the peer takes each as a datagram of its own.
    pub(super) fn send_on(&mut self, to: NodeId, payload: &[u8], paths: Vec<Path>, now: Duration) {
        let Some(session) = self.peers.get_mut(&to).and_then(|peer| peer.current.as_mut()) else { return };
        session.used = now;
        for path in paths {
            if let Some(bytes) = encrypt(session, payload) {
                self.events.push(Event::Send(path, bytes));
            }
        }
    }

    /// A question or an answer came from a member, on this session of ours and by this path. Gives false for other payloads.
    pub(super) fn asked_or_answered(
        &mut self,
        peer: NodeId,
        local: u32,
        from: Path,
        payload: &[u8],
        now: Duration,
    ) -> bool {
        let Some((&kind, body)) = payload.split_first() else { return false };
        let mut r = Reader::new("question", body);
        let number = match (kind, r.u64(), r.rest()) {
            (PAYLOAD_ASK | PAYLOAD_ANSWER, Ok(number), []) => number,
            (PAYLOAD_WIDE_ASK, Ok(number), _) => number,
            _ => return false,
        };
        if kind != PAYLOAD_ANSWER {
            let answer = Writer::new().u8(PAYLOAD_ANSWER).u64(number).finish();
            // On the session it came by, which both sides have; the one in use here may be news to the other.
            let session = self.peers.get_mut(&peer).and_then(|peer| peer.session_mut(local));
            if let Some(bytes) = session.and_then(|(session, _)| encrypt(session, &answer)) {
                self.events.push(Event::Send(from, bytes));
            }
            return true;
        }
        let Some(watch) = self.watched.get_mut(&peer) else { return true };
        if watch.width.answered(number) {
            return true;
        }
        if watch.question.take_if(|question| question.number == number).is_some() {
            watch.next = now + ASK_EVERY;
            watch.width.answered_small();
            if self.peers.get_mut(&peer).is_some_and(|peer| peer.paths.answered(from, now)) {
                self.moved.insert(peer);
            }
        }
        true
    }
}

/// Members that are watched.
pub(super) type Watched = BTreeMap<NodeId, Watch>;

/// A member was asked whether it still has the session that is open, because a beacon sounds as if it had not.
pub(super) struct Doubt {
    since: Duration,
    from: Path,
    settled: bool,
}

/// Such members.
pub(super) type Doubts = BTreeMap<NodeId, Doubt>;
