// SPDX-License-Identifier: Apache-2.0
//! `just bench formation`: how fast a cluster forms and what it says, on the simulated LAN. Times and traffic are virtual:
//! they are properties of the protocol, not of this machine. Datagrams only; streams (admission, pulls) are not counted.
// It uses a part of the simulation.
#![allow(missing_docs, unreachable_pub, dead_code, unused_imports)]

#[path = "../tests/sim/mod.rs"]
mod sim;

use std::time::{Duration, Instant};

use sim::{Faults, World};

/// How long a formed cluster is listened to.
const QUIET: Duration = Duration::from_secs(60);

fn main() {
    println!(
        "{:>6} {:>8} {:>12} {:>14} {:>14} {:>10}",
        "nodes", "network", "formed in", "datagrams/s", "bytes/s", "host time"
    );
    println!("{:>6} {:>8} {:>12} {:>14} {:>14} {:>10}", "", "", "(virtual)", "per node", "per node", "");
    for nodes in [3, 10, 30] {
        for (name, faults) in [("clean", Faults::NONE), ("rough", Faults::ROUGH)] {
            let start = Instant::now();
            let mut world = World::new(1);
            world.faults = faults;
            let all = world.boot_cluster(nodes, "");
            let formed =
                world.wait("one cluster", Duration::from_secs(300), |world| world.is_one_cluster(&all));
            world.capture = Some(Vec::new());
            world.run(QUIET);
            let seen = world.capture.take().unwrap_or_default();
            let bytes: usize = seen.iter().map(|datagram| datagram.bytes.len()).sum();
            let per = nodes as f64 * QUIET.as_secs_f64();
            println!(
                "{nodes:>6} {name:>8} {:>10.1} s {:>14.2} {:>14.0} {:>8.1} s",
                formed.as_secs_f64(),
                seen.len() as f64 / per,
                bytes as f64 / per,
                start.elapsed().as_secs_f64()
            );
        }
    }
    println!(
        "rough: 5 % loss, 2 % duplicates, 5 to 55 ms delay; a minute of a formed cluster is counted as delivered"
    );
}
