// SPDX-License-Identifier: Apache-2.0
//! `manifest.json`: what a release is. docs/release-format.md describes it field by field.

use serde::{Deserialize, Serialize};

use crate::{
    digest::{Digest, hex},
    gpt::Guid,
    signed::SignatureError,
    uki,
    verity::{self, BLOCK_BYTES},
    version::Version,
};

/// Its file name.
pub const FILE_NAME: &str = "manifest.json";
/// Larger files are not read. Lists of blocks are files of their own, so this is all notes and components.
pub const MAX_BYTES: usize = 64 * 1024;
/// The only format there is.
pub const FORMAT: u32 = 1;
/// The only image there is.
pub const IMAGE: &str = "cluster-os";
/// The boot loader's file of x86-64.
pub const BOOT_LOADER: &str = "systemd-bootx64.efi";
/// Notes are for one screen.
const MAX_NOTES: usize = 16 * 1024;
const MAX_COMPONENTS: usize = 256;
const MAX_WORD: usize = 64;
const MAX_BOOT_LOADER: u64 = 4 << 20;

/// A release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// [`IMAGE`].
    pub image: String,
    /// Of the release.
    pub version: Version,
    /// As systemd names it: `x86-64`.
    pub architecture: String,
    /// Seconds since 1970. For people: nothing is decided by it.
    pub created: u64,
    /// The oldest version that may go to this one.
    pub minimum_version: Version,
    /// How much it hurts to wait.
    pub severity: Severity,
    /// What changed, in plain text.
    pub notes: String,
    /// Programs that people ask about.
    pub components: Vec<Component>,
    /// The root image.
    pub root: RootImage,
    /// The unified kernel image.
    pub uki: Uki,
    /// systemd-boot.
    pub boot_loader: BootLoader,
    /// Reserved for signed extensions; empty.
    pub extensions: Vec<Reserved>,
}

/// How much it hurts to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Install it when it suits.
    Normal,
    /// Install it within days.
    Important,
    /// Install it now.
    Critical,
}

/// A program and its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// Such as `linux`.
    pub name: String,
    /// Such as `6.12.57-1`.
    pub version: String,
}

/// The root image and its dm-verity tree: SHA-256, 4096-byte blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootImage {
    /// Size of the root image.
    pub data_bytes: u64,
    /// The same in blocks of 4096 bytes.
    pub data_blocks: u64,
    /// Size of the tree with its superblock.
    pub tree_bytes: u64,
    /// Root of the tree.
    pub hash: Digest,
    /// In front of every block that is hashed. All releases share one, so equal blocks have equal leaves.
    #[serde(with = "hex")]
    pub salt: [u8; 32],
    /// UUID in the superblock; means nothing, but the same bytes come out.
    pub uuid: Guid,
}

/// The unified kernel image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uki {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of its block list ([`uki::BlockList`]).
    pub blocks: Digest,
}

/// The boot loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootLoader {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: Digest,
}

/// Nothing has this type: a list of it is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reserved {}

/// Why a manifest is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Too long to be read.
    #[error("the manifest has {0} bytes, at most {MAX_BYTES} are read")]
    TooLong(usize),
    /// Not signed by enough trusted keys.
    #[error("the manifest is not accepted: {0}")]
    Signature(#[from] SignatureError),
    /// Not the JSON that it should be.
    #[error("the manifest cannot be read: {0}")]
    Json(String),
    /// Made for a newer updater.
    #[error("the manifest's format is {0}, this updater knows {FORMAT}: install a release in between first")]
    Format(u32),
    /// Contradicts itself or asks for the impossible.
    #[error("the manifest makes no sense: {0}")]
    Senseless(&'static str),
}

impl Manifest {
    pub(crate) fn check_length(bytes: &[u8]) -> Result<(), ManifestError> {
        if bytes.len() > MAX_BYTES { Err(ManifestError::TooLong(bytes.len())) } else { Ok(()) }
    }

    /// Reads a manifest without asking who signed it: for those who make and look at releases.
    /// [`crate::TrustedRoot::verify`] is for those who install them.
    ///
    /// # Errors
    /// When it is too long, cannot be read or contradicts itself.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        Self::check_length(bytes)?;
        let format = format_of(bytes).map_err(ManifestError::Json)?;
        if format != FORMAT {
            return Err(ManifestError::Format(format));
        }
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|error| ManifestError::Json(error.to_string()))?;
        manifest.makes_sense().map_err(ManifestError::Senseless)?;
        Ok(manifest)
    }

    fn makes_sense(&self) -> Result<(), &'static str> {
        let word = |text: &str| {
            !text.is_empty() && text.len() <= MAX_WORD && text.bytes().all(|c| c.is_ascii_graphic())
        };
        let root = &self.root;
        match () {
            () if self.image != IMAGE => Err("it is of another image"),
            () if !word(&self.architecture) => Err("the architecture is no word"),
            () if self.minimum_version > self.version => Err("the minimum version is newer than the release"),
            () if self.notes.len() > MAX_NOTES => Err("the notes are too long"),
            // They are printed on terminals.
            () if self.notes.chars().any(|c| c.is_control() && c != '\n') => {
                Err("the notes have control characters")
            }
            () if self.components.len() > MAX_COMPONENTS => Err("too many components"),
            () if self.components.iter().any(|part| !word(&part.name) || !word(&part.version)) => {
                Err("a component's name or version is no word")
            }
            () if !(2..=verity::MAX_DATA_BLOCKS).contains(&root.data_blocks) => {
                Err("the root image has an impossible size")
            }
            () if root.data_bytes != root.data_blocks * BLOCK_BYTES as u64 => {
                Err("size and number of blocks of the root image differ")
            }
            () if root.tree_bytes != verity::tree_bytes(root.data_blocks) => {
                Err("the hash tree is not of the root image's size")
            }
            () if !(1..=uki::MAX_BYTES).contains(&self.uki.bytes) => Err("the UKI has an impossible size"),
            () if !(1..=MAX_BOOT_LOADER).contains(&self.boot_loader.bytes) => {
                Err("the boot loader has an impossible size")
            }
            () => Ok(()),
        }
    }

    /// As it is signed: indented, with a newline at the end.
    ///
    /// # Errors
    /// When it would not be accepted.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ManifestError> {
        let mut bytes =
            serde_json::to_vec_pretty(self).map_err(|error| ManifestError::Json(error.to_string()))?;
        bytes.push(b'\n');
        Self::parse(&bytes)?;
        Ok(bytes)
    }

    /// Bytes of a release, but for its small files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.root.data_bytes
            + self.root.tree_bytes
            + self.uki.bytes
            + uki::BlockList::file_bytes(self.uki.bytes)
            + self.boot_loader.bytes
    }

    /// File names of the release, as systemd-sysupdate expects them: a partition's UUID is in its file's name.
    #[must_use]
    pub fn files(&self) -> Files {
        let (data, tree) = self.root.partition_uuids();
        let base = format!("{}_{}", self.image, self.version);
        Files {
            root: format!("{base}_{data}.root.raw"),
            tree: format!("{base}_{tree}.verity.raw"),
            uki: format!("{base}.efi"),
            uki_blocks: format!("{base}.efi.blocks"),
            boot_loader: BOOT_LOADER.to_owned(),
        }
    }
}

impl RootImage {
    /// The UUIDs of the partitions that hold image and tree: the first and the second half of the root hash
    /// (Discoverable Partitions Specification).
    #[must_use]
    pub fn partition_uuids(&self) -> (Guid, Guid) {
        let (mut data, mut tree) = ([0; 16], [0; 16]);
        data.copy_from_slice(&self.hash.0[..16]);
        tree.copy_from_slice(&self.hash.0[16..]);
        (Guid(data), Guid(tree))
    }
}

/// Names of the files of a release, besides manifest, root documents and signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Root image.
    pub root: String,
    /// Its hash tree, superblock first.
    pub tree: String,
    /// Unified kernel image.
    pub uki: String,
    /// Its block list.
    pub uki_blocks: String,
    /// systemd-boot.
    pub boot_loader: String,
}

/// The `format` of a JSON document, whatever else is in it: an unknown format must be named as such, not as a field that
/// is not known.
pub(crate) fn format_of(bytes: &[u8]) -> Result<u32, String> {
    #[derive(Deserialize)]
    struct Any {
        format: u32,
    }
    serde_json::from_slice::<Any>(bytes).map(|any| any.format).map_err(|error| error.to_string())
}
