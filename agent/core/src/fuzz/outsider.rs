// SPDX-License-Identifier: Apache-2.0
//! Two members of one cluster, and somebody on their LAN who can hear, forge and replay but has no key. Nothing of what he
//! does may change anything, nor make a node send him more than he sent.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use super::forge::{self, PEER, SUBJECT};
use super::script::Script;
use super::subject::{INTERFACE, Subject, address};
use crate::command::{Command, NetCommand, StateItem, StreamId};
use crate::consts::AGENT_PORT;
use crate::input::Input;

pub(super) const TIME: u8 = 0;
pub(super) const DATAGRAM: u8 = 1;
pub(super) const REPLAY: u8 = 2;
pub(super) const ACCEPT: u8 = 3;
pub(super) const STREAM: u8 = 4;
pub(super) const REPLAY_STREAM: u8 = 5;
const CLOSE: u8 = 6;
const STEPS: u8 = 7;

/// Handshakes may be answered by a little more than was asked, and beacons by one handshake.
const ANSWERS_AT_ONCE: u64 = 2000;
const ANSWERS_PER_BYTE: u64 = 3;

fn attacker() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 0, 0, 200), AGENT_PORT))
}

/// The LAN, as the outsider hears it.
pub(super) struct Pair {
    nodes: [Subject; 2],
    streams: BTreeMap<(usize, StreamId), (usize, StreamId)>,
    accepted: u64,
    /// Datagrams: to whom, and what.
    pub(super) datagrams: Vec<(usize, Vec<u8>)>,
    /// Pieces of streams.
    pub(super) pieces: Vec<Vec<u8>>,
    to_attacker: u64,
}

pub(super) fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let mut pair = Pair::formed();
    let before = pair.fixed();
    let (datagrams, pieces) = (pair.datagrams.clone(), pair.pieces.clone());
    let (mut from_attacker, mut opened) = (0, 0);
    while let Some(code) = script.step() {
        let to = usize::from(script.flag());
        match code % STEPS {
            TIME => pair.pass(Duration::from_millis(10) * u32::from(script.u8())),
            code @ (DATAGRAM | REPLAY) => {
                let from = match script.u8() % 4 {
                    0 => attacker(),
                    1 => address(1 - to as u8),
                    2 => address(to as u8),
                    _ => SocketAddr::V6(SocketAddrV6::new(
                        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9),
                        AGENT_PORT,
                        0,
                        INTERFACE,
                    )),
                };
                let bytes = if code == DATAGRAM {
                    script.bytes().to_vec()
                } else {
                    let at = usize::from(script.u16()) % datagrams.len();
                    changed(datagrams[at].1.clone(), &mut script)
                };
                if from == attacker() {
                    from_attacker += bytes.len() as u64;
                }
                pair.tell(to, Input::Datagram { from, interface: INTERFACE, bytes });
            }
            ACCEPT => {
                opened += 1;
                let stream = StreamId::inbound(1_000_000 + opened);
                pair.tell(to, Input::StreamAccepted { stream, from: attacker() });
            }
            code => {
                let stream = StreamId::inbound(1_000_000 + u64::from(script.u8()) % (opened + 1));
                match code {
                    STREAM => pair.tell(to, Input::StreamData { stream, bytes: script.bytes().to_vec() }),
                    REPLAY_STREAM => {
                        let at = usize::from(script.u16()) % pieces.len();
                        let bytes = changed(pieces[at].clone(), &mut script);
                        pair.tell(to, Input::StreamData { stream, bytes });
                    }
                    CLOSE => pair.tell(to, Input::StreamClosed { stream }),
                    _ => {}
                }
            }
        }
    }
    pair.pass(Duration::from_secs(4));
    assert_eq!(pair.fixed(), before, "an outsider changed something");
    let allowed = ANSWERS_AT_ONCE + ANSWERS_PER_BYTE * from_attacker;
    assert!(pair.to_attacker <= allowed, "{} bytes to the outsider for {from_attacker}", pair.to_attacker);
}

/// A recorded piece, perhaps with a change.
fn changed(mut bytes: Vec<u8>, script: &mut Script<'_>) -> Vec<u8> {
    let at = usize::from(script.u16()) % bytes.len().max(1);
    match script.u8() % 4 {
        1 => bytes[at] ^= script.u8(),
        2 => bytes.truncate(at),
        3 => bytes.extend_from_slice(script.bytes()),
        _ => {}
    }
    bytes
}

impl Pair {
    /// Two members that have found each other and compared all they know.
    pub(super) fn formed() -> Self {
        let start = |n| Subject::start(n, forge::member_files(n, false), true);
        let ((a, first), (b, second)) = (start(SUBJECT), start(PEER));
        let mut pair = Self {
            nodes: [a, b],
            streams: BTreeMap::new(),
            accepted: 0,
            datagrams: Vec::new(),
            pieces: Vec::new(),
            to_attacker: 0,
        };
        pair.carry_out(0, first);
        pair.carry_out(1, second);
        pair.pass(Duration::from_secs(5));
        pair
    }

    /// What an outsider must not change.
    fn fixed(&self) -> Vec<String> {
        let one = |node: &Subject| {
            let status = node.node.status(node.present());
            let members: Vec<_> = node
                .node
                .members(node.present())
                .into_iter()
                .map(|member| (member.id, member.state))
                .collect();
            let membership = node.disk.get(&StateItem::Membership);
            format!("{:?} {:?} {members:?} {membership:?} {:?}", status.phase, status.cluster_id, node.mesh)
        };
        self.nodes.iter().map(one).collect()
    }

    pub(super) fn pass(&mut self, duration: Duration) {
        let end = self.nodes[0].now + duration;
        while self.nodes[0].now < end {
            let next = self.nodes[0].next(end).min(self.nodes[1].next(end));
            let next = next.max(self.nodes[0].now + Duration::from_millis(1));
            for n in 0..2 {
                let commands = self.nodes[n].advance(next);
                self.carry_out(n, commands);
            }
        }
    }

    pub(super) fn tell(&mut self, n: usize, input: Input) {
        let commands = self.nodes[n].tell(input);
        self.carry_out(n, commands);
    }

    fn carry_out(&mut self, n: usize, commands: Vec<Command>) {
        let mut queue: VecDeque<_> = commands.into_iter().map(|command| (n, command)).collect();
        while let Some((n, command)) = queue.pop_front() {
            let (far, from) = (1 - n, address(n as u8));
            let input = match command {
                Command::Net(NetCommand::SendDatagram { to, bytes, .. }) if to == address(far as u8) => {
                    self.datagrams.push((far, bytes.clone()));
                    (far, Input::Datagram { from, interface: INTERFACE, bytes })
                }
                Command::Net(NetCommand::Broadcast { bytes, .. }) => {
                    self.datagrams.push((far, bytes.clone()));
                    (far, Input::Datagram { from, interface: INTERFACE, bytes })
                }
                Command::Net(NetCommand::SendDatagram { to, bytes, .. }) => {
                    if to == attacker() {
                        self.to_attacker += bytes.len() as u64;
                    }
                    continue;
                }
                Command::Net(NetCommand::Connect { stream, to }) if to == address(far as u8) => {
                    self.accepted += 1;
                    let inbound = StreamId::inbound(self.accepted);
                    self.streams.insert((n, stream), (far, inbound));
                    self.streams.insert((far, inbound), (n, stream));
                    let more = self.nodes[far].tell(Input::StreamAccepted { stream: inbound, from });
                    queue.extend(more.into_iter().map(|command| (far, command)));
                    (n, Input::StreamConnected { stream })
                }
                Command::Net(NetCommand::Connect { stream, .. }) => (n, Input::StreamClosed { stream }),
                Command::Net(NetCommand::StreamSend { stream, bytes }) => {
                    let Some((far, stream)) = self.streams.get(&(n, stream)).copied() else { continue };
                    self.pieces.push(bytes.clone());
                    (far, Input::StreamData { stream, bytes })
                }
                Command::Net(NetCommand::StreamClose { stream }) => {
                    let Some((far, stream)) = self.streams.remove(&(n, stream)) else { continue };
                    self.streams.remove(&(far, stream));
                    (far, Input::StreamClosed { stream })
                }
                _ => continue,
            };
            let more = self.nodes[input.0].tell(input.1);
            queue.extend(more.into_iter().map(|command| (input.0, command)));
        }
    }
}
