// SPDX-License-Identifier: Apache-2.0
//! A node's private keys. Made once from randomness, each drawn separately, and kept as one file.

use std::fmt;

use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::consts::WIRE_VERSION;
use crate::id::NodeId;
use crate::wire::{Malformed, Reader, Writer};

const FILE_KIND: u8 = 0x11;
const CHECK: usize = 8;

/// Ed25519 identity, X25519 session key (Noise) and WireGuard key.
#[derive(Clone)]
pub struct Keys {
    signing: SigningKey,
    session: Pair,
    wireguard: Pair,
}

/// An X25519 key with its public half, which costs a multiplication and is asked for at each view.
#[derive(Clone)]
struct Pair {
    secret: [u8; 32],
    public: [u8; 32],
}

impl Pair {
    fn of(secret: [u8; 32]) -> Self {
        Self { secret, public: PublicKey::from(&StaticSecret::from(secret)).to_bytes() }
    }
}

impl Keys {
    /// New keys from 96 bytes of randomness.
    pub fn generate(random: &[u8; 96]) -> Self {
        let part = |at: usize| -> [u8; 32] { std::array::from_fn(|i| random[at + i]) };
        Self {
            signing: SigningKey::from_bytes(&part(0)),
            session: Pair::of(part(32)),
            wireguard: Pair::of(clamp(part(64))),
        }
    }

    /// The content of the identity file.
    pub fn to_file(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(&self.signing.to_bytes()).raw(&self.session.secret).raw(&self.wireguard.secret);
        seal_file(FILE_KIND, &w.finish())
    }

    /// Reads the identity file.
    pub fn from_file(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new("identity file", open_file(FILE_KIND, "identity file", bytes)?);
        let keys = Self {
            signing: SigningKey::from_bytes(&r.array()?),
            session: Pair::of(r.array()?),
            wireguard: Pair::of(clamp(r.array()?)),
        };
        r.end()?;
        Ok(keys)
    }

    /// Ed25519 public key.
    pub fn public(&self) -> [u8; 32] {
        self.signing.verifying_key().to_bytes()
    }

    /// The id that follows from the public key.
    pub fn node_id(&self) -> NodeId {
        NodeId::of_public_key(&self.public())
    }

    /// X25519 secret of Noise sessions.
    pub fn session_secret(&self) -> &[u8; 32] {
        &self.session.secret
    }

    /// Its public half.
    pub fn session_public(&self) -> [u8; 32] {
        self.session.public
    }

    /// WireGuard secret, clamped.
    pub fn wireguard_secret(&self) -> [u8; 32] {
        self.wireguard.secret
    }

    /// Its public half.
    pub fn wireguard_public(&self) -> [u8; 32] {
        self.wireguard.public
    }

    /// Ed25519 signature.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({}, secrets hidden)", self.node_id().short())
    }
}

/// WireGuard tools show keys clamped; store them so (RFC 7748, section 5).
fn clamp(mut key: [u8; 32]) -> [u8; 32] {
    key[0] &= 248;
    key[31] = key[31] & 127 | 64;
    key
}

/// Frame of all state files: version, kind, body, first 8 bytes of SHA-256 over all before.
pub fn seal_file(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Writer::new().u8(WIRE_VERSION).u8(kind).raw(body).finish();
    let check = Sha256::digest(&bytes);
    bytes.extend_from_slice(&check[..CHECK]);
    bytes
}

/// The body of a state file whose version, kind and check value are right.
pub fn open_file<'a>(kind: u8, what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], Malformed> {
    let at = bytes.len().checked_sub(CHECK).ok_or(Malformed(what))?;
    let (content, check) = bytes.split_at(at);
    match content {
        [WIRE_VERSION, found, body @ ..] if *found == kind && Sha256::digest(content)[..CHECK] == *check => {
            Ok(body)
        }
        _ => Err(Malformed(what)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> Keys {
        Keys::generate(&std::array::from_fn(|i| i as u8))
    }

    #[test]
    fn keeps_the_identity_in_its_file() {
        let read = Keys::from_file(&keys().to_file()).unwrap();
        assert_eq!(read.node_id(), keys().node_id());
        assert_eq!(read.session_public(), keys().session_public());
        assert_eq!(read.wireguard_public(), keys().wireguard_public());
    }

    #[test]
    fn notices_a_flipped_bit_in_the_file() {
        for at in 0..keys().to_file().len() {
            let mut file = keys().to_file();
            file[at] ^= 1;
            assert!(Keys::from_file(&file).is_err(), "byte {at}");
        }
    }

    #[test]
    fn uses_three_unrelated_keys() {
        let keys = keys();
        assert_ne!(keys.session_public(), keys.wireguard_public());
        assert_ne!(keys.public(), keys.session_public());
        assert!(!format!("{keys:?}").contains("signing"));
    }

    proptest! {
        /// With the right check value, so that the body is read.
        #[test]
        fn takes_a_body_of_the_right_size_and_no_other(
            mut body: Vec<u8>,
            size in prop_oneof![1 => Just(96), 1 => 0..200usize],
        ) {
            body.resize(size, 3);
            let read = Keys::from_file(&seal_file(FILE_KIND, &body));
            prop_assert_eq!(read.is_ok(), size == 96);
            if let Ok(keys) = read {
                prop_assert_eq!(keys.session_secret(), &body[32..64]);
            }
        }

        #[test]
        fn never_panics_on_a_file(bytes: Vec<u8>) {
            prop_assert!(Keys::from_file(&bytes).is_err());
        }
    }
}
