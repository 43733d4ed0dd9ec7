// SPDX-License-Identifier: Apache-2.0
//! The raw image: where its configuration partition lies, and copies of it with a cluster.toml written in.
//!
//! The image that was given is never written to, nor used as a backing file: it may be rebuilt while VMs run.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// GPT name of the partition that holds cluster.toml.
pub const CONFIG_PARTITION: &str = "CLUSTER-OS";

const SECTOR: u64 = 512;

/// A partition of a GPT disk; offsets and lengths in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// GPT name (label).
    pub name: String,
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// The partitions of the raw image at `path` (UEFI 2.10, section 5.3).
pub fn partitions(path: &Path) -> Result<Vec<Partition>> {
    let mut file = File::open(path).with_context(|| format!("failed to open `{}`", path.display()))?;
    read_partitions(&mut file).with_context(|| format!("`{}` is not a raw Cluster-OS image", path.display()))
}

/// The partition called `name` on the raw image at `path`.
pub fn partition(path: &Path, name: &str) -> Result<Partition> {
    partitions(path)?
        .into_iter()
        .find(|partition| partition.name == name)
        .with_context(|| format!("`{}` has no partition `{name}`", path.display()))
}

fn read_partitions(disk: &mut (impl Read + Seek)) -> Result<Vec<Partition>> {
    let mut header = [0; 92];
    disk.seek(SeekFrom::Start(SECTOR))?;
    disk.read_exact(&mut header).context("too short for a partition table")?;
    ensure!(header.starts_with(b"EFI PART"), "no GPT in the second sector");
    let u32_at =
        |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
    let u64_at =
        |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    let (table, count, size) = (u64_at(&header, 72), u32_at(&header, 80), u32_at(&header, 84) as usize);
    ensure!((128..=4096).contains(&size) && count <= 1024, "GPT with entries of {size} bytes");
    disk.seek(SeekFrom::Start(table.checked_mul(SECTOR).context("GPT table out of range")?))?;
    let mut partitions = Vec::new();
    let mut entry = vec![0; size];
    for _ in 0..count {
        disk.read_exact(&mut entry).context("GPT is cut off")?;
        let (first, last) = (u64_at(&entry, 32), u64_at(&entry, 40));
        if entry[..16] == [0; 16] || last < first {
            continue;
        }
        let name: Vec<u16> = entry[56..128]
            .chunks(2)
            .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
            .take_while(|c| *c != 0)
            .collect();
        let (offset, length) = (first.checked_mul(SECTOR), (last - first + 1).checked_mul(SECTOR));
        let (Some(offset), Some(length)) = (offset, length) else { bail!("GPT entry out of range") };
        partitions.push(Partition { name: String::from_utf16_lossy(&name), offset, length });
    }
    Ok(partitions)
}

/// A copy of `image` below `folder` with `cluster_toml` on its configuration partition (none: as it is). One copy per
/// distinct image and file; it is made once and shared by VMs.
pub fn base(image: &Path, cluster_toml: Option<&str>, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(format!("{}.raw", fingerprint(image, cluster_toml)?));
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
    let temporary = folder.join("new.raw");
    run(Command::new("cp").args(["--reflink=auto", "--sparse=always", "--"]).arg(image).arg(&temporary))
        .with_context(|| format!("failed to copy `{}`", image.display()))?;
    if let Some(text) = cluster_toml {
        write_config(&temporary, text)?;
    }
    fs::rename(&temporary, &path)?;
    Ok(path)
}

/// Writes cluster.toml to the configuration partition of the raw image at `path`.
pub fn write_config(path: &Path, cluster_toml: &str) -> Result<()> {
    let offset = partition(path, CONFIG_PARTITION)?.offset;
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(cluster_toml.as_bytes())?;
    file.flush()?;
    run(Command::new("mcopy")
        .arg("-o")
        .arg("-i")
        .arg(format!("{}@@{offset}", path.display()))
        .arg(file.path())
        .arg("::cluster.toml"))
    .with_context(|| format!("failed to write cluster.toml into `{}`", path.display()))
}

/// Equal for the same image file (path, size, time of change) and the same cluster.toml.
fn fingerprint(image: &Path, cluster_toml: Option<&str>) -> Result<String> {
    let path = fs::canonicalize(image).with_context(|| format!("there is no image `{}`", image.display()))?;
    let metadata = fs::metadata(&path)?;
    let mut hash = Sha256::new();
    hash.update(format!("{}\n{}\n{:?}\n", path.display(), metadata.len(), metadata.modified()?));
    hash.update(format!("{cluster_toml:?}"));
    Ok(hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}

/// Runs a tool; its standard error becomes the error.
pub fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("failed to run `{name}`: is it installed?"))?;
    ensure!(
        output.status.success(),
        "`{name}` failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn disk(entries: &[(&str, u64, u64)]) -> Vec<u8> {
        let mut disk = vec![0; 34 * 512];
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72..512 + 80].copy_from_slice(&2u64.to_le_bytes());
        disk[512 + 80..512 + 84].copy_from_slice(&128u32.to_le_bytes());
        disk[512 + 84..512 + 88].copy_from_slice(&128u32.to_le_bytes());
        for (n, (name, first, last)) in entries.iter().enumerate() {
            let entry = &mut disk[1024 + n * 128..1024 + (n + 1) * 128];
            entry[0] = 1;
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            for (i, unit) in name.encode_utf16().enumerate() {
                entry[56 + 2 * i..58 + 2 * i].copy_from_slice(&unit.to_le_bytes());
            }
        }
        disk
    }

    #[test]
    fn finds_partitions_by_name() {
        let found =
            read_partitions(&mut Cursor::new(disk(&[("esp", 2048, 4095), ("CLUSTER-OS", 4096, 8191)])));
        let found = found.expect("a GPT");
        assert_eq!(found[1], Partition { name: "CLUSTER-OS".into(), offset: 4096 * 512, length: 4096 * 512 });
    }

    #[test]
    fn refuses_what_is_no_gpt() {
        assert!(read_partitions(&mut Cursor::new(vec![0; 4096])).is_err());
        assert!(read_partitions(&mut Cursor::new(vec![0; 100])).is_err());
        let mut cut = disk(&[]);
        cut.truncate(2048);
        assert!(read_partitions(&mut Cursor::new(cut)).is_err());
        let mut huge = disk(&[]);
        huge[512 + 72..512 + 80].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(read_partitions(&mut Cursor::new(huge)).is_err());
    }
}
