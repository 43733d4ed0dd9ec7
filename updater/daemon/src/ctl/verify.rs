// SPDX-License-Identifier: Apache-2.0
//! `cluster-update verify`

use std::path::PathBuf;

use super::{Failure, show::out};
use crate::{folder::Folder, paths::IMAGE_ROOT, release::OpenRelease};

#[derive(Debug, clap::Args)]
#[command(after_help = "The same signature, checked without anything of Cluster-OS:\n  \
    openssl pkeyutl -verify -pubin -inkey release.key.pub -rawin -in manifest.json -sigfile manifest.json.KEYID.sig")]
pub(crate) struct Arguments {
    /// The folder with manifest.json, or a release in one file.
    #[arg(value_name = "DIR|FILE")]
    release: PathBuf,
    /// The folder with the root document that is trusted; a node has one, on a PC name yours.
    #[arg(long, value_name = "DIR", default_value = IMAGE_ROOT)]
    root: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let trusted = Folder::open(&arguments.root)?.anchor()?;
    let release = OpenRelease::open(Folder::open_release(&arguments.release)?, trusted)?;
    release.check_all(|_, _, _| Ok(()))?;
    let signers: Vec<String> = release.manifest.signers().iter().map(ToString::to_string).collect();
    let root = release.root.document();
    let kind = if root.development { ", a DEVELOPMENT release" } else { "" };
    out(&format!(
        "good: version {}, signed by {} (root document {}){kind}\n",
        release.manifest.version,
        signers.join(", "),
        root.version
    ))
}
