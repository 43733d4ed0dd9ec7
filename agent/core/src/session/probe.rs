// SPDX-License-Identifier: Apache-2.0
//! What fuzz targets see of sessions.

use super::handshake::MAX_ANSWERED;
pub(crate) use super::packet::{read_greeting, write_greeting};
use super::table::Sessions;

impl Sessions {
    /// Panics when sessions were forgotten but not their indices, or more are kept than there may be.
    pub(crate) fn assert_bounded(&self) {
        let known = |peer: &super::peer::Peer| {
            usize::from(peer.current.is_some())
                + usize::from(peer.previous.is_some())
                + usize::from(peer.attempt.is_some())
                + peer.unconfirmed.len()
        };
        let sessions: usize = self.peers.values().map(known).sum();
        assert_eq!(self.indices.len(), sessions, "indices without sessions");
        assert!(self.answered.len() <= MAX_ANSWERED, "{} answers are remembered", self.answered.len());
        let pending = |id| self.peers.get(id).is_some_and(|peer| peer.attempt.is_some());
        assert!(self.attempting.iter().all(pending), "an answer is waited for without a handshake");
    }
}

#[cfg(test)]
pub(crate) use super::cookie::prove;

/// The cookie in a node's answer to a handshake that it did not have time for.
#[cfg(test)]
pub(crate) fn cookie(session_key: &[u8; 32], answer: &[u8], handshake: &[u8]) -> [u8; crate::tag::TAG] {
    let tag = handshake.last_chunk::<{ crate::tag::TAG }>().expect("it has a tag");
    let cluster = crate::fuzz::cluster_id();
    super::cookie::open(&cluster, session_key, tag, &answer[6..]).expect("it is the answer")
}
