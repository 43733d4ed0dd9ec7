// SPDX-License-Identifier: Apache-2.0
//! What happens when: events in order of time, then of their making, and the next timer of every machine.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
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

/// Events are put in order slot by slot. A thousand beacons that reach a thousand machines at once would else be one heap
/// that no cache holds.
const SLOT: Duration = Duration::from_micros(10);

/// All events and timers.
#[derive(Default)]
pub struct Queue {
    /// Events up to the end of the slot that is under way.
    near: BinaryHeap<Reverse<Event>>,
    slot: u128,
    far: BTreeMap<u128, Vec<Event>>,
    made: u64,
    timers: BTreeSet<(Duration, usize)>,
    /// The timer of each machine that is in `timers`.
    set: Vec<Option<Duration>>,
}

impl Queue {
    pub fn push(&mut self, at: Duration, machine: usize, boot: u64, happening: Happening) {
        let event = Event { at, number: self.made, machine, boot, happening };
        self.made += 1;
        let slot = at.as_nanos() / SLOT.as_nanos();
        if slot <= self.slot {
            self.near.push(Reverse(event));
        } else {
            self.far.entry(slot).or_default().push(event);
        }
    }

    /// When the next event happens.
    fn next_event(&mut self) -> Option<Duration> {
        if self.near.is_empty()
            && let Some((slot, events)) = self.far.pop_first()
        {
            self.slot = slot;
            self.near = events.into_iter().map(Reverse).collect();
        }
        self.near.peek().map(|Reverse(event)| event.at)
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
    pub fn peek(&mut self) -> Option<Duration> {
        let event = self.next_event();
        let timer = self.timers.first().map(|(at, _)| *at);
        event.into_iter().chain(timer).min()
    }

    /// The next thing; events before timers of the same moment. A timer stays until it is set anew.
    pub fn pop(&mut self) -> Option<Next> {
        let timer = self.timers.first().copied();
        if self.next_event().is_some_and(|event| timer.is_none_or(|(at, _)| event <= at)) {
            return self.near.pop().map(|Reverse(event)| Next::Event(event));
        }
        timer.map(|(_, machine)| Next::Timer(machine))
    }
}
