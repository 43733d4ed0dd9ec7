// SPDX-License-Identifier: Apache-2.0
//! A [`NodeRecord`] is what a node says of itself, signed. Of two records of one node the higher sequence wins.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::consts::{MAX_RECORD, WIRE_VERSION};
use crate::id::{NodeId, is_mesh_address};
use crate::name::{is_dns_label, is_label};
use crate::signed::Signed;
use crate::wire::{Malformed, Reader, Writer};

/// Most endpoints in a record.
pub const MAX_ENDPOINTS: usize = 8;
const MAX_LABELS: u8 = 16;
/// Two slots and four imported releases.
const MAX_RELEASES: usize = 6;
/// Longest version of a release.
const MAX_RELEASE_VERSION: usize = 18;

/// Order of records of one node: boot counter, then counter within the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence {
    /// Counts boots, and more where a node had to outbid what was said of it.
    pub generation: u32,
    /// Counts records of one generation.
    pub counter: u32,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Ed25519 key that signs the record; its hash is the node id.
    pub public_key: [u8; 32],
    /// Of two records the higher one counts.
    pub sequence: Sequence,
    /// X25519 key of Noise sessions.
    pub session_key: [u8; 32],
    /// Public key of its WireGuard interface.
    pub wireguard_key: [u8; 32],
    /// What its build can do.
    pub feature_level: u16,
    /// A DNS label.
    pub hostname: String,
    /// Version of the image it runs, at most 32 bytes.
    pub version: String,
    /// Where it can be reached, at most [`MAX_ENDPOINTS`].
    pub endpoints: Vec<SocketAddr>,
    /// From `cluster.toml`, at most 16.
    pub labels: BTreeMap<String, String>,
    /// Releases that it gives to others.
    pub releases: Vec<Release>,
}

/// A release that a node holds: a hint, since only a signed manifest says what a release is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Digits and dots, at most 18.
    pub version: String,
    /// The first 8 bytes of its root hash.
    pub hash: u64,
}

impl Release {
    /// From text, as the updater says it: the hash as 16 lower-case hex digits.
    pub fn parse(version: &str, hash: &str) -> Option<Self> {
        let hex = hash.len() == 16 && hash.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        let hash = u64::from_str_radix(hash, 16).ok().filter(|_| hex)?;
        is_release_version(version).then(|| Self { version: version.to_owned(), hash })
    }

    /// As [`Self::parse`] takes it.
    pub fn hash_text(&self) -> String {
        format!("{:016x}", self.hash)
    }
}

fn is_release_version(text: &str) -> bool {
    (1..=MAX_RELEASE_VERSION).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_digit() || c == b'.')
}

impl NodeRecord {
    /// Of the releases that this node holds those that fit into a record, in their order.
    pub fn set_releases(&mut self, held: &[Release]) {
        let mut w = Writer::new();
        self.releases.clear();
        self.write(&mut w);
        // Version byte, kind, signature; the count of releases.
        let mut length = w.finish().len() + 2 + 64 + 1;
        for release in held.iter().take(MAX_RELEASES) {
            length += 1 + release.version.len() + 8;
            if length > MAX_RECORD {
                break;
            }
            self.releases.push(release.clone());
        }
    }

    /// The id that follows from the public key.
    pub fn node_id(&self) -> NodeId {
        NodeId::of_public_key(&self.public_key)
    }

    /// The public key in an encoded record, `None` if the object is of another kind. Nothing is verified.
    pub fn signer_of(object: &[u8]) -> Option<&[u8]> {
        match object {
            [WIRE_VERSION, kind, key @ ..] if *kind == Self::KIND => key.get(..32),
            _ => None,
        }
    }
}

/// Whether an address may stand in a record or be sent to: no mesh, no loopback, nothing that is not one machine. IPv4's
/// link-local addresses name no card: of two cards that have one the kernel takes the first, so a tunnel to what is behind
/// the second goes nowhere. Each card has an IPv6 one, which does.
pub fn is_endpoint(address: &SocketAddr) -> bool {
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
        // Left out where there are none: a record is then what it was before there were releases in it.
        if !self.releases.is_empty() {
            w.u8(self.releases.len() as u8);
        }
        for release in &self.releases {
            w.text(&release.version).u64(release.hash);
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
        let mut releases = Vec::new();
        let mut releases_are_sound = true;
        if r.remaining() > 0 {
            let count = usize::from(r.u8()?);
            releases_are_sound = (1..=MAX_RELEASES).contains(&count);
            for _ in 0..count.min(MAX_RELEASES) {
                releases.push(Release { version: r.text(MAX_RELEASE_VERSION)?, hash: r.u64()? });
            }
        }
        let sound = is_dns_label(&hostname)
            && releases_are_sound
            && releases.iter().all(|release| is_release_version(&release.version))
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
            releases,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            releases: Vec::new(),
        }
    }

    fn held(count: u64) -> Vec<Release> {
        (0..count).map(|hash| Release { version: "123456789.12345.12".into(), hash }).collect()
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
        large.set_releases(&held(6));
        assert!(large.releases.len() < 6, "nothing had to be left out");
        assert!(Verified::sign(large, &keys).as_bytes().len() <= MAX_RECORD);
    }

    #[test]
    fn releases_come_back_and_are_at_most_six_that_make_sense() {
        let keys = keys_of(1);
        let mut holder = record(&keys);
        let bare = Verified::sign(holder.clone(), &keys).as_bytes().len();
        holder.set_releases(&held(9));
        assert_eq!(holder.releases, held(6));
        let signed = Verified::sign(holder.clone(), &keys);
        assert_eq!(signed.as_bytes().len(), bare + 1 + 6 * (1 + 18 + 8));
        assert_eq!(Verified::<NodeRecord>::open(signed.as_bytes()), Ok(signed));
        for odd in ["", "1.0+3", "one", "1234567890.12345.12"] {
            holder.releases[3].version = odd.to_owned();
            assert!(
                Verified::<NodeRecord>::open(Verified::sign(holder.clone(), &keys).as_bytes()).is_err(),
                "{odd}"
            );
        }
        holder.releases = held(7);
        assert!(Verified::<NodeRecord>::open(Verified::sign(holder, &keys).as_bytes()).is_err());
        // No releases are said by saying nothing: one record has one encoding.
        let mut w = Writer::new();
        record(&keys).write(&mut w);
        let none = [&w.finish()[..], &[0]].concat();
        assert!(NodeRecord::read(&mut Reader::new("test", &none)).is_err());
    }

    #[test]
    fn a_hash_is_sixteen_lower_case_hex_digits() {
        let release = Release::parse("0.1.1", "00ab00000000001f").unwrap();
        assert_eq!((release.hash, release.hash_text().as_str()), (0x00ab_0000_0000_001f, "00ab00000000001f"));
        for bad in ["", "00AB00000000001F", "00ab00000000001", "+0ab00000000001f", "00ab00000000001f0"] {
            assert_eq!(Release::parse("0.1.1", bad), None, "{bad}");
        }
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
