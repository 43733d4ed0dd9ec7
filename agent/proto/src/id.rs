// SPDX-License-Identifier: Apache-2.0
//! Names of nodes and clusters: [`NodeId`], [`ClusterId`], and the mesh address that follows from a node's key.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::base32;
use crate::consts::MESH_PREFIX;

/// SHA-256 of a node's Ed25519 public key, shown as 52 characters of lower-case base32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

impl NodeId {
    /// The id that belongs to a public key.
    pub fn of_public_key(key: &[u8; 32]) -> Self {
        Self(Sha256::digest(key).into())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// First 8 characters, for people.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }

    /// Host name of a node that was given none.
    pub fn default_hostname(&self) -> String {
        format!("node-{}", self.short())
    }

    /// Mesh address: the product's /48 and 80 bits of a hash of the key. Needs no allocation and never changes.
    pub fn mesh_address(&self) -> Ipv6Addr {
        let hash = Sha256::new().chain_update(b"cluster-os mesh address v1").chain_update(self.0).finalize();
        let mut octets = MESH_PREFIX.octets();
        octets[6..].copy_from_slice(&hash[..10]);
        Ipv6Addr::from(octets)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32::encode(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.short())
    }
}

/// A text that is no node id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a node id: 52 characters a-z and 2-7 are expected")]
pub struct InvalidNodeId(String);

impl FromStr for NodeId {
    type Err = InvalidNodeId;

    fn from_str(text: &str) -> Result<Self, InvalidNodeId> {
        base32::decode(text)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| InvalidNodeId(text.chars().take(80).collect()))
    }
}

/// Random name of a cluster, drawn by its founder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl ClusterId {
    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// First 8 hexadecimal digits, for people.
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(8);
        text
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({})", self.short())
    }
}

/// Whether an address lies in the mesh: no agent traffic may go there.
pub fn is_mesh_address(address: &Ipv6Addr) -> bool {
    address.octets()[..6] == MESH_PREFIX.octets()[..6]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_and_reads_back() {
        let id = NodeId::of_public_key(&[7; 32]);
        assert_eq!(id.to_string().len(), 52);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.default_hostname(), format!("node-{}", &id.to_string()[..8]));
        assert!("node".parse::<NodeId>().is_err());
    }

    #[test]
    fn addresses_lie_in_the_mesh_and_differ() {
        let (a, b) = (NodeId([1; 32]).mesh_address(), NodeId([2; 32]).mesh_address());
        assert!(is_mesh_address(&a) && is_mesh_address(&b));
        assert_ne!(a, b);
        assert!(!is_mesh_address(&"fdc1:505:1::1".parse().unwrap()));
    }
}
