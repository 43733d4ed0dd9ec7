// SPDX-License-Identifier: Apache-2.0
//! GUID partition tables (UEFI specification 2.10, chapter 5): reading, and changing names and UUIDs in place.
//!
//! Fields, UUIDs and the header's checksum are those of `gpt_disk_types`. The crate `gpt` 4.1 writes the entries of both copies
//! before either header and flushes once at the end; a power cut in between leaves no valid copy. `gptman` 3.1 writes a header
//! before its entries. Here each copy is a list of writes of its own, and the slot plan says what comes first.

use std::fmt;
use std::io;

use bytemuck::{bytes_of, cast_slice, pod_read_unaligned};
use gpt_disk_types::{
    Crc32, GptHeader, GptPartitionAttributes, GptPartitionEntry, GptPartitionName, GptPartitionType, LbaLe,
    U32Le, U64Le,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::digest::Digest;

const HEADER_BYTES: usize = size_of::<GptHeader>();
/// The specification's minimum, and what everybody makes.
const ENTRY_BYTES: usize = size_of::<GptPartitionEntry>();
/// Bounds what a damaged header can make us read.
const MAX_ENTRIES: u32 = 1024;
/// In a table that is made here: what everybody makes.
const NEW_ENTRIES: u32 = 128;

/// A UUID, in the order of its text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// Reads 32 hex digits with dashes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        gpt_disk_types::Guid::try_parse(text).ok().map(Self::from)
    }

    /// On disk the first three groups are little-endian.
    fn swapped(self) -> [u8; 16] {
        let b = self.0;
        [b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]
    }
}

impl From<gpt_disk_types::Guid> for Guid {
    fn from(guid: gpt_disk_types::Guid) -> Self {
        Self(Self(guid.to_bytes()).swapped())
    }
}

impl From<Guid> for gpt_disk_types::Guid {
    fn from(guid: Guid) -> Self {
        Self::from_bytes(guid.swapped())
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        gpt_disk_types::Guid::from(*self).fmt(f)
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Guid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Guid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("not a UUID"))
    }
}

/// The two copies of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// Behind the first sector.
    Primary,
    /// At the end of the disk.
    Backup,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// From 1, as in `/dev/sda1`.
    pub number: u32,
    /// What it is for.
    pub kind: Guid,
    /// Its own.
    pub uuid: Guid,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Attribute bits.
    pub attributes: u64,
    /// PARTLABEL.
    pub name: String,
}

/// A disk's partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    sector: u64,
    header: GptHeader,
    entries: Vec<GptPartitionEntry>,
    backup_lba: u64,
    /// Whether both copies were there and said the same.
    pub state: State,
}

/// What was found of the two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Both are valid. If they differed, the primary counts, as it does for firmware and kernel.
    Whole,
    /// The primary is valid alone.
    NoBackup,
    /// The backup is valid alone: a write of the primary was cut.
    NoPrimary,
}

/// There is no table to go by.
#[derive(Debug, thiserror::Error)]
pub enum GptError {
    /// The disk cannot be read.
    #[error("the partition table cannot be read")]
    Read(#[from] io::Error),
    /// Neither copy is valid.
    #[error("neither copy of the partition table is valid")]
    Invalid,
}

impl Table {
    /// Reads the table of a disk of `bytes` bytes in sectors of `sector` bytes through `read` (offset, buffer).
    ///
    /// # Errors
    /// When the disk cannot be read or has no valid copy.
    pub fn load(
        sector: u64,
        bytes: u64,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<Self, GptError> {
        let last = (bytes / sector).checked_sub(1).ok_or(GptError::Invalid)?;
        let primary = load_copy(sector, last, 1, &mut read)?;
        // The primary knows best where its copy is; without it the copy is in the last sector.
        let backup_lba = primary.as_ref().map_or(last, |(header, _)| header.alternate_lba.to_u64()).min(last);
        let backup = load_copy(sector, last, backup_lba, &mut read)?;
        let state = match (&primary, &backup) {
            (Some(_), Some(_)) => State::Whole,
            (Some(_), None) => State::NoBackup,
            (None, _) => State::NoPrimary,
        };
        let (header, entries) = primary.or(backup).ok_or(GptError::Invalid)?;
        // Where both copies will be written, nothing else may be.
        let sectors = sectors_of(&entries, sector);
        let (first_usable, last_usable) = (header.first_usable_lba.to_u64(), header.last_usable_lba.to_u64());
        let behind = backup_lba.checked_sub(sectors).is_some_and(|start| last_usable < start);
        if first_usable < 2 + sectors || first_usable > last_usable || !behind {
            return Err(GptError::Invalid);
        }
        Ok(Self { sector, header, entries, backup_lba, state })
    }

    /// A table for a disk of `bytes` bytes, with these partitions, whose places are in whole sectors behind
    /// the first MiB.
    #[must_use]
    pub fn new(sector: u64, bytes: u64, disk: Guid, partitions: &[Partition]) -> Self {
        let mut entries = vec![GptPartitionEntry::default(); NEW_ENTRIES as usize];
        let entries_sectors = sectors_of(&entries, sector);
        let backup_lba = (bytes / sector).saturating_sub(1);
        let header = GptHeader {
            first_usable_lba: LbaLe::from_u64(2 + entries_sectors),
            last_usable_lba: LbaLe::from_u64(backup_lba.saturating_sub(entries_sectors + 1)),
            disk_guid: disk.into(),
            number_of_partition_entries: U32Le::from_u32(NEW_ENTRIES),
            ..GptHeader::default()
        };
        for partition in partitions {
            let index = (partition.number as usize).wrapping_sub(1);
            let Some(entry) = entries.get_mut(index) else { continue };
            let first = partition.offset / sector;
            entry.partition_type_guid = GptPartitionType(partition.kind.into());
            entry.starting_lba = LbaLe::from_u64(first);
            entry.ending_lba = LbaLe::from_u64((first + partition.bytes / sector).saturating_sub(1));
        }
        let mut table = Self { sector, header, entries, backup_lba, state: State::Whole };
        for partition in partitions {
            table.relabel(partition.number, &partition.name, partition.uuid, partition.attributes);
        }
        table
    }

    /// The disk's own UUID.
    #[must_use]
    pub fn disk(&self) -> Guid {
        self.header.disk_guid.into()
    }

    /// The first byte behind the part of the disk that partitions may use.
    #[must_use]
    pub fn usable_end(&self) -> u64 {
        (self.header.last_usable_lba.to_u64() + 1) * self.sector
    }

    /// All partitions, by number; those that leave the part of the disk that the table gives them are none.
    #[must_use]
    pub fn partitions(&self) -> Vec<Partition> {
        let (first_usable, last_usable) =
            (self.header.first_usable_lba.to_u64(), self.header.last_usable_lba.to_u64());
        let used = |(index, entry): (usize, &GptPartitionEntry)| {
            let (first, last) = (entry.starting_lba.to_u64(), entry.ending_lba.to_u64());
            let sectors = last.checked_sub(first)?.checked_add(1)?;
            let name = entry.name;
            (entry.is_used() && first >= first_usable && last <= last_usable).then_some(Partition {
                number: index as u32 + 1,
                kind: { entry.partition_type_guid }.0.into(),
                uuid: entry.unique_partition_guid.into(),
                offset: first.checked_mul(self.sector)?,
                bytes: sectors.checked_mul(self.sector)?,
                attributes: { entry.attributes }.0.to_u64(),
                name: name.to_string(),
            })
        };
        self.entries.iter().enumerate().filter_map(used).collect()
    }

    /// Gives partition `number` another name, UUID and attributes. A name longer than 36 characters is cut.
    pub fn relabel(&mut self, number: u32, name: &str, uuid: Guid, attributes: u64) {
        let index = (number as usize).wrapping_sub(1);
        let Some(entry) = self.entries.get_mut(index) else { return };
        entry.unique_partition_guid = uuid.into();
        entry.attributes = GptPartitionAttributes(U64Le::from_u64(attributes));
        let mut written = GptPartitionName::default();
        for (place, unit) in written.0.as_chunks_mut::<2>().0.iter_mut().zip(name.encode_utf16()) {
            *place = unit.to_le_bytes();
        }
        entry.name = written;
    }

    /// A UUID for partition `number` that no image has: what an empty slot carries.
    #[must_use]
    pub fn unused_uuid(&self, number: u32) -> Guid {
        let seed = [&{ self.header.disk_guid }.to_bytes()[..], b"empty slot", &number.to_le_bytes()].concat();
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&Digest::of(&seed).0[..16]);
        // RFC 9562, version 8: made of whatever.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        Guid(uuid)
    }

    /// What to write, and where, so that `copy` says what this table says: the entries, then the header.
    #[must_use]
    pub fn writes(&self, copy: Copy) -> Vec<(u64, Vec<u8>)> {
        let entries_sectors = sectors_of(&self.entries, self.sector);
        let (own, other, entries_lba) = match copy {
            Copy::Primary => (1, self.backup_lba, 2),
            Copy::Backup => (self.backup_lba, 1, self.backup_lba - entries_sectors),
        };
        let mut entries = cast_slice(&self.entries).to_vec();
        let mut header = self.header;
        header.my_lba = LbaLe::from_u64(own);
        header.alternate_lba = LbaLe::from_u64(other);
        header.partition_entry_lba = LbaLe::from_u64(entries_lba);
        header.partition_entry_array_crc32 = Crc32(U32Le::from_u32(crc32fast::hash(&entries)));
        header.update_header_crc32();
        entries.resize((entries_sectors * self.sector) as usize, 0);
        let mut sector = bytes_of(&header).to_vec();
        sector.resize(self.sector as usize, 0);
        vec![(entries_lba * self.sector, entries), (own * self.sector, sector)]
    }
}

/// The first sector of a disk that has such a table: for those who know only the old kind, one partition of a kind that they leave
/// alone. Firmware asks for it, too.
#[must_use]
pub fn protective_mbr(sector: u64, bytes: u64) -> Vec<u8> {
    let sectors = u32::try_from((bytes / sector).saturating_sub(1)).unwrap_or(u32::MAX);
    let mut block = vec![0; sector as usize];
    block[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    block[454..458].copy_from_slice(&1_u32.to_le_bytes());
    block[458..462].copy_from_slice(&sectors.to_le_bytes());
    block[510..512].copy_from_slice(&[0x55, 0xaa]);
    block
}

/// The copy whose header is in sector `lba`; `None` if it is not valid.
fn load_copy(
    sector: u64,
    last: u64,
    lba: u64,
    read: &mut impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> io::Result<Option<(GptHeader, Vec<GptPartitionEntry>)>> {
    let mut block = vec![0; sector as usize];
    if lba == 0 || lba > last || block.len() < HEADER_BYTES {
        return Ok(None);
    }
    read(lba * sector, &mut block)?;
    let header: GptHeader = pod_read_unaligned(&block[..HEADER_BYTES]);
    let count = header.number_of_partition_entries.to_u32();
    let entries_lba = header.partition_entry_lba.to_u64();
    let bytes = u64::from(count) * ENTRY_BYTES as u64;
    let plausible = header.is_signature_valid()
        && header.header_size.to_u32() == HEADER_BYTES as u32
        && header.calculate_header_crc32() == header.header_crc32
        && header.my_lba.to_u64() == lba
        && header.size_of_partition_entry.to_u32() == ENTRY_BYTES as u32
        && (1..=MAX_ENTRIES).contains(&count)
        && entries_lba >= 2
        && entries_lba.checked_add(bytes.div_ceil(sector)).is_some_and(|end| end <= last + 1);
    if !plausible {
        return Ok(None);
    }
    let mut entries = vec![0; (bytes.div_ceil(sector) * sector) as usize];
    read(entries_lba * sector, &mut entries)?;
    entries.truncate(bytes as usize);
    let valid = crc32fast::hash(&entries) == header.partition_entry_array_crc32.0.to_u32();
    Ok(valid.then(|| (header, cast_slice(&entries).to_vec())))
}

/// How many sectors these entries fill.
fn sectors_of(entries: &[GptPartitionEntry], sector: u64) -> u64 {
    (size_of_val(entries) as u64).div_ceil(sector)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A new table on a disk of `bytes` bytes, its partitions given as kind, name and sectors, one behind the other.
    pub(crate) fn make(disk: &mut Vec<u8>, bytes: u64, partitions: &[(Guid, &str, u64)]) {
        let mut at = 2048 * 512;
        let mut made = Vec::new();
        for ((kind, name, sectors), number) in partitions.iter().zip(1..) {
            made.push(Partition {
                number,
                kind: *kind,
                uuid: Guid([number as u8; 16]),
                offset: at,
                bytes: sectors * 512,
                attributes: 0,
                name: (*name).to_owned(),
            });
            at += sectors * 512;
        }
        let table = Table::new(512, bytes, Guid([0xaa; 16]), &made);
        disk.resize(bytes as usize, 0);
        apply(disk, table.writes(Copy::Backup));
        apply(disk, table.writes(Copy::Primary));
    }

    fn apply(disk: &mut [u8], writes: Vec<(u64, Vec<u8>)>) {
        for (at, bytes) in writes {
            disk[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
        }
    }

    fn load(disk: &[u8]) -> Result<Table, GptError> {
        Table::load(512, disk.len() as u64, |at, buffer| {
            buffer.copy_from_slice(&disk[at as usize..at as usize + buffer.len()]);
            Ok(())
        })
    }

    fn disk() -> Vec<u8> {
        let mut disk = Vec::new();
        make(&mut disk, 4 << 20, &[(Guid([7; 16]), "one", 64), (Guid([8; 16]), "two", 64)]);
        disk
    }

    #[test]
    fn reads_what_it_wrote() {
        let mut disk = disk();
        let mut table = load(&disk).unwrap();
        assert_eq!(table.state, State::Whole);
        table.relabel(2, "_empty", Guid::parse("01020304-0506-0708-090a-0b0c0d0e0f10").unwrap(), 1 << 60);
        apply(&mut disk, table.writes(Copy::Backup));
        apply(&mut disk, table.writes(Copy::Primary));
        let partitions = load(&disk).unwrap().partitions();
        assert_eq!(partitions.len(), 2);
        assert_eq!(partitions[1].name, "_empty");
        assert_eq!(partitions[1].uuid.to_string(), "01020304-0506-0708-090a-0b0c0d0e0f10");
        assert_eq!(partitions[1].attributes, 1 << 60);
        assert_eq!((partitions[1].offset, partitions[1].bytes), ((2048 + 64) * 512, 64 * 512));
    }

    #[test]
    fn one_torn_copy_leaves_the_other() {
        let whole = disk();
        let end = whole.len();
        for (at, state) in
            [(512 + 60, State::NoPrimary), (1024 + 5, State::NoPrimary), (end - 450, State::NoBackup)]
        {
            let mut torn = whole.clone();
            torn[at] ^= 0xff;
            let table = load(&torn).unwrap();
            assert_eq!(table.state, state, "byte {at}");
            assert_eq!(table.partitions(), load(&whole).unwrap().partitions());
            let copy = if state == State::NoPrimary { Copy::Primary } else { Copy::Backup };
            apply(&mut torn, table.writes(copy));
            assert!(torn == whole, "byte {at}: not repaired");
        }
        let mut gone = whole;
        gone[600] ^= 1;
        gone[end - 450] ^= 1;
        assert!(matches!(load(&gone), Err(GptError::Invalid)));
        assert!(load(&[0; 512]).is_err() && load(&[]).is_err());
    }
}
