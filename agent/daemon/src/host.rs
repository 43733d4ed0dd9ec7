// SPDX-License-Identifier: Apache-2.0
//! What is set on the host for the agent: its name, a userspace WireGuard, and who may log in.
//!
//! The agent has no power over any of it. Name and WireGuard it asks for by writing a file; a path unit sees it and
//! starts a unit that does that one thing and nothing else. SSH keys are not its to give: `clusterctl ssh-keys`, run by
//! root, takes them from cluster.toml itself.

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result};
use tracing::{debug, info, warn};

use crate::store::write_atomically;

/// Asks for the machine's name (`cluster-hostname.path`). Where nobody listens the name stays, which harms nobody:
/// members go by ids.
pub fn ask_for_name(file: &Path, name: &str) {
    ask(file, name, "host name");
}

/// Asks for `wireguard-go` (`cluster-wireguard.path`).
pub fn ask_for_wireguard_go(file: &Path) {
    ask(file, "wanted", "userspace WireGuard");
}

/// Writes the file anew even when it says this already: each writing is a request.
fn ask(file: &Path, text: &str, what: &str) {
    if file.parent().is_none_or(|dir| !dir.is_dir()) {
        debug!(what, file = %file.display(), "nobody to ask: no such directory");
        return;
    }
    match write_atomically(file, format!("{text}\n").as_bytes(), 0o644) {
        Ok(()) => info!(what, text, "asked for"),
        Err(error) => warn!(what, error = format!("{error:#}"), "cannot be asked for"),
    }
}

/// Writes the keys that may log in as root, one a line, or removes the file when there are none: sshd is started by a
/// path unit when it exists.
///
/// # Errors
/// When the file can be neither written nor removed.
pub fn set_authorized_keys(file: &Path, keys: &[String]) -> Result<()> {
    if keys.is_empty() {
        return match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("failed to remove `{}`", file.display()))
            }
            _ => Ok(()),
        };
    }
    let mut text = keys.join("\n");
    text.push('\n');
    if fs::read(file).is_ok_and(|now| now == text.as_bytes()) {
        return Ok(());
    }
    write_atomically(file, text.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn keys_are_private_and_go_away_with_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("authorized_keys");
        set_authorized_keys(&file, &[]).unwrap();
        set_authorized_keys(&file, &["ssh-ed25519 AAAA a".to_owned(), "ssh-ed25519 BBBB b".to_owned()])
            .unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "ssh-ed25519 AAAA a\nssh-ed25519 BBBB b\n");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        set_authorized_keys(&file, &[]).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn a_request_can_be_read_by_others_whatever_the_umask() {
        // What cluster-agent.service sets; other tests want no more than this gives.
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hostname");
        ask_for_name(&file, "node-a");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn every_request_is_a_new_file_and_without_a_directory_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hostname");
        ask_for_name(&file, "node-a");
        let first = fs::metadata(&file).unwrap().ino();
        ask_for_name(&file, "node-a");
        assert_ne!(first, fs::metadata(&file).unwrap().ino(), "a path unit would not have seen it");
        assert_eq!(fs::read_to_string(&file).unwrap(), "node-a\n");
        ask_for_name(&dir.path().join("absent/hostname"), "node-a");
        assert!(!dir.path().join("absent").exists());
    }
}
