// SPDX-License-Identifier: Apache-2.0
//! What happens when: events in order of time, then of their making, and the next timer of every machine.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster_agent_core::{Input, Ticket};

/// Something that will happen to a machine.
pub enum Happening {
    /// Shared, because a broadcast reaches a thousand machines.
    /// Source, the interface it comes in by, content.
    Datagram(SocketAddr, u32, Arc<[u8]>),
    Input(Box<Input>),
    Wrote(Ticket),
}

/// One happening, for one boot of one machine.
pub struct Event {
    pub at: Duration,
    number: u64,
    pub machine: usize,
    pub boot: u64,
    pub happening: Happening,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What comes next.
pub enum Next {
    Event(Event),
    Timer(usize),
}

/// All events and timers.
#[derive(Default)]
pub struct Queue {
    events: BinaryHeap<Reverse<Event>>,
    made: u64,
    timers: BTreeSet<(Duration, usize)>,
    /// The timer of each machine that is in `timers`.
    set: Vec<Option<Duration>>,
}

impl Queue {
    pub fn push(&mut self, at: Duration, machine: usize, boot: u64, happening: Happening) {
        self.events.push(Reverse(Event { at, number: self.made, machine, boot, happening }));
        self.made += 1;
    }

    /// Sets or removes a machine's timer.
    pub fn timer(&mut self, machine: usize, at: Option<Duration>) {
        if self.set.len() <= machine {
            self.set.resize(machine + 1, None);
        }
        if self.set[machine] == at {
            return;
        }
        if let Some(old) = self.set[machine] {
            self.timers.remove(&(old, machine));
        }
        self.set[machine] = at;
        self.timers.extend(at.map(|at| (at, machine)));
    }

    /// When the next thing happens.
    pub fn peek(&self) -> Option<Duration> {
        let event = self.events.peek().map(|Reverse(event)| event.at);
        let timer = self.timers.first().map(|(at, _)| *at);
        event.into_iter().chain(timer).min()
    }

    /// The next thing; events before timers of the same moment. A timer stays until it is set anew.
    pub fn pop(&mut self) -> Option<Next> {
        let timer = self.timers.first().copied();
        let first =
            self.events.peek().is_some_and(|Reverse(event)| timer.is_none_or(|(at, _)| event.at <= at));
        if first {
            return self.events.pop().map(|Reverse(event)| Next::Event(event));
        }
        timer.map(|(_, machine)| Next::Timer(machine))
    }
}
