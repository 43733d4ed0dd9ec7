// SPDX-License-Identifier: Apache-2.0
//! What is served: open files, by release and name.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    sync::{Arc, Mutex, PoisonError},
};

use cluster_updater_core::{
    serving::{self, Range, is_name},
    sources::Prefix,
};

use super::seam::Offer;

/// Two slots and four imported releases.
pub const MAX_RELEASES: usize = 6;

/// The releases that are served.
#[derive(Default)]
pub struct Shelf(Mutex<BTreeMap<Prefix, Arc<Files>>>);

/// The files of a release with their sizes.
pub struct Files(BTreeMap<String, (File, u64)>);

impl Shelf {
    /// Serves nothing any more. What is being read ends as it began.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Serves a release.
    ///
    /// # Errors
    /// When files and names do not belong together, or there are too many.
    pub fn put(&self, offer: Offer, open: Vec<OwnedFd>) -> io::Result<()> {
        let names_are_good = offer.files.iter().all(|(name, _)| is_name(name));
        if open.len() != offer.files.len() || open.len() > serving::MAX_FILES || !names_are_good {
            return Err(io::Error::other("open files and their names do not belong together"));
        }
        let files = offer.files.into_iter().zip(open);
        let files = files.map(|((name, bytes), open)| (name, (File::from(open), bytes))).collect();
        let mut releases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if releases.len() >= MAX_RELEASES && !releases.contains_key(&offer.prefix) {
            return Err(io::Error::other("too many releases"));
        }
        releases.insert(offer.prefix, Arc::new(Files(files)));
        Ok(())
    }

    /// A release.
    #[must_use]
    pub fn get(&self, prefix: Prefix) -> Option<Arc<Files>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&prefix).cloned()
    }
}

impl Files {
    /// The list of files, as it is served.
    #[must_use]
    pub fn list(&self) -> String {
        serving::list(self.0.iter().map(|(name, (_, bytes))| (name.as_str(), *bytes)))
    }

    /// Size of a file.
    #[must_use]
    pub fn size(&self, name: &str) -> Option<u64> {
        self.0.get(name).map(|(_, bytes)| *bytes)
    }

    /// Reads parts of a file, one behind the other. Blocks.
    ///
    /// # Errors
    /// When it is not there or cannot be read.
    pub fn read(&self, name: &str, ranges: &[Range]) -> io::Result<Vec<u8>> {
        let (file, _) = self.0.get(name).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = Vec::new();
        for range in ranges {
            let at = bytes.len();
            bytes.resize(at + usize::try_from(range.bytes).map_err(io::Error::other)?, 0);
            file.read_exact_at(&mut bytes[at..], range.first)?;
        }
        Ok(bytes)
    }
}
