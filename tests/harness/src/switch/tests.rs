// SPDX-License-Identifier: Apache-2.0
//! What the switch delivers, and when.

use super::*;

const T0: Duration = Duration::ZERO;
const BROADCAST: u8 = 0xff;
const NONE: [u32; 0] = [];

fn mac(n: u8) -> [u8; 6] {
    if n == BROADCAST { [0xff; 6] } else { [0x52, 0x54, 0, 0, 0, n] }
}

fn frame(to: u8, from: u8) -> Frame {
    [&mac(to)[..], &mac(from)[..], &[0x86, 0xdd], &[0; 46]].concat().into()
}

fn port(vm: u32) -> PortId {
    PortId::new(vm, 1)
}

fn switch(vms: u32) -> Switch {
    let mut switch = Switch::new(1);
    (1..=vms).for_each(|vm| switch.add_port(port(vm), 1));
    switch
}

fn delivered(switch: &mut Switch, now: Duration) -> Vec<u32> {
    std::iter::from_fn(|| switch.poll(now)).map(|(to, _)| to.vm).collect()
}

#[test]
fn floods_broadcast_to_all_but_the_sender() {
    let mut switch = switch(3);
    switch.ingress(port(2), &frame(BROADCAST, 2), T0);
    assert_eq!(delivered(&mut switch, T0), [1, 3]);
}

#[test]
fn learns_where_an_address_is() {
    let mut switch = switch(3);
    switch.ingress(port(1), &frame(2, 1), T0);
    assert_eq!(delivered(&mut switch, T0), [2, 3], "unknown unicast is flooded");
    switch.ingress(port(2), &frame(1, 2), T0);
    assert_eq!(delivered(&mut switch, T0), [1]);
    switch.ingress(port(3), &frame(2, 3), T0);
    assert_eq!(delivered(&mut switch, T0), [2]);
}

#[test]
fn ignores_frames_without_addresses() {
    let mut switch = switch(2);
    switch.ingress(port(1), &Frame::from([0u8; 11]), T0);
    assert_eq!(delivered(&mut switch, T0), NONE);
    assert_eq!(switch.view()[&port(1)].counters.dropped, 1);
}

#[test]
fn a_link_that_is_off_passes_nothing_either_way() {
    let mut switch = switch(3);
    assert!(switch.set_faults(2, None, Direction::Both, |faults| faults.off = true));
    switch.ingress(port(2), &frame(BROADCAST, 2), T0);
    assert_eq!(delivered(&mut switch, T0), NONE);
    switch.ingress(port(1), &frame(BROADCAST, 1), T0);
    assert_eq!(delivered(&mut switch, T0), [3]);
    assert_eq!(switch.view()[&port(2)].counters.dropped, 2);
}

#[test]
fn a_direction_fails_alone() {
    let mut switch = switch(2);
    switch.set_faults(2, None, Direction::Sent, |faults| faults.off = true);
    switch.ingress(port(2), &frame(BROADCAST, 2), T0);
    assert_eq!(delivered(&mut switch, T0), NONE);
    switch.ingress(port(1), &frame(BROADCAST, 1), T0);
    assert_eq!(delivered(&mut switch, T0), [2]);
}

#[test]
fn a_partition_separates_groups_and_heal_joins_them() {
    let mut switch = switch(4);
    switch.partition(vec![[1, 2].into(), [3].into()]);
    switch.ingress(port(1), &frame(BROADCAST, 1), T0);
    assert_eq!(delivered(&mut switch, T0), [2]);
    switch.ingress(port(4), &frame(BROADCAST, 4), T0);
    assert_eq!(delivered(&mut switch, T0), NONE, "a port in no group is alone");
    switch.heal();
    switch.ingress(port(3), &frame(BROADCAST, 3), T0);
    assert_eq!(delivered(&mut switch, T0), [1, 2, 4]);
}

#[test]
fn delays_add_up_and_keep_the_order() {
    let mut switch = switch(2);
    switch.set_faults(1, None, Direction::Sent, |faults| faults.delay_us = 30_000);
    switch.set_faults(2, None, Direction::Received, |faults| faults.delay_us = 20_000);
    switch.ingress(port(1), &frame(2, 1), T0);
    switch.ingress(port(1), &frame(2, 1), Duration::from_millis(1));
    assert_eq!(switch.next_due(), Some(Duration::from_millis(50)));
    assert_eq!(delivered(&mut switch, Duration::from_millis(49)), NONE);
    assert_eq!(delivered(&mut switch, Duration::from_millis(50)), [2]);
    assert_eq!(delivered(&mut switch, Duration::from_millis(51)), [2]);
}

#[test]
fn loses_the_asked_share_and_the_same_frames_for_the_same_seed() {
    let run = |seed| {
        let mut switch = Switch::new(seed);
        (1..=2).for_each(|vm| switch.add_port(port(vm), 1));
        switch.set_faults(2, None, Direction::Received, |faults| faults.loss_ppm = 50_000);
        (0..10_000u64)
            .filter(|n| {
                switch.ingress(port(1), &frame(2, 1), Duration::from_micros(*n));
                switch.poll(Duration::from_micros(*n)).is_none()
            })
            .collect::<Vec<_>>()
    };
    let lost = run(7);
    assert!((400..600).contains(&lost.len()), "{} of 10000 lost", lost.len());
    assert_eq!(lost, run(7));
    assert_ne!(lost, run(8));
}

#[test]
fn flush_forgets_frames_under_way() {
    let mut switch = switch(2);
    switch.set_faults(1, None, Direction::Sent, |faults| faults.delay_us = 1000);
    switch.ingress(port(1), &frame(2, 1), T0);
    switch.flush();
    assert_eq!(switch.next_due(), None);
}

#[test]
fn counts_what_passes() {
    let mut switch = switch(2);
    let sent = frame(2, 1);
    switch.ingress(port(1), &sent, T0);
    let (to, got) = switch.poll(T0).expect("delivered");
    assert_eq!((to, got.len()), (port(2), sent.len()));
    let view = switch.view();
    assert_eq!((view[&port(1)].counters.sent, view[&port(1)].counters.sent_bytes), (1, 60));
    assert_eq!((view[&port(2)].counters.received, view[&port(2)].counters.received_bytes), (1, 60));
    switch.overflowed(port(2), &got);
    assert_eq!((switch.view()[&port(2)].counters.received, switch.view()[&port(2)].counters.dropped), (0, 1));
}

#[test]
fn lans_are_separate_even_for_one_address() {
    let mut switch = switch(3);
    for vm in [1, 2] {
        switch.add_port(PortId::new(vm, 2), 2);
    }
    let to = |switch: &mut Switch| -> Vec<PortId> {
        std::iter::from_fn(|| switch.poll(T0)).map(|(to, _)| to).collect()
    };
    switch.ingress(PortId::new(1, 2), &frame(BROADCAST, 1), T0);
    assert_eq!(to(&mut switch), [PortId::new(2, 2)]);
    switch.ingress(PortId::new(1, 1), &frame(BROADCAST, 1), T0);
    assert_eq!(to(&mut switch), [PortId::new(2, 1), PortId::new(3, 1)]);
    switch.ingress(PortId::new(2, 2), &frame(1, 2), T0);
    assert_eq!(to(&mut switch), [PortId::new(1, 2)], "learned in its own LAN");
}

#[test]
fn one_of_two_cards_fails_alone() {
    let mut switch = switch(2);
    switch.add_port(PortId::new(1, 2), 1);
    assert!(switch.set_faults(1, Some(2), Direction::Both, |faults| faults.off = true));
    assert!(!switch.set_faults(1, Some(3), Direction::Both, |faults| faults.off = true));
    switch.ingress(PortId::new(1, 2), &frame(BROADCAST, 1), T0);
    assert_eq!(delivered(&mut switch, T0), NONE);
    switch.ingress(port(1), &frame(BROADCAST, 1), T0);
    assert_eq!(delivered(&mut switch, T0), [2]);
}

#[test]
fn a_port_that_opens_late_passes_nothing_before_in_either_direction() {
    let minute = Duration::from_secs(60);
    let mut switch = switch(2);
    assert!(switch.set_opening(2, None, minute));
    switch.ingress(port(2), &frame(BROADCAST, 2), T0);
    assert_eq!(delivered(&mut switch, T0), [1], "it is plugged in already");
    switch.plugged(port(2), minute);
    for (now, passes) in [(minute, false), (minute * 2 - Duration::from_millis(1), false), (minute * 2, true)]
    {
        switch.ingress(port(2), &frame(BROADCAST, 2), now);
        assert_eq!(delivered(&mut switch, now) == [1], passes, "{now:?}, sent");
        switch.ingress(port(1), &frame(BROADCAST, 1), now);
        assert_eq!(delivered(&mut switch, now) == [2], passes, "{now:?}, received");
    }
    switch.plugged(port(2), minute * 3);
    assert!(switch.set_opening(2, None, Duration::ZERO), "opened by hand");
    switch.ingress(port(1), &frame(BROADCAST, 1), minute * 3);
    assert_eq!(delivered(&mut switch, minute * 3), [2]);
}
