// SPDX-License-Identifier: Apache-2.0
//! Where a release comes from that `cluster-update import` hands to the updater: a folder, one file, a web server, a stick. All
//! of it ends as one open folder or archive; what is in it, the updater checks.
//!
//! This runs in the command, as the root that typed it. Only the process that talks to a web server ([`child`]) has a user of
//! its own.

mod attempt;
pub mod child;
pub mod device;
pub mod web;

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// What the command line names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A folder, or a release in one file.
    Path(PathBuf),
    /// Something on a web server.
    Url(String),
    /// A block device.
    Device(PathBuf),
}

impl Origin {
    /// Tells them apart.
    ///
    /// # Errors
    /// When it is not there, or nothing that a release can come from.
    pub fn of(argument: &OsStr) -> Result<Self> {
        if let Some((scheme, _)) = argument.to_str().and_then(|text| text.split_once("://")) {
            let scheme = scheme.to_ascii_lowercase();
            if scheme != "http" && scheme != "https" {
                bail!("`{scheme}://` is not known: a URL begins with http:// or https://");
            }
            return Ok(Self::Url(argument.to_string_lossy().into_owned()));
        }
        let path = Path::new(argument);
        let kind = fs::metadata(path).with_context(|| format!("failed to look at `{}`", path.display()))?;
        let kind = kind.file_type();
        if kind.is_block_device() {
            return Ok(Self::Device(path.to_owned()));
        }
        if kind.is_dir() || kind.is_file() {
            return Ok(Self::Path(path.to_owned()));
        }
        bail!("`{}` is neither a folder nor a file nor a disk", path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_told_apart() {
        let of = |text: &str| Origin::of(OsStr::new(text));
        assert_eq!(of("http://h/a.tar").unwrap(), Origin::Url("http://h/a.tar".into()));
        assert_eq!(of("HTTPS://h/").unwrap(), Origin::Url("HTTPS://h/".into()));
        assert!(of("ftp://h/a").unwrap_err().to_string().contains("http:// or https://"));
        assert_eq!(of("/usr").unwrap(), Origin::Path("/usr".into()));
        assert!(of("/dev/null").unwrap_err().to_string().contains("neither a folder"));
        assert!(format!("{:#}", of("/nowhere").unwrap_err()).contains("No such file"));
    }
}
