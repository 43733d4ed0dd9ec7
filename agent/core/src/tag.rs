// SPDX-License-Identifier: Apache-2.0
//! Tags at the end of first messages: cheap proof that the sender knows whom it speaks to. Session keys are not on the wire in
//! the clear, so somebody who can only hear and speak cannot make one, and what has no right tag costs one hash and is forgotten.
//! Whoever has seen the receiver's record can make tags: what has one is still limited.

use sha2::{Digest, Sha256};

use crate::id::ClusterId;
use crate::noise::Carrier;

/// Bytes of a tag.
pub(crate) const TAG: usize = 16;

/// Makes and checks the tags of first messages to one node.
#[derive(Clone)]
pub(crate) struct TagKey([u8; 32]);

impl TagKey {
    /// Of the node with this session key.
    pub(crate) fn new(carrier: Carrier, cluster: &ClusterId, session_key: &[u8; 32]) -> Self {
        let carrier: &[u8] = match carrier {
            Carrier::Datagrams => b"datagrams",
            Carrier::Stream => b"stream",
        };
        let parts = [&b"cluster-os tag v1 "[..], carrier, &cluster.0, session_key];
        Self(parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize().into())
    }

    /// A key that proves something else than whom a message is for.
    pub(crate) fn of_secret(secret: &[u8]) -> Self {
        Self(Sha256::new().chain_update(b"cluster-os cookie mac v1 ").chain_update(secret).finalize().into())
    }

    /// The tag of a message.
    pub(crate) fn tag(&self, message: &[u8]) -> [u8; TAG] {
        let hash = Sha256::new().chain_update(self.0).chain_update(message).finalize();
        let mut tag = [0; TAG];
        tag.copy_from_slice(&hash[..TAG]);
        tag
    }

    /// Whether this is the tag of the message.
    pub(crate) fn is_right(&self, message: &[u8], tag: &[u8]) -> bool {
        let differing =
            self.tag(message).iter().zip(tag).fold(0, |bits, (ours, theirs)| bits | (ours ^ theirs));
        tag.len() == TAG && differing == 0
    }

    /// What is in front of the tag, if that is right.
    pub(crate) fn open<'a>(&self, tagged: &'a [u8]) -> Option<&'a [u8]> {
        let (message, tag) = tagged.split_at_checked(tagged.len().checked_sub(TAG)?)?;
        self.is_right(message, tag).then_some(message)
    }

    /// Appends the tag.
    pub(crate) fn append(&self, message: &mut Vec<u8>) {
        let tag = self.tag(message);
        message.extend_from_slice(&tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(carrier: Carrier, cluster: u8, session_key: u8) -> TagKey {
        TagKey::new(carrier, &ClusterId([cluster; 16]), &[session_key; 32])
    }

    #[test]
    fn a_tag_is_for_one_node_in_one_cluster_on_one_carrier() {
        let mut message = b"message".to_vec();
        key(Carrier::Stream, 1, 1).append(&mut message);
        assert_eq!(key(Carrier::Stream, 1, 1).open(&message), Some(&b"message"[..]));
        for other in [key(Carrier::Datagrams, 1, 1), key(Carrier::Stream, 2, 1), key(Carrier::Stream, 1, 2)] {
            assert_eq!(other.open(&message), None);
        }
    }

    proptest! {
        #[test]
        fn nothing_else_has_the_right_tag(bytes: Vec<u8>, at: prop::sample::Index, bit in 0u8..8) {
            prop_assert_eq!(key(Carrier::Stream, 1, 1).open(&bytes), None);
            let mut message = bytes;
            key(Carrier::Stream, 1, 1).append(&mut message);
            let at = at.index(message.len());
            message[at] ^= 1 << bit;
            prop_assert_eq!(key(Carrier::Stream, 1, 1).open(&message), None);
        }
    }
}
