// SPDX-License-Identifier: Apache-2.0
//! A USB stick with releases on it, as somebody brings them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result};
use cluster_e2e::{Alone, World};
use cluster_harness::client::Vm;
use cluster_harness::cluster::Provisioning;
use cluster_harness::image::run;
use cluster_harness::state::{Bus, Second, Shape};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A file system on the host that a VM sees as a stick.
pub(crate) struct Stick {
    path: PathBuf,
    bytes: u64,
}

impl Stick {
    /// With the content of `folder`, which lies beside it.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let bytes = (64 * MIB + bytes_in(folder)?).next_multiple_of(MIB);
        // Stories beside this one use the same folder.
        let path = folder.with_file_name(format!("stick-{}.raw", process::id()));
        fs::File::create(&path)?.set_len(bytes)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(folder).arg(&path))?;
        Ok(Self { path, bytes })
    }

    /// A node that it is plugged into, still switched off.
    pub(crate) fn machine<'a>(&self, world: &'a mut World) -> Result<&'a Alone> {
        self.machine_of(world, Shape::default())
    }

    /// The same with another shape.
    pub(crate) fn machine_of<'a>(&self, world: &'a mut World, shape: Shape) -> Result<&'a Alone> {
        let second =
            Some(Second { bus: Bus::Usb, bytes: self.bytes, base: Some(self.path.clone()), boots: false });
        world.machine(&Provisioning::Cluster, Shape { second, ..shape })
    }
}

impl Drop for Stick {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Mounts the stick at /run/stick.
pub(crate) fn mount(vm: Vm<'_>) -> Result<()> {
    vm.sh(
        "disk=$(lsblk -dnro NAME,TRAN | awk '$2 == \"usb\" { print $1 }') && mkdir -p /run/stick && mount -o ro /dev/$disk /run/stick",
    )
    .map(drop)
}

/// Nothing more is needed of it.
pub(crate) fn unmount(vm: Vm<'_>) -> Result<()> {
    vm.sh("umount /run/stick").map(drop)
}

/// The version of the release in a folder.
pub(crate) fn version_of(release: &Path) -> Result<String> {
    let manifest: Value = serde_json::from_slice(&fs::read(release.join("manifest.json"))?)?;
    Ok(manifest["version"].as_str().context("a manifest without a version")?.to_owned())
}

fn bytes_in(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("failed to read `{}`", folder.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_in(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}
