// SPDX-License-Identifier: Apache-2.0
//! What somebody on the LAN without any key can send in masses, while a member restarts and a new node comes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::secs;
use crate::sim::{World, join_key, settings};
use cluster_agent_core::{Input, Phase, StreamId};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// One of thirty thousand addresses.
fn spoofed(n: u64) -> SocketAddr {
    let n = n % 30_000;
    SocketAddr::from(([10, 1 + (n >> 14) as u8, (n >> 7 & 127) as u8, 100 + (n & 127) as u8], 41410))
}

/// Three members; one of them restarts and a new node comes while `flood` is called every 10 ms. Gives how long it took until
/// all four were one cluster, which must be the one that was there.
fn while_flooded(seed: u64, mut flood: impl FnMut(&mut World, u64)) -> Duration {
    let mut world = World::new(seed);
    let mut all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(40));
    let cluster = world.status(0).cluster_id;
    let mut step = 0;
    let mut pass = |world: &mut World, steps: u64| {
        for _ in 0..steps {
            flood(world, step);
            step += 1;
            world.run(Duration::from_millis(10));
        }
    };
    let mut until_one = |world: &mut World, all: &[usize]| {
        let began = world.now;
        while !world.is_one_cluster(all) {
            pass(world, 10);
            assert!(world.now < began + secs(15), "not one cluster after {:?}", world.now - began);
        }
        // Where nothing was remembered yet the flood has come, too, before the next thing happens.
        pass(world, 150);
        world.now - began
    };
    until_one(&mut world, &all);
    world.power_off(2);
    world.run(secs(1));
    world.power_on(2);
    let back = until_one(&mut world, &all);
    let new = world.add(Some(settings(&join_key(1), "")));
    world.power_on(new);
    all.push(new);
    let took = until_one(&mut world, &all).max(back);
    println!("back, and let in, after {took:?}");
    assert!(world.is_one_cluster(&all), "it did not stay so");
    assert!(all.iter().all(|n| world.status(*n).phase == Phase::Member));
    assert_eq!(world.status(new).cluster_id, cluster, "it founded one of its own");
    took
}

/// What fills tables of sources and uses up what all share: garbage of each kind, from everywhere.
#[test]
fn garbage_from_everywhere_keeps_nobody_out() {
    let mut rng = StdRng::seed_from_u64(80);
    let mut from = 0;
    let took = while_flooded(80, |world, _| {
        for n in 0..world.machines.len() {
            for (kind, count) in [(1, 100), (2, 60), (3, 5), (4, 5), (5, 5), (6, 5)] {
                for _ in 0..count {
                    from += 7;
                    let mut bytes = vec![0; if kind == 1 { 138 } else { 150 }];
                    rng.fill_bytes(&mut bytes);
                    bytes[..2].copy_from_slice(&[1, kind]);
                    world.inject(n, spoofed(from), bytes);
                }
            }
        }
    });
    assert!(took < secs(8), "{took:?}");
}

/// Beacons of a node that came by once, from everywhere: they open, and each asks for an answer.
#[test]
fn repeated_beacons_from_everywhere_keep_nobody_out() {
    let mut from = 0;
    let mut heard = Vec::new();
    let took = while_flooded(81, |world, step| {
        if step == 0 {
            world.capture = Some(Vec::new());
            let stranger = world.add(Some(settings(&join_key(1), "")));
            (1..3).for_each(|n| world.link(n, false));
            world.power_on(stranger);
            // Its first beacon is out, and it has not been let in.
            let called = |world: &World| {
                let seen = world.capture.iter().flatten();
                seen.filter(|seen| seen.from == stranger && seen.bytes[1] == 1).count() > 1
            };
            while !called(world) {
                world.run(Duration::from_millis(1));
            }
            world.power_off(stranger);
            (1..3).for_each(|n| world.link(n, true));
            heard = world.capture.take().unwrap_or_default();
            heard.retain(|seen| seen.from == stranger && seen.bytes[1] == 1);
            assert!(!heard.is_empty());
        }
        for n in 0..world.machines.len() {
            for seen in heard.iter().cycle().take(100) {
                from += 7;
                world.inject(n, spoofed(from), seen.bytes.clone());
            }
        }
    });
    assert!(took < secs(8), "{took:?}");
}

/// Connections on which nothing is said: from one address, from many of one network, from many networks, and from as many
/// link-local addresses.
#[test]
fn half_open_streams_keep_nobody_out() {
    let one: fn(u64) -> IpAddr = |_| [10, 0, 0, 200].into();
    let neighbours: fn(u64) -> IpAddr = |n| [10, 9, 9, (n % 20) as u8].into();
    let networks: fn(u64) -> IpAddr = |n| [10, 9, (n % 200) as u8, 1].into();
    let link_local: fn(u64) -> IpAddr = |n| [0xfe80, 0, 0, 0, 0, 0, 9, n as u16].into();
    for (seed, address) in [(82, one), (83, neighbours), (84, networks), (88, link_local)] {
        let mut opened = 0;
        let took = while_flooded(seed, |world, _| {
            for n in 0..world.machines.len() {
                for _ in 0..5 {
                    opened += 1;
                    let stream = StreamId::inbound(1_000_000 + opened);
                    world.tell(n, Input::StreamAccepted { stream, from: (address(opened), 5000).into() });
                }
            }
        });
        assert!(took < secs(8), "{took:?}");
    }
}

/// Somebody recorded what two members said. He repeats it from an address of his own, where he takes connections and says
/// nothing.
#[test]
fn recorded_beacons_of_members_make_no_newcomer_found_a_second_cluster() {
    for seed in 85..88 {
        let mut world = World::new(seed);
        let mut all = world.boot_cluster(3, "");
        world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
        world.capture = Some(Vec::new());
        world.run(secs(120));
        let heard: BTreeSet<(usize, Vec<u8>)> = world
            .capture
            .take()
            .unwrap_or_default()
            .into_iter()
            .filter(|seen| seen.from != 0 && seen.bytes[1] == 1)
            .map(|seen| (seen.from, seen.bytes))
            .collect();
        assert!([1, 2].iter().all(|n| heard.iter().any(|(from, _)| from == n)), "both were recorded");
        let cluster = world.status(0).cluster_id;
        let thief = SocketAddr::from(([10, 9, 9, 9], 41410));
        world.silent.insert(thief.ip());
        let new = world.add(Some(settings(&join_key(1), "")));
        world.power_on(new);
        all.push(new);
        let began = world.now;
        let mut again = heard.iter().cycle();
        while !world.is_one_cluster(&all) {
            assert!(world.now < began + secs(30), "seed {seed}: {}", world.status(new).detail);
            for (_, bytes) in again.by_ref().take(2) {
                world.inject(new, thief, bytes.clone());
            }
            world.run(Duration::from_millis(10));
        }
        let took = world.now - began;
        println!("seed {seed}: let in after {took:?}");
        assert_eq!(world.status(new).cluster_id, cluster, "it founded one of its own");
        assert!(took < secs(8), "seed {seed}: {took:?}");
    }
}
