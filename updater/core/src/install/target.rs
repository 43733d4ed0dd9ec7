// SPDX-License-Identifier: Apache-2.0
//! Which disks may be written over.

use std::fmt;

use super::layout::MIN_DISK;

/// The only size of sectors that the image boots from.
const SECTOR: u64 = 512;

/// A disk as the kernel and its content show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// `/dev/nvme0n1`.
    pub path: String,
    /// What its maker calls it; may be empty.
    pub model: String,
    /// May be empty.
    pub serial: String,
    /// Its size.
    pub bytes: u64,
    /// Bytes of a logical sector.
    pub sector: u64,
    /// Nothing can be written to it.
    pub read_only: bool,
    /// The disk that this node runs from.
    pub is_running: bool,
    /// Who uses it or a part of it: "`/dev/sdb1` is mounted at `/mnt`".
    pub used: Vec<String>,
    /// What is on it: "a gpt partition table with 1 partition: ext4 `data`".
    pub contents: Vec<String>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path)?;
        let named: Vec<&str> =
            [self.model.as_str(), self.serial.as_str()].into_iter().filter(|text| !text.is_empty()).collect();
        if !named.is_empty() {
            write!(f, " ({})", named.join(", serial "))?;
        }
        Ok(())
    }
}

/// Why a disk is not written to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It would be written over itself.
    #[error("{0} is the disk that this node runs from: name another one (`cluster-update install --list`)")]
    Running(String),
    /// A part of a disk.
    #[error("{partition} is a partition: name the whole disk, {disk}, all of which is written over")]
    Partition {
        /// What was named.
        partition: String,
        /// What it is on.
        disk: String,
    },
    /// There is no such disk.
    #[error("{0} is not a disk that this node sees: `cluster-update install --list` names them")]
    NoDisk(String),
    /// Somebody uses it.
    #[error("{disk} is in use: {how}; nothing was written")]
    Used {
        /// The disk.
        disk: String,
        /// By whom.
        how: String,
    },
    /// A switch on the disk, or the kernel after errors.
    #[error("{0} is read-only; nothing was written")]
    ReadOnly(String),
    /// 4Kn.
    #[error(
        "{disk} has sectors of {sector} bytes, and the image boots from disks with 512-byte sectors only"
    )]
    Sectors {
        /// The disk.
        disk: String,
        /// Its sectors.
        sector: u64,
    },
    /// Not enough room.
    #[error(
        "{disk} is too small: it has {}, and {} are needed for two slots and what is in /var", gib(*has), gib(*needed)
    )]
    TooSmall {
        /// The disk.
        disk: String,
        /// Its bytes.
        has: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// Somebody may want what is on it.
    #[error("{disk} has {contents}; nothing was written. If nobody needs that, `--erase` writes over it")]
    Data {
        /// The disk.
        disk: String,
        /// What is on it.
        contents: String,
    },
}

/// Whether this node may move to the disk, which must have `needed` bytes; `erase` gives up what is on it.
///
/// # Errors
/// The first thing that speaks against it; data comes last.
pub fn judge(target: &Target, needed: u64, erase: bool) -> Result<(), Refusal> {
    let disk = target.to_string();
    if target.is_running {
        return Err(Refusal::Running(disk));
    }
    if !target.used.is_empty() {
        return Err(Refusal::Used { disk, how: target.used.join("; ") });
    }
    if target.read_only {
        return Err(Refusal::ReadOnly(disk));
    }
    if target.sector != SECTOR {
        return Err(Refusal::Sectors { disk, sector: target.sector });
    }
    let needed = needed.max(MIN_DISK);
    if target.bytes < needed {
        return Err(Refusal::TooSmall { disk, has: target.bytes, needed });
    }
    if !target.contents.is_empty() && !erase {
        return Err(Refusal::Data { disk, contents: target.contents.join("; ") });
    }
    Ok(())
}

/// `14.4 GiB`; rounded down, so that a disk that is just too small does not look large enough.
pub(super) fn gib(bytes: u64) -> String {
    format!("{}.{} GiB", bytes >> 30, (bytes % (1 << 30) * 10) >> 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Target {
        Target {
            path: "/dev/nvme0n1".into(),
            model: "Model 5".into(),
            serial: "S1".into(),
            bytes: 1 << 40,
            sector: 512,
            ..Target::default()
        }
    }

    fn refused(change: impl FnOnce(&mut Target), erase: bool) -> String {
        let mut target = empty();
        change(&mut target);
        judge(&target, 20 << 30, erase).unwrap_err().to_string()
    }

    #[test]
    fn data_is_named_and_given_up_only_when_told() {
        assert_eq!(judge(&empty(), 20 << 30, false), Ok(()));
        let with_data = |target: &mut Target| target.contents = vec!["ext4 `data`".into()];
        let why = refused(with_data, false);
        assert!(why.starts_with("/dev/nvme0n1 (Model 5, serial S1) has ext4 `data`;"), "{why}");
        let mut target = empty();
        with_data(&mut target);
        assert_eq!(judge(&target, 20 << 30, true), Ok(()));
    }

    #[test]
    fn nothing_that_is_told_makes_up_for_a_disk_in_use_or_of_the_wrong_kind() {
        for (change, word) in [
            ((|target| target.is_running = true) as fn(&mut Target), "runs from"),
            (|target| target.used = vec!["/dev/nvme0n1p1 is mounted at /mnt".into()], "mounted at /mnt"),
            (|target| target.read_only = true, "read-only"),
            (|target| target.sector = 4096, "sectors of 4096 bytes"),
            (|target| target.bytes = 16 << 30, "has 16.0 GiB, and 20.0 GiB are needed"),
        ] {
            let why = refused(change, true);
            assert!(why.contains(word), "{why}");
        }
    }
}
