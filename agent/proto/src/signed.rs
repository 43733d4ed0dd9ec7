// SPDX-License-Identifier: Apache-2.0
//! Signed objects. A [`Verified`] value can only be made by signing or by checking a signature, so whoever holds one need
//! not check again.

use std::ops::Deref;

use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

use crate::consts::WIRE_VERSION;
use crate::keys::Keys;
use crate::wire::{Malformed, Reader, Writer};

/// In front of every signed byte string, so that no signature of ours means anything elsewhere.
const CONTEXT: &[u8] = b"cluster-os signed object v1\0";
/// Nothing that we sign is larger.
pub const MAX_OBJECT: usize = 1024;

/// Something that a node signs.
pub trait Signed: Sized {
    /// Second byte of its encoding; unique among all kinds.
    const KIND: u8;
    /// Name in errors.
    const WHAT: &'static str;
    /// The Ed25519 key that must have signed it.
    fn signer(&self) -> &[u8; 32];
    /// Appends the fields.
    fn write(&self, w: &mut Writer);
    /// Takes the fields and checks all that can be checked without other knowledge.
    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed>;
}

/// A value whose signature is right, with the exact bytes that were signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T> {
    value: T,
    bytes: Vec<u8>,
    digest: ObjectDigest,
}

impl<T: Signed> Verified<T> {
    /// Signs a value. The keys must be those of its [`Signed::signer`].
    pub fn sign(value: T, keys: &Keys) -> Self {
        debug_assert_eq!(value.signer(), &keys.public());
        let mut w = Writer::new();
        w.u8(WIRE_VERSION).u8(T::KIND);
        value.write(&mut w);
        let mut bytes = w.finish();
        let signature = keys.sign(&message(&bytes));
        bytes.extend_from_slice(&signature);
        Self { value, digest: ObjectDigest::of(&bytes), bytes }
    }

    /// Decodes and checks.
    pub fn open(bytes: &[u8]) -> Result<Self, Malformed> {
        let malformed = Malformed(T::WHAT);
        if bytes.len() > MAX_OBJECT {
            return Err(malformed);
        }
        let (content, signature) =
            bytes.len().checked_sub(64).map(|at| bytes.split_at(at)).ok_or(malformed)?;
        let mut r = Reader::new(T::WHAT, content);
        if r.u8()? != WIRE_VERSION || r.u8()? != T::KIND {
            return Err(malformed);
        }
        let value = T::read(&mut r)?;
        r.end()?;
        if !is_signed(value.signer(), content, signature) {
            return Err(malformed);
        }
        Ok(Self { value, digest: ObjectDigest::of(bytes), bytes: bytes.to_vec() })
    }

    /// Bytes whose signature is right, whatever they say: what [`Self::open`] must judge by their content alone.
    #[cfg(any(test, feature = "forge"))]
    pub fn sign_bytes(fields: &[u8], keys: &Keys) -> Vec<u8> {
        let content = [&[WIRE_VERSION, T::KIND], fields].concat();
        [&content[..], &keys.sign(&message(&content))].concat()
    }

    /// The signed bytes, as sent and stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Short name of the signed bytes.
    pub fn digest(&self) -> ObjectDigest {
        self.digest
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

fn message(content: &[u8]) -> Vec<u8> {
    [CONTEXT, content].concat()
}

#[cfg(not(feature = "simulation"))]
use verify as is_signed;

fn verify(signer: &[u8; 32], content: &[u8], signature: &[u8]) -> bool {
    let (Ok(key), Ok(signature)) = (VerifyingKey::from_bytes(signer), Signature::from_slice(signature))
    else {
        return false;
    };
    key.verify_strict(&message(content), &signature).is_ok()
}

/// A thousand simulated nodes check the same two thousand signatures, which is all that a large run would do. The answer
/// follows from the bytes alone, so the simulation works it out once for each.
#[cfg(feature = "simulation")]
fn is_signed(signer: &[u8; 32], content: &[u8], signature: &[u8]) -> bool {
    use std::cell::RefCell;
    use std::collections::HashMap;
    thread_local! {
        static CHECKED: RefCell<HashMap<[u8; 32], bool>> = RefCell::default();
    }
    let mut digest = Sha256::new();
    for part in [&signer[..], signature, content] {
        digest.update(part);
    }
    let name = digest.finalize().into();
    CHECKED
        .with_borrow_mut(|checked| *checked.entry(name).or_insert_with(|| verify(signer, content, signature)))
}

/// Short name of an object, used to compare what two nodes hold.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectDigest(pub [u8; 8]);

impl ObjectDigest {
    /// The first 8 bytes of SHA-256.
    pub fn of(bytes: &[u8]) -> Self {
        let mut short = [0; 8];
        short.copy_from_slice(&Sha256::digest(bytes)[..8]);
        Self(short)
    }
}
