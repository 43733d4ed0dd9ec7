// SPDX-License-Identifier: Apache-2.0
//! Machines that have too much to do.
#![allow(missing_docs, unreachable_pub)]

mod sim;

use std::time::Duration;

use sim::{Host, World, join_key, settings};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Exchanges that the first five begin while eight more join, one every two seconds, on a host that is elsewhere for so
/// long again and again.
fn exchanges_while_others_join(seed: u64, elsewhere: Duration) -> u64 {
    let mut world = World::new(seed);
    let mut all = world.boot_cluster(5, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(10));
    world.host = Some(Host::new(1, 1.0));
    let connects = |world: &World| (0..5).map(|n| world.machines[n].traffic.connects).sum::<u64>();
    let before = connects(&world);
    for _ in 0..8 {
        let new = world.add(Some(settings(&join_key(1), "")));
        world.power_on(new);
        all.push(new);
        for _ in 0..4 {
            if let Some(host) = &mut world.host {
                host.compute(world.now, ("something else", elsewhere));
            }
            world.run(Duration::from_millis(500));
        }
    }
    let begun = connects(&world) - before;
    world.wait("all are in", secs(15), |world| world.is_one_cluster(&all));
    begun
}

#[test]
fn a_busy_machine_begins_fewer_exchanges() {
    let sum = |elsewhere| (61..64).map(|seed| exchanges_while_others_join(seed, elsewhere)).sum::<u64>();
    let (idle, busy) = (sum(Duration::ZERO), sum(Duration::from_millis(400)));
    println!("{idle} exchanges on idle machines, {busy} on busy ones");
    assert!(busy * 6 < idle * 5, "{busy} {idle}");
}
