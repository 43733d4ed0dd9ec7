// SPDX-License-Identifier: Apache-2.0
//! `cp`: files between host and guests.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use cluster_harness::client::Client;

/// Copy a file: cp FILE N:/path, cp N:/path FILE, or from VM to VM
#[derive(Args)]
pub(crate) struct Copy {
    /// A path, or N:/path in VM N
    from: String,
    /// A path, or N:/path in VM N
    to: String,
}

enum Place<'a> {
    Host(PathBuf),
    Guest(u32, &'a str),
}

fn place(text: &str) -> Result<Place<'_>> {
    match text.split_once(':') {
        Some((vm, path)) if !vm.is_empty() && vm.bytes().all(|c| c.is_ascii_digit()) => {
            if !path.starts_with('/') {
                bail!("`{text}`: paths in a VM start with /, like {vm}:/var/tmp/file");
            }
            Ok(Place::Guest(vm.parse().context("no such VM")?, path))
        }
        _ => Ok(Place::Host(PathBuf::from(text))),
    }
}

pub(crate) fn run(client: &Client, verb: &Copy) -> Result<()> {
    match (place(&verb.from)?, place(&verb.to)?) {
        (Place::Host(from), Place::Guest(vm, to)) => {
            push(client, &from, vm, &into_folder(client, vm, to, &from)?)
        }
        (Place::Guest(vm, from), Place::Host(to)) => {
            let to = if to.is_dir() { to.join(Path::new(from).file_name().unwrap_or_default()) } else { to };
            client.vm(vm).pull(from, &to).map(drop)
        }
        (Place::Guest(vm, from), Place::Guest(other, to)) => {
            let between = tempfile::NamedTempFile::new()?;
            client.vm(vm).pull(from, between.path())?;
            push(client, between.path(), other, &into_folder(client, other, to, Path::new(from))?)
        }
        (Place::Host(_), Place::Host(_)) => {
            bail!("neither path is in a VM: write N:/path for a file in VM N")
        }
    }
}

fn push(client: &Client, from: &Path, vm: u32, to: &str) -> Result<()> {
    client.vm(vm).push(from, to)?;
    let mode = std::fs::metadata(from)?.permissions().mode() & 0o777;
    let chmod = client.vm(vm).exec(&["chmod", &format!("{mode:o}"), to], None, None)?;
    anyhow::ensure!(chmod.status == 0, "copied, but chmod failed: {}", chmod.all().trim());
    Ok(())
}

fn into_folder(client: &Client, vm: u32, to: &str, from: &Path) -> Result<String> {
    let name = from.file_name().unwrap_or_default().to_string_lossy();
    let is_folder = client.vm(vm).exec(&["test", "-d", to], None, None)?.status == 0;
    Ok(if is_folder { format!("{}/{name}", to.trim_end_matches('/')) } else { to.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        assert!(matches!(place("2:/etc/hosts"), Ok(Place::Guest(2, "/etc/hosts"))));
        assert!(matches!(place("file"), Ok(Place::Host(_))));
        assert!(matches!(place("a:/b"), Ok(Place::Host(_))));
        assert!(place("2:relative").is_err());
    }
}
