// SPDX-License-Identifier: Apache-2.0
//! Noise handshakes (<https://noiseprotocol.org>, revision 34) through `snow`, with randomness given from outside.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};

use crate::id::ClusterId;

/// Between members: the initiator knows the responder's session key, the responder recognises the initiator's.
const MEMBER: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
/// Between strangers with the same join key.
const STRANGER: &str = "Noise_XXpsk3_25519_ChaChaPoly_BLAKE2s";

/// Where a session runs; part of its prologue, so that one cannot be carried into the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Datagrams,
    Stream,
}

fn member_prologue(carrier: Carrier, cluster: &ClusterId) -> Vec<u8> {
    let carrier: &[u8] = match carrier {
        Carrier::Datagrams => b"datagrams",
        Carrier::Stream => b"stream",
    };
    [b"cluster-os member v1 ", carrier, b" ", &cluster.0[..]].concat()
}

const STRANGER_PROLOGUE: &[u8] = b"cluster-os admission v1";

/// IK, our side opens.
pub(crate) fn member_initiator(
    rng: &mut StdRng,
    carrier: Carrier,
    cluster: &ClusterId,
    secret: &[u8; 32],
    remote: &[u8; 32],
) -> HandshakeState {
    build(MEMBER, rng, &member_prologue(carrier, cluster), secret, Some(remote), None, true)
}

/// IK, the other side opened.
pub(crate) fn member_responder(
    rng: &mut StdRng,
    carrier: Carrier,
    cluster: &ClusterId,
    secret: &[u8; 32],
) -> HandshakeState {
    build(MEMBER, rng, &member_prologue(carrier, cluster), secret, None, None, false)
}

/// XXpsk3 with the join key.
pub(crate) fn stranger(
    rng: &mut StdRng,
    secret: &[u8; 32],
    psk: &[u8; 32],
    initiator: bool,
) -> HandshakeState {
    build(STRANGER, rng, STRANGER_PROLOGUE, secret, None, Some(psk), initiator)
}

fn build(
    pattern: &str,
    rng: &mut StdRng,
    prologue: &[u8],
    secret: &[u8; 32],
    remote: Option<&[u8; 32]>,
    psk: Option<&[u8; 32]>,
    initiator: bool,
) -> HandshakeState {
    let mut make = || -> Result<HandshakeState, snow::Error> {
        let params: NoiseParams = pattern.parse()?;
        let mut seed = [0; 32];
        rng.fill_bytes(&mut seed);
        let mut builder = Builder::with_resolver(params, Box::new(Seeded(seed)))
            .local_private_key(secret)?
            .prologue(prologue)?;
        if let Some(remote) = remote {
            builder = builder.remote_public_key(remote)?;
        }
        if let Some(psk) = psk {
            builder = builder.psk(3, psk)?;
        }
        if initiator { builder.build_initiator() } else { builder.build_responder() }
    };
    make().expect("patterns and key lengths are fixed")
}

/// The static key the peer proved, once the handshake has it.
pub(crate) fn remote_static(state: &HandshakeState) -> Option<[u8; 32]> {
    state.get_remote_static().and_then(|key| key.try_into().ok())
}

/// snow's own primitives, with our randomness.
struct Seeded([u8; 32]);

impl CryptoResolver for Seeded {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(SeededRandom(StdRng::from_seed(self.0))))
    }

    #[cfg(not(feature = "simulation"))]
    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    #[cfg(feature = "simulation")]
    fn resolve_dh(&self, _: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(crate::shared_dh::SharedDh::default()))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct SeededRandom(StdRng);

impl Random for SeededRandom {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill_bytes(dest);
        Ok(())
    }
}
