// SPDX-License-Identifier: Apache-2.0
//! Many machines on one host with a few processors, as in `just bench members` or a laptop full of VMs: whatever a node
//! does takes time, and all others wait for it. Without one, machines compute in no time.
//!
//! What things take follows profiles of that bench on two cores of an AMD EPYC (November 2026), the kernel's part and that
//! of `wireguard-go` included. It is a model: it says which of two ways of doing things is less work, not how many seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use cluster_agent_core::{Command, HostCommand, Input, NetCommand, Notice};

/// Processors, and until when each is busy.
pub struct Host {
    busy_until: Vec<Duration>,
    /// How many times longer than in the profiles everything takes.
    slower: f64,
    /// What was computed: how often, and how long.
    pub work: BTreeMap<&'static str, (u64, Duration)>,
}

/// Something to compute, by name.
pub type Work = (&'static str, Duration);

const fn micros(n: u64) -> Duration {
    Duration::from_micros(n)
}

impl Host {
    pub fn new(processors: usize, slower: f64) -> Self {
        Self { busy_until: vec![Duration::ZERO; processors], slower, work: BTreeMap::new() }
    }

    /// When the next thing can be done.
    pub fn free(&self) -> Duration {
        self.busy_until.iter().copied().min().unwrap_or_default()
    }

    /// One processor is taken for it.
    pub fn compute(&mut self, now: Duration, (what, long): Work) {
        let long = long.mul_f64(self.slower);
        let (times, altogether) = self.work.entry(what).or_default();
        *times += 1;
        *altogether += long;
        if let Some(first) = self.busy_until.iter_mut().min() {
            *first = now.max(*first) + long;
        }
    }

    pub fn computed(&self) -> Duration {
        self.work.values().map(|(_, long)| *long).sum()
    }
}

/// Starting the program.
pub const START: Work = ("program started", micros(18_000));

/// What an input takes, the kernel's part included.
pub fn of_input(input: &Input) -> Work {
    match input {
        Input::Datagram { bytes, .. } => match bytes.get(1) {
            Some(1) => ("beacon heard", micros(40)),
            Some(2) => ("open answered", micros(375)),
            Some(3) => ("answer to an open", micros(250)),
            _ => ("datagram heard", micros(40 + bytes.len() as u64 / 13)),
        },
        // Both sides prove themselves.
        Input::StreamConnected { .. } => ("stream opened", micros(500)),
        Input::StreamAccepted { .. } => ("stream accepted", micros(700)),
        // Objects, and a signature in each.
        Input::StreamData { bytes, .. } => ("stream heard", micros(45 + bytes.len() as u64 * 2 / 9)),
        Input::Timeout => ("timer", micros(15)),
        _ => ("other input", micros(15)),
    }
}

/// What a command takes. `peers`: how many peers of the mesh it changes, `machines`: how many hear a broadcast.
pub fn of_command(command: &Command, peers: usize, machines: usize) -> Work {
    match command {
        Command::Net(NetCommand::SendDatagram { bytes, .. }) if bytes.get(1) == Some(&2) => {
            ("open said", micros(180))
        }
        Command::Net(NetCommand::SendDatagram { .. }) => ("datagram said", micros(30)),
        Command::Net(NetCommand::StreamSend { .. }) => ("stream said", micros(30)),
        Command::Net(NetCommand::Multicast { .. } | NetCommand::Broadcast { .. }) => {
            ("broadcast", micros(60 + 5 * machines as u64))
        }
        Command::Persist { .. } => ("file written", micros(1000)),
        Command::Host(HostCommand::MeshApply(_)) => ("mesh changed", micros(150 + 375 * peers as u64)),
        Command::Answer { .. } => ("request answered", Duration::ZERO),
        Command::Notify(Notice::Status) => ("status shown", micros(375)),
        _ => ("other command", micros(8)),
    }
}
