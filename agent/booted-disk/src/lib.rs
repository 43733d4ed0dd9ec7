// SPDX-License-Identifier: Apache-2.0
//! Which disk the firmware booted. Two disks may carry the same image with equal UUIDs, so the UUID that the boot loader names
//! is no proof. The firmware's boot entry says where the disk is attached ([`firmware`]); the kernel says where it found each
//! ([`kernel`]). Both are told as [`Hop`]s and compared.

pub mod esp;
pub mod firmware;
pub mod kernel;

use std::fmt;

/// One step on the path from the machine to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// A PCI function.
    Pci {
        /// Its device number on the bus.
        device: u8,
        /// Its function number.
        function: u8,
    },
    /// A port of a USB controller or hub, from 1.
    Usb(u32),
    /// A port of a SATA controller, from 1.
    Sata(u32),
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci { device, function } => write!(f, "pci:{device}.{function}"),
            Self::Usb(port) => write!(f, "usb:{port}"),
            Self::Sata(port) => write!(f, "sata:{port}"),
        }
    }
}

/// A path as words, for people and for the initrd's scripts.
#[must_use]
pub fn words(path: &[Hop]) -> String {
    path.iter().map(Hop::to_string).collect::<Vec<_>>().join(" ")
}
