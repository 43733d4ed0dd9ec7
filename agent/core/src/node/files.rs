// SPDX-License-Identifier: Apache-2.0
//! Content of the state files `membership`, `records`, `generation` and `clock`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::consts::MAX_STATE_FILE;
use crate::consts::pace::{LONGEST, SHORTEST};
use crate::id::NodeId;
use crate::join_key::JoinKey;
use crate::keys::{open_file, seal_file};
use crate::roster::{Object, Roster};
use crate::signed::{MAX_OBJECT, Verified};
use crate::wire::{Malformed, Reader, Writer};

const MEMBERSHIP: u8 = 0x12;
const RECORDS: u8 = 0x13;
const GENERATION: u8 = 0x14;
const CLOCK: u8 = 0x15;

/// How often the records are written: all of them each time, and any member may sign a new one whenever it likes.
#[derive(Default)]
pub(super) struct Pace {
    last: Option<Duration>,
    gap: Duration,
}

impl Pace {
    /// Whether a write is due; notes it.
    pub(super) fn allows(&mut self, now: Duration) -> bool {
        let since = self.last.map(|last| now.saturating_sub(last));
        self.gap = match since {
            Some(since) if since < self.gap => return false,
            Some(since) if since < 2 * LONGEST => (self.gap * 2).clamp(SHORTEST, LONGEST),
            _ => SHORTEST,
        };
        self.last = Some(now);
        true
    }
}

/// What the membership file says.
#[derive(Debug)]
pub(super) enum SavedPlace {
    /// Admitted once, belongs to nothing now, and never founds again.
    Returning,
    Member(Roster, JoinKey),
    Left(Roster),
}

pub(super) fn write_membership(place: &SavedPlaceRef<'_>) -> Vec<u8> {
    let mut w = Writer::new();
    let roster = match place {
        SavedPlaceRef::Returning => {
            w.u8(0);
            None
        }
        SavedPlaceRef::Member(roster, key) => {
            w.u8(1).text(&key.to_text());
            Some(roster)
        }
        SavedPlaceRef::Left(roster) => {
            w.u8(2);
            Some(roster)
        }
    };
    if let Some(roster) = roster {
        w.bytes(roster.genesis().as_bytes());
        w.u32((roster.admissions().count() + roster.leaves().count()) as u32);
        for admission in roster.admissions() {
            w.bytes(admission.as_bytes());
        }
        for leave in roster.leaves() {
            w.bytes(leave.as_bytes());
        }
    }
    seal_file(MEMBERSHIP, &w.finish())
}

/// Borrowed form of [`SavedPlace`], for writing.
pub(super) enum SavedPlaceRef<'a> {
    Returning,
    Member(&'a Roster, &'a JoinKey),
    Left(&'a Roster),
}

pub(super) fn read_membership(bytes: &[u8]) -> Result<SavedPlace, Malformed> {
    const WHAT: &str = "membership file";
    if bytes.len() > MAX_STATE_FILE {
        return Err(Malformed(WHAT));
    }
    let mut r = Reader::new(WHAT, open_file(MEMBERSHIP, WHAT, bytes)?);
    let kind = r.u8()?;
    if kind == 0 {
        r.end()?;
        return Ok(SavedPlace::Returning);
    }
    let key =
        if kind == 1 { Some(JoinKey::parse(&r.text(255)?).map_err(|_| Malformed(WHAT))?) } else { None };
    let mut roster = Roster::new(Verified::open(r.bytes(MAX_OBJECT)?)?);
    let mut objects = Vec::new();
    for _ in 0..r.u32()? {
        objects.push(Object::open(r.bytes(MAX_OBJECT)?)?);
    }
    r.end()?;
    roster.unite(objects);
    match (kind, key) {
        (1, Some(key)) => Ok(SavedPlace::Member(roster, key)),
        (2, None) => Ok(SavedPlace::Left(roster)),
        _ => Err(Malformed(WHAT)),
    }
}

/// Records of members and where each was last heard.
pub(super) fn write_records(roster: &Roster, seen: &BTreeMap<NodeId, SocketAddr>) -> Vec<u8> {
    let mut w = Writer::new();
    w.u32(roster.records().count() as u32);
    for (id, record) in roster.records() {
        w.bytes(record.as_bytes());
        match seen.get(id) {
            Some(address) => w.u8(1).socket(address),
            None => w.u8(0),
        };
    }
    seal_file(RECORDS, &w.finish())
}

/// Adds saved records to a roster.
pub(super) fn read_records(
    bytes: &[u8],
    roster: &mut Roster,
) -> Result<BTreeMap<NodeId, SocketAddr>, Malformed> {
    const WHAT: &str = "records file";
    if bytes.len() > MAX_STATE_FILE {
        return Err(Malformed(WHAT));
    }
    let mut r = Reader::new(WHAT, open_file(RECORDS, WHAT, bytes)?);
    let mut seen = BTreeMap::new();
    for _ in 0..r.u32()? {
        let record = Verified::<crate::record::NodeRecord>::open(r.bytes(MAX_OBJECT)?)?;
        let id = record.node_id();
        roster.add(Object::Record(record));
        if r.u8()? == 1 {
            seen.insert(id, r.socket()?);
        }
    }
    r.end()?;
    Ok(seen)
}

pub(super) fn write_generation(generation: u32) -> Vec<u8> {
    seal_file(GENERATION, &generation.to_be_bytes())
}

pub(super) fn read_generation(bytes: &[u8]) -> Result<u32, Malformed> {
    let mut r = Reader::new("generation file", open_file(GENERATION, "generation file", bytes)?);
    let generation = r.u32()?;
    r.end()?;
    Ok(generation)
}

pub(super) fn write_clock(wall: Duration) -> Vec<u8> {
    seal_file(CLOCK, &millis(wall).to_be_bytes())
}

pub(super) fn read_clock(bytes: &[u8]) -> Result<Duration, Malformed> {
    let mut r = Reader::new("clock file", open_file(CLOCK, "clock file", bytes)?);
    let wall = Duration::from_millis(r.u64()?);
    r.end()?;
    Ok(wall)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::StateItem;
    use crate::id::ClusterId;
    use crate::keys::Keys;
    use crate::one_of_each::one_of_each;
    use crate::record::{NodeRecord, Sequence};
    use crate::roster::{Admission, Genesis};
    use proptest::prelude::*;
    use proptest::sample::Index;
    use std::sync::LazyLock;

    fn keys(n: u8) -> Keys {
        Keys::generate(&std::array::from_fn(|i| n.wrapping_mul(97).wrapping_add(i as u8)))
    }

    fn record(n: u8) -> Object {
        let record = NodeRecord {
            public_key: keys(n).public(),
            sequence: Sequence { generation: 1, counter: 1 },
            session_key: keys(n).session_public(),
            wireguard_key: keys(n).wireguard_public(),
            feature_level: 1,
            hostname: "alpha".into(),
            version: "1.2.3".into(),
            endpoints: Vec::new(),
            labels: BTreeMap::new(),
            releases: Vec::new(),
        };
        Object::Record(Verified::sign(record, &keys(n)))
    }

    /// A cluster of two that know each other.
    static ROSTER: LazyLock<Roster> = LazyLock::new(|| {
        let cluster = ClusterId([1; 16]);
        let genesis = Genesis {
            cluster,
            incarnation: 1,
            name: "lab".into(),
            join_key: [2; 16],
            founder: keys(1).public(),
            created: 3,
            admin_keys: Vec::new(),
        };
        let mut roster = Roster::new(Verified::sign(genesis, &keys(1)));
        let (subject, admitter) = (keys(2).public(), keys(1).public());
        let admission = Admission { cluster, subject, round: 1, admitter, at: 3 };
        roster.unite([Object::Admission(Verified::sign(admission, &keys(1))), record(1), record(2)]);
        roster
    });

    fn membership() -> Vec<u8> {
        let key = JoinKey::generate(&std::array::from_fn(|i| i as u8));
        write_membership(&SavedPlaceRef::Member(&ROSTER, &key))
    }

    fn records() -> Vec<u8> {
        let seen = BTreeMap::from([(keys(2).node_id(), "192.0.2.7:41410".parse().unwrap())]);
        write_records(&ROSTER, &seen)
    }

    fn reads_records(bytes: &[u8]) -> bool {
        let mut roster = Roster::new(ROSTER.genesis().clone());
        let read = read_records(bytes, &mut roster);
        // Whatever else it said, every record that was taken is signed.
        assert!(roster.records().all(|(_, record)| Verified::<NodeRecord>::open(record.as_bytes()).is_ok()));
        read.is_ok()
    }

    #[test]
    fn each_file_is_read_as_what_it_is_and_as_nothing_else() {
        type Reads = fn(&[u8]) -> bool;
        let of = |item| -> Option<(Vec<u8>, Reads)> {
            match item {
                StateItem::Identity => Some((keys(1).to_file(), |bytes| Keys::from_file(bytes).is_ok())),
                StateItem::Generation => Some((write_generation(7), |bytes| read_generation(bytes).is_ok())),
                StateItem::Membership => Some((membership(), |bytes| read_membership(bytes).is_ok())),
                StateItem::Records => Some((records(), reads_records)),
                StateItem::Clock => Some((write_clock(Duration::ZERO), |bytes| read_clock(bytes).is_ok())),
                // Kept for a person, never read.
                StateItem::DamagedIdentity | StateItem::DamagedMembership => None,
            }
        };
        let items = one_of_each!(StateItem:
            StateItem::Identity => StateItem::Identity,
            StateItem::Generation => StateItem::Generation,
            StateItem::Membership => StateItem::Membership,
            StateItem::Records => StateItem::Records,
            StateItem::Clock => StateItem::Clock,
            StateItem::DamagedIdentity => StateItem::DamagedIdentity,
            StateItem::DamagedMembership => StateItem::DamagedMembership,
        );
        for item in items {
            let Some((file, _)) = of(item) else { continue };
            for reader in items {
                let Some((_, reads)) = of(reader) else { continue };
                assert_eq!(reads(&file), item == reader, "{item:?} read as {reader:?}");
            }
        }
    }

    /// A file whose check value is right, with some bytes of its body changed.
    fn resealed(file: &[u8], changes: &[(Index, u8)]) -> Vec<u8> {
        let mut body = file[2..file.len() - 8].to_vec();
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = *byte;
        }
        seal_file(file[1], &body)
    }

    #[test]
    fn what_always_changes_is_written_ever_more_rarely() {
        let mut pace = Pace::default();
        let written: Vec<_> =
            (0..400u64).filter(|second| pace.allows(Duration::from_secs(*second))).collect();
        assert_eq!(written, [0, 1, 3, 7, 15, 31, 63, 127, 191, 255, 319, 383]);
        let calm = Duration::from_secs(383 + 128);
        assert!(pace.allows(calm) && pace.allows(calm + SHORTEST));
    }

    #[test]
    fn small_files_read_back() {
        assert_eq!(read_generation(&write_generation(7)), Ok(7));
        let wall = Duration::from_millis(1_234_567);
        assert_eq!(read_clock(&write_clock(wall)), Ok(wall));
        assert!(matches!(
            read_membership(&write_membership(&SavedPlaceRef::Returning)),
            Ok(SavedPlace::Returning)
        ));
        assert!(read_generation(&write_clock(wall)).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(body: Vec<u8>, kind in 0x11u8..0x16) {
            let file = seal_file(kind, &body);
            let _ = (read_membership(&file).is_ok(), read_generation(&file), read_clock(&file));
            let _ = read_membership(&body).is_ok();
        }

        /// Behind the check value everything is signed, counted or checked in itself: no change goes unnoticed.
        #[test]
        fn a_changed_membership_is_refused_though_its_check_value_is_right(
            changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..3),
        ) {
            let file = resealed(&membership(), &changes);
            prop_assert_eq!(read_membership(&file).is_ok(), file == membership());
        }

        #[test]
        fn changed_records_are_taken_only_with_their_signatures(
            changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..3),
        ) {
            let file = resealed(&records(), &changes);
            prop_assert!(reads_records(&file) || file != records());
        }
    }
}
