// SPDX-License-Identifier: Apache-2.0
//! `cluster-update manifest`

use std::{
    env, fs,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use cluster_updater_core::{
    Version,
    manifest::{Component, Severity},
};

use super::{Code, Failure, show::out};
use crate::{
    host::ARCHITECTURE,
    make::{self, About, Parts},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "The manifest's `created` is SOURCE_DATE_EPOCH if that is set, else now.")]
pub(crate) struct Arguments {
    /// Where the release goes.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Version of the release.
    #[arg(long, value_parser = super::version)]
    release: Version,
    /// The oldest version that can be updated to it.
    #[arg(long, value_parser = super::version)]
    minimum: Version,
    /// Root image.
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// Its dm-verity hash tree.
    #[arg(long, value_name = "FILE")]
    verity: PathBuf,
    /// Unified kernel image.
    #[arg(long, value_name = "FILE")]
    uki: PathBuf,
    /// systemd-boot.
    #[arg(long, value_name = "FILE")]
    boot_loader: PathBuf,
    /// normal, important or critical.
    #[arg(long, default_value = "normal", value_parser = severity)]
    severity: Severity,
    /// A text file that says what changed.
    #[arg(long, value_name = "FILE")]
    notes: Option<PathBuf>,
    /// A program in the image, for `inspect` to show; repeat for more.
    #[arg(long = "component", value_name = "NAME=VERSION", value_parser = component)]
    components: Vec<Component>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let notes = match &arguments.notes {
        Some(path) => {
            fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()))?
        }
        None => String::new(),
    };
    let about = About {
        version: arguments.release.clone(),
        minimum_version: arguments.minimum.clone(),
        architecture: ARCHITECTURE.to_owned(),
        created: created()?,
        severity: arguments.severity,
        notes,
        components: arguments.components.clone(),
    };
    let parts = Parts {
        root: arguments.root.clone(),
        tree: arguments.verity.clone(),
        uki: arguments.uki.clone(),
        boot_loader: arguments.boot_loader.clone(),
    };
    let manifest = make::release(&parts, about, &arguments.folder)?;
    out(&format!("{}: version {}\n", arguments.folder.join("manifest.json").display(), manifest.version))
}

fn created() -> Result<u64, Failure> {
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().map_err(|_| {
            Failure::new(Code::Usage, format!("SOURCE_DATE_EPOCH=`{text}` is no number of seconds"))
        }),
        Err(_) => Ok(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())),
    }
}

fn severity(text: &str) -> Result<Severity, String> {
    match text {
        "normal" => Ok(Severity::Normal),
        "important" => Ok(Severity::Important),
        "critical" => Ok(Severity::Critical),
        _ => Err("normal, important or critical".to_owned()),
    }
}

fn component(text: &str) -> Result<Component, String> {
    let (name, version) = text.split_once('=').ok_or("NAME=VERSION, such as linux=6.12.57-1")?;
    Ok(Component { name: name.to_owned(), version: version.to_owned() })
}
