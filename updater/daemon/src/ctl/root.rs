// SPDX-License-Identifier: Apache-2.0
//! `cluster-update root`

use std::path::PathBuf;

use super::{Failure, show::out};
use crate::make;

#[derive(Debug, clap::Args)]
#[command(after_help = "The first one:\n  \
    cluster-update root roots/ --key release.key.pub --key spare.key.pub --sign-with release.key\n\n\
    release.key is replaced by new.key:\n  \
    … --key new.key.pub --key spare.key.pub --sign-with release.key --sign-with new.key\n\n\
    The same when release.key is lost:\n  \
    … --key new.key.pub --key spare.key.pub --sign-with spare.key")]
pub(crate) struct Arguments {
    /// The folder with the root documents so far.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// A key that may sign releases from now on (public or private file); repeat for each: others no longer may.
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    /// How many of the keys must have signed.
    #[arg(long, default_value_t = 1)]
    threshold: u32,
    /// A private key to sign the document with; repeat for more.
    #[arg(long = "sign-with", value_name = "FILE", required = true)]
    signers: Vec<PathBuf>,
    /// The keys are for development and lie unprotected; nodes say so. Cannot follow a document without it.
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
