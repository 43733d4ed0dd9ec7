// SPDX-License-Identifier: Apache-2.0
//! What a disk, partition or image file holds, told from how it begins: so that what is something else by now is named and
//! left alone. Marks and their places are those of util-linux' libblkid.

/// How much of a beginning [`name`] wants; less is looked at as far as it goes.
pub const HEAD: usize = 68 * 1024;

/// A mark, where it stands, and what it says.
const MARKS: &[(usize, &[u8], &str)] = &[
    // Files that somebody took for an image.
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "a zstd archive"),
    (0, &[0x1f, 0x8b], "a gzip archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"QFI\xfb", "a qcow2 image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"vhdxfile", "a VHDX image"),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a VDI image"),
    // File systems and the like. Those that begin with a boot sector come before FAT.
    (3, b"EXFAT   ", "exFAT"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"-FVE-FS-", "BitLocker"),
    (3, b"ReFS\0", "ReFS"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"XFSB", "XFS"),
    (0, b"hsqs", "squashfs"),
    (32, b"NXSB", "APFS"),
    (512, b"LABELONE", "LVM"),
    (512, b"PM\0\0", "an Apple partition map"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "erofs"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "F2FS"),
    (1024, b"H+\0\x04", "HFS+"),
    (1024, b"HX\0\x05", "HFS+"),
    (1080, &[0x53, 0xef], "ext4"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4086, b"SWAP-SPACE", "swap space"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a RAID member"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a RAID member"),
    (32_769, b"CD001", "an ISO 9660 image"),
    (32_769, b"BEA01", "UDF"),
    (65_600, b"_BHRfS_M", "btrfs"),
];

/// Partition type of an MBR that only says: there is a GPT (UEFI 2.10, section 5.2.3).
const PROTECTIVE: u8 = 0xee;
const BOOT_SIGNATURE: [u8; 2] = [0x55, 0xaa];
const ENTRIES: std::ops::Range<usize> = 446..510;

/// What something that begins so holds; `None` if that cannot be told. A GPT is nothing in this sense: [`crate::gpt`] reads it.
#[must_use]
pub fn name(head: &[u8]) -> Option<&'static str> {
    let marked =
        MARKS.iter().find(|(at, mark, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(mark)));
    match marked {
        Some((_, _, name)) => Some(*name),
        None if is_fat(head) => Some("FAT"),
        None if mbr(head).is_some_and(|kinds| kinds.iter().any(|kind| *kind != 0 && *kind != PROTECTIVE))
            && !is_protective(head) =>
        {
            Some("an MBR partition table")
        }
        None => None,
    }
}

/// Whether the first sector says that there is a GPT. Hybrid tables, which name partitions besides, say so too.
pub(crate) fn is_protective(head: &[u8]) -> bool {
    !is_fat(head) && mbr(head).is_some_and(|kinds| kinds.contains(&PROTECTIVE))
}

/// The types of an MBR's four partitions.
fn mbr(head: &[u8]) -> Option<[u8; 4]> {
    if head.get(510..512)? != BOOT_SIGNATURE {
        return None;
    }
    let entries = &head[ENTRIES];
    // Each begins with a flag that has two values; code and text have others there.
    entries
        .chunks_exact(16)
        .all(|entry| entry[0] & 0x7f == 0)
        .then(|| [entries[4], entries[20], entries[36], entries[52]])
}

/// Whether a boot sector describes a FAT (Microsoft's specification, section 3): what firmware and kernels check, too.
fn is_fat(head: &[u8]) -> bool {
    let Some(boot) = head.get(..512) else { return false };
    let u16_at = |at: usize| u16::from_le_bytes([boot[at], boot[at + 1]]);
    let jumps = (boot[0] == 0xeb && boot[2] == 0x90) || boot[0] == 0xe9;
    let sector = u16_at(11);
    jumps
        && boot[510..] == BOOT_SIGNATURE
        && sector.is_power_of_two()
        && (512..=4096).contains(&sector)
        && boot[13].is_power_of_two()
        && u16_at(14) > 0
        && matches!(boot[16], 1 | 2)
        && boot[21] >= 0xf0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A beginning with bytes at some places.
    fn head(pieces: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (at, bytes) in pieces {
            head[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    fn with_mbr(kinds: [u8; 4]) -> Vec<u8> {
        let mut head = head(&[(510, &BOOT_SIGNATURE)]);
        for (n, kind) in kinds.into_iter().enumerate() {
            head[ENTRIES.start + n * 16 + 4] = kind;
        }
        head
    }

    /// A boot sector as mkfs.vfat writes it.
    fn fat() -> Vec<u8> {
        let parameters = [0, 2, 8, 32, 0, 2, 0, 0, 0, 0, 0xf8];
        head(&[(0, b"\xeb\x58\x90mkfs.fat"), (11, &parameters), (510, &BOOT_SIGNATURE)])
    }

    #[test]
    fn every_mark_is_found_at_its_place_and_nowhere_else() {
        for (at, mark, named) in MARKS {
            assert_eq!(name(&head(&[(*at, mark)])), Some(*named));
            assert_ne!(name(&head(&[(*at + 1, mark)])), Some(*named), "{named}");
            let whole = head(&[(*at, mark)]);
            assert_eq!(name(&whole[..at + mark.len() - 1]), None, "{named}, cut");
        }
        for nothing in [&[][..], &[0], &[0; HEAD]] {
            assert_eq!(name(nothing), None);
        }
    }

    #[test]
    fn a_fat_is_told_from_a_partition_table() {
        assert_eq!(name(&fat()), Some("FAT"));
        for (at, byte) in [(0, 7), (11, 7), (13, 7), (14, 0), (16, 7), (21, 7), (511, 7)] {
            let mut no_fat = fat();
            no_fat[at] = byte;
            assert_ne!(name(&no_fat), Some("FAT"), "byte {at}");
        }
        // Boot code that looks like a protective partition.
        let mut boot = fat();
        boot[ENTRIES.start + 4] = PROTECTIVE;
        assert!(name(&boot) == Some("FAT") && !is_protective(&boot));

        assert_eq!(name(&with_mbr([0x0c, 0, 0, 0])), Some("an MBR partition table"));
        assert_eq!(name(&with_mbr([0, 0, 0, 0x83])), Some("an MBR partition table"));
        for gpt in [[PROTECTIVE, 0, 0, 0], [0x0c, PROTECTIVE, 0, 0]] {
            assert!(name(&with_mbr(gpt)).is_none() && is_protective(&with_mbr(gpt)), "{gpt:?}");
        }
        assert!(!is_protective(&with_mbr([0; 4])) && name(&with_mbr([0; 4])).is_none());
        assert!(!is_protective(&[]) && !is_protective(&[0x55; 511]));
    }
}
