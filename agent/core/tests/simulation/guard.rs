// SPDX-License-Identifier: Apache-2.0
//! The guard of a change that moves code and means to change nothing: what the machines of some worlds command, and when,
//! must be what `guard.hashes` says. When a change means to change it, `GUARD=record` writes the file anew, and the commit
//! says why.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use crate::secs;
use crate::sim::{Faults, Guard, Host, NetworkCard, World, join_key, seeds, settings};
use cluster_agent_core::{HeldRelease, Input, MeshPeerStats, Provisioning, StateItem};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guard.hashes");

/// Adds the views of all machines that are on.
fn look(world: &mut World) {
    let on: Vec<_> = (0..world.machines.len()).filter(|n| world.machines[*n].is_on()).collect();
    for n in on {
        let (status, members) = (world.status(n), world.members(n));
        let mut seen = format!(
            "sees {:?} {} {:?} {:?} {:?} {:?}",
            status.phase, status.detail, status.endpoints, status.members, status.problems, status.rejects
        );
        for one in members {
            seen += &format!("; {one:?}");
        }
        let now = world.now;
        if let Some(guard) = &mut world.guard {
            guard.line(now, n, &seen);
        }
    }
}

/// What can happen to a cluster, in an order drawn from the seed: nodes that join, go, come back, lose their disks or have
/// another node's, networks that lose, part and move, machines that have too much to do.
fn life(seed: u64) -> World {
    let mut chance = StdRng::seed_from_u64(seed ^ 0x6775_6172_6421);
    let mut world = World::new(seed);
    world.guard = Some(Guard::new());
    world.faults = [Faults::NONE, Faults::LOSSY, Faults::ROUGH][(seed % 3) as usize];
    let all = world.add_cluster(2 + (seed % 4) as usize, "");
    for n in &all {
        world.machines[*n].has_v4 = seed % 5 != 1;
        if seed % 4 == 2 {
            world.machines[*n].cards.push(NetworkCard { lan: 1, carrier: true });
        }
    }
    // Each side founds, and one dissolves.
    if seed % 3 == 1 {
        world.partition(&[&all[..1], &all[1..]]);
    }
    if seed % 4 == 3 {
        world.host = Some(Host::new(1, 3.0));
    }
    for n in &all {
        world.power_on(*n);
    }
    world.run(secs(12));
    world.heal();
    world.run(secs(8));
    look(&mut world);
    let mut acts: Vec<u32> = (0..8).collect();
    while !acts.is_empty() {
        let act = acts.remove(chance.random_range(0..acts.len()));
        let n = chance.random_range(0..all.len());
        let other = (n + 1) % all.len();
        if !world.machines[n].is_on() {
            world.power_on(n);
        }
        let now = world.now;
        if let Some(guard) = &mut world.guard {
            guard.line(now, n, &format!("act {act}"));
        }
        match act {
            0 => {
                let late = world.add(Some(settings(&join_key(1), "[node]\nlabels = { rack = \"b2\" }")));
                if let Some(host) = &mut world.host {
                    host.compute(world.now, ("something else", secs(1)));
                }
                world.power_on(late);
                world.run(secs(5));
                let held = HeldRelease { version: "1.2.4".into(), hash: "0123456789abcdef".into() };
                world.tell(late, Input::Releases(vec![held]));
            }
            1 => {
                world.power_off(n);
                world.run(secs(14));
                world.machines[n].wall = Duration::ZERO;
                let damaged = [StateItem::Membership, StateItem::Identity, StateItem::Records];
                if let Some(bytes) =
                    damaged.get((seed % 7) as usize).and_then(|item| world.machines[n].disk.get_mut(item))
                {
                    bytes.truncate(bytes.len() / 2);
                }
                world.power_on(n);
            }
            2 => {
                let (left, right) = all.split_at(1 + n % (all.len() - 1));
                world.partition(&[left, right]);
                world.run(secs(16));
                world.heal();
            }
            3 => {
                let before = world.machines[n].disk.clone();
                world.tell(n, Input::Leave);
                world.run(Duration::from_millis(300));
                if seed % 4 == 1 {
                    world.power_off(n);
                    world.power_on(n);
                }
                world.run(secs(4));
                world.tell(n, Input::Join);
                world.run(secs(6));
                if seed.is_multiple_of(2) {
                    world.power_off(n);
                    world.machines[n].disk = before;
                    world.power_on(n);
                }
            }
            4 => {
                world.machines[n].disk_full = true;
                let another = settings(&join_key(1), "[node]\nhostname = \"same\"");
                for n in [n, other] {
                    let settings = Some(another.clone());
                    world.tell(n, Input::Provisioned(Provisioning { settings, problems: Vec::new() }));
                }
                world.run(secs(7));
                world.machines[n].disk_full = false;
            }
            5 => {
                world.cable(n, 0, false);
                world.run(secs(3));
                world.narrow(other, Some(1300));
                world.cable(n, 0, true);
                busy_mesh(&mut world, n);
                world.run(secs(4));
                busy_mesh(&mut world, n);
                world.run(secs(14));
                world.narrow(other, None);
            }
            6 => {
                let copy = world.add(Some(settings(&join_key(1), "")));
                world.machines[copy].disk = world.machines[n].disk.clone();
                world.power_on(copy);
                world.run(secs(4));
                world.power_off(copy);
            }
            _ => world.weather(&all, secs(12)),
        }
        world.run(secs(5));
        look(&mut world);
    }
    world.host = None;
    world.faults = Faults::NONE;
    world.run(secs(20));
    look(&mut world);
    world
}

/// WireGuard carried much for every peer.
fn busy_mesh(world: &mut World, n: usize) {
    let Some(plan) = &world.machines[n].mesh else { return };
    let carried = world.now.as_millis() as u64;
    let stats = plan.peers.iter().map(|peer| MeshPeerStats {
        public_key: peer.public_key,
        last_handshake: Some(world.machines[n].wall + world.now),
        rx: carried,
        tx: carried,
    });
    let stats = Input::MeshStats(stats.collect());
    world.tell(n, stats);
}

/// Many that are switched on at once, on one busy host.
fn crowd(seed: u64) -> World {
    let mut world = World::new(seed);
    world.guard = Some(Guard::new());
    world.faults = Faults::LOSSY;
    let all = world.add_cluster(40, "");
    world.power_on(all[0]);
    world.run(secs(8));
    world.host = Some(Host::new(2, 2.0));
    for n in &all[1..] {
        world.power_on(*n);
    }
    world.run(secs(40));
    look(&mut world);
    world
}

fn recorded() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(RECORDED).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(": "));
    pairs.map(|(world, hash)| (world.to_owned(), hash.to_owned())).collect()
}

/// Compares the hash of each world with the one that was recorded.
fn guard(kind: &str, seeds: Vec<u64>, world: fn(u64) -> World) {
    static RECORDING: Mutex<()> = Mutex::new(());
    let hash =
        |seed| (format!("{kind} {seed}"), world(seed).guard.take().map(Guard::finish).unwrap_or_default());
    let found: BTreeMap<String, String> = seeds.into_iter().map(hash).collect();
    let _one_at_a_time = RECORDING.lock();
    let mut known = recorded();
    if std::env::var("GUARD").is_ok_and(|word| word == "record") {
        known.extend(found);
        let text: String = known.iter().map(|(world, hash)| format!("{world}: {hash}\n")).collect();
        return std::fs::write(RECORDED, text).expect("the hashes can be written");
    }
    let others: Vec<_> = found.iter().filter(|(name, hash)| known.get(*name) != Some(hash)).collect();
    let first = others.first().and_then(|(name, _)| name.split(' ').next_back()).unwrap_or_default();
    assert!(
        others.is_empty(),
        "these worlds do not do what they did: {others:?}. All commands of one of them, to `diff` with those of the commit before:\n  \
         SIM_SEED={first} GUARD_TRACE=$PWD/build/after tests/toolbox/enter cargo test --locked -p cluster-agent-core --test simulation -- guard::{kind} --include-ignored\n\
         If the difference is meant, record it with GUARD=record, and let the commit say why."
    );
}

#[test]
fn lives_are_what_they_were() {
    guard("lives", seeds(1..21), life);
}

#[test]
#[ignore = "campaign"]
fn more_lives_are_what_they_were() {
    guard("more_lives", seeds(101..201), life);
}

#[test]
#[ignore = "campaign"]
fn crowds_are_what_they_were() {
    guard("crowds", seeds(1..4), crowd);
}
