// SPDX-License-Identifier: Apache-2.0
//! A release from a web server: its folder, or the one file. It is put together as an archive in a file without a name, which
//! is gone with this process however that ends, and is never longer than the signed manifest allows.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_updater_core::{
    Manifest, TrustedRoot, Verified,
    archive::{self, Reader},
    keys::{KeyId, SIGNATURE_BYTES},
    manifest,
    root::{self, RootDocument},
    signed::signature_name,
    uki::BlockList,
};
use nix::{libc, sys::statvfs::fstatvfs, unistd::User};
use tokio::time::sleep;

use super::{
    attempt::{Attempt, Ended},
    child::Failure,
};
use crate::{
    folder::{Folder, read_headers},
    obtain::small,
    store::ensure_room,
};

/// Who talks to web servers (mkosi.skeleton).
const USER: &str = "cluster-fetch";
/// Where the file without a name is.
const SPOOL: &str = "/var/tmp";
/// Manifest, signatures and root documents must be within the first bytes of a file, or it is fetched in vain.
const HEAD: u64 = 2 << 20;
/// Headers, and what fills blocks up.
const SLACK: u64 = 1 << 20;
/// An attempt that brought less than this is one in vain.
const PROGRESS: u64 = 64 << 10;
/// Root documents that are followed at a time.
const MAX_STEPS: usize = 64;

/// How patient it is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Attempts in vain, one after the other.
    pub tries: u32,
    /// Before the second one; doubled each time.
    pub pause: Duration,
    /// A server that says nothing for so long has gone. Whole seconds.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tries: 5, pause: Duration::from_secs(1), stall: Duration::from_secs(30) }
    }
}

/// How things are fetched.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// `cluster-update`.
    pub program: PathBuf,
    /// Whom it runs as, if not as who runs this.
    pub user: Option<(u32, u32)>,
    /// A folder on the file system that has room.
    pub spool: PathBuf,
    /// How patient it is.
    pub limits: Limits,
}

impl Fetch {
    /// As a node does it.
    ///
    /// # Errors
    /// When the user for it is missing.
    pub fn of_this_node() -> Result<Self> {
        let user = User::from_name(USER).ok().flatten();
        let user =
            user.with_context(|| format!("there is no user `{USER}` here: this is no Cluster-OS node"))?;
        Ok(Self {
            program: std::env::current_exe().context("failed to find this program")?,
            user: Some((user.uid.as_raw(), user.gid.as_raw())),
            spool: SPOOL.into(),
            limits: Limits::default(),
        })
    }

    /// Fetches the release at `url`: the folder, if it ends in `/` or in the name of a manifest, else the one file. `told` gets
    /// bytes and, once known, bytes of all.
    ///
    /// # Errors
    /// When the server does not give it, it is not signed as it must be, or is refused. Nothing is left then.
    pub async fn release(
        &self,
        url: &str,
        wanted: &Wanted<'_>,
        told: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<OwnedFd> {
        super::child::parse(url).map_err(|failure| match failure {
            Failure::Absent(text) | Failure::Again(text) | Failure::Final(text) => anyhow::Error::msg(text),
        })?;
        let spool = spool(&self.spool)?;
        let fetched = match url.strip_suffix(manifest::FILE_NAME) {
            Some(base) if base.ends_with('/') => self.folder(base, &spool, wanted, told).await,
            _ if url.ends_with('/') => self.folder(url, &spool, wanted, told).await,
            _ => self.file(url, &spool, wanted, told).await,
        };
        fetched?;
        // Whoever gets it can read it and nothing else.
        let reopened = File::open(format!("/proc/self/fd/{}", spool.as_raw_fd()));
        Ok(reopened.context("failed to open what was fetched")?.into())
    }

    /// The one file, checked as soon as the manifest has come.
    async fn file(
        &self,
        url: &str,
        spool: &File,
        wanted: &Wanted<'_>,
        told: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<()> {
        let mut reader = Reader::new(u64::MAX);
        let mut limit = None;
        let watch = &mut |got: u64, total: Option<u64>| -> Result<u64> {
            read_headers(&mut reader, spool, got)?;
            if limit.is_none() {
                let small_are_here =
                    reader.wants().is_none() || reader.parts().keys().any(|name| small(name).is_none());
                if small_are_here {
                    let manifest =
                        check(&Folder::archive(spool.try_clone()?, reader.parts().clone()), wanted)?;
                    let bytes = size(&manifest);
                    room(spool, bytes)?;
                    limit = Some(bytes + HEAD);
                } else {
                    ensure!(
                        got < HEAD,
                        "manifest, signatures and root documents are not at the beginning of the file"
                    );
                }
            }
            told(got, total);
            if let (Some(limit), Some(total)) = (limit, total) {
                ensure!(total <= limit, "the file has {total} bytes; the signed manifest allows {limit}");
            }
            Ok(limit.unwrap_or(u64::MAX))
        };
        let came = self.body(url, spool, 0, watch).await?;
        let came = came.with_context(|| format!("the server has no `{url}`"))?;
        spool.set_len(came)?;
        ensure!(limit.is_some(), "what is at `{url}` is no release");
        Ok(())
    }

    /// The folder: names follow from the keys that are trusted and from the manifest, no list is needed.
    async fn folder(
        &self,
        base: &str,
        spool: &File,
        wanted: &Wanted<'_>,
        told: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<()> {
        let mut folder = WebFolder { fetch: self, base, spool, at: 0, total: None };
        let limit = manifest::MAX_BYTES as u64;
        ensure!(
            folder.add(manifest::FILE_NAME, limit, told).await?.is_some(),
            "there is no `{base}{}`: a URL of a folder ends in `/`",
            manifest::FILE_NAME
        );
        let mut root = wanted.trusted.clone();
        for _ in 0..MAX_STEPS {
            let name = root::file_name(root.document().version.saturating_add(1));
            let Some(bytes) = folder.add(&name, root::MAX_BYTES as u64, told).await? else { break };
            let next =
                RootDocument::parse(&folder.last(bytes)?).with_context(|| format!("`{base}{name}`"))?;
            let keys = ids(root.document()).chain(ids(&next)).collect();
            folder.signatures(&name, keys, told).await?;
            root = folder.open()?.follow(root)?;
        }
        folder.signatures(manifest::FILE_NAME, ids(root.document()).collect(), told).await?;
        let manifest = check(&folder.open()?, wanted)?;
        room(spool, size(&manifest))?;
        folder.total = Some(size(&manifest));
        let files = manifest.files();
        let parts = [
            (files.tree, manifest.root.tree_bytes),
            (files.uki_blocks, BlockList::file_bytes(manifest.uki.bytes)),
            (files.boot_loader, manifest.boot_loader.bytes),
            (files.uki, manifest.uki.bytes),
            (files.root, manifest.root.data_bytes),
        ];
        for (name, bytes) in parts {
            let came = folder.add(&name, bytes, told).await?;
            let came = came.with_context(|| format!("there is no `{base}{name}`"))?;
            ensure!(came == bytes, "`{base}{name}` has {came} bytes; the signed manifest says {bytes}");
        }
        folder.end()
    }

    /// Fetches a file to `base` of the spool, and goes on where it was interrupted. `watch` gets how much came and how much it is
    /// to be, and returns how much it may be. Returns the size; none if there is no such file.
    async fn body(
        &self,
        url: &str,
        spool: &File,
        base: u64,
        watch: &mut dyn FnMut(u64, Option<u64>) -> Result<u64>,
    ) -> Result<Option<u64>> {
        let (mut got, mut best, mut vain) = (0, 0, 0);
        let mut total = None;
        loop {
            let mut attempt = Attempt { url, spool, base, got: &mut got, total: &mut total };
            let reason = match attempt.run(self, watch).await? {
                Ended::Done => return Ok(Some(got)),
                Ended::Absent => return Ok(None),
                Ended::Again(reason) => reason,
            };
            if got >= best + PROGRESS {
                vain = 0;
            }
            best = best.max(got);
            vain += 1;
            if vain >= self.limits.tries {
                let of = total.map_or_else(String::new, |total| format!(" of {total}"));
                bail!("`{url}`: {reason}; given up after {vain} attempts, {best}{of} bytes came");
            }
            tracing::debug!(url, reason, got, "asking again");
            sleep(self.limits.pause * 2u32.saturating_pow(vain - 1)).await;
        }
    }
}

/// What is wanted.
pub struct Wanted<'a> {
    /// Who may sign it.
    pub trusted: &'a TrustedRoot,
    /// Whether this node may take it: asked before anything large is fetched.
    pub accept: &'a dyn Fn(&Verified<Manifest>) -> Result<()>,
}

/// Manifest and signatures, and whether this node may take it.
fn check(folder: &Folder, wanted: &Wanted<'_>) -> Result<Verified<Manifest>> {
    let root = folder.follow(wanted.trusted.clone())?;
    let bytes = folder.read(manifest::FILE_NAME, manifest::MAX_BYTES)?;
    let manifest = root.verify(&bytes, &folder.signatures(manifest::FILE_NAME)?)?;
    (wanted.accept)(&manifest)?;
    Ok(manifest)
}

/// Bytes of its archive but for the small files.
fn size(manifest: &Manifest) -> u64 {
    manifest.bytes() + SLACK
}

/// Room for it here, and again where the updater keeps it.
fn room(spool: &File, bytes: u64) -> Result<()> {
    ensure_room(&fstatvfs(spool)?, bytes.saturating_mul(2))
}

fn ids(document: &RootDocument) -> impl Iterator<Item = KeyId> + '_ {
    document.keys.iter().map(|key| key.id)
}

/// A file that has no name: whatever happens, nothing of it stays.
fn spool(dir: &Path) -> Result<File> {
    let file = File::options().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(dir);
    file.with_context(|| format!("failed to make a file in `{}`", dir.display()))
}

/// A folder on a server that becomes an archive.
struct WebFolder<'a> {
    fetch: &'a Fetch,
    base: &'a str,
    spool: &'a File,
    /// Where the next header comes.
    at: u64,
    /// Of the whole release, once known.
    total: Option<u64>,
}

impl WebFolder<'_> {
    /// Adds a file of at most `limit` bytes; returns its size, none if the server has none of this name.
    async fn add(
        &mut self,
        name: &str,
        limit: u64,
        told: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<Option<u64>> {
        let url = format!("{}{name}", self.base);
        let (start, total) = (self.at + archive::BLOCK, self.total);
        let watch = &mut |got: u64, size: Option<u64>| -> Result<u64> {
            if let Some(size) = size {
                ensure!(size <= limit, "`{url}` has {size} bytes, and may have {limit}");
            }
            told(start + got, total);
            Ok(limit)
        };
        let Some(bytes) = self.fetch.body(&url, self.spool, start, watch).await? else { return Ok(None) };
        let header = archive::header(name, bytes).with_context(|| format!("`{name}` is too long a name"))?;
        self.spool.write_all_at(&header, self.at)?;
        self.at = start + bytes.next_multiple_of(archive::BLOCK);
        Ok(Some(bytes))
    }

    async fn signatures(
        &mut self,
        document: &str,
        mut keys: Vec<KeyId>,
        told: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<()> {
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            self.add(&signature_name(document, key), SIGNATURE_BYTES as u64, told).await?;
        }
        Ok(())
    }

    /// The file that was added last.
    fn last(&self, bytes: u64) -> io::Result<Vec<u8>> {
        let mut content = vec![0; bytes as usize];
        self.spool.read_exact_at(&mut content, self.at - bytes.next_multiple_of(archive::BLOCK))?;
        Ok(content)
    }

    fn end(&self) -> Result<()> {
        self.spool.write_all_at(&archive::END, self.at)?;
        Ok(self.spool.set_len(self.at + archive::END.len() as u64)?)
    }

    /// What there is so far.
    fn open(&self) -> Result<Folder> {
        self.end()?;
        Folder::from_fd(self.spool.try_clone()?.into())
    }
}
