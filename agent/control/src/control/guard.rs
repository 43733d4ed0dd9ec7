// SPDX-License-Identifier: Apache-2.0
//! Who is heard: a replica is what the state says, has on its disk what it says, and its raft id was never another's.

use std::collections::BTreeSet;
use std::time::Duration;

use cluster_agent_proto::NodeId;
use rand::rngs::StdRng;

use super::{Control, Now};
use crate::consts::{ROLL_CALL, ROLL_CALL_EVERY};
use crate::message::Message;
use crate::raft::{self, Fault, Replica};
use crate::state::State;

/// Replicas whose writes are remembered, before those that nobody has are forgotten.
const MAX_HEARD: usize = 256;

/// A replica that started and does not know yet whether its disk has all that it once had.
pub(super) struct RollCall {
    until: Duration,
    next: Duration,
    answered: BTreeSet<NodeId>,
}

impl Control {
    pub(super) fn message(&mut self, from: NodeId, message: Message, now: Now, rng: &mut StdRng) {
        let member = self.state.as_ref().is_some_and(|state| state.member(&from).is_some())
            || self.ahead.as_ref().is_some_and(|ahead| ahead.member(&from).is_some());
        if !member {
            // Who was a member is told that it is none. Not by somebody who is behind: it may be one again.
            if let (Message::Pull { incarnation, index, .. }, Some(how)) = (&message, self.departure(&from))
                && self
                    .state
                    .as_ref()
                    .is_some_and(|state| (state.incarnation(), state.index()) >= (*incarnation, *index))
            {
                let (leader, news) = (self.leader(), crate::message::News::Departed(how));
                self.send(from, &Message::News { leader, age: 0, news });
            }
            return;
        }
        match message {
            Message::Raft { incarnation, stored, nonce, message } => {
                self.raft(from, incarnation, (stored, nonce), message, now, rng);
            }
            Message::RollCall { replica, stored } => {
                if self.node_of(replica) == Some(from) && self.replica.is_some() {
                    let heard = self.heard.get(&replica).copied().unwrap_or(0);
                    self.heard.insert(replica, heard.max(stored));
                    self.send(from, &Message::Heard { replica, stored: heard });
                }
            }
            Message::Heard { replica, stored } => self.heard_of_me(from, replica, stored, rng),
            Message::Gone { replica } => {
                if self.node_of(replica) == Some(from) {
                    self.gone.insert(replica);
                }
            }
            Message::Forward { request, command } => self.forwarded(from, request, command, now),
            Message::Answered { request, index, outcome } => self.answered(from, request, index, outcome),
            Message::Read { request } => self.asked_to_read(from, request, now, rng),
            Message::ReadAt { request, index } => self.read_at(from, request, index),
            Message::Invite => {
                if self.replica.is_none() && self.stopped.is_none() && self.is_voter(&from) {
                    self.send(from, &Message::Offer { nonce: self.nonce });
                }
            }
            Message::Offer { nonce } => self.offered(from, nonce, now),
            Message::Pull { incarnation, index, .. } => {
                // Also without a vote: who was away for long may know none of those that have one now.
                if self.stopped.is_none() {
                    self.pulls.asked(from, incarnation, index, now.boottime);
                    self.tell_news(now);
                }
            }
            Message::Incarnation { incarnation } => {
                // Only a voter of its own group can have opened a new one.
                if self.is_voter(&from)
                    && self.state.as_ref().is_some_and(|state| incarnation > state.incarnation())
                {
                    self.ask_at_once(from, now);
                }
            }
            Message::News { leader, age, news } => self.followed(from, leader, age, news, now, rng),
        }
    }

    fn is_voter(&self, node: &NodeId) -> bool {
        let votes = |state: &State| state.voters().contains(node);
        self.state.as_ref().is_some_and(votes) || self.ahead.as_deref().is_some_and(votes)
    }

    fn raft(
        &mut self,
        from: NodeId,
        incarnation: u32,
        (stored, nonce): (u64, u64),
        message: raft::Message,
        now: Now,
        rng: &mut StdRng,
    ) {
        let Some(state) = &self.state else { return };
        if incarnation < state.incarnation() {
            let incarnation = state.incarnation();
            self.send(from, &Message::Incarnation { incarnation });
            return;
        }
        if incarnation != state.incarnation() || self.node_of(message.from) != Some(from) {
            self.follow.hurry();
            // Whoever leads may have its raft id since this node was away: the voters it knows say so.
            self.led = self.led.min(now.boottime.saturating_sub(crate::consts::LEADER_SILENT));
            self.follow_voters(now);
            return;
        }
        let heard = self.heard.entry(message.from).or_insert(0);
        if stored < *heard {
            // Its disk went back to an earlier time: it forgot votes or entries.
            let answer = Message::Heard { replica: message.from, stored: *heard };
            self.send(from, &answer);
            return;
        }
        *heard = stored;
        if self.heard.len() > MAX_HEARD {
            let of = |id: &u64| self.state.as_ref().is_some_and(|state| state.node_of(*id).is_some());
            let keep: BTreeSet<u64> = self.heard.keys().copied().filter(of).collect();
            self.heard.retain(|id, _| keep.contains(id));
        }
        if self.replica.as_ref().is_none_or(|replica| replica.id() != message.to) {
            let offered = nonce == self.nonce && !self.spent.contains(&message.to);
            let later = self.replica.as_ref().is_none_or(|replica| replica.id() < message.to);
            if !offered || !later || self.stopped.is_some() {
                if self.spent.contains(&message.to) || nonce != self.nonce {
                    self.send(from, &Message::Gone { replica: message.to });
                }
                return;
            }
            self.spent.insert(message.to);
            self.replica = Replica::fresh(message.to, rng);
            self.roll_call = None;
        }
        if self.roll_call.is_some() || self.stopped.is_some() || !self.is_readable(&message) {
            return;
        }
        let Some(replica) = &mut self.replica else { return };
        let leader = message.from;
        match replica.step(message, rng) {
            Ok(()) => {
                if replica.leader() == Some(leader) {
                    self.led = now.boottime;
                    if replica.committed() <= self.state.as_ref().map_or(0, State::index) {
                        self.follow.confirmed = Some(now.boottime);
                    }
                }
            }
            Err(Fault::Nonsense) => self.malformed += 1,
            Err(Fault::LogLost) => {
                let sequence = replica.durable();
                self.retire(sequence, rng);
            }
        }
    }

    /// A snapshot that raft took and nobody can read would be the end of this replica.
    fn is_readable(&self, message: &raft::Message) -> bool {
        let Some(snapshot) = raft::snapshot_in(message) else { return true };
        let same = |state: &State| {
            let cluster = self.state.as_ref().map(|known| (known.cluster(), known.incarnation()));
            cluster == Some((state.cluster(), state.incarnation()))
                && (state.index(), state.conf()) == (snapshot.index, &snapshot.conf)
        };
        State::decode(&snapshot.state).is_ok_and(|state| same(&state))
    }

    /// A replica that starts asks all other voters what they heard of it.
    pub(super) fn call_roll(&mut self, now: Now) {
        if self.voters_to_ask().is_empty() {
            return;
        }
        let answered = BTreeSet::new();
        self.roll_call = Some(RollCall { until: now.boottime + ROLL_CALL, next: now.boottime, answered });
        self.answer_roll_call_in_time(now);
    }

    fn voters_to_ask(&self) -> Vec<NodeId> {
        let state = self.ahead.as_deref().or(self.state.as_ref());
        let voters = state.map(State::voters).unwrap_or_default();
        voters.into_iter().filter(|node| *node != self.me).collect()
    }

    pub(super) fn answer_roll_call_in_time(&mut self, now: Now) {
        let asked = self.voters_to_ask();
        let Some(replica) = &self.replica else { return };
        let call = Message::RollCall { replica: replica.id(), stored: replica.durable() };
        let Some(roll_call) = &mut self.roll_call else { return };
        if now.boottime >= roll_call.until || asked.iter().all(|node| roll_call.answered.contains(node)) {
            self.roll_call = None;
            return;
        }
        if now.boottime >= roll_call.next {
            roll_call.next = now.boottime + ROLL_CALL_EVERY;
            let silent: Vec<_> =
                asked.into_iter().filter(|node| !roll_call.answered.contains(node)).collect();
            for node in silent {
                self.send(node, &call);
            }
        }
    }

    fn heard_of_me(&mut self, from: NodeId, id: u64, stored: u64, rng: &mut StdRng) {
        let Some(replica) = &self.replica else { return };
        if replica.id() != id || !self.is_voter(&from) {
            return;
        }
        if stored > replica.durable() {
            self.retire(stored, rng);
        } else if let Some(roll_call) = &mut self.roll_call {
            roll_call.answered.insert(from);
        }
    }
}
