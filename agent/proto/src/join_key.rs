// SPDX-License-Identifier: Apache-2.0
//! The join key: a generated text that lets a node ask to join. `docs/protocol.md` has its format.
//!
//! Nothing uses the secret itself; HKDF-SHA256 gives each use a key of its own, so that one cannot stand in for another.

use std::fmt;

use hkdf::Hkdf;
use sha2::{Digest, Sha256};

use crate::base32;
use crate::id::ClusterId;

const PREFIX: &str = "cos1-";
const VERSION: u8 = 1;
const HAS_CLUSTER: u8 = 1;
const HEAD: usize = 1 + 1 + 5 + 32;
const CHECKSUM: usize = 4;

/// A parsed join key. Its `Debug` shows the key id only.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinKey {
    id: [u8; 5],
    secret: [u8; 32],
    cluster: Option<ClusterId>,
}

/// Why a text is no join key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinKeyError {
    /// The `cos1-` in front is missing.
    #[error("join key does not start with `cos1-`")]
    Prefix,
    /// A character that no key contains.
    #[error("join key contains a character other than a-z and 2-7")]
    Character,
    /// Too short or too long.
    #[error("join key has a wrong length; a part of it seems to be missing")]
    Length,
    /// Some character is wrong.
    #[error("join key has a wrong checksum; a character seems to be mistyped")]
    Checksum,
    /// Made by a newer release.
    #[error("join key is of a kind that this release does not know")]
    Version,
}

impl JoinKey {
    /// A new key from 37 bytes of randomness.
    pub fn generate(random: &[u8; 37]) -> Self {
        let (mut id, mut secret) = ([0; 5], [0; 32]);
        id.copy_from_slice(&random[..5]);
        secret.copy_from_slice(&random[5..]);
        Self { id, secret, cluster: None }
    }

    /// The same key bound to one cluster.
    pub fn for_cluster(mut self, cluster: ClusterId) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// Reads a key as written in `cluster.toml`.
    pub fn parse(text: &str) -> Result<Self, JoinKeyError> {
        let body = text.strip_prefix(PREFIX).ok_or(JoinKeyError::Prefix)?;
        if body.len() > 200 {
            return Err(JoinKeyError::Length);
        }
        if !body.bytes().all(|c| c.is_ascii_lowercase() || (b'2'..=b'7').contains(&c)) {
            return Err(JoinKeyError::Character);
        }
        let bytes = base32::decode(body).ok_or(JoinKeyError::Length)?;
        if bytes.len() < HEAD + CHECKSUM {
            return Err(JoinKeyError::Length);
        }
        let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
        if Self::checksum(content) != checksum {
            return Err(JoinKeyError::Checksum);
        }
        let (flags, rest) = (content[1], &content[HEAD..]);
        if content[0] != VERSION || flags & !HAS_CLUSTER != 0 {
            return Err(JoinKeyError::Version);
        }
        let cluster = match (flags & HAS_CLUSTER != 0, <[u8; 16]>::try_from(rest)) {
            (true, Ok(cluster)) => Some(ClusterId(cluster)),
            (false, _) if rest.is_empty() => None,
            _ => return Err(JoinKeyError::Length),
        };
        let (mut id, mut secret) = ([0; 5], [0; 32]);
        id.copy_from_slice(&content[2..7]);
        secret.copy_from_slice(&content[7..HEAD]);
        Ok(Self { id, secret, cluster })
    }

    /// The text for `cluster.toml`. Secret.
    pub fn to_text(&self) -> String {
        let mut bytes = vec![VERSION, if self.cluster.is_some() { HAS_CLUSTER } else { 0 }];
        bytes.extend(self.id);
        bytes.extend(self.secret);
        bytes.extend(self.cluster.iter().flat_map(|cluster| cluster.0));
        let checksum = Self::checksum(&bytes);
        bytes.extend(checksum);
        format!("{PREFIX}{}", base32::encode(&bytes))
    }

    /// Public name of the key, 8 characters.
    pub fn id(&self) -> String {
        base32::encode(&self.id)
    }

    /// The only cluster this key opens, if it is bound to one.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// Key that seals solicitations and answers.
    pub fn discovery_key(&self) -> [u8; 32] {
        self.derive(b"discovery seal")
    }

    /// Pre-shared key of the admission handshake.
    pub fn admission_psk(&self) -> [u8; 32] {
        self.derive(b"admission psk")
    }

    /// Name under which genesis and state refer to this key; reveals nothing of it.
    pub fn fingerprint(&self) -> [u8; 16] {
        let mut short = [0; 16];
        short.copy_from_slice(&self.derive(b"fingerprint")[..16]);
        short
    }

    fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let mut key = [0; 32];
        Hkdf::<Sha256>::new(Some(b"cluster-os join key v1"), &self.secret)
            .expand_multi_info(&[purpose, &self.id], &mut key)
            .expect("32 bytes are a valid HKDF length");
        key
    }

    fn checksum(content: &[u8]) -> [u8; CHECKSUM] {
        let hash = Sha256::new().chain_update(PREFIX).chain_update(content).finalize();
        [hash[0], hash[1], hash[2], hash[3]]
    }
}

impl fmt::Debug for JoinKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinKey(id {}, secret hidden)", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> JoinKey {
        JoinKey::generate(&std::array::from_fn(|i| i as u8))
    }

    #[test]
    fn reads_back_what_it_writes() {
        for key in [key(), key().for_cluster(ClusterId([9; 16]))] {
            assert_eq!(JoinKey::parse(&key.to_text()), Ok(key));
        }
    }

    #[test]
    fn says_what_is_wrong_with_a_key() {
        let text = key().to_text();
        assert_eq!(JoinKey::parse("hunter2"), Err(JoinKeyError::Prefix));
        assert_eq!(JoinKey::parse(&text.to_uppercase().replace("COS", "cos")), Err(JoinKeyError::Character));
        assert_eq!(JoinKey::parse(&text.replacen("-a", "-b", 1)), Err(JoinKeyError::Checksum));
        assert_eq!(JoinKey::parse(&text[..20]), Err(JoinKeyError::Length));
    }

    #[test]
    fn notices_every_mistyped_character() {
        let text = key().to_text();
        for at in PREFIX.len()..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'q' { b'p' } else { b'q' };
            assert!(JoinKey::parse(&String::from_utf8(bytes).unwrap()).is_err(), "position {at}");
        }
    }

    #[test]
    fn gives_each_use_its_own_key_and_shows_no_secret() {
        let key = key();
        assert_ne!(key.discovery_key(), key.admission_psk());
        assert!(!format!("{key:?}").contains(&key.to_text()[20..40]));
    }

    proptest! {
        #[test]
        fn never_panics_on_text(text: String) {
            let _ = JoinKey::parse(&text);
        }

        /// With the right checksum, so that all that it covers is read.
        #[test]
        fn takes_what_has_the_right_version_flags_and_length_and_nothing_else(
            version in 0u8..3,
            flags in 0u8..4,
            mut content in proptest::collection::vec(any::<u8>(), HEAD..HEAD + 20),
            bound: bool,
            fits in prop::bool::weighted(0.7),
        ) {
            content[..2].copy_from_slice(&[version, flags]);
            if fits {
                content.resize(HEAD + if bound { 16 } else { 0 }, 5);
            }
            let checksum = JoinKey::checksum(&content);
            let text = format!("{PREFIX}{}", base32::encode(&[&content[..], &checksum].concat()));
            let length = HEAD + if flags == HAS_CLUSTER { 16 } else { 0 };
            let expected = if version != VERSION || flags > HAS_CLUSTER {
                Err(JoinKeyError::Version)
            } else if content.len() != length {
                Err(JoinKeyError::Length)
            } else {
                Ok(text.clone())
            };
            prop_assert_eq!(JoinKey::parse(&text).map(|key| key.to_text()), expected);
        }

        #[test]
        fn never_panics_on_key_like_text(text in "cos1-[a-z2-7]{0,210}") {
            let _ = JoinKey::parse(&text);
        }
    }
}
