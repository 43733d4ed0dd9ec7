// SPDX-License-Identifier: Apache-2.0
//! Content of the state files `membership`, `records`, `generation` and `clock`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::consts::MAX_STATE_FILE;
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
    use proptest::prelude::*;

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
    }
}
