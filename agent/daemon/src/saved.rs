// SPDX-License-Identifier: Apache-2.0
//! The core's state items as records of the [`Store`].

use std::{io, thread, time::Duration};

use anyhow::Result;
use cluster_agent_core::{Saved, StateItem};
use nix::libc;

use crate::store::{Keep, ReadError, Store};

/// What a power cut at the wrong moment, or a dying disk, must not turn into another node is kept twice.
pub(crate) fn keep_of(item: StateItem) -> Keep {
    match item {
        StateItem::Identity | StateItem::Generation | StateItem::Membership => Keep::Twice,
        StateItem::Records | StateItem::Clock | StateItem::DamagedIdentity | StateItem::DamagedMembership => {
            Keep::Once
        }
    }
}

/// A bad contact or a controller that resets gives errors for a moment.
const READ_ATTEMPTS: u32 = 3;
const READ_AGAIN: Duration = Duration::from_millis(200);

/// Everything the core saved; what is damaged is handed over as it is, for the core to judge and name.
///
/// # Errors
/// When a file is there and this process may not read it: that says nothing of what is in it.
pub(crate) fn read_saved(store: &Store) -> Result<(Saved, Vec<ReadError>)> {
    let mut damages = Vec::new();
    let mut read = |item: StateItem| match read_patiently(store, item) {
        Ok(payload) => Ok(payload),
        Err(ReadError::Io { path, source }) if !is_of_the_disk(&source) => {
            Err(anyhow::Error::new(ReadError::Io { path, source }))
        }
        Err(error) => {
            let bytes = match &error {
                ReadError::Damaged { bytes, .. } => bytes.clone(),
                ReadError::Io { .. } => {
                    store.set_aside(item.file_name());
                    Vec::new()
                }
            };
            damages.push(error);
            Ok(Some(bytes))
        }
    };
    let saved = Saved {
        identity: read(StateItem::Identity)?,
        generation: read(StateItem::Generation)?,
        membership: read(StateItem::Membership)?,
        records: read(StateItem::Records)?,
        clock: read(StateItem::Clock)?,
    };
    Ok((saved, damages))
}

fn read_patiently(store: &Store, item: StateItem) -> Result<Option<Vec<u8>>, ReadError> {
    let mut attempt = 1;
    loop {
        match store.recover(item.file_name(), keep_of(item)) {
            Err(ReadError::Io { .. }) if attempt < READ_ATTEMPTS => attempt += 1,
            outcome => return outcome,
        }
        thread::sleep(READ_AGAIN);
    }
}

/// Whether the file itself cannot be read, as opposed to this process being refused or out of something.
fn is_of_the_disk(error: &io::Error) -> bool {
    let ours = [libc::EACCES, libc::EPERM, libc::EMFILE, libc::ENFILE, libc::ENOMEM];
    error.raw_os_error().is_none_or(|errno| !ours.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_does_not_give_is_lost_and_what_we_may_not_read_is_not() {
        for errno in [libc::EIO, libc::EISDIR, libc::ENODATA] {
            assert!(is_of_the_disk(&io::Error::from_raw_os_error(errno)));
        }
        for errno in [libc::EACCES, libc::EPERM, libc::EMFILE] {
            assert!(!is_of_the_disk(&io::Error::from_raw_os_error(errno)));
        }
    }

    #[test]
    fn an_unreadable_identity_is_handed_over_as_a_damaged_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("identity")).unwrap();
        let (saved, damages) = read_saved(&store).unwrap();
        assert_eq!((saved.identity, damages.len()), (Some(Vec::new()), 1));
    }
}
