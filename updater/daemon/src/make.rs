// SPDX-License-Identifier: Apache-2.0
//! Making a release on a PC: the manifest of a folder of files, root documents, signatures.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_updater_core::{
    Digest, Manifest, TrustedRoot, Version,
    gpt::Guid,
    keys::{PublicKey, SecretKey},
    manifest::{self, BootLoader, Component, RootImage, Severity, Uki},
    root::{self, RootDocument},
    signed::signature_name,
    uki::BlockList,
    verity::{self, BLOCK_BYTES, Tree, hash_block},
};

use crate::{folder::Folder, store::write_synced, writer::in_pieces};

/// What a manifest says beyond the files themselves.
#[derive(Clone, Debug)]
pub struct About {
    /// Of the release.
    pub version: Version,
    /// The oldest version that may go to it.
    pub minimum_version: Version,
    /// As systemd names it.
    pub architecture: String,
    /// Seconds since 1970.
    pub created: u64,
    /// How much it hurts to wait.
    pub severity: Severity,
    /// What changed.
    pub notes: String,
    /// Programs that people ask about.
    pub components: Vec<Component>,
}

/// The files that a build made.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Root image.
    pub root: PathBuf,
    /// Its hash partition, superblock first; may be longer than the tree.
    pub tree: PathBuf,
    /// Unified kernel image.
    pub uki: PathBuf,
    /// systemd-boot.
    pub boot_loader: PathBuf,
}

/// Writes the release made of `parts` to the folder `to`: its files under their names, and `manifest.json`.
///
/// # Errors
/// When the parts do not belong together or cannot be copied.
pub fn release(parts: &Parts, about: About, to: &Path) -> Result<Manifest> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("failed to read `{}`", path.display()));
    let (root, tree) = root_image(parts, &about.version)?;
    let uki = read(&parts.uki)?;
    // The UKI says which root is opened: one of another build would boot the wrong slot, or none.
    let word = format!("roothash={}", root.hash);
    ensure!(
        uki.windows(word.len()).any(|window| window == word.as_bytes()),
        "`{}` does not have `{word}` on its command line: UKI and root image are of different builds",
        parts.uki.display()
    );
    // A node knows what runs by os-release, and the boot loader's menu by the UKI's copy of it.
    ensure!(
        names_version(&uki, &about.version),
        "`{}` has no IMAGE_VERSION of {}: it is of another version, or of no image of ours",
        parts.uki.display(),
        about.version
    );
    let list = BlockList::of(&uki).to_bytes();
    let loader = read(&parts.boot_loader)?;
    let manifest = Manifest {
        format: manifest::FORMAT,
        image: manifest::IMAGE.to_owned(),
        version: about.version,
        architecture: about.architecture,
        created: about.created,
        minimum_version: about.minimum_version,
        severity: about.severity,
        notes: about.notes,
        components: about.components,
        root,
        uki: Uki { bytes: uki.len() as u64, blocks: Digest::of(&list) },
        boot_loader: BootLoader { bytes: loader.len() as u64, sha256: Digest::of(&loader) },
        extensions: Vec::new(),
    };
    let bytes = manifest.to_bytes()?;
    let files = manifest.files();
    fs::create_dir_all(to).with_context(|| format!("failed to make `{}`", to.display()))?;
    fs::copy(&parts.root, to.join(&files.root))
        .with_context(|| format!("failed to copy `{}`", parts.root.display()))?;
    write_synced(&to.join(&files.tree), &[&verity::superblock(&manifest.root)[..], tree.bytes()].concat())?;
    write_synced(&to.join(&files.uki), &uki)?;
    write_synced(&to.join(&files.uki_blocks), &list)?;
    write_synced(&to.join(&files.boot_loader), &loader)?;
    write_synced(&to.join(manifest::FILE_NAME), &bytes)?;
    Ok(manifest)
}

/// Whether there is a line of os-release that says so, with or without quotes. The file is smaller than a block, and so
/// neither compressed nor cut in the image.
fn names_version(bytes: &[u8], version: &Version) -> bool {
    let key = b"IMAGE_VERSION=";
    let (plain, quoted) = (format!("{version}\n"), format!("\"{version}\"\n"));
    let mut rest = bytes;
    // Not window by window: an image has hundreds of millions of them.
    while let Some(at) = rest.iter().position(|byte| *byte == key[0]) {
        rest = &rest[at..];
        if let Some(value) = rest.strip_prefix(key)
            && (value.starts_with(plain.as_bytes()) || value.starts_with(quoted.as_bytes()))
        {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// Reads the root image and builds its tree; it must be the one that the build made.
fn root_image(parts: &Parts, version: &Version) -> Result<(RootImage, Tree)> {
    let open = |path: &Path| File::open(path).with_context(|| format!("failed to open `{}`", path.display()));
    let (data, hashes) = (open(&parts.root)?, open(&parts.tree)?);
    let mut superblock = [0; BLOCK_BYTES];
    hashes.read_exact_at(&mut superblock, 0)?;
    let Some((data_blocks, salt, uuid)) = verity::read_superblock(&superblock) else {
        bail!(
            "`{}` does not begin with a dm-verity superblock of SHA-256 and 4096-byte blocks",
            parts.tree.display()
        )
    };
    let data_bytes = data_blocks * BLOCK_BYTES as u64;
    ensure!(data.metadata()?.len() >= data_bytes, "`{}` is shorter than its tree says", parts.root.display());
    ensure!(data.metadata()?.len() == data_bytes, "`{}` is longer than its tree says", parts.root.display());
    let mut leaves = Vec::with_capacity(data_blocks as usize);
    let mut named = false;
    in_pieces(data_bytes, |offset, buffer| {
        data.read_exact_at(buffer, offset)?;
        named = named || buffer.chunks(BLOCK_BYTES).any(|block| names_version(block, version));
        leaves.extend(buffer.chunks(BLOCK_BYTES).map(|block| hash_block(&salt, block)));
        Ok(())
    })?;
    let (tree, hash) = Tree::build(&salt, &leaves);
    let mut built = vec![0; tree.bytes().len()];
    hashes.read_exact_at(&mut built, BLOCK_BYTES as u64)?;
    ensure!(
        built == tree.bytes(),
        "`{}` is not the tree of `{}`",
        parts.tree.display(),
        parts.root.display()
    );
    ensure!(
        named,
        "`{}` has no IMAGE_VERSION of {version} in os-release: it is of another version",
        parts.root.display()
    );
    let tree_bytes = verity::tree_bytes(data_blocks);
    Ok((RootImage { data_bytes, data_blocks, tree_bytes, hash, salt, uuid: Guid(uuid) }, tree))
}

/// Writes the next root document to the folder `dir`: version 1, or the successor of the newest one there.
///
/// # Errors
/// When the signing keys are not enough for its predecessor and itself, or it cannot be written.
pub fn next_root(
    dir: &Path,
    keys: &[PublicKey],
    threshold: u32,
    development: bool,
    signers: &[SecretKey],
) -> Result<TrustedRoot> {
    fs::create_dir_all(dir).with_context(|| format!("failed to make `{}`", dir.display()))?;
    let folder = Folder::open(dir)?;
    let before = if folder.root_files(u32::MAX)?.is_empty() { None } else { Some(folder.anchor()?) };
    let document = RootDocument {
        format: root::FORMAT,
        version: before.as_ref().map_or(1, |before| before.document().version + 1),
        development,
        threshold,
        keys: keys.iter().copied().map(Into::into).collect(),
    };
    let mut bytes = serde_json::to_vec_pretty(&document)?;
    bytes.push(b'\n');
    let signatures = signers.iter().map(|key| (key.public().id(), key.sign(&bytes))).collect();
    let trusted = match &before {
        Some(before) => before.advance(&bytes, &signatures)?,
        None => TrustedRoot::anchor(&bytes, &signatures)?,
    };
    let name = root::file_name(document.version);
    for (key, signature) in &signatures {
        write_synced(&dir.join(signature_name(&name, *key)), signature)?;
    }
    write_synced(&dir.join(&name), &bytes)?;
    Ok(trusted)
}

/// Signs a file: the signature lies beside it. Returns its path.
///
/// # Errors
/// When the file cannot be read or the signature not written.
pub fn sign(path: &Path, key: &SecretKey) -> Result<PathBuf> {
    let bytes = fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
    let name = path.file_name().and_then(|name| name.to_str()).context("the file has no name")?;
    let signature = path.with_file_name(signature_name(name, key.public().id()));
    write_synced(&signature, &key.sign(&bytes))?;
    Ok(signature)
}

/// Reads a private key.
///
/// # Errors
/// When it is not there or none.
pub fn secret_key(path: &Path) -> Result<SecretKey> {
    let text =
        fs::read_to_string(path).with_context(|| format!("failed to read key `{}`", path.display()))?;
    SecretKey::from_pem(&text).with_context(|| format!("`{}`", path.display()))
}

/// Reads a public key, or the public half of a private one.
///
/// # Errors
/// When it is not there or none.
pub fn public_key(path: &Path) -> Result<PublicKey> {
    let text =
        fs::read_to_string(path).with_context(|| format!("failed to read key `{}`", path.display()))?;
    PublicKey::from_pem(&text)
        .or_else(|error| SecretKey::from_pem(&text).map(|key| key.public()).map_err(|_| error))
        .with_context(|| format!("`{}`", path.display()))
}
