// SPDX-License-Identifier: Apache-2.0
//! `cluster-update root`

use std::path::PathBuf;

use super::{Failure, show::out};
use crate::make;

/// Writes the next root document to a folder: version 1, or the successor of the newest one there. It is signed by its own
/// keys and by those of its predecessor, so nodes that know the predecessor follow.
#[derive(Debug, clap::Args)]
#[command(after_help = "A rotation from old.key to new.key:\n  \
    cluster-update root roots/ --key new.key.pub --sign-with old.key --sign-with new.key")]
pub(crate) struct Arguments {
    /// The folder with the root documents so far.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// A key that may sign releases (public or private file); repeat for more.
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    /// How many of the keys must have signed.
    #[arg(long, default_value_t = 1)]
    threshold: u32,
    /// A private key to sign the document with; repeat for more.
    #[arg(long = "sign-with", value_name = "FILE", required = true)]
    signers: Vec<PathBuf>,
    /// The keys lie in a checkout and protect nothing; nodes say so.
    #[arg(long)]
    development: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let keys: Vec<_> =
        arguments.keys.iter().map(|path| make::public_key(path)).collect::<anyhow::Result<_>>()?;
    let signers: Vec<_> =
        arguments.signers.iter().map(|path| make::secret_key(path)).collect::<anyhow::Result<_>>()?;
    let root =
        make::next_root(&arguments.folder, &keys, arguments.threshold, arguments.development, &signers)?;
    out(&format!("{}\n", arguments.folder.join(format!("root.{}.json", root.document().version)).display()))
}
