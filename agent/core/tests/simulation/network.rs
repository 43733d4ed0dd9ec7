// SPDX-License-Identifier: Apache-2.0
//! Networks that are not what one wants: several cards, dead ports, pulled cables, pairs that cannot reach each other.

use std::net::SocketAddr;
use std::time::Duration;

use crate::secs;
use crate::sim::{Faults, INTERFACE, NetworkCard, World, join_key, settings};
use cluster_agent_core::{Input, MemberState, MeshPeerStats};

/// Machines with a card on each of these LANs, as one cluster.
fn cluster_with_cards(world: &mut World, count: usize, lans: &[u8], has_v4: bool) -> Vec<usize> {
    let all: Vec<usize> = (0..count).map(|_| world.add(Some(settings(&join_key(1), "")))).collect();
    for n in &all {
        world.machines[*n].cards = lans.iter().map(|lan| NetworkCard { lan: *lan, carrier: true }).collect();
        world.machines[*n].has_v4 = has_v4;
        world.power_on(*n);
    }
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(20));
    all
}

/// Which of `to`'s cards the mesh of `from` sends to, and through which of its own (`None`: as the kernel routes).
fn way(world: &World, from: usize, to: usize) -> (usize, Option<usize>) {
    let plan = world.machines[from].mesh.as_ref().expect("a mesh");
    let id = world.machines[to].last_id.as_ref().expect("an id");
    let peer = plan.peers.iter().find(|peer| peer.id.to_string() == *id).expect("a peer");
    let endpoint = peer.endpoint.expect("an endpoint");
    let card = match endpoint {
        SocketAddr::V4(v4) => (usize::from(v4.ip().octets()[1]), None),
        SocketAddr::V6(v6) => {
            (usize::from(v6.ip().segments()[6]), Some((v6.scope_id() - INTERFACE) as usize))
        }
    };
    assert_eq!(endpoint.port(), 41411);
    card
}

/// Through which of its cards a machine sends to that card of another: WireGuard goes over to where a packet came from.
fn card_for(world: &World, from: usize, to: usize, card: usize) -> Option<usize> {
    let plan = world.machines[from].mesh.as_ref().expect("a mesh");
    let id = world.machines[to].last_id.as_ref().expect("an id");
    let peer = plan.peers.iter().find(|peer| peer.id.to_string() == *id).expect("a peer");
    let endpoint = peer.endpoint.and_then(|endpoint| match endpoint {
        SocketAddr::V6(v6) => Some(v6),
        SocketAddr::V4(_) => None,
    });
    let known = peer.also_at.iter().copied().chain(endpoint);
    let mut known = known.filter(|v6| usize::from(v6.ip().segments()[6]) == card);
    let found = known.next().map(|v6| (v6.scope_id() - INTERFACE) as usize);
    assert_eq!(known.next(), None, "one card for each address");
    found
}

/// The mesh carries a stream between all machines: their counters grow by a megabyte in every round of five seconds.
fn busy(world: &mut World, all: &[usize], rounds: u64) {
    for _ in 0..rounds {
        for n in all {
            let peers = world.machines[*n].mesh.as_ref().expect("a mesh").peers.clone();
            let moved = world.now.as_secs() * 200_000;
            let stats = peers.iter().map(|peer| MeshPeerStats {
                public_key: peer.public_key,
                last_handshake: Some(secs(1)),
                rx: moved,
                tx: moved,
            });
            world.tell(*n, Input::MeshStats(stats.collect()));
        }
        world.run(secs(5));
    }
}

/// Time until the mesh of each sends to the other on a way that passes.
fn until_both_pass(world: &mut World, pair: (usize, usize), dead: &[(usize, usize)]) -> Duration {
    let dead = dead.to_vec();
    let passes = move |world: &World, from: usize, to: usize| {
        let (far, near) = way(world, from, to);
        let back = near.map(|near| card_for(world, to, from, near));
        // Without a card of our own in the address the kernel chooses the first one with a carrier.
        let near = near.unwrap_or_else(|| {
            let cards = &world.machines[from].cards;
            let lan = world.machines[to].cards[far].lan;
            cards.iter().position(|card| card.carrier && card.lan == lan).unwrap_or(usize::MAX)
        });
        let lan = |n: usize, card: usize| world.machines[n].cards.get(card).map(|card| card.lan);
        let passes = |near, far| {
            !dead.contains(&(from, near)) && !dead.contains(&(to, far)) && lan(from, near) == lan(to, far)
        };
        passes(near, far) && back.is_none_or(|card| card.is_some_and(|card| passes(near, card)))
    };
    let (a, b) = pair;
    world.wait("both meshes use a way that passes", secs(20), move |world| {
        passes(world, a, b) && passes(world, b, a)
    })
}

#[test]
fn a_dead_port_under_a_busy_mesh_costs_two_seconds() {
    for (lans, has_v4) in [([0, 1], true), ([0, 0], true), ([0, 1], false), ([0, 0], false)] {
        let mut world = World::new(40);
        let all = cluster_with_cards(&mut world, 2, &lans, has_v4);
        busy(&mut world, &all, 3);
        for n in [0, 1] {
            for card in [0, 1] {
                world.port(n, card, false);
                let took = until_both_pass(&mut world, (0, 1), &[(n, card)]);
                println!("lans {lans:?}, IPv4 {has_v4}: port of card {card} of machine {n} dead: {took:?}");
                assert!(took <= Duration::from_millis(2500), "{took:?}");
                busy(&mut world, &all, 3);
                assert!(world.is_one_cluster(&all));
                world.port(n, card, true);
                busy(&mut world, &all, 2);
            }
        }
        for n in &all {
            assert_eq!(world.machines[*n].downs, Vec::new(), "nobody was declared down");
        }
    }
}

#[test]
fn a_pulled_cable_under_an_idle_mesh_is_noticed_by_gossip_alone() {
    let mut world = World::new(41);
    let all = cluster_with_cards(&mut world, 3, &[0, 1], true);
    for n in &all {
        for card in [0, 1] {
            world.cable(*n, card, false);
            world.run(secs(20));
            for other in all.iter().filter(|other| *other != n) {
                until_both_pass(&mut world, (*n, *other), &[(*n, card)]);
            }
            assert!(world.is_one_cluster(&all));
            world.cable(*n, card, true);
            world.run(secs(20));
        }
    }
    for n in &all {
        assert_eq!(world.machines[*n].downs, Vec::new(), "nobody was declared down");
    }
}

#[test]
fn a_quiet_cluster_asks_nobody() {
    let mut world = World::new(42);
    let all = cluster_with_cards(&mut world, 3, &[0, 1], true);
    world.run(secs(60));
    let before = world.machines[0].traffic.sent_datagrams;
    world.run(secs(60));
    let quiet = world.machines[0].traffic.sent_datagrams - before;
    let before = world.machines[0].traffic.sent_datagrams;
    busy(&mut world, &all, 12);
    let busy = world.machines[0].traffic.sent_datagrams - before;
    // Two members: a question to each and an answer to its own, every second.
    assert!(
        (150..=400).contains(&(busy.saturating_sub(quiet))),
        "{quiet} datagrams when quiet, {busy} when busy"
    );
}

#[test]
fn a_pair_that_cannot_reach_each_other_is_named_and_nobody_else() {
    let mut world = World::new(43);
    let all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(20));
    for (from, to) in [(0, 1), (1, 0)] {
        world.one_way(from, to, false);
    }
    let named = |world: &World, n: usize, other: usize| {
        let status = world.status(n);
        let name = world.status(other).name;
        let problem = status.problems.iter().find(|problem| problem.area == "path");
        let unreachable = world.members(n).iter().filter(|member| member.reachable == Some(false)).count();
        problem.is_some_and(|problem| problem.message.contains(&name)) && unreachable == 1
    };
    let took = world.wait("both name the pair", secs(40), |world| named(world, 0, 1) && named(world, 1, 0));
    println!("named after {took:?}");
    world.run(secs(60));
    assert!(named(&world, 0, 1) && named(&world, 1, 0), "it stays named");
    for n in &all {
        assert_eq!(
            world.state(*n, (n + 1) % 3),
            Some(MemberState::Up),
            "it is up for all, through the third"
        );
    }
    assert_eq!(world.status(2).problems, Vec::new());
    world.heal();
    world.wait("nothing is named", secs(40), |world| {
        all.iter().all(|n| world.status(*n).problems.is_empty()) && world.is_one_cluster(&all)
    });
}

#[test]
fn two_that_never_met_are_named_too() {
    let mut world = World::new(44);
    let all = world.add_cluster(3, "");
    for (from, to) in [(0, 1), (1, 0)] {
        world.one_way(from, to, false);
    }
    for n in [2, 0, 1] {
        world.power_on(n);
    }
    world.wait("one cluster, as all say", secs(40), |world| {
        all.iter().all(|n| world.status(*n).members.get("up") == Some(&3))
    });
    world.wait("both name the pair", secs(60), |world| {
        [0, 1].iter().all(|n| world.status(*n).problems.iter().any(|problem| problem.area == "path"))
    });
    assert_eq!(world.status(2).problems, Vec::new());
}

#[test]
fn without_routable_addresses_the_mesh_still_reaches_everybody_soon() {
    let mut world = World::new(11);
    let all = world.add_cluster(40, "");
    for n in &all {
        world.machines[*n].has_v4 = false;
        world.power_on(*n);
    }
    world.wait("one cluster", secs(20), |world| world.is_one_cluster(&all));
    let took = world.wait("a way to each", secs(20), |world| {
        all.iter().all(|n| world.machines[*n].mesh_ways() == all.len() - 1)
    });
    println!("{:.1} s after all knew all", took.as_secs_f64());
}

#[test]
fn a_path_that_drops_full_packets_is_named_while_the_mesh_is_busy() {
    // Where packets are lost anyway, it takes more of them to tell.
    for (faults, most) in [(Faults::NONE, 4), (Faults::LOSSY, 16)] {
        let mut world = World::new(46);
        let all = world.boot_cluster(3, "");
        world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
        world.faults = faults;
        let named = |world: &World, n: usize| {
            let problems = world.status(n).problems;
            problems.into_iter().find(|problem| problem.area == "mtu").map(|problem| problem.message)
        };
        busy(&mut world, &all, 12);
        assert!(all.iter().all(|n| named(&world, *n).is_none()), "full packets pass");
        // What IPv6 guarantees, and no more.
        world.narrow(1, Some(1280 - 48));
        let name = |world: &World, n: usize| world.status(n).name;
        let all_say = |world: &World| {
            let named = |n| named(world, n).unwrap_or_default();
            let [first, narrow, last] = [0, 1, 2].map(|n| name(world, n));
            assert!(
                !named(0).contains(&last) && !named(2).contains(&first),
                "nothing is wrong between these"
            );
            named(0).contains(&narrow)
                && named(2).contains(&narrow)
                && named(1).contains(&first)
                && named(1).contains(&last)
        };
        let rounds = (1..=most).find(|_| {
            busy(&mut world, &all, 1);
            all_say(&world)
        });
        println!("named after {rounds:?} rounds of {most}");
        let said: Vec<_> = all.iter().map(|n| named(&world, *n)).collect();
        assert!(rounds.is_some(), "{said:?}");
        assert!(world.is_one_cluster(&all), "nobody is declared down");
        // It stays named while nothing goes on, and goes when the path is wide again.
        world.run(secs(60));
        assert!(all.iter().all(|n| named(&world, *n).is_some()));
        world.narrow(1, None);
        world.wait("nothing is named", secs(10), |world| all.iter().all(|n| named(world, *n).is_none()));
    }
}
