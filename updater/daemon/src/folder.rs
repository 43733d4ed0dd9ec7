// SPDX-License-Identifier: Apache-2.0
//! A folder that holds a release or root documents: files are read through the open folder, each bounded.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_updater_core::{
    Signatures, TrustedRoot, root,
    signed::{MAX_SIGNATURES, signature_of},
};
use nix::libc;

/// More files than a release has; a folder with more than that is not one.
const MAX_FILES: usize = 1024;

/// A root document that was accepted, as it was read then: whoever keeps it must not read it again.
#[derive(Clone, Debug)]
pub struct Successor {
    /// What is trusted from it on.
    pub root: TrustedRoot,
    /// The document.
    pub bytes: Vec<u8>,
    /// Those of its predecessor's and its own keys; each was checked. Of a document that is trusted for where it lies, all.
    pub signatures: Signatures,
}

/// An open folder. A path would be another folder where the one who opened it and the one who reads it see different file
/// systems: the daemon sees neither /tmp nor /root.
#[derive(Debug)]
pub struct Folder(OwnedFd);

impl Folder {
    /// Opens a folder.
    ///
    /// # Errors
    /// When it is not there or is none.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(path)
            .with_context(|| format!("failed to open folder `{}`", path.display()))?;
        Ok(Self(file.into()))
    }

    /// Takes one that somebody else opened.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The open folder itself.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// Opens a file of it. Links are not followed, and pipes are not waited for.
    ///
    /// # Errors
    /// When it is not there or not a regular file.
    pub fn file(&self, name: &str) -> Result<File> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.path().join(name))
            .with_context(|| format!("failed to open `{name}` of the release"))?;
        ensure!(file.metadata()?.is_file(), "`{name}` is not a regular file");
        Ok(file)
    }

    /// Opens a file that must have `bytes` bytes.
    ///
    /// # Errors
    /// When it is not there or has another size.
    pub fn file_of(&self, name: &str, bytes: u64) -> Result<File> {
        let file = self.file(name)?;
        let found = file.metadata()?.len();
        ensure!(
            found == bytes,
            "`{name}` has {found} bytes and must have {bytes}: it was cut off, or is of another release"
        );
        Ok(file)
    }

    /// Reads a file of at most `limit` bytes.
    ///
    /// # Errors
    /// When it is not there or longer.
    pub fn read(&self, name: &str, limit: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file(name)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        ensure!(bytes.len() <= limit, "`{name}` is longer than {limit} bytes");
        Ok(bytes)
    }

    /// Names of its files.
    ///
    /// # Errors
    /// When it cannot be read or has too many.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path()).context("failed to list the folder")? {
            names.extend(entry?.file_name().into_string().ok());
            ensure!(names.len() <= MAX_FILES, "the folder has more than {MAX_FILES} files: it is no release");
        }
        names.sort();
        Ok(names)
    }

    /// The signatures that lie beside `document`.
    ///
    /// # Errors
    /// When one cannot be read or is no signature.
    pub fn signatures(&self, document: &str) -> Result<Signatures> {
        let mut signatures = Signatures::new();
        for name in self.names()? {
            let Some(key) = signature_of(document, &name) else { continue };
            ensure!(
                signatures.len() < MAX_SIGNATURES,
                "more than {MAX_SIGNATURES} signatures of `{document}`"
            );
            let bytes = self.read(&name, cluster_updater_core::keys::SIGNATURE_BYTES)?;
            let Ok(signature) = bytes.try_into() else {
                bail!("`{name}` is no signature: it must have 64 bytes")
            };
            signatures.insert(key, signature);
        }
        Ok(signatures)
    }

    /// The newest root document in a folder that is trusted, such as the image's own.
    ///
    /// # Errors
    /// When there is none or it is not signed by its own keys.
    pub fn anchor(&self) -> Result<TrustedRoot> {
        Ok(self.anchor_document()?.root)
    }

    /// The same as it lies there, with all signatures beside it.
    ///
    /// # Errors
    /// Those of [`Self::anchor`].
    pub fn anchor_document(&self) -> Result<Successor> {
        let versions = self
            .names()?
            .into_iter()
            .filter_map(|name| name.strip_prefix("root.")?.strip_suffix(".json")?.parse::<u32>().ok());
        let version = versions.max().context("the folder has no root document (`root.1.json`)")?;
        let name = root::file_name(version);
        let bytes = self.read(&name, root::MAX_BYTES)?;
        let signatures = self.signatures(&name)?;
        let root =
            TrustedRoot::anchor(&bytes, &signatures).with_context(|| format!("failed to accept `{name}`"))?;
        Ok(Successor { root, bytes, signatures })
    }

    /// Follows the root documents in this folder from `trusted` on. The folder need not be trusted.
    ///
    /// # Errors
    /// When the next one is there and is not accepted.
    pub fn follow(&self, trusted: TrustedRoot) -> Result<TrustedRoot> {
        let last = self.successors(&trusted)?.pop();
        Ok(last.map_or(trusted, |last| last.root))
    }

    /// The same, step by step.
    ///
    /// # Errors
    /// When the next one is there and is not accepted.
    pub fn successors(&self, trusted: &TrustedRoot) -> Result<Vec<Successor>> {
        match self.successors_far(trusted) {
            (steps, None) => Ok(steps),
            (_, Some(error)) => Err(error),
        }
    }

    /// As far as they are accepted, and why not further.
    #[must_use]
    pub fn successors_far(&self, trusted: &TrustedRoot) -> (Vec<Successor>, Option<anyhow::Error>) {
        let mut steps: Vec<Successor> = Vec::new();
        loop {
            match self.successor(steps.last().map_or(trusted, |last| &last.root)) {
                Ok(Some(next)) => steps.push(next),
                Ok(None) => return (steps, None),
                Err(error) => return (steps, Some(error)),
            }
        }
    }

    fn successor(&self, trusted: &TrustedRoot) -> Result<Option<Successor>> {
        let name = root::file_name(trusted.document().version.saturating_add(1));
        let found = fs::symlink_metadata(self.path().join(&name));
        if found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        let bytes = self.read(&name, root::MAX_BYTES)?;
        let mut signatures = self.signatures(&name)?;
        let root =
            trusted.advance(&bytes, &signatures).with_context(|| format!("failed to accept `{name}`"))?;
        let mut count = trusted.signers(&bytes, &signatures);
        count.extend(root.signers(&bytes, &signatures));
        signatures.retain(|key, _| count.contains(key));
        Ok(Some(Successor { root, bytes, signatures }))
    }

    /// Root documents up to version `newest`, and their signatures. What lies there beyond nobody has checked.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn root_files(&self, newest: u32) -> Result<Vec<String>> {
        let names = self.names()?;
        let mut files = Vec::new();
        for document in &names {
            let version = document.strip_prefix("root.").and_then(|rest| rest.strip_suffix(".json"));
            let Some(version) = version.and_then(|version| version.parse::<u32>().ok()) else { continue };
            if version <= newest && root::file_name(version) == *document {
                files.push(document.clone());
                let signatures = names.iter().filter(|name| signature_of(document, name).is_some());
                files.extend(signatures.take(MAX_SIGNATURES).cloned());
            }
        }
        Ok(files)
    }
}
