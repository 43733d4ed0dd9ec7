// SPDX-License-Identifier: Apache-2.0
//! The control planes of a few nodes, in good and in bad weather. `CONTROL_SEEDS=1000` is what `just campaign sim` runs;
//! `CONTROL_SEED=N` runs one again.
#![allow(missing_docs, unreachable_pub)]

mod sim;

use std::panic::{AssertUnwindSafe, catch_unwind};

use cluster_agent_control::{Answer, Command, Input, RequestId, Setting, SettingKind};
use sim::{Mutation, World, ms, secs, seeds};

fn max_members(max: u16) -> Command {
    Command::Set { setting: Setting::MaxMembers(max), if_version: None }
}

#[test]
fn a_change_goes_through_three_replicas_and_survives_the_leader() {
    let mut world = World::formed(1, 3);
    let leader = world.leader().unwrap();
    let other = (leader + 1) % 3;
    assert!(matches!(world.ask(other, max_members(300)), Answer::Done(_)));
    world.crash(leader);
    let took = world.until(secs(10), |world| world.leader().is_some_and(|n| n != leader));
    println!("another leader after {took:?}");
    assert!(matches!(world.ask(other, max_members(301)), Answer::Done(_)));
    assert_eq!(world.state(other).setting(SettingKind::MaxMembers), Some(&Setting::MaxMembers(301)));
    world.start(leader);
    world.settle(secs(20));
    assert_eq!(world.state(leader).setting(SettingKind::MaxMembers), Some(&Setting::MaxMembers(301)));
}

fn storm(seed: u64, mutation: Mutation) -> World {
    let mut world = World::formed(seed, 3 + (seed % 5) as usize);
    world.mutation = mutation;
    world.storm(secs(40));
    world.heal();
    world.settle(secs(120));
    let n = (seed % 3) as usize;
    let answer = world.ask(n, max_members(999));
    assert!(matches!(answer, Answer::Done(_)), "seed {seed}: after the storm: {answer:?}");
    let request = RequestId([9; 16]);
    world.reads.insert(request);
    world.give(n, Input::Read { request });
    world.until(secs(20), |world| world.answers.contains_key(&request));
    assert_eq!(world.state(n).setting(SettingKind::MaxMembers), Some(&Setting::MaxMembers(999)));
    world.settle(secs(20));
    world.check_answers();
    world
}

#[test]
fn whatever_the_weather_nothing_that_was_answered_is_lost() {
    let (mut answers, mut done) = (0, 0);
    for seed in seeds(100) {
        let world = storm(seed, Mutation::None);
        answers += world.answers.len();
        done += world.answers.values().filter(|answer| matches!(answer, Answer::Done(_))).count();
    }
    println!("{answers} answers, of which {done} are done");
    // A storm in which nothing gets through shows nothing.
    assert!(done * 4 > answers, "{done} of {answers}");
}

/// Runs storms with a fault in the program until one is found.
fn finds(mutation: Mutation) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = seeds(100).find(|seed| catch_unwind(AssertUnwindSafe(|| storm(*seed, mutation))).is_err());
    std::panic::set_hook(hook);
    println!("{mutation:?} is found by seed {found:?}");
    assert!(found.is_some(), "{mutation:?} is not found");
}

/// One after the other: they change what a panic prints.
#[test]
fn a_storm_finds_what_a_program_does_wrong_with_its_disk() {
    finds(Mutation::SkipFsync);
    finds(Mutation::ForgetVote);
    finds(Mutation::KeepWipedId);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let world = storm(seed, Mutation::None);
        (world.answers.clone(), world.state(0).digest(), world.now)
    };
    assert_eq!(run(3), run(3));
    let _ = ms(0);
}
