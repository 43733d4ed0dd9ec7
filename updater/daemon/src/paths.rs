// SPDX-License-Identifier: Apache-2.0
//! Where things are on a node.

use std::path::PathBuf;

/// The image's own root document.
pub const IMAGE_ROOT: &str = "/usr/share/clusteros/update-root";
/// Kept over reboots.
pub const STATE: &str = "/var/lib/cluster-updater";
/// How this boot's check ended.
pub const VERDICT: &str = "/run/cluster-boot-check/verdict";

/// The mesh's interface.
pub const MESH: &str = "cluster0";
/// What runs was given up by hand. Gone with this boot.
pub const GIVEN_UP: &str = "/run/cluster-updater/given-up";

/// A try was given back in this boot. The two names of the boot entry, one a line: the one that was booted, and its name now
/// (mark-good). Gone with this boot.
pub const REFUNDED: &str = "/run/cluster-updater/refunded";
/// Says that this node runs from another disk. `clusterctl` reads it too, and cluster-agent.service starts only without it.
pub const MOVED: &str = "/var/lib/clusteros/moved";
/// Locked by whoever changes slots or installs to another disk.
pub const SLOTS_LOCK: &str = "/run/clusteros/slots.lock";

/// Where things are; elsewhere in tests.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The image's own root document.
    pub image_root: PathBuf,
    /// Kept over reboots.
    pub state: PathBuf,
    /// The ESP as everybody sees it, read-only.
    pub efi: PathBuf,
    /// The ESP's device.
    pub esp_device: PathBuf,
    /// Where the ESP is mounted while it is written to.
    pub esp_place: PathBuf,
    /// The root partition of the slot that runs. Not through dm-verity: whoever asks checks each block, and may not have this node read
    /// one that is damaged.
    pub root_device: PathBuf,
    /// The root partition of the slot that does not run.
    pub other_root: PathBuf,
    /// Where `cluster-releases` is asked.
    pub releases: PathBuf,
    /// The firmware's variables.
    pub efivars: PathBuf,
    /// Locked while the ESP is writable.
    pub esp_lock: PathBuf,
    /// How this boot's check ended.
    pub verdict: PathBuf,
    /// Is there once `rollback` has given up what runs.
    pub given_up: PathBuf,
    /// Is there once a try was given back in this boot.
    pub refunded: PathBuf,
    /// What the kernel left of crashes.
    pub pstore: PathBuf,
    /// Where systemd-pstore moves that.
    pub crashes: PathBuf,
    /// Watchdogs, which may know why they reset the machine.
    pub watchdogs: PathBuf,
    /// Is there once systemd-timesyncd has set the clock in this boot (systemd-timesyncd.service(8)).
    pub clock_set: PathBuf,
    /// Is there once this node runs from another disk.
    pub moved: PathBuf,
    /// Locked while slots are changed, or the node is installed to another disk.
    pub slots_lock: PathBuf,
    /// The running image's boot loader, guarded by dm-verity.
    pub boot_loader: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            image_root: IMAGE_ROOT.into(),
            state: STATE.into(),
            efi: "/efi".into(),
            esp_device: "/dev/disk/cluster-os/esp".into(),
            esp_place: "/run/cluster-updater/esp".into(),
            root_device: "/dev/disk/cluster-os/root".into(),
            other_root: "/dev/disk/cluster-os/other-root".into(),
            releases: crate::releases::seam::SOCKET.into(),
            efivars: "/sys/firmware/efi/efivars".into(),
            esp_lock: "/run/clusteros/esp.lock".into(),
            verdict: VERDICT.into(),
            given_up: GIVEN_UP.into(),
            refunded: REFUNDED.into(),
            pstore: "/sys/fs/pstore".into(),
            crashes: "/var/lib/systemd/pstore".into(),
            watchdogs: "/sys/class/watchdog".into(),
            clock_set: "/run/systemd/timesync/synchronized".into(),
            moved: MOVED.into(),
            slots_lock: SLOTS_LOCK.into(),
            boot_loader: "/usr/lib/systemd/boot/efi/systemd-bootx64.efi".into(),
        }
    }
}
