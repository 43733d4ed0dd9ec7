// SPDX-License-Identifier: Apache-2.0
//! Release keys: Ed25519 (RFC 8032), kept in the files that OpenSSL keeps them in (PEM; RFC 8410).

use std::fmt;

use data_encoding::{BASE64, HEXLOWER};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, hex};

/// Length of a signature.
pub const SIGNATURE_BYTES: usize = 64;

/// DER in front of the 32 bytes of a private key (RFC 8410, 7: version 0, id-Ed25519, octet string in octet string).
const PRIVATE_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// DER in front of the 32 bytes of a public key (RFC 8410, 4).
const PUBLIC_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const PRIVATE_LABEL: &str = "PRIVATE KEY";
const PUBLIC_LABEL: &str = "PUBLIC KEY";

/// Names a key: the first 8 bytes of the SHA-256 of the raw public key, as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(#[serde(with = "hex")] [u8; 8]);

impl KeyId {
    /// Reads 16 lower-case hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok().map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The public half of a release key, as its 32 raw bytes. Whether they are a point on the curve shows when it verifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKey(#[serde(with = "hex")] [u8; 32]);

impl PublicKey {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let mut id = [0; 8];
        id.copy_from_slice(&Digest::of(&self.0).0[..8]);
        KeyId(id)
    }

    /// Whether `signature` is this key's over `message`. Strict: keys of small order verify nothing.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
    }

    /// As OpenSSL writes it.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem(PUBLIC_LABEL, &PUBLIC_PREFIX, &self.0)
    }

    /// Reads what OpenSSL or [`Self::to_pem`] wrote.
    ///
    /// # Errors
    /// When it is not an Ed25519 public key in PEM.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        unpem(PUBLIC_LABEL, &PUBLIC_PREFIX, text).map(Self)
    }
}

/// A release key.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key of these 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs the bytes themselves (pure Ed25519, no prehash), as `openssl pkeyutl -sign -rawin` does.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(message).to_bytes()
    }

    /// As OpenSSL writes it, unencrypted.
    #[must_use]
    pub fn to_pem(&self) -> String {
        pem(PRIVATE_LABEL, &PRIVATE_PREFIX, &self.0.to_bytes())
    }

    /// Reads what OpenSSL or [`Self::to_pem`] wrote.
    ///
    /// # Errors
    /// When it is not an unencrypted Ed25519 private key in PEM.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        unpem(PRIVATE_LABEL, &PRIVATE_PREFIX, text).map(|seed| Self::from_seed(&seed))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public().id())
    }
}

/// Why a file is not a release key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No PEM block with the right label.
    #[error("it is not a PEM file with a `{0}`: make keys with `cluster-update keygen`")]
    Pem(&'static str),
    /// A key of another kind, or an encrypted one.
    #[error("it is not an unencrypted Ed25519 key: make keys with `cluster-update keygen`")]
    Kind,
}

fn pem(label: &str, prefix: &[u8], key: &[u8; 32]) -> String {
    let text = BASE64.encode(&[prefix, key].concat());
    // RFC 7468 breaks lines after 64 characters; these are 60 and 64 long.
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

fn unpem(label: &'static str, prefix: &[u8], text: &str) -> Result<[u8; 32], KeyError> {
    let body = text
        .split_once(&format!("-----BEGIN {label}-----"))
        .and_then(|(_, rest)| rest.split_once(&format!("-----END {label}-----")))
        .ok_or(KeyError::Pem(label))?
        .0;
    let body: String = body.split_ascii_whitespace().collect();
    let der = BASE64.decode(body.as_bytes()).map_err(|_| KeyError::Kind)?;
    der.strip_prefix(prefix).and_then(|key| key.try_into().ok()).ok_or(KeyError::Kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_test_key_of_rfc_8032() {
        let seed =
            HEXLOWER.decode(b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let key = SecretKey::from_seed(&seed.try_into().unwrap());
        assert_eq!(
            HEXLOWER.encode(&key.public().0),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        assert!(HEXLOWER.encode(&key.sign(b"")).starts_with("e5564300c360ac729086e2cc806e828a"));
        assert!(key.public().verifies(b"", &key.sign(b"")));
        assert!(!key.public().verifies(b"x", &key.sign(b"")));
    }

    #[test]
    fn pem_comes_back() {
        let key = SecretKey::from_seed(&[7; 32]);
        assert_eq!(SecretKey::from_pem(&key.to_pem()).unwrap().public(), key.public());
        assert_eq!(PublicKey::from_pem(&key.public().to_pem()), Ok(key.public()));
        assert_eq!(PublicKey::from_pem(&key.to_pem()), Err(KeyError::Pem(PUBLIC_LABEL)));
        let wrapped = key.public().to_pem().replace("MCowBQ", "MCow\nBQ");
        assert_eq!(PublicKey::from_pem(&wrapped), Ok(key.public()));
    }

    #[test]
    fn a_key_of_small_order_verifies_nothing() {
        // The neutral element: with a lax check everything is its signature.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut signature = [0; SIGNATURE_BYTES];
        signature[0] = 1;
        assert!(!PublicKey(neutral).verifies(b"anything", &signature));
    }
}
