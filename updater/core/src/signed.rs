// SPDX-License-Identifier: Apache-2.0
//! A document with signatures beside it, and the type that proves that they were checked.

use std::collections::{BTreeMap, BTreeSet};

use crate::keys::{KeyId, PublicKey, SIGNATURE_BYTES};

/// More signature files than this beside one document are not looked at.
pub const MAX_SIGNATURES: usize = 32;

/// Signatures that came with a document, by the key that is said to have made them. Nothing is checked yet.
pub type Signatures = BTreeMap<KeyId, [u8; SIGNATURE_BYTES]>;

/// The name of the file that holds `key`'s signature of the file `document`.
#[must_use]
pub fn signature_name(document: &str, key: KeyId) -> String {
    format!("{document}.{key}.sig")
}

/// The key that the file `name` says it is a signature of `document` by.
#[must_use]
pub fn signature_of(document: &str, name: &str) -> Option<KeyId> {
    name.strip_prefix(document)?.strip_prefix('.')?.strip_suffix(".sig").and_then(KeyId::parse)
}

/// A value whose signatures were checked against a [`crate::TrustedRoot`]. There is no other way to make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T> {
    value: T,
    signers: BTreeSet<KeyId>,
}

impl<T> Verified<T> {
    pub(crate) fn new(value: T, signers: BTreeSet<KeyId>) -> Self {
        Self { value, signers }
    }

    /// The keys whose signatures counted.
    #[must_use]
    pub fn signers(&self) -> &BTreeSet<KeyId> {
        &self.signers
    }
}

impl<T> std::ops::Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// The signatures of a document do not suffice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is none.
    #[error("it is not signed")]
    Unsigned,
    /// None by a key that counts.
    #[error("it is signed by {signed_by}, trusted are {trusted}")]
    Strangers {
        /// Keys that signatures are said to be by.
        signed_by: String,
        /// Keys that count.
        trusted: String,
    },
    /// A key that counts is said to have signed and has not: damaged or forged.
    #[error("the signature by {0} does not match: the file was changed or damaged after it was signed")]
    Mismatch(KeyId),
    /// Too few keys that count.
    #[error("it has {found} valid signatures, {threshold} are needed")]
    TooFew {
        /// Valid ones.
        found: usize,
        /// Needed ones.
        threshold: usize,
    },
}

/// The keys among `keys` that signed `message`, if they are at least `threshold`.
pub(crate) fn check(
    message: &[u8],
    signatures: &Signatures,
    keys: &[PublicKey],
    threshold: usize,
) -> Result<BTreeSet<KeyId>, SignatureError> {
    if signatures.is_empty() {
        return Err(SignatureError::Unsigned);
    }
    let mut signers = BTreeSet::new();
    let mut mismatch = None;
    for key in keys {
        let id = key.id();
        match signatures.get(&id) {
            Some(signature) if key.verifies(message, signature) => {
                signers.insert(id);
            }
            Some(_) => mismatch = Some(id),
            None => {}
        }
    }
    match mismatch {
        _ if signers.len() >= threshold => Ok(signers),
        Some(id) => Err(SignatureError::Mismatch(id)),
        None if signers.is_empty() => Err(SignatureError::Strangers {
            signed_by: list(signatures.keys().copied()),
            trusted: list(keys.iter().map(PublicKey::id)),
        }),
        None => Err(SignatureError::TooFew { found: signers.len(), threshold }),
    }
}

fn list(ids: impl Iterator<Item = KeyId>) -> String {
    ids.map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
}
