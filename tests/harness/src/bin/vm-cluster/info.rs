// SPDX-License-Identifier: Apache-2.0
//! `info`: where everything is and how it runs.

use anyhow::Result;
use clap::Args;
use cluster_harness::accel::{self, Kind};
use cluster_harness::client::Client;
use cluster_harness::qemu::mac;
use cluster_harness::state::{ClusterDir, Shape};
use cluster_harness::switch::PortId;
use cluster_harness::timeouts;

use crate::terminal::{commands, table};

/// Paths, sockets, acceleration, image, time limits; other clusters
#[derive(Args)]
pub(crate) struct Info {}

pub(crate) fn run(dir: &ClusterDir, _: &Info) -> Result<()> {
    for other in ClusterDir::all()? {
        let state = if other.is_alive() { "running" } else { "stopped" };
        println!("cluster `{}`: {state}, files in {}", other.name(), other.root().display());
    }
    let Some(spec) = dir.load()? else {
        let accel = accel::probe()?;
        println!("acceleration: {} ({}), factor {:.1}", kind(accel.kind), accel.reason, accel.slowdown);
        println!("{}", commands(&format!("there is no cluster `{}`: `vm-cluster up` makes one", dir.name())));
        return Ok(());
    };
    println!("\nimage:        {}", spec.image.display());
    println!("commit:       {}", spec.commit.as_deref().unwrap_or("unknown"));
    println!(
        "acceleration: {} ({}), factor {:.1}",
        kind(spec.accel.kind),
        spec.accel.reason,
        spec.accel.slowdown
    );
    println!("seed:         {}", spec.seed);
    println!("snapshot:     {}", if spec.snapshot.is_some() { "yes" } else { "none" });
    println!("daemon log:   {}", dir.daemon_log().display());
    println!("control:      {}", dir.control().display());
    let status = Client::connect(dir).and_then(|client| Ok((client.speed()?, client.status()?))).ok();

    println!();
    let mut rows =
        vec![["VM", "CPUS", "MEMORY", "DISK", "BUS", "MAC", "QEMU", "FILES"].map(str::to_owned).to_vec()];
    for (number, vm) in &spec.vms {
        let pid = status.as_ref().and_then(|(_, status)| status.vms.get(number)?.pid);
        rows.push(vec![
            number.to_string(),
            vm.shape.cpus.to_string(),
            format!("{} MiB", vm.shape.memory_mib),
            format!("{:.1} GiB", vm.shape.disk_bytes as f64 / f64::from(1 << 30)),
            buses(&vm.shape),
            mac(PortId::new(*number, 1)),
            pid.map_or("off".to_owned(), |pid| format!("pid {pid}")),
            dir.vm(*number).root().display().to_string(),
        ]);
    }
    print!("{}", table(&rows));
    println!(
        "each folder: disk.qcow2, vars.qcow2, serial.log, qemu.log, qmp.sock, guest.sock, console.sock, net.sock"
    );

    let Some((speed, status)) = status else {
        println!("{}", commands("switched off: `vm-cluster start` switches it on"));
        return Ok(());
    };
    println!();
    let mut rows =
        vec![["PORT", "LAN", "SENT", "BYTES", "RECEIVED", "BYTES", "DROPPED"].map(str::to_owned).to_vec()];
    for (port, view) in &status.ports {
        let counters = view.counters;
        let numbers = [
            counters.sent,
            counters.sent_bytes,
            counters.received,
            counters.received_bytes,
            counters.dropped,
        ];
        rows.push(
            [port.to_string(), view.lan.to_string()]
                .into_iter()
                .chain(numbers.map(|number| number.to_string()))
                .collect(),
        );
    }
    print!("{}", table(&rows));

    println!();
    let mut rows = vec![["TIME LIMIT", "FULL SPEED", "HERE", "FOR"].map(str::to_owned).to_vec()];
    for limit in timeouts::ALL {
        let here = format!("{} s", speed.limit(*limit).as_secs());
        rows.push(vec![limit.name.to_owned(), format!("{} s", limit.seconds), here, limit.what.to_owned()]);
    }
    print!("{}", table(&rows));
    Ok(())
}

/// The disks' buses, the one that boots first.
fn buses(shape: &Shape) -> String {
    let mut buses = vec![format!("{:?}", shape.bus).to_lowercase()];
    if let Some(second) = &shape.second {
        buses.insert(usize::from(!second.boots), format!("{:?}", second.bus).to_lowercase());
    }
    buses.join(", ")
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Kvm => "KVM",
        Kind::Tcg => "emulation",
    }
}
