// SPDX-License-Identifier: Apache-2.0
//! The partitions of the new disk: those of the running one, in the same order and of the same sizes, with `/var` on what is
//! left. The running slot keeps its labels and UUIDs, which its boot entry names; the other one is empty.

use super::target::gib;
use crate::{
    gpt::{Guid, Partition, Table},
    slot::{EMPTY, ROOT, ROOT_VERITY, Slot, Slots},
};

/// Partition type of the ESP (UEFI specification 2.10, 13.3.3).
pub const ESP: Guid = Guid(*b"\xc1\x2a\x73\x28\xf8\x1f\x11\xd2\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b");
/// Partition type of the config partition: Microsoft basic data.
pub const CONFIG: Guid = Guid(*b"\xeb\xd0\xa0\xa2\xb9\xe5\x44\x33\x87\xc0\x68\xb6\xb7\x26\x99\xc7");
/// Partition type of `/var` (Discoverable Partitions Specification).
pub const VAR: Guid = Guid(*b"\x4d\x21\xb0\x16\xb5\x34\x45\xc2\xa9\xfb\x5c\x16\xe0\x91\xfd\x2d");
/// Partitions begin at multiples of this.
const GRAIN: u64 = 1 << 20;
/// The least that `/var` gets (mkosi.extra/usr/lib/repart.d/60-var.conf).
pub const MIN_VAR: u64 = 4 << 30;
/// What sells as 16 GB: the least that Cluster-OS needs, as every text says.
pub const MIN_DISK: u64 = 14_745 << 20;
/// How many partitions a disk of ours has.
pub const PARTITIONS: usize = 7;

/// The new disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its partition table.
    pub table: Table,
    /// Holds boot loader and boot entry.
    pub esp: Partition,
    /// Holds cluster.toml.
    pub config: Partition,
    /// Gets what runs.
    pub slot: Slot,
    /// Holds what persists.
    pub var: Partition,
}

/// The running disk cannot be taken as a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// There is something else on it.
    #[error(
        "the disk that this node runs from does not have the seven partitions of Cluster-OS and no others"
    )]
    Model,
    /// `/var` would be too small.
    #[error("/var would have {} there and needs {}", gib(*has), gib(*needed))]
    TooSmall {
        /// Bytes there would be.
        has: u64,
        /// Bytes it needs.
        needed: u64,
    },
}

/// How large a disk must be, with `used` bytes in `/var`.
#[must_use]
pub fn needed(model: &Table, used: u64) -> u64 {
    let others: u64 =
        model.partitions().iter().filter(|partition| partition.kind != VAR).map(|p| up(p.bytes)).sum();
    // The first MiB, and as much for the second copy of the table.
    (GRAIN + others + var_for(used) + GRAIN).max(MIN_DISK)
}

/// Makes a layout for a disk of `bytes` bytes in sectors of `sector`. `fresh` are UUIDs that nobody has: of the disk and of each
/// partition.
///
/// # Errors
/// When `model` is no disk of Cluster-OS, or `/var` with its `used` bytes has no room.
pub fn layout(
    model: &Table,
    slots: &Slots,
    bytes: u64,
    sector: u64,
    used: u64,
    fresh: &[Guid; PARTITIONS + 1],
) -> Result<Layout, LayoutError> {
    let mut partitions = model.partitions();
    let of_kind = |kind: Guid| partitions.iter().filter(|partition| partition.kind == kind).count();
    let is_ours = partitions.len() == PARTITIONS
        && [ESP, CONFIG, VAR].map(of_kind) == [1, 1, 1]
        && [ROOT, ROOT_VERITY].map(of_kind) == [2, 2]
        && partitions.last().is_some_and(|last| last.kind == VAR);
    if !is_ours {
        return Err(LayoutError::Model);
    }
    let end = Table::new(sector, bytes, fresh[0], &[]).usable_end() / GRAIN * GRAIN;
    let mut at = GRAIN;
    for (partition, uuid) in partitions.iter_mut().zip(&fresh[1..]) {
        partition.offset = at;
        let is_running = [slots.active.data.number, slots.active.tree.number].contains(&partition.number);
        if !is_running {
            partition.uuid = *uuid;
            partition.attributes = 0;
        }
        match partition.kind {
            VAR => partition.bytes = end.saturating_sub(at),
            ROOT | ROOT_VERITY if !is_running => EMPTY.clone_into(&mut partition.name),
            _ => {}
        }
        at += up(partition.bytes);
    }
    let table = Table::new(sector, bytes, fresh[0], &partitions);
    let of_number = |number: u32| partitions.iter().find(|partition| partition.number == number).cloned();
    let only = |kind: Guid| partitions.iter().find(|partition| partition.kind == kind).cloned();
    let parts = (
        only(ESP),
        only(CONFIG),
        of_number(slots.active.data.number),
        of_number(slots.active.tree.number),
        only(VAR),
    );
    let (Some(esp), Some(config), Some(data), Some(tree), Some(var)) = parts else {
        return Err(LayoutError::Model);
    };
    let needed = var_for(used);
    if var.bytes < needed {
        return Err(LayoutError::TooSmall { has: var.bytes, needed });
    }
    Ok(Layout { table, esp, config, slot: Slot { data, tree }, var })
}

/// Room for what is in `/var`, for the tables of its file system, and for the margin of the updater.
fn var_for(used: u64) -> u64 {
    (used + used / 10 + (512 << 20)).max(MIN_VAR)
}

fn up(bytes: u64) -> u64 {
    bytes.next_multiple_of(GRAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn partition(number: u32, kind: Guid, mib: u64, name: &str) -> Partition {
        let offset = (u64::from(number) * 8) * GIB;
        let uuid = Guid([number as u8; 16]);
        Partition { number, kind, uuid, offset, bytes: mib * MIB, attributes: 1 << 60, name: name.into() }
    }

    fn model(running_first: bool) -> (Table, Slots) {
        let (a, b) = if running_first { ("cluster-os_1", EMPTY) } else { ("cluster-os_0", "cluster-os_1") };
        let partitions = [
            partition(1, ESP, 1024, "ESP"),
            partition(2, CONFIG, 64, "CLUSTER-OS"),
            partition(3, ROOT_VERITY, 64, &format!("{a}_verity")),
            partition(4, ROOT, 4096, a),
            partition(5, ROOT_VERITY, 64, &format!("{b}_verity")),
            partition(6, ROOT, 4096, b),
            partition(7, VAR, 4600, "var"),
        ];
        let table = Table::new(512, 64 * GIB, Guid([9; 16]), &partitions);
        let slots = Slots::find(&table, if running_first { &[3, 4] } else { &[5, 6] }).unwrap();
        (table, slots)
    }

    fn fresh() -> [Guid; PARTITIONS + 1] {
        std::array::from_fn(|index| Guid([0xf0 + index as u8; 16]))
    }

    #[test]
    fn the_running_slot_keeps_its_place_and_labels_and_var_gets_the_rest() {
        for running_first in [true, false] {
            let (table, slots) = model(running_first);
            let bytes = 500_107_862_016;
            let made = layout(&table, &slots, bytes, 512, 100 * MIB, &fresh()).unwrap();
            let partitions = made.table.partitions();
            assert_eq!(partitions.len(), 7);
            assert_eq!(
                (made.slot.hash(), made.slot.version()),
                (slots.active.hash(), slots.active.version())
            );
            assert_eq!(made.slot.data.attributes, slots.active.data.attributes);
            let again = Slots::find(&made.table, &[made.slot.data.number, made.slot.tree.number]).unwrap();
            assert_eq!((again.active_name, again.other.hash()), (slots.active_name, None));
            let mut at = MIB;
            for (partition, before) in partitions.iter().zip(table.partitions()) {
                assert_eq!((partition.offset, partition.kind), (at, before.kind));
                at += partition.bytes;
                let is_running = [&made.slot.data, &made.slot.tree].contains(&partition);
                assert_eq!(partition.uuid == before.uuid, is_running, "{partition:?}");
                assert!(partition.kind == VAR || partition.bytes == before.bytes);
            }
            // Nothing but the second copy of the table is behind /var.
            assert!(bytes - at < 2 * MIB && at <= made.table.usable_end(), "{at}");
            assert_eq!(made.table.disk(), Guid([0xf0; 16]));
        }
    }

    #[test]
    fn a_disk_that_var_does_not_fit_on_is_too_small() {
        let (table, slots) = model(true);
        let small = layout(&table, &slots, 13 * GIB, 512, 0, &fresh());
        assert!(matches!(small, Err(LayoutError::TooSmall { needed: MIN_VAR, .. })), "{small:?}");
        let full = layout(&table, &slots, 16 * GIB, 512, 10 * GIB, &fresh());
        assert!(matches!(full, Err(LayoutError::TooSmall { .. })), "{full:?}");
        assert_eq!(needed(&table, 0), MIN_DISK);
        let bytes = needed(&table, 10 * GIB);
        assert!(layout(&table, &slots, bytes, 512, 10 * GIB, &fresh()).is_ok());
        assert!(layout(&table, &slots, MIN_DISK / 512 * 512 + 512, 512, 0, &fresh()).is_ok());
    }

    #[test]
    fn a_disk_with_a_partition_of_somebody_else_is_no_model() {
        let (table, slots) = model(true);
        let mut partitions = table.partitions();
        partitions.push(partition(8, CONFIG, 1, "mine"));
        let other = Table::new(512, 80 * GIB, Guid([9; 16]), &partitions);
        assert_eq!(layout(&other, &slots, 500 * GIB, 512, 0, &fresh()), Err(LayoutError::Model));
    }
}
