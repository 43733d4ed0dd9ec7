// SPDX-License-Identifier: Apache-2.0
//! The raw image: where its configuration partition lies, and copies of it with a cluster.toml written in.
//!
//! The image that was given is never written to, nor used as a backing file: it may be rebuilt while VMs run.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cluster_agent_core::gpt::{Partition, Table};
use sha2::{Digest, Sha256};

/// GPT name of the partition that holds cluster.toml.
pub const CONFIG_PARTITION: &str = "CLUSTER-OS";

/// The partition called `name` on the raw image at `path`.
pub fn partition(path: &Path, name: &str) -> Result<Partition> {
    let file = File::open(path).with_context(|| format!("failed to open `{}`", path.display()))?;
    let table = Table::load(file.metadata()?.len(), |buffer, at| file.read_exact_at(buffer, at))
        .with_context(|| format!("`{}` is not a raw Cluster-OS image", path.display()))?;
    let found = table.named(name).cloned();
    found.with_context(|| format!("`{}` has no partition `{name}`", path.display()))
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
