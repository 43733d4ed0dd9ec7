// SPDX-License-Identifier: Apache-2.0
//! Beacons: small datagrams, sealed under the join key, by which nodes find each other.
//!
//! Anybody can replay one, so a beacon proves nothing and causes at most one rate-limited handshake. One that names the instance
//! of who hears it was at least made for this boot.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};

use crate::consts::WIRE_VERSION;
use crate::id::{ClusterId, NodeId};
use crate::wire::{Malformed, Reader, Writer};

/// Second byte of a beacon datagram.
pub(crate) const DATAGRAM_BEACON: u8 = 1;
const NONCE: usize = 24;
/// All beacons are of this size, so that an observer cannot tell them apart.
const PLAINTEXT: usize = 96;

/// Seals and opens under one join key. Also wraps the first message of an admission handshake.
pub(crate) struct Seal(XChaCha20Poly1305);

impl Seal {
    pub(crate) fn new(discovery_key: &[u8; 32]) -> Self {
        Self(XChaCha20Poly1305::new(&Key::from(*discovery_key)))
    }

    /// Nonce and ciphertext. `context` must be the same when opening.
    pub(crate) fn seal(&self, nonce: [u8; NONCE], context: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let sealed = self
            .0
            .encrypt(&XNonce::from(nonce), Payload { msg: plaintext, aad: context })
            .expect("short messages can always be sealed");
        [&nonce[..], &sealed].concat()
    }

    pub(crate) fn open(&self, context: &[u8], bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE>().ok_or(Malformed("sealed message"))?;
        self.0
            .decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: context })
            .map_err(|_| Malformed("sealed message"))
    }
}

/// What a node says to whoever has the join key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beacon {
    pub(crate) node: NodeId,
    /// Drawn at each start; tells a node's own echoes and clones from itself.
    pub(crate) instance: [u8; 8],
    /// The cluster it belongs to, if any.
    pub(crate) cluster: Option<ClusterId>,
    /// Whether an answer is wanted. Answers never want one.
    pub(crate) solicits: bool,
    /// Instance of the node that it is for; none: for all. Who names ours has the join key and heard us in this boot: what
    /// somebody recorded earlier names another one.
    pub(crate) to: Option<[u8; 8]>,
}

impl Beacon {
    /// The datagram.
    pub(crate) fn to_datagram(self, seal: &Seal, nonce: [u8; NONCE]) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(u8::from(self.solicits) | u8::from(self.cluster.is_some()) << 1);
        w.raw(&self.node.0).raw(&self.instance).raw(&self.cluster.map_or([0; 16], |cluster| cluster.0));
        w.raw(&self.to.unwrap_or_default());
        let mut plaintext = w.finish();
        plaintext.resize(PLAINTEXT, 0);
        let header = [WIRE_VERSION, DATAGRAM_BEACON];
        [&header[..], &seal.seal(nonce, &header, &plaintext)].concat()
    }

    /// Opens a datagram whose first two bytes said that it is a beacon.
    pub(crate) fn open(seal: &Seal, datagram: &[u8]) -> Result<Self, Malformed> {
        let (header, sealed) = datagram.split_at_checked(2).ok_or(Malformed("beacon"))?;
        let plaintext = seal.open(header, sealed)?;
        let mut r = Reader::new("beacon", &plaintext);
        let flags = r.u8()?;
        let (node, instance, cluster) = (NodeId(r.array()?), r.array()?, ClusterId(r.array()?));
        let to: [u8; 8] = r.array()?;
        if plaintext.len() != PLAINTEXT || flags > 3 {
            return Err(r.malformed());
        }
        let cluster = (flags & 2 != 0).then_some(cluster);
        Ok(Self { node, instance, cluster, solicits: flags & 1 != 0, to: (to != [0; 8]).then_some(to) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn beacon() -> Beacon {
        let cluster = Some(ClusterId([3; 16]));
        Beacon { node: NodeId([1; 32]), instance: [2; 8], cluster, solicits: true, to: Some([4; 8]) }
    }

    #[test]
    fn opens_what_it_seals_and_hides_it() {
        let seal = Seal::new(&[7; 32]);
        let datagram = beacon().to_datagram(&seal, [9; NONCE]);
        assert_eq!(Beacon::open(&seal, &datagram), Ok(beacon()));
        assert!(!datagram.windows(8).any(|window| window == [1; 8]));
        let for_all = Beacon { to: None, ..beacon() };
        assert_eq!(Beacon::open(&seal, &for_all.to_datagram(&seal, [9; NONCE])), Ok(for_all));
    }

    #[test]
    fn all_beacons_have_one_size() {
        let seal = Seal::new(&[7; 32]);
        let other = Beacon { cluster: None, solicits: false, to: None, ..beacon() };
        assert_eq!(beacon().to_datagram(&seal, [9; NONCE]).len(), other.to_datagram(&seal, [8; NONCE]).len());
    }

    #[test]
    fn another_join_key_opens_nothing() {
        let datagram = beacon().to_datagram(&Seal::new(&[7; 32]), [9; NONCE]);
        assert!(Beacon::open(&Seal::new(&[8; 32]), &datagram).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            prop_assert!(Beacon::open(&Seal::new(&[7; 32]), &bytes).is_err());
        }

        #[test]
        fn takes_plaintexts_of_the_right_size_and_flags_and_no_others(
            mut plaintext in proptest::collection::vec(any::<u8>(), 0..120),
            size in prop_oneof![3 => Just(PLAINTEXT), 1 => 0..120usize],
            flags in 0u8..6,
        ) {
            plaintext.resize(size, 7);
            if let Some(first) = plaintext.first_mut() {
                *first = flags;
            }
            let seal = Seal::new(&[7; 32]);
            let datagram = [&[1, 1][..], &seal.seal([0; NONCE], &[1, 1], &plaintext)].concat();
            let opened = Beacon::open(&seal, &datagram);
            prop_assert_eq!(opened.is_ok(), size == PLAINTEXT && flags <= 3);
            if let Ok(beacon) = opened {
                prop_assert_eq!((&beacon.node.0[..], &beacon.instance[..]), (&plaintext[1..33], &plaintext[33..41]));
                prop_assert_eq!((beacon.solicits, beacon.cluster.is_some()), (flags & 1 != 0, flags & 2 != 0));
                prop_assert_eq!(beacon.to.unwrap_or_default(), &plaintext[57..65]);
            }
        }
    }
}
