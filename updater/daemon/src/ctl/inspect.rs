// SPDX-License-Identifier: Apache-2.0
//! `cluster-update inspect`

use std::{fmt::Write as _, path::PathBuf};

use cluster_updater_core::{Manifest, manifest};

use super::{
    Failure,
    show::{date, out, print_json, size},
};
use crate::folder::Folder;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The folder with manifest.json, or a release in one file.
    #[arg(value_name = "DIR|FILE")]
    release: PathBuf,
    /// Print the manifest.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let folder = Folder::open_release(&arguments.release)?;
    let bytes = folder.read(manifest::FILE_NAME, manifest::MAX_BYTES)?;
    let manifest = Manifest::parse(&bytes).map_err(anyhow::Error::from)?;
    if arguments.json {
        return print_json(&String::from_utf8_lossy(&bytes));
    }
    let signatures = folder.signatures(manifest::FILE_NAME)?;
    let keys: Vec<String> = signatures.keys().map(ToString::to_string).collect();
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "{key:<12} {value}");
    };
    line("version", &format!("{} ({}, {})", manifest.version, manifest.architecture, date(manifest.created)));
    line("can follow", &format!("{} and later", manifest.minimum_version));
    line("severity", &format!("{:?}", manifest.severity).to_lowercase());
    let signed = if keys.is_empty() { "nobody".to_owned() } else { keys.join(", ") + " (not checked)" };
    line("signed by", &signed);
    line("root image", &format!("{}, root hash {}", size(manifest.root.data_bytes), manifest.root.hash));
    line("UKI", &size(manifest.uki.bytes));
    for component in &manifest.components {
        line(&component.name, &component.version);
    }
    for note in manifest.notes.lines() {
        line("", note);
    }
    out(&text)
}
