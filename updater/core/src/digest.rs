// SPDX-License-Identifier: Apache-2.0
//! SHA-256 digests and other bytes that are written as lower-case hex.

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Reads 64 lower-case hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut digest = [0; 32];
        decode_into(text, &mut digest).then_some(Self(digest))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("not 64 lower-case hex digits"))
    }
}

/// Fixed numbers of bytes as hex, for serde's `with`.
pub(crate) mod hex {
    use super::{D, HEXLOWER, S, decode_into};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<Ser: Serializer, const N: usize>(bytes: &[u8; N], serializer: Ser) -> S<Ser> {
        serializer.serialize_str(&HEXLOWER.encode(bytes))
    }

    pub(crate) fn deserialize<'de, De: Deserializer<'de>, const N: usize>(deserializer: De) -> D<'de, De, N> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; N];
        if !decode_into(&text, &mut bytes) {
            return Err(De::Error::custom(format!("not {} lower-case hex digits", 2 * N)));
        }
        Ok(bytes)
    }
}

type S<Ser> = Result<<Ser as Serializer>::Ok, <Ser as Serializer>::Error>;
type D<'de, De, const N: usize> = Result<[u8; N], <De as Deserializer<'de>>::Error>;

fn decode_into(text: &str, bytes: &mut [u8]) -> bool {
    HEXLOWER.decode_len(text.len()) == Ok(bytes.len()) && HEXLOWER.decode_mut(text.as_bytes(), bytes).is_ok()
}
