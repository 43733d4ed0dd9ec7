// SPDX-License-Identifier: Apache-2.0
//! The command line of a VM, and its disks.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::accel::Accel;
use crate::image::run;
use crate::state::{Bus, VmDir, VmSpec};
use crate::switch::PortId;

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";
/// UEFI firmware, without Secure Boot (Debian's `ovmf`).
pub const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// An empty variable store for it.
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// Drive and serial number of a VM's disk, as QEMU and the guest know it.
pub const DISK: &str = "disk";
/// The same for its second disk.
pub const SECOND_DISK: &str = "disk2";

/// Makes the disk and the firmware's variables where they are missing.
pub fn make_disks(dir: &VmDir, spec: &VmSpec) -> Result<()> {
    std::fs::create_dir_all(dir.root())
        .with_context(|| format!("failed to make `{}`", dir.root().display()))?;
    overlay(&dir.disk(), &spec.base, spec.shape.disk_bytes)?;
    if let Some(second) = &spec.shape.second {
        overlay(&dir.second_disk(), second.base.as_ref().unwrap_or(&spec.base), second.bytes)?;
    }
    if spec.shape.log_writes {
        // Of one run of QEMU, which needs it to be there.
        std::fs::File::create(dir.writes())?;
    }
    if !dir.variables().exists() {
        run(Command::new("qemu-img").args(["convert", "-O", "qcow2", VARIABLES]).arg(dir.variables()))?;
    }
    Ok(())
}

/// A disk of `bytes` over the raw image `base`, if there is none yet.
fn overlay(disk: &Path, base: &Path, bytes: u64) -> Result<()> {
    if disk.exists() {
        return Ok(());
    }
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
    run(command.arg(base).arg(disk).arg(bytes.to_string()))
}

/// QEMU for VM `vm`; `paused` waits for a snapshot to be loaded.
///
/// QEMU is started through setpriv(1), which has the kernel kill it when the thread that started it ends: whatever
/// happens to the daemon, no VM is left behind.
pub fn command(vm: u32, spec: &VmSpec, dir: &VmDir, accel: &Accel, paused: bool) -> Command {
    let shape = &spec.shape;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", QEMU, "-name", &format!("vm{vm}")]);
    // Linux starts QEMU's HPET and leaves it: it then fires 250 times a second for nobody, in idle VMs too.
    command.args(["-machine", "q35,hpet=off"]);
    command.args(accel.arguments());
    command.args(["-smp", &shape.cpus.to_string(), "-m", &shape.memory_mib.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);

    let drive = |command: &mut Command, options: &str, file: &Path| {
        command.args(["-drive", &format!("{options},file={}", escape(file))]);
    };
    drive(&mut command, "if=pflash,format=raw,readonly=on", Path::new(FIRMWARE));
    drive(&mut command, "if=pflash,format=qcow2", &dir.variables());
    let on_usb = |bus| matches!(bus, Bus::Usb | Bus::Usb2);
    if on_usb(shape.bus) || shape.second.as_ref().is_some_and(|second| on_usb(second.bus)) {
        // Sockets 1 and 2 are USB 3, which firmware numbers first; 3 and 4 are USB 2 only.
        command.args(["-device", "qemu-xhci,p2=4,p3=2"]);
    }
    let second_boots = shape.second.as_ref().is_some_and(|second| second.boots);
    if shape.log_writes {
        // Discards do not get to it: what a log says of them is nothing that one could read back.
        let options = format!(
            "if=none,id={DISK},driver=blklogwrites,log.driver=file,log.filename={},file.driver=qcow2,file.file.driver=file",
            escape(&dir.writes())
        );
        command.args(["-drive", &format!("{options},file.file.filename={}", escape(&dir.disk()))]);
    } else {
        drive(&mut command, &format!("if=none,id={DISK},format=qcow2,discard=unmap"), &dir.disk());
    }
    let mut device = disk(shape.bus, DISK, 0, !second_boots);
    if shape.log_writes && shape.bus == Bus::Virtio {
        // Requests are merged up to as many pieces as pwritev(2) takes, and the log's header is one more: they fail.
        device.push_str(",request-merging=off");
    }
    command.args(["-device", &device]);
    if let Some(second) = &shape.second {
        let options = format!("if=none,id={SECOND_DISK},format=qcow2,discard=unmap");
        drive(&mut command, &options, &dir.second_disk());
        command.args(["-device", &disk(second.bus, SECOND_DISK, 1, second_boots)]);
    }

    // Cables to the switch; without a boot ROM, so that the firmware does not try the network.
    for (nic, _) in shape.nics() {
        let socket = escape(&dir.net(nic));
        command
            .args(["-netdev", &format!("stream,id=net{nic},server=off,addr.type=unix,addr.path={socket}")]);
        let (id, mac) = (nic_id(nic), mac(PortId::new(vm, nic)));
        command.args(["-device", &format!("virtio-net-pci,id={id},netdev=net{nic},mac={mac},romfile=")]);
    }

    let socket = |command: &mut Command, id: &str, server: bool, path: &Path| {
        let server = if server { "server=on,wait=off" } else { "server=off" };
        command.args(["-chardev", &format!("socket,id={id},{server},path={}", escape(path))]);
    };
    command.args(["-chardev", &format!("file,id=serial,append=on,path={}", escape(&dir.serial()))]);
    command.args(["-serial", "chardev:serial"]);
    if shape.second_serial {
        let file = escape(&dir.second_serial());
        command.args(["-chardev", &format!("file,id=serial2,append=on,path={file}")]);
        command.args(["-serial", "chardev:serial2"]);
    }
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
    for text in &shape.oem_strings {
        command.args(["-smbios", &format!("type=11,value={}", text.replace(',', ",,"))]);
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

/// The `-device` of a disk; its serial number, which the guest sees, is the id of its drive.
fn disk(bus: Bus, drive: &str, place: u8, first: bool) -> String {
    let index = match (bus, first) {
        // QEMU would tell OVMF a port that is not the one OVMF counts; without an order it boots what it finds.
        (Bus::Usb2, _) => String::new(),
        (_, true) => ",bootindex=1".to_owned(),
        (_, false) => ",bootindex=2".to_owned(),
    };
    let device = match bus {
        Bus::Virtio => "virtio-blk-pci".to_owned(),
        Bus::Sata => format!("ide-hd,bus=ide.{place}"),
        Bus::Nvme => "nvme".to_owned(),
        Bus::Usb => format!("usb-storage,removable=on,port={}", place + 1),
        Bus::Usb2 => format!("usb-storage,removable=on,port={}", place + 3),
    };
    format!("{device},drive={drive},serial={drive}{index}")
}

/// What QEMU calls card `nic`.
pub(crate) fn nic_id(nic: u8) -> String {
    format!("nic{nic}")
}

/// The Ethernet address of a VM's network card, in QEMU's range.
pub fn mac(port: PortId) -> String {
    let [_, _, b, c] = port.vm.to_be_bytes();
    format!("52:54:00:{:02x}:{b:02x}:{c:02x}", port.nic - 1)
}

/// A comma separates QEMU's options; doubled it is a comma.
fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::Kind;
    use crate::state::{ClusterDir, Second, Shape};

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
    fn the_disk_that_boots_is_the_first_that_the_firmware_tries() {
        for boots in [false, true] {
            let second = Second { bus: Bus::Nvme, bytes: 1 << 30, base: None, boots };
            let all = arguments(Shape { bus: Bus::Usb, second: Some(second), ..Shape::default() });
            let index = |device: &str| {
                let found = all.iter().find(|argument| argument.starts_with(device)).expect("a disk");
                found.rsplit_once("bootindex=").expect("an index").1.to_owned()
            };
            let wanted = if boots { ("2", "1") } else { ("1", "2") };
            assert_eq!((index("usb-storage").as_str(), index("nvme").as_str()), wanted);
        }
    }

    #[test]
    fn a_disk_whose_writes_are_logged_has_another_driver_over_it() {
        let all = arguments(Shape { log_writes: true, ..Shape::default() });
        assert!(all.iter().any(|argument| {
            argument.starts_with("if=none,id=disk,driver=blklogwrites,")
                && argument.contains("log.filename=")
                && argument.contains("file.driver=qcow2")
        }));
        assert!(all.iter().any(|argument| argument.ends_with(",request-merging=off")));
        assert!(!arguments(Shape::default()).iter().any(|argument| argument.contains("blklogwrites")));
    }

    #[test]
    fn every_card_has_its_own_cable() {
        let all = arguments(Shape { lans: vec![1, 2], ..Shape::default() });
        let cards = all.iter().filter(|argument| argument.starts_with("virtio-net-pci")).count();
        assert_eq!(cards, 2);
        assert!(all.iter().any(|argument| argument.contains("net2.sock")));
    }

    #[test]
    fn macs_differ_beyond_one_byte() {
        assert_eq!(mac(PortId::new(1, 1)), "52:54:00:00:00:01");
        assert_eq!(mac(PortId::new(300, 1)), "52:54:00:00:01:2c");
        assert_eq!(mac(PortId::new(300, 2)), "52:54:00:01:01:2c");
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(escape(Path::new("/a,b")), "/a,,b");
    }
}
