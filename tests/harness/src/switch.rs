// SPDX-License-Identifier: Apache-2.0
//! The Ethernet switch between the VMs, as a state machine without sockets or a clock.
//!
//! Frames go in with [`Switch::ingress`] and come out of [`Switch::poll`] when they are due. Unicast is learned,
//! everything else is flooded, within the port's LAN. Each port has two directions with faults of their own: `Sent` is what the VM sends
//! towards the switch, `Received` is what the switch sends towards the VM. The same seed, inputs and times give the
//! same deliveries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::random::SplitMix64;

mod port;
#[cfg(test)]
mod tests;

pub use port::PortId;

/// One Ethernet frame without its check sum.
pub type Frame = Arc<[u8]>;

const MILLION: u32 = 1_000_000;

/// What is wrong with one direction of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Faults {
    /// Nothing passes.
    pub off: bool,
    /// Frames lost, in parts per million.
    pub loss_ppm: u32,
    /// Time that each frame takes, in microseconds.
    pub delay_us: u64,
}

/// A direction of a link, seen from the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the VM to the switch.
    Sent,
    /// From the switch to the VM.
    Received,
    /// Both.
    Both,
}

/// What a port has seen since it was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Frames that the VM sent.
    pub sent: u64,
    /// Bytes that the VM sent.
    pub sent_bytes: u64,
    /// Frames delivered to the VM.
    pub received: u64,
    /// Bytes delivered to the VM.
    pub received_bytes: u64,
    /// Frames of or for this VM that a fault, a partition or a full queue took.
    pub dropped: u64,
}

/// A port as `vm-cluster status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PortView {
    /// Faults from the VM to the switch.
    pub sent: Faults,
    /// Faults from the switch to the VM.
    pub received: Faults,
    /// Number of the partition's group, if the switch is partitioned.
    pub group: Option<usize>,
    /// Which LAN it is plugged into.
    pub lan: u8,
    /// How long after a cable is plugged in, or its VM switched on, the port passes nothing.
    pub opens_after: Duration,
    /// Traffic so far.
    pub counters: Counters,
}

#[derive(Debug, Default, Clone)]
struct Port {
    sent: Faults,
    received: Faults,
    counters: Counters,
    lan: u8,
    opens_after: Duration,
    opens_at: Duration,
}

/// The switch.
#[derive(Debug, Clone)]
pub struct Switch {
    random: SplitMix64,
    ports: BTreeMap<PortId, Port>,
    learned: BTreeMap<(u8, [u8; 6]), PortId>,
    groups: Option<Vec<BTreeSet<u32>>>,
    queue: BTreeMap<(Duration, u64), (PortId, Frame)>,
    sequence: u64,
}

impl Switch {
    /// A switch without ports; `seed` decides which frames a lossy link loses.
    pub fn new(seed: u64) -> Self {
        Self {
            random: SplitMix64(seed),
            ports: BTreeMap::new(),
            learned: BTreeMap::new(),
            groups: None,
            queue: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// Adds a port in `lan`, or moves it there.
    pub fn add_port(&mut self, port: PortId, lan: u8) {
        self.ports.entry(port).or_default().lan = lan;
        self.learned.retain(|_, at| *at != port);
    }

    /// Whether there is such a port.
    pub fn has_port(&self, port: PortId) -> bool {
        self.ports.contains_key(&port)
    }

    /// A cable was plugged in or its VM switched on at `now`: the carrier is there at once, frames pass when the port opens.
    pub fn plugged(&mut self, port: PortId, now: Duration) {
        if let Some(port) = self.ports.get_mut(&port) {
            port.opens_at = if port.opens_after.is_zero() { Duration::ZERO } else { now + port.opens_after };
        }
    }

    /// From the next time on, the ports of `vm` open so long after they are plugged in, as switches do that first make sure
    /// that there is no loop (spanning tree). Zero opens them now. False if there is no such port.
    pub fn set_opening(&mut self, vm: u32, nic: Option<u8>, after: Duration) -> bool {
        let mut found = false;
        for (_, port) in self.of(vm, nic) {
            port.opens_after = after;
            if after.is_zero() {
                port.opens_at = Duration::ZERO;
            }
            found = true;
        }
        found
    }

    fn of(&mut self, vm: u32, nic: Option<u8>) -> impl Iterator<Item = (&PortId, &mut Port)> {
        self.ports.iter_mut().filter(move |(id, _)| id.vm == vm && nic.is_none_or(|nic| nic == id.nic))
    }

    /// Removes a port and everything learned or queued for it.
    pub fn remove_port(&mut self, port: PortId) {
        self.ports.remove(&port);
        self.learned.retain(|_, at| *at != port);
        self.queue.retain(|_, (to, _)| *to != port);
    }

    /// Changes the faults of a VM's link, or of all its links, with `change`; false if there is none.
    pub fn set_faults(
        &mut self,
        vm: u32,
        nic: Option<u8>,
        direction: Direction,
        change: impl Fn(&mut Faults),
    ) -> bool {
        let mut found = false;
        for (_, port) in self.of(vm, nic) {
            if direction != Direction::Received {
                change(&mut port.sent);
            }
            if direction != Direction::Sent {
                change(&mut port.received);
            }
            found = true;
        }
        found
    }

    /// Splits the switch: frames pass only within a group of VMs. Those that are in no group form one of their own.
    pub fn partition(&mut self, groups: Vec<BTreeSet<u32>>) {
        self.groups = Some(groups);
    }

    /// Ends partition and all faults, and opens all ports.
    pub fn heal(&mut self) {
        self.groups = None;
        for port in self.ports.values_mut() {
            *port = Port { counters: port.counters, lan: port.lan, ..Port::default() };
        }
    }

    /// Forgets every frame under way and every learned address: what a snapshot of the VMs must not meet.
    pub fn flush(&mut self) {
        self.queue.clear();
        self.learned.clear();
    }

    /// Takes a frame that the VM at `from` sent at `now`.
    pub fn ingress(&mut self, from: PortId, frame: &Frame, now: Duration) {
        let Some(port) = self.ports.get_mut(&from) else { return };
        port.counters.sent += 1;
        port.counters.sent_bytes += frame.len() as u64;
        let Some((destination, source)) = addresses(frame) else {
            port.counters.dropped += 1;
            return;
        };
        let (faults, lan, closed) = (port.sent, port.lan, now < port.opens_at);
        if closed || faults.off || is_lost(&mut self.random, faults.loss_ppm) {
            self.drop_at(from);
            return;
        }
        if source[0] & 1 == 0 {
            self.learned.insert((lan, source), from);
        }
        let due = now + Duration::from_micros(faults.delay_us);
        let known =
            if destination[0] & 1 == 0 { self.learned.get(&(lan, destination)).copied() } else { None };
        let targets: Vec<PortId> = match known {
            Some(port) => vec![port],
            None => self.ports.iter().filter(|(_, port)| port.lan == lan).map(|(id, _)| *id).collect(),
        };
        for to in targets.into_iter().filter(|to| *to != from) {
            self.egress(from, to, frame, due);
        }
    }

    fn egress(&mut self, from: PortId, to: PortId, frame: &Frame, due: Duration) {
        let Some(port) = self.ports.get(&to) else { return };
        let faults = port.received;
        let cut = self.group_of(from.vm) != self.group_of(to.vm) || due < port.opens_at;
        if cut || faults.off || is_lost(&mut self.random, faults.loss_ppm) {
            self.drop_at(to);
            return;
        }
        self.sequence += 1;
        let due = due + Duration::from_micros(faults.delay_us);
        self.queue.insert((due, self.sequence), (to, Arc::clone(frame)));
    }

    /// The next frame that is due at `now`, and the port it leaves by.
    pub fn poll(&mut self, now: Duration) -> Option<(PortId, Frame)> {
        let entry = self.queue.first_entry()?;
        if entry.key().0 > now {
            return None;
        }
        let (to, frame) = entry.remove();
        if let Some(port) = self.ports.get_mut(&to) {
            port.counters.received += 1;
            port.counters.received_bytes += frame.len() as u64;
        }
        Some((to, frame))
    }

    /// When the next frame is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.queue.first_key_value().map(|((due, _), _)| *due)
    }

    /// Counts a frame that could not be handed to the VM at `to`: its queue was full.
    pub fn overflowed(&mut self, to: PortId, frame: &Frame) {
        if let Some(port) = self.ports.get_mut(&to) {
            port.counters.received -= 1;
            port.counters.received_bytes -= frame.len() as u64;
            port.counters.dropped += 1;
        }
    }

    /// All ports, as they are now.
    pub fn view(&self) -> BTreeMap<PortId, PortView> {
        self.ports
            .iter()
            .map(|(id, port)| {
                let view = PortView {
                    sent: port.sent,
                    received: port.received,
                    group: self.groups.as_ref().map(|_| self.group_of(id.vm)),
                    counters: port.counters,
                    lan: port.lan,
                    opens_after: port.opens_after,
                };
                (*id, view)
            })
            .collect()
    }

    fn group_of(&self, vm: u32) -> usize {
        let Some(groups) = &self.groups else { return 0 };
        groups.iter().position(|group| group.contains(&vm)).unwrap_or(groups.len())
    }

    fn drop_at(&mut self, port: PortId) {
        if let Some(port) = self.ports.get_mut(&port) {
            port.counters.dropped += 1;
        }
    }
}

fn addresses(frame: &[u8]) -> Option<([u8; 6], [u8; 6])> {
    let destination = frame.get(0..6)?.try_into().ok()?;
    let source = frame.get(6..12)?.try_into().ok()?;
    Some((destination, source))
}

fn is_lost(random: &mut SplitMix64, ppm: u32) -> bool {
    ppm > 0 && random.below(MILLION.into()) < u64::from(ppm)
}
