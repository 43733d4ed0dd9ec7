// SPDX-License-Identifier: Apache-2.0
//! How word of a newcomer goes round, and how a crowd gets in.

use std::time::Duration;

use crate::secs;
use crate::sim::{Host, World, join_key, settings};
use cluster_agent_core::{MemberState, Phase};

/// How often a host with other work is elsewhere.
const STALLED_EVERY: Duration = Duration::from_millis(400);

/// Whoever admits a node says that it is up as soon as it is in: its own first session would say so later.
#[test]
fn a_newcomer_is_up_by_the_word_of_who_admitted_it() {
    for seed in 80..84 {
        let mut world = World::new(seed);
        let all = world.boot_cluster(3, "");
        world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
        world.run(secs(10));
        let new = world.add(Some(settings(&join_key(1), "")));
        world.one_way(new, 1, false);
        world.one_way(new, 2, false);
        world.power_on(new);
        let limit = world.now + secs(15);
        while world.status(new).phase != Phase::Member {
            assert!(world.now < limit, "it is let in");
            world.run(Duration::from_millis(1));
        }
        // Its last word on that stream is on its way; a session would take two ways more.
        world.link(new, false);
        world.wait("all see it up", secs(2), |world| {
            all.iter().all(|n| world.state(*n, new) == Some(MemberState::Up))
        });
    }
}

/// Who is let in on a machine that has too much to do tells those that wait, by name, where there is a cluster: none of
/// them waits for its own next beacon, half a second later.
#[test]
fn who_was_let_in_on_a_busy_machine_invites_others() {
    for seed in 90..96 {
        let mut world = World::new(seed);
        let all = world.add_cluster(12, "");
        let (first, second) = (all[0], all[1]);
        world.power_on(first);
        world.wait("the first one founds", secs(15), |world| world.is_one_cluster(&all[..1]));
        let between = |world: &mut World, n, on| {
            world.one_way(first, n, on);
            world.one_way(n, first, on);
        };
        for n in &all[1..] {
            between(&mut world, *n, false);
            world.power_on(*n);
        }
        world.host = Some(Host::new(1, 1.0));
        let (began, mut stalls) = (world.now, 0);
        while world.status(second).phase != Phase::Member {
            let elapsed = world.now - began;
            assert!(elapsed < secs(15), "it is let in");
            if elapsed >= Duration::from_millis(1300) {
                between(&mut world, second, true);
            }
            if let Some(host) = world.host.as_mut().filter(|_| elapsed >= STALLED_EVERY * (stalls + 1)) {
                stalls += 1;
                host.compute(world.now, ("something else", Duration::from_millis(300)));
            }
            world.run(Duration::from_millis(1));
        }
        let in_cluster = |world: &World| all.iter().all(|n| world.status(*n).phase == Phase::Member);
        let took = world.wait("all are in", secs(15), in_cluster);
        println!("seed {seed}: the others were in {took:?} after the second");
        assert!(took < Duration::from_millis(400), "seed {seed}: {took:?}");
    }
}
