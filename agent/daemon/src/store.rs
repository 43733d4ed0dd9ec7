// SPDX-License-Identifier: Apache-2.0
//! The agent's files in its state directory: whole, checked, and on disk before anybody is told.
//!
//! Every record is one file: magic, format version, SHA-256 of the payload, payload. It is written under a temporary
//! name, flushed, renamed, and the directory is flushed, so a power cut leaves the old record or the new one. What can
//! still happen is a lying or dying disk; the checksum makes that a named damage instead of a strange node.
//!
//! A record whose loss would make another node of this one is kept twice ([`Keep::Twice`]): a single bad block then
//! costs nothing. What to do when no copy is whole is the core's decision: it is given the damaged bytes, tells them
//! apart by their first byte, keeps them aside, and never makes a new identity silently for a node that was admitted.
//!
//! Writing is slow and may fail (a full disk), so a [`Writer`] thread does it and tells the outcome of every request.
//! A newer version of a record replaces one still waiting.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc as std_mpsc,
    thread,
};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use tokio::sync::mpsc;
use tracing::{debug, warn};

const MAGIC: &[u8; 4] = b"COSR";
const FORMAT: u8 = 1;
const HEADER: usize = 4 + 1 + 32;
/// No record comes near; a file that does is damage, not data.
const MAX_RECORD: u64 = 16 << 20;
/// How many copies of a record there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// One file.
    Once,
    /// A second file beside it (`NAME.copy`), read when the first is damaged or gone.
    Twice,
}

/// Why a record could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file is there but not what was written.
    #[error("`{path}` is damaged: {reason}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
        /// The whole file as it is.
        bytes: Vec<u8>,
    },
    /// The disk would not give it.
    #[error("failed to read `{path}`")]
    Io {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A state directory.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Makes the directory (0700) if need be and clears what an interrupted write left. A directory that cannot be written now is
    /// fine: every write tells so.
    ///
    /// # Errors
    /// When the directory can be neither made nor listed, or others may read it and that cannot be changed.
    pub fn open(dir: &Path) -> Result<Self> {
        let shown = dir.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("failed to make the state directory `{shown}`"))?;
        let mode =
            fs::metadata(dir).with_context(|| format!("failed to look at `{shown}`"))?.permissions().mode();
        if mode & 0o7777 != 0o700 {
            fs::set_permissions(dir, Permissions::from_mode(0o700))
                .with_context(|| format!("failed to make `{shown}` private"))?;
        }
        let entries = fs::read_dir(dir).with_context(|| format!("failed to list `{shown}`"))?;
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().ends_with(".tmp") {
                // Never renamed, so never promised to anybody. One that cannot be removed is in nobody's way.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Reads a record; `None` when it was never written.
    ///
    /// # Errors
    /// [`ReadError`] when there is a file and no copy of it is whole.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ReadError> {
        let first = read_checked(&self.dir.join(name));
        if matches!(first, Ok(Some(_))) {
            return first;
        }
        match read_checked(&self.copy_of(name)) {
            Ok(Some(payload)) => Ok(Some(payload)),
            // No second copy: the first one's verdict stands.
            Ok(None) => first,
            Err(copy) => first.and(Err(copy)),
        }
    }

    /// Reads a record. One that is kept twice and of which only one copy is whole, or whose copies differ, is written again, so
    /// that the next damage finds two.
    ///
    /// # Errors
    /// As [`Store::read`].
    pub fn recover(&self, name: &str, keep: Keep) -> Result<Option<Vec<u8>>, ReadError> {
        let read = self.read(name)?;
        let Some(payload) = read.as_deref().filter(|_| keep == Keep::Twice) else { return Ok(read) };
        let is_same = |path: &PathBuf| matches!(read_checked(path), Ok(Some(other)) if other == payload);
        if ![self.dir.join(name), self.copy_of(name)].iter().all(is_same) {
            match self.write(name, keep, payload) {
                Ok(()) => {
                    warn!(name, "only one copy of a state file was good: both are again; check the disk")
                }
                Err(error) => {
                    warn!(name, error = format!("{error:#}"), "a state file has one good copy only")
                }
            }
        }
        Ok(read)
    }

    /// Moves a record that cannot be read out of the way, so that nothing is written over it.
    pub fn set_aside(&self, name: &str) {
        for path in [self.dir.join(name), self.copy_of(name)] {
            let mut aside = path.clone().into_os_string();
            aside.push(".unreadable");
            if let Err(error) = fs::rename(&path, &aside) {
                debug!(path = %path.display(), %error, "not set aside");
            }
        }
    }

    /// Writes a record, on disk when this returns.
    ///
    /// # Errors
    /// When any step fails; the record is then the old one or the new one, whole.
    pub fn write(&self, name: &str, keep: Keep, payload: &[u8]) -> Result<()> {
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend_from_slice(MAGIC);
        bytes.push(FORMAT);
        bytes.extend_from_slice(&Sha256::digest(payload));
        bytes.extend_from_slice(payload);
        put_in_place(&self.dir.join(name), &bytes, 0o600)?;
        if keep == Keep::Twice {
            // Whole before either name is, so whichever of the two a power cut keeps can be read.
            put_in_place(&self.copy_of(name), &bytes, 0o600)?;
        }
        flush_dir_of(&self.dir.join(name))
    }

    /// The last good `cluster.toml`, plain text so that a person can read it.
    #[must_use]
    pub fn path_of(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    fn copy_of(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.copy"))
    }
}

fn read_checked(path: &Path) -> Result<Option<Vec<u8>>, ReadError> {
    let io_error = |source| ReadError::Io { path: path.to_owned(), source };
    let damaged = |reason, bytes| Err(ReadError::Damaged { path: path.to_owned(), reason, bytes });
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_RECORD + 1).read_to_end(&mut bytes).map_err(io_error)?;
    if bytes.is_empty() {
        return damaged("it is empty", bytes);
    }
    if bytes.len() as u64 > MAX_RECORD {
        return damaged("it is larger than any record", bytes);
    }
    if bytes.len() < HEADER || &bytes[..4] != MAGIC {
        return damaged("it is not a record of the agent", bytes);
    }
    if bytes[4] != FORMAT {
        return damaged("this agent does not know its format", bytes);
    }
    if bytes[5..HEADER] != Sha256::digest(&bytes[HEADER..])[..] {
        return damaged("its checksum is wrong", bytes);
    }
    let payload = bytes.split_off(HEADER);
    Ok(Some(payload))
}

/// Writes a whole file under its name or not at all; on disk when this returns.
///
/// # Errors
/// Names the step and the file.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    put_in_place(path, bytes, mode)?;
    flush_dir_of(path)
}

/// The same, but that the file has this name is not on disk yet.
fn put_in_place(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let shown = path.display();
    let mut temporary = path.to_owned().into_os_string();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        // This mode and no other: a service's umask would keep readers out that are meant.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    if let Err(error) = write() {
        // A half-written file must not keep a full disk full.
        let _ = fs::remove_file(&temporary);
        return Err(error).with_context(|| format!("failed to write `{shown}`"));
    }
    fs::rename(&temporary, path).with_context(|| format!("failed to put `{shown}` in place"))
}

fn flush_dir_of(path: &Path) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("failed to flush the directory of `{}`", path.display()))
}

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The record.
    pub name: &'static str,
    /// The requests that asked for this record, in their order.
    pub tickets: Vec<u64>,
    /// On disk, or the whole chain of causes for a person.
    pub result: Result<(), String>,
}

/// The thread that writes.
#[derive(Debug)]
pub struct Writer {
    requests: std_mpsc::Sender<Request>,
}

struct Request {
    name: &'static str,
    keep: Keep,
    payload: Vec<u8>,
    ticket: u64,
}

impl Writer {
    /// Starts the thread; it ends when the writer is dropped and everything asked for was written.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn start(store: Store) -> Result<(Self, mpsc::UnboundedReceiver<Outcome>)> {
        let (requests, incoming) = std_mpsc::channel();
        let (outcomes, receiver) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write_all(&store, &incoming, &outcomes))
            .context("failed to start the writer thread")?;
        Ok((Self { requests }, receiver))
    }

    /// Asks for a record to be written; the [`Outcome`] with this ticket tells when.
    pub fn write(&self, name: &'static str, keep: Keep, payload: Vec<u8>, ticket: u64) {
        // The thread outlives this value, so there is somebody to receive.
        let _ = self.requests.send(Request { name, keep, payload, ticket });
    }
}

struct Waiting {
    keep: Keep,
    payload: Vec<u8>,
    tickets: Vec<u64>,
}

fn write_all(
    store: &Store,
    requests: &std_mpsc::Receiver<Request>,
    outcomes: &mpsc::UnboundedSender<Outcome>,
) {
    while let Ok(first) = requests.recv() {
        let mut waiting: BTreeMap<&'static str, Waiting> = BTreeMap::new();
        for Request { name, keep, payload, ticket } in std::iter::once(first).chain(requests.try_iter()) {
            let slot = waiting.entry(name).or_insert_with(|| Waiting {
                keep,
                payload: Vec::new(),
                tickets: Vec::new(),
            });
            slot.payload = payload;
            slot.tickets.push(ticket);
        }
        for (name, Waiting { keep, payload, tickets }) in waiting {
            let result = store.write(name, keep, &payload).map_err(|error| format!("{error:#}"));
            // Nobody listening means that the agent is ending; what it asked for is still written.
            let _ = outcomes.send(Outcome { name, tickets, result });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("agent")).unwrap();
        (dir, store)
    }

    #[test]
    fn reads_back_what_it_wrote_in_a_private_directory() {
        let (_dir, store) = store();
        assert!(store.read("identity").unwrap().is_none());
        store.write("identity", Keep::Twice, b"key").unwrap();
        assert_eq!(store.read("identity").unwrap().unwrap(), b"key");
        assert_eq!(fs::metadata(&store.dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(store.dir.join("identity")).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn names_every_kind_of_damage() {
        let (_dir, store) = store();
        store.write("membership", Keep::Once, b"payload").unwrap();
        let path = store.dir.join("membership");
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(matches!(store.read("membership"), Err(ReadError::Damaged { .. })), "cut at {cut}");
        }
        for flipped in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[flipped] ^= 0x10;
            fs::write(&path, bytes).unwrap();
            assert!(matches!(store.read("membership"), Err(ReadError::Damaged { .. })), "flip at {flipped}");
        }
    }

    #[test]
    fn the_second_copy_serves_when_the_first_is_damaged_or_gone() {
        let (_dir, store) = store();
        store.write("identity", Keep::Twice, b"key").unwrap();
        fs::write(store.dir.join("identity"), b"").unwrap();
        assert_eq!(store.read("identity").unwrap().unwrap(), b"key");
        fs::remove_file(store.dir.join("identity")).unwrap();
        assert_eq!(store.read("identity").unwrap().unwrap(), b"key");
        fs::write(store.dir.join("identity.copy"), b"x").unwrap();
        assert!(store.read("identity").is_err());
    }

    #[test]
    fn two_copies_are_two_again_after_one_was_lost_damaged_or_old() {
        let (_dir, store) = store();
        for torn in ["identity", "identity.copy"] {
            for damage in [None, Some(&b""[..]), Some(b"COSR"), Some(b"something else")] {
                store.write("identity", Keep::Twice, b"key").unwrap();
                let path = store.dir.join(torn);
                match damage {
                    Some(bytes) => fs::write(&path, bytes).unwrap(),
                    None => fs::remove_file(&path).unwrap(),
                }
                assert_eq!(store.recover("identity", Keep::Twice).unwrap().unwrap(), b"key");
                for path in ["identity", "identity.copy"] {
                    assert_eq!(read_checked(&store.dir.join(path)).unwrap().unwrap(), b"key", "{path}");
                }
            }
        }
        // The first one is written first, so it is the newer one.
        store.write("generation", Keep::Twice, b"2").unwrap();
        store.write("old", Keep::Once, b"1").unwrap();
        fs::rename(store.dir.join("old"), store.dir.join("generation.copy")).unwrap();
        assert_eq!(store.recover("generation", Keep::Twice).unwrap().unwrap(), b"2");
        assert_eq!(read_checked(&store.dir.join("generation.copy")).unwrap().unwrap(), b"2");
    }

    #[test]
    fn what_cannot_be_read_is_moved_and_not_written_over() {
        let (_dir, store) = store();
        // A directory gives an error when it is read, as a bad sector does.
        fs::create_dir(store.dir.join("identity")).unwrap();
        assert!(matches!(store.recover("identity", Keep::Twice), Err(ReadError::Io { .. })));
        store.set_aside("identity");
        assert!(store.recover("identity", Keep::Twice).unwrap().is_none());
        assert!(store.dir.join("identity.unreadable").is_dir());
        store.write("identity", Keep::Twice, b"key").unwrap();
    }

    #[test]
    fn an_interrupted_write_leaves_the_old_record() {
        let (_dir, store) = store();
        store.write("membership", Keep::Once, b"old").unwrap();
        fs::write(store.dir.join("membership.tmp"), b"half of the ne").unwrap();
        let store = Store::open(&store.dir).unwrap();
        assert_eq!(store.read("membership").unwrap().unwrap(), b"old");
        assert!(!store.dir.join("membership.tmp").exists());
    }

    #[tokio::test]
    async fn reports_a_record_only_when_it_is_on_disk() {
        let (_dir, store) = store();
        let (writer, mut outcomes) = Writer::start(store.clone()).unwrap();
        writer.write("membership", Keep::Once, b"one".to_vec(), 1);
        assert_eq!(
            outcomes.recv().await.unwrap(),
            Outcome { name: "membership", tickets: vec![1], result: Ok(()) }
        );
        assert_eq!(store.read("membership").unwrap().unwrap(), b"one");
    }

    #[tokio::test]
    async fn tells_what_could_not_be_written_and_goes_on() {
        let (_dir, store) = store();
        // A directory in the record's place: rename fails as on a broken file system, for root too.
        let obstacle = store.dir.join("membership");
        fs::create_dir(&obstacle).unwrap();
        fs::write(obstacle.join("x"), b"").unwrap();
        let (writer, mut outcomes) = Writer::start(store.clone()).unwrap();
        writer.write("membership", Keep::Once, b"old".to_vec(), 1);
        let Outcome { tickets, result, .. } = outcomes.recv().await.unwrap();
        assert_eq!(tickets, [1]);
        assert!(result.unwrap_err().contains("membership"));
        fs::remove_dir_all(&obstacle).unwrap();
        writer.write("membership", Keep::Once, b"new".to_vec(), 2);
        assert_eq!(
            outcomes.recv().await.unwrap(),
            Outcome { name: "membership", tickets: vec![2], result: Ok(()) }
        );
        assert_eq!(store.read("membership").unwrap().unwrap(), b"new");
    }
}
