// SPDX-License-Identifier: Apache-2.0
//! `cluster-update import`

use std::{
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use zbus::Fd;

use super::{Failure, client::Client, show::out};
use crate::folder::Folder;

/// Takes in a release from a folder: every block is checked, then it is kept in /var for `stage`. Nothing is changed on the
/// slots.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mount -o ro /dev/sdb1 /mnt && cluster-update import /mnt/release")]
pub(crate) struct Arguments {
    /// The folder with manifest.json.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let version = import(&Client::connect().await?, &arguments.folder).await?;
    if arguments.json {
        return out(&format!("{}\n", serde_json::json!({ "version": version })));
    }
    out(&format!("imported {version}; `cluster-update apply` writes it to the other slot and restarts\n"))
}

async fn import(client: &Client, folder: &Path) -> Result<String, Failure> {
    // The updater sees neither /tmp nor /root: it gets the open folder.
    let folder = Folder::open(folder)?.into_fd();
    client.watch(client.updater.import(Fd::from(folder.as_fd()))).await
}
