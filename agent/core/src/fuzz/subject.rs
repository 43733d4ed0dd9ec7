// SPDX-License-Identifier: Apache-2.0
//! A node under test: its clock, its disk, and a count of everything that goes in and out.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::forge;
use crate::command::{Command, HostCommand, LogLevel, MeshPlan, NetCommand, StateItem, Ticket};
use crate::consts::{AGENT_PORT, MAX_WIDE_DATAGRAM};
use crate::input::{Boot, Input, Interface, Now, Provisioning, Saved};
use crate::node::Node;

/// Index of its only interface.
pub(super) const INTERFACE: u32 = 7;
/// One input never causes more commands than this.
const MAX_COMMANDS: usize = 2000;
/// What a node of a cluster of three may send by itself, per second of virtual time and at once.
const BYTES_PER_SECOND: u64 = 20_000;
const BYTES_AT_ONCE: u64 = 200_000;
/// What it may send per byte that it is told.
const BYTES_PER_BYTE: u64 = 4;

/// Where a fixed node is on the LAN.
pub(super) fn address(n: u8) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, n + 1), AGENT_PORT))
}

pub(super) struct Subject {
    pub(super) node: Node,
    pub(super) now: Duration,
    pub(super) disk: BTreeMap<StateItem, Vec<u8>>,
    pub(super) mesh: Option<MeshPlan>,
    /// Error lines of its log.
    pub(super) errors: Vec<String>,
    /// Whether sockets take what is said on streams.
    pub(super) is_read: bool,
    /// Whether writes wait for `finish_writes`.
    pub(super) is_disk_slow: bool,
    unfinished: Vec<Ticket>,
    started: Duration,
    bytes_in: u64,
    pub(super) bytes_out: u64,
    /// Lines of its log that people see.
    pub(super) lines: u64,
}

impl Subject {
    /// Starts fixed node `n` from files. Gives its first commands.
    pub(super) fn start(n: u8, saved: Saved, provisioned: bool) -> (Self, Vec<Command>) {
        let now = Duration::from_secs(5);
        let boot = Boot {
            seed: [n + 1; 32],
            version: "1.2.3".into(),
            build_time: Duration::from_secs(1_700_000_000),
            development: Vec::new(),
        };
        let settings = provisioned.then(forge::settings);
        let provisioning = Provisioning { settings, problems: Vec::new() };
        let node = Node::new(boot, provisioning, saved, present(now));
        let mut subject = Self {
            node,
            now,
            disk: BTreeMap::new(),
            mesh: None,
            errors: Vec::new(),
            is_read: true,
            is_disk_slow: false,
            unfinished: Vec::new(),
            started: now,
            bytes_in: 0,
            bytes_out: 0,
            lines: 0,
        };
        let interface = Interface {
            index: INTERFACE,
            name: "eth0".into(),
            addresses: vec![(address(n).ip(), 24)],
            up: true,
            physical: true,
        };
        let commands = subject.tell(Input::Interfaces(vec![interface]));
        (subject, commands)
    }

    pub(super) fn present(&self) -> Now {
        present(self.now)
    }

    /// Tells the node something; gives what goes out on the network. Writes succeed at once.
    pub(super) fn tell(&mut self, input: Input) -> Vec<Command> {
        self.bytes_in += match &input {
            Input::Datagram { bytes, .. } | Input::StreamData { bytes, .. } => bytes.len() as u64,
            _ => 0,
        };
        self.node.handle(input, self.present());
        let (mut out, mut count) = (Vec::new(), 0);
        while let Some(command) = self.node.poll_command() {
            count += 1;
            match command {
                Command::Persist { ticket, item, bytes } => {
                    self.disk.insert(item, bytes);
                    if self.is_disk_slow {
                        self.unfinished.push(ticket);
                    } else {
                        self.node.handle(Input::Persisted(ticket), self.present());
                    }
                }
                Command::Host(HostCommand::MeshApply(plan)) => self.mesh = Some(plan),
                Command::Host(HostCommand::MeshRemove) => self.mesh = None,
                Command::Log { level, message, .. } => {
                    self.lines += u64::from(level != LogLevel::Debug);
                    if level == LogLevel::Error {
                        self.errors.push(message);
                    }
                }
                Command::Net(
                    NetCommand::SendDatagram { ref bytes, .. }
                    | NetCommand::Multicast { ref bytes, .. }
                    | NetCommand::Broadcast { ref bytes, .. }
                    | NetCommand::StreamSend { ref bytes, .. },
                ) => {
                    if !matches!(command, Command::Net(NetCommand::StreamSend { .. })) {
                        assert!(bytes.len() <= MAX_WIDE_DATAGRAM, "a datagram of {} bytes", bytes.len());
                    }
                    self.bytes_out += bytes.len() as u64;
                    if let Command::Net(NetCommand::StreamSend { stream, bytes }) = &command
                        && self.is_read
                    {
                        let sent = Input::StreamSent { stream: *stream, bytes: bytes.len() };
                        self.node.handle(sent, self.present());
                    }
                    out.push(command);
                }
                Command::Net(NetCommand::Connect { .. } | NetCommand::StreamClose { .. }) => {
                    out.push(command)
                }
                _ => {}
            }
        }
        assert!(count <= MAX_COMMANDS, "{count} commands after one input");
        let seconds = (self.now - self.started).as_secs();
        let allowed = BYTES_AT_ONCE + BYTES_PER_SECOND * seconds + BYTES_PER_BYTE * self.bytes_in;
        assert!(self.bytes_out <= allowed, "{} bytes out for {} bytes in", self.bytes_out, self.bytes_in);
        self.node.assert_bounded();
        out
    }

    /// Ends the writes that a slow disk has under way.
    #[cfg(test)]
    pub(super) fn finish_writes(&mut self) -> Vec<Command> {
        let unfinished = std::mem::take(&mut self.unfinished);
        unfinished.into_iter().flat_map(|ticket| self.tell(Input::Persisted(ticket))).collect()
    }

    /// The next moment at which the node wants to be told the time, at most `limit`.
    pub(super) fn next(&self, limit: Duration) -> Duration {
        self.node.poll_timeout().map_or(limit, |at| at.clamp(self.now, limit))
    }

    /// Sets the clock forward and tells the node.
    pub(super) fn advance(&mut self, to: Duration) -> Vec<Command> {
        self.now = self.now.max(to);
        self.tell(Input::Timeout)
    }

    /// Lets time pass while nobody listens.
    pub(super) fn alone(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            let next = self.next(end).max(self.now + Duration::from_millis(1));
            self.advance(next);
        }
    }
}

fn present(now: Duration) -> Now {
    Now { boottime: now, wall: Duration::from_secs(1_800_000_000) + now }
}
