// SPDX-License-Identifier: Apache-2.0
//! What a person needs to see when a seed fails: the last things that each machine did and met, in words.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use cluster_agent_core::{Command, HostCommand, Input, NetCommand, StateItem};

/// Things kept for each machine.
const KEPT: usize = 40;

/// One thing. Small: it is noted millions of times and shown never or once.
pub enum Step {
    /// A datagram came or went: kind, size, other end.
    Heard(u8, usize, SocketAddr),
    Sent(u8, usize, SocketAddr),
    /// Sent to everybody on the link.
    Called(u8, usize),
    Wrote(StateItem, usize),
    /// Anything else; rare enough for text.
    Did(String),
}

/// The last things of one machine.
#[derive(Default)]
pub struct Trace(VecDeque<(Duration, Step)>);

impl Trace {
    pub fn note(&mut self, at: Duration, step: Step) {
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back((at, step));
    }

    pub fn input(&mut self, at: Duration, input: &Input) {
        let step = match input {
            Input::Timeout | Input::Persisted(_) | Input::MeshStats(_) => return,
            Input::Datagram { from, bytes, .. } => Step::Heard(kind(bytes), bytes.len(), *from),
            Input::StreamAccepted { stream, from } => {
                Step::Did(format!("accepted stream {} from {from}", number(stream.0)))
            }
            Input::StreamConnected { stream } => Step::Did(format!("stream {} stands", number(stream.0))),
            Input::StreamData { stream, bytes } => {
                Step::Did(format!("read {} bytes of stream {}", bytes.len(), number(stream.0)))
            }
            Input::StreamClosed { stream } => {
                Step::Did(format!("stream {} was closed by the other end", number(stream.0)))
            }
            Input::StreamSent { stream, bytes } => {
                Step::Did(format!("has sent {bytes} bytes of stream {}", number(stream.0)))
            }
            Input::Interfaces(all) => Step::Did(format!("has {} interfaces", all.len())),
            Input::Request { request, .. } => Step::Did(format!("is asked: {request:?}")),
            Input::PersistFailed { error, .. } => Step::Did(format!("could not write: {error}")),
            Input::Provisioned(_) => Step::Did("reads cluster.toml".into()),
            Input::External { area, message, .. } => Step::Did(format!("hears of {area}: {message}")),
        };
        self.note(at, step);
    }

    pub fn command(&mut self, at: Duration, command: &Command) {
        let step = match command {
            Command::Net(NetCommand::SendDatagram { to, bytes, .. }) => {
                Step::Sent(kind(bytes), bytes.len(), *to)
            }
            Command::Net(NetCommand::Multicast { bytes, .. } | NetCommand::Broadcast { bytes, .. }) => {
                Step::Called(kind(bytes), bytes.len())
            }
            Command::Net(NetCommand::Connect { stream, to }) => {
                Step::Did(format!("opens stream {} to {to}", number(stream.0)))
            }
            Command::Net(NetCommand::StreamSend { stream, bytes }) => {
                Step::Did(format!("says {} bytes on stream {}", bytes.len(), number(stream.0)))
            }
            Command::Net(NetCommand::StreamClose { stream }) => {
                Step::Did(format!("closes stream {}", number(stream.0)))
            }
            Command::Persist { item, bytes, .. } => Step::Wrote(*item, bytes.len()),
            Command::Host(HostCommand::SetClock { wall }) => Step::Did(format!("sets its clock to {wall:?}")),
            Command::Host(HostCommand::SetClockFloor { wall }) => {
                Step::Did(format!("sets its clock to at least {wall:?}"))
            }
            Command::Host(HostCommand::MeshApply(plan)) => {
                Step::Did(format!("wants a mesh with {} peers", plan.peers.len()))
            }
            Command::Host(HostCommand::MeshRemove) => Step::Did("takes the mesh down".into()),
            Command::Answer { id, result } => Step::Did(format!("answers request {}: {result:?}", id.0)),
            Command::Log { level, message, fields } => {
                let mut text = format!("logs ({level:?}): {message}");
                for (name, value) in fields {
                    let _ = write!(text, ", {name} {}", value.get(..12).unwrap_or(value));
                }
                Step::Did(text)
            }
            Command::Notify(_)
            | Command::Host(HostCommand::SetHostname { .. })
            | Command::Net(NetCommand::SendToName { .. }) => return,
        };
        self.note(at, step);
    }

    /// Lines for people; `name` says who has an address.
    pub fn lines(&self, name: impl Fn(&SocketAddr) -> String) -> Vec<String> {
        let line = |(at, step): &(Duration, Step)| {
            let what = match step {
                Step::Heard(kind, size, from) => {
                    format!("hears {} ({size} bytes) from {}", word(*kind), name(from))
                }
                Step::Sent(kind, size, to) => format!("sends {} ({size} bytes) to {}", word(*kind), name(to)),
                Step::Called(kind, size) => format!("calls {} ({size} bytes) to the whole link", word(*kind)),
                Step::Wrote(item, size) => format!("writes {item:?} ({size} bytes)"),
                Step::Did(text) => text.clone(),
            };
            format!("{:>10.3} s  {what}", at.as_secs_f64())
        };
        self.0.iter().map(line).collect()
    }
}

fn kind(bytes: &[u8]) -> u8 {
    bytes.get(1).copied().unwrap_or(0)
}

fn word(kind: u8) -> &'static str {
    match kind {
        1 => "a beacon",
        2 => "a session request",
        3 => "a session answer",
        4 => "a session datagram",
        5 => "\"no such session\"",
        6 => "a cookie",
        _ => "something unknown",
    }
}

/// Streams that others opened have the high bit set.
fn number(stream: u64) -> String {
    let low = stream & !(1 << 63);
    if stream == low { format!("{low}") } else { format!("in-{low}") }
}
