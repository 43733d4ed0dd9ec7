// SPDX-License-Identifier: Apache-2.0
//! Where the kernel found a disk, from the names in its path in sysfs.

use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::Hop;

/// How Linux and the firmware number the ports of a USB controller. Linux numbers its USB 2 ports and its USB 3 ports from 1 each,
/// firmware numbers all in one sequence, one kind behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// This disk's kind is the first.
    First,
    /// This disk's kind is the second: the ports of the other are in front.
    Second,
}

/// A name in a path below `/sys/devices`, as far as it says where a disk is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// `0000:00:14.0`
    Pci {
        /// Its device number on the bus.
        device: u8,
        /// Its function number.
        function: u8,
    },
    /// `usb2`: the root hub of one kind of ports of a controller.
    RootHub,
    /// `2-1` or, behind a hub, `2-1.4`.
    Usb {
        /// Its port, from 1.
        port: u32,
        /// Whether that is a port of a hub and not of the controller.
        behind_hub: bool,
    },
    /// `ata3`
    Ata,
}

impl Name {
    /// Reads a name; `None` for all others.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if name.strip_prefix("usb").is_some_and(digits) {
            return Some(Self::RootHub);
        }
        if name.strip_prefix("ata").is_some_and(digits) {
            return Some(Self::Ata);
        }
        if let Some((bus, ports)) = name.split_once('-') {
            // An interface of a device (`2-1:1.0`) is no port.
            return (digits(bus) && ports.split('.').all(digits))
                .then_some(())
                .and_then(|()| ports.rsplit('.').next()?.parse().ok())
                .map(|port| Self::Usb { port, behind_hub: ports.contains('.') });
        }
        let hex = |text: &str, lengths: std::ops::RangeInclusive<usize>| {
            lengths.contains(&text.len())
                && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let (domain, rest) = name.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        if !(hex(domain, 4..=8)
            && hex(bus, 2..=2)
            && hex(device, 2..=2)
            && matches!(function.as_bytes(), [b'0'..=b'7']))
        {
            return None;
        }
        Some(Self::Pci { device: u8::from_str_radix(device, 16).ok()?, function: function.parse().ok()? })
    }
}

/// The path to the disk at `devpath` (udev's `DEVPATH`) of the kernel below `sys`.
#[must_use]
pub fn path(sys: &Path, devpath: &str, ports: Ports) -> Vec<Hop> {
    let block = sys.join(devpath.trim_start_matches('/'));
    let mut device = fs::canonicalize(block.join("device")).unwrap_or(block);
    // With NVMe multipath the disk is below a virtual subsystem: one of its controllers says where it is.
    if device.to_string_lossy().contains("/virtual/nvme-subsystem/")
        && let Some(controller) = entries(&device).into_iter().find(|entry| is_controller(entry))
    {
        device = fs::canonicalize(&controller).unwrap_or(device);
    }
    let sys = fs::canonicalize(sys).unwrap_or_else(|_| sys.to_owned());
    let (mut path, mut walked, mut in_front) = (Vec::new(), sys.clone(), 0);
    for part in device.strip_prefix(&sys).unwrap_or(&device).components() {
        let Component::Normal(part) = part else { continue };
        walked.push(part);
        match part.to_str().and_then(Name::parse) {
            Some(Name::Pci { device, function }) => path.push(Hop::Pci { device, function }),
            Some(Name::RootHub) if ports == Ports::Second => in_front = ports_of_others(&walked),
            // Behind a hub both count that hub's ports.
            Some(Name::Usb { port, behind_hub: true }) => path.push(Hop::Usb(port)),
            Some(Name::Usb { port, behind_hub: false }) => path.push(Hop::Usb(port.saturating_add(in_front))),
            Some(Name::Ata) => {
                path.extend(number(&walked.join("ata_port").join(part).join("port_no")).map(Hop::Sata))
            }
            Some(Name::RootHub) | None => {}
        }
    }
    path
}

/// How many ports the other root hubs of this one's controller have.
fn ports_of_others(hub: &Path) -> u32 {
    let siblings = hub.parent().map(entries).unwrap_or_default();
    let others = siblings.iter().filter(|entry| *entry != hub && name(entry) == Some(Name::RootHub));
    others.filter_map(|entry| number(&entry.join("maxchild"))).fold(0, u32::saturating_add)
}

fn is_controller(entry: &Path) -> bool {
    let name = entry.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix("nvme").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        && entry.join("device").exists()
}

fn name(entry: &Path) -> Option<Name> {
    Name::parse(entry.file_name()?.to_str()?)
}

/// What is in a folder, sorted.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    entries.sort();
    entries
}

fn number(file: &Path) -> Option<u32> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_where_a_disk_is_attached() {
        for (name, read) in [
            ("0000:00:14.0", Some(Name::Pci { device: 0x14, function: 0 })),
            ("10000:e1:00.7", Some(Name::Pci { device: 0, function: 7 })),
            ("usb2", Some(Name::RootHub)),
            ("2-1", Some(Name::Usb { port: 1, behind_hub: false })),
            ("2-1.4", Some(Name::Usb { port: 4, behind_hub: true })),
            ("12-10.3.11", Some(Name::Usb { port: 11, behind_hub: true })),
            ("ata3", Some(Name::Ata)),
        ] {
            assert_eq!(Name::parse(name), read, "{name}");
        }
    }

    #[test]
    fn other_names_say_nothing() {
        for name in [
            "",
            "pci0000:00",
            "0000:00:14.8",
            "0000:00:1g.0",
            "000:00:14.0",
            "0000:00:14",
            "usb",
            "usbx",
            "2-1:1.0",
            "2-",
            "-1",
            "2-1.",
            "2-.1",
            "2-99999999999",
            "ata",
            "ata3x",
            "host2",
            "target2:0:0",
            "2:0:0:0",
            "nvme0",
            "virtio2",
        ] {
            assert_eq!(Name::parse(name), None, "{name}");
        }
    }
}
