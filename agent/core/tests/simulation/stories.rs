// SPDX-License-Identifier: Apache-2.0
//! What a cluster does, told as stories on a simulated LAN.

use std::time::Duration;

use crate::secs;
use crate::sim::{Faults, World, join_key, settings};
use cluster_agent_core::{
    Input, LogLevel, MemberState, PARTITION_AREA, Phase, Problem, Provisioning, StateItem,
};

#[test]
fn three_nodes_become_one_cluster() {
    let mut world = World::new(1);
    let all = world.boot_cluster(3, "");
    let took = world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    println!("formed after {took:?}");
    let founders =
        world.members(0).iter().filter(|member| member.admitted_by.as_ref() == Some(&member.id)).count();
    assert_eq!(founders, 1);
    world.run(secs(120));
    assert!(world.is_one_cluster(&all), "it stays one");
}

#[test]
fn twenty_nodes_at_once_on_a_rough_network_become_exactly_one_cluster() {
    let mut world = World::new(2);
    world.faults = Faults::ROUGH;
    let all = world.boot_cluster(20, "");
    let took = world.wait("one cluster", secs(90), |world| world.is_one_cluster(&all));
    println!("formed after {took:?}");
}

#[test]
fn nodes_that_join_are_no_contradiction() {
    let mut early = 0;
    for seed in 40..50 {
        let mut world = World::new(seed);
        let all = world.boot_cluster(8, "");
        world.wait("one cluster", secs(30), |world| world.is_one_cluster(&all));
        for node in &all {
            let rejects = world.status(*node).rejects;
            assert!(!rejects.contains_key("object that contradicts what is known"), "{seed}: {rejects:?}");
            early += rejects.get("object about a node that is no member").copied().unwrap_or_default();
        }
    }
    assert!(early > 0, "in ten clusters no record came before its admission: this shows nothing");
}

#[test]
fn a_cluster_forms_over_link_local_addresses_alone() {
    let mut world = World::new(3);
    let all: Vec<_> = (0..3).map(|_| world.add(Some(settings(&join_key(1), "")))).collect();
    for n in &all {
        world.machines[*n].has_v4 = false;
        world.power_on(*n);
    }
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    let plan = world.machines[0].mesh.clone().unwrap();
    for peer in plan.peers {
        let endpoint = peer.endpoint.unwrap().to_string();
        assert!(endpoint.starts_with("[fe80::") && endpoint.ends_with("%7]:41411"), "{endpoint}");
    }
}

/// Two handshakes of WireGuard that cross are both dropped, and both sides try again at the same time.
#[test]
fn of_two_ends_of_a_new_tunnel_the_lower_id_begins() {
    for seed in 60..66 {
        let mut world = World::new(seed);
        let all = world.boot_cluster(2, "");
        let mut began = [None, None];
        for n in all.iter().cycle().take(1000) {
            world.run(Duration::from_millis(25));
            if world.machines[*n].mesh_peers_kept_alive() == 1 {
                began[*n].get_or_insert(world.now);
            }
        }
        let peer = |n: usize| world.machines[n].mesh.as_ref().map(|plan| plan.peers[0].id);
        let (lower, higher) = if peer(0) > peer(1) { (0, 1) } else { (1, 0) };
        let (lower, higher) = (began[lower].expect("it begins"), began[higher].expect("it begins, too"));
        println!("seed {seed}: {lower:?}, {higher:?}");
        assert!(
            higher >= lower + secs(1),
            "seed {seed}: the lower one at {lower:?}, the higher one at {higher:?}"
        );
    }
}

#[test]
fn with_expect_nobody_founds_before_all_are_there() {
    let mut world = World::new(4);
    let mut all = world.boot_cluster(2, "expect = 3");
    world.run(secs(60));
    for n in &all {
        assert_eq!(world.status(*n).cluster_id, None);
        assert!(world.status(*n).detail.contains("2 of 3"), "{}", world.status(*n).detail);
    }
    let third = world.add(Some(settings(&join_key(1), "expect = 3")));
    world.power_on(third);
    all.push(third);
    world.wait("one cluster", secs(30), |world| world.is_one_cluster(&all));
}

#[test]
fn a_late_node_joins_and_all_know_it() {
    let mut world = World::new(5);
    let mut all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    let cluster = world.status(0).cluster_id;
    let late =
        world.add(Some(settings(&join_key(1), "[node]\nhostname = \"late\"\nlabels = { rack = \"b2\" }")));
    world.power_on(late);
    all.push(late);
    world.wait("late node is in", secs(15), |world| world.is_one_cluster(&all));
    assert_eq!(world.status(late).cluster_id, cluster);
    let seen = world.members(0).into_iter().find(|member| member.name == "late").unwrap();
    assert_eq!(seen.labels["rack"], "b2");
}

#[test]
fn nodes_with_another_key_or_none_stay_outside_and_change_nothing() {
    let mut world = World::new(6);
    let all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    // What others admitted is on the disk a second later.
    world.run(secs(3));
    let disks: Vec<_> = all.iter().map(|n| world.machines[*n].disk[&StateItem::Membership].clone()).collect();
    let other = world.add(Some(settings(&join_key(2), "")));
    let none = world.add(None);
    world.power_on(other);
    world.power_on(none);
    world.run(secs(120));
    assert!(world.is_one_cluster(&all));
    for n in &all {
        assert_eq!(world.machines[*n].disk[&StateItem::Membership], disks[*n]);
        assert_eq!(world.machines[*n].logged(LogLevel::Error), Vec::<String>::new());
        assert!(world.status(*n).rejects["beacon under another join key"] > 0);
    }
    assert_eq!(world.members(other).len(), 1, "it is a cluster of its own");
    assert_eq!(world.status(none).phase, Phase::Unprovisioned);
    assert!(world.status(none).detail.contains("no cluster.toml"));
}

#[test]
fn a_power_cut_shows_as_suspect_then_down_and_the_node_comes_back_as_itself() {
    let mut world = World::new(7);
    let all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(20));
    let before = (world.status(2).id, world.status(2).address, world.status(2).cluster_id);
    world.power_off(2);
    let suspect = world.wait("suspect", secs(8), |world| world.state(0, 2) == Some(MemberState::Suspect));
    let down = world
        .wait("down", secs(10), |world| [0, 1].iter().all(|n| world.state(*n, 2) == Some(MemberState::Down)));
    println!("suspect after {suspect:?}, down {down:?} later");
    assert_eq!(world.machines[0].mesh_peers(), 2, "the mesh keeps its peer");
    world.run(secs(60));
    world.power_on(2);
    let back = world.wait("back", secs(10), |world| world.is_one_cluster(&all));
    println!("back after {back:?}");
    assert_eq!((world.status(2).id, world.status(2).address, world.status(2).cluster_id), before);
}

#[test]
fn after_a_power_cut_of_all_it_is_the_same_cluster_again() {
    let mut world = World::new(8);
    let all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(30));
    let before: Vec<_> = all.iter().map(|n| (world.status(*n).id, world.status(*n).cluster_id)).collect();
    for n in &all {
        world.power_off(*n);
    }
    world.run(secs(300));
    for n in &all {
        // All clocks restart in 1970.
        world.machines[*n].wall = Duration::ZERO;
        world.power_on(*n);
        world.run(secs(7));
    }
    let took = world.wait("one cluster again", secs(20), |world| world.is_one_cluster(&all));
    println!("again after {took:?}");
    let after: Vec<_> = all.iter().map(|n| (world.status(*n).id, world.status(*n).cluster_id)).collect();
    assert_eq!(before, after);
    for n in &all {
        assert!(world.machines[*n].floor.unwrap() >= secs(1_800_000_000), "the saved time rules");
    }
}

#[test]
fn a_member_that_wakes_up_alone_waits_and_says_for_whom() {
    let mut world = World::new(9);
    let all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(10));
    let cluster = world.status(0).cluster_id;
    for n in &all {
        world.power_off(*n);
    }
    world.power_on(0);
    world.run(secs(120));
    let status = world.status(0);
    assert_eq!((status.phase, status.cluster_id), (Phase::Waiting, cluster));
    assert!(status.detail.contains(&world.machines[1].last_id.clone().unwrap()[..8]), "{}", status.detail);
}

#[test]
fn members_that_never_met_find_each_other_without_the_one_that_admitted_both() {
    let mut world = World::new(14);
    let all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(5));
    world.power_off(2);
    let late = world.add(Some(settings(&join_key(1), "")));
    world.power_on(late);
    world.wait("late node is in", secs(15), |world| world.state(late, 0) == Some(MemberState::Up));
    world.run(secs(5));
    world.power_off(0);
    world.power_off(1);
    world.run(secs(30));
    world.power_on(2);
    world.wait("they see each other", secs(20), |world| {
        world.state(2, late) == Some(MemberState::Up) && world.state(late, 2) == Some(MemberState::Up)
    });
    assert_eq!(world.members(2).len(), 4);
}

#[test]
fn an_old_disk_of_a_node_that_left_does_not_bring_it_back() {
    let mut world = World::new(15);
    let all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(5));
    let old = world.machines[1].disk.clone();
    world.tell(1, Input::Leave);
    world.wait("it left", secs(10), |world| {
        world.status(1).phase == Phase::Left && world.state(0, 1) == Some(MemberState::Left)
    });
    world.power_off(1);
    world.machines[1].disk = old;
    world.power_on(1);
    world.wait("it learns that it left", secs(60), |world| world.status(1).phase == Phase::Left);
    world.run(secs(1));
    assert_eq!(world.state(0, 1), Some(MemberState::Left));
    assert_eq!(world.machines[0].mesh_peers(), 1, "{}", world.machines[0].describe(world.now));
}

#[test]
fn two_clusters_founded_by_accident_become_one() {
    let mut world = World::new(10);
    let all: Vec<_> = (0..5).map(|_| world.add(Some(settings(&join_key(1), "")))).collect();
    world.partition(&[&all[..2], &all[2..]]);
    for n in &all {
        world.power_on(*n);
    }
    world.wait("two clusters", secs(20), |world| {
        world.is_one_cluster(&all[..2]) && world.is_one_cluster(&all[2..])
    });
    let ids: Vec<_> = all.iter().map(|n| world.status(*n).id).collect();
    let lower = world.status(0).cluster_id.min(world.status(2).cluster_id);
    world.heal();
    let took = world.wait("merged", secs(90), |world| world.is_one_cluster(&all));
    println!("merged after {took:?}");
    assert_eq!(world.status(0).cluster_id, lower);
    assert_eq!(all.iter().map(|n| world.status(*n).id).collect::<Vec<_>>(), ids);
}

#[test]
fn two_clusters_with_a_history_stay_apart_and_say_so() {
    let mut world = World::new(21);
    let all: Vec<_> = (0..6).map(|_| world.add(Some(settings(&join_key(1), "")))).collect();
    world.partition(&[&all[..3], &all[3..]]);
    for n in &all {
        world.power_on(*n);
    }
    world.wait("two clusters", secs(20), |world| {
        world.is_one_cluster(&all[..3]) && world.is_one_cluster(&all[3..])
    });
    // A leave is a decision of a person; a cluster that has one does not dissolve by itself.
    world.tell(2, Input::Leave);
    world.tell(5, Input::Leave);
    world.run(secs(10));
    world.power_off(2);
    world.power_off(5);
    let before = (world.status(0).cluster_id, world.status(3).cluster_id);
    world.heal();
    world.wait("both say it", secs(90), |world| {
        [0, 3].iter().all(|n| {
            world.status(*n).problems.iter().any(|problem| problem.message.contains("second cluster"))
        })
    });
    assert_eq!((world.status(0).cluster_id, world.status(3).cluster_id), before);
    world.power_off(3);
    world.power_off(4);
    world.wait("the problem goes away", secs(200), |world| world.status(0).problems.is_empty());
}

#[test]
fn a_partition_heals_without_help() {
    let mut world = World::new(11);
    let all = world.boot_cluster(5, "");
    world.wait("one cluster", secs(20), |world| world.is_one_cluster(&all));
    let cluster = world.status(0).cluster_id;
    world.partition(&[&all[..2], &all[2..]]);
    world.wait("each side sees the other down", secs(40), |world| {
        world.state(0, 3) == Some(MemberState::Down) && world.state(3, 0) == Some(MemberState::Down)
    });
    world.run(secs(100));
    world.heal();
    let took = world.wait("healed", secs(60), |world| world.is_one_cluster(&all));
    println!("healed after {took:?}");
    assert_eq!(world.status(4).cluster_id, cluster);
}

#[test]
fn a_cable_that_was_out_for_a_while_costs_no_more_than_that_while() {
    for tenths in [60, 65, 70, 75, 80, 85, 90, 95, 100, 105, 110, 120, 130] {
        let mut world = World::new(22 + tenths);
        let all = world.boot_cluster(3, "");
        world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
        world.run(secs(3));
        // So that it is away at every stage of being suspected, and suspects others itself.
        world.link(1, false);
        world.run(Duration::from_millis(tenths * 100));
        world.link(1, true);
        let took = world.wait("back", secs(20), |world| world.is_one_cluster(&all));
        println!("out for {tenths} tenths of a second, back after {took:?}");
    }
}

#[test]
fn a_node_leaves_and_comes_back_on_request() {
    let mut world = World::new(12);
    let all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.tell(1, Input::Leave);
    world.wait("all see it left", secs(10), |world| {
        world.state(0, 1) == Some(MemberState::Left)
            && world.state(2, 1) == Some(MemberState::Left)
            && world.status(1).phase == Phase::Left
    });
    world.run(secs(3));
    assert_eq!(world.machines[0].mesh_peers(), 1);
    assert!(world.machines[1].mesh.is_none());
    world.power_off(1);
    world.power_on(1);
    world.run(secs(60));
    assert_eq!(world.status(1).phase, Phase::Left, "a restart does not undo it");
    world.tell(1, Input::Join);
    world.wait("back in", secs(20), |world| world.is_one_cluster(&all));
}

#[test]
fn a_node_that_is_provisioned_late_listens_before_it_founds() {
    let mut world = World::new(16);
    let all = world.boot_cluster(2, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    let late = world.add(None);
    world.power_on(late);
    world.run(secs(60));
    assert_eq!(world.status(late).phase, Phase::Unprovisioned);
    // What keeps it from its file is told, and each is another thing.
    for (area, detail) in
        [(PARTITION_AREA, "cluster.toml cannot be read"), ("cluster.toml", "cluster.toml has a mistake")]
    {
        let problems = vec![Problem::new(area, "the problem", "the fix")];
        world.tell(late, Input::Provisioned(Provisioning { settings: None, problems }));
        let status = world.status(late);
        assert!(status.phase == Phase::Unprovisioned && status.detail.contains(detail), "{}", status.detail);
        assert!(status.problems.iter().any(|problem| problem.area == area));
    }
    let settings = Some(settings(&join_key(1), ""));
    world.tell(late, Input::Provisioned(Provisioning { settings, problems: Vec::new() }));
    world.wait("it joins", secs(10), |world| world.is_one_cluster(&[0, 1, late]));
    assert!(!world.machines[late].logged(LogLevel::Info).iter().any(|line| line.contains("founded")));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut world = World::new(19);
        world.faults = Faults::ROUGH;
        world.capture = Some(Vec::new());
        world.boot_cluster(4, "");
        world.run(secs(30));
        world
            .capture
            .take()
            .unwrap()
            .into_iter()
            .map(|seen| (seen.from, seen.to, seen.bytes))
            .collect::<Vec<_>>()
    };
    let first = run();
    assert!(first.len() > 100);
    assert!(first == run());
}

#[test]
fn sessions_renew_without_a_gap() {
    let mut world = World::new(17);
    let all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(5));
    for machine in &mut world.machines {
        machine.log.clear();
        (machine.plans, machine.routes) = (0, 0);
    }
    world.run(secs(45 * 60));
    assert!(world.is_one_cluster(&all));
    for n in &all {
        let log = world.machines[*n].logged(LogLevel::Debug);
        assert!(
            log.iter().filter(|line| line.contains("session opened")).count() >= 6,
            "sessions were renewed"
        );
        assert!(!log.iter().any(|line| line.contains("state changed")), "nobody noticed");
        assert_eq!(world.machines[*n].plans, 0, "the mesh was left alone");
        // A renewal may come from an address of the peer that was not heard before: one, with one card.
        assert!(world.machines[*n].routes < all.len() as u64, "each address was routed once");
    }
}

#[test]
fn a_lossy_network_alone_declares_nobody_down() {
    let mut world = World::new(13);
    world.faults = Faults::ROUGH;
    let all = world.boot_cluster(5, "");
    world.wait("one cluster", secs(60), |world| world.is_one_cluster(&all));
    for machine in &mut world.machines {
        machine.downs.clear();
    }
    world.run(secs(600));
    for n in &all {
        assert_eq!(world.machines[*n].downs, Vec::new());
    }
}

#[test]
fn a_crowd_joins_through_one_seed_and_all_know_all_within_five_seconds() {
    for faults in [Faults::NONE, Faults::LOSSY] {
        let mut world = World::new(30);
        let all = world.add_cluster(40, "");
        world.power_on(all[0]);
        world.wait("the seed founds", secs(15), |world| world.is_one_cluster(&all[..1]));
        world.faults = faults;
        for n in &all[1..] {
            world.power_on(*n);
        }
        let took = world.wait("all know all", secs(5), |world| world.is_one_cluster(&all));
        println!("40 know each other after {took:?}");
        let founded =
            |n: &usize| world.machines[*n].logged(LogLevel::Info).iter().any(|line| line.contains("founded"));
        assert_eq!(all.iter().filter(|n| founded(n)).count(), 1);
    }
}

#[test]
fn a_pair_that_is_heard_in_one_direction_only_is_not_declared_down() {
    let mut world = World::new(31);
    let all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(10));
    world.one_way(0, 1, false);
    world.run(secs(20 * 60));
    for n in &all {
        assert_eq!(world.machines[*n].downs, Vec::new(), "the third vouches for both");
    }
    world.heal();
    world.run(secs(30));
    assert!(world.is_one_cluster(&all));
}

/// All machines' ports open a minute after power-on. Nobody loses its carrier, so nobody notices; and there is no DHCP.
fn behind_a_late_switch(world: &mut World, all: &[usize]) {
    for n in all {
        world.link(*n, false);
        world.machines[*n].has_v4 = false;
        world.power_on(*n);
    }
    world.run(secs(60));
    for n in all {
        world.link(*n, true);
    }
}

fn foundings(world: &World, all: &[usize]) -> usize {
    let founded = |line: &String| line.contains("founded a cluster");
    all.iter()
        .map(|n| world.machines[*n].logged(LogLevel::Info).iter().filter(|line| founded(line)).count())
        .sum()
}

#[test]
fn after_a_power_loss_behind_a_late_switch_it_is_the_same_cluster_and_nothing_is_founded() {
    let mut world = World::new(32);
    let all = world.boot_cluster(5, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(70));
    let before = world.status(0).cluster_id;
    for n in &all {
        world.power_off(*n);
        world.machines[*n].log.clear();
    }
    behind_a_late_switch(&mut world, &all);
    let took = world.wait("one cluster again", secs(30), |world| world.is_one_cluster(&all));
    println!("again {took:?} after the ports opened");
    assert_eq!(world.status(0).cluster_id, before);
    assert_eq!(foundings(&world, &all), 0);
}

#[test]
fn ten_nodes_first_switched_on_behind_a_late_switch_become_exactly_one_cluster() {
    for seed in 33..36 {
        let mut world = World::new(seed);
        let all = world.add_cluster(10, "");
        behind_a_late_switch(&mut world, &all);
        let took = world.wait("one cluster", secs(120), |world| world.is_one_cluster(&all));
        let ids: std::collections::BTreeSet<_> = all.iter().map(|n| world.status(*n).id).collect();
        assert_eq!(ids.len(), 10);
        println!(
            "one cluster {took:?} after the ports opened; {} were founded meanwhile",
            foundings(&world, &all)
        );
    }
}

#[test]
fn a_member_with_a_dead_clock_takes_the_time_of_the_others_before_its_mesh() {
    let mut world = World::new(36);
    let all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(70));
    world.power_off(2);
    world.machines[2].disk.remove(&StateItem::Clock);
    world.machines[2].wall = Duration::ZERO;
    world.run(secs(60));
    world.power_on(2);
    world.wait("back", secs(15), |world| world.is_one_cluster(&all));
    let floor = world.machines[2].floor.unwrap();
    assert!(floor >= secs(1_800_000_000), "{floor:?}: WireGuard would refuse handshakes of 1970");
}

#[test]
fn a_clock_in_1970_whose_network_is_late_is_set_by_the_first_peer() {
    let mut world = World::new(33);
    let all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(170));
    world.power_off(2);
    world.run(secs(600));
    world.machines[2].wall = Duration::ZERO;
    world.link(2, false);
    world.power_on(2);
    world.run(secs(30));
    let saved = world.machines[2].floor.unwrap();
    assert!(saved >= secs(1_800_000_000) && saved < secs(1_800_000_600), "{saved:?}: the saved time rules");
    world.link(2, true);
    world.wait("one cluster again", secs(60), |world| world.is_one_cluster(&all));
    let true_time = world.machines[0].present(world.now).wall;
    world.wait("its clock is raised once more", secs(2), |world| {
        world.machines[2].floor.unwrap().abs_diff(true_time) < secs(5)
    });
}

#[test]
fn whatever_the_weather_it_is_one_cluster_afterwards() {
    for seed in 40..43 {
        let mut world = World::new(seed);
        let all = world.boot_cluster(5, "");
        world.wait("one cluster", secs(20), |world| world.is_one_cluster(&all));
        let before = world.status(0).cluster_id;
        world.weather(&all, secs(120));
        let took = world.wait("one cluster again", secs(120), |world| world.is_one_cluster(&all));
        println!("one cluster {took:?} after the weather cleared");
        assert_eq!(world.status(0).cluster_id, before);
        assert_eq!(foundings(&world, &all), 1);
    }
}

#[test]
fn a_crowd_keeps_its_tunnels_alive_once_nobody_joins_any_more() {
    let mut world = World::new(31);
    let all = world.add_cluster(24, "");
    world.power_on(all[0]);
    world.wait("the first one founds", secs(15), |world| world.is_one_cluster(&all[..1]));
    for n in &all[1..] {
        world.power_on(*n);
    }
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    let kept = |world: &World| {
        let count = |n: &usize| world.machines[*n].mesh_peers_kept_alive();
        all.iter().map(count).collect::<Vec<_>>()
    };
    world.run(secs(1));
    assert!(kept(&world).contains(&0), "who came last had time to shake hands: {:?}", kept(&world));
    world.wait("all tunnels are kept alive", secs(15), |world| kept(world) == vec![23; 24]);
}
