// SPDX-License-Identifier: Apache-2.0
//! A folder, or a folder in one file, that holds a release or root documents: files are read through what is open, each
//! bounded.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_updater_core::{
    Signatures, TrustedRoot,
    archive::{self, Reader},
    root,
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

/// An open folder, or an archive of one. A path would be another folder where the one who opened it and the one who reads it
/// see different file systems: the daemon sees neither /tmp nor /root.
#[derive(Debug)]
pub struct Folder(Open);

#[derive(Debug)]
enum Open {
    Folder(OwnedFd),
    Archive { file: File, parts: BTreeMap<String, archive::Part> },
}

/// A file of a folder, or its place in an archive.
#[derive(Debug)]
pub struct Part {
    file: File,
    offset: u64,
    bytes: u64,
}

impl Part {
    /// A part of an open file.
    pub(crate) fn new(file: File, offset: u64, bytes: u64) -> Self {
        Self { file, offset, bytes }
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// When it ends before, or cannot be read.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(buffer, self.offset + offset)
    }
}

impl From<File> for Part {
    /// A whole file, as long as it is now.
    fn from(file: File) -> Self {
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        Self { file, offset: 0, bytes }
    }
}

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
        Ok(Self(Open::Folder(file.into())))
    }

    /// Opens a folder, or the archive of one.
    ///
    /// # Errors
    /// When it is not there or is neither.
    pub fn open_release(path: &Path) -> Result<Self> {
        // Pipes are not waited for.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
        let file = file.with_context(|| format!("failed to open `{}`", path.display()))?;
        Self::from_fd(file.into()).with_context(|| format!("failed to read `{}`", path.display()))
    }

    /// Takes one that somebody else opened.
    ///
    /// # Errors
    /// When it is neither a folder nor an archive.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let file = File::from(fd);
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Ok(Self(Open::Folder(file.into())));
        }
        ensure!(metadata.is_file(), "it is neither a folder nor a file");
        let mut reader = Reader::new(metadata.len());
        read_headers(&mut reader, &file, metadata.len())?;
        // Cut off within the header that should come next.
        ensure!(reader.wants().is_none(), "the archive was cut off after {} bytes", metadata.len());
        Ok(Self::archive(file, reader.parts().clone()))
    }

    /// An archive whose headers were read.
    #[must_use]
    pub(crate) fn archive(file: File, parts: BTreeMap<String, archive::Part>) -> Self {
        Self(Open::Archive { file, parts })
    }

    /// What is open.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        match self.0 {
            Open::Folder(fd) => fd,
            Open::Archive { file, .. } => file.into(),
        }
    }

    /// Opens a file of a folder. Links are not followed, and pipes are not waited for.
    ///
    /// # Errors
    /// When it is not there or not a regular file.
    pub fn file(&self, name: &str) -> Result<File> {
        let Open::Folder(fd) = &self.0 else { bail!("`{name}` lies in an archive") };
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path_of(fd).join(name))
            .with_context(|| format!("failed to open `{name}` of the release"))?;
        ensure!(file.metadata()?.is_file(), "`{name}` is not a regular file");
        Ok(file)
    }

    fn part(&self, name: &str) -> Result<Part> {
        let Open::Archive { file, parts } = &self.0 else { return Ok(self.file(name)?.into()) };
        let part = parts
            .get(name)
            .with_context(|| format!("failed to open `{name}` of the release: it is not in the archive"))?;
        Ok(Part { file: file.try_clone()?, offset: part.offset, bytes: part.bytes })
    }

    /// Opens a file that must have `bytes` bytes.
    ///
    /// # Errors
    /// When it is not there or has another size.
    pub fn file_of(&self, name: &str, bytes: u64) -> Result<Part> {
        let part = self.part(name)?;
        let found = part.bytes();
        ensure!(
            found == bytes,
            "`{name}` has {found} bytes and must have {bytes}: it was cut off, or is of another release"
        );
        Ok(part)
    }

    /// Reads a file of at most `limit` bytes.
    ///
    /// # Errors
    /// When it is not there or longer.
    pub fn read(&self, name: &str, limit: usize) -> Result<Vec<u8>> {
        let part = self.part(name)?;
        ensure!(part.bytes() <= limit as u64, "`{name}` is longer than {limit} bytes");
        let mut bytes = vec![0; part.bytes() as usize];
        part.read_exact_at(&mut bytes, 0).with_context(|| format!("failed to read `{name}`"))?;
        Ok(bytes)
    }

    /// Whether a file of this name is there, whatever it is.
    fn has(&self, name: &str) -> Result<bool> {
        match &self.0 {
            Open::Archive { parts, .. } => Ok(parts.contains_key(name)),
            Open::Folder(fd) => match fs::symlink_metadata(path_of(fd).join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                _ => Ok(true),
            },
        }
    }

    /// Names of its files.
    ///
    /// # Errors
    /// When it cannot be read or has too many.
    pub fn names(&self) -> Result<Vec<String>> {
        let fd = match &self.0 {
            Open::Archive { parts, .. } => return Ok(parts.keys().cloned().collect()),
            Open::Folder(fd) => fd,
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(path_of(fd)).context("failed to list the folder")? {
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
        if !self.has(&name)? {
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

fn path_of(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// Reads the headers of an archive that lie within its first `available` bytes.
pub(crate) fn read_headers(reader: &mut Reader, file: &File, available: u64) -> Result<()> {
    let mut block = [0; archive::BLOCK as usize];
    while let Some(at) = reader.wants().filter(|at| at.saturating_add(archive::BLOCK) <= available) {
        file.read_exact_at(&mut block, at).context("failed to read the archive")?;
        reader.take(&block)?;
    }
    Ok(())
}
