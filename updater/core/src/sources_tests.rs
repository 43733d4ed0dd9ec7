// SPDX-License-Identifier: Apache-2.0
//! Who is asked when, beside members that refuse, stall, crawl and lie.

use super::*;

fn sources(count: u16, spread: u64) -> Sources {
    let holders = (0..count).map(|number| Holder {
        name: format!("n{number}"),
        address: SocketAddr::from(([0xfdc1, 0x505, 0, 0, 0, 0, 0, number], PORT)),
        version: Version::parse("1.1").unwrap(),
        prefix: Prefix([7; 8]),
    });
    Sources::new(holders, spread, Patience::LONG)
}

/// Who is asked, where somebody is.
fn name(sources: &mut Sources, now: Duration) -> String {
    match sources.turn(now) {
        Ok(Turn::Ask(holder)) => holder.name.clone(),
        Ok(Turn::Wait(_)) => "nobody yet".to_owned(),
        Err(_) => "nobody".to_owned(),
    }
}

const SECOND: Duration = Duration::from_secs(1);
const ZERO: Duration = Duration::ZERO;

#[test]
fn begins_where_it_is_told_and_stays_while_all_is_well() {
    let mut three = sources(3, 4);
    assert_eq!(name(&mut three, ZERO), "n1");
    for _ in 0..1000 {
        assert_eq!(three.delivered(RANGE as u64, SECOND, ZERO), None);
    }
    assert_eq!(name(&mut three, ZERO), "n1");
    assert_eq!(three.all()[1].bytes, 1000 * RANGE as u64);
}

/// Asks until nobody is left, refused each time; returns who was asked when.
fn refused(sources: &mut Sources, chance: u64) -> (Vec<(String, Duration)>, GaveUp) {
    let (mut now, mut asked) = (ZERO, Vec::new());
    loop {
        match sources.turn(now) {
            Ok(Turn::Ask(holder)) => {
                asked.push((holder.name.clone(), now));
                sources.failed(Fault::Gone, "it answered `404 Not Found`", now, chance);
            }
            Ok(Turn::Wait(time)) => {
                assert!(time > ZERO && time <= LONGEST_PAUSE, "{time:?}");
                now += time;
            }
            Err(gave_up) => return (asked, gave_up),
        }
        assert!(asked.len() < 1000, "asks for ever");
    }
}

#[test]
fn who_refuses_is_asked_again_after_the_others_ever_more_rarely_and_for_two_minutes() {
    let mut three = sources(3, 0);
    let (asked, gave_up) = refused(&mut three, 1023);
    let first: Vec<&str> = asked[..6].iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(first, ["n0", "n1", "n2", "n0", "n1", "n2"]);
    assert_eq!(asked[..3].iter().map(|(_, when)| *when).collect::<Vec<_>>(), [ZERO; 3]);
    let last = asked.last().unwrap().1;
    assert!(last > 90 * SECOND && last < Patience::LONG.silence, "{last:?}");
    assert!((20..50).contains(&asked.len()), "asked {} times", asked.len());
    let said = gave_up.to_string();
    assert!(said.contains("n1 gone: it answered `404 Not Found`;"), "{said}");
    assert!(said.contains("stage again"), "{said}");
}

#[test]
fn nodes_that_were_refused_together_do_not_come_back_together() {
    let pauses: Vec<Duration> =
        [0, 512, 1023].into_iter().map(|chance| refused(&mut sources(1, 0), chance).0[1].1).collect();
    assert!(pauses.windows(2).all(|pair| pair[0] < pair[1]), "{pauses:?}");
    assert!(pauses[0] >= SECOND / 2 && pauses[2] <= SECOND, "{pauses:?}");
}

#[test]
fn each_source_gets_its_chance_however_long_the_one_before_took() {
    let mut three = sources(3, 0);
    let mut now = ZERO;
    for wanted in ["n0", "n1", "n2"] {
        assert_eq!(name(&mut three, now), wanted);
        now += 2 * Patience::LONG.silence;
        three.failed(Fault::Stalled, "", now, 0);
    }
    assert_eq!(name(&mut three, now), "nobody");
}

#[test]
fn a_whole_range_clears_what_was_before_it() {
    let mut one = sources(1, 0);
    let mut now = ZERO;
    for _ in 0..50 {
        for fault in [Fault::Stalled, Fault::Gone] {
            one.failed(fault, "", now, 0);
            now += 2 * SECOND;
            assert_eq!(name(&mut one, now), "n0", "{now:?}");
        }
        assert_eq!(one.delivered(4096, SECOND, now), None);
    }
}

/// Fails whenever patience is about to end, then gives what cannot be judged.
#[test]
fn what_is_not_proven_makes_good_for_no_failure() {
    let mut one = sources(1, 0);
    let mut now = ZERO;
    while one.turn(now).is_ok() {
        one.failed(Fault::Gone, "", now, 0);
        now += Patience::LONG.silence / 2;
        if one.turn(now).is_ok() {
            now += SECOND;
            assert_eq!(one.received(RANGE as u64, SECOND, now), None);
        }
        assert!(now < 3 * Patience::LONG.silence, "goes on for ever");
    }
    assert_eq!(one.all()[0].bytes, 0, "nothing of it was right");
}

#[test]
fn what_is_proven_later_makes_good_for_failures_and_counts() {
    let mut two = sources(2, 0);
    let mut now = ZERO;
    for _ in 0..50 {
        for wanted in ["n0", "n1"] {
            two.failed(Fault::Gone, "", now, 0);
            now += 2 * SECOND;
            assert_eq!(name(&mut two, now), if wanted == "n0" { "n1" } else { "n0" });
            assert_eq!(two.received(RANGE as u64, SECOND, now), None);
        }
        two.judged(true);
        now += Patience::LONG.silence;
    }
    assert!(two.all().iter().all(|source| source.bytes == 50 * RANGE as u64 && source.strikes < 2));
    two.received(RANGE as u64, SECOND, now);
    two.judged(false);
    two.judged(true);
    assert!(two.all().iter().all(|source| source.bytes == 50 * RANGE as u64));
}

#[test]
fn whoever_misled_once_is_not_trusted_again() {
    let mut two = sources(2, 0);
    assert!(two.trust());
    two.judged(true);
    assert!(two.trust(), "it was right");
    // Nothing came.
    two.judged(false);
    assert!(!two.trust());
    assert_eq!(two.delivered(4096, SECOND, ZERO), None);
    two.judged(true);
    assert!(!two.trust(), "what can be judged says nothing of it");
    two.failed(Fault::Gone, "", ZERO, 0);
    assert_eq!(name(&mut two, ZERO), "n1");
    assert!(two.trust(), "it did nothing");
}

/// A slow answer is none in which nothing comes.
#[test]
fn time_in_which_something_unproven_comes_is_no_silence() {
    let mut one = sources(1, 0);
    one.failed(Fault::Gone, "", ZERO, 0);
    let mut now = 2 * SECOND;
    for _ in 0..10 {
        assert_eq!(name(&mut one, now), "n0");
        now += 60 * SECOND;
        assert_eq!(one.received(RANGE as u64, 60 * SECOND, now), None);
    }
}

#[test]
fn who_fails_before_each_window_ends_is_measured_all_the_same() {
    let mut one = sources(1, 0);
    let mut now = ZERO;
    while name(&mut one, now) == "n0" {
        now += 15 * SECOND;
        if one.delivered(4096, 15 * SECOND, now).is_none() {
            one.failed(Fault::Gone, "", now, 0);
        }
        now += LONGEST_PAUSE;
        assert!(now < 600 * SECOND, "273 bytes a second are borne for ever");
    }
    assert_eq!(one.all()[0].fault, Some(Fault::Slow));
}

#[test]
fn a_liar_is_dropped_for_good_also_when_it_is_the_only_one() {
    let mut two = sources(2, 0);
    assert_eq!(name(&mut two, ZERO), "n0");
    two.failed(Fault::Lied, "", ZERO, 0);
    let mut now = ZERO;
    for _ in 0..2 {
        assert_eq!(name(&mut two, now), "n1");
        two.failed(Fault::Gone, "", now, 0);
        now += LONGEST_PAUSE;
    }
    assert_eq!(two.delivered(4096, SECOND, now), None);
    two.failed(Fault::Lied, "", now, 0);
    assert_eq!(name(&mut two, now + LONGEST_PAUSE), "nobody");
    assert!(two.all().iter().all(|source| source.fault == Some(Fault::Lied)));
}

#[test]
fn a_slow_source_is_left_for_another_but_not_for_nobody() {
    // 16 KiB/s.
    let crawl =
        |sources: &mut Sources| (0..100).find_map(|_| sources.delivered(16 << 10, SECOND + ROUND_TRIP, ZERO));
    let mut two = sources(2, 0);
    assert_eq!(crawl(&mut two), Some(Fault::Slow));
    assert_eq!(name(&mut two, ZERO), "n1");
    assert_eq!(crawl(&mut sources(1, 0)), None);
    // Where another version can be had, it must be as fast as where another member can.
    let holder = sources(1, 0).all()[0].holder.clone();
    assert_eq!(crawl(&mut Sources::new([holder], 0, Patience::SHORT)), Some(Fault::Slow));
    let mut trickle = sources(1, 0);
    let mut now = ZERO;
    while trickle.turn(now).is_ok() {
        now += SECOND;
        trickle.delivered(100, SECOND, now);
        assert!(now < 200 * SECOND, "100 bytes a second are borne for ever");
    }
}

/// The one is all there is: it must not be given up because another one, which gives nothing, would be better.
#[test]
fn a_slow_source_is_not_left_for_one_that_only_refuses() {
    let mut two = sources(2, 0);
    let (mut now, mut got) = (ZERO, 0);
    while now < 600 * SECOND {
        let turn = two.turn(now).expect("somebody gives");
        match turn {
            Turn::Ask(holder) if holder.name == "n0" => {
                now += SECOND + ROUND_TRIP;
                got += 1;
                two.delivered(16 << 10, SECOND + ROUND_TRIP, now);
            }
            Turn::Ask(_) => two.failed(Fault::Gone, "no", now, 0),
            Turn::Wait(time) => now += time,
        }
    }
    assert!(got > 400, "{got} ranges in ten minutes");
}

/// It failed once or twice, long ago.
#[test]
fn a_slow_source_is_left_for_one_that_may_give_again() {
    let mut two = sources(2, 0);
    let mut now = ZERO;
    // Both refuse for a while, then the slow one gives.
    while two.all()[1].strikes < 3 || name(&mut two, now) != "n0" {
        match two.turn(now).unwrap() {
            Turn::Ask(_) => two.failed(Fault::Gone, "", now, 0),
            Turn::Wait(time) => now += time,
        }
    }
    let begun = now;
    while name(&mut two, now) == "n0" {
        now += SECOND + ROUND_TRIP;
        two.delivered(16 << 10, SECOND + ROUND_TRIP, now);
        assert!(now < begun + 200 * SECOND, "a slow member is kept to");
    }
    assert_eq!(name(&mut two, now), "n1");
}

#[test]
fn a_file_has_a_time_that_its_size_gives() {
    let (mut two, one) = (sources(2, 0), sources(1, 0));
    let megabyte = 1 << 20;
    assert_eq!(two.time_for(megabyte, ZERO), 10 * SECOND + SECOND + 16 * SECOND);
    assert_eq!(one.time_for(megabyte, ZERO), 10 * SECOND + SECOND + 256 * SECOND);
    two.failed(Fault::Lied, "", ZERO, 0);
    assert_eq!(name(&mut two, ZERO), "n1");
    assert_eq!(two.time_for(megabyte, ZERO), one.time_for(megabyte, ZERO), "nobody else is left");
    // A request of one range, answered at the slowest rate that is borne, fits.
    assert!(one.time_for(RANGE as u64, ZERO) >= Duration::from_secs(RANGE as u64 / FLOOR) + STALL);
}

#[test]
fn small_ranges_over_a_long_way_are_not_slow() {
    let mut two = sources(2, 0);
    for _ in 0..10_000 {
        assert_eq!(two.delivered(4096, Duration::from_millis(240), ZERO), None);
    }
    assert_eq!(name(&mut two, ZERO), "n0");
}

#[test]
fn nobody_and_too_many_are_no_trouble() {
    let mut nobody = sources(0, 3);
    assert!(nobody.current().is_err() && nobody.turn(ZERO).is_err());
    nobody.failed(Fault::Gone, "", ZERO, 0);
    assert_eq!(nobody.delivered(1, SECOND, ZERO), None);
    assert_eq!(sources(4000, 1).all().len(), MAX_SOURCES);
    let two = sources(2, 0);
    let twice = two.all().iter().chain(two.all()).map(|source| source.holder.clone());
    assert_eq!(Sources::new(twice, 0, Patience::LONG).all().len(), 2);
}

#[test]
fn what_a_source_says_is_short_and_cannot_paint_a_terminal() {
    let mut one = sources(1, 0);
    one.failed(Fault::Gone, &format!("\u{1b}[2J{}", "x".repeat(9000)), ZERO, 0);
    let said = one.why();
    assert!(said.starts_with("n0 gone: [2Jxxx") && said.len() < 200, "{said}");
}

#[test]
fn prefixes_come_back() {
    let prefix = Prefix::of(&Digest([0xab; 32]));
    assert_eq!(prefix.to_string(), "abababababababab");
    assert_eq!(Prefix::parse("abababababababab"), Some(prefix));
    for bad in ["", "ABABABABABABABAB", "abababababababa", "ababababababababab", "zz"] {
        assert_eq!(Prefix::parse(bad), None, "{bad}");
    }
}
