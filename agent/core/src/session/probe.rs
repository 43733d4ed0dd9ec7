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
