// SPDX-License-Identifier: Apache-2.0
//! Cookies: when more handshakes come than a node has time for, it first asks each source to prove that it can hear the answer.
//! A cookie is a hash of the source's address under a secret of the node's, so that nothing need be remembered of anybody. It is
//! sealed under a key that follows from the node's session key, and bound to the handshake that it answers: only who could open a
//! session can read it, and only the node itself can have made it for somebody who waits for it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use sha2::{Digest, Sha256};

use super::DATAGRAM_COOKIE;
use crate::beacon::Seal;
use crate::consts::WIRE_VERSION;
use crate::consts::cookies::*;
use crate::id::ClusterId;
use crate::tag::{TAG, TagKey};
use crate::wire::Writer;

/// What proves that somebody can hear at an address.
pub(crate) type Cookie = [u8; TAG];

/// The node's own side.
pub(super) struct Cookies {
    seal: Seal,
    secrets: [[u8; 32]; 2],
    since: Duration,
}

impl Cookies {
    pub(super) fn new(cluster: &ClusterId, session_key: &[u8; 32], rng: &mut StdRng) -> Self {
        let mut secrets = [[0; 32]; 2];
        secrets.iter_mut().for_each(|secret| rng.fill_bytes(secret));
        Self { seal: seal(cluster, session_key), secrets, since: Duration::ZERO }
    }

    /// Tells the source of a handshake its cookie.
    pub(super) fn answer(
        &mut self,
        from: SocketAddr,
        index: u32,
        tag: &[u8],
        now: Duration,
        rng: &mut StdRng,
    ) -> Vec<u8> {
        if now.saturating_sub(self.since) >= SECRET_FOR {
            self.secrets[1] = self.secrets[0];
            rng.fill_bytes(&mut self.secrets[0]);
            self.since = now;
        }
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let sealed = self.seal.seal(nonce, tag, &cookie(&self.secrets[0], from));
        Writer::new().u8(WIRE_VERSION).u8(DATAGRAM_COOKIE).u32(index).raw(&sealed).finish()
    }

    /// Whether a handshake carries the proof of its source's cookie.
    pub(super) fn is_proven(&self, from: SocketAddr, message: &[u8], proof: &[u8]) -> bool {
        proof != [0; TAG] && self.secrets.iter().any(|secret| prove(&cookie(secret, from), message) == proof)
    }
}

/// The cookie in a node's answer to a handshake with that tag.
pub(super) fn open(cluster: &ClusterId, session_key: &[u8; 32], tag: &[u8], sealed: &[u8]) -> Option<Cookie> {
    seal(cluster, session_key).open(tag, sealed).ok()?.try_into().ok()
}

/// What goes behind a handshake to prove a cookie.
pub(crate) fn prove(cookie: &Cookie, message: &[u8]) -> [u8; TAG] {
    TagKey::of_secret(cookie).tag(message)
}

fn seal(cluster: &ClusterId, session_key: &[u8; 32]) -> Seal {
    let hash = Sha256::new()
        .chain_update(b"cluster-os cookie v1 ")
        .chain_update(cluster.0)
        .chain_update(session_key);
    Seal::new(&hash.finalize().into())
}

fn cookie(secret: &[u8; 32], from: SocketAddr) -> Cookie {
    let ip = match from.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    TagKey::of_secret(secret).tag(&[&ip.octets()[..], &from.port().to_be_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const CLUSTER: ClusterId = ClusterId([1; 16]);
    const KEY: [u8; 32] = [2; 32];

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 41410))
    }

    #[test]
    fn a_cookie_proves_one_address_for_some_minutes() {
        let mut rng = StdRng::from_seed([3; 32]);
        let mut cookies = Cookies::new(&CLUSTER, &KEY, &mut rng);
        let now = Duration::from_secs(500);
        let answer = cookies.answer(address(1), 7, b"tag", now, &mut rng);
        assert_eq!(answer[..6], [1, 6, 0, 0, 0, 7]);
        let cookie = open(&CLUSTER, &KEY, b"tag", &answer[6..]).unwrap();
        let proof = prove(&cookie, b"message");
        assert!(cookies.is_proven(address(1), b"message", &proof));
        assert!(!cookies.is_proven(address(2), b"message", &proof));
        assert!(!cookies.is_proven(address(1), b"another", &proof));
        assert!(!cookies.is_proven(address(1), b"message", &[0; TAG]));
        cookies.answer(address(3), 8, b"tag", now + SECRET_FOR, &mut rng);
        assert!(cookies.is_proven(address(1), b"message", &proof));
        cookies.answer(address(3), 8, b"tag", now + SECRET_FOR * 2, &mut rng);
        assert!(!cookies.is_proven(address(1), b"message", &proof), "it is old");
    }

    #[test]
    fn an_answer_can_be_read_by_who_asked_only() {
        let mut rng = StdRng::from_seed([3; 32]);
        let mut cookies = Cookies::new(&CLUSTER, &KEY, &mut rng);
        let answer = cookies.answer(address(1), 7, b"tag", Duration::from_secs(5), &mut rng);
        assert_eq!(open(&CLUSTER, &KEY, b"another", &answer[6..]), None);
        assert_eq!(open(&CLUSTER, &[9; 32], b"tag", &answer[6..]), None);
    }
}
