// SPDX-License-Identifier: Apache-2.0
//! Partition tables of disks (GPT; UEFI 2.10, section 5.3), read-only and bounded: whatever a disk holds gives a table or a
//! reason.
//!
//! Reading is the caller's: [`Table::load`] asks for pieces of the disk. The table at the disk's beginning counts; where it
//! is torn, the copy at its end does. A copy outlives its disk: whoever formats a stick or writes another image to it changes
//! the beginning only. So it counts only where the beginning still says that there is a GPT, and says nothing else.
//!
//! Fields, types and the header's checksum are those of `gpt_disk_types`. The crates that read whole tables do not stand what a
//! disk may hold: `gpt` 4.1 panics on entries of another size, `gpt` and `gptman` 3.1 take memory for 2^32 entries.

use bytemuck::pod_read_unaligned;
pub use gpt_disk_types::GptPartitionType;
use gpt_disk_types::{GptHeader, GptPartitionEntry};

use crate::contents;

/// Sector sizes that disks have.
pub(crate) const SECTORS: [u64; 2] = [512, 4096];
/// More entries than any tool makes; 128 is usual.
pub(crate) const MAX_ENTRIES: u32 = 1024;
/// Larger entries than any tool makes; 128 bytes are usual.
pub(crate) const MAX_ENTRY: u32 = 4096;
pub(crate) const HEADER: usize = size_of::<GptHeader>();
const ENTRY: usize = size_of::<GptPartitionEntry>();
/// What the first sector says, whatever its size.
pub(crate) const FIRST_SECTOR: usize = 512;

/// One partition; offset and length in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// GPT name (label).
    pub name: String,
    /// Its type.
    pub kind: GptPartitionType,
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// The partitions of a disk, in the order of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Bytes of a sector.
    pub sector: u64,
    /// The table at the beginning is torn; this is the copy.
    pub from_copy: bool,
    /// What there is.
    pub partitions: Vec<Partition>,
}

/// Why a disk has no usable table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError<E> {
    /// There is no table at either end.
    #[error("there is no partition table (GPT)")]
    None,
    /// The disk is something else now, whatever table an earlier use has left on it.
    #[error("it holds {0} now")]
    Other(&'static str),
    /// There was a table, and both copies are damaged.
    #[error("the partition table is damaged: {0}")]
    Damaged(&'static str),
    /// The disk cannot be read.
    #[error("failed to read the partition table")]
    Read(#[source] E),
}

impl Table {
    /// Reads the table of a disk of `length` bytes; `read_at` fills a buffer from an offset. The sector size is found out.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn load<E>(
        length: u64,
        mut read_at: impl FnMut(&mut [u8], u64) -> Result<(), E>,
    ) -> Result<Self, TableError<E>> {
        let first = beginning(FIRST_SECTOR, length, &mut read_at)?;
        let other =
            |begins: &[u8]| contents::name(begins).map_or(Ok(()), |name| Err(TableError::Other(name)));
        let mut damaged = None;
        for sector in SECTORS {
            match load_one(sector, 1, length, &mut read_at) {
                Ok(partitions) => {
                    other(&first)?;
                    return Ok(Self { sector, from_copy: false, partitions });
                }
                Err(TableError::Damaged(reason)) => damaged = damaged.or(Some(reason)),
                Err(TableError::None) => {}
                Err(error) => return Err(error),
            }
        }
        other(&beginning(contents::HEAD, length, &mut read_at)?)?;
        if damaged.is_none() && !contents::is_protective(&first) {
            return Err(TableError::None);
        }
        for sector in SECTORS {
            let end = (length / sector).saturating_sub(1);
            match load_one(sector, end, length, &mut read_at) {
                Ok(partitions) => {
                    // A header that is whole says which table the copy must be of.
                    let front =
                        header_at(sector, 1, length, &mut read_at).ok().map(|header| header.disk_guid);
                    let copy = header_at(sector, end, length, &mut read_at)?.disk_guid;
                    if front.is_some_and(|front| front != copy) {
                        damaged = damaged.or(Some("the copy at its end is of another table"));
                        continue;
                    }
                    return Ok(Self { sector, from_copy: true, partitions });
                }
                Err(TableError::Damaged(reason)) => damaged = damaged.or(Some(reason)),
                Err(TableError::None) => {}
                Err(error) => return Err(error),
            }
        }
        Err(damaged.map_or(TableError::None, TableError::Damaged))
    }

    /// The first partition with that name.
    pub fn named(&self, name: &str) -> Option<&Partition> {
        self.partitions.iter().find(|partition| partition.name == name)
    }
}

fn beginning<E>(
    most: usize,
    length: u64,
    read_at: &mut impl FnMut(&mut [u8], u64) -> Result<(), E>,
) -> Result<Vec<u8>, TableError<E>> {
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(most).min(most)];
    read_at(&mut bytes, 0).map_err(TableError::Read)?;
    Ok(bytes)
}

fn load_one<E>(
    sector: u64,
    at: u64,
    length: u64,
    read_at: &mut impl FnMut(&mut [u8], u64) -> Result<(), E>,
) -> Result<Vec<Partition>, TableError<E>> {
    let header = header_at(sector, at, length, read_at)?;
    let mut entries = vec![
        0;
        (header.number_of_partition_entries.to_u32() * header.size_of_partition_entry.to_u32())
            as usize
    ];
    let start = header.partition_entry_lba.to_u64().checked_mul(sector);
    let Some(start) =
        start.filter(|at| at.checked_add(entries.len() as u64).is_some_and(|end| end <= length))
    else {
        return Err(TableError::Damaged("its entries lie beyond the end of the disk"));
    };
    read_at(&mut entries, start).map_err(TableError::Read)?;
    partitions(&header, &entries, sector, length / sector).map_err(TableError::Damaged)
}

fn header_at<E>(
    sector: u64,
    at: u64,
    length: u64,
    read_at: &mut impl FnMut(&mut [u8], u64) -> Result<(), E>,
) -> Result<GptHeader, TableError<E>> {
    if at == 0 || at >= length / sector {
        return Err(TableError::None);
    }
    let mut bytes = [0; HEADER];
    read_at(&mut bytes, at * sector).map_err(TableError::Read)?;
    let header: GptHeader = pod_read_unaligned(&bytes);
    if !header.is_signature_valid() {
        return Err(TableError::None);
    }
    // Longer headers are allowed, none exists: their checksum would cover bytes that have no meaning yet.
    if header.header_size.to_u32() != HEADER as u32 || header.calculate_header_crc32() != header.header_crc32
    {
        return Err(TableError::Damaged("the checksum of its header is wrong"));
    }
    if header.my_lba.to_u64() != at {
        return Err(TableError::Damaged("its header belongs at another place"));
    }
    let size = header.size_of_partition_entry.to_u32();
    if header.number_of_partition_entries.to_u32() > MAX_ENTRIES
        || !size.is_power_of_two()
        || !(ENTRY as u32..=MAX_ENTRY).contains(&size)
    {
        return Err(TableError::Damaged("its entries have an impossible number or size"));
    }
    Ok(header)
}

fn partitions(
    header: &GptHeader,
    entries: &[u8],
    sector: u64,
    sectors: u64,
) -> Result<Vec<Partition>, &'static str> {
    if crc32fast::hash(entries) != header.partition_entry_array_crc32.0.to_u32() {
        return Err("the checksum of its entries is wrong");
    }
    let mut partitions = Vec::new();
    for entry in entries.chunks_exact(header.size_of_partition_entry.to_u32() as usize) {
        let entry: GptPartitionEntry = pod_read_unaligned(&entry[..ENTRY]);
        if !entry.is_used() {
            continue;
        }
        let (first, last) = (entry.starting_lba.to_u64(), entry.ending_lba.to_u64());
        if first == 0 || last < first || last >= sectors {
            return Err("a partition lies beyond the end of the disk");
        }
        let name = entry.name;
        partitions.push(Partition {
            name: name.to_string(),
            kind: entry.partition_type_guid,
            offset: first * sector,
            length: (last - first + 1) * sector,
        });
    }
    Ok(partitions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::{bytes_of, cast_slice};
    use gpt_disk_types::{Crc32, LbaLe, U32Le};
    use proptest::prelude::*;

    /// A disk with a table at each end, as tools make it.
    fn disk(sector: u64, sectors: u64, partitions: &[(&str, u64, u64)]) -> Vec<u8> {
        let mut disk = vec![0; (sector * sectors) as usize];
        disk[450] = 0xee;
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        let mut entries = [GptPartitionEntry::default(); 128];
        for (entry, (name, first, last)) in entries.iter_mut().zip(partitions) {
            entry.partition_type_guid = GptPartitionType::BASIC_DATA;
            (entry.starting_lba, entry.ending_lba) = (LbaLe::from_u64(*first), LbaLe::from_u64(*last));
            entry.name = name.parse().unwrap();
        }
        let entries: &[u8] = cast_slice(&entries);
        let room = (entries.len() as u64).div_ceil(sector);
        for (at, entries_at) in [(1, 2), (sectors - 1, sectors - 1 - room)] {
            let mut header = GptHeader {
                my_lba: LbaLe::from_u64(at),
                partition_entry_lba: LbaLe::from_u64(entries_at),
                number_of_partition_entries: U32Le::from_u32(128),
                partition_entry_array_crc32: Crc32(U32Le::from_u32(crc32fast::hash(entries))),
                ..GptHeader::default()
            };
            header.update_header_crc32();
            let put = |disk: &mut Vec<u8>, at: u64, bytes: &[u8]| {
                let at = (at * sector) as usize;
                disk[at..at + bytes.len()].copy_from_slice(bytes);
            };
            put(&mut disk, at, bytes_of(&header));
            put(&mut disk, entries_at, entries);
        }
        disk
    }

    fn load(disk: &[u8]) -> Result<Table, TableError<()>> {
        Table::load(disk.len() as u64, |buffer, at| {
            let at = usize::try_from(at).map_err(|_| ())?;
            buffer.copy_from_slice(disk.get(at..at + buffer.len()).ok_or(())?);
            Ok(())
        })
    }

    #[test]
    fn finds_partitions_by_name_in_both_sector_sizes() {
        for sector in SECTORS {
            let table = load(&disk(sector, 200, &[("ESP", 40, 79), ("CLUSTER-OS", 80, 99)])).unwrap();
            assert_eq!((table.sector, table.from_copy, table.partitions.len()), (sector, false, 2));
            let found = table.named("CLUSTER-OS").unwrap();
            assert_eq!((found.offset, found.length), (80 * sector, 20 * sector));
            assert_eq!(found.kind, GptPartitionType::BASIC_DATA);
            assert_eq!(table.named("cluster-os"), None);
        }
    }

    #[test]
    fn a_torn_table_is_replaced_by_the_copy() {
        let whole = disk(512, 200, &[("CLUSTER-OS", 80, 99)]);
        for torn in [512, 512 + 30, 512 + 90, 1024, 1024 + 60] {
            let mut disk = whole.clone();
            disk[torn] ^= 1;
            let table = load(&disk).unwrap();
            assert!(table.from_copy, "byte {torn}");
            assert_eq!(table.named("CLUSTER-OS").unwrap().offset, 80 * 512);
            // And with the copy torn as well, nothing is believed.
            let last = disk.len() - 512;
            disk[last + 20] ^= 1;
            disk[last + 75] ^= 1;
            assert!(load(&disk).is_err(), "byte {torn}");
        }
    }

    /// What people do with a stick afterwards: each leaves the copy at its end.
    #[test]
    fn a_copy_counts_only_where_the_beginning_is_a_damaged_gpt() {
        let whole = disk(512, 2000, &[("ESP", 100, 139), ("CLUSTER-OS", 140, 199)]);
        let with = |pieces: &[(usize, &[u8])]| {
            let mut disk = whole.clone();
            for (at, bytes) in pieces {
                disk[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            load(&disk)
        };
        let zeros = [0; 34 * 512];
        let fat: &[u8] = b"\xeb\x58\x90mkfs.fat\x00\x02\x08\x20\x00\x02\x00\x00\x00\x00\xf8";
        // Torn: the beginning still says that there is a GPT.
        for (name, damage) in [
            ("no header", &[(512, &zeros[..512])][..]),
            ("no header and no entries", &[(512, &zeros[..33 * 512])]),
            ("a flipped bit", &[(530, &[0xff])]),
            ("torn entries", &[(1024, &[0xff; 700])]),
            ("no first sector and a torn header", &[(0, &zeros[..512]), (600, &[0xff])]),
            ("a hybrid table", &[(466, &[0x0c]), (512, &zeros[..512])]),
        ] {
            assert!(with(damage).is_ok_and(|table| table.from_copy), "{name}");
        }
        // Used for something else: the copy is a leftover, and so is a table that was not overwritten.
        for (named, damage) in [
            ("FAT", &[(0, &zeros[..]), (0, fat), (510, &[0x55, 0xaa])][..]),
            ("FAT", &[(0, &zeros[..512]), (0, fat), (510, &[0x55, 0xaa])]),
            ("exFAT", &[(0, &zeros[..]), (0, b"\xeb\x76\x90EXFAT   "), (510, &[0x55, 0xaa])]),
            ("NTFS", &[(0, &zeros[..]), (0, b"\xeb\x52\x90NTFS    "), (510, &[0x55, 0xaa])]),
            ("an MBR partition table", &[(0, &zeros[..]), (450, &[0x0c]), (510, &[0x55, 0xaa])]),
            ("an MBR partition table", &[(450, &[0x83]), (510, &[0x55, 0xaa])]),
            ("an ISO 9660 image", &[(0, &zeros[..]), (32_769, b"CD001")]),
            (
                "an ISO 9660 image",
                &[(0, &zeros[..]), (450, &[0x17]), (510, &[0x55, 0xaa]), (32_769, b"CD001")],
            ),
            // Those leave the first sector, and some of the second.
            ("ext4", &[(512, &zeros[..512]), (1080, &[0x53, 0xef])]),
            ("F2FS", &[(1024, &[0x10, 0x20, 0xf5, 0xf2])]),
            ("swap space", &[(512, &zeros[..512]), (4086, b"SWAPSPACE2")]),
            ("a RAID member", &[(4096, &[0xfc, 0x4e, 0x2b, 0xa9])]),
            ("btrfs", &[(512, &zeros[..]), (65_600, b"_BHRfS_M")]),
            ("LUKS", &[(0, b"LUKS\xba\xbe")]),
        ] {
            assert_eq!(with(damage), Err(TableError::Other(named)), "{damage:?}");
        }
        // Another image with a table of its own was written over, and torn since.
        let mut other = disk(512, 400, &[("ESP", 100, 139), ("holiday", 140, 199)]);
        other[512 + 56] = 7;
        reseal(&mut other);
        let front = &other[..1024];
        assert!(matches!(with(&[(0, front), (1024, &[7; 700])]), Err(TableError::Damaged(_))));
        // Wiped: nothing says that there is a table.
        assert_eq!(with(&[(0, &zeros[..])]), Err(TableError::None));
        assert_eq!(with(&[(0, &[0xa5; 34 * 512])]), Err(TableError::None));
        // A first sector that was lost alone hides nothing.
        assert!(with(&[(0, &zeros[..512])]).is_ok_and(|table| !table.from_copy));
    }

    #[test]
    fn says_what_is_no_table() {
        assert_eq!(load(&[0; 4096]), Err(TableError::None));
        assert_eq!(load(&[]), Err(TableError::None));
        let whole = disk(512, 200, &[("CLUSTER-OS", 80, 99)]);
        assert!(matches!(load(&whole[..1200]), Err(TableError::Damaged(_))), "cut off inside its entries");
        let beyond = disk(512, 200, &[("CLUSTER-OS", 80, 500)]);
        assert!(matches!(load(&beyond), Err(TableError::Damaged(reason)) if reason.contains("beyond")));
    }

    /// Makes the check sums of the first table right, whatever it says.
    fn reseal(disk: &mut [u8]) {
        let mut header: GptHeader = pod_read_unaligned(&disk[512..512 + HEADER]);
        let (count, size) =
            (header.number_of_partition_entries.to_u32(), header.size_of_partition_entry.to_u32());
        let bytes = u64::from(count) * u64::from(size);
        let at = header.partition_entry_lba.to_u64().checked_mul(512);
        let end = at.and_then(|at| at.checked_add(bytes)).filter(|end| *end <= disk.len() as u64);
        if let (Some(at), Some(end), true) = (at, end, count <= MAX_ENTRIES) {
            let checksum = crc32fast::hash(&disk[at as usize..end as usize]);
            header.partition_entry_array_crc32 = Crc32(U32Le::from_u32(checksum));
        }
        header.update_header_crc32();
        disk[512..512 + HEADER].copy_from_slice(bytes_of(&header));
    }

    proptest! {
        /// Three entries and what the header says of them, so that what the check sums cover is read.
        #[test]
        fn right_check_sums_make_nothing_sound(
            changes in proptest::collection::vec((0..64 + 384usize, any::<u8>()), 0..4),
        ) {
            let mut disk = disk(512, 100, &[("ESP", 40, 49), ("CLUSTER-OS", 50, 59), ("var", 60, 65)]);
            // No copy to fall back to.
            disk[99 * 512..].fill(0);
            for (at, byte) in &changes {
                disk[if *at < 64 { 512 + 24 + at } else { 1024 + at - 64 }] = *byte;
            }
            reseal(&mut disk);
            match load(&disk) {
                Ok(table) => {
                    prop_assert!(!table.from_copy);
                    for partition in table.partitions {
                        prop_assert!(partition.offset + partition.length <= disk.len() as u64);
                    }
                }
                Err(TableError::Damaged(reason)) => {
                    // Entries that cover the header have no right checksum: it would be a part of itself.
                    let over_header = u64::from_le_bytes(disk[512 + 72..512 + 80].try_into().unwrap()) < 2;
                    let told = over_header || !reason.contains("checksum");
                    prop_assert!(!changes.is_empty() && told, "{}", reason);
                }
                Err(other) => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn whatever_is_changed_gives_a_table_or_a_reason(
            changes in proptest::collection::vec((0..100 * 512usize, any::<u8>()), 0..20),
            length in 0..100 * 512usize,
        ) {
            let mut disk = disk(512, 100, &[("ESP", 40, 49), ("CLUSTER-OS", 50, 59)]);
            for (at, byte) in changes {
                disk[at] = byte;
            }
            disk.truncate(length.max(1));
            if let Ok(table) = load(&disk) {
                for partition in table.partitions {
                    prop_assert!(partition.offset + partition.length <= disk.len() as u64);
                }
            }
        }
    }
}
