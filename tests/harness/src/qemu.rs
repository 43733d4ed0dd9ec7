// SPDX-License-Identifier: Apache-2.0
//! The command line of a VM, and its disks.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::accel::Accel;
use crate::image::run;
use crate::state::{Bus, VmDir, VmSpec};

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";
/// UEFI firmware, without Secure Boot (Debian's `ovmf`).
pub const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// An empty variable store for it.
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Makes the disk and the firmware's variables where they are missing.
pub fn make_disks(dir: &VmDir, spec: &VmSpec) -> Result<()> {
    std::fs::create_dir_all(dir.root())
        .with_context(|| format!("failed to make `{}`", dir.root().display()))?;
    if !dir.disk().exists() {
        run(Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .arg(&spec.base)
            .arg(dir.disk())
            .arg(spec.shape.disk_bytes.to_string()))?;
    }
    if !dir.variables().exists() {
        run(Command::new("qemu-img").args(["convert", "-O", "qcow2", VARIABLES]).arg(dir.variables()))?;
    }
    Ok(())
}

/// QEMU for VM `vm`; `paused` waits for a snapshot to be loaded.
///
/// QEMU is started through setpriv(1), which has the kernel kill it when the thread that started it ends: whatever
/// happens to the daemon, no VM is left behind.
pub fn command(vm: u32, spec: &VmSpec, dir: &VmDir, accel: &Accel, paused: bool) -> Command {
    let shape = &spec.shape;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", QEMU, "-name", &format!("vm{vm}"), "-machine", "q35"]);
    command.args(accel.arguments());
    command.args(["-smp", &shape.cpus.to_string(), "-m", &shape.memory_mib.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);

    let drive = |command: &mut Command, options: &str, file: &Path| {
        command.args(["-drive", &format!("{options},file={}", escape(file))]);
    };
    drive(&mut command, "if=pflash,format=raw,readonly=on", Path::new(FIRMWARE));
    drive(&mut command, "if=pflash,format=qcow2", &dir.variables());
    drive(&mut command, "if=none,id=disk,format=qcow2,discard=unmap", &dir.disk());
    let disk: &[&str] = match shape.bus {
        Bus::Virtio => &["-device", "virtio-blk-pci,drive=disk,bootindex=1"],
        Bus::Sata => &["-device", "ide-hd,drive=disk,bus=ide.0,bootindex=1"],
        Bus::Nvme => &["-device", "nvme,drive=disk,serial=disk,bootindex=1"],
        Bus::Usb => &["-device", "qemu-xhci", "-device", "usb-storage,drive=disk,removable=on,bootindex=1"],
    };
    command.args(disk);

    // One cable to the switch; without a boot ROM, so that the firmware does not try the network.
    command.args([
        "-netdev",
        &format!("stream,id=net,server=off,addr.type=unix,addr.path={}", escape(&dir.net())),
    ]);
    command.args(["-device", &format!("virtio-net-pci,id=nic,netdev=net,mac={},romfile=", mac(vm))]);

    let socket = |command: &mut Command, id: &str, server: bool, path: &Path| {
        let server = if server { "server=on,wait=off" } else { "server=off" };
        command.args(["-chardev", &format!("socket,id={id},{server},path={}", escape(path))]);
    };
    command.args(["-chardev", &format!("file,id=serial,append=on,path={}", escape(&dir.serial()))]);
    command.args(["-serial", "chardev:serial"]);
    socket(&mut command, "qmp", false, &dir.qmp());
    command.args(["-mon", "chardev=qmp,mode=control"]);
    command.args(["-device", "virtio-serial-pci"]);
    socket(&mut command, "guest", false, &dir.guest());
    command.args(["-device", "virtserialport,id=guest,chardev=guest,name=org.qemu.guest_agent.0"]);
    socket(&mut command, "console", true, &dir.console());
    command.args(["-device", "virtconsole,chardev=console"]);

    command.args(["-device", "virtio-rng-pci"]);
    if let Some(uuid) = &shape.uuid {
        command.args(["-uuid", uuid]);
    }
    if shape.watchdog {
        command.args(["-device", "i6300esb", "-action", "watchdog=reset"]);
    }
    command.args(["-rtc", &format!("base={}", shape.rtc.as_deref().unwrap_or("utc"))]);
    if paused {
        command.arg("-S");
    }
    command
}

/// The Ethernet address of VM `vm`, in QEMU's range.
pub fn mac(vm: u32) -> String {
    let [_, a, b, c] = vm.to_be_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

/// A comma separates QEMU's options; doubled it is a comma.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::Kind;
    use crate::state::{ClusterDir, Shape};

    fn arguments(shape: Shape) -> Vec<String> {
        let spec = VmSpec { base: "/tmp/base.raw".into(), shape, provisioning: "none".into() };
        let dir = ClusterDir::new("test").expect("a name").vm(300);
        let accel = Accel { kind: Kind::Tcg, reason: String::new(), slowdown: 1.0 };
        let command = command(300, &spec, &dir, &accel, false);
        command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn has_no_uuid_unless_asked() {
        assert!(!arguments(Shape::default()).contains(&"-uuid".to_owned()));
        assert!(
            arguments(Shape { uuid: Some("u".into()), ..Shape::default() }).contains(&"-uuid".to_owned())
        );
    }

    #[test]
    fn macs_differ_beyond_one_byte() {
        assert_eq!(mac(1), "52:54:00:00:00:01");
        assert_eq!(mac(300), "52:54:00:00:01:2c");
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(escape(Path::new("/a,b")), "/a,,b");
    }
}
