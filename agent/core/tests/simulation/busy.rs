// SPDX-License-Identifier: Apache-2.0
//! Machines that have too much to do.

use std::time::Duration;

use crate::secs;
use crate::sim::{Host, World, join_key, settings};
use cluster_agent_core::LogLevel;

/// Exchanges that the first five begin while eight more join, one every two seconds, on a host that is elsewhere for so
/// long again and again, and how many of them are on a stream that was open already.
fn exchanges_while_others_join(seed: u64, elsewhere: Duration) -> [usize; 2] {
    let mut world = World::new(seed);
    let mut all = world.boot_cluster(5, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(10));
    world.host = Some(Host::new(1, 1.0));
    let begun = |world: &World| {
        let logs: Vec<_> = (0..5).flat_map(|n| world.machines[n].logged(LogLevel::Debug)).collect();
        let begun: Vec<_> = logs.iter().filter(|line| line.starts_with("push-pull begins")).collect();
        [begun.len(), begun.iter().filter(|line| line.contains("(\"kept\", \"true\")")).count()]
    };
    let before = begun(&world);
    for _ in 0..8 {
        let new = world.add(Some(settings(&join_key(1), "")));
        world.power_on(new);
        all.push(new);
        for _ in 0..4 {
            if let Some(host) = &mut world.host {
                host.compute(world.now, ("something else", elsewhere));
            }
            world.run(Duration::from_millis(500));
        }
    }
    let after = begun(&world);
    world.wait("all are in", secs(15), |world| world.is_one_cluster(&all));
    world.host = None;
    world.run(secs(20));
    let open = world.open_streams();
    assert!(open < 3, "{open} streams are kept although nobody has anything to learn");
    [0, 1].map(|at| after[at] - before[at])
}

fn sum_of_exchanges(elsewhere: Duration) -> [usize; 2] {
    let each = (61..64).map(|seed| exchanges_while_others_join(seed, elsewhere));
    each.fold([0, 0], |sum, one| [sum[0] + one[0], sum[1] + one[1]])
}

#[test]
fn a_busy_machine_begins_fewer_exchanges_and_keeps_their_streams() {
    let ([idle, kept_idle], [busy, kept]) =
        (sum_of_exchanges(Duration::ZERO), sum_of_exchanges(Duration::from_millis(400)));
    println!(
        "{idle} exchanges on idle machines, {busy} on busy ones, {kept} of them on streams that were open"
    );
    assert!(busy * 6 < idle * 5, "{busy} {idle}");
    assert!(kept * 4 > busy, "{kept} {busy}");
    assert_eq!(kept_idle, 0, "idle machines have no need to");
}

/// Twice the work per step was once no end at all: answers came after they were asked for again.
#[test]
fn a_crowd_with_twice_the_work_takes_a_little_more_than_twice_the_time() {
    let forming = |slower| {
        let mut world = World::new(71);
        let all = world.add_cluster(100, "");
        world.power_on(all[0]);
        world.wait("the first one founds", secs(15), |world| world.is_one_cluster(&all[..1]));
        world.host = Some(Host::new(2, slower));
        for n in &all[1..] {
            world.power_on(*n);
        }
        let know = |world: &World| world.all(&all, |n| world.machines[n].ups(world.now) == 100);
        world.wait("all know all", secs(20), know)
    };
    let (once, twice) = (forming(1.0), forming(2.0));
    println!("{once:?}, with twice the work {twice:?}");
    assert!(twice < once * 3, "{once:?} {twice:?}");
}

/// When a node that joins begins with its tunnels, since it is a member.
fn tunnel_after(elsewhere: Duration) -> Duration {
    let mut world = World::new(72);
    let mut all = world.boot_cluster(3, "");
    world.wait("one cluster", secs(15), |world| world.is_one_cluster(&all));
    world.run(secs(15));
    world.host = Some(Host::new(1, 1.0));
    let new = world.add(Some(settings(&join_key(1), "")));
    world.power_on(new);
    all.push(new);
    let mut known = None;
    for step in 0..400 {
        if let Some(host) = world.host.as_mut().filter(|_| step % 5 == 0) {
            host.compute(world.now, ("something else", elsewhere));
        }
        world.run(Duration::from_millis(50));
        if world.members(new).len() == 4 {
            let since = *known.get_or_insert(world.now);
            if world.machines[new].mesh_peers() == 3 {
                return world.now - since;
            }
        }
    }
    panic!("no tunnel after 20 s");
}

#[test]
fn tunnels_wait_on_a_busy_machine() {
    let (idle, busy) = (tunnel_after(Duration::ZERO), tunnel_after(Duration::from_millis(200)));
    println!("{idle:?} on idle machines, {busy:?} on busy ones");
    assert!(idle < secs(1), "{idle:?}");
    assert!(busy >= secs(1) && busy < secs(12), "{busy:?}");
}
