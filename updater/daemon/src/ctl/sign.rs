// SPDX-License-Identifier: Apache-2.0
//! `cluster-update sign`

use std::path::PathBuf;

use super::{Failure, show::out};
use crate::make;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// manifest.json, or a root document.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The private key.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let signature = make::sign(&arguments.file, &make::secret_key(&arguments.key)?)?;
    out(&format!("{}\n", signature.display()))
}
