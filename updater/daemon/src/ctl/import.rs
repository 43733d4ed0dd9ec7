// SPDX-License-Identifier: Apache-2.0
//! `cluster-update import`

use std::{
    ffi::OsString,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use anyhow::Context as _;
use cluster_updater_core::{Manifest, TrustedRoot, Verified, Version, slot};
use nix::unistd::geteuid;
use zbus::Fd;

use super::{
    Code, Failure,
    client::{Client, Line},
    show::out,
};
use crate::{
    folder::Folder,
    host::{ARCHITECTURE, Host},
    intake::{
        Origin,
        device::{self, Wanted},
        web::{self, Fetch},
    },
    paths::{IMAGE_ROOT, STATE},
    store::Store,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cluster-update import /dev/sdb                     a stick with a release in a folder or one file\n  \
    cluster-update import https://host/cluster-os_0.2.0.update.tar\n  \
    cluster-update import http://host/0.2.0/           a folder on a web server: the URL ends in /\n  \
    cluster-update import /var/tmp/cluster-os_0.2.0.update.tar\n\n\
    Releases are signed: it does not matter where one comes from, nor whether the connection was encrypted.")]
pub(crate) struct Arguments {
    /// A folder with manifest.json, a release in one file, a URL of either, or a stick.
    #[arg(value_name = "DIR|FILE|URL|DEVICE")]
    origin: OsString,
    /// Which of several releases on a stick; by default the newest that this node can take.
    #[arg(long, value_name = "VERSION", value_parser = super::version)]
    release: Option<Version>,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = Client::connect().await?;
    let origin = Origin::of(&arguments.origin)?;
    if arguments.release.is_some() && !matches!(origin, Origin::Device(_)) {
        return Err(Failure::new(Code::Usage, "--release chooses between the releases on a stick"));
    }
    let release = match origin {
        // The updater sees neither /tmp nor /root: it gets what is open.
        Origin::Path(path) => Folder::open_release(&path)?.into_fd(),
        Origin::Url(url) => from_web(&client, &url).await?,
        Origin::Device(device) => from_device(&client, &device, arguments.release.as_ref()).await?,
    };
    let version = client.watch(client.updater.import(Fd::from(release.as_fd()))).await?;
    if arguments.json {
        return out(&format!("{}\n", serde_json::json!({ "version": version })));
    }
    out(&format!("imported {version}; `cluster-update apply` writes it to the other slot and restarts\n"))
}

async fn from_web(client: &Client, url: &str) -> Result<OwnedFd, Failure> {
    let (running, trusted) = beforehand(client).await?;
    let accept = |manifest: &Verified<Manifest>| Ok(slot::may_follow(manifest, &running, ARCHITECTURE)?);
    let wanted = web::Wanted { trusted: &trusted, accept: &accept };
    let mut line = Line::default();
    let told = &mut |done, total| line.bytes("fetching", done, total);
    let fetched = Fetch::of_this_node()?.release(url, &wanted, told).await;
    line.end();
    Ok(fetched?)
}

async fn from_device(client: &Client, path: &Path, version: Option<&Version>) -> Result<OwnedFd, Failure> {
    let (running, trusted) = beforehand(client).await?;
    let own_disk = Host::look().context("this system does not run from a slot")?.disk;
    let found = device::find(path, &own_disk, &Wanted { version, running: &running, trusted: &trusted })?;
    eprintln!("taking {}", found.place);
    Ok(found.folder.into_fd())
}

/// What runs, and whom this node trusts.
async fn beforehand(client: &Client) -> Result<(Version, TrustedRoot), Failure> {
    if !geteuid().is_root() {
        return Err(Failure::new(Code::Denied, "only root may do this: log in as root, or use sudo"));
    }
    let running = client.status().await?.version;
    let trusted = Store::attach(Path::new(STATE))?.trusted(Path::new(IMAGE_ROOT))?;
    Ok((running, trusted))
}
