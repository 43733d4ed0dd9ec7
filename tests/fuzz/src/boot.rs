// SPDX-License-Identifier: Apache-2.0
//! What the firmware says of the boot, and the kernel's names of devices (agent/booted-disk).

use cluster_booted_disk::kernel::Name;
use cluster_booted_disk::{Hop, firmware, words};

use crate::Target;

/// The boot's target.
pub const TARGET: Target = Target { name: "boot", run };

/// A variable as it comes, and as a firmware would write one that says what the input says.
fn run(bytes: &[u8]) {
    let path = firmware::path(bytes);
    // Each takes a header and a byte of its own at least.
    assert!(path.len() * 5 <= bytes.len(), "{path:?}");
    assert_eq!(words(&path).split_whitespace().count(), path.len());
    assert_eq!(firmware::boot_current(bytes).is_some(), bytes.len() >= 6);
    if let Some(entry) = firmware::counted_entry(bytes) {
        assert!(!entry.contains('\\') && !entry.contains('\0'), "{entry:?}");
        assert!(entry.split('/').all(|name| !matches!(name, "" | "." | "..")), "{entry:?}");
    }
    if let Some((variable, hops)) = entry(bytes) {
        assert_eq!(firmware::path(&variable), hops, "{variable:02x?}");
    }
    for name in String::from_utf8_lossy(bytes).split('/') {
        match Name::parse(name) {
            Some(Name::Pci { device, function }) => {
                let end = format!(":{device:02x}.{function}");
                assert!(name.ends_with(&end) && function < 8, "{name:?} has no {end}");
            }
            Some(Name::Usb { port, behind_hub }) => {
                let last = name.rsplit(['-', '.']).next().and_then(|last| last.parse().ok());
                assert_eq!((last, behind_hub), (Some(port), name.contains('.')), "{name:?}");
            }
            Some(Name::RootHub) => assert!(name.starts_with("usb"), "{name:?}"),
            Some(Name::Ata) => assert!(name.starts_with("ata"), "{name:?}"),
            None => {}
        }
    }
}

/// A boot entry and where its disk is attached: a description (its length first), then nodes (kind, value).
fn entry(script: &[u8]) -> Option<(Vec<u8>, Vec<Hop>)> {
    let (length, rest) = script.split_first()?;
    let (description, rest) = rest.split_at_checked(usize::from(*length))?;
    let mut variable = vec![7, 0, 0, 0, 1, 0, 0, 0, 0, 0];
    // No unit of it is zero.
    variable.extend(description.iter().flat_map(|byte| [*byte, 1]).chain([0, 0]));
    let mut hops = Vec::new();
    let mut node = |kind: u8, subtype: u8, value: &[u8]| {
        variable.extend([kind, subtype]);
        variable.extend((value.len() as u16 + 4).to_le_bytes());
        variable.extend(value);
    };
    for [kind, a, b] in rest.as_chunks::<3>().0 {
        match kind % 4 {
            0 => {
                node(1, 1, &[*a, *b]);
                hops.push(Hop::Pci { device: *b, function: *a });
            }
            1 => {
                node(3, 5, &[*a, *b]);
                hops.push(Hop::Usb(u32::from(*a) + 1));
            }
            2 => {
                node(3, 18, &[*a, *b, 0xff, 0xff, 0, 0]);
                hops.push(Hop::Sata(u32::from(u16::from_le_bytes([*a, *b])) + 1));
            }
            // Kinds that say nothing of this: ACPI, hard disk, file.
            _ => node([2, 4, 5][usize::from(*a) % 3], *b, &[*a; 8]),
        }
    }
    node(0x7f, 0xff, &[]);
    // Behind the end nothing counts.
    node(3, 5, &[1, 0]);
    Some((variable, hops))
}

/// Variables of real machines' kinds, and names in sysfs.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let entries: [&[u8]; 6] = [
        &[0, 0, 0, 0x1d, 0, 0, 0, 3, 1, 1],
        &[2, b'H', b'D', 0, 0, 0x14, 1, 16, 0, 1, 3, 0],
        &[1, b'S', 3, 0, 1, 0, 2, 0x1f, 2, 2, 1],
        &[0],
        &[4, b'l', b'o', b'n', b'g', 3, 2, 2, 3, 1, 0x12],
        &[255, 1],
    ];
    let mut seeds: Vec<Vec<u8>> = entries.iter().map(|entry| entry.to_vec()).collect();
    seeds.extend(entries.iter().filter_map(|script| Some(entry(script)?.0)));
    let whole = entry(entries[1]).map(|(variable, _)| variable).unwrap_or_default();
    seeds.extend((1..whole.len()).step_by(7).map(|cut| whole[..cut].to_vec()));
    for text in ["\\EFI\\Linux\\cluster-os_0.1.0+2-1.efi\0", "\\EFI\\..\\x\0", "\\", "x"] {
        seeds.push([6, 0, 0, 0].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect());
    }
    for path in [
        "pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host2/target2:0:0/2:0:0:0",
        "pci0000:00/0000:00:14.0/usb2/2-1/2-1.4/2-1.4:1.0",
        "pci0000:00/0000:00:17.0/ata3/host2",
        "pci0000:00/10000:e1:00.7/nvme/nvme0",
        "platform/80860F14:00/mmc_host/mmc0/mmc0:0001",
    ] {
        seeds.push(path.into());
    }
    seeds.extend([vec![6, 0, 0, 0, 3, 0], Vec::new(), vec![0xff; 64]]);
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_corpus_finds_nothing() {
        crate::replay(&[TARGET], TARGET.name);
    }

    #[test]
    fn boot_seeds_find_nothing() {
        seeds().iter().for_each(|seed| run(seed));
    }
}
