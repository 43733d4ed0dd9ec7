// SPDX-License-Identifier: Apache-2.0
//! Framed, encrypted streams: u16 length and a Noise message per frame. The first frame says which handshake it opens.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use snow::{HandshakeState, TransportState};

use crate::beacon::Seal;
use crate::consts::frames::*;
use crate::consts::{MAX_FRAME, WIRE_VERSION};
use crate::id::{ClusterId, NodeId};
use crate::noise::{self, Carrier};
use crate::sync::Message;
use crate::tag::TagKey;
use crate::wire::Malformed;

/// Which handshake a stream runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// XXpsk3 under the join key.
    Stranger,
    /// IK between members.
    Member,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Self::Stranger => 1,
            Self::Member => 2,
        }
    }
}

/// What is needed to run a handshake.
pub(crate) struct StreamKeys<'a> {
    pub(crate) rng: &'a mut StdRng,
    pub(crate) secret: &'a [u8; 32],
    /// Seal and pre-shared key of the join key, if there is one.
    pub(crate) join: Option<(&'a Seal, &'a [u8; 32])>,
    /// The cluster we belong to, if any, and what first frames of its members to us are tagged with.
    pub(crate) cluster: Option<(ClusterId, &'a TagKey)>,
    /// Whether a first frame that has proven itself as far as that costs little is worth a key agreement.
    pub(crate) agree: &'a mut dyn FnMut(&[u8]) -> Result<(), Malformed>,
}

enum State {
    /// Outbound, not connected yet, or inbound, nothing read yet.
    Idle,
    Handshake(Box<HandshakeState>),
    Open(Box<TransportState>),
}

/// One stream.
pub(crate) struct Stream {
    pub(crate) outbound: bool,
    pub(crate) kind: Kind,
    /// Whom we wanted to reach, for outbound ones.
    pub(crate) target: Option<NodeId>,
    pub(crate) opened: Duration,
    /// Session key that the peer proved.
    pub(crate) remote_static: Option<[u8; 32]>,
    /// Whether the first frame was such as only somebody with a key can have made, now or earlier.
    pub(crate) knocked: bool,
    /// Whether anything came under the keys of the handshake. Before, whoever opened it may have repeated somebody's first frame.
    pub(crate) proven: bool,
    state: State,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

/// What a stream gives back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StreamEvent {
    /// The handshake is complete, the peer holds the key in `remote_static`.
    Opened,
    Message(Message),
}

const SEAL_CONTEXT: &[u8] = b"cluster-os admission open v1";

impl Stream {
    /// A stream we want to open.
    pub(crate) fn outbound(kind: Kind, target: NodeId, now: Duration) -> Self {
        Self::new(true, kind, Some(target), now)
    }

    /// A stream somebody opened.
    pub(crate) fn inbound(now: Duration) -> Self {
        Self::new(false, Kind::Stranger, None, now)
    }

    fn new(outbound: bool, kind: Kind, target: Option<NodeId>, opened: Duration) -> Self {
        Self {
            outbound,
            kind,
            target,
            opened,
            remote_static: None,
            knocked: false,
            proven: false,
            state: State::Idle,
            inbox: Vec::new(),
            outbox: Vec::new(),
        }
    }

    /// Bytes to send now.
    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outbox)
    }

    /// Whether nobody has taken the connection yet.
    pub(crate) fn is_connecting(&self) -> bool {
        self.outbound && matches!(self.state, State::Idle)
    }

    /// Whether the handshake is complete.
    #[cfg(test)]
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// The connection stands: sends the first message. `remote` is the peer's session key for [`Kind::Member`].
    pub(crate) fn start(
        &mut self,
        keys: &mut StreamKeys<'_>,
        remote: Option<&[u8; 32]>,
    ) -> Result<(), Malformed> {
        const WHAT: Malformed = Malformed("stream start");
        let mut handshake = match self.kind {
            Kind::Stranger => {
                let (_, psk) = keys.join.ok_or(WHAT)?;
                noise::stranger(keys.rng, keys.secret, psk, true)
            }
            Kind::Member => {
                let ((cluster, _), remote) = keys.cluster.zip(remote).ok_or(WHAT)?;
                noise::member_initiator(keys.rng, Carrier::Stream, &cluster, keys.secret, remote)
            }
        };
        let message = write(&mut handshake)?;
        let mut frame = vec![WIRE_VERSION, self.kind.byte()];
        match (keys.join, keys.cluster, remote) {
            (Some((seal, _)), _, _) if self.kind == Kind::Stranger => {
                let mut nonce = [0; 24];
                keys.rng.fill_bytes(&mut nonce);
                frame.extend(seal.seal(nonce, SEAL_CONTEXT, &message));
            }
            (_, Some((cluster, _)), Some(remote)) => {
                frame.extend(message);
                TagKey::new(Carrier::Stream, &cluster, remote).append(&mut frame);
            }
            _ => return Err(WHAT),
        }
        self.push_frame(&frame);
        self.state = State::Handshake(Box::new(handshake));
        Ok(())
    }

    /// Encrypts a message.
    pub(crate) fn send(&mut self, message: &Message) -> Result<(), Malformed> {
        self.send_bytes(&message.encode())
    }

    /// Encrypts an encoded message.
    pub(crate) fn send_bytes(&mut self, plaintext: &[u8]) -> Result<(), Malformed> {
        let State::Open(transport) = &mut self.state else { return Err(Malformed("stream not open")) };
        let mut frame = vec![0; plaintext.len() + 16];
        let length =
            transport.write_message(plaintext, &mut frame).map_err(|_| Malformed("stream message"))?;
        self.push_frame(&frame[..length]);
        Ok(())
    }

    /// Takes bytes as they come. An error ends the stream.
    pub(crate) fn receive(
        &mut self,
        keys: &mut StreamKeys<'_>,
        bytes: &[u8],
    ) -> Result<Vec<StreamEvent>, Malformed> {
        self.inbox.extend_from_slice(bytes);
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut events = Vec::new();
        let mut at = 0;
        while let Some(head) = inbox.get(at..at + 2) {
            let length = usize::from(u16::from_be_bytes([head[0], head[1]]));
            if length > self.longest_frame() {
                return Err(Malformed("stream frame too long"));
            }
            let Some(frame) = inbox.get(at + 2..at + 2 + length) else { break };
            events.extend(self.receive_frame(keys, frame)?);
            at += 2 + length;
        }
        // What is kept while nothing is under way is nothing.
        self.inbox = inbox.split_off(at);
        Ok(events)
    }

    /// What may come next.
    fn longest_frame(&self) -> usize {
        match self.state {
            State::Open(_) if self.proven => MAX_FRAME,
            State::Open(_) => MAX_FIRST_FRAME,
            _ => MAX_HANDSHAKE_FRAME,
        }
    }

    fn receive_frame(
        &mut self,
        keys: &mut StreamKeys<'_>,
        frame: &[u8],
    ) -> Result<Option<StreamEvent>, Malformed> {
        const WHAT: Malformed = Malformed("stream handshake");
        match &mut self.state {
            State::Open(transport) => {
                let mut plaintext = vec![0; frame.len()];
                let length =
                    transport.read_message(frame, &mut plaintext).map_err(|_| Malformed("stream frame"))?;
                self.proven = true;
                Message::decode(&plaintext[..length]).map(|message| Some(StreamEvent::Message(message)))
            }
            State::Idle if self.outbound => Err(WHAT),
            State::Idle => {
                // What is cheap to check comes first, and only then whether there is time for a key agreement.
                let (kind, message) = match frame {
                    [WIRE_VERSION, 1, sealed @ ..] => {
                        let (seal, _) = keys.join.ok_or(WHAT)?;
                        (Kind::Stranger, seal.open(SEAL_CONTEXT, sealed)?)
                    }
                    [WIRE_VERSION, 2, ..] => {
                        let (_, tag) = keys.cluster.ok_or(WHAT)?;
                        let message = tag.open(frame).ok_or(Malformed("stream that is not for us"))?;
                        (Kind::Member, message.get(2..).ok_or(WHAT)?.to_vec())
                    }
                    _ => return Err(WHAT),
                };
                (keys.agree)(frame)?;
                self.kind = kind;
                self.knocked = true;
                let mut handshake = match (kind, keys.join, keys.cluster) {
                    (Kind::Stranger, Some((_, psk)), _) => noise::stranger(keys.rng, keys.secret, psk, false),
                    (Kind::Member, _, Some((cluster, _))) => {
                        noise::member_responder(keys.rng, Carrier::Stream, &cluster, keys.secret)
                    }
                    _ => return Err(WHAT),
                };
                read(&mut handshake, &message)?;
                let answer = write(&mut handshake)?;
                self.push_frame(&answer);
                self.state = State::Handshake(Box::new(handshake));
                self.finish_handshake()
            }
            State::Handshake(handshake) => {
                read(handshake, frame)?;
                if !handshake.is_handshake_finished() {
                    let answer = write(handshake)?;
                    self.push_frame(&answer);
                }
                self.finish_handshake()
            }
        }
    }

    /// Opens the stream if the handshake is complete.
    fn finish_handshake(&mut self) -> Result<Option<StreamEvent>, Malformed> {
        const WHAT: Malformed = Malformed("stream handshake");
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Handshake(handshake) if handshake.is_handshake_finished() => {
                self.remote_static = noise::remote_static(&handshake);
                self.state = State::Open(Box::new(handshake.into_transport_mode().map_err(|_| WHAT)?));
                Ok(Some(StreamEvent::Opened))
            }
            other => {
                self.state = other;
                Ok(None)
            }
        }
    }

    fn push_frame(&mut self, frame: &[u8]) {
        let length = u16::try_from(frame.len()).unwrap_or(u16::MAX);
        self.outbox.extend_from_slice(&length.to_be_bytes());
        self.outbox.extend_from_slice(&frame[..usize::from(length)]);
    }
}

fn write(handshake: &mut HandshakeState) -> Result<Vec<u8>, Malformed> {
    let mut message = vec![0; MAX_HANDSHAKE_FRAME];
    let length = handshake.write_message(&[], &mut message).map_err(|_| Malformed("stream handshake"))?;
    message.truncate(length);
    Ok(message)
}

fn read(handshake: &mut HandshakeState, message: &[u8]) -> Result<(), Malformed> {
    let mut payload = vec![0; MAX_FRAME];
    match handshake.read_message(message, &mut payload) {
        Ok(0) => Ok(()),
        _ => Err(Malformed("stream handshake")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;

    fn pair(kind: Kind) -> (Stream, Stream) {
        (Stream::outbound(kind, NodeId([0; 32]), Duration::ZERO), Stream::inbound(Duration::ZERO))
    }

    type Agrees = Box<dyn FnMut(&[u8]) -> Result<(), Malformed>>;

    struct Side {
        tag: TagKey,
        agrees: Agrees,
        rng: StdRng,
        secret: [u8; 32],
        seal: Seal,
        psk: [u8; 32],
    }

    impl Side {
        fn new(seed: u8, join: u8) -> Self {
            let (rng, secret) = (StdRng::from_seed([seed; 32]), [seed; 32]);
            let tag = TagKey::new(Carrier::Stream, &ClusterId([1; 16]), &public(secret));
            let (seal, psk) = (Seal::new(&[join; 32]), [join.wrapping_add(1); 32]);
            Self { tag, agrees: Box::new(|_| Ok(())), rng, secret, seal, psk }
        }

        fn keys(&mut self) -> StreamKeys<'_> {
            StreamKeys {
                rng: &mut self.rng,
                secret: &self.secret,
                join: Some((&self.seal, &self.psk)),
                cluster: Some((ClusterId([1; 16]), &self.tag)),
                agree: &mut self.agrees,
            }
        }

        fn public(&self) -> [u8; 32] {
            public(self.secret)
        }
    }

    fn public(secret: [u8; 32]) -> [u8; 32] {
        x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(secret)).to_bytes()
    }

    /// Runs a handshake; gives whether both sides opened.
    fn run(a: (&mut Stream, &mut Side), b: (&mut Stream, &mut Side)) -> Result<(), Malformed> {
        let remote = b.1.public();
        a.0.start(&mut a.1.keys(), Some(&remote))?;
        for _ in 0..3 {
            let bytes = a.0.take_output();
            b.0.receive(&mut b.1.keys(), &bytes)?;
            let bytes = b.0.take_output();
            a.0.receive(&mut a.1.keys(), &bytes)?;
        }
        if a.0.is_open() && b.0.is_open() { Ok(()) } else { Err(Malformed("test")) }
    }

    #[test]
    fn both_handshakes_prove_the_keys_of_both_sides() {
        for kind in [Kind::Stranger, Kind::Member] {
            let ((mut a, mut b), mut alice, mut bob) = (pair(kind), Side::new(1, 7), Side::new(2, 7));
            run((&mut a, &mut alice), (&mut b, &mut bob)).unwrap();
            assert_eq!(a.remote_static, Some(bob.public()));
            assert_eq!(b.remote_static, Some(alice.public()));
            a.send(&Message::Join).unwrap();
            for byte in a.take_output().chunks(1) {
                for event in b.receive(&mut bob.keys(), byte).unwrap() {
                    assert_eq!(event, StreamEvent::Message(Message::Join));
                }
            }
        }
    }

    #[test]
    fn another_join_key_gets_no_answer_at_all() {
        let ((mut a, mut b), mut alice, mut bob) = (pair(Kind::Stranger), Side::new(1, 7), Side::new(2, 8));
        assert!(run((&mut a, &mut alice), (&mut b, &mut bob)).is_err());
        assert!(b.take_output().is_empty());
    }

    #[test]
    fn what_is_not_for_us_costs_no_key_agreement() {
        for kind in [Kind::Stranger, Kind::Member] {
            let ((mut a, _), mut alice) = (pair(kind), Side::new(1, 7));
            let mut bob = Side::new(2, 7);
            bob.agrees = Box::new(|_| panic!("it is asked for a key agreement"));
            a.start(&mut alice.keys(), Some(&bob.public())).unwrap();
            let first = a.take_output();
            for at in 4..first.len() {
                let mut garbage = first.clone();
                garbage[at] ^= 1;
                assert!(Stream::inbound(Duration::ZERO).receive(&mut bob.keys(), &garbage).is_err(), "{at}");
            }
        }
    }

    #[test]
    fn who_has_no_time_answers_nothing() {
        for kind in [Kind::Stranger, Kind::Member] {
            let ((mut a, mut b), mut alice, mut bob) = (pair(kind), Side::new(1, 7), Side::new(2, 7));
            bob.agrees = Box::new(|_| Err(Malformed("no time")));
            assert!(run((&mut a, &mut alice), (&mut b, &mut bob)).is_err());
            assert!(b.take_output().is_empty());
        }
    }

    #[test]
    fn a_long_frame_is_refused_at_its_length_until_something_was_proven() {
        let ((mut a, mut b), mut alice, mut bob) = (pair(Kind::Member), Side::new(1, 7), Side::new(2, 7));
        assert!(Stream::inbound(Duration::ZERO).receive(&mut bob.keys(), &[1, 1]).is_err(), "257 bytes");
        run((&mut a, &mut alice), (&mut b, &mut bob)).unwrap();
        let long = Message::Objects(vec![vec![7; 1000]; 5]);
        a.send(&Message::Join).unwrap();
        a.send(&long).unwrap();
        let events = b.receive(&mut bob.keys(), &a.take_output()).unwrap();
        assert_eq!(events, [StreamEvent::Message(Message::Join), StreamEvent::Message(long)]);
        let ((mut a, mut b), mut alice, mut bob) = (pair(Kind::Member), Side::new(1, 7), Side::new(2, 7));
        run((&mut a, &mut alice), (&mut b, &mut bob)).unwrap();
        assert!(b.receive(&mut bob.keys(), &[0x10, 1]).is_err(), "4097 bytes");
    }

    #[test]
    fn a_changed_byte_ends_the_stream() {
        let ((mut a, mut b), mut alice, mut bob) = (pair(Kind::Member), Side::new(1, 7), Side::new(2, 7));
        run((&mut a, &mut alice), (&mut b, &mut bob)).unwrap();
        a.send(&Message::Done).unwrap();
        let mut bytes = a.take_output();
        *bytes.last_mut().unwrap() ^= 1;
        assert!(b.receive(&mut bob.keys(), &bytes).is_err());
    }

    /// Two ends whose handshake is complete.
    fn opened() -> ((Stream, Side), (Stream, Side)) {
        let ((mut a, mut b), mut alice, mut bob) = (pair(Kind::Member), Side::new(1, 7), Side::new(2, 7));
        run((&mut a, &mut alice), (&mut b, &mut bob)).unwrap();
        ((a, alice), (b, bob))
    }

    proptest! {
        /// Sealed under the join key and begun with its pre-shared key, so that the handshake itself is read: its first
        /// message carries no payload.
        #[test]
        fn a_first_frame_of_a_key_holder_is_answered_when_it_says_nothing(
            payload in prop_oneof![Just(Vec::new()), proptest::collection::vec(any::<u8>(), 0..100)],
            change in proptest::option::weighted(0.3, (any::<proptest::sample::Index>(), 1u8..)),
        ) {
            let (_, mut b) = pair(Kind::Stranger);
            let (mut alice, mut bob) = (Side::new(1, 7), Side::new(2, 7));
            let mut handshake = noise::stranger(&mut alice.rng, &alice.secret, &alice.psk, true);
            let mut message = vec![0; 200];
            let length = handshake.write_message(&payload, &mut message).unwrap();
            message.truncate(length);
            if let Some((at, bits)) = change {
                let at = at.index(message.len());
                message[at] ^= bits;
            }
            let frame = [&[WIRE_VERSION, 1][..], &bob.seal.seal([9; 24], SEAL_CONTEXT, &message)].concat();
            let bytes = [&(frame.len() as u16).to_be_bytes()[..], &frame].concat();
            let heard = b.receive(&mut bob.keys(), &bytes);
            let right = payload.is_empty() && change.is_none();
            let expected = if right { Ok(Vec::new()) } else { Err(Malformed("stream handshake")) };
            prop_assert_eq!(heard, expected);
            prop_assert_eq!(b.take_output().is_empty(), !right);
            prop_assert!(!b.is_open());
        }

        /// Whoever got through the handshake may say anything, in pieces of any size.
        #[test]
        fn what_is_said_on_an_open_stream_is_a_message_or_ends_it(
            kind: proptest::sample::Index,
            change in proptest::option::of((any::<proptest::sample::Index>(), any::<u8>())),
            piece in 1..200usize,
        ) {
            let ((mut a, _), (mut b, mut bob)) = opened();
            let samples = Message::samples();
            let mut plaintext = samples[kind.index(samples.len())].encode();
            if let Some((at, byte)) = change {
                let at = at.index(plaintext.len());
                plaintext[at] = byte;
            }
            a.send_bytes(&plaintext).unwrap();
            let mut heard = Ok(Vec::new());
            for bytes in a.take_output().chunks(piece) {
                heard = b.receive(&mut bob.keys(), bytes);
            }
            let said = Message::decode(&plaintext).map(|message| vec![StreamEvent::Message(message)]);
            prop_assert!(said.is_ok() || change.is_some(), "a message that was not changed is read");
            prop_assert_eq!(heard, said);
        }

        #[test]
        fn never_panics_on_a_first_frame(mut bytes: Vec<u8>, kind in 0u8..4) {
            let length = bytes.len() as u16 + 2;
            bytes.splice(0..0, [length.to_be_bytes()[0], length.to_be_bytes()[1], 1, kind]);
            let (_, mut b) = pair(Kind::Member);
            let mut bob = Side::new(2, 7);
            let _ = b.receive(&mut bob.keys(), &bytes);
            prop_assert!(!b.is_open());
        }
    }
}
