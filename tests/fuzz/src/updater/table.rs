// SPDX-License-Identifier: Apache-2.0
//! Partition tables that anybody may have written: what is read lies on the disk, what would be written falls on no
//! partition, and the table that is read after that is the same.

use cluster_updater_core::{
    gpt::{Copy, Guid, State, Table},
    slot::Slots,
};

use super::Script;

const HEADER: usize = 92;
const ENTRY: usize = 128;
/// Both copies with the most entries, in the largest sectors.
const MOST_READ: u64 = 2 * (4096 + 1024 * ENTRY as u64 + 4096);

/// A disk of zeros with pieces written over them, the last on top.
struct Disk {
    bytes: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Disk {
    fn load(&self, sector: u64) -> Option<Table> {
        let mut read = 0;
        let loaded = Table::load(sector, self.bytes, |at, buffer| {
            let end = at.checked_add(buffer.len() as u64);
            assert!(end.is_some_and(|end| end <= self.bytes), "reads {} bytes at {at}", buffer.len());
            read += buffer.len() as u64;
            assert!(read <= MOST_READ, "reads {read} bytes");
            buffer.fill(0);
            for (start, piece) in &self.pieces {
                // The part of the piece that lies in the buffer.
                let (from, to) = (
                    at.max(*start),
                    (at + buffer.len() as u64).min(start.saturating_add(piece.len() as u64)),
                );
                if from < to {
                    buffer[(from - at) as usize..(to - at) as usize]
                        .copy_from_slice(&piece[(from - start) as usize..(to - start) as usize]);
                }
            }
            Ok(())
        });
        loaded.ok()
    }
}

pub(super) fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    let sector: u64 = if script.u8() & 1 == 1 { 4096 } else { 512 };
    let length = u64::from(script.u32() % (1 << 26)) / sector * sector;
    let mut disk = Disk { bytes: length, pieces: Vec::new() };
    while !script.is_empty() {
        copy(&mut script, &mut disk, sector);
    }
    let Some(mut table) = disk.load(sector) else { return };
    let before = table.partitions();
    for one in &before {
        let end = one.offset.checked_add(one.bytes);
        assert!(one.bytes > 0 && end.is_some_and(|end| end <= length), "{one:?} on {length} bytes");
        assert!(!one.name.contains('\0'), "{one:?}");
    }
    let numbers: Vec<u32> = before.iter().map(|one| one.number).take(2).collect();
    if let Ok(slots) = Slots::find(&table, &numbers) {
        assert_ne!(slots.active.data.number, slots.other.data.number);
    }
    let state = table.state;
    for copy in [Copy::Backup, Copy::Primary] {
        for (at, written) in table.writes(copy) {
            let end = at + written.len() as u64;
            assert!(
                end <= length && at.is_multiple_of(sector) && end.is_multiple_of(sector),
                "{copy:?}: {at} to {end}"
            );
            let hit = before.iter().find(|one| at < one.offset + one.bytes && one.offset < end);
            assert!(hit.is_none(), "{copy:?} writes over {hit:?} (the table was {state:?})");
            disk.pieces.push((at, written));
        }
    }
    let again = disk.load(sector).expect("what was written is read");
    assert_eq!((again.state, again.partitions()), (State::Whole, before.clone()));
    if let Some(first) = before.first() {
        table.relabel(first.number, "cluster-os_1.1_and_so_much_more_than_fits", Guid([1; 16]), 1 << 60);
        let after = table.partitions();
        assert_eq!(after[1..], before[1..]);
        assert_eq!((after[0].offset, after[0].bytes, after[0].kind), (first.offset, first.bytes, first.kind));
    }
}

/// One copy with valid checksums, or bytes at a place.
fn copy(script: &mut Script<'_>, disk: &mut Disk, sector: u64) {
    let last = (disk.bytes / sector).saturating_sub(1);
    let kind = script.u8();
    if kind & 1 == 1 {
        let at = u64::from(script.u32()) % (disk.bytes + 1);
        disk.pieces.push((at, script.bytes().to_vec()));
        return;
    }
    let place = |script: &mut Script<'_>, usual: u64| match script.u8() {
        0 => usual,
        near @ 1..=127 => u64::from(near),
        far @ 128..=253 => last.wrapping_sub(u64::from(far - 128)),
        _ => u64::from_be_bytes(script.array()),
    };
    let own = if kind & 2 == 2 { last } else { 1 };
    let entries_usual = if own == 1 { 2 } else { last.saturating_sub(32) };
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..16].copy_from_slice(&[0, 0, 1, 0, 92, 0, 0, 0]);
    let mut put = |at: usize, value: u64| header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(24, own);
    put(32, place(script, if own == 1 { last } else { 1 }));
    put(40, place(script, 34));
    put(48, place(script, last.saturating_sub(33)));
    let entries_lba = place(script, entries_usual);
    put(72, entries_lba);
    let count = usize::from(script.u8() % 9);
    let mut entries = vec![0; count * ENTRY];
    for entry in entries.chunks_mut(ENTRY) {
        let kind = match script.u8() % 4 {
            0 => [0; 16],
            1 => *b"\xe3\xbc\x68\x4f\xcd\xe8\xb1\x4d\x96\xe7\xfb\xca\xf9\x84\xb7\x09",
            2 => *b"\xed\x57\x73\x2c\xd2\xeb\xd9\x46\xae\xc1\x23\xd4\x37\xec\x2b\xf5",
            _ => script.array(),
        };
        entry[..16].copy_from_slice(&kind);
        entry[16] = script.u8();
        let first = place(script, 64);
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&first.wrapping_add(script.u16().into()).to_le_bytes());
        let name = script.bytes();
        let name = &name[..name.len().min(72)];
        entry[56..56 + name.len()].copy_from_slice(name);
    }
    header[80..84].copy_from_slice(&(count as u32).to_le_bytes());
    header[84..88].copy_from_slice(&(ENTRY as u32).to_le_bytes());
    header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    disk.pieces.push((own.saturating_mul(sector), header.to_vec()));
    disk.pieces.push((entries_lba.saturating_mul(sector), entries));
}

/// Bit by bit, apart from the one under test.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    };
    !bytes.iter().fold(u32::MAX, step)
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    const MIB8: [u8; 4] = [0, 0x80, 0, 0];
    let entry = |kind: u8, uuid: u8, first: u8, name: &[u8]| {
        [&[kind, uuid, first, 0, 63, name.len() as u8][..], name].concat()
    };
    let slots =
        [entry(2, 1, 80, b"v\0"), entry(1, 2, 90, b"r\0"), entry(2, 3, 100, b""), entry(1, 4, 110, b"")];
    let slots = [&[4][..], &slots.concat()].concat();
    // Places of the other copy, of the first and last usable sector and of the entries as usual.
    let usual = [0; 4];
    let primary = [&[0][..], &usual, &slots].concat();
    let backup = [&[2][..], &usual, &slots].concat();
    let disk = |sector: u8, parts: &[&[u8]]| [&[sector][..], &MIB8, &parts.concat()].concat();
    vec![
        disk(0, &[&primary, &backup]),
        disk(1, &[&primary, &backup]),
        disk(0, &[&primary]),
        disk(0, &[&backup]),
        disk(0, &[&primary, &backup, &[1, 0, 0, 2, 60, 1, 0xff]]),
        // A backup in the middle, entries in the usable part, usable sectors the wrong way round.
        disk(0, &[&[0, 100, 0, 0, 0], &slots]),
        disk(0, &[&[0, 0, 0, 0, 90], &slots]),
        disk(0, &[&[0, 0, 200, 40, 0], &slots]),
        disk(0, &[&[0, 254, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0], &slots]),
        disk(0, &[&[1, 0, 0, 2, 0, 8], b"EFI PART"]),
        Vec::new(),
    ]
}
