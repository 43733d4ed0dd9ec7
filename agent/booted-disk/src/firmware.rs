// SPDX-License-Identifier: Apache-2.0
//! EFI variables as efivarfs gives them: four bytes of attributes, then the value (UEFI 2.10, chapters 3 and 10).

use crate::Hop;

const ATTRIBUTES: usize = 4;
/// A load option begins with attributes (4 bytes) and the length of its device path (2).
const OPTION_HEADER: usize = 6;
/// Type, subtype and length of a device path node.
const NODE_HEADER: usize = 4;
const END_OF_PATH: u8 = 0x7f;

/// The number of the boot entry that was booted, from `BootCurrent`.
#[must_use]
pub fn boot_current(variable: &[u8]) -> Option<u16> {
    let value = variable.get(ATTRIBUTES..)?;
    Some(u16::from_le_bytes([*value.first()?, *value.get(1)?]))
}

/// Where the disk of a boot entry is attached, from `Boot####`. Empty if the entry does not say.
#[must_use]
pub fn path(variable: &[u8]) -> Vec<Hop> {
    let option = variable.get(ATTRIBUTES + OPTION_HEADER..).unwrap_or_default();
    let described = option.as_chunks::<2>().0.iter().position(|unit| *unit == [0, 0]);
    let mut nodes = described.map_or(&[][..], |units| &option[(units + 1) * 2..]);
    let mut path = Vec::new();
    while let Some((&[kind, subtype, low, high], _)) = nodes.split_first_chunk::<NODE_HEADER>() {
        let length = usize::from(u16::from_le_bytes([low, high]));
        if kind == END_OF_PATH || length < NODE_HEADER || length > nodes.len() {
            break;
        }
        path.extend(hop(kind, subtype, &nodes[NODE_HEADER..length]));
        nodes = &nodes[length..];
    }
    path
}

fn hop(kind: u8, subtype: u8, value: &[u8]) -> Option<Hop> {
    match (kind, subtype, value) {
        (1, 1, [function, device, ..]) => Some(Hop::Pci { device: *device, function: *function }),
        (3, 5, [port, ..]) => Some(Hop::Usb(u32::from(*port) + 1)),
        (3, 18, [low, high, ..]) => Some(Hop::Sata(u32::from(u16::from_le_bytes([*low, *high])) + 1)),
        _ => None,
    }
}

/// The boot entry whose tries systemd-boot has just counted, with `/` between folders, from `LoaderBootCountPath`.
#[must_use]
pub fn counted_entry(variable: &[u8]) -> Option<String> {
    let units = variable.get(ATTRIBUTES..)?.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit));
    let text = String::from_utf16(&units.take_while(|unit| *unit != 0).collect::<Vec<_>>()).ok()?;
    let path = text.replace('\\', "/").trim_matches('/').to_owned();
    // Only names: this is looked for on the ESP.
    let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(char::is_control);
    path.split('/').all(is_name).then_some(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn option(description: &str, nodes: &[u8]) -> Vec<u8> {
        let description = description.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
        [7, 0, 0, 0, 1, 0, 0, 0, 0x2c, 0]
            .into_iter()
            .chain(description)
            .chain(nodes.iter().copied())
            .collect()
    }

    const PCI: [u8; 6] = [1, 1, 6, 0, 0, 0x14];
    const USB: [u8; 6] = [3, 5, 6, 0, 4, 0];
    const SATA: [u8; 10] = [3, 18, 10, 0, 2, 1, 0xff, 0xff, 0, 0];
    const END: [u8; 4] = [0x7f, 0xff, 4, 0];

    #[test]
    fn a_path_ends_where_the_entry_or_its_path_ends() {
        let pci = Hop::Pci { device: 20, function: 0 };
        let whole = option("Disk", &[&PCI[..], &USB, &END, &SATA].concat());
        assert_eq!(path(&whole), [pci, Hop::Usb(5)]);
        assert_eq!(path(&whole[..whole.len() - SATA.len() - END.len()]), [pci, Hop::Usb(5)]);
        assert_eq!(path(&whole[..whole.len() - SATA.len() - END.len() - 1]), [pci]);
        assert_eq!(path(&option("", &SATA)), [Hop::Sata(259)]);
    }

    #[test]
    fn nodes_of_other_kinds_are_passed_over() {
        // ACPI's root, a hard disk partition, and nodes too short for what they should hold.
        let others = [
            &[2, 1, 12, 0, 0xd0, 0x41, 3, 10, 0, 0, 0, 0][..],
            &[4, 1, 4, 0],
            &[3, 5, 4, 0],
            &[1, 1, 5, 0, 9],
        ];
        assert_eq!(path(&option("x", &[&others.concat()[..], &USB].concat())), [Hop::Usb(5)]);
        // A length within the header would never end.
        assert_eq!(path(&option("x", &[&[4, 1, 3, 0][..], &USB].concat())), []);
    }

    #[test]
    fn what_is_no_boot_entry_has_no_path() {
        for length in 0..option("Disk", &USB).len() - USB.len() {
            assert_eq!(path(&option("Disk", &USB)[..length]), [], "{length}");
        }
        assert_eq!(path(&[0x41; 4096]), [], "a description without an end");
    }

    #[test]
    fn boot_current_is_two_bytes_behind_the_attributes() {
        assert_eq!(boot_current(&[6, 0, 0, 0, 3, 1]), Some(0x103));
        assert_eq!(boot_current(&[6, 0, 0, 0, 3]), None);
        assert_eq!(boot_current(&[]), None);
    }

    fn node(hop: Hop) -> Vec<u8> {
        match hop {
            Hop::Pci { device, function } => vec![1, 1, 6, 0, function, device],
            Hop::Usb(port) => vec![3, 5, 6, 0, (port - 1) as u8, 0],
            Hop::Sata(port) => {
                [&[3, 18, 10, 0][..], &((port - 1) as u16).to_le_bytes(), &[0xff, 0xff, 0, 0]].concat()
            }
        }
    }

    proptest! {
        #[test]
        fn what_firmware_wrote_is_read(
            hops in proptest::collection::vec(prop_oneof![
                (any::<u8>(), any::<u8>()).prop_map(|(device, function)| Hop::Pci { device, function }),
                (1..=256_u32).prop_map(Hop::Usb),
                (1..=65_536_u32).prop_map(Hop::Sata),
            ], 0..9),
            description in "[^\\x00]{0,20}",
            cut in any::<prop::sample::Index>(),
        ) {
            let whole = option(&description, &hops.iter().flat_map(|hop| node(*hop)).collect::<Vec<_>>());
            prop_assert_eq!(&path(&whole), &hops);
            // A variable that is cut says less, and nothing else.
            prop_assert!(hops.starts_with(&path(&whole[..cut.index(whole.len())])));
        }
    }

    #[test]
    fn a_counted_entry_is_a_path_on_the_esp() {
        let variable = |text: &str| -> Vec<u8> {
            [6, 0, 0, 0].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect()
        };
        let found = counted_entry(&variable("\\EFI\\Linux\\cluster-os_0.1.0+2-1.efi\0"));
        assert_eq!(found.as_deref(), Some("EFI/Linux/cluster-os_0.1.0+2-1.efi"));
        for text in ["", "\0", "\\", "\\EFI\\..\\x", "EFI\\\\x", "a\tb"] {
            assert_eq!(counted_entry(&variable(text)), None, "{text:?}");
        }
        assert_eq!(counted_entry(&[6, 0, 0, 0, 0, 0xd8]), None, "half a pair");
    }
}
