// SPDX-License-Identifier: Apache-2.0
//! Succeeds when the disk of this udev event (environment: DEVPATH, DEVNAME, ID_PART_GPT_AUTO_ROOT_UUID) is the one that the
//! firmware booted, in the initrd and later. A disk that has the ESP's UUID and is attached elsewhere is noted in `/run`, where
//! only-disk and boot-failed look.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, process};

use anyhow::{Context, Result};
use cluster_booted_disk::kernel::{self, Ports};
use cluster_booted_disk::{Hop, esp, firmware, words};

/// Variables of the firmware.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Variables of systemd-boot.
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

fn main() -> ExitCode {
    // tests/toolbox/booted-disk has trees of its own.
    let machine = Machine { root: env::var_os("BOOTED_DISK_ROOT").map_or_else(|| "/".into(), Into::into) };
    let judged = env::var("DEVPATH")
        .context("DEVPATH is not set: udev runs this")
        .and_then(|devpath| machine.judge(&devpath));
    match judged {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("booted-disk: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Machine {
    root: PathBuf,
}

impl Machine {
    fn judge(&self, devpath: &str) -> Result<bool> {
        let sys = self.root.join("sys");
        let kept = self.kept();
        // Chosen before: the same disk again, and no other. A stick that dropped off the bus before the root was mounted comes
        // back under another path: until then a disk that is gone is no choice.
        if let Ok(chosen) = fs::read_to_string(&kept) {
            if chosen == devpath {
                return Ok(true);
            }
            if sys.join(chosen.trim_start_matches('/')).exists()
                || !self.root.join("etc/initrd-release").exists()
            {
                return Ok(false);
            }
            fs::remove_file(&kept)?;
        }
        // udev's blkid sets this only where the ESP that systemd-boot named lies on this disk.
        if env::var_os("ID_PART_GPT_AUTO_ROOT_UUID").is_none_or(|uuid| uuid.is_empty())
            || !self.may_hold_counted_entry()
        {
            return Ok(false);
        }
        let wanted = self.firmware_path();
        let found = kernel::path(&sys, devpath, Ports::First);
        if !wanted.is_empty() && wanted != found && wanted != kernel::path(&sys, devpath, Ports::Second) {
            let others = self.root.join("run/clusteros-other-disks");
            fs::create_dir_all(&others)?;
            let name = Path::new(devpath).file_name().context("DEVPATH names no device")?;
            fs::write(others.join(name), format!("{devpath}\n{}\n{}\n", words(&wanted), words(&found)))?;
            return Ok(false);
        }
        // Two events at once: the first link wins.
        let own = kept.with_extension(process::id().to_string());
        fs::write(&own, devpath)?;
        let _ = fs::hard_link(&own, &kept);
        fs::remove_file(&own)?;
        Ok(fs::read_to_string(&kept)? == devpath)
    }

    fn kept(&self) -> PathBuf {
        self.root.join("run/clusteros-booted-disk")
    }

    /// Where the firmware says that the boot disk is attached; empty if it does not say.
    fn firmware_path(&self) -> Vec<Hop> {
        let current = self.variable("BootCurrent", GLOBAL).as_deref().and_then(firmware::boot_current);
        let entry = current.and_then(|number| self.variable(&format!("Boot{number:04X}"), GLOBAL));
        entry.as_deref().map(firmware::path).unwrap_or_default()
    }

    /// systemd-boot has just renamed the counted entry that it booted; only the booted ESP holds that name. Where that cannot be
    /// told, the disk may be it.
    fn may_hold_counted_entry(&self) -> bool {
        let path = self.variable("LoaderBootCountPath", LOADER).as_deref().and_then(firmware::counted_entry);
        let Some((path, partition)) = path.zip(esp_of_this_disk()) else { return true };
        let held = File::open(&partition).and_then(|device| esp::has(device, &path));
        held.unwrap_or_else(|error| {
            eprintln!("booted-disk: failed to look for {path} on {partition}: {error}");
            true
        })
    }

    fn variable(&self, name: &str, vendor: &str) -> Option<Vec<u8>> {
        fs::read(self.root.join("sys/firmware/efi/efivars").join(format!("{name}-{vendor}"))).ok()
    }
}

/// The ESP of the event's disk.
fn esp_of_this_disk() -> Option<String> {
    let listed =
        Command::new("lsblk").args(["-nrpo", "NAME,PARTTYPE"]).arg(env::var_os("DEVNAME")?).output().ok()?;
    let listed = String::from_utf8(listed.stdout).ok()?;
    let mut lines = listed.lines().filter_map(|line| line.split_once(' '));
    lines.find_map(|(name, kind)| (kind.trim() == ESP).then(|| name.to_owned()))
}
