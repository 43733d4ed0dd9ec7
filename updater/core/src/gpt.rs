// SPDX-License-Identifier: Apache-2.0
//! GUID partition tables (UEFI specification 2.10, chapter 5): reading, and changing names and UUIDs in place.
//!
//! The crate `gpt` writes the entries of both copies before either header and flushes once at the end; a power cut in
//! between leaves no valid copy. Here each copy is a list of writes of its own, and the slot plan says what comes first.

use std::fmt;
use std::io;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::digest::Digest;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const HEADER_BYTES: usize = 92;
/// The specification's minimum, and what everybody makes.
const ENTRY_BYTES: usize = 128;
/// Bounds what a damaged header can make us read.
const MAX_ENTRIES: u32 = 1024;
/// In a table that is made here: what everybody makes.
const NEW_ENTRIES: u32 = 128;
/// Characters (UTF-16 units) of a name.
const NAME_UNITS: usize = 36;

/// A UUID, in the order of its text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// Reads 32 hex digits with dashes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let groups: Vec<&str> = text.split('-').collect();
        let shape = [8, 4, 4, 4, 12];
        if groups.len() != 5 || groups.iter().zip(shape).any(|(group, len)| group.len() != len) {
            return None;
        }
        HEXLOWER.decode(groups.concat().to_ascii_lowercase().as_bytes()).ok()?.try_into().ok().map(Self)
    }

    /// On disk the first three groups are little-endian.
    fn swapped(self) -> [u8; 16] {
        let b = self.0;
        [b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = HEXLOWER.encode(&self.0);
        write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
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
    header: [u8; HEADER_BYTES],
    entries: Vec<u8>,
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
        let backup_lba = primary.as_ref().map_or(last, |(header, _)| number(header, 32)).min(last);
        let backup = load_copy(sector, last, backup_lba, &mut read)?;
        let state = match (&primary, &backup) {
            (Some(_), Some(_)) => State::Whole,
            (Some(_), None) => State::NoBackup,
            (None, _) => State::NoPrimary,
        };
        let (header, entries) = primary.or(backup).ok_or(GptError::Invalid)?;
        // Where both copies will be written, nothing else may be.
        let sectors = (entries.len() as u64).div_ceil(sector);
        let (first_usable, last_usable) = (number(&header, 40), number(&header, 48));
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
        let mut entries = vec![0; NEW_ENTRIES as usize * ENTRY_BYTES];
        let entries_sectors = (entries.len() as u64).div_ceil(sector);
        let backup_lba = (bytes / sector).saturating_sub(1);
        let last_usable = backup_lba.saturating_sub(entries_sectors + 1);
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(SIGNATURE);
        header[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
        header[12..16].copy_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        header[40..48].copy_from_slice(&(2 + entries_sectors).to_le_bytes());
        header[48..56].copy_from_slice(&last_usable.to_le_bytes());
        header[56..72].copy_from_slice(&disk.swapped());
        header[80..84].copy_from_slice(&NEW_ENTRIES.to_le_bytes());
        header[84..88].copy_from_slice(&(ENTRY_BYTES as u32).to_le_bytes());
        for partition in partitions {
            let index = (partition.number as usize).wrapping_sub(1);
            let Some(entry) = entries.as_chunks_mut::<ENTRY_BYTES>().0.get_mut(index) else { continue };
            let first = partition.offset / sector;
            entry[..16].copy_from_slice(&partition.kind.swapped());
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48]
                .copy_from_slice(&(first + partition.bytes / sector).saturating_sub(1).to_le_bytes());
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
        guid(&self.header, 56)
    }

    /// The first byte behind the part of the disk that partitions may use.
    #[must_use]
    pub fn usable_end(&self) -> u64 {
        (number(&self.header, 48) + 1) * self.sector
    }

    /// All partitions, by number; those that leave the part of the disk that the table gives them are none.
    #[must_use]
    pub fn partitions(&self) -> Vec<Partition> {
        let used = |(index, entry): (usize, &[u8; ENTRY_BYTES])| {
            let (first, last) = (number(entry, 32), number(entry, 40));
            let kind = guid(entry, 0);
            let sectors = last.checked_sub(first)?.checked_add(1)?;
            (first >= number(&self.header, 40) && last <= number(&self.header, 48)).then_some(())?;
            (kind != Guid([0; 16])).then_some(())?;
            let units: Vec<u16> =
                entry[56..].as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
            let end = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
            Some(Partition {
                number: index as u32 + 1,
                kind,
                uuid: guid(entry, 16),
                offset: first.checked_mul(self.sector)?,
                bytes: sectors.checked_mul(self.sector)?,
                attributes: number(entry, 48),
                name: String::from_utf16_lossy(&units[..end]),
            })
        };
        self.entries.as_chunks::<ENTRY_BYTES>().0.iter().enumerate().filter_map(used).collect()
    }

    /// Gives partition `number` another name, UUID and attributes. A name longer than 36 characters is cut.
    pub fn relabel(&mut self, number: u32, name: &str, uuid: Guid, attributes: u64) {
        let index = (number as usize).wrapping_sub(1);
        let Some(entry) = self.entries.as_chunks_mut::<ENTRY_BYTES>().0.get_mut(index) else { return };
        entry[16..32].copy_from_slice(&uuid.swapped());
        entry[48..56].copy_from_slice(&attributes.to_le_bytes());
        entry[56..].fill(0);
        for (place, unit) in
            entry[56..].as_chunks_mut::<2>().0.iter_mut().zip(name.encode_utf16()).take(NAME_UNITS)
        {
            *place = unit.to_le_bytes();
        }
    }

    /// A UUID for partition `number` that no image has: what an empty slot carries.
    #[must_use]
    pub fn unused_uuid(&self, number: u32) -> Guid {
        let seed = [&self.header[56..72], b"empty slot", &number.to_le_bytes()].concat();
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
        let entries_sectors = (self.entries.len() as u64).div_ceil(self.sector);
        let (own, other, entries_lba) = match copy {
            Copy::Primary => (1, self.backup_lba, 2),
            Copy::Backup => (self.backup_lba, 1, self.backup_lba - entries_sectors),
        };
        let mut header = self.header;
        header[24..32].copy_from_slice(&own.to_le_bytes());
        header[32..40].copy_from_slice(&other.to_le_bytes());
        header[72..80].copy_from_slice(&entries_lba.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&self.entries).to_le_bytes());
        let crc = header_crc(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        let mut entries = self.entries.clone();
        entries.resize((entries_sectors * self.sector) as usize, 0);
        let mut sector = header.to_vec();
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
) -> io::Result<Option<([u8; HEADER_BYTES], Vec<u8>)>> {
    let mut block = vec![0; sector as usize];
    if lba == 0 || lba > last || block.len() < HEADER_BYTES {
        return Ok(None);
    }
    read(lba * sector, &mut block)?;
    let mut header = [0; HEADER_BYTES];
    header.copy_from_slice(&block[..HEADER_BYTES]);
    let count = u32::from_le_bytes([header[80], header[81], header[82], header[83]]);
    let size = u32::from_le_bytes([header[84], header[85], header[86], header[87]]);
    let entries_lba = number(&header, 72);
    let bytes = u64::from(count) * ENTRY_BYTES as u64;
    let plausible = &header[..8] == SIGNATURE
        && header[12..16] == (HEADER_BYTES as u32).to_le_bytes()
        && header[16..20] == header_crc(&header).to_le_bytes()
        && number(&header, 24) == lba
        && size == ENTRY_BYTES as u32
        && (1..=MAX_ENTRIES).contains(&count)
        && entries_lba >= 2
        && entries_lba.checked_add(bytes.div_ceil(sector)).is_some_and(|end| end <= last + 1);
    if !plausible {
        return Ok(None);
    }
    let mut entries = vec![0; (bytes.div_ceil(sector) * sector) as usize];
    read(entries_lba * sector, &mut entries)?;
    entries.truncate(bytes as usize);
    let valid = header[88..92] == crc32fast::hash(&entries).to_le_bytes();
    Ok(valid.then_some((header, entries)))
}

fn header_crc(header: &[u8; HEADER_BYTES]) -> u32 {
    let mut header = *header;
    header[16..20].fill(0);
    crc32fast::hash(&header)
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn guid(bytes: &[u8], at: usize) -> Guid {
    let mut raw = [0; 16];
    raw.copy_from_slice(&bytes[at..at + 16]);
    Guid(Guid(raw).swapped())
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
