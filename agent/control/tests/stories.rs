// SPDX-License-Identifier: Apache-2.0
//! What people do to a cluster, and what breaks one at a time.
#![allow(missing_docs, unreachable_pub)]

mod sim;

use cluster_agent_control::{Answer, Command, Departure, Input, Now, Refusal, Setting, SettingKind};
use sim::{Mutation, World, ms, secs};

fn max_members(max: u16) -> Command {
    Command::Set { setting: Setting::MaxMembers(max), if_version: None }
}

fn depart(world: &World, n: usize, how: Departure) -> Command {
    Command::Depart { node: world.machines[n].id, how }
}

fn replica(world: &World, n: usize) -> Option<u64> {
    let id = world.machines[n].id;
    let state = world.state(world.leader().expect("somebody leads"));
    state.member(&id).and_then(|member| member.replica).map(|replica| replica.id)
}

#[test]
fn a_member_that_leaves_is_answered_when_it_is_done_also_the_leader() {
    let mut world = World::formed(1, 3);
    let leader = world.leader().unwrap();
    let command = depart(&world, leader, Departure::Left);
    assert!(matches!(world.ask(leader, command), Answer::Done(_)));
    let next = world.leader().unwrap();
    assert_ne!(next, leader);
    let id = world.machines[leader].id;
    assert!(world.state(next).member(&id).is_none());
    world.until(secs(20), |world| world.departed.contains_key(&leader));
    assert_eq!(world.departed[&leader], Departure::Left);
    world.settle(secs(60));
}

#[test]
fn the_last_voter_cannot_go() {
    let mut world = World::formed(2, 1);
    let command = depart(&world, 0, Departure::Left);
    assert_eq!(world.ask(0, command), Answer::Refused(Refusal::StillVotes));
}

#[test]
fn an_evicted_voter_loses_its_vote_first_and_is_told_although_it_was_off() {
    let mut world = World::formed(3, 4);
    let leader = world.leader().unwrap();
    let other = (0..4).find(|n| *n != leader && replica(&world, *n).is_some()).unwrap();
    world.crash(other);
    let command = depart(&world, other, Departure::Evicted);
    let Answer::Done(index) = world.ask(leader, command) else { panic!("it is not evicted") };
    world.note_evicted(world.machines[other].id, index);
    let command = Command::Join { record: world.machines[other].record.clone(), key: sim::KEY };
    assert_eq!(world.ask(leader, command), Answer::Refused(Refusal::Evicted));
    world.start(other);
    world.until(secs(30), |world| world.departed.get(&other) == Some(&Departure::Evicted));
    world.settle(secs(60));
}

#[test]
fn a_voter_that_is_gone_for_a_minute_is_replaced() {
    let mut world = World::formed(4, 4);
    let leader = world.leader().unwrap();
    let voter = (0..4).find(|n| *n != leader && replica(&world, *n).is_some()).unwrap();
    let spare = (0..4).find(|n| replica(&world, *n).is_none()).unwrap();
    world.crash(voter);
    world.run(secs(50));
    assert_eq!(replica(&world, spare), None);
    world.until(secs(40), |world| {
        let state = world.state(world.leader().unwrap());
        state.voters().contains(&world.machines[spare].id)
            && !state.voters().contains(&world.machines[voter].id)
    });
    world.start(voter);
    world.settle(secs(60));
}

#[test]
fn who_was_away_while_all_voters_changed_finds_the_cluster() {
    let mut world = World::formed(11, 7);
    let command = Command::Set { setting: Setting::Voters(3), if_version: None };
    assert!(matches!(world.ask(0, command), Answer::Done(_)));
    world.settle(secs(60));
    let voters = |world: &World| world.state(world.leader().expect("somebody leads")).voters();
    let before = voters(&world);
    let away = (0..7).find(|n| !before.contains(&world.machines[*n].id)).unwrap();
    world.crash(away);
    for machine in world.machines.iter_mut().filter(|machine| before.contains(&machine.id)) {
        machine.disk.fsync = ms(400);
    }
    world.until(secs(120), |world| {
        world.leader().is_some() && voters(world).iter().all(|node| !before.contains(node))
    });
    world.start(away);
    world.settle(secs(30));
}

#[test]
fn a_wiped_voter_comes_back_under_another_raft_id() {
    let mut world = World::formed(5, 3);
    let leader = world.leader().unwrap();
    let voter = (leader + 1) % 3;
    let before = replica(&world, voter).unwrap();
    world.crash(voter);
    world.machines[voter].disk.wipe(Mutation::None);
    world.start(voter);
    world.until(secs(30), |world| {
        let after = world.leader().and_then(|_| replica(world, voter));
        after.is_some_and(|after| after != before) && world.is_settled()
    });
    assert!(matches!(world.ask(voter, max_members(99)), Answer::Done(_)));
}

#[test]
fn a_disk_that_went_back_in_time_is_noticed_and_votes_no_more() {
    let mut world = World::formed(6, 3);
    let leader = world.leader().unwrap();
    let voter = (leader + 1) % 3;
    let before = replica(&world, voter).unwrap();
    let earlier = world.machines[voter].disk.saved.clone();
    assert!(matches!(world.ask(leader, max_members(99)), Answer::Done(_)));
    world.run(secs(1));
    world.crash(voter);
    world.machines[voter].disk.saved = earlier;
    world.start(voter);
    world.until(secs(30), |world| {
        let after = world.leader().and_then(|_| replica(world, voter));
        after.is_some_and(|after| after != before) && world.is_settled()
    });
}

#[test]
fn without_a_majority_nothing_is_done_and_nobody_says_so() {
    let mut world = World::formed(7, 3);
    let leader = world.leader().unwrap();
    for n in (0..3).filter(|n| *n != leader) {
        world.crash(n);
    }
    // It was told before it knew that it is alone: that may still happen.
    assert_eq!(world.ask(leader, max_members(7)), Answer::Unknown);
    // Now nobody who could decide is there.
    assert_eq!(world.ask(leader, max_members(8)), Answer::NotDone);
    assert_eq!(world.read(leader), Answer::NotDone);
    world.heal();
    world.settle(secs(60));
    assert_ne!(world.state(leader).setting(SettingKind::MaxMembers), Some(&Setting::MaxMembers(8)));
}

#[test]
fn what_a_person_changes_is_on_every_node_within_two_seconds() {
    let mut world = World::formed(8, 7);
    let follower = (0..7).find(|n| replica(&world, *n).is_none()).unwrap();
    let Answer::Done(index) = world.ask(follower, max_members(99)) else { panic!("it is not done") };
    let took = world.until(secs(2), |world| (0..7).all(|n| world.state(n).index() >= index));
    println!("on all nodes after {took:?}");
    let now = Now { boottime: world.now, wall: secs(0) };
    let age = |n: usize| world.machines[n].control.as_ref().and_then(|control| control.status(now).age);
    assert!(
        (0..7).all(|n| age(n).is_some_and(|age| age < secs(5))),
        "{:?}",
        (0..7).map(age).collect::<Vec<_>>()
    );
}

#[test]
fn a_survivor_opens_a_new_incarnation_and_the_old_one_is_not_heard() {
    let mut world = World::formed(9, 4);
    assert!(matches!(world.ask(0, max_members(99)), Answer::Done(_)));
    world.settle(secs(10));
    let voters: Vec<usize> = (0..4).filter(|n| replica(&world, *n).is_some()).collect();
    let spare = (0..4).find(|n| !voters.contains(n)).unwrap();
    let (survivor, lost) = (voters[0], [voters[1], voters[2]]);
    for n in lost {
        world.crash(n);
    }
    world.recover(survivor);
    world.until(secs(10), |world| world.state(survivor).incarnation() == 2);
    assert!(matches!(world.ask(survivor, max_members(100)), Answer::Done(_)));
    // Who follows believes it, because it was a voter.
    world.until(secs(30), |world| world.state(spare).incarnation() == 2);
    // Those that were thought to be gone come back, too.
    for n in lost {
        world.start(n);
    }
    world.until(secs(60), |world| (0..4).all(|n| world.state(n).incarnation() == 2));
    world.settle(secs(120));
    assert_eq!(world.state(lost[0]).setting(SettingKind::MaxMembers), Some(&Setting::MaxMembers(100)));
}

#[test]
fn a_stranger_is_not_heard() {
    let mut world = World::formed(10, 3);
    let stranger = sim::keys(10, 77).node_id();
    let leader = world.leader().unwrap();
    let member = (leader + 1) % 3;
    // What a member says and does not get through, said by somebody else.
    world.cuts.insert((member, leader));
    world.tap = Some(Vec::new());
    world.begin(member, max_members(55));
    world.run(ms(300));
    let said = world.tap.take().unwrap_or_default();
    let is_set = |world: &World| {
        world.state(leader).setting(SettingKind::MaxMembers) == Some(&Setting::MaxMembers(55))
    };
    for (who, heard) in [(stranger, false), (world.machines[member].id, true)] {
        for bytes in said.clone() {
            world.give(leader, Input::Message { from: who, bytes });
        }
        world.run(ms(100));
        assert_eq!(is_set(&world), heard);
    }
}
