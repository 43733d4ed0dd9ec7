// SPDX-License-Identifier: Apache-2.0
//! What the agent sets on its host: the name, and who may log in.

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result};
use tracing::{debug, info, warn};
use zbus::{Connection, fdo};

use crate::store::write_atomically;

/// Gives the machine its name through systemd-hostnamed (`transient`: the image is read-only and the agent says it at
/// every start). Where there is no hostnamed the name stays, which harms nobody: members go by ids.
pub async fn set_name(bus: &Connection, name: &str) {
    let arguments = (name, false);
    let call = bus.call_method(
        Some("org.freedesktop.hostname1"),
        "/org/freedesktop/hostname1",
        Some("org.freedesktop.hostname1"),
        "SetHostname",
        &arguments,
    );
    match call.await {
        Ok(_) => info!(name, "host name set"),
        Err(error) => match fdo::Error::from(error) {
            fdo::Error::ServiceUnknown(_) => {
                debug!(name, "no systemd-hostnamed on this bus, the host name stays");
            }
            error => warn!(name, %error, "systemd-hostnamed did not set the host name"),
        },
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
    write_atomically(file, text.as_bytes(), 0o600)?;
    info!(keys = keys.len(), "SSH keys written");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

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
}
