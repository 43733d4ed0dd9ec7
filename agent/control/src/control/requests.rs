// SPDX-License-Identifier: Apache-2.0
//! Requests: from here to the leader and back, again and again until there is an answer or time is up.

use std::time::Duration;

use cluster_agent_proto::NodeId;
use rand::RngExt;
use rand::rngs::StdRng;

use super::{Answer, Control, Now, Output, answer_of};
use crate::consts::{MAX_ENTRY, MAX_WAITING, MAX_WAITING_OF_ONE, REQUEST_RETRY, REQUEST_TIMEOUT};
use crate::message::Message;
use crate::state::{Command, Departure, Outcome, Proposal, RequestId, State};

/// A proposal that has no answer yet.
pub(super) struct Pending {
    /// The node that asked; this one, or one that forwarded it to this one.
    origin: NodeId,
    command: Command,
    until: Duration,
    next: Duration,
    /// Somebody who may decide was told.
    told: bool,
    /// In which term this node proposed it.
    proposed: Option<u64>,
}

/// A read that has no answer yet.
pub(super) struct Reading {
    origin: NodeId,
    until: Duration,
    next: Duration,
    /// What raft knows it by: another one at each attempt, since it drops some without a word.
    context: [u8; 16],
    /// Of a read of this node: what was committed then.
    index: Option<u64>,
}

impl Control {
    pub(super) fn propose(&mut self, request: RequestId, command: Command, now: Now) {
        let size = Proposal { request, time: 0, origin: self.me, command: command.clone() }.encode().len();
        if self.pending.contains_key(&request) {
            return;
        }
        if self.pending.len() >= MAX_WAITING
            || size > MAX_ENTRY - 128
            || self.state.is_none()
            || !command.is_for_all()
        {
            self.outputs.push_back(Output::Answer { request, answer: Answer::NotDone });
            return;
        }
        self.wait(request, self.me, command, now);
        self.settle();
    }

    fn wait(&mut self, request: RequestId, origin: NodeId, command: Command, now: Now) {
        let until = now.boottime + REQUEST_TIMEOUT;
        let pending = Pending { origin, command, until, next: now.boottime, told: false, proposed: None };
        self.pending.insert(request, pending);
        self.push_on(request, now);
    }

    /// A member asks this node, which it thinks leads.
    pub(super) fn forwarded(&mut self, from: NodeId, request: RequestId, command: Command, now: Now) {
        let Some(state) = &self.state else { return };
        if let Some(outcome) = state.outcome(&request) {
            let index = state.index();
            self.send(from, &Message::Answered { request, index, outcome });
            return;
        }
        let of_one = self.pending.values().filter(|pending| pending.origin == from).count();
        let room = self.pending.len() < MAX_WAITING && of_one < MAX_WAITING_OF_ONE;
        if !self.leads() || self.pending.contains_key(&request) || !room || !command.is_for_all() {
            return;
        }
        self.wait(request, from, command, now);
    }

    /// Does for one request what can be done now.
    fn push_on(&mut self, request: RequestId, now: Now) {
        let leads = self.leads();
        let leader = self.leader();
        let Some(pending) = self.pending.get_mut(&request) else { return };
        pending.next = now.boottime + REQUEST_RETRY;
        if !leads {
            pending.proposed = None;
            if pending.origin == self.me
                && let Some(leader) = leader
                && leader != self.me
            {
                pending.told = true;
                let message = Message::Forward { request, command: pending.command.clone() };
                self.send(leader, &message);
            }
            return;
        }
        let Some(replica) = &mut self.replica else { return };
        if pending.proposed == Some(replica.term()) {
            return;
        }
        // Whoever goes gives its vote away first (rounds.rs), if there is somebody to take it.
        if let Command::Depart { node, .. } = &pending.command
            && let Some(state) = &self.state
            && state
                .member(node)
                .and_then(|member| member.replica)
                .is_some_and(|one| state.conf().votes(one.id))
            && state.members().count() > 1
        {
            return;
        }
        let time = now.wall.as_millis() as u64;
        let (origin, command) = (pending.origin, pending.command.clone());
        if replica.propose(Proposal { request, time, origin, command }.encode()) {
            (pending.told, pending.proposed) = (true, Some(replica.term()));
        }
    }

    /// Members that asked to go, or that somebody sends away.
    pub(super) fn departing(&self) -> std::collections::BTreeSet<NodeId> {
        let departs = self.pending.values().filter_map(|pending| match &pending.command {
            Command::Depart { node, .. } => Some(*node),
            _ => None,
        });
        departs.collect()
    }

    /// An entry was agreed.
    pub(super) fn done(&mut self, request: RequestId, index: u64, outcome: Outcome) {
        if let Some(pending) = self.pending.remove(&request) {
            if pending.origin == self.me {
                self.outputs.push_back(Output::Answer { request, answer: answer_of(outcome, index) });
            } else {
                self.send(pending.origin, &Message::Answered { request, index, outcome });
            }
        }
    }

    /// The leader says what became of it.
    pub(super) fn answered(&mut self, from: NodeId, request: RequestId, index: u64, outcome: Outcome) {
        let votes =
            self.ahead.as_deref().or(self.state.as_ref()).is_some_and(|state| state.voters().contains(&from));
        let mine = self.pending.get(&request).is_some_and(|pending| pending.origin == self.me);
        if votes && mine {
            self.done(request, index, outcome);
            if matches!(outcome, Outcome::Done) && self.replica.is_none() {
                self.follow.hurry();
            }
        }
    }

    /// The state is newer: it may hold answers, and a leader may go on.
    pub(super) fn settle(&mut self) {
        let Some(state) = &self.state else { return };
        let index = state.index();
        let known = |request: &RequestId| state.outcome(request).map(|outcome| (*request, outcome));
        let known: Vec<_> = self.pending.keys().filter_map(known).collect();
        for (request, outcome) in known {
            self.done(request, index, outcome);
        }
    }

    /// Time passed.
    pub(super) fn retry(&mut self, now: Now, rng: &mut StdRng) {
        let late: Vec<_> =
            self.pending.iter().filter(|(_, one)| now.boottime >= one.until).map(|(id, _)| *id).collect();
        for request in late {
            if let Some(pending) = self.pending.remove(&request)
                && pending.origin == self.me
            {
                let answer = if pending.told { Answer::Unknown } else { Answer::NotDone };
                self.outputs.push_back(Output::Answer { request, answer });
            }
        }
        let due: Vec<_> =
            self.pending.iter().filter(|(_, one)| now.boottime >= one.next).map(|(id, _)| *id).collect();
        for request in due {
            self.push_on(request, now);
        }
        let late: Vec<_> =
            self.reading.iter().filter(|(_, one)| now.boottime >= one.until).map(|(id, _)| *id).collect();
        for request in late {
            if self.reading.remove(&request).is_some_and(|reading| reading.origin == self.me) {
                self.outputs.push_back(Output::Answer { request, answer: Answer::NotDone });
            }
        }
        let due: Vec<_> =
            self.reading.iter().filter(|(_, one)| now.boottime >= one.next).map(|(id, _)| *id).collect();
        for request in due {
            self.read_on(request, now, rng);
        }
    }

    pub(super) fn read(&mut self, request: RequestId, now: Now, rng: &mut StdRng) {
        if self.reading.len() >= MAX_WAITING || self.state.is_none() {
            self.outputs.push_back(Output::Answer { request, answer: Answer::NotDone });
            return;
        }
        self.wait_to_read(request, self.me, now, rng);
    }

    fn wait_to_read(&mut self, request: RequestId, origin: NodeId, now: Now, rng: &mut StdRng) {
        let until = now.boottime + REQUEST_TIMEOUT;
        let reading = Reading { origin, until, next: now.boottime, context: request.0, index: None };
        self.reading.insert(request, reading);
        self.read_on(request, now, rng);
    }

    /// A member asks this node, which it thinks leads.
    pub(super) fn asked_to_read(&mut self, from: NodeId, request: RequestId, now: Now, rng: &mut StdRng) {
        let of_one = self.reading.values().filter(|reading| reading.origin == from).count();
        let room = self.reading.len() < MAX_WAITING && of_one < MAX_WAITING_OF_ONE;
        if self.leads() && room && !self.reading.contains_key(&request) {
            self.wait_to_read(request, from, now, rng);
        }
    }

    fn read_on(&mut self, request: RequestId, now: Now, rng: &mut StdRng) {
        let (leads, leader) = (self.leads(), self.leader());
        let Some(reading) = self.reading.get_mut(&request) else { return };
        reading.next = now.boottime + REQUEST_RETRY;
        if reading.index.is_some() {
            return;
        }
        if leads {
            reading.context = rng.random();
            let context = reading.context;
            if let Some(replica) = &mut self.replica {
                replica.read_index(&context);
            }
        } else if reading.origin == self.me
            && let Some(leader) = leader
        {
            self.send(leader, &Message::Read { request });
        }
    }

    /// Raft says what was committed when it was asked with this context.
    pub(super) fn read_confirmed(&mut self, index: u64, context: &[u8]) {
        let request = self.reading.iter().find(|(_, reading)| reading.context == context).map(|(id, _)| *id);
        let Some(request) = request else { return };
        let Some(reading) = self.reading.get_mut(&request) else { return };
        if reading.origin == self.me {
            reading.index = Some(index);
        } else {
            let origin = reading.origin;
            self.reading.remove(&request);
            self.send(origin, &Message::ReadAt { request, index });
        }
    }

    pub(super) fn read_at(&mut self, from: NodeId, request: RequestId, index: u64) {
        let votes =
            self.ahead.as_deref().or(self.state.as_ref()).is_some_and(|state| state.voters().contains(&from));
        if let Some(reading) =
            self.reading.get_mut(&request).filter(|reading| votes && reading.origin == self.me)
        {
            reading.index = Some(index);
            self.follow.hurry();
        }
        self.finish_reads();
    }

    /// Answers reads whose index this node has reached.
    pub(super) fn finish_reads(&mut self) {
        let index = self.state.as_ref().map_or(0, State::index);
        let ready = self.reading.iter().filter(|(_, one)| one.index.is_some_and(|at| at <= index));
        let ready: Vec<_> = ready.map(|(id, _)| *id).collect();
        for request in ready {
            self.reading.remove(&request);
            self.outputs.push_back(Output::Answer { request, answer: Answer::Done(index) });
        }
    }

    /// How a node went that asks for news and is no member.
    pub(super) fn departure(&self, node: &NodeId) -> Option<Departure> {
        self.state.as_ref()?.departed(node).map(|departed| departed.how)
    }
}
