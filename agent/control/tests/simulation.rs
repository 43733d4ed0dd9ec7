// SPDX-License-Identifier: Apache-2.0
//! The control planes of a few nodes, in good and in bad weather. `CONTROL_SEEDS=1000` is what `just campaign sim` runs;
//! `CONTROL_SEED=N` runs one again.
#![allow(missing_docs, unreachable_pub)]

mod sim;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use cluster_agent_control::{Answer, Command, REQUEST_TIMEOUT, Setting, SettingKind};
use sim::{Mutation, World, secs, seeds};

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
    // What was asked in the storm may still happen: the one who asked gives up, then a leader that it told.
    world.run(2 * REQUEST_TIMEOUT + secs(1));
    world.check_asked();
    let n = (seed % 3) as usize;
    let set = world.ask(n, max_members(999));
    assert!(matches!(set, Answer::Done(_)), "seed {seed}: after the storm: {set:?}");
    let read = world.read(n);
    assert!(matches!(read, Answer::Done(_)), "seed {seed}: a read after the storm: {read:?}");
    let is = world.state(n).setting(SettingKind::MaxMembers);
    assert_eq!(is, Some(&Setting::MaxMembers(999)), "seed {seed}: {set:?}, {read:?}\n{}", world.describe());
    world.settle(secs(120));
    world.check_answers();
    world
}

#[test]
fn whatever_the_weather_nothing_that_was_answered_is_lost() {
    let (mut answers, mut done, mut failed) = (0, 0, Vec::new());
    for seed in seeds(40) {
        let Ok(world) = catch_unwind(|| storm(seed, Mutation::None)) else {
            failed.push(seed);
            continue;
        };
        answers += world.answers.len();
        done += world.answers.values().filter(|answer| matches!(answer, Answer::Done(_))).count();
    }
    assert!(failed.is_empty(), "these seeds fail: {failed:?}");
    println!("{answers} answers, of which {done} are done");
    // A storm in which nothing gets through shows nothing.
    assert!(done * 4 > answers, "{done} of {answers}");
}

thread_local! {
    /// A panic on this thread is what the test looks for.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

fn expect_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !EXPECTED.get() {
                usual(info);
            }
        }));
    });
    EXPECTED.set(true);
}

/// Runs storms with a fault in the program until one is found, by something that must never be and is not without the fault.
fn finds(mutation: Mutation) {
    expect_panics();
    let what = |seed| {
        let panic = catch_unwind(AssertUnwindSafe(|| storm(seed, mutation))).err()?;
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        Some((seed, text.unwrap_or_default()))
    };
    let found = seeds(100).find_map(what);
    println!("{mutation:?} is found by seed {found:?}");
    assert!(found.is_some(), "{mutation:?} is not found");
}

#[test]
fn a_storm_finds_a_program_that_does_not_wait_for_its_disk() {
    finds(Mutation::SkipFsync);
}

/// The storms have too few elections in which one restarts between two candidates: 100 seeds do not find it.
#[test]
#[ignore = "not found yet: it needs weather of its own"]
fn a_storm_finds_a_program_that_forgets_its_votes() {
    finds(Mutation::ForgetVote);
}

#[test]
fn a_storm_finds_a_wiped_disk_that_keeps_its_raft_id() {
    finds(Mutation::KeepWipedId);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let world = storm(seed, Mutation::None);
        (world.answers.clone(), world.state(0).digest(), world.now)
    };
    assert_eq!(run(3), run(3));
}
