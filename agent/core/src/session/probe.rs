// SPDX-License-Identifier: Apache-2.0
//! What fuzz targets see of sessions.

pub(crate) use super::packet::{read_greeting, write_greeting};
use super::table::Sessions;
use crate::consts::handshakes::MAX_ANSWERED;

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

/// What a node with that session key, or somebody who knows it, answers to an open; another cookie for each `n`.
#[cfg(test)]
pub(crate) fn tell_cookie(session_key: &[u8; 32], open: &[u8], n: u8) -> Vec<u8> {
    use rand::SeedableRng;
    let mut rng = rand::rngs::StdRng::from_seed([n; 32]);
    let index = open[2..].first_chunk().map(|index| u32::from_be_bytes(*index)).expect("it has an index");
    let bytes = &open[..open.len() - crate::tag::TAG];
    let tag = bytes.last_chunk::<{ crate::tag::TAG }>().expect("it has a tag");
    let mut cookies = super::cookie::Cookies::new(&crate::fuzz::cluster_id(), session_key, &mut rng);
    let from = std::net::SocketAddr::from(([10, 0, 0, 1], crate::consts::AGENT_PORT));
    cookies.answer(from, index, tag, std::time::Duration::from_secs(5), &mut rng)
}
