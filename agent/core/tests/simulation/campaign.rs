// SPDX-License-Identifier: Apache-2.0
//! The simulation at full size: `just campaign sim`. Every scenario prints its figures. They are ignored in `cargo test`,
//! because together they take a quarter of an hour in an optimised build.

use std::time::{Duration, Instant};

use crate::secs;
use crate::sim::{AT_SCALE, Faults, Host, Machine, World, seeds};
use cluster_agent_core::{LogLevel, MemberState};

/// So many machines, unless `SIM_NODES` says another number.
fn nodes_or(usual: usize) -> usize {
    std::env::var("SIM_NODES").ok().and_then(|nodes| nodes.parse().ok()).unwrap_or(usual)
}

/// A large cluster.
fn many() -> usize {
    nodes_or(1000)
}

/// A founded cluster of one, and `count - 1` machines that are switched on at once and hear it.
fn join_through_one_seed(seed: u64, count: usize, faults: Faults) -> (World, Vec<usize>, Duration) {
    let mut world = World::new(seed);
    let all = world.add_cluster(count, "");
    for machine in &mut world.machines {
        machine.log_level = AT_SCALE;
    }
    world.power_on(all[0]);
    world.wait("the seed founds", secs(15), |world| world.is_one_cluster(&all[..1]));
    world.faults = faults;
    for n in &all[1..] {
        world.power_on(*n);
    }
    let began = world.now;
    let told = std::cell::Cell::new(0);
    let took = world.wait("all know all", secs(60), |world| {
        let second = (world.now - began).as_secs();
        if second > told.replace(second) {
            let cluster = world.status(all[0]).cluster_id;
            let know = all.iter().filter(|n| world.knows_all(**n, count, cluster.as_ref())).count();
            let least = all.iter().map(|n| world.machines[*n].ups(world.now)).min();
            println!("  {second} s: {know} of {count} know all; who knows least knows {least:?}");
        }
        world.is_one_cluster(&all)
    });
    (world, all, took)
}

/// Bytes that a node says in a second: datagrams, and what is inside streams.
fn traffic(world: &mut World, all: &[usize], during: Duration) -> (f64, f64, f64) {
    let sum = |world: &World| {
        all.iter().map(|n| world.machines[*n].traffic).fold((0, 0, 0), |(datagrams, bytes, streams), one| {
            (datagrams + one.sent_datagrams, bytes + one.sent_bytes, streams + one.stream_bytes)
        })
    };
    let before = sum(world);
    world.run(during);
    let after = sum(world);
    let per = all.len() as f64 * during.as_secs_f64();
    ((after.0 - before.0) as f64 / per, (after.1 - before.1) as f64 / per, (after.2 - before.2) as f64 / per)
}

/// No live node was declared down by anybody, and none had to come back under a new identity.
fn assert_nobody_fell(world: &World) {
    for machine in &world.machines {
        assert_eq!(machine.downs, Vec::new());
        assert_eq!(machine.logged(LogLevel::Warn), Vec::<String>::new());
    }
}

#[test]
#[ignore = "campaign"]
fn a_thousand_join_through_one_seed_within_five_seconds() {
    for seed in seeds(1..2) {
        let began = Instant::now();
        let (world, _, took) = join_through_one_seed(seed, many(), Faults::NONE);
        tell_join("clean", &world, took, began);
        assert!(took <= secs(5), "{took:?}");
    }
}

/// As `just bench members` does it: all others are switched on at once, and two processors do the work of all. Time and
/// work are figures to compare one's own changes with; that nobody is declared down meanwhile is not.
#[test]
#[ignore = "campaign"]
fn a_crowd_on_one_busy_host() {
    let count = nodes_or(100);
    // So many times longer than in the profiles everything takes (ADR 0006).
    let slower =
        std::env::var("SIM_SLOWER").map_or(1.0, |times| times.parse().expect("SIM_SLOWER is a number"));
    for seed in seeds(1..6) {
        let began = Instant::now();
        let mut world = World::new(seed);
        let all = world.add_cluster(count, "");
        world.power_on(all[0]);
        world.wait("the first one founds", secs(15), |world| world.is_one_cluster(&all[..1]));
        world.host = Some(Host::new(2, slower));
        for n in &all[1..] {
            world.power_on(*n);
        }
        // Members, not yet tunnels: that is what is compared there.
        let took = world.wait("all know all", secs(120), |world| {
            world.all(&all, |n| world.machines[n].ups(world.now) as usize == count)
        });
        let computed = world.host.as_ref().map_or(0.0, |host| host.computed().as_secs_f64());
        let sum = |what: fn(&Machine) -> u64| all.iter().map(|n| what(&world.machines[*n])).sum::<u64>();
        println!(
            "{count} nodes on two processors: all know all after {:.2} s, computed {computed:.1} s, {:.1} MB, {} opens, {} connects; {:.0} s of host time",
            took.as_secs_f64(),
            sum(|one| one.traffic.sent_bytes + one.traffic.stream_bytes) as f64 / 1e6,
            sum(|one| one.traffic.opens),
            sum(|one| one.traffic.connects),
            began.elapsed().as_secs_f64()
        );
        for (what, (times, long)) in world.host.iter().flat_map(|host| &host.work) {
            println!("  {times:6} {what}, {:.2} s", long.as_secs_f64());
        }
        assert_nobody_fell(&world);
    }
}

fn tell_join(name: &str, world: &World, took: Duration, began: Instant) {
    println!(
        "{} nodes, {name}: all know all after {:.2} s; {} inputs, {:.0} s of host time",
        world.machines.len(),
        took.as_secs_f64(),
        world.handled,
        began.elapsed().as_secs_f64()
    );
}

/// Bytes that a node says in a second in a settled cluster of this size.
fn settled_traffic(count: usize) -> f64 {
    let (mut world, all, took) = join_through_one_seed(1, count, Faults::LOSSY);
    world.run(secs(120));
    let (datagrams, bytes, streams) = traffic(&mut world, &all, secs(120));
    println!(
        "{count} nodes: {datagrams:.2} datagrams/s with {bytes:.0} bytes/s, {streams:.0} bytes/s on streams per node; all knew all after {:.2} s",
        took.as_secs_f64()
    );
    bytes + streams
}

/// One world for all that is asked of a thousand nodes with loss, because their joining is most of the work.
#[test]
#[ignore = "campaign"]
fn a_thousand_with_loss_join_soon_stay_up_talk_little_and_notice_deaths() {
    let (ten, hundred) = (settled_traffic(10), settled_traffic(100));
    assert!(hundred <= 4.0 * ten, "100 nodes: {hundred:.0} bytes/s each, ten: {ten:.0}");

    let began = Instant::now();
    let (mut world, all, took) = join_through_one_seed(1, many(), Faults::LOSSY);
    tell_join("5 % loss", &world, took, began);
    assert!(took <= secs(5), "{took:?}");

    let mut settled = 0.0;
    for minute in 1..=10 {
        let (datagrams, bytes, streams) = traffic(&mut world, &all, secs(60));
        println!(
            "minute {minute}: {datagrams:.2} datagrams/s, {bytes:.0} bytes/s, {streams:.0} bytes/s on streams per node; {:.0} s of host time",
            began.elapsed().as_secs_f64()
        );
        assert_nobody_fell(&world);
        settled = bytes + streams;
    }
    assert!(world.is_one_cluster(&all));
    assert!(settled <= 4.0 * ten, "{} nodes: {settled:.0} bytes/s each, ten: {ten:.0}", many());

    for dead in [17, many() / 2, many() - 1] {
        world.power_off(dead);
        let alive: Vec<_> = all.iter().copied().filter(|n| world.machines[*n].is_on()).collect();
        let took = world.wait("all know it", secs(40), |world| {
            world.all(&alive, |n| world.state(n, dead) == Some(MemberState::Down))
        });
        println!(
            "a death among {} is known to all after {:.1} s; {:.0} s of host time",
            many(),
            took.as_secs_f64(),
            began.elapsed().as_secs_f64()
        );
        assert!(took <= secs(20), "{took:?}");
    }
}

#[test]
#[ignore = "campaign"]
fn ten_hours_of_small_clusters_with_loss_declare_nobody_down() {
    for count in [2, 3, 5, 10] {
        let began = Instant::now();
        let mut world = World::new(3);
        world.faults = Faults::LOSSY;
        let all = world.boot_cluster(count, "");
        world.wait("one cluster", secs(60), |world| world.is_one_cluster(&all));
        for machine in &mut world.machines {
            (machine.log_level, machine.downs) = (AT_SCALE, Vec::new());
            machine.log.clear();
        }
        let (datagrams, bytes, streams) = traffic(&mut world, &all, secs(10 * 3600));
        println!(
            "{count} nodes for 10 h: {datagrams:.2} datagrams/s, {bytes:.0} bytes/s, {streams:.0} bytes/s on streams per node; {:.0} s of host time",
            began.elapsed().as_secs_f64()
        );
        assert_nobody_fell(&world);
        assert!(world.is_one_cluster(&all));
    }
}

#[test]
#[ignore = "campaign"]
fn a_hundred_switched_on_at_once_become_exactly_one_cluster() {
    for seed in seeds(1..4) {
        let mut world = World::new(seed);
        world.faults = Faults::ROUGH;
        let all = world.boot_cluster(100, "");
        let took = world.wait("one cluster", secs(180), |world| world.is_one_cluster(&all));
        println!("100 nodes at once, seed {seed}: one cluster after {:.1} s", took.as_secs_f64());
    }
}

#[test]
#[ignore = "campaign"]
fn whatever_the_weather_it_is_one_cluster_afterwards() {
    let mut longest = Duration::ZERO;
    let all_seeds = seeds(1000..1200);
    for seed in &all_seeds {
        let mut world = World::new(*seed);
        let all = world.boot_cluster(2 + (*seed % 7) as usize, "");
        world.wait("one cluster", secs(30), |world| world.is_one_cluster(&all));
        let before = world.status(0).cluster_id;
        world.weather(&all, secs(300));
        let took = world.wait("one cluster again", secs(180), |world| world.is_one_cluster(&all));
        assert_eq!(world.status(0).cluster_id, before, "the cluster is the one of before");
        longest = longest.max(took);
    }
    println!("{} seeds of weather; healed after {:.1} s at most", all_seeds.len(), longest.as_secs_f64());
}
