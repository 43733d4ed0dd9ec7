// SPDX-License-Identifier: Apache-2.0
//! A [`NodeRecord`] is what a node says of itself, signed. Of two records of one node the higher sequence wins.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::consts::WIRE_VERSION;
use crate::id::{NodeId, is_mesh_address};
use crate::settings::{is_dns_label, is_label};
use crate::signed::Signed;
use crate::wire::{Malformed, Reader, Writer};

/// Most endpoints in a record.
pub(crate) const MAX_ENDPOINTS: usize = 8;
const MAX_LABELS: u8 = 16;

/// Order of records of one node: boot counter, then counter within the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sequence {
    pub(crate) generation: u32,
    pub(crate) counter: u32,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeRecord {
    pub(crate) public_key: [u8; 32],
    pub(crate) sequence: Sequence,
    pub(crate) session_key: [u8; 32],
    pub(crate) wireguard_key: [u8; 32],
    pub(crate) feature_level: u16,
    pub(crate) hostname: String,
    pub(crate) version: String,
    pub(crate) endpoints: Vec<SocketAddr>,
    pub(crate) labels: BTreeMap<String, String>,
}

impl NodeRecord {
    pub(crate) fn node_id(&self) -> NodeId {
        NodeId::of_public_key(&self.public_key)
    }

    /// The public key in an encoded record, `None` if the object is of another kind. Nothing is verified.
    pub(crate) fn signer_of(object: &[u8]) -> Option<&[u8]> {
        match object {
            [WIRE_VERSION, kind, key @ ..] if *kind == Self::KIND => key.get(..32),
            _ => None,
        }
    }
}

/// Whether an address may stand in a record or be sent to: no mesh, no loopback, nothing that is not one machine. IPv4's
/// link-local addresses name no card: of two cards that have one the kernel takes the first, so a tunnel to what is behind
/// the second goes nowhere. Each card has an IPv6 one, which does.
pub(crate) fn is_endpoint(address: &SocketAddr) -> bool {
    let bad = match address.ip() {
        IpAddr::V4(ip) => {
            ip.is_loopback()
                || ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_unspecified()
                || ip.is_link_local()
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_multicast()
                || ip.is_unspecified()
                || is_mesh_address(&ip)
                || ip.to_ipv4_mapped().is_some()
        }
    };
    !bad && address.port() != 0
}

impl Signed for NodeRecord {
    const KIND: u8 = 1;
    const WHAT: &'static str = "node record";

    fn signer(&self) -> &[u8; 32] {
        &self.public_key
    }

    fn write(&self, w: &mut Writer) {
        w.raw(&self.public_key).u32(self.sequence.generation).u32(self.sequence.counter);
        w.raw(&self.session_key).raw(&self.wireguard_key).u16(self.feature_level);
        w.text(&self.hostname).text(&self.version);
        w.u8(self.endpoints.len() as u8);
        for endpoint in &self.endpoints {
            w.socket(endpoint);
        }
        w.u8(self.labels.len() as u8);
        for (key, value) in &self.labels {
            w.text(key).text(value);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let public_key = r.array()?;
        let sequence = Sequence { generation: r.u32()?, counter: r.u32()? };
        let (session_key, wireguard_key) = (r.array()?, r.array()?);
        let feature_level = r.u16()?;
        let hostname = r.text(63)?;
        let version = r.text(32)?;
        let mut endpoints = Vec::new();
        for _ in 0..r.u8()? {
            endpoints.push(r.socket()?);
        }
        let count = r.u8()?;
        let mut labels = BTreeMap::new();
        // One record has one encoding: keys ascend, and so none is there twice.
        let mut ascending = true;
        for _ in 0..count {
            let (key, value) = (r.text(63)?, r.text(63)?);
            ascending &= labels.last_key_value().is_none_or(|(last, _)| *last < key);
            labels.insert(key, value);
        }
        let sound = is_dns_label(&hostname)
            && endpoints.len() <= MAX_ENDPOINTS
            && endpoints.iter().all(is_endpoint)
            && count <= MAX_LABELS
            && ascending
            && labels.iter().all(|(key, value)| is_label(key, value))
            && session_key != [0; 32]
            && wireguard_key != [0; 32]
            && session_key != wireguard_key;
        if !sound {
            return Err(r.malformed());
        }
        Ok(Self {
            public_key,
            sequence,
            session_key,
            wireguard_key,
            feature_level,
            hostname,
            version,
            endpoints,
            labels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consts::MAX_RECORD;
    use crate::keys::Keys;
    use crate::signed::Verified;
    use proptest::prelude::*;

    fn record(keys: &Keys) -> NodeRecord {
        NodeRecord {
            public_key: keys.public(),
            sequence: Sequence { generation: 3, counter: 7 },
            session_key: keys.session_public(),
            wireguard_key: keys.wireguard_public(),
            feature_level: 1,
            hostname: "alpha".into(),
            version: "1.2.3".into(),
            endpoints: vec!["192.0.2.7:41410".parse().unwrap(), "[fe80::7]:41410".parse().unwrap()],
            labels: [("rack".to_owned(), "a1".to_owned())].into(),
        }
    }

    fn keys_of(seed: u8) -> Keys {
        Keys::generate(&std::array::from_fn(|i| seed.wrapping_add(i as u8)))
    }

    #[test]
    fn an_address_that_names_no_card_is_no_endpoint() {
        let fits = |address: &str| is_endpoint(&address.parse().unwrap());
        assert!(fits("192.0.2.7:41410") && fits("[fe80::7]:41410") && fits("[2001:db8::7]:41410"));
        assert!(!fits("169.254.30.104:41410"));
        assert!(!fits("[::ffff:169.254.30.104]:41410"));
        assert!(!fits("127.0.0.1:41410") && !fits("192.0.2.7:0"));
    }

    #[test]
    fn reads_back_what_it_signs() {
        let signed = Verified::sign(record(&keys_of(1)), &keys_of(1));
        assert_eq!(Verified::<NodeRecord>::open(signed.as_bytes()), Ok(signed));
    }

    #[test]
    fn refuses_every_flipped_bit() {
        let signed = Verified::sign(record(&keys_of(1)), &keys_of(1));
        for at in 0..signed.as_bytes().len() {
            let mut bytes = signed.as_bytes().to_vec();
            bytes[at] ^= 0x10;
            assert!(Verified::<NodeRecord>::open(&bytes).is_err(), "byte {at}");
        }
    }

    #[test]
    fn refuses_endpoints_in_the_mesh_and_equal_keys() {
        let keys = keys_of(1);
        for endpoint in
            ["[fdc1:505::1]:41410", "127.0.0.1:1", "[::ffff:192.0.2.1]:1", "224.0.0.1:1", "192.0.2.1:0"]
        {
            let mut bad = record(&keys);
            bad.endpoints = vec![endpoint.parse().unwrap()];
            assert!(
                Verified::<NodeRecord>::open(Verified::sign(bad, &keys).as_bytes()).is_err(),
                "{endpoint}"
            );
        }
        let equal = keys_of(1);
        let mut bad = record(&equal);
        bad.wireguard_key = bad.session_key;
        assert!(Verified::<NodeRecord>::open(Verified::sign(bad, &equal).as_bytes()).is_err());
    }

    #[test]
    fn refuses_labels_out_of_order_or_twice() {
        let mut labelled = record(&keys_of(1));
        labelled.labels =
            [("a", "1"), ("b", "2")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let mut w = Writer::new();
        labelled.write(&mut w);
        let bytes = w.finish();
        let (start, ordered) = bytes.split_at(bytes.len() - 8);
        let (a, b) = ordered.split_at(4);
        let read = |labels: &[&[u8]]| {
            NodeRecord::read(&mut Reader::new("test", &[&[start], labels].concat().concat()))
        };
        assert!(read(&[a, b]).is_ok_and(|same| same.labels == labelled.labels));
        assert!(read(&[b, a]).is_err());
        assert!(read(&[a, a]).is_err());
    }

    #[test]
    fn the_largest_record_fits_into_a_gossip_packet() {
        let keys = keys_of(1);
        let mut large = record(&keys);
        large.hostname = "h".repeat(63);
        large.version = "v".repeat(32);
        large.endpoints = vec!["[2001:db8::1]:41410".parse().unwrap(); MAX_ENDPOINTS];
        large.labels = (0..4).map(|i| (format!("{i}{}", "k".repeat(61)), String::new())).collect();
        assert!(Verified::sign(large, &keys).as_bytes().len() <= MAX_RECORD);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
            prop_assert!(Verified::<NodeRecord>::open(&bytes).is_err());
            let _ = NodeRecord::read(&mut Reader::new("test", &bytes));
        }

        /// A member may sign anything: what it signs is taken exactly when its fields are sound, and written as it came.
        #[test]
        fn a_right_signature_makes_no_field_sound(
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3),
        ) {
            let keys = keys_of(1);
            let mut w = Writer::new();
            record(&keys).write(&mut w);
            let mut fields = w.finish();
            for (at, byte) in &changes {
                // The signer's key stands first.
                let at = 32 + at.index(fields.len() - 32);
                fields[at] = *byte;
            }
            let mut r = Reader::new("test", &fields);
            let sound = NodeRecord::read(&mut r).is_ok() && r.remaining() == 0;
            let opened = Verified::<NodeRecord>::open(&Verified::<NodeRecord>::sign_bytes(&fields, &keys));
            prop_assert_eq!(opened.is_ok(), sound);
            prop_assert!(sound || !changes.is_empty(), "the record itself is sound");
            if let Ok(record) = opened {
                let mut w = Writer::new();
                record.write(&mut w);
                prop_assert_eq!(w.finish(), fields);
            }
        }
    }
}
