// SPDX-License-Identifier: Apache-2.0
//! The beginning of a cluster. Its hash is the cluster's id, so that nobody can found another one with the same id.

use cluster_agent_proto::ClusterId;
use cluster_agent_proto::consts::WIRE_VERSION;
use cluster_agent_proto::name::is_dns_label;
use cluster_agent_proto::wire::{Malformed, Reader, Writer};
use sha2::{Digest, Sha256};

const KIND: u8 = 0x21;
const MAX_ADMIN_KEYS: u8 = 16;

/// What a founder decides once and for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// A DNS label, for people.
    pub name: String,
    /// The founder's public key.
    pub founder: [u8; 32],
    /// Drawn by the founder: a second cluster of the same founder is another one.
    pub nonce: [u8; 32],
    /// The founder's clock, in milliseconds since 1970.
    pub created: u64,
    /// Ed25519 keys that may command the cluster, later.
    pub admin_keys: Vec<[u8; 32]>,
}

impl Genesis {
    /// SHA-256 of all of it, in front of which stands what it is; the first 16 bytes.
    pub fn cluster(&self) -> ClusterId {
        let hash =
            Sha256::new().chain_update(b"cluster-os genesis v2\0").chain_update(self.encode()).finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        ClusterId(id)
    }

    /// One genesis has one encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        self.write(&mut w);
        w.finish()
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        w.u8(WIRE_VERSION).u8(KIND).text(&self.name).raw(&self.founder).raw(&self.nonce).u64(self.created);
        w.u8(self.admin_keys.len() as u8);
        for key in &self.admin_keys {
            w.raw(key);
        }
    }

    /// Reads and checks.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new("genesis", bytes);
        let genesis = Self::read(&mut r)?;
        r.end()?;
        Ok(genesis)
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        if r.u8()? != WIRE_VERSION || r.u8()? != KIND {
            return Err(r.malformed());
        }
        let (name, founder, nonce, created) = (r.text(63)?, r.array()?, r.array()?, r.u64()?);
        let count = r.u8()?;
        if count > MAX_ADMIN_KEYS || !is_dns_label(&name) {
            return Err(r.malformed());
        }
        let admin_keys = (0..count).map(|_| r.array()).collect::<Result<_, _>>()?;
        Ok(Self { name, founder, nonce, created, admin_keys })
    }
}
