// SPDX-License-Identifier: Apache-2.0
//! Everything that the machines of a world command, as one hash. A change that moves code and means to change nothing
//! leaves it as it is.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::time::Duration;

use cluster_agent_core::{Command, HostCommand, MeshPlan, NetCommand, Notice};
use sha2::{Digest, Sha256};

/// A world writes its lines to this file, too, so that `diff` finds the first difference between two builds.
const TRACE: &str = "GUARD_TRACE";

/// The hash so far. Each line counts: when, which machine, what.
pub struct Guard {
    hash: Sha256,
    trace: Option<BufWriter<File>>,
}

impl Guard {
    pub fn new() -> Self {
        let trace = std::env::var_os(TRACE)
            .map(|path| BufWriter::new(File::create(path).expect("the trace can be written")));
        Self { hash: Sha256::new(), trace }
    }

    /// Answers to requests are left out: they are for people, and `standing` looks at them.
    pub fn command(&mut self, at: Duration, machine: usize, command: &Command) {
        if !matches!(command, Command::Answer { .. }) {
            self.line(at, machine, &told(command));
        }
    }

    pub fn line(&mut self, at: Duration, machine: usize, what: &str) {
        let line = format!("{} {machine} {what}\n", at.as_nanos());
        self.hash.update(&line);
        if let Some(trace) = &mut self.trace {
            trace.write_all(line.as_bytes()).expect("the trace can be written");
        }
    }

    pub fn finish(mut self) -> String {
        if let Some(trace) = &mut self.trace {
            trace.flush().expect("the trace can be written");
        }
        short(&self.hash.finalize())
    }
}

/// A command in words that stay the same when its type is renamed or moved.
fn told(command: &Command) -> String {
    match command {
        Command::Net(NetCommand::SendDatagram { to, interface, bytes }) => {
            format!("datagram {to} {interface} {}", content(bytes))
        }
        Command::Net(NetCommand::Multicast { interface, bytes }) => {
            format!("multicast {interface} {}", content(bytes))
        }
        Command::Net(NetCommand::Broadcast { interface, bytes }) => {
            format!("broadcast {interface} {}", content(bytes))
        }
        Command::Net(NetCommand::SendToName { host, port, bytes }) => {
            format!("to name {host} {port} {}", content(bytes))
        }
        Command::Net(NetCommand::Connect { stream, to }) => format!("connect {} {to}", stream.0),
        Command::Net(NetCommand::StreamSend { stream, bytes }) => {
            format!("stream {} {}", stream.0, content(bytes))
        }
        Command::Net(NetCommand::StreamClose { stream }) => format!("close {}", stream.0),
        Command::Persist { ticket, item, bytes } => {
            format!("write {} {} {}", ticket.0, item.file_name(), content(bytes))
        }
        Command::Host(HostCommand::SetClockFloor { wall }) => format!("clock at least {wall:?}"),
        Command::Host(HostCommand::SetClock { wall }) => format!("clock {wall:?}"),
        Command::Host(HostCommand::MeshApply(plan)) => format!("mesh {}", mesh(plan)),
        Command::Host(HostCommand::MeshRemove) => "no mesh".into(),
        Command::Host(HostCommand::SetHostname { name }) => format!("host name {name}"),
        Command::Answer { id, result } => format!("answer {} {result:?}", id.0),
        Command::Notify(Notice::Status) => "status changed".into(),
        Command::Notify(Notice::Member { id, name, state }) => {
            format!("member {id} {name} {}", state.as_str())
        }
        Command::Log { level, message, fields } => format!("log {level:?} {message} {fields:?}"),
    }
}

fn mesh(plan: &MeshPlan) -> String {
    let mut text = format!("{} {}", plan.listen_port, plan.address);
    for peer in &plan.peers {
        let _ = write!(
            text,
            "; {} {} at {:?} {:?} routes {:?} every {:?}",
            peer.id.short(),
            content(&peer.public_key),
            peer.endpoint,
            peer.also_at,
            peer.allowed_ips,
            peer.keepalive
        );
    }
    text
}

fn content(bytes: &[u8]) -> String {
    format!("{} bytes {}", bytes.len(), short(&Sha256::digest(bytes)))
}

fn short(hash: &[u8]) -> String {
    hash.iter().take(8).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
