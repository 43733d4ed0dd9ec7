// SPDX-License-Identifier: Apache-2.0
//! The other end of sessions and streams: real handshakes with keys of its own, and then whatever a script says.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::forge;
use super::script::Script;
use super::subject::{INTERFACE, Subject, address};
use crate::beacon::{Beacon, DATAGRAM_BEACON, Seal};
use crate::command::{Command, NetCommand, StreamId};
use crate::id::NodeId;
use crate::input::Input;
use crate::keys::Keys;
use crate::limit::Rejects;
use crate::noise::{self, Carrier};
use crate::roster::Roster;
use crate::session::{Context, DATAGRAM_ACCEPT, DATAGRAM_OPEN, Event, Greeting, Path, Sessions};
use crate::stream::{Kind, Stream, StreamEvent, StreamKeys};
use crate::sync::Message;
use crate::tag::{TAG, TagKey};

const MAX_STREAMS: usize = 256;
/// Answers to answers after one step; two honest sides come to rest long before.
const MAX_ROUNDS: usize = 2000;

pub(super) struct Attacker {
    n: u8,
    keys: &'static Keys,
    rng: StdRng,
    rejects: Rejects,
    roster: &'static Roster,
    sessions: Sessions,
    seal: Seal,
    psk: [u8; 32],
    pub(super) greeting: Greeting,
    /// Payload of the next handshake answer instead of a greeting.
    pub(super) odd_greeting: Option<Vec<u8>>,
    streams: Vec<(StreamId, Stream)>,
    accepted: u64,
    /// The subject's instance, once a beacon of it was heard.
    asked_by: Option<[u8; 8]>,
    /// Plaintexts that the subject said, for seeds: gossip packets and stream messages.
    pub(super) heard_packets: Vec<Vec<u8>>,
    pub(super) heard_messages: Vec<Message>,
}

fn sessions(n: u8, rng: &mut StdRng) -> Sessions {
    Sessions::new(forge::cluster_id(), &forge::keys(n).session_public(), rng)
}

impl Attacker {
    pub(super) fn new(n: u8, blank: bool) -> Self {
        let join = forge::join_key();
        let mut rng = StdRng::from_seed([0x40 | n; 32]);
        Self {
            n,
            keys: forge::keys(n),
            sessions: sessions(n, &mut rng),
            rng,
            rejects: Rejects::default(),
            roster: forge::roster(blank),
            seal: Seal::new(&join.discovery_key()),
            psk: join.admission_psk(),
            greeting: Greeting { instance: [n; 8], generation: 1, bump: 0, wall: 1_800_000_005_000 },
            odd_greeting: None,
            streams: Vec::new(),
            accepted: 0,
            asked_by: None,
            heard_packets: Vec::new(),
            heard_messages: Vec::new(),
        }
    }

    /// Forgets all sessions, as after a restart.
    pub(super) fn restart(&mut self, greeting: Greeting) {
        self.greeting = greeting;
        self.sessions = sessions(self.n, &mut self.rng);
    }

    /// Lets time pass for both sides.
    pub(super) fn pass(&mut self, subject: &mut Subject, duration: Duration) {
        let end = subject.now + duration;
        while subject.now < end {
            let next = subject.next(end).max(subject.now + Duration::from_millis(1));
            let commands = subject.advance(next);
            self.carry_out(subject, commands);
            self.with_sessions(subject.now, |sessions, context| sessions.tick(context));
            self.flush_sessions(subject);
        }
    }

    /// Sends a payload through a session, opening one if need be.
    pub(super) fn payload(&mut self, subject: &mut Subject, payload: &[u8]) {
        let to = forge::id(forge::SUBJECT);
        let path = Path { address: address(forge::SUBJECT), interface: 0 };
        self.sessions.suggest(to, path);
        self.with_sessions(subject.now, |sessions, context| sessions.send(to, payload, context));
        self.flush_sessions(subject);
    }

    /// Sends bytes as they are.
    pub(super) fn datagram(&mut self, subject: &mut Subject, bytes: Vec<u8>) {
        let input = Input::Datagram { from: address(self.n), interface: INTERFACE, bytes };
        let commands = subject.tell(input);
        self.carry_out(subject, commands);
    }

    pub(super) fn beacon(&mut self, subject: &mut Subject, script: &mut Script<'_>) {
        let node = match script.u8() {
            n @ 0..8 => forge::id(n),
            8..128 => forge::id(self.n),
            _ => NodeId(script.array()),
        };
        let instance: [u8; 8] = script.array();
        let beacon = Beacon {
            node,
            instance,
            cluster: match script.u8() % 3 {
                0 => None,
                1 => Some(forge::cluster_id()),
                _ => Some(crate::id::ClusterId(script.array())),
            },
            solicits: script.flag(),
            // For the subject, or for all.
            to: self.asked_by.filter(|_| instance[0] % 2 == 1),
        };
        let bytes = beacon.to_datagram(&self.seal, script.array());
        self.datagram(subject, bytes);
    }

    /// Where two peers open streams to one subject, their streams need numbers of their own.
    #[cfg(test)]
    pub(super) fn number_from(&mut self, first: u64) {
        self.accepted = first;
    }

    /// Opens a stream to the subject.
    pub(super) fn open(&mut self, subject: &mut Subject, kind: Kind) {
        self.open_from(subject, kind, address(self.n));
    }

    /// The same from another address.
    pub(super) fn open_from(&mut self, subject: &mut Subject, kind: Kind, from: SocketAddr) {
        if self.streams.len() >= MAX_STREAMS {
            return;
        }
        self.accepted += 1;
        let id = StreamId::inbound(self.accepted);
        let mut stream = Stream::outbound(kind, forge::id(forge::SUBJECT), subject.now);
        let session_key = forge::keys(forge::SUBJECT).session_public();
        let started = self.with_stream_keys(|keys| stream.start(keys, Some(&session_key)));
        started.expect("a handshake can be started");
        let first = stream.take_output();
        self.streams.push((id, stream));
        let commands = subject.tell(Input::StreamAccepted { stream: id, from });
        self.carry_out(subject, commands);
        self.raw(subject, id, first);
    }

    /// The stream that a script means by a number.
    pub(super) fn stream(&self, number: u8) -> Option<StreamId> {
        let at = usize::from(number).checked_rem(self.streams.len())?;
        Some(self.streams[at].0)
    }

    /// The stream that was opened last, if it is still there.
    #[cfg(test)]
    pub(super) fn last_stream(&self) -> Option<StreamId> {
        self.streams.last().map(|(id, _)| *id)
    }

    /// What a message is on a stream, without saying it.
    #[cfg(test)]
    pub(super) fn encrypt(&mut self, id: StreamId, message: &Message) -> Vec<u8> {
        let (_, stream) = self.streams.iter_mut().find(|(known, _)| *known == id).expect("it is open");
        stream.send(message).expect("it is open");
        stream.take_output()
    }

    /// What a stream to the subject begins with.
    #[cfg(test)]
    pub(super) fn first_frame(&mut self, kind: Kind) -> Vec<u8> {
        let mut stream = Stream::outbound(kind, forge::id(forge::SUBJECT), Duration::ZERO);
        let session_key = forge::keys(forge::SUBJECT).session_public();
        self.with_stream_keys(|keys| stream.start(keys, Some(&session_key))).expect("it can be started");
        stream.take_output()
    }

    /// An open of a session, without sending it.
    #[cfg(test)]
    pub(super) fn handshake(&mut self, now: Duration) -> Vec<u8> {
        let to = forge::id(forge::SUBJECT);
        self.sessions.suggest(to, Path { address: address(forge::SUBJECT), interface: 0 });
        self.with_sessions(now, |sessions, context| sessions.send(to, &[], context));
        let open = self.sessions.take_events().into_iter().find_map(|event| match event {
            Event::Send(_, bytes) if bytes[1] == DATAGRAM_OPEN => Some(bytes),
            _ => None,
        });
        open.expect("it opens a session")
    }

    /// The cookie in an answer of the subject's to a handshake, its tag included.
    #[cfg(test)]
    pub(super) fn cookie(&mut self, answer: &[u8], handshake: &[u8]) -> [u8; TAG] {
        let session_key = forge::keys(forge::SUBJECT).session_public();
        crate::session::probe::cookie(&session_key, answer, handshake)
    }

    #[cfg(test)]
    pub(super) fn has_session(&self) -> bool {
        self.sessions.is_open(&forge::id(forge::SUBJECT))
    }

    #[cfg(test)]
    pub(super) fn has_stream(&self, id: StreamId) -> bool {
        self.streams.iter().any(|(known, _)| *known == id)
    }

    /// Says something `times` times in one piece.
    pub(super) fn say(&mut self, subject: &mut Subject, id: StreamId, plaintext: &[u8], times: u8) {
        let Some((_, stream)) = self.streams.iter_mut().find(|(known, _)| *known == id) else { return };
        for _ in 0..times.max(1) {
            if stream.send_bytes(plaintext).is_err() {
                return;
            }
        }
        let bytes = stream.take_output();
        self.raw(subject, id, bytes);
    }

    /// Bytes on a stream as they are.
    pub(super) fn raw(&mut self, subject: &mut Subject, id: StreamId, bytes: Vec<u8>) {
        let commands = subject.tell(Input::StreamData { stream: id, bytes });
        self.carry_out(subject, commands);
    }

    pub(super) fn close(&mut self, subject: &mut Subject, id: StreamId) {
        self.streams.retain(|(known, _)| *known != id);
        let commands = subject.tell(Input::StreamClosed { stream: id });
        self.carry_out(subject, commands);
    }

    /// Answers what the subject sends until both are quiet.
    pub(super) fn carry_out(&mut self, subject: &mut Subject, commands: Vec<Command>) {
        let mut queue = VecDeque::from(commands);
        for _ in 0..MAX_ROUNDS {
            let Some(command) = queue.pop_front() else { return };
            match command {
                Command::Net(NetCommand::SendDatagram { to, bytes, .. }) if to == address(self.n) => {
                    queue.extend(self.hear(subject, &bytes));
                }
                Command::Net(NetCommand::Connect { stream, to }) => {
                    let here = to == address(self.n) && self.streams.len() < MAX_STREAMS;
                    if here {
                        self.streams.push((stream, Stream::inbound(subject.now)));
                        queue.extend(subject.tell(Input::StreamConnected { stream }));
                    } else {
                        queue.extend(subject.tell(Input::StreamClosed { stream }));
                    }
                }
                Command::Net(NetCommand::StreamSend { stream, bytes }) => {
                    queue.extend(self.hear_stream(subject, stream, &bytes))
                }
                Command::Net(NetCommand::StreamClose { stream }) => {
                    self.streams.retain(|(known, _)| *known != stream)
                }
                Command::Net(NetCommand::Broadcast { bytes, .. } | NetCommand::Multicast { bytes, .. }) => {
                    self.hear_beacon(&bytes)
                }
                _ => {}
            }
        }
        panic!("the node and its peer never come to rest");
    }

    fn hear(&mut self, subject: &mut Subject, bytes: &[u8]) -> Vec<Command> {
        let path = Path { address: address(forge::SUBJECT), interface: 0 };
        let kind = bytes[1];
        if kind == DATAGRAM_BEACON {
            self.hear_beacon(bytes);
            return Vec::new();
        }
        if kind == DATAGRAM_OPEN
            && let Some(payload) = self.odd_greeting.take()
        {
            let answer = self.odd_answer(bytes, &payload);
            let from = address(self.n);
            return answer
                .map(|bytes| subject.tell(Input::Datagram { from, interface: INTERFACE, bytes }))
                .unwrap_or_default();
        }
        self.with_sessions(subject.now, |sessions, context| sessions.handle(kind, path, bytes, context));
        self.session_events(subject)
    }

    fn hear_beacon(&mut self, bytes: &[u8]) {
        if let Ok(beacon) = Beacon::open(&self.seal, bytes) {
            self.asked_by = Some(beacon.instance);
        }
    }

    /// A handshake answer that proves our key and then says something else than a greeting.
    fn odd_answer(&mut self, open: &[u8], payload: &[u8]) -> Option<Vec<u8>> {
        let (index, message) = open.get(2..)?.split_first_chunk::<4>()?;
        // Behind it the tag, and the place for the proof of a cookie.
        let message = message.get(..message.len().checked_sub(2 * TAG)?)?;
        let cluster = forge::cluster_id();
        let secret = self.keys.session_secret();
        let mut handshake = noise::member_responder(&mut self.rng, Carrier::Datagrams, &cluster, secret);
        let mut buffer = [0; 1200];
        handshake.read_message(message, &mut buffer).ok()?;
        let length = handshake.write_message(&payload[..payload.len().min(1000)], &mut buffer).ok()?;
        let mut answer = [&[1, DATAGRAM_ACCEPT][..], index, &[9; 4], &buffer[..length]].concat();
        let to = forge::keys(forge::SUBJECT).session_public();
        TagKey::new(Carrier::Datagrams, &cluster, &to).append(&mut answer);
        Some(answer)
    }

    fn hear_stream(&mut self, subject: &mut Subject, id: StreamId, bytes: &[u8]) -> Vec<Command> {
        let Some(at) = self.streams.iter().position(|(known, _)| *known == id) else { return Vec::new() };
        let (_, mut stream) = self.streams.remove(at);
        let events = self.with_stream_keys(|keys| stream.receive(keys, bytes));
        let out = stream.take_output();
        self.streams.insert(at, (id, stream));
        for event in events.unwrap_or_default() {
            if let StreamEvent::Message(message) = event {
                self.heard_messages.push(message);
            }
        }
        if out.is_empty() { Vec::new() } else { subject.tell(Input::StreamData { stream: id, bytes: out }) }
    }

    fn flush_sessions(&mut self, subject: &mut Subject) {
        let commands = self.session_events(subject);
        self.carry_out(subject, commands);
    }

    fn session_events(&mut self, subject: &mut Subject) -> Vec<Command> {
        let mut commands = Vec::new();
        for event in self.sessions.take_events() {
            match event {
                Event::Send(_, bytes) => {
                    let from = address(self.n);
                    commands.extend(subject.tell(Input::Datagram { from, interface: INTERFACE, bytes }));
                }
                Event::Received(_, payload) => self.heard_packets.push(payload),
                Event::Established(..) | Event::Unanswered(_) => {}
            }
        }
        commands
    }

    fn with_sessions(&mut self, now: Duration, run: impl FnOnce(&mut Sessions, &mut Context<'_>)) {
        let mut context = Context {
            now,
            rng: &mut self.rng,
            rejects: &mut self.rejects,
            roster: self.roster,
            me: self.keys.node_id(),
            session_secret: self.keys.session_secret(),
            late: Duration::ZERO,
            greeting: self.greeting,
        };
        run(&mut self.sessions, &mut context);
    }

    fn with_stream_keys<R>(&mut self, run: impl FnOnce(&mut StreamKeys<'_>) -> R) -> R {
        let mut keys = StreamKeys {
            rng: &mut self.rng,
            secret: self.keys.session_secret(),
            join: Some((&self.seal, &self.psk)),
            cluster: Some((forge::cluster_id(), self.sessions.stream_tag())),
            agree: &mut |_: &[u8]| Ok(()),
        };
        run(&mut keys)
    }
}
