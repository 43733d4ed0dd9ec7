// SPDX-License-Identifier: Apache-2.0
//! `cluster-update keygen`

use std::{fs::File, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf};

use anyhow::{Context as _, anyhow};
use cluster_updater_core::keys::SecretKey;

use super::{Failure, show::out};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The private key to write, which must not exist yet; the public one goes to FILE.pub.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow!("no randomness: {error}"))?;
    let key = SecretKey::from_seed(&seed);
    let mut public = arguments.file.clone().into_os_string();
    public.push(".pub");
    write(&arguments.file, 0o600, &key.to_pem())?;
    write(&PathBuf::from(&public), 0o644, &key.public().to_pem())?;
    out(&format!("key {}: {}, {}\n", key.public().id(), arguments.file.display(), public.display()))
}

fn write(path: &std::path::Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("failed to write `{}`", path.display()))
}
