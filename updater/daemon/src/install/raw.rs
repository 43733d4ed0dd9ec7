// SPDX-License-Identifier: Apache-2.0
//! What of an installation goes to the new disk without a file system: the root image, and the partition table.

use anyhow::{Context as _, Result, ensure};
use cluster_updater_core::{
    Digest, Disk,
    gpt::{self, Copy},
    install::layout::Layout,
    slot::Slot,
    verity::BLOCK_BYTES,
};

use crate::writer::{are_blocks, in_pieces, read_table, running_tree};

/// Written over at both ends of the disk and of each partition: what says that there is something is kept there.
const ENDS: u64 = 2 << 20;

/// Writes over whatever says that the disk holds something, now and where the new partitions will be.
///
/// # Errors
/// When the disk cannot be written.
pub(crate) fn wipe(disk: &mut dyn Disk, layout: &Layout) -> Result<()> {
    let whole = [(0, disk.bytes())].into_iter();
    let parts = layout.table.partitions().into_iter().map(|partition| (partition.offset, partition.bytes));
    let zeros = vec![0; ENDS as usize];
    for (offset, bytes) in whole.chain(parts) {
        let length = ENDS.min(bytes);
        for at in [offset, offset + bytes - length] {
            disk.write(at, &zeros[..length as usize]).context("failed to write over what was on the disk")?;
        }
    }
    Ok(())
}

/// Copies the root image and its tree from one slot to another, every block checked before it is written.
///
/// # Errors
/// When a block is not what the tree says, or a disk fails.
pub(crate) fn write_root(
    from: (&mut dyn Disk, &Slot),
    to: (&mut dyn Disk, &Slot),
    hash: Digest,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let tree = running_tree(from.0, from.1, hash).context("the running root image cannot be checked")?;
    let total = tree.data_blocks() * BLOCK_BYTES as u64;
    ensure!(total <= from.1.data.bytes, "the running slot is smaller than its root image");
    in_pieces(total, |offset, buffer| {
        from.0.read(from.1.data.offset + offset, buffer).context("failed to read the running root image")?;
        ensure!(
            are_blocks(&tree, offset / BLOCK_BYTES as u64, buffer),
            "the running root image is damaged from byte {offset} on: update this node first, which writes the other slot"
        );
        to.0.write(to.1.data.offset + offset, buffer).context("failed to write the root image")?;
        progress(offset + buffer.len() as u64, total);
        Ok(())
    })?;
    let mut superblock = vec![0; BLOCK_BYTES];
    from.0.read(from.1.tree.offset, &mut superblock).context("failed to read the running hash tree")?;
    to.0.write(to.1.tree.offset, &superblock)
        .and_then(|()| to.0.write(to.1.tree.offset + BLOCK_BYTES as u64, tree.bytes()))
        .context("failed to write the hash tree")
}

/// Reads the root image and its tree back.
///
/// # Errors
/// When they are not those of `hash`.
pub(crate) fn check_root(
    disk: &mut dyn Disk,
    slot: &Slot,
    hash: Digest,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let tree = running_tree(disk, slot, hash).context("the hash tree cannot be read back")?;
    let total = tree.data_blocks() * BLOCK_BYTES as u64;
    in_pieces(total, |offset, buffer| {
        disk.read(slot.data.offset + offset, buffer).context("the root image cannot be read back")?;
        ensure!(
            are_blocks(&tree, offset / BLOCK_BYTES as u64, buffer),
            "the root image is not what was written to it from byte {offset} on: the new disk is failing"
        );
        progress(offset + buffer.len() as u64, total);
        Ok(())
    })
}

/// Writes all of the partition table but its headers.
///
/// # Errors
/// When the disk cannot be written.
pub(crate) fn prepare_table(disk: &mut dyn Disk, layout: &Layout) -> Result<()> {
    let protective = gpt::protective_mbr(disk.sector(), disk.bytes());
    let entries = [Copy::Backup, Copy::Primary].map(|copy| layout.table.writes(copy).swap_remove(0));
    for (offset, bytes) in [(0, protective)].into_iter().chain(entries) {
        disk.write(offset, &bytes).context("failed to write the partition table")?;
    }
    Ok(())
}

/// Writes the header of one copy: with the first, the disk has a partition table.
///
/// # Errors
/// When the disk cannot be written.
pub(crate) fn write_header(disk: &mut dyn Disk, layout: &Layout, copy: Copy) -> Result<()> {
    let (offset, header) = layout.table.writes(copy).swap_remove(1);
    disk.write(offset, &header).context("failed to write the header of the partition table")
}

/// Reads both copies back.
///
/// # Errors
/// When they are not what was written.
pub(crate) fn check_table(disk: &mut dyn Disk, layout: &Layout) -> Result<()> {
    let found = read_table(disk).context("the partition table cannot be read back")?;
    ensure!(
        found.state == gpt::State::Whole
            && found.disk() == layout.table.disk()
            && found.partitions() == layout.table.partitions(),
        "the partition table is not what was written: the new disk is failing"
    );
    Ok(())
}

/// Takes the partition table back: the disk boots nowhere when this succeeds.
///
/// # Errors
/// When the disk does not confirm it; then nobody knows.
pub(crate) fn revoke(disk: &mut dyn Disk, layout: &Layout) -> Result<()> {
    // The first header last: as long as it is there, the disk is the node.
    for copy in [Copy::Backup, Copy::Primary] {
        let (offset, header) = layout.table.writes(copy).swap_remove(1);
        disk.write(offset, &vec![0; header.len()])?;
        disk.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Write as _,
        path::{Path, PathBuf},
        process::{Command, Stdio},
    };

    use cluster_updater_core::{
        gpt::{Guid, Partition, State, Table},
        install::layout::{CONFIG, ESP, VAR, layout},
        manifest::RootImage,
        slot::{ROOT, ROOT_VERITY, Slots},
        verity::{Tree, hash_block, superblock, tree_bytes},
    };

    use super::*;
    use crate::{disk::BlockDisk, install::tools::output};

    const MIB: u64 = 1 << 20;
    /// More than one level of the tree, and no whole number of pieces.
    const BLOCKS: u64 = 333;
    const SALT: [u8; 32] = [3; 32];

    struct Lab {
        dir: tempfile::TempDir,
        old: BlockDisk,
        slots: Slots,
        hash: Digest,
        layout: Layout,
    }

    fn image() -> Vec<u8> {
        (0..BLOCKS).flat_map(|block| [(block % 251) as u8; BLOCK_BYTES]).collect()
    }

    /// A disk of `bytes` bytes, most of them holes.
    fn file(path: &Path, bytes: u64) -> BlockDisk {
        File::options().create(true).truncate(false).write(true).open(path).unwrap().set_len(bytes).unwrap();
        BlockDisk::open_to_write(path, 512).unwrap()
    }

    impl Lab {
        /// A node that runs from slot A of a disk in a file, and the layout of a disk of 6 GiB.
        fn new() -> Self {
            let image = image();
            let leaves: Vec<Digest> =
                image.chunks(BLOCK_BYTES).map(|block| hash_block(&SALT, block)).collect();
            let (tree, hash) = Tree::build(&SALT, &leaves);
            let root = RootImage {
                data_bytes: image.len() as u64,
                data_blocks: BLOCKS,
                tree_bytes: tree_bytes(BLOCKS),
                hash,
                salt: SALT,
                uuid: Guid([4; 16]),
            };
            let (data_uuid, tree_uuid) = root.partition_uuids();
            let kinds = [
                (ESP, "ESP", Guid([1; 16])),
                (CONFIG, "CLUSTER-OS", Guid([2; 16])),
                (ROOT_VERITY, "cluster-os_1.0_verity", tree_uuid),
                (ROOT, "cluster-os_1.0", data_uuid),
                (ROOT_VERITY, "_empty", Guid([5; 16])),
                (ROOT, "_empty", Guid([6; 16])),
                (VAR, "var", Guid([7; 16])),
            ];
            let partitions: Vec<Partition> = (1..)
                .zip(kinds)
                .map(|(number, (kind, name, uuid))| Partition {
                    number,
                    kind,
                    uuid,
                    offset: u64::from(number) * 4 * MIB,
                    bytes: 4 * MIB,
                    attributes: 0,
                    name: name.to_owned(),
                })
                .collect();
            let table = Table::new(512, 64 * MIB, Guid([9; 16]), &partitions);
            let slots = Slots::find(&table, &[3, 4]).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let mut old = file(&dir.path().join("old"), 64 * MIB);
            old.write(slots.active.data.offset, &image).unwrap();
            old.write(slots.active.tree.offset, &superblock(&root)).unwrap();
            old.write(slots.active.tree.offset + BLOCK_BYTES as u64, tree.bytes()).unwrap();
            let fresh = std::array::from_fn(|index| Guid([0xa0 + index as u8; 16]));
            let layout = layout(&table, &slots, 6 << 30, 512, 0, &fresh).unwrap();
            Self { dir, old, slots, hash, layout }
        }

        fn new_path(&self) -> PathBuf {
            self.dir.path().join("new")
        }

        fn new_disk(&self) -> BlockDisk {
            file(&self.new_path(), 6 << 30)
        }

        fn write_root(&mut self, disk: &mut BlockDisk) -> Result<()> {
            write_root(
                (&mut self.old, &self.slots.active),
                (disk, &self.layout.slot),
                self.hash,
                &mut |_, _| {},
            )
        }

        fn verified(&self, disk: &mut BlockDisk) -> Result<()> {
            check_root(disk, &self.layout.slot, self.hash, &mut |_, _| {})
        }
    }

    #[test]
    fn the_disk_has_no_table_before_its_header_and_then_the_one_that_sfdisk_expects() {
        let mut lab = Lab::new();
        let mut disk = lab.new_disk();
        // Somebody's: a table, and file systems where the new partitions will be.
        let mut sfdisk =
            Command::new("sfdisk").arg("-q").arg(lab.new_path()).stdin(Stdio::piped()).spawn().unwrap();
        sfdisk.stdin.take().unwrap().write_all(b"label: gpt\nsize=64MiB\nsize=1GiB\n").unwrap();
        assert!(sfdisk.wait().unwrap().success());
        assert!(read_table(&mut disk).is_ok());
        wipe(&mut disk, &lab.layout).unwrap();
        let path = lab.new_path();
        let wipefs = || output(Command::new("wipefs").arg("--no-act").arg(&path)).unwrap();
        assert_eq!(wipefs(), "");

        assert!(lab.verified(&mut disk).is_err());
        lab.write_root(&mut disk).unwrap();
        lab.verified(&mut disk).unwrap();
        prepare_table(&mut disk, &lab.layout).unwrap();
        assert!(read_table(&mut disk).is_err(), "a table without a header");
        write_header(&mut disk, &lab.layout, Copy::Primary).unwrap();
        let table = read_table(&mut disk).unwrap();
        assert_eq!((table.state, table.disk()), (State::NoBackup, lab.layout.table.disk()));
        assert!(check_table(&mut disk, &lab.layout).is_err());
        write_header(&mut disk, &lab.layout, Copy::Backup).unwrap();
        check_table(&mut disk, &lab.layout).unwrap();

        let verify = Command::new("sfdisk").arg("--verify").arg(lab.new_path()).output().unwrap();
        let said =
            String::from_utf8_lossy(&verify.stdout).into_owned() + &String::from_utf8_lossy(&verify.stderr);
        assert!(said.contains("No errors detected"), "{said}");
        let json = output(Command::new("sfdisk").arg("--json").arg(lab.new_path())).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["partitiontable"]["label"], "gpt");
        let parts = json["partitiontable"]["partitions"].as_array().unwrap();
        let names: Vec<&str> = parts.iter().map(|part| part["name"].as_str().unwrap()).collect();
        assert_eq!(
            names,
            ["ESP", "CLUSTER-OS", "cluster-os_1.0_verity", "cluster-os_1.0", "_empty", "_empty", "var"]
        );

        revoke(&mut disk, &lab.layout).unwrap();
        assert!(read_table(&mut disk).is_err(), "a table that was taken back");
        assert!(!wipefs().contains("gpt"), "{}", wipefs());
    }

    #[test]
    fn a_damaged_block_is_copied_neither_from_nor_to() {
        let mut lab = Lab::new();
        let mut disk = lab.new_disk();
        lab.write_root(&mut disk).unwrap();
        let at = 300 * BLOCK_BYTES as u64;
        disk.write(lab.layout.slot.data.offset + at, &[0xff; 512]).unwrap();
        let why = lab.verified(&mut disk).unwrap_err().to_string();
        assert!(why.contains("the new disk is failing"), "{why}");

        lab.old.write(lab.slots.active.data.offset + at, &[0xff; 512]).unwrap();
        let why = lab.write_root(&mut disk).unwrap_err().to_string();
        assert!(why.contains("the running root image is damaged"), "{why}");
    }
}
