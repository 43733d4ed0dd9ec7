// SPDX-License-Identifier: Apache-2.0
//! What an attacker on the LAN, a copied disk and a failing disk can do: nothing that matters.
#![allow(missing_docs, unreachable_pub)]

mod sim;

use std::collections::BTreeMap;
use std::time::Duration;

use cluster_agent_core::{Input, LogLevel, MemberState, Phase, StateItem, StreamId};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use sim::{Seen, World, join_key, settings};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A formed cluster of three whose traffic was recorded.
fn formed(seed: u64) -> (World, Vec<usize>) {
    let mut world = World::new(seed);
    world.capture = Some(Vec::new());
    let all = world.boot_cluster(3, "[node]\nlabels = { secret-label = \"hidden\" }");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(40));
    (world, all)
}

fn captured(world: &World) -> Vec<Seen> {
    world.capture.clone().expect("recording is on")
}

/// What must not change: membership on disk, views, mesh.
fn snapshot(world: &World, all: &[usize]) -> Vec<(Vec<u8>, String, Option<cluster_agent_core::MeshPlan>)> {
    let one = |n: &usize| {
        let members: Vec<_> = world.members(*n).into_iter().map(|member| (member.id, member.state)).collect();
        let machine = &world.machines[*n];
        (machine.disk[&StateItem::Membership].clone(), format!("{members:?}"), machine.mesh.clone())
    };
    all.iter().map(one).collect()
}

#[test]
fn replayed_datagrams_change_nothing() {
    let (mut world, all) = formed(20);
    let before = snapshot(&world, &all);
    let seen = captured(&world);
    world.capture = None;
    let attacker = "10.0.0.200:41410".parse().unwrap();
    for replayed in seen {
        // From where it came, and from the attacker's own address, which would like to be taken for the peer's new one.
        world.inject(replayed.to, replayed.source, replayed.bytes.clone());
        world.inject(replayed.to, attacker, replayed.bytes);
        world.run(Duration::from_millis(20));
        assert!(all.iter().all(|n| world.state(0, *n) == Some(MemberState::Up)));
    }
    world.run(secs(20));
    assert_eq!(snapshot(&world, &all), before);
    assert!(world.status(0).rejects["transport datagram seen before"] > 0);
}

#[test]
fn a_recording_replayed_after_all_restarted_changes_nothing() {
    let (mut world, all) = formed(21);
    let seen = captured(&world);
    world.capture = None;
    for n in &all {
        world.power_off(*n);
        world.power_on(*n);
    }
    world.wait("one cluster again", secs(20), |world| world.is_one_cluster(&all));
    let before = snapshot(&world, &all);
    for replayed in seen {
        world.inject(replayed.to, replayed.source, replayed.bytes);
        world.run(Duration::from_millis(20));
    }
    world.run(secs(20));
    assert_eq!(snapshot(&world, &all), before);
    assert!(world.is_one_cluster(&all));
}

#[test]
fn damaged_and_forged_datagrams_change_nothing() {
    let (mut world, all) = formed(22);
    let before = snapshot(&world, &all);
    let seen = captured(&world);
    world.capture = None;
    let mut rng = StdRng::seed_from_u64(22);
    for original in seen {
        let mut bytes = original.bytes;
        match rng.random_range(0..4) {
            0 => {
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
            }
            1 => bytes.truncate(rng.random_range(0..bytes.len())),
            2 => bytes.extend_from_slice(&[0; 40]),
            _ => {
                let keep = bytes.len().min(2);
                rng.fill_bytes(&mut bytes[keep..]);
            }
        }
        world.inject(original.to, original.source, bytes);
        world.run(Duration::from_millis(5));
    }
    world.run(secs(20));
    assert_eq!(snapshot(&world, &all), before);
    for n in all {
        assert_eq!(world.machines[n].logged(LogLevel::Error), Vec::<String>::new());
    }
}

#[test]
fn the_wire_shows_no_names_and_nothing_larger_than_the_limit() {
    let (world, all) = formed(23);
    let seen = captured(&world);
    assert!(seen.len() > 100);
    let mut secrets: Vec<Vec<u8>> =
        vec![b"lab".to_vec(), b"node-".to_vec(), b"secret-label".to_vec(), b"1.2.3".to_vec()];
    for n in all {
        secrets.push(world.machines[n].last_id.clone().unwrap().as_bytes()[..8].to_vec());
    }
    // Three letters turn up in ciphertext by chance; names of four and more do not.
    secrets.retain(|secret| secret.len() > 3);
    for datagram in seen {
        assert!(datagram.bytes.len() <= 1200);
        for secret in &secrets {
            assert!(
                !datagram.bytes.windows(secret.len()).any(|window| window == secret),
                "{}",
                datagram.from
            );
        }
    }
}

#[test]
fn garbage_on_streams_changes_nothing() {
    let (mut world, all) = formed(24);
    let before = snapshot(&world, &all);
    let mut rng = StdRng::seed_from_u64(24);
    for n in 0..300 {
        let stream = StreamId::inbound(1_000_000 + n);
        let mut bytes = vec![0; rng.random_range(1..400)];
        rng.fill_bytes(&mut bytes);
        if n % 2 == 0 {
            let length = (bytes.len().saturating_sub(2) as u16).to_be_bytes();
            let head = [length[0], length[1], 1, 1 + (n / 2 % 2) as u8];
            let count = bytes.len().min(4);
            bytes[..count].copy_from_slice(&head[..count]);
        }
        world.tell(0, Input::StreamAccepted { stream, from: "10.0.0.200:5000".parse().unwrap() });
        world.tell(0, Input::StreamData { stream, bytes });
        world.run(Duration::from_millis(150));
    }
    world.run(secs(30));
    assert_eq!(snapshot(&world, &all), before);
    assert!(world.status(0).rejects["stream handshake"] > 0);
}

#[test]
fn a_flood_from_one_source_does_not_keep_a_new_node_out() {
    let (mut world, mut all) = formed(25);
    let late = world.add(Some(settings(&join_key(1), "")));
    world.power_on(late);
    all.push(late);
    let mut rng = StdRng::seed_from_u64(25);
    for round in 0..400 {
        for n in 0..3 {
            for kind in [1, 2, 2, 2, 3, 4, 5] {
                let mut bytes = vec![0; 150];
                rng.fill_bytes(&mut bytes);
                bytes[..2].copy_from_slice(&[1, kind]);
                world.inject(n, "10.0.0.200:41410".parse().unwrap(), bytes);
            }
        }
        world.run(Duration::from_millis(50));
        if round > 20 && world.is_one_cluster(&all) {
            break;
        }
    }
    world.wait("the new node is in", secs(10), |world| world.is_one_cluster(&all));
    assert!(world.status(0).rejects["handshake over rate limit"] > 0);
}

#[test]
fn a_copied_disk_is_named_and_the_copy_stands_aside() {
    let (mut world, all) = formed(26);
    let id = world.machines[2].last_id.clone();
    let clone = world.add(Some(settings(&join_key(1), "")));
    world.machines[clone].disk = world.machines[2].disk.clone();
    world.power_on(clone);
    world.wait("the copy stands aside", secs(60), |world| world.status(clone).phase == Phase::Quarantined);
    assert!(world.status(clone).problems[0].fix.contains("write the image anew"));
    assert_eq!(world.machines[clone].last_id, id);
    assert!(world.machines[clone].mesh.is_none());
    world.wait("the first one stays", secs(60), |world| world.is_one_cluster(&all));
    world.run(secs(60));
    assert!(world.is_one_cluster(&all));
    assert_eq!(world.status(clone).phase, Phase::Quarantined);
}

#[test]
fn nothing_is_said_that_is_not_on_the_disk() {
    let mut world = World::new(27);
    let all = world.boot_cluster(3, "");
    // Cut the power of a random node at random moments while the cluster forms; whatever was said must hold.
    let mut rng = StdRng::seed_from_u64(27);
    for _ in 0..12 {
        world.run(Duration::from_millis(rng.random_range(100..3000)));
        let n = rng.random_range(0..3);
        world.power_off(n);
        world.run(Duration::from_millis(rng.random_range(0..500)));
        world.power_on(n);
    }
    world.wait("one cluster", secs(60), |world| world.is_one_cluster(&all));
    let ids: BTreeMap<_, _> = all.iter().map(|n| (world.status(*n).id, *n)).collect();
    assert_eq!(ids.len(), 3, "identities are stable, so nobody is a member twice");
}

#[test]
fn a_full_disk_is_shown_and_nothing_new_is_said() {
    let mut world = World::new(28);
    let lone = world.add(Some(settings(&join_key(1), "")));
    world.machines[lone].disk_full = true;
    world.capture = Some(Vec::new());
    let other = world.add(None);
    world.power_on(other);
    world.power_on(lone);
    world.run(secs(30));
    let problem = world.status(lone).problems.into_iter().find(|problem| problem.area == "disk").unwrap();
    assert!(problem.message.contains("no space"), "{problem}");
    assert!(captured(&world).is_empty(), "an identity that is not on the disk is not used");
    world.machines[lone].disk_full = false;
    world.wait("it goes on by itself", secs(30), |world| {
        world.status(lone).problems.is_empty()
            && world.machines[lone].disk.contains_key(&StateItem::Membership)
    });
    assert_eq!(world.status(lone).phase, Phase::Member);
}

#[test]
fn damaged_state_files_stop_nobody_and_never_found_a_second_cluster() {
    let (mut world, all) = formed(29);
    let cluster = world.status(0).cluster_id;
    world.power_off(1);
    world.machines[1].disk.get_mut(&StateItem::Membership).unwrap()[40] ^= 1;
    world.machines[1].disk.get_mut(&StateItem::Records).unwrap()[40] ^= 1;
    world.machines[1].disk.get_mut(&StateItem::Clock).unwrap()[3] ^= 1;
    world.machines[1].disk.get_mut(&StateItem::Generation).unwrap()[3] ^= 1;
    for n in [0, 2] {
        world.link(n, false);
    }
    world.power_on(1);
    world.run(secs(60));
    let status = world.status(1);
    assert_eq!((status.phase, status.cluster_id), (Phase::Waiting, None));
    assert!(status.problems.iter().any(|problem| problem.message.contains("damaged")));
    assert!(world.machines[1].disk.contains_key(&StateItem::DamagedMembership));
    for n in [0, 2] {
        world.link(n, true);
    }
    world.wait("back in", secs(60), |world| world.is_one_cluster(&all));
    assert_eq!(world.status(1).cluster_id, cluster);
    assert!(world.status(1).problems.is_empty());
}

#[test]
fn no_order_of_inputs_panics_or_spins() {
    let mut world = World::new(30);
    let all = world.boot_cluster(2, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    let mut rng = StdRng::seed_from_u64(30);
    for _ in 0..5000 {
        let stream = StreamId(rng.random_range(0..40) | u64::from(rng.random_bool(0.5)) << 63);
        let mut bytes = vec![0; rng.random_range(0..300)];
        rng.fill_bytes(&mut bytes);
        if bytes.len() > 2 && rng.random_bool(0.8) {
            bytes[..2].copy_from_slice(&[1, rng.random_range(0..7)]);
        }
        let input = match rng.random_range(0..12) {
            0 => Input::StreamAccepted { stream, from: "10.0.0.9:1".parse().unwrap() },
            1 => Input::StreamConnected { stream },
            2 | 3 => Input::StreamData { stream, bytes },
            4 => Input::StreamClosed { stream },
            5 => Input::Persisted(cluster_agent_core::Ticket(rng.random_range(0..50))),
            6 => Input::MeshStats(Vec::new()),
            7 => Input::Join,
            8 => Input::External { area: "mesh".into(), message: String::new() },
            9 => Input::Interfaces(if rng.random_bool(0.5) {
                Vec::new()
            } else {
                world.machines[0].interfaces()
            }),
            _ => Input::Datagram { from: "[fe80::9]:41410".parse().unwrap(), interface: 7, bytes },
        };
        world.tell(0, input);
        world.run(Duration::from_millis(20));
    }
    let interfaces = Input::Interfaces(world.machines[0].interfaces());
    world.tell(0, interfaces);
    world.wait("it is still a member", secs(60), |world| world.is_one_cluster(&all));
}
