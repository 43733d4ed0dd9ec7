// SPDX-License-Identifier: Apache-2.0
//! Partition tables of disks that anybody may have written: a table whose partitions lie on the disk, or a reason, without
//! reading beyond the disk or more of it than tables take.

use bytemuck::bytes_of;
use gpt_disk_types::{Crc32, GptHeader, GptPartitionEntry, GptPartitionType, LbaLe, U32Le};

use super::script::Script;
use crate::contents;
use crate::gpt::{FIRST_SECTOR, HEADER, MAX_ENTRIES, MAX_ENTRY, SECTORS, Table, TableError};
use crate::wire::Writer;

/// Steps of a script.
const BYTES: u8 = 0;
const TABLE: u8 = 1;
const FAIL: u8 = 2;
const STEPS: u8 = 3;
/// Both sector sizes at both ends: a header and the most entries of the largest size each; and how the disk begins.
const MOST_READ: u64 =
    4 * (2 * HEADER as u64 + MAX_ENTRIES as u64 * MAX_ENTRY as u64) + (FIRST_SECTOR + contents::HEAD) as u64;
/// The first sector's word that there is a GPT.
const PROTECTIVE: [u8; 66] = {
    let mut bytes = [0; 66];
    (bytes[4], bytes[64], bytes[65]) = (0xee, 0x55, 0xaa);
    bytes
};

/// A disk of zeros with pieces written over them, the last on top.
struct Disk {
    length: u64,
    pieces: Vec<(u64, Vec<u8>)>,
    /// How many reads succeed.
    reads: u32,
}

pub(super) fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    // Of a few sectors or as large as the number says.
    let length = if script.flag() { script.u64() } else { u64::from(script.u32() % (1 << 20)) };
    let mut disk = Disk { length, pieces: vec![(446, PROTECTIVE.to_vec())], reads: u32::MAX };
    while let Some(step) = script.step() {
        match step % STEPS {
            BYTES => {
                let at = place(&mut script, length);
                disk.pieces.push((at, script.bytes().to_vec()));
            }
            TABLE => table(&mut script, &mut disk),
            _ => disk.reads = u32::from(script.u8()),
        }
    }
    let found = load(&disk);
    assert_eq!(found, load(&disk), "the same disk reads differently");
    match found {
        Ok(table) => {
            assert!(SECTORS.contains(&table.sector));
            assert!(table.partitions.len() <= MAX_ENTRIES as usize);
            for one in &table.partitions {
                assert!(one.length > 0 && one.offset > 0, "{one:?}");
                assert!(one.offset.checked_add(one.length).is_some_and(|end| end <= length), "{one:?}");
                assert_eq!((one.offset % table.sector, one.length % table.sector), (0, 0), "{one:?}");
                assert!(one.name.encode_utf16().count() <= 36 && !one.name.contains('\0'), "{one:?}");
            }
        }
        Err(TableError::Read(())) => assert!(disk.reads < u32::MAX, "a read failed on a disk without faults"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn load(disk: &Disk) -> Result<Table, TableError<()>> {
    let (mut reads, mut read) = (0, 0);
    Table::load(disk.length, |buffer, at| {
        let end = at.checked_add(buffer.len() as u64);
        assert!(end.is_some_and(|end| end <= disk.length), "reads {} bytes at {at}", buffer.len());
        read += buffer.len() as u64;
        assert!(read <= MOST_READ, "reads {read} bytes");
        reads += 1;
        if reads > disk.reads {
            return Err(());
        }
        buffer.fill(0);
        for (start, bytes) in &disk.pieces {
            for (n, byte) in bytes.iter().enumerate() {
                let within = start.checked_add(n as u64).and_then(|here| here.checked_sub(at));
                if let Some(slot) = within.and_then(|within| buffer.get_mut(usize::try_from(within).ok()?)) {
                    *slot = *byte;
                }
            }
        }
        Ok(())
    })
}

/// Counted from the beginning or from the end.
fn place(script: &mut Script<'_>, length: u64) -> u64 {
    let at = u64::from(script.u32());
    if script.flag() { length.saturating_sub(at) } else { at }
}

/// Header and entries with check sums that fit.
fn table(script: &mut Script<'_>, disk: &mut Disk) {
    let sector = SECTORS[usize::from(script.u8() % 2)];
    let last = (disk.length / sector).saturating_sub(1);
    let at = if script.flag() { last } else { 1 };
    let mut size = 128usize << (script.u8() % 6);
    let entries_at = if script.flag() { script.u64() } else { u64::from(script.u16()) };
    let listed = usize::from(script.u8() % 8);
    // Now and then as many as there may be, and one more; then small ones, or check sums would take all the time.
    let count = match script.u8() {
        more @ 254.. => {
            size = 128;
            MAX_ENTRIES as usize + usize::from(more == 255)
        }
        more => listed + usize::from(more % 128),
    };
    let mut entries = vec![0; count * size];
    for bytes in entries.chunks_exact_mut(size).take(listed) {
        let mut entry = GptPartitionEntry {
            partition_type_guid: if script.flag() {
                GptPartitionType::BASIC_DATA
            } else {
                GptPartitionType::EFI_SYSTEM
            },
            ..GptPartitionEntry::default()
        };
        let first = if script.flag() { script.u64() } else { u64::from(script.u16()) };
        let end = if script.flag() { script.u64() } else { first.saturating_add(u64::from(script.u16())) };
        (entry.starting_lba, entry.ending_lba) = (LbaLe::from_u64(first), LbaLe::from_u64(end));
        let name = script.bytes();
        let name = &name[..name.len().min(72)];
        entry.name.0[..name.len()].copy_from_slice(name);
        bytes[..size_of::<GptPartitionEntry>()].copy_from_slice(bytes_of(&entry));
    }
    let mut header = GptHeader {
        my_lba: LbaLe::from_u64(at),
        partition_entry_lba: LbaLe::from_u64(entries_at),
        number_of_partition_entries: U32Le::from_u32(count as u32),
        size_of_partition_entry: U32Le::from_u32(size as u32),
        partition_entry_array_crc32: Crc32(U32Le::from_u32(crc32fast::hash(&entries))),
        ..GptHeader::default()
    };
    header.update_header_crc32();
    disk.pieces.push((at.saturating_mul(sector), bytes_of(&header).to_vec()));
    // What is behind the listed ones is zero anyway.
    entries.truncate(listed * size);
    disk.pieces.push((entries_at.saturating_mul(sector), entries));
}

/// A table of each kind, torn ones, and disks that stop answering.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let one = |w: &mut Writer, sector: u8, at_end: u8, last: u16| {
        w.u8(TABLE).u8(sector).u8(at_end).u8(0).u8(0).u16(2).u8(2).u8(126);
        w.u8(0).u8(0).u16(40).u8(0).u16(39).bytes(&utf16("ESP"));
        w.u8(1).u8(0).u16(80).u8(0).u16(last).bytes(&utf16("CLUSTER-OS"));
    };
    let mut seeds = vec![Vec::new(), vec![0; 5]];
    for sector in 0..2 {
        for at_end in 0..2 {
            for last in [19, 60_000] {
                let mut w = Writer::new();
                w.u8(0).u32(SECTORS[usize::from(sector)] as u32 * 200);
                one(&mut w, sector, at_end, last);
                seeds.push(w.finish());
            }
        }
        // Both, and a byte of the first torn.
        for torn in [0, 16, 30, 74, 90, 600] {
            let mut w = Writer::new();
            w.u8(0).u32(SECTORS[usize::from(sector)] as u32 * 200);
            one(&mut w, sector, 0, 19);
            one(&mut w, sector, 1, 19);
            w.u8(BYTES).u32(SECTORS[usize::from(sector)] as u32 + torn).u8(0).bytes(&[0xa5]);
            seeds.push(w.finish());
        }
    }
    for reads in 0..3 {
        let mut w = Writer::new();
        w.u8(0).u32(512 * 200);
        one(&mut w, 0, 0, 19);
        w.u8(FAIL).u8(reads);
        seeds.push(w.finish());
    }
    // The largest disk; entries and a partition that lie where numbers end.
    for (entries_at, count) in [(u64::MAX, 0), (u64::MAX / 512, 254), (2, 254), (2, 255)] {
        let mut w = Writer::new();
        w.u8(1).u64(u64::MAX).u8(TABLE).u8(0).u8(0).u8(5).u8(1).u64(entries_at).u8(1).u8(count);
        w.u8(1).u8(1).u64(u64::MAX / 512 - 1).u8(1).u64(u64::MAX / 512 - 1).bytes(&[0xd8; 80]);
        seeds.push(w.finish());
    }
    seeds
}
