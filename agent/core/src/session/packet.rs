// SPDX-License-Identifier: Apache-2.0
//! The bytes of handshakes and transport datagrams.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use snow::HandshakeState;

use super::peer::Session;
use super::window::Window;
use super::{DATAGRAM_TRANSPORT, Greeting};
use crate::consts::{MAX_DATAGRAM, WIRE_VERSION};
use crate::id::NodeId;
use crate::wire::{Malformed, Reader, Writer};

pub(super) fn fresh_index(indices: &BTreeMap<u32, NodeId>, rng: &mut StdRng) -> u32 {
    loop {
        let index = rng.next_u32();
        if !indices.contains_key(&index) {
            return index;
        }
    }
}

pub(super) fn new_session(
    handshake: HandshakeState,
    local: u32,
    remote: u32,
    greeting: Greeting,
    created: Duration,
    initiator: bool,
) -> Option<Session> {
    let transport = handshake.into_stateless_transport_mode().ok()?;
    Some(Session {
        local,
        remote,
        transport,
        counter: 0,
        window: Window::new(),
        created,
        used: created,
        heard: created,
        greeting,
        initiator,
        is_source_proven: false,
    })
}

pub(super) fn encrypt(session: &mut Session, payload: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Writer::new()
        .u8(WIRE_VERSION)
        .u8(DATAGRAM_TRANSPORT)
        .u32(session.remote)
        .u64(session.counter)
        .finish();
    let head = bytes.len();
    bytes.resize(head + payload.len() + 16, 0);
    let length = session.transport.write_message(session.counter, payload, &mut bytes[head..]).ok()?;
    bytes.truncate(head + length);
    session.counter += 1;
    Some(bytes)
}

pub(super) fn write_handshake(
    handshake: &mut HandshakeState,
    mut head: Vec<u8>,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let mut message = vec![0; MAX_DATAGRAM - head.len()];
    let length = handshake.write_message(payload, &mut message).ok()?;
    head.extend_from_slice(&message[..length]);
    Some(head)
}

pub(super) fn read_handshake(handshake: &mut HandshakeState, message: &[u8]) -> Option<Vec<u8>> {
    if message.len() > MAX_DATAGRAM {
        return None;
    }
    let mut payload = vec![0; MAX_DATAGRAM];
    let length = handshake.read_message(message, &mut payload).ok()?;
    payload.truncate(length);
    Some(payload)
}

pub(crate) fn write_greeting(greeting: &Greeting) -> Vec<u8> {
    let mut w = Writer::new();
    w.raw(&greeting.instance).u32(greeting.generation).u32(greeting.bump).u64(greeting.wall).finish()
}

pub(crate) fn read_greeting(bytes: &[u8]) -> Result<Greeting, Malformed> {
    let mut r = Reader::new("greeting", bytes);
    let greeting = Greeting { instance: r.array()?, generation: r.u32()?, bump: r.u32()?, wall: r.u64()? };
    r.end()?;
    Ok(greeting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_greeting_reads_back(instance: [u8; 8], generation: u32, bump: u32, wall: u64) {
            let greeting = Greeting { instance, generation, bump, wall };
            prop_assert_eq!(read_greeting(&write_greeting(&greeting)), Ok(greeting));
        }

        #[test]
        fn greetings_of_other_sizes_are_refused(
            mut bytes: Vec<u8>,
            size in prop_oneof![1 => Just(24), 1 => 0..48usize],
        ) {
            bytes.resize(size, 9);
            let read = read_greeting(&bytes);
            prop_assert_eq!(read.is_ok(), size == 24);
            if let Ok(greeting) = read {
                prop_assert_eq!(write_greeting(&greeting), bytes);
            }
        }
    }
}
