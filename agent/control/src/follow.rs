// SPDX-License-Identifier: Apache-2.0
//! A node that has no replica, or hears no leader, follows: it asks one voter at a time for what is newer, and believes nobody
//! else. Sessions say who answers; the state it has says who votes.

use std::collections::BTreeMap;
use std::time::Duration;

use cluster_agent_proto::NodeId;

use crate::consts::{MAX_DELTA, MAX_ENTRIES, MAX_PULLS, PULL_HOLD, PULL_PAUSE, PULL_RETRY};
use crate::message::{Message, News};
use crate::raft::Replica;
use crate::state::{Digest, State};

/// The asking half.
#[derive(Default)]
pub(crate) struct Follow {
    /// Who was asked, and when.
    asked: Option<(NodeId, Duration)>,
    /// Which voter is next.
    turn: usize,
    not_before: Duration,
    /// Entries that were answered did not fit: the whole state is needed.
    all: bool,
    /// The leader, as the last answer named it.
    pub(crate) leader: Option<NodeId>,
    /// When the state was known to be the newest.
    pub(crate) confirmed: Option<Duration>,
}

/// What became of an answer.
pub(crate) enum Followed {
    /// It was not asked for, or says nothing new.
    Nothing,
    /// The state is this now.
    Newer(Box<State>),
    /// This node is no member any more.
    Departed(crate::state::Departure),
}

impl Follow {
    pub(crate) fn new(turn: usize) -> Self {
        Self { turn, ..Self::default() }
    }

    /// Whom to ask what now.
    pub(crate) fn ask(&mut self, me: &NodeId, state: &State, now: Duration) -> Option<(NodeId, Message)> {
        let waits = self.asked.is_some_and(|(_, at)| now < at + PULL_RETRY);
        if waits || now < self.not_before {
            return None;
        }
        if self.asked.is_some() {
            self.turn = self.turn.wrapping_add(1);
        }
        let voters: Vec<_> = state.voters().into_iter().filter(|node| node != me).collect();
        let node = *voters.get(self.turn.checked_rem(voters.len())?)?;
        self.asked = Some((node, now));
        self.not_before = now + PULL_PAUSE;
        let index = if std::mem::take(&mut self.all) { 0 } else { state.index() };
        Some((node, Message::Pull { incarnation: state.incarnation(), index, digest: state.digest() }))
    }

    /// This node is asked now, whoever was asked before.
    pub(crate) fn ask_this(&mut self, node: NodeId, state: &State, now: Duration) -> Message {
        self.asked = Some((node, now));
        Message::Pull { incarnation: state.incarnation(), index: state.index(), digest: state.digest() }
    }

    /// Ask again at once: something was heard that the state does not explain.
    pub(crate) fn hurry(&mut self) {
        if self.asked.is_none() {
            self.not_before = Duration::ZERO;
        }
    }

    pub(crate) fn answer(
        &mut self,
        from: NodeId,
        state: &State,
        age: u64,
        news: News,
        now: Duration,
    ) -> Followed {
        if self.asked.is_none_or(|(node, _)| node != from) {
            return Followed::Nothing;
        }
        self.asked = None;
        let newer = match news {
            News::Same => {
                self.confirmed = now.checked_sub(Duration::from_millis(age)).max(self.confirmed);
                return Followed::Nothing;
            }
            News::Departed(how) => return Followed::Departed(how),
            News::Entries(entries, digest) => {
                let mut newer = Box::new(state.clone());
                let fits = entries.iter().all(|entry| newer.apply(entry, None).is_ok());
                if !fits || newer.digest() != digest {
                    self.all = true;
                    return Followed::Nothing;
                }
                newer
            }
            News::State(bytes) => match State::decode(&bytes) {
                Ok(newer) => Box::new(newer),
                Err(_) => return Followed::Nothing,
            },
        };
        if !newer.follows(state) {
            return Followed::Nothing;
        }
        self.confirmed = now.checked_sub(Duration::from_millis(age)).max(self.confirmed);
        Followed::Newer(newer)
    }
}

impl State {
    /// Whether this is a later state of the same cluster: nobody goes back.
    pub(crate) fn follows(&self, older: &Self) -> bool {
        self.cluster() == older.cluster()
            && (self.incarnation(), self.index()) > (older.incarnation(), older.index())
    }
}

/// The answering half: those who wait for news.
#[derive(Default)]
pub(crate) struct Pulls {
    waiting: BTreeMap<NodeId, (u32, u64, Duration)>,
}

impl Pulls {
    pub(crate) fn asked(&mut self, from: NodeId, incarnation: u32, index: u64, now: Duration) {
        if self.waiting.len() < MAX_PULLS || self.waiting.contains_key(&from) {
            self.waiting.insert(from, (incarnation, index, now + PULL_HOLD));
        }
    }

    /// Who gets an answer now: the node, and the index it has; `None` where that is of another incarnation.
    pub(crate) fn due(&mut self, state: &State, now: Duration) -> Vec<(NodeId, Option<u64>)> {
        let has = (state.incarnation(), state.index());
        let due = |(incarnation, index, until): &(u32, u64, Duration)| {
            (*incarnation, *index) < has || now >= *until
        };
        let ready = self.waiting.iter().filter(|(_, one)| due(one));
        let ready: Vec<_> = ready.map(|(node, one)| (*node, (one.0 == has.0).then_some(one.1))).collect();
        for (node, _) in &ready {
            self.waiting.remove(node);
        }
        ready
    }

    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }
}

/// What is newer than an index.
pub(crate) fn news_since(state: &State, replica: Option<&Replica>, index: Option<u64>) -> News {
    if index.is_some_and(|index| index >= state.index()) {
        return News::Same;
    }
    let entries = index.and_then(|index| replica?.entries_after(index));
    let size =
        |entries: &[crate::raft::LogEntry]| entries.iter().map(|entry| entry.data.len() + 32).sum::<usize>();
    match entries {
        // What raft made of a change of the configuration is not in its entry.
        Some(entries)
            if !entries.is_empty()
                && entries.len() <= MAX_ENTRIES
                && !entries.iter().any(|entry| entry.is_conf)
                && size(&entries) <= MAX_DELTA
                && entries.last().is_some_and(|last| last.index == state.index()) =>
        {
            let digest: Digest = state.digest();
            News::Entries(entries, digest)
        }
        _ => News::State(state.encode()),
    }
}
