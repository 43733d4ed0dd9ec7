// SPDX-License-Identifier: Apache-2.0
//! Slots are changed by the updater, or copied to another disk by `cluster-update install`, not both at once.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::esp;

/// Let go when this is dropped, or the process ends however that comes.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "unlocks when it is dropped")] Flock<File>);

/// For the updater, which has a lock of its own between its jobs.
///
/// # Errors
/// While the node is installed to another disk.
pub fn share(path: &Path) -> Result<Held> {
    lock(path, FlockArg::LockSharedNonblock)?.with_context(|| {
        "this node is being installed to another disk: wait until `cluster-update install` is done".to_owned()
    })
}

/// For `cluster-update install`.
///
/// # Errors
/// While the updater stages or rolls back, or another one installs.
pub fn own(path: &Path) -> Result<Held> {
    lock(path, FlockArg::LockExclusiveNonblock)?.with_context(|| {
        "the slots are being changed (`cluster-update status` shows by what), or another `cluster-update install` runs: wait until \
         it is done"
            .to_owned()
    })
}

/// None while somebody else holds it.
fn lock(path: &Path, how: FlockArg) -> Result<Option<Held>> {
    let file = esp::lock_file(path).with_context(|| format!("failed to open `{}`", path.display()))?;
    match Flock::lock(file, how) {
        Ok(lock) => Ok(Some(Held(lock))),
        Err((_, Errno::EAGAIN)) => Ok(None),
        Err((_, error)) => bail!("failed to lock `{}`: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_the_updater_go_together_and_an_install_goes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let jobs = (share(&path).unwrap(), share(&path).unwrap());
        assert!(own(&path).unwrap_err().to_string().contains("wait until"));
        drop(jobs);
        let install = own(&path).unwrap();
        assert!(share(&path).unwrap_err().to_string().contains("being installed to another disk"));
        assert!(own(&path).is_err());
        drop(install);
        share(&path).unwrap();
    }
}
