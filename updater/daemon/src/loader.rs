// SPDX-License-Identifier: Apache-2.0
//! The boot loader's files on the ESP, and what [`cluster_updater_core::loader`] decides about them, carried out.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use cluster_updater_core::loader::{Effect, Loader, Loaders, MAX_BYTES, PLACES, spares};
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    libc,
    sys::statvfs::statvfs,
};

use crate::esp;

/// The ESP that is mounted at a folder.
#[derive(Debug)]
pub struct OnEsp(PathBuf);

impl OnEsp {
    /// The one at `esp`.
    #[must_use]
    pub fn of(esp: &Path) -> Self {
        Self(esp.to_owned())
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Everything that was done in the folder of `path` is on the medium.
    fn sync(&self, path: &str) -> io::Result<()> {
        let place = self.0.join(path);
        esp::sync(place.parent().unwrap_or(&self.0))
    }
}

impl Loaders for OnEsp {
    fn read(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(self.0.join(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn write(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let place = self.0.join(path);
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut options = File::options();
        options.write(true).create(true).truncate(true).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(place)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        self.sync(path)
    }

    fn replace(&mut self, from: &str, to: &str) -> io::Result<()> {
        // FAT frees what nobody has open: held, the old content stays where it is until the name is on the medium.
        let old = match File::open(self.0.join(to)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            old => Some(old?),
        };
        fs::rename(self.0.join(from), self.0.join(to))?;
        self.sync(to)?;
        drop(old);
        self.sync(to)
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        match fs::remove_file(self.0.join(path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn free(&mut self) -> io::Result<u64> {
        let state = statvfs(&self.0)?;
        Ok(state.blocks_available() * state.fragment_size())
    }
}

/// What lies where a boot loader may lie.
///
/// # Errors
/// When the ESP cannot be read.
pub fn look(esp: &mut dyn Loaders) -> Result<BTreeMap<String, Loader>> {
    let mut files = BTreeMap::new();
    let names = PLACES.into_iter().flat_map(|place| spares(place).chain([place.to_owned()]));
    for name in names {
        if let Some(content) =
            esp.read(&name).with_context(|| format!("failed to read `{name}` on the ESP"))?
        {
            files.insert(name, Loader::of(&content));
        }
    }
    Ok(files)
}

/// Carries out what was decided.
///
/// # Errors
/// When an effect fails; what is in place is whole.
pub fn carry_out(effects: &[Effect], esp: &mut dyn Loaders, image: &[u8]) -> Result<()> {
    for effect in effects {
        match effect {
            Effect::Write(name) => {
                let written = esp.write(name, image);
                if written.is_err() {
                    // It was begun in this run: no other name leads to it.
                    let _ = esp.remove(name);
                }
                written.with_context(|| format!("failed to write `{name}` on the ESP"))?;
            }
            Effect::Check(name) => {
                let there = esp.read(name).with_context(|| format!("failed to read `{name}` on the ESP"))?;
                let is_right = there.as_deref() == Some(image);
                if !is_right && effects.contains(&Effect::Write(name.clone())) {
                    let _ = esp.remove(name);
                }
                ensure!(is_right, "`{name}` on the ESP is not what was written to it: the disk is failing");
            }
            Effect::Replace { from, to } => esp.replace(from, to).with_context(|| {
                format!("failed to put the boot loader in the place of `{to}` on the ESP")
            })?,
        }
    }
    Ok(())
}
