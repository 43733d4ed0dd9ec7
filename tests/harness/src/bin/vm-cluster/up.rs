// SPDX-License-Identifier: Apache-2.0
//! `up`: N VMs become one cluster.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use cluster_harness::accel::Kind;
use cluster_harness::client::{Client, states};
use cluster_harness::cluster::{self, Plan, Provisioning};
use cluster_harness::console::Stage;
use cluster_harness::protocol::{LinkChange, Request};
use cluster_harness::state::{Bus, ClusterDir, Second, Shape};
use cluster_harness::switch::Direction;
use cluster_harness::timeouts;

use crate::faults::port_delay;
use crate::status::show_table;
use crate::terminal::{Progress, catch_interrupts, commands, interrupted, table};

/// Start N VMs that form a cluster, and wait until each sees all of them up
#[derive(Args)]
pub(crate) struct Up {
    /// How many VMs
    #[arg(default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=200))]
    vms: u32,
    /// Raw image to boot; it is copied, never written to
    #[arg(long, env = "CLUSTER_OS_IMAGE")]
    image: PathBuf,
    /// A cluster.toml for all VMs (default: a new one with a new join key)
    #[arg(long)]
    toml: Option<PathBuf>,
    #[command(flatten)]
    hardware: Hardware,
    /// Decides which frames lossy links drop
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Switch ports have carrier at once, but pass frames only this long after power on, like 60s
    #[arg(long, value_parser = port_delay, default_value = "0s")]
    port_delay: u64,
}

/// Hardware of a VM.
#[derive(Args)]
pub(crate) struct Hardware {
    /// Virtual CPUs of each VM
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Memory of each VM, like 1G or 768M
    #[arg(long, default_value = "1G", value_parser = size)]
    memory: u64,
    /// Disk of each VM, like 14400M (default: 14.4 GiB, sold as 16 GB)
    #[arg(long, value_parser = size)]
    disk: Option<u64>,
    /// What the disk is attached to
    #[arg(long, value_enum, default_value = "virtio")]
    bus: Bus,
    /// A second disk with the same image, attached to this
    #[arg(long, value_enum)]
    second: Option<Bus>,
    /// Boot the second disk
    #[arg(long, requires = "second")]
    boot_second: bool,
    /// Network cards, each by its LAN: 1,1 for two on one LAN, 1,2 for two LANs
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u8).range(1..=9))]
    lans: Vec<u8>,
    /// SMBIOS UUID (default: none, as cheap boards)
    #[arg(long)]
    uuid: Option<String>,
    /// Add an i6300esb watchdog
    #[arg(long)]
    watchdog: bool,
    /// What the hardware clock says at power on, like 1970-01-01T00:00:00
    #[arg(long)]
    rtc: Option<String>,
}

impl Hardware {
    pub(crate) fn shape(&self) -> Shape {
        let bytes = self.disk.unwrap_or(Shape::default().disk_bytes);
        Shape {
            cpus: self.cpus,
            memory_mib: self.memory / MIB,
            disk_bytes: bytes,
            bus: self.bus,
            second: self.second.map(|bus| Second { bus, bytes, base: None, boots: self.boot_second }),
            lans: self.lans.clone(),
            uuid: self.uuid.clone(),
            watchdog: self.watchdog,
            rtc: self.rtc.clone(),
            second_serial: false,
            oem_strings: Vec::new(),
            log_writes: false,
        }
    }
}

const MIB: u64 = 1024 * 1024;

/// Reads `1G`, `1.5G`, `768M`; a bare number is MiB. Whole MiB come out, in bytes.
fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.trim_end_matches(['B', 'b']).trim_end_matches('i') {
        rest if rest.ends_with(['G', 'g']) => (&rest[..rest.len() - 1], 1024.0),
        rest if rest.ends_with(['M', 'm']) => (&rest[..rest.len() - 1], 1.0),
        rest => (rest, 1.0),
    };
    let mib = number.parse::<f64>().map_err(|_| format!("`{text}` is not a size: write 1G or 768M"))? * unit;
    if !(1.0..=1e9).contains(&mib) {
        return Err(format!("`{text}` is out of range"));
    }
    Ok(mib as u64 * MIB)
}

pub(crate) fn run(dir: &ClusterDir, verb: &Up) -> Result<ExitCode> {
    let cluster_toml = match &verb.toml {
        Some(path) => {
            fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()))?
        }
        None => cluster::new_cluster_toml(dir.name())?,
    };
    let image = verb.image.clone();
    let plan = Plan { image, shape: verb.hardware.shape(), cluster_toml, seed: verb.seed };
    catch_interrupts()?;
    let stopped = dir.load()?.is_some() && !dir.is_alive();
    let mut progress = Progress::new();
    progress.show("testing whether KVM works");
    if stopped {
        progress.show(&format!("removing the stopped cluster `{}`", dir.name()));
    }
    let client = cluster::create(dir, &plan, verb.vms as usize)?;
    let result = bring_up(&client, verb, &mut progress);
    progress.end();
    match result {
        Ok(Some(took)) => {
            client.request(&Request::Release)?;
            show_table(&client)?;
            println!("\n{} members up {} s after power on ({}).", verb.vms, took.as_secs(), accel(&client)?);
            let next = |(command, what): &(&str, &str)| {
                vec![String::new(), commands(command).replace('`', ""), commands(what)]
            };
            print!("\nNext:\n{}", table(&NEXT.iter().map(next).collect::<Vec<_>>()));
            Ok(ExitCode::SUCCESS)
        }
        Ok(None) => {
            client.request(&Request::Shutdown)?;
            eprintln!("interrupted: all VMs of cluster `{}` are off, nothing is left running", dir.name());
            Ok(ExitCode::from(130))
        }
        Err(error) => {
            // What failed can be looked at: the VMs stay.
            if client.request(&Request::Release).is_ok() {
                eprintln!("{}", commands(STILL_ON));
            }
            Err(error)
        }
    }
}

/// What one may want to do next.
const NEXT: &[(&str, &str)] = &[
    ("`vm-cluster shell 1`", "a shell in VM 1"),
    ("`vm-cluster shell 1 clusterctl nodes`", "the members as VM 1 sees them"),
    ("`vm-cluster kill 2`", "cut the power of VM 2; `vm-cluster start 2` brings it back"),
    ("`vm-cluster add`", "add a VM"),
    ("`vm-cluster stop`", "switch off, keep the disks"),
    ("`vm-cluster clean`", "switch off, delete everything"),
];
const STILL_ON: &str = "the VMs are still on: look with `vm-cluster status` and `vm-cluster logs 1 --serial`, \
     end with `vm-cluster clean`";

/// Returns the time from power on to all up; `None` after Ctrl-C.
fn bring_up(client: &Client, verb: &Up, progress: &mut Progress) -> Result<Option<Duration>> {
    progress.show("copying the image and writing cluster.toml into it");
    for _ in 0..verb.vms {
        let vm = cluster::add(client, &Provisioning::Cluster, None)?;
        let change = LinkChange::OpensAfterMs(verb.port_delay);
        client.request(&Request::Link { vm, nic: None, direction: Direction::Both, change })?;
    }
    let start = Instant::now();
    let numbers: Vec<u32> = client.spec()?.vms.into_keys().collect();
    for vm in &numbers {
        progress.show(&format!("switching on VM {vm}"));
        client.vm(*vm).start()?;
    }
    let late = Duration::from_millis(verb.port_delay);
    let up = wait_all_up(client, &numbers, late, progress)?;
    Ok(up.then(|| start.elapsed()))
}

/// Waits until each VM of `numbers` sees as many members up, `late` longer than usual; false after Ctrl-C.
fn wait_all_up(client: &Client, numbers: &[u32], late: Duration, progress: &mut Progress) -> Result<bool> {
    let speed = client.speed()?;
    let start = Instant::now();
    let limit = speed.limit(timeouts::BOOT) + speed.limit(timeouts::MEMBERS) + late;
    let pause = Duration::from_millis(250).mul_f64(speed.factor.min(8.0));
    loop {
        let mut all_up = true;
        let mut shown = Vec::new();
        for vm in numbers {
            let (up, what) = look(client, *vm, numbers.len())?;
            all_up &= up;
            shown.push(format!("VM {vm}: {what}"));
        }
        progress.show(&shown.join(" · "));
        if all_up {
            return Ok(true);
        }
        ensure!(
            start.elapsed() < limit,
            "after {} s (limits `boot` and `members`, times {:.1} on this host) not all members are up: {}; \
             logs are in `{}`",
            start.elapsed().as_secs(),
            speed.factor,
            shown.join(", "),
            client.dir().root().display()
        );
        let until = Instant::now() + pause;
        while Instant::now() < until {
            if interrupted() {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn look(client: &Client, number: u32, wanted: usize) -> Result<(bool, String)> {
    let vm = client.vm(number);
    let stage = vm.stage()?;
    if stage == Stage::Off {
        let ended = vm.status()?.ended.unwrap_or_else(|| "it was switched off".to_owned());
        bail!("VM {number} is off: {ended}");
    }
    if stage != Stage::System {
        let resets = vm.status()?.resets;
        let again = if resets > 0 { format!(", boot {}", resets + 1) } else { String::new() };
        return Ok((false, format!("{stage}{again}")));
    }
    let Ok(members) = vm.members() else { return Ok((false, "agent starting".to_owned())) };
    let up = members.iter().filter(|member| member.state == "up").count();
    let odd: Vec<_> = members.into_iter().filter(|member| member.state != "up").collect();
    let detail = if odd.is_empty() { String::new() } else { format!(" ({})", states(&odd)) };
    Ok((up >= wanted && odd.is_empty(), format!("{up} of {wanted} members{detail}")))
}

fn accel(client: &Client) -> Result<String> {
    let accel = client.spec()?.accel;
    Ok(match accel.kind {
        Kind::Kvm => "KVM".to_owned(),
        Kind::Tcg => commands(&format!(
            "emulated, {:.0} times slower than the reference; `vm-cluster info` says why",
            accel.slowdown
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("1G"), Ok(1024 * MIB));
        assert_eq!(size("1.5GiB"), Ok(1536 * MIB));
        assert_eq!(size("768M"), Ok(768 * MIB));
        assert_eq!(size("512"), Ok(512 * MIB));
        assert!(size("much").is_err());
        assert!(size("0").is_err());
    }
}
