// SPDX-License-Identifier: Apache-2.0
//! What an attacker on the LAN, a copied disk and a failing disk can do: nothing that matters.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::secrets::Secrets;
use crate::secs;
use crate::sim::{Seen, World, join_key, join_key_bytes, settings};
use cluster_agent_core::{Input, LogLevel, MemberState, NodeId, Phase, Settings, StateItem, StreamId};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

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
        // More of a peer's own addresses may become known meanwhile, never one that it does not have.
        let mut mesh = machine.mesh.clone();
        for peer in mesh.iter_mut().flat_map(|mesh| &mut mesh.peers) {
            for address in std::mem::take(&mut peer.also_at) {
                assert!(!is_spoofed(address.into()), "{address}");
            }
        }
        (machine.disk[&StateItem::Membership].clone(), format!("{members:?}"), mesh)
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
    world.wait("all tunnels kept alive", secs(5), |world| {
        all.iter().all(|n| world.machines[*n].mesh_peers_kept_alive() == all.len() - 1)
    });
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

/// Names, ids and keys of a cluster, private ones too.
fn secrets_of(world: &World, all: &[usize]) -> Secrets {
    let mut secrets = Secrets::default();
    secrets.text("cluster name", "simulated-cluster");
    secrets.text("label", "secret-label");
    secrets.text("version", "1.2.3");
    let key = join_key(1).to_text();
    // The bytes begin with version, flags and the key's own id.
    secrets.base32("join key", key.strip_prefix("cos1-").expect("keys begin so"));
    secrets.hex("cluster id", &world.status(0).cluster_id.expect("a cluster was formed"));
    for n in all {
        let status = world.status(*n);
        let name = |what: &str| format!("{what} of machine {n}");
        secrets.text(&name("host name"), &status.name);
        secrets.base32(&name("node id"), &status.id);
        secrets.base64(&name("WireGuard key"), &status.wireguard_key);
        secrets.text(&name("mesh address"), &status.address);
        let address: std::net::Ipv6Addr = status.address.parse().expect("an address");
        secrets.bytes(&name("mesh address"), &address.octets());
        // Signing, session and WireGuard key behind two bytes of head.
        let identity = &world.machines[*n].disk[&StateItem::Identity];
        identity[2..98].chunks(32).for_each(|private| secrets.bytes(&name("private key"), private));
    }
    secrets
}

#[test]
fn the_wire_shows_no_names_ids_or_keys_and_nothing_larger_than_the_limit() {
    let mut world = World::new(23);
    (world.capture, world.stream_capture) = (Some(Vec::new()), Some(Vec::new()));
    let text = format!(
        "[cluster]\nname = \"simulated-cluster\"\njoin_key = \"{}\"\n[node]\nlabels = {{ secret-label = \"hidden\" }}\n",
        join_key(1).to_text()
    );
    let all: Vec<_> = (0..3).map(|_| world.add(Some(Settings::parse(&text).unwrap()))).collect();
    all.iter().for_each(|n| world.power_on(*n));
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(40));
    let seen = captured(&world);
    let streams = world.stream_capture.clone().unwrap();
    assert!(seen.len() > 100 && streams.len() > 20, "{} and {}", seen.len(), streams.len());
    let secrets = secrets_of(&world, &all);
    for datagram in &seen {
        assert!(datagram.bytes.len() <= 1200);
        assert_eq!(secrets.shown_in(&datagram.bytes), None, "from machine {}", datagram.from);
    }
    for sent in &streams {
        assert_eq!(secrets.shown_in(sent), None, "on a stream");
    }

    // What was sent, with one of them in the middle: the search finds it.
    let id = world.status(2).id.parse::<NodeId>().unwrap();
    let join = &join_key_bytes(1)[5..];
    let private = &world.machines[1].disk[&StateItem::Identity][34..66];
    for planted in [&id.as_bytes()[..16], &id.as_bytes()[16..], join, private, b"simulated-cluster"] {
        let mut bytes = seen[seen.len() / 2].bytes.clone();
        bytes.splice(31..31, planted.iter().copied());
        assert!(secrets.shown_in(&bytes).is_some(), "{planted:02x?} was planted");
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
    assert!(world.status(0).rejects["stream that is not for us"] > 0);
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
    assert!(world.status(0).rejects["handshake that is not for us"] > 0);
}

#[test]
fn a_copied_disk_is_named_and_the_copy_stands_aside() {
    let (mut world, all) = formed(26);
    let id = world.machines[2].last_id.clone();
    let clone = world.add(Some(settings(&join_key(1), "")));
    world.machines[clone].disk = world.machines[2].disk.clone();
    world.power_on(clone);
    world.wait("the copy stands aside", secs(60), |world| world.status(clone).phase == Phase::Quarantined);
    let seen = world.status(2).problems.into_iter().find(|problem| problem.area == "identity").unwrap();
    assert!(seen.message.contains("another machine runs with a copy"), "{seen}");
    assert!(world.status(clone).problems[0].fix.contains("write the image"));
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
fn what_a_full_disk_kept_from_being_saved_is_saved_once_there_is_room() {
    let (mut world, all) = formed(30);
    let records = world.machines[1].disk[&StateItem::Records].clone();
    world.machines[1].disk_full = true;
    // A record is all that is new: what is written of an admission may hold back the records, as the lot falls.
    world.power_off(2);
    world.power_on(2);
    world.wait("it is shown", secs(90), |world| !world.status(1).problems.is_empty());
    world.run(secs(60));
    let problems = world.status(1).problems;
    assert!(problems.iter().any(|problem| problem.message.contains("records")), "{problems:?}");
    world.machines[1].disk_full = false;
    world.wait("all is saved and nothing is shown", secs(15), |world| {
        world.status(1).problems.is_empty() && world.machines[1].disk[&StateItem::Records] != records
    });
    world.wait("it is one cluster", secs(60), |world| world.is_one_cluster(&all));
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
            8 => Input::External { area: "mesh".into(), message: String::new(), fix: String::new() },
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

#[test]
fn of_two_copies_that_are_switched_on_together_exactly_one_stays() {
    let (mut world, all) = formed(31);
    world.power_off(2);
    world.run(secs(30));
    let clone = world.add(Some(settings(&join_key(1), "")));
    world.machines[clone].disk = world.machines[2].disk.clone();
    world.power_on(2);
    world.power_on(clone);
    let aside = |world: &World, n: usize| world.status(n).phase == Phase::Quarantined;
    world.wait("one stands aside", secs(60), |world| aside(world, 2) != aside(world, clone));
    let stays = if aside(&world, 2) { clone } else { 2 };
    world.wait("the other is in", secs(60), |world| world.is_one_cluster(&[0, 1, stays]));
    world.run(secs(60));
    assert_ne!(aside(&world, 2), aside(&world, clone));
    assert_eq!(all.len(), 3);
}

/// How long an attack lasts.
const STORM: u64 = 10;

/// What one node did because of an attack, and what an input cost the host.
struct Work {
    sent: u64,
    sent_bytes: u64,
    connects: u64,
    opens: u64,
    accepts: u64,
    microseconds: f64,
}

/// Plays `rate` datagrams a second at a node.
fn attack(world: &mut World, victim: usize, rate: u64, mut datagram: impl FnMut(u64) -> Seen) -> Work {
    let before = world.machines[victim].traffic;
    let (handled, began) = (world.handled, Instant::now());
    for n in 0..rate * STORM {
        let seen = datagram(n);
        world.inject(victim, seen.source, seen.bytes);
        if n % (rate / 20) == 0 {
            world.run(Duration::from_millis(50));
        }
    }
    let after = world.machines[victim].traffic;
    let work = Work {
        sent: after.sent_datagrams - before.sent_datagrams,
        sent_bytes: after.sent_bytes - before.sent_bytes,
        connects: after.connects - before.connects,
        opens: after.opens - before.opens,
        accepts: after.accepts - before.accepts,
        microseconds: began.elapsed().as_secs_f64() * 1e6 / (world.handled - handled) as f64,
    };
    println!(
        "{rate} datagrams a second: sent {} ({} bytes), opened {} streams and {} sessions, answered {} sessions; {:.1} us of host time per input",
        work.sent, work.sent_bytes, work.connects, work.opens, work.accepts, work.microseconds
    );
    work
}

/// Somebody's address, another one each time.
fn spoofed(n: u64) -> std::net::SocketAddr {
    std::net::SocketAddr::from(([10, 1, (n >> 8) as u8, n as u8], 41410))
}

fn is_spoofed(address: std::net::SocketAddr) -> bool {
    matches!(address.ip(), std::net::IpAddr::V4(v4) if v4.octets().starts_with(&[10, 1]))
}

fn kind(seen: &[Seen], kind: u8, to: usize) -> Vec<Seen> {
    seen.iter().filter(|seen| seen.to == to && seen.bytes.get(1) == Some(&kind)).cloned().collect()
}

#[test]
fn a_storm_of_replayed_beacons_buys_little_work_and_changes_nothing() {
    let (mut world, all) = formed(32);
    // Two strangers came by and were recorded: their beacons are not of members, so they ask for more than a member's.
    let strangers: Vec<_> = (0..2).map(|_| world.add(Some(settings(&join_key(1), "")))).collect();
    world.link(1, false);
    world.link(2, false);
    for n in &strangers {
        world.power_on(*n);
        world.run(Duration::from_millis(50));
        world.power_off(*n);
    }
    world.link(1, true);
    world.link(2, true);
    let beacons = kind(&captured(&world), 1, 0);
    world.capture = None;
    world.run(secs(60));
    let before = snapshot(&world, &all);
    // Half of them from one address, half each from another.
    let work = attack(&mut world, 0, 2000, |n| Seen {
        source: spoofed(if n % 2 == 0 { n } else { 1 }),
        ..beacons[n as usize % beacons.len()].clone()
    });
    assert!(work.sent <= 210 * STORM + 1300, "answers are limited to 200 a second, {}", work.sent);
    assert!(work.connects <= 2 * STORM, "an introduction every 2 s for each node that is named");
    assert!(work.opens <= 4 * STORM, "a session is tried again after half a second at the soonest");
    world.run(secs(60));
    assert_eq!(snapshot(&world, &all), before);
    assert!(world.status(0).rejects["beacon heard before"] > 18_000);
}

#[test]
fn a_storm_of_replayed_handshakes_is_answered_within_the_limit_and_changes_nothing() {
    let (mut world, all) = formed(33);
    let seen = captured(&world);
    let victim = *all.iter().find(|n| !kind(&seen, 2, **n).is_empty()).unwrap();
    let opens = kind(&seen, 2, victim);
    world.capture = None;
    let before = snapshot(&world, &all);
    let work = attack(&mut world, victim, 2000, |n| Seen {
        source: spoofed(n),
        ..opens[n as usize % opens.len()].clone()
    });
    assert!(work.accepts <= 200 * STORM + 500, "{} answers", work.accepts);
    assert!(work.connects <= 2, "no streams but the usual ones");
    assert_eq!(snapshot(&world, &all), before);
    assert!(all.iter().all(|n| world.state(victim, *n) == Some(MemberState::Up)), "no member is starved");
    assert!(world.status(victim).rejects["handshake over rate limit"] > 10_000);
}

#[test]
fn sessions_that_were_stolen_from_a_node_that_left_say_nothing() {
    let (mut world, all) = formed(34);
    world.capture = None;
    // Everything in node 2's memory runs on in the attacker's machine; node 2 itself is switched on anew.
    let thief = world.add(Some(settings(&join_key(1), "")));
    world.link(thief, false);
    let stolen = world.machines[2].node.take();
    world.power_off(2);
    world.machines[thief].node = stolen;
    world.machines[thief].last_id = world.machines[2].last_id.clone();
    world.power_on(2);
    world.wait("the true one is back", secs(30), |world| world.is_one_cluster(&all));
    world.tell(2, Input::Leave);
    world.wait("it left", secs(10), |world| world.status(2).phase == Phase::Left);
    world.run(secs(10));
    world.power_off(2);
    world.run(secs(5));
    let before = snapshot(&world, &all[..2]);
    let rejected = |world: &World| {
        let rejects = world.status(0).rejects;
        let counted = ["transport datagram of an unknown session", "handshake of a node that is no member"];
        counted.iter().map(|reason| rejects.get(*reason).copied().unwrap_or(0)).sum::<u64>()
    };
    let counted = rejected(&world);
    world.link(thief, true);
    let interfaces = Input::Interfaces(world.machines[thief].interfaces());
    world.tell(thief, interfaces);
    world.tell(thief, Input::Timeout);
    world.run(secs(120));
    assert!(rejected(&world) > counted, "it tried: {:?}", world.status(0).rejects);
    assert_eq!(snapshot(&world, &all[..2]), before);
    assert_eq!(world.state(0, 2), Some(MemberState::Left));
    assert_eq!(world.machines[0].mesh_peers(), 1);
}
