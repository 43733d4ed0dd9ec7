// SPDX-License-Identifier: Apache-2.0
//! How guests run on this host: under KVM where KVM really runs one, else emulated; and how fast.
//!
//! `/dev/kvm` can exist, open, and still not run a kernel (nested hosts). So a guest is tried: first a boot sector
//! that counts and reports (it is the speed measurement too), then the firmware that every VM here boots with, which is
//! 64-bit code with paging. The answer is kept until the host boots again or QEMU changes.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::qemu::{FIRMWARE, QEMU};
use crate::state::cache_dir;

/// Rounds of the loop in [`BOOT_SECTOR`].
const ROUNDS: u32 = 20_000_000;
/// What [`ROUNDS`] take on a 3.5 GHz core without emulation: about seven cycles each, bound by store forwarding.
const REFERENCE: Duration = Duration::from_millis(40);
/// No host is this slow; a guest that says nothing for so long does not run.
const PROBE_LIMIT: Duration = Duration::from_secs(30);
/// OVMF's first words under KVM take well under a second.
const FIRMWARE_LIMIT: Duration = Duration::from_secs(10);

/// The way guests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's emulation.
    Tcg,
}

/// How guests run on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accel {
    /// The way.
    pub kind: Kind,
    /// Why, for people.
    pub reason: String,
    /// How many times slower than the reference a guest's CPU loop is.
    pub slowdown: f64,
}

#[derive(Serialize, Deserialize)]
struct Cached {
    key: String,
    accel: Accel,
}

impl Accel {
    /// QEMU's arguments.
    pub fn arguments(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Kvm => KVM,
            Kind::Tcg => TCG,
        }
    }
}

const KVM: &[&str] = &["-accel", "kvm", "-cpu", "host"];
/// Linux does not trust a timer that ticks too little in a given time, and stops at the last one. On a host that stands still at times
/// all of an emulated machine's timers look like that; known hypervisors are taken at their word by Linux itself, an emulator is not.
const TCG: &[&str] = &[
    "-accel",
    "tcg,thread=multi",
    "-cpu",
    "max",
    "-smbios",
    "type=11,value=io.systemd.stub.kernel-cmdline-extra=no_timer_check",
];

/// Finds out how guests run here, or remembers it. Takes about a second the first time.
pub fn probe() -> Result<Accel> {
    let key = format!("{} {}", boot_id(), qemu_version()?);
    let path = cache_dir()?.join("accel.json");
    if let Ok(Ok(cached)) = fs::read(&path).map(|text| serde_json::from_slice::<Cached>(&text))
        && cached.key == key
    {
        return Ok(cached.accel);
    }
    let accel = measure()?;
    let cached = Cached { key, accel };
    // A lost cache costs a second; it is no reason to fail.
    let _ = fs::create_dir_all(cache_dir()?).and_then(|()| fs::write(&path, serde_json::to_vec(&cached)?));
    Ok(cached.accel)
}

fn measure() -> Result<Accel> {
    let no_kvm = match try_kvm() {
        Ok(loop_time) => {
            return Ok(Accel {
                kind: Kind::Kvm,
                reason: "a guest ran under /dev/kvm".to_owned(),
                slowdown: slowdown(loop_time),
            });
        }
        Err(reason) => format!("{reason:#}"),
    };
    let loop_time = count(TCG).context("QEMU cannot even run an emulated guest")?;
    Ok(Accel { kind: Kind::Tcg, reason: no_kvm, slowdown: slowdown(loop_time) })
}

fn slowdown(loop_time: Duration) -> f64 {
    (loop_time.as_secs_f64() / REFERENCE.as_secs_f64()).max(1.0)
}

fn try_kvm() -> Result<Duration> {
    if !Path::new("/dev/kvm").exists() {
        bail!("there is no /dev/kvm");
    }
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("/dev/kvm cannot be opened (is this user in group kvm?)")?;
    let loop_time = count(KVM).context("/dev/kvm exists but does not run a boot sector")?;
    start_firmware().context("/dev/kvm runs a boot sector but not the firmware")?;
    Ok(loop_time)
}

/// Runs [`boot_sector`] and measures its loop.
fn count(accel: &[&str]) -> Result<Duration> {
    let disk = tempfile::NamedTempFile::new().context("failed to make a temporary file")?;
    fs::write(disk.path(), boot_sector())?;
    let drive = format!("format=raw,file={}", disk.path().display());
    let mut command = Command::new(QEMU);
    command.args(accel).args(["-machine", "pc", "-m", "16", "-drive", &drive]);
    let mut started = None;
    watch(command, PROBE_LIMIT, |byte| match (byte, started) {
        (b'S', None) => {
            started = Some(Instant::now());
            None
        }
        (b'E', Some(at)) => Some(at.elapsed()),
        _ => None,
    })
}

/// Starts the firmware without any disk and waits for what it says on the console.
fn start_firmware() -> Result<Duration> {
    let drive = format!("if=pflash,format=raw,readonly=on,file={FIRMWARE}");
    let mut command = Command::new(QEMU);
    command.args(KVM).args(["-machine", "q35", "-m", "256", "-drive", &drive]);
    let start = Instant::now();
    let mut printable = 0;
    watch(command, FIRMWARE_LIMIT, |byte| {
        printable += u32::from(byte.is_ascii_graphic());
        (printable > 20).then(|| start.elapsed())
    })
}

/// Runs QEMU with the serial console on standard output, until `saw` answers.
fn watch(
    mut command: Command,
    limit: Duration,
    mut saw: impl FnMut(u8) -> Option<Duration>,
) -> Result<Duration> {
    let errors = tempfile::tempfile()?;
    let mut child = command
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .args(["-device", "isa-debug-exit,iobase=0x501"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors.try_clone()?)
        .spawn()
        .with_context(|| format!("failed to run `{QEMU}`"))?;
    let mut output = child.stdout.take().context("no standard output")?;
    let (send, receive) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut byte = [0];
        while matches!(output.read(&mut byte), Ok(1)) && send.send(byte[0]).is_ok() {}
    });
    let deadline = Instant::now() + limit;
    let answer = loop {
        match receive.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(byte) => {
                if let Some(answer) = saw(byte) {
                    break Ok(answer);
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                break Err(format!("nothing within {} s", limit.as_secs()));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break Err("QEMU ended".to_owned()),
        }
    };
    // It may have ended by itself.
    let _ = child.kill();
    child.wait()?;
    drop(receive);
    let _ = reader.join();
    answer.map_err(|what| anyhow::anyhow!("{what}{}", first_complaint(errors)))
}

fn first_complaint(mut errors: fs::File) -> String {
    use std::io::Seek;
    let mut text = String::new();
    if errors.rewind().is_err() || errors.read_to_string(&mut text).is_err() {
        return String::new();
    }
    let line = text.lines().find(|line| line.contains("rror") || line.contains("failure"));
    line.map(|line| format!(" ({})", line.trim_start_matches("qemu-system-x86_64: "))).unwrap_or_default()
}

/// 16-bit code: prints `S` on the first serial port, loops [`ROUNDS`] times over a load, an addition, a store, a call
/// and a return, prints `E` and leaves through the debug-exit device.
fn boot_sector() -> [u8; 512] {
    let mut code: Vec<u8> = vec![
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0x8e, 0xd0, // mov ss, ax
        0xbc, 0x00, 0x70, // mov sp, 0x7000
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, b'S', 0xee, // mov al, 'S'; out dx, al
        0x66, 0xb9, // mov ecx, ROUNDS
    ];
    code.extend(ROUNDS.to_le_bytes());
    code.extend([
        0x66, 0xa1, 0x00, 0x60, // again: mov eax, [0x6000]
        0x66, 0x01, 0xc8, // add eax, ecx
        0x66, 0xa3, 0x00, 0x60, // mov [0x6000], eax
        0xe8, 0x0e, 0x00, // call function
        0x66, 0x49, // dec ecx
        0x75, 0xee, // jnz again
        0xb0, b'E', 0xee, // mov al, 'E'; out dx, al
        0xba, 0x01, 0x05, // mov dx, 0x501
        0xb0, 0x10, 0xee, // mov al, 0x10; out dx, al
        0xf4, // hlt
        0xc3, // function: ret
    ]);
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn qemu_version() -> Result<String> {
    let output = Command::new(QEMU).arg("--version").output().with_context(|| {
        format!("`{QEMU}` is not there: run inside the toolbox (`just vm-cluster` does), or install qemu-system-x86")
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}
