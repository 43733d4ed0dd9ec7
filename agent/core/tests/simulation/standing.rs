// SPDX-License-Identifier: Apache-2.0
//! Who a machine is and where it stands: what lost files do and do not say, equal names, machines installed anew, leaving and
//! coming back.

use crate::secs;
use crate::sim::{World, join_key, settings};
use cluster_agent_core::{
    HeldRelease, Input, LogLevel, MemberState, Phase, Provisioning, Refusal, Request, StateItem,
};

fn formed(seed: u64, count: usize) -> (World, Vec<usize>) {
    let mut world = World::new(seed);
    let all = world.boot_cluster(count, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(15));
    (world, all)
}

fn problem(world: &World, n: usize, area: &str) -> Option<String> {
    let problems = world.status(n).problems;
    problems.into_iter().find(|problem| problem.area == area).map(|problem| problem.message)
}

fn says(world: &World, n: usize, text: &str) -> bool {
    world.machines[n].logged(LogLevel::Info).iter().any(|line| line.contains(text))
}

/// Ways to lose a file.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Missing,
    Empty,
    Cut,
    Flipped,
}

const LOSSES: [Loss; 4] = [Loss::Missing, Loss::Empty, Loss::Cut, Loss::Flipped];

fn lose(world: &mut World, n: usize, item: StateItem, loss: Loss) {
    let disk = &mut world.machines[n].disk;
    let Some(bytes) = disk.get_mut(&item) else { return };
    match loss {
        Loss::Missing => drop(disk.remove(&item)),
        Loss::Empty => bytes.clear(),
        Loss::Cut => bytes.truncate(bytes.len() / 2),
        Loss::Flipped => {
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
        }
    }
}

#[test]
fn a_node_that_lost_its_identity_joins_as_a_new_one_and_says_so() {
    for loss in LOSSES {
        let (mut world, _) = formed(70, 2);
        let (cluster, old) = (world.status(0).cluster_id, world.status(1).id);
        world.power_off(1);
        lose(&mut world, 1, StateItem::Identity, loss);
        world.power_on(1);
        assert_ne!(world.status(1).id, old);
        let told = problem(&world, 1, "identity").unwrap_or_default();
        assert!(told.contains("new node"), "{loss:?}: {told}");
        assert_ne!(world.status(1).phase, Phase::Left, "{loss:?}: {}", world.status(1).detail);
        world.wait("it is in", secs(30), |world| {
            world.status(1).phase == Phase::Member && world.state(0, 1) == Some(MemberState::Up)
        });
        assert_eq!(world.status(1).cluster_id, cluster);
        let standings: Vec<_> =
            world.members(0).into_iter().map(|member| (member.id, member.state)).collect();
        assert!(!standings.contains(&(old.clone(), MemberState::Left)), "{loss:?}: {standings:?}");
        assert!(!says(&world, 1, "left"), "{loss:?}: {:?}", world.machines[1].logged(LogLevel::Info));
        // It is itself over the next restart, and nothing is wrong any more.
        let new = world.status(1).id;
        world.run(secs(3));
        world.power_off(1);
        world.power_on(1);
        world.wait("it is back", secs(30), |world| world.status(1).phase == Phase::Member);
        assert_eq!((world.status(1).id, world.status(1).problems), (new, Vec::new()));
    }
}

#[test]
fn a_node_that_lost_its_identity_does_not_found_while_the_others_are_off() {
    for loss in LOSSES {
        let (mut world, _) = formed(71, 2);
        world.power_off(0);
        world.power_off(1);
        lose(&mut world, 1, StateItem::Identity, loss);
        world.power_on(1);
        world.run(secs(60));
        assert_eq!((world.status(1).phase, world.status(1).cluster_id), (Phase::Waiting, None), "{loss:?}");
        // The same after a restart: by then its identity is whole, but the membership is still not its own.
        world.power_off(1);
        world.power_on(1);
        world.run(secs(60));
        assert_eq!((world.status(1).phase, world.status(1).cluster_id), (Phase::Waiting, None), "{loss:?}");
        world.power_on(0);
        world.wait("it is let in", secs(60), |world| world.status(1).phase == Phase::Member);
        assert!(problem(&world, 1, "membership").is_none());
    }
}

#[test]
fn a_node_that_lost_its_membership_waits_for_the_cluster_and_is_the_same_in_it() {
    for loss in LOSSES {
        let (mut world, all) = formed(72, 2);
        let (cluster, id) = (world.status(1).cluster_id, world.status(1).id);
        world.power_off(0);
        world.power_off(1);
        lose(&mut world, 1, StateItem::Membership, loss);
        world.power_on(1);
        world.run(secs(60));
        assert_eq!((world.status(1).phase, world.status(1).cluster_id), (Phase::Waiting, None), "{loss:?}");
        assert!(problem(&world, 1, "membership").is_some(), "{loss:?}");
        world.power_on(0);
        world.wait("it is in again", secs(60), |world| world.is_one_cluster(&all));
        assert_eq!((world.status(1).cluster_id, world.status(1).id), (cluster, id), "{loss:?}");
        assert!(problem(&world, 1, "membership").is_none(), "{loss:?}");
    }
}

#[test]
fn a_membership_of_another_machine_or_cluster_is_no_leave() {
    let (mut world, _) = formed(73, 2);
    let other = world.add(Some(settings(&join_key(2), "")));
    world.power_on(other);
    world.wait("another cluster", secs(30), |world| world.status(other).phase == Phase::Member);
    world.run(secs(5));
    let foreign = world.machines[other].disk[&StateItem::Membership].clone();
    let id = world.status(1).id;
    world.power_off(1);
    world.machines[1].disk.insert(StateItem::Membership, foreign.clone());
    world.power_on(1);
    assert!(problem(&world, 1, "membership").unwrap_or_default().contains("does not name this node"));
    world.wait("it is in its own cluster again", secs(60), |world| world.is_one_cluster(&[0, 1]));
    assert_eq!(world.status(1).id, id);
    assert!(!says(&world, 1, "left"));
    assert_eq!(world.machines[1].disk[&StateItem::DamagedMembership], foreign);
}

#[test]
fn a_lost_count_of_boots_or_lost_records_cost_nothing() {
    for loss in LOSSES {
        let (mut world, all) = formed(74, 3);
        let id = world.status(1).id;
        world.power_off(1);
        for item in [StateItem::Generation, StateItem::Records, StateItem::Clock] {
            lose(&mut world, 1, item, loss);
        }
        world.power_on(1);
        world.wait("it is back", secs(60), |world| world.is_one_cluster(&all));
        assert_eq!((world.status(1).id, world.status(1).problems), (id, Vec::new()), "{loss:?}");
    }
}

#[test]
fn who_left_stays_out_when_it_loses_its_identity() {
    let (mut world, _) = formed(75, 2);
    world.ask(1, Request::Leave);
    world.wait("it left", secs(10), |world| world.status(1).detail.contains("clusterctl join"));
    world.run(secs(1));
    world.power_off(1);
    lose(&mut world, 1, StateItem::Identity, Loss::Empty);
    world.power_on(1);
    world.run(secs(60));
    assert_eq!(world.status(1).phase, Phase::Left, "a person said so, and that file is whole");
    world.ask(1, Request::Join);
    world.wait("it comes as a new node", secs(30), |world| world.state(0, 1) == Some(MemberState::Up));
}

#[test]
fn equal_host_names_are_named_on_both_nodes_and_on_no_other() {
    let mut world = World::new(76);
    let twin = "[node]\nhostname = \"alpha\"";
    let all: Vec<_> = [twin, twin, ""].map(|extra| world.add(Some(settings(&join_key(1), extra)))).into();
    for n in &all {
        world.power_on(*n);
    }
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    let short = |world: &World, n: usize| world.status(n).short_id;
    let names = |world: &World, n: usize, other: usize| {
        problem(world, n, "hostname").is_some_and(|told| told.contains(&short(world, other)))
    };
    world.wait("each names the other", secs(10), |world| names(world, 0, 1) && names(world, 1, 0));
    assert_eq!(problem(&world, 2, "hostname"), None);

    world.power_off(1);
    world.wait("it is gone", secs(30), |world| problem(world, 0, "hostname").is_none());
    world.power_on(1);
    world.wait("it is named again", secs(30), |world| names(world, 0, 1) && names(world, 1, 0));
    let renamed = settings(&join_key(1), "[node]\nhostname = \"beta\"");
    world.tell(1, Input::Provisioned(Provisioning { settings: Some(renamed), problems: Vec::new() }));
    world.wait("nothing is wrong", secs(10), |world| {
        [0, 1].iter().all(|n| problem(world, *n, "hostname").is_none())
    });
}

#[test]
fn a_name_like_the_one_that_another_node_has_from_its_id_is_named_too() {
    let (mut world, all) = formed(77, 2);
    let taken = settings(&join_key(1), &format!("[node]\nhostname = \"{}\"", world.status(0).name));
    world.tell(1, Input::Provisioned(Provisioning { settings: Some(taken), problems: Vec::new() }));
    world.wait("both say so", secs(10), |world| all.iter().all(|n| problem(world, *n, "hostname").is_some()));
}

const NOT_FOR_US: &str = "handshake malformed or not for us";

fn refused(world: &World, n: usize, reason: &str) -> u64 {
    world.status(n).rejects.get(reason).copied().unwrap_or_default()
}

#[test]
fn a_machine_that_was_installed_anew_is_soon_not_called_by_its_old_name() {
    for seed in 78..81 {
        let (mut world, all) = formed(seed, 3);
        world.power_off(2);
        world.machines[2].disk.clear();
        world.power_on(2);
        world.wait("it is in as a new node", secs(30), |world| {
            all.iter().all(|n| world.state(*n, 2) == Some(MemberState::Up))
        });
        world.run(secs(120));
        let counted: Vec<_> = all.iter().map(|n| refused(&world, *n, NOT_FOR_US)).collect();
        println!("seed {seed}: {counted:?}");
        assert!(counted.iter().all(|count| *count <= 40), "seed {seed}: {counted:?}");
        // Of two that renew their session at once each answers the other: that has nothing to do with it.
        let renewals = "handshake answer to nothing";
        let of_old = |world: &World| {
            let mut rejects = world.status(2).rejects;
            rejects.remove(renewals);
            rejects
        };
        let counted = of_old(&world);
        world.run(secs(1800));
        assert_eq!(of_old(&world), counted, "seed {seed}");
        // Who restarts tries a few times, too, and stops.
        world.power_off(0);
        world.power_on(0);
        world.run(secs(300));
        let counted = refused(&world, 2, NOT_FOR_US);
        world.run(secs(1800));
        assert_eq!(refused(&world, 2, NOT_FOR_US), counted, "seed {seed}");
    }
}

#[test]
fn two_disks_that_take_turns_in_one_machine_are_both_found() {
    let (mut world, all) = formed(82, 3);
    let first = world.machines[2].disk.clone();
    world.power_off(2);
    world.machines[2].disk.clear();
    world.power_on(2);
    world.wait("it is in as a new node", secs(30), |world| world.state(0, 2) == Some(MemberState::Up));
    world.run(secs(300));
    for _ in 0..2 {
        world.power_off(2);
        let second = std::mem::replace(&mut world.machines[2].disk, first.clone());
        world.power_on(2);
        let up = |world: &World| {
            all.iter().all(|n| all.iter().all(|m| world.state(*n, *m) == Some(MemberState::Up)))
        };
        world.wait("the first one is back", secs(30), up);
        world.run(secs(300));
        world.power_off(2);
        world.machines[2].disk = second;
        world.power_on(2);
        world.wait("the second one is back", secs(30), up);
        world.run(secs(300));
    }
}

#[test]
fn a_leave_goes_on_where_a_power_cut_stopped_it() {
    let (mut world, _) = formed(83, 3);
    // Nobody hears of it before.
    world.link(1, false);
    world.ask(1, Request::Leave);
    world.run(secs(1));
    assert!(!world.status(1).detail.contains("clusterctl join"), "it is leaving: {}", world.status(1).detail);
    world.power_off(1);
    world.link(1, true);
    world.power_on(1);
    world.wait("it is out, and all know it", secs(40), |world| {
        world.status(1).detail.contains("clusterctl join")
            && [0, 2].iter().all(|n| world.state(*n, 1) == Some(MemberState::Left))
    });
    world.run(secs(1));
    assert!(world.machines[1].mesh.is_none());
    world.power_off(1);
    world.power_on(1);
    world.run(secs(60));
    assert!(world.status(1).detail.contains("clusterctl join"), "{}", world.status(1).detail);
}

#[test]
fn a_leave_is_answered_when_it_is_told_and_saved_whoever_is_there_to_hear_it() {
    for (seed, reachable) in [(84, true), (85, false)] {
        let (mut world, _) = formed(seed, 3);
        world.link(1, reachable);
        let (first, second) = (world.ask(1, Request::Leave), world.ask(1, Request::Leave));
        assert_eq!((world.answer(1, first), world.answer(1, second)), (None, None));
        let took = world.wait("it is out", secs(10), |world| world.answer(1, first).is_some());
        assert_eq!((world.answer(1, first), world.answer(1, second)), (Some(&Ok(())), Some(&Ok(()))));
        println!("reachable {reachable}: {took:?}");
        assert_eq!((world.status(1).phase, world.status(1).cluster_id), (Phase::Left, None));
        world.power_off(1);
        world.power_on(1);
        assert_eq!(world.status(1).phase, Phase::Left, "it was on the disk");
        if reachable {
            assert_eq!(world.state(0, 1), Some(MemberState::Left));
        }
    }
}

#[test]
fn a_join_behind_a_leave_is_done_after_it() {
    let (mut world, all) = formed(88, 3);
    let (leave, join) = (world.ask(1, Request::Leave), world.ask(1, Request::Join));
    world.wait("it is out", secs(10), |world| world.answer(1, leave) == Some(&Ok(())));
    assert_eq!(world.answer(1, join), None, "that it looks for the cluster again is not on the disk");
    world.wait("it looks for it", secs(1), |world| world.answer(1, join) == Some(&Ok(())));
    world.wait("it is back", secs(30), |world| world.is_one_cluster(&all));
}

#[test]
fn a_request_that_the_disk_does_not_take_is_no_success() {
    let (mut world, all) = formed(89, 3);
    world.machines[1].disk_full = true;
    let leave = world.ask(1, Request::Leave);
    world.wait("an answer", secs(16), |world| world.answer(1, leave).is_some());
    let Some(Err(refusal)) = world.answer(1, leave) else { panic!("nothing was saved") };
    assert!(refusal.to_string().contains("no space left on device"), "{refusal}");
    // Until then no other request is tried, and each is answered with what holds it up.
    let join = world.ask(1, Request::Join);
    world.run(secs(16));
    assert!(matches!(world.answer(1, join), Some(Err(Refusal::Unfinished { .. }))));
    world.machines[1].disk_full = false;
    let join = world.ask(1, Request::Join);
    world.wait("it joins again", secs(20), |world| world.answer(1, join) == Some(&Ok(())));
    world.wait("it is back", secs(30), |world| world.is_one_cluster(&all));
}

#[test]
fn releases_that_a_record_cannot_name_are_named_to_who_asks() {
    let (mut world, _) = formed(90, 2);
    let held = |version: &str| HeldRelease { version: version.into(), hash: "0123456789abcdef".into() };
    let good = world.ask(1, Request::Releases(vec![held("1.2.4")]));
    assert_eq!(world.answer(1, good), Some(&Ok(())));
    let bad = world.ask(1, Request::Releases(vec![held("1.2.4"), held("latest")]));
    assert_eq!(world.answer(1, bad), Some(&Err(Refusal::Releases(vec!["latest".into()]))));
}

#[test]
fn a_member_whose_disk_fails_invites_nobody() {
    let (mut world, all) = formed(91, 3);
    world.machines[0].disk_full = true;
    world.ask(1, Request::Leave);
    let fails = |world: &World| problem(world, 0, "disk").is_some_and(|told| told.contains("membership"));
    world.wait("it cannot save who left", secs(10), fails);
    world.capture = Some(Vec::new());
    let late = world.add(Some(settings(&join_key(1), "")));
    world.power_on(late);
    world.wait("another one lets it in", secs(15), |world| world.status(late).phase == Phase::Member);
    world.run(secs(30));
    let beacons = |world: &World, of: usize| {
        let seen = world.capture.iter().flatten();
        seen.filter(|seen| seen.from == of && seen.bytes.get(1) == Some(&1)).count()
    };
    assert!(beacons(&world, 2) > 0);
    assert_eq!(beacons(&world, 0), 0, "it could say nothing to whoever came");
    world.machines[0].disk_full = false;
    world.wait("it speaks again", secs(40), |world| beacons(world, 0) > 0);
    let up = Some(MemberState::Up);
    world.wait("both know each other", secs(60), |world| {
        world.state(all[0], late) == up && world.state(late, all[0]) == up
    });
}

#[test]
fn the_record_of_a_newcomer_is_told_with_its_admission() {
    let (mut world, all) = formed(92, 3);
    let refused = |world: &World, n: usize| {
        world.status(n).rejects.get("object about a node that is no member").copied().unwrap_or(0)
    };
    let before: Vec<_> = all.iter().map(|n| refused(&world, *n)).collect();
    for n in &all {
        world.machines[*n].disk_full = true;
    }
    let late = world.add(Some(settings(&join_key(1), "")));
    world.power_on(late);
    world.run(secs(12));
    for n in &all {
        world.machines[*n].disk_full = false;
    }
    let everybody = [&all[..], &[late]].concat();
    world.wait("it is in", secs(60), |world| world.is_one_cluster(&everybody));
    let after: Vec<_> = all.iter().map(|n| refused(&world, *n)).collect();
    assert_eq!(after, before, "records that came before the admission");
}

#[test]
fn the_only_member_leaves_at_once() {
    let mut world = World::new(86);
    let all = world.boot_cluster(1, "");
    world.wait("a cluster", secs(15), |world| world.is_one_cluster(&all));
    world.ask(0, Request::Leave);
    world.wait("it is out", secs(1), |world| world.status(0).detail.contains("clusterctl join"));
}

#[test]
fn a_leave_right_after_a_restart_reaches_the_others() {
    let (mut world, _) = formed(87, 3);
    world.power_off(1);
    world.power_on(1);
    world.ask(1, Request::Leave);
    world.wait("all know it", secs(15), |world| {
        [0, 2].iter().all(|n| world.state(*n, 1) == Some(MemberState::Left))
    });
}

/// A disk that went back to a copy from before its node joined, or lost its membership together with its count of boots. The
/// answer to its admission brings its own later record.
#[test]
fn a_node_whose_state_is_older_than_its_membership_is_heard_again() {
    let (mut world, all) = formed(83, 3);
    for _ in 0..4 {
        world.power_off(2);
        world.power_on(2);
        world.wait("up again", secs(20), |world| world.is_one_cluster(&all));
    }
    let (id, old) = (world.status(2).id, world.machines[0].disk.clone());
    world.run(secs(30));
    world.power_off(2);
    let disk = &mut world.machines[2].disk;
    // Counts of boots are small here: that of machine 0 is of its first.
    disk.insert(StateItem::Generation, old[&StateItem::Generation].clone());
    disk.remove(&StateItem::Membership);
    disk.remove(&StateItem::Records);
    world.power_on(2);
    world.wait("in and up at all", secs(30), |world| world.is_one_cluster(&all));
    assert_eq!(world.status(2).id, id);
    world.run(secs(60));
    assert!(world.is_one_cluster(&all), "and it stays");
}
