// SPDX-License-Identifier: Apache-2.0
//! Who may sign releases: a document with a version, signed by the threshold of its predecessor and by its own.
//!
//! The image carries the newest one of when it was built, and dm-verity guards it there; from it a chain of successors,
//! which may come from anywhere, leads to the newest one there is. A node that slept through a rotation follows.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    keys::{KeyId, PublicKey},
    manifest::{Manifest, ManifestError},
    signed::{SignatureError, Signatures, Verified, check},
};

/// Larger files are not read.
pub const MAX_BYTES: usize = 16 * 1024;
/// The only format there is.
pub const FORMAT: u32 = 1;
/// More keys than anybody needs.
const MAX_KEYS: usize = 16;

/// `root.N.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootDocument {
    /// [`FORMAT`].
    pub format: u32,
    /// From 1, each successor one more.
    pub version: u32,
    /// Its keys lie unprotected in a checkout: good for virtual machines, never for a machine that anybody relies on.
    pub development: bool,
    /// How many of the keys must have signed.
    pub threshold: u32,
    /// Keys that may sign.
    pub keys: Vec<Key>,
}

/// A key in a [`RootDocument`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Name of the key; follows from `public`.
    pub id: KeyId,
    /// Ed25519 public key.
    pub public: PublicKey,
}

impl From<PublicKey> for Key {
    fn from(public: PublicKey) -> Self {
        Self { id: public.id(), public }
    }
}

/// Why a root document is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Too long to be read.
    #[error("it has {0} bytes, at most {MAX_BYTES} are read")]
    TooLong(usize),
    /// Not the JSON that it should be.
    #[error("it cannot be read: {0}")]
    Json(String),
    /// Made for a newer updater.
    #[error("its format is {0}, this updater knows {FORMAT}")]
    Format(u32),
    /// Contradicts itself.
    #[error("it makes no sense: {0}")]
    Senseless(&'static str),
    /// Not the next one of the chain.
    #[error("its version is {found}, the next one is {wanted}")]
    OutOfOrder {
        /// Its version.
        found: u32,
        /// The version that comes next.
        wanted: u32,
    },
    /// Not signed as it must be.
    #[error("not accepted by the keys of version {version}: {cause}")]
    Signature {
        /// Whose keys did not accept it: the predecessor's, or its own.
        version: u32,
        /// Why.
        cause: SignatureError,
    },
}

impl RootDocument {
    /// Reads and checks a document by itself, without its signatures.
    ///
    /// # Errors
    /// When it cannot be read or contradicts itself.
    pub fn parse(bytes: &[u8]) -> Result<Self, RootError> {
        if bytes.len() > MAX_BYTES {
            return Err(RootError::TooLong(bytes.len()));
        }
        let format = crate::manifest::format_of(bytes).map_err(RootError::Json)?;
        if format != FORMAT {
            return Err(RootError::Format(format));
        }
        let document: Self =
            serde_json::from_slice(bytes).map_err(|error| RootError::Json(error.to_string()))?;
        document.makes_sense().map_err(RootError::Senseless)?;
        Ok(document)
    }

    fn makes_sense(&self) -> Result<(), &'static str> {
        let mut ids: Vec<_> = self.keys.iter().map(|key| key.id).collect();
        ids.sort_unstable();
        ids.dedup();
        match () {
            () if self.version == 0 => Err("versions begin with 1"),
            () if self.keys.len() > MAX_KEYS => Err("too many keys"),
            () if ids.len() != self.keys.len() => Err("a key is named twice"),
            () if self.keys.iter().any(|key| key.id != key.public.id()) => Err("a key has another's id"),
            () if self.threshold == 0 => Err("a threshold of 0 would accept anything"),
            () if self.threshold as usize > self.keys.len() => {
                Err("the threshold is higher than the number of keys")
            }
            () => Ok(()),
        }
    }

    fn publics(&self) -> Vec<PublicKey> {
        self.keys.iter().map(|key| key.public).collect()
    }

    fn check(&self, message: &[u8], signatures: &Signatures) -> Result<(), RootError> {
        check(message, signatures, &self.publics(), self.threshold as usize)
            .map(drop)
            .map_err(|cause| RootError::Signature { version: self.version, cause })
    }
}

/// The root document that a node goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedRoot(RootDocument);

impl TrustedRoot {
    /// Begins a chain with a document from a place that is trusted for another reason: the image, or whoever calls
    /// `cluster-update verify --root`. It must still be signed by its own keys.
    ///
    /// # Errors
    /// When it cannot be read, contradicts itself, or its own keys have not signed it.
    pub fn anchor(bytes: &[u8], signatures: &Signatures) -> Result<Self, RootError> {
        let document = RootDocument::parse(bytes)?;
        document.check(bytes, signatures)?;
        Ok(Self(document))
    }

    /// The successor, if these bytes are it.
    ///
    /// # Errors
    /// When it is not the next version, or its predecessor's or its own keys have not signed it. A chain that began with a
    /// real key never becomes one of development keys.
    pub fn advance(&self, bytes: &[u8], signatures: &Signatures) -> Result<Self, RootError> {
        // Anybody can offer a successor: nothing of it is read before its predecessor's keys have accepted it.
        if bytes.len() > MAX_BYTES {
            return Err(RootError::TooLong(bytes.len()));
        }
        self.0.check(bytes, signatures)?;
        let next = RootDocument::parse(bytes)?;
        let wanted = self.0.version.saturating_add(1);
        if next.version != wanted {
            return Err(RootError::OutOfOrder { found: next.version, wanted });
        }
        if next.development && !self.0.development {
            return Err(RootError::Senseless("development keys cannot follow real ones"));
        }
        next.check(bytes, signatures)?;
        Ok(Self(next))
    }

    /// The keys of this document that signed these bytes.
    #[must_use]
    pub fn signers(&self, bytes: &[u8], signatures: &Signatures) -> BTreeSet<KeyId> {
        let signed = |key: &&Key| {
            signatures.get(&key.id).is_some_and(|signature| key.public.verifies(bytes, signature))
        };
        self.0.keys.iter().filter(signed).map(|key| key.id).collect()
    }

    /// What it says.
    #[must_use]
    pub fn document(&self) -> &RootDocument {
        &self.0
    }

    /// Checks a manifest's signatures, and only then reads it.
    ///
    /// # Errors
    /// When it is too long, not signed by enough keys of this root, or not a manifest.
    pub fn verify(&self, bytes: &[u8], signatures: &Signatures) -> Result<Verified<Manifest>, ManifestError> {
        Manifest::check_length(bytes)?;
        let signers = check(bytes, signatures, &self.0.publics(), self.0.threshold as usize)?;
        Ok(Verified::new(Manifest::parse(bytes)?, signers))
    }
}

/// The name of a root document's file.
#[must_use]
pub fn file_name(version: u32) -> String {
    format!("root.{version}.json")
}
