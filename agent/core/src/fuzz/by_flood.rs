// SPDX-License-Identifier: Apache-2.0
//! Floods of those who know something: a session key, the join key, or who are members. What a stranger can do is in
//! `tests/floods.rs`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use super::attack::{SEARCHING, SETTLED, subject};
use super::attacker::Attacker;
use super::by_hand::{begin, closed, member, rejects, state};
use super::forge::{self, PEER, SUBJECT};
use super::subject::{INTERFACE, Subject, address};
use crate::beacon::{Beacon, Seal};
use crate::command::{Command, NetCommand, StreamId};
use crate::consts::AGENT_PORT;
use crate::id::{ClusterId, NodeId};
use crate::input::{Input, Interface};
use crate::noise::Carrier;
use crate::record::{NodeRecord, Sequence};
use crate::roster::Admission;
use crate::session::Greeting;
use crate::signed::{ObjectDigest, Verified};
use crate::stream::Kind;
use crate::sync::{Hello, Message};
use crate::tag::TagKey;
use crate::view::MemberState;

fn spoofed(n: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(0x0b00_0000 + n), AGENT_PORT))
}

/// A datagram with a right tag and nothing else that is right.
fn tagged(kind: u8, index: u32, n: u32) -> Vec<u8> {
    let key = TagKey::new(Carrier::Datagrams, &forge::cluster_id(), &forge::keys(SUBJECT).session_public());
    let mut bytes = vec![n as u8; 130];
    bytes[..2].copy_from_slice(&[1, kind]);
    bytes[2..6].copy_from_slice(&index.to_be_bytes());
    bytes[6..10].copy_from_slice(&n.to_be_bytes());
    key.append(&mut bytes);
    if kind == 2 {
        bytes.extend([0; 16]);
    }
    bytes
}

fn hear(node: &mut Subject, from: SocketAddr, bytes: Vec<u8>) -> Vec<Command> {
    node.tell(Input::Datagram { from, interface: INTERFACE, bytes })
}

fn cookies(commands: &[Command]) -> usize {
    let told = |command: &&Command| matches!(command, Command::Net(NetCommand::SendDatagram { bytes, .. }) if bytes[..2] == [1, 6]);
    commands.iter().filter(told).count()
}

const WORKED_OUT: &str = "handshake malformed or not for us";

#[test]
fn opens_with_a_right_tag_cost_few_key_agreements_and_keep_no_member_out() {
    let (mut peer, mut node) = member(PEER);
    let mut answered = 0;
    for second in 0..5u32 {
        for n in 0..4000 {
            answered += cookies(&hear(&mut node, spoofed(second * 4000 + n), tagged(2, n, n)));
        }
        node.advance(node.now + Duration::from_secs(1));
    }
    let worked_out = rejects(&node, WORKED_OUT);
    println!("{worked_out} of 20000 were worked out, {answered} sources were told a cookie");
    assert!((400..=400 + 200 * 5).contains(&worked_out), "{worked_out}");
    assert!(answered <= 400 + 200 * 5, "{answered}");
    // In the midst of the next second a member that restarted is there again.
    (0..2000).for_each(|n| drop(hear(&mut node, spoofed(n), tagged(2, n, n))));
    peer.restart(Greeting { instance: [9; 8], ..peer.greeting });
    assert!(!peer.has_session());
    peer.payload(&mut node, &[]);
    let rejects = node.node.status(node.present()).rejects;
    assert!(peer.has_session(), "a member has no session: {rejects:?}");
}

#[test]
fn who_proves_his_address_gets_no_more_than_his_share() {
    let (mut peer, mut node) = member(PEER);
    (0..405).for_each(|n| drop(hear(&mut node, spoofed(n), tagged(2, n, n))));
    let handshake = |n| {
        let mut bytes = tagged(2, n, n);
        bytes.truncate(bytes.len() - 16);
        bytes
    };
    let told = hear(&mut node, spoofed(1), tagged(2, 500, 500));
    let Some(Command::Net(NetCommand::SendDatagram { bytes: answer, .. })) = told.first() else {
        panic!("{told:?}")
    };
    let cookie = peer.cookie(answer, &handshake(500));
    let before = rejects(&node, WORKED_OUT);
    for n in 1000..2000 {
        let bytes = handshake(n);
        let proof = crate::session::probe::prove(&cookie, &bytes);
        hear(&mut node, spoofed(1), [&bytes[..], &proof].concat());
        // It proves nothing for another address.
        hear(&mut node, spoofed(2), [&bytes[..], &proof].concat());
    }
    assert_eq!(rejects(&node, WORKED_OUT) - before, 40);
}

#[test]
fn forged_answers_to_an_open_are_worked_out_a_few_times_only() {
    let (_, mut node) = member(PEER);
    let opened = |commands: &[Command]| {
        commands.iter().find_map(|command| match command {
            Command::Net(NetCommand::SendDatagram { bytes, .. }) if bytes[..2] == [1, 2] => {
                bytes[2..6].try_into().ok()
            }
            _ => None,
        })
    };
    let index = loop {
        let next = node.next(node.now + Duration::from_secs(1)).max(node.now + Duration::from_millis(1));
        if let Some(index) = opened(&node.advance(next)) {
            break u32::from_be_bytes(index);
        }
    };
    for n in 0..1000 {
        hear(&mut node, spoofed(n), tagged(3, index, n));
    }
    assert_eq!(rejects(&node, "handshake answer malformed"), 8);
    // Who does not know the session key does not get that far.
    let mut garbage = tagged(3, index, 0);
    garbage[20] ^= 1;
    hear(&mut node, spoofed(0), garbage);
    assert_eq!(rejects(&node, "handshake answer that is not for us"), 1);
}

/// Whether the node has closed a stream of the peer's.
fn is_closed(peer: &Attacker, id: StreamId) -> bool {
    !peer.has_stream(id)
}

#[test]
fn a_stream_ends_at_its_first_forged_object() {
    let (mut peer, mut node) = member(PEER);
    let id = begin(&mut peer, &mut node);
    let mut forged = forge::record(PEER).as_bytes().to_vec();
    *forged.last_mut().expect("it is long") ^= 1;
    peer.say(&mut node, id, &Message::Objects(vec![forged; 200]).encode(), 20);
    assert!(is_closed(&peer, id));
    assert_eq!(rejects(&node, "object malformed or forged"), 1, "each costs a check of a signature");
}

/// One record after the other, each newer and signed.
fn records(count: u32) -> Vec<Vec<u8>> {
    let record = |counter| NodeRecord {
        sequence: Sequence { generation: 1, counter },
        ..(*forge::record(PEER)).clone()
    };
    (2..2 + count).map(|n| Verified::sign(record(n), forge::keys(PEER)).as_bytes().to_vec()).collect()
}

#[test]
fn a_member_that_signs_without_end_has_a_budget_on_all_its_streams_and_sessions() {
    let (mut peer, mut node) = member(PEER);
    let mut all = records(9000);
    let passed_on = all.split_off(8500);
    for part in all.chunks(100) {
        let id = match peer.last_stream() {
            Some(id) => id,
            None => begin(&mut peer, &mut node),
        };
        peer.say(&mut node, id, &Message::Objects(part.to_vec()).encode(), 1);
    }
    let ended = rejects(&node, "objects over limit");
    assert!((1..=4).contains(&ended), "{ended}");
    for record in &passed_on {
        peer.payload(&mut node, &[&[2], &record[..]].concat());
    }
    assert_eq!(rejects(&node, "objects over limit"), ended + 500, "sessions have the same budget");
    node.alone(Duration::from_secs(2));
    peer.payload(&mut node, &[&[2], &passed_on[499][..]].concat());
    assert_eq!(rejects(&node, "objects over limit"), ended + 500, "it grows again");
}

#[test]
fn what_is_asked_or_said_out_of_place_ends_a_stream() {
    let have = || Message::Have(Vec::new(), true);
    let want = || Message::Want(Vec::new(), true);
    let alive = || Message::Alive(Vec::new());
    let objects = || Message::Objects(Vec::new());
    let clock = || Message::Clock(1_800_000_000_000);
    for odd in [have(), want(), alive(), objects(), Message::Join, Message::Admitted] {
        let (mut peer, mut node) = member(PEER);
        peer.open(&mut node, Kind::Member);
        let id = peer.last_stream().expect("it was opened");
        peer.say(&mut node, id, &odd.encode(), 1);
        assert!(is_closed(&peer, id), "{odd:?} first");
    }
    for odd in [have(), clock(), Message::Join, Message::Admitted] {
        let (mut peer, mut node) = member(PEER);
        let id = begin(&mut peer, &mut node);
        peer.say(&mut node, id, &odd.encode(), 1);
        assert!(is_closed(&peer, id), "{odd:?} in a push-pull");
        assert_eq!(rejects(&node, "stream message out of place"), 1);
    }
    // What is empty is said a thousand times at most.
    for endless in [alive(), objects(), Message::Want(Vec::new(), false)] {
        let (mut peer, mut node) = member(PEER);
        let id = begin(&mut peer, &mut node);
        (0..10).for_each(|_| peer.say(&mut node, id, &endless.encode(), 200));
        assert!(is_closed(&peer, id), "{endless:?}");
    }
}

#[test]
fn who_asks_the_same_on_many_streams_is_turned_away() {
    let (mut peer, mut node) = member(PEER);
    for n in 0..200 {
        let from = SocketAddr::from((Ipv4Addr::from(0x0a00_0100 + n), AGENT_PORT));
        peer.open_from(&mut node, Kind::Member, from);
        let Some(id) = peer.last_stream() else { continue };
        for message in [Message::Clock(1_800_000_000_000), Message::Summary(Box::default())] {
            peer.say(&mut node, id, &message.encode(), 1);
        }
        peer.close(&mut node, id);
    }
    let turned_away = rejects(&node, "push-pulls over limit");
    assert!((160..=180).contains(&turned_away), "{turned_away} of 200");
}

/// A member that has let in so many that what the node has to say is long.
fn with_much_to_say() -> (Attacker, Subject, usize) {
    let (mut peer, mut node) = member(PEER);
    let admission = |n: u32| Admission {
        cluster: forge::cluster_id(),
        subject: std::array::from_fn(|at| n.to_be_bytes()[at % 4]),
        round: 1,
        admitter: forge::keys(PEER).public(),
        at: 1_800_000_000,
    };
    let mut size = 0;
    for thousand in 0..4 {
        let id = begin(&mut peer, &mut node);
        for part in 0..4 {
            let first = thousand * 1000 + part * 250;
            let objects: Vec<_> = (first..first + 250)
                .map(|n| Verified::sign(admission(n), forge::keys(PEER)).as_bytes().to_vec())
                .collect();
            size += objects.iter().map(Vec::len).sum::<usize>();
            peer.say(&mut node, id, &Message::Objects(objects).encode(), 1);
        }
        peer.close(&mut node, id);
        node.alone(Duration::from_secs(2));
    }
    (peer, node, size)
}

fn said(commands: &[Command]) -> usize {
    let bytes = commands.iter().map(|command| match command {
        Command::Net(NetCommand::StreamSend { bytes, .. }) => bytes.len(),
        _ => 0,
    });
    bytes.sum()
}

#[test]
fn who_asks_and_does_not_read_costs_a_page_and_is_cut_off() {
    let (mut peer, mut node, size) = with_much_to_say();
    node.is_read = false;
    let streams: Vec<_> = (0..5).map(|_| begin(&mut peer, &mut node)).collect();
    let everything: Vec<_> = peer
        .heard_messages
        .iter()
        .rev()
        .find_map(|message| match message {
            Message::Have(digests, _) if digests.len() > 3000 => Some(digests.clone()),
            _ => None,
        })
        .expect("the node lists what it has");
    assert!(size > 600_000);
    for id in &streams {
        let asked = peer.encrypt(*id, &Message::Want(everything.clone(), true));
        let bytes = said(&node.tell(Input::StreamData { stream: *id, bytes: asked }));
        assert!((200_000..330_000).contains(&bytes), "{bytes} bytes at once of {size}");
    }
    // One reads on, and gets the next page as it takes the former.
    let read = Input::StreamSent { stream: streams[0], bytes: 100_000 };
    let bytes = said(&node.tell(read));
    assert!((60_000..130_000).contains(&bytes), "{bytes} bytes more");
    let mut ended = Vec::new();
    let start = node.now;
    while node.now < start + Duration::from_secs(7) {
        ended.extend(closed(&node.advance(node.now + Duration::from_millis(250))));
    }
    assert!(streams.iter().all(|id| ended.contains(id)), "{ended:?}");
    assert_eq!(rejects(&node, "stream that is not read"), 5);
}

#[test]
fn who_reads_gets_all_he_asked_for() {
    let (mut peer, mut node, _) = with_much_to_say();
    let id = begin(&mut peer, &mut node);
    let have = peer.heard_messages.iter().rev().find_map(|message| match message {
        Message::Have(digests, true) => Some(digests.clone()),
        _ => None,
    });
    let have = have.expect("the node lists what it has");
    let before = peer.heard_messages.len();
    peer.say(&mut node, id, &Message::Want(have.clone(), true).encode(), 1);
    let mut objects = std::collections::BTreeSet::new();
    for message in &peer.heard_messages[before..] {
        if let Message::Objects(part) = message {
            objects.extend(part.iter().cloned());
        }
    }
    assert_eq!(objects.len(), have.len());
    assert_eq!(peer.heard_messages.last(), Some(&Message::Done));
}

#[test]
fn a_repeated_first_frame_counts_once_and_holds_a_place_of_those_who_proved_nothing() {
    let (mut peer, mut node) = member(PEER);
    let mut ended = Vec::new();
    for kind in [Kind::Member, Kind::Stranger] {
        let first = peer.first_frame(kind);
        for n in 0..15u32 {
            let n = n + if kind == Kind::Member { 0 } else { 15 };
            let stream = StreamId::inbound(1000 + u64::from(n));
            let from = SocketAddr::new(IpAddr::V4(Ipv4Addr::from(0x0a00_0100 + n)), 5000);
            ended.extend(closed(&node.tell(Input::StreamAccepted { stream, from })));
            ended.extend(closed(&node.tell(Input::StreamData { stream, bytes: first.clone() })));
        }
    }
    assert_eq!(ended.len(), 28, "the first of each kind may be the one who wrote it");
    assert_eq!(rejects(&node, "stream whose first frame came before"), 28);
    let start = node.now;
    while ended.len() < 30 {
        assert!(node.now < start + Duration::from_secs(4), "{} were ended", ended.len());
        ended.extend(closed(&node.advance(node.now + Duration::from_millis(250))));
    }
    peer.open(&mut node, Kind::Member);
    let id = peer.last_stream().expect("it was opened");
    peer.say(&mut node, id, &Message::Clock(1_800_000_000_000).encode(), 1);
    assert!(!is_closed(&peer, id));
    assert_ne!(state(&node, PEER), Some(MemberState::Left));
    assert_eq!(address(PEER).port(), AGENT_PORT);
}

/// What a node that has the join key says in a beacon; `n` makes it another datagram.
fn beacon(node: NodeId, cluster: Option<ClusterId>, to: Option<[u8; 8]>, n: u32) -> Vec<u8> {
    sealed(Beacon { node, instance: [3; 8], cluster, solicits: false, to }, n)
}

fn sealed(beacon: Beacon, n: u32) -> Vec<u8> {
    let mut nonce = [0; 24];
    nonce[..4].copy_from_slice(&n.to_be_bytes());
    beacon.to_datagram(&Seal::new(&forge::join_key().discovery_key()), nonce)
}

fn invented(n: u32) -> NodeId {
    NodeId(std::array::from_fn(|at| if at < 4 { n.to_be_bytes()[at] } else { 0xee }))
}

/// Beacons among commands: to whom each went, if to one, and what it says.
fn beacons(commands: &[Command]) -> Vec<(Option<SocketAddr>, Beacon)> {
    let seal = Seal::new(&forge::join_key().discovery_key());
    let said = commands.iter().filter_map(|command| match command {
        Command::Net(NetCommand::SendDatagram { to, bytes, .. }) => Some((Some(*to), bytes)),
        Command::Net(NetCommand::Broadcast { bytes, .. } | NetCommand::Multicast { bytes, .. }) => {
            Some((None, bytes))
        }
        _ => None,
    });
    said.filter_map(|(to, bytes)| Some((to, Beacon::open(&seal, bytes).ok()?))).collect()
}

/// Streams that the node begins.
fn connects(commands: &[Command]) -> Vec<(StreamId, SocketAddr)> {
    let connects = commands.iter().filter_map(|command| match command {
        Command::Net(NetCommand::Connect { stream, to }) => Some((*stream, *to)),
        _ => None,
    });
    connects.collect()
}

/// A node without a cluster, and its instance.
fn searching() -> (Subject, [u8; 8]) {
    let (mut node, _) = subject(SEARCHING);
    let instance = instance(&mut node);
    (node, instance)
}

/// The instance that a node names in its next beacon to all.
fn instance(node: &mut Subject) -> [u8; 8] {
    loop {
        let commands = node.advance(node.now + Duration::from_millis(100));
        if let Some((_, beacon)) = beacons(&commands).iter().find(|(to, _)| to.is_none()) {
            return beacon.instance;
        }
    }
}

#[test]
fn only_who_heard_a_node_just_now_is_worth_an_introduction() {
    let (mut node, instance) = searching();
    let cluster = Some(forge::cluster_id());
    for n in 0..20 {
        let said = hear(&mut node, spoofed(n), beacon(forge::id(PEER), cluster, Some([9; 8]), n));
        assert_eq!(connects(&said), [], "it may have been recorded");
        // It is asked by name, and answered then.
        let asked = beacons(&said);
        assert_eq!(asked.len(), 1);
        assert_eq!((asked[0].0, asked[0].1.to, asked[0].1.solicits), (Some(spoofed(n)), Some([3; 8]), true));
    }
    let said = hear(&mut node, address(PEER), beacon(forge::id(PEER), cluster, Some(instance), 100));
    assert_eq!(connects(&said).iter().map(|(_, to)| *to).collect::<Vec<_>>(), [address(PEER)]);
}

#[test]
fn who_takes_connections_and_says_nothing_holds_no_place() {
    let (mut node, instance) = searching();
    let cluster = Some(forge::cluster_id());
    let answer = |node: &mut Subject, from, n| {
        let commands = hear(node, from, beacon(invented(n), cluster, Some(instance), n));
        for (stream, _) in connects(&commands) {
            node.tell(Input::StreamConnected { stream });
        }
        connects(&commands)
    };
    // From one address as many names as he likes: one of them is tried.
    let first = (0..20).flat_map(|n| answer(&mut node, spoofed(1), n)).collect::<Vec<_>>();
    assert_eq!(first.len(), 1);
    // From another one a second one is tried, at the next tick; those two are enough for three seconds.
    let began = node.now;
    let (mut second, mut ended) = (Vec::new(), Vec::new());
    answer(&mut node, spoofed(2), 50);
    while node.now < began + Duration::from_millis(2900) {
        let commands = node.advance(node.now + Duration::from_millis(50));
        for (stream, to) in connects(&commands) {
            node.tell(Input::StreamConnected { stream });
            second.push(to);
        }
    }
    assert_eq!(second, [spoofed(2)]);
    // Then a third one, although nothing was heard of the others, which end after ten seconds.
    while node.now < began + Duration::from_millis(3600) {
        assert_eq!(connects(&node.advance(node.now + Duration::from_millis(50))), []);
    }
    assert_eq!(answer(&mut node, address(PEER), 60).len(), 1);
    while ended.is_empty() {
        ended = closed(&node.advance(node.now + Duration::from_millis(50)));
        assert!(node.now < began + Duration::from_secs(11), "nobody answers, and it waits");
    }
    assert!(node.now > began + Duration::from_secs(9), "a slow machine may need as long");
    assert_eq!(ended, [first[0].0]);
}

#[test]
fn of_streams_that_say_nothing_the_oldest_gives_way_to_the_next_introduction() {
    let (mut node, _) = searching();
    node.advance(node.now + Duration::from_secs(1));
    let (mut silent, mut gave_way, mut most) = (BTreeMap::new(), Vec::new(), 0);
    for n in 0..500u32 {
        // Each of forty nodes without a cluster is heard again and again, and takes the connection.
        let mut commands = hear(&mut node, spoofed(n % 40), beacon(invented(n % 40), None, None, n));
        commands.extend(node.advance(node.now + Duration::from_millis(20)));
        for stream in closed(&commands) {
            gave_way.extend(silent.remove(&stream).map(|since| node.now - since));
        }
        for (stream, _) in connects(&commands) {
            node.tell(Input::StreamConnected { stream });
            silent.insert(stream, node.now);
        }
        most = most.max(silent.len());
    }
    assert_eq!(most, 24, "eight are left to members of a cluster");
    let (first, secs) = (gave_way.iter().min(), Duration::from_secs);
    assert!(
        first.is_some_and(|held| *held >= secs(1) && *held < secs(9)),
        "before they end anyway: {gave_way:?}"
    );
}

#[test]
fn a_cluster_that_is_only_named_is_waited_for_but_not_for_ever() {
    let (mut node, _) = searching();
    let began = node.now;
    let mut n = 0;
    while node.node.status(node.present()).cluster_id.is_none() {
        n += 1;
        hear(&mut node, spoofed(n), beacon(forge::id(PEER), Some(forge::cluster_id()), None, n));
        node.advance(node.now + Duration::from_millis(500));
        assert!(node.now < began + Duration::from_secs(125), "what was recorded keeps it from founding");
    }
    assert!(node.now > began + Duration::from_secs(100), "it founded after {:?}", node.now - began);
}

#[test]
fn who_sounds_like_a_crowd_silences_no_member() {
    let (_, mut node) = member(PEER);
    // A member that is new does count those that it hears.
    node.alone(Duration::from_secs(31));
    let (mut to_all, mut answered) = (0, 0);
    for second in 0..30u32 {
        let mut commands = Vec::new();
        for n in second * 410..(second + 1) * 410 {
            // They ask for no answer, so that no limit of answers is in the way.
            commands.extend(hear(&mut node, spoofed(n), beacon(invented(n), None, None, n)));
        }
        let newcomer = SocketAddr::from(([10, 0, 1, 1 + second as u8], AGENT_PORT));
        let question =
            Beacon { node: invented(!second), instance: [3; 8], cluster: None, solicits: true, to: None };
        let said = hear(&mut node, newcomer, sealed(question, !second));
        answered += beacons(&said).iter().filter(|(to, _)| *to == Some(newcomer)).count();
        for _ in 0..4 {
            commands.extend(node.advance(node.now + Duration::from_millis(250)));
        }
        to_all += beacons(&commands).iter().filter(|(to, _)| to.is_none()).count();
    }
    assert_eq!(answered, 30, "a newcomer is answered, as in a cluster of three");
    assert!(to_all >= 2, "it misses members, and says so every ten seconds: {to_all}");
}

#[test]
fn recorded_beacons_of_an_earlier_boot_open_no_sessions() {
    let (mut peer, mut node) = member(PEER);
    peer.payload(&mut node, &[]);
    let mut opened = 0;
    for n in 0..80 {
        let cluster = Some(forge::cluster_id());
        let recorded = Beacon { node: forge::id(PEER), instance: [7; 8], cluster, solicits: true, to: None };
        let mut commands = hear(&mut node, spoofed(n), sealed(recorded, n));
        commands.extend(node.advance(node.now + Duration::from_millis(250)));
        opened += opens(&commands).iter().filter(|(to, _)| *to != address(forge::ABSENT)).count();
        peer.carry_out(&mut node, commands);
    }
    // This peer is silent in gossip, so it is called when nothing was heard of it for four seconds.
    assert!(opened <= 8, "{opened} in 20 s, and the session that is open works");
}

#[test]
fn who_said_a_fresh_beacon_keeps_a_place_among_connections_from_everywhere() {
    let everywhere: fn(u32) -> SocketAddr = |n| spoofed(n << 8);
    let next_door: fn(u32) -> SocketAddr = |n| link_local(0x100 + n as u16);
    for others in [everywhere, next_door] {
        let (_, mut node) = member(PEER);
        let instance = instance(&mut node);
        for n in 0..2 {
            let from = link_local(1 + n as u16);
            hear(&mut node, from, beacon(invented(n), None, Some(instance), n));
            node.tell(Input::StreamAccepted { stream: StreamId::inbound(1 + u64::from(n)), from });
        }
        let mut ended = Vec::new();
        for n in 0..1000 {
            let stream = StreamId::inbound(1000 + u64::from(n));
            ended.extend(closed(&node.tell(Input::StreamAccepted { stream, from: others(n) })));
        }
        assert_eq!(ended.len(), 1000 + 2 - 256);
        assert!(ended.iter().all(|id| *id >= StreamId::inbound(1000)), "those of a LAN are no crowd");
    }
}

fn link_local(host: u16) -> SocketAddr {
    SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host), AGENT_PORT, 0, INTERFACE).into()
}

fn hello(n: u8) -> Vec<u8> {
    let record = forge::record(n).as_bytes().to_vec();
    let (instance, wall) = ([n; 8], 1_800_000_000_000);
    Message::Hello(Hello { record, instance, uptime: 1000, wall, genesis: Vec::new(), blank: false }).encode()
}

#[test]
fn strangers_that_only_introduce_themselves_lock_nobody_out() {
    let (mut peer, mut node) = member(PEER);
    let mut stranger = Attacker::new(forge::STRANGER, false);
    stranger.number_from(1000);
    for n in 0..160u32 {
        let from = SocketAddr::from((Ipv4Addr::from(0x0a00_0100 + n / 16), AGENT_PORT));
        stranger.open_from(&mut node, Kind::Stranger, from);
        let id = stranger.last_stream().expect("it was opened");
        stranger.say(&mut node, id, &hello(forge::STRANGER), 1);
    }
    // Members have places of their own.
    peer.open(&mut node, Kind::Member);
    let id = peer.last_stream().expect("it was opened");
    peer.say(&mut node, id, &Message::Clock(1_800_000_000_000).encode(), 1);
    assert!(!is_closed(&peer, id));
    // A newcomer comes in, and who asks for nothing is ended soon.
    let mut newcomer = Attacker::new(5, false);
    newcomer.number_from(2000);
    newcomer.open(&mut node, Kind::Stranger);
    let id = newcomer.last_stream().expect("it was opened");
    newcomer.say(&mut node, id, &hello(5), 1);
    newcomer.say(&mut node, id, &Message::Join.encode(), 1);
    assert!(newcomer.heard_messages.contains(&Message::Admitted), "{:?}", newcomer.heard_messages.len());
    let (start, mut ended) = (node.now, Vec::new());
    while node.now < start + Duration::from_secs(4) {
        ended.extend(closed(&node.advance(node.now + Duration::from_millis(50))));
    }
    assert!(ended.len() >= 120, "{} of those that say nothing were ended", ended.len());
    assert_eq!(rejects(&node, "stream on which nothing goes on"), 127);
}

#[test]
fn a_byte_now_and_then_holds_no_place() {
    let (_, mut node) = member(PEER);
    let mut stranger = Attacker::new(forge::STRANGER, false);
    stranger.open(&mut node, Kind::Stranger);
    let id = stranger.last_stream().expect("it was opened");
    stranger.say(&mut node, id, &hello(forge::STRANGER), 1);
    let start = node.now;
    // A frame that never ends.
    stranger.raw(&mut node, id, vec![0xff, 0xff]);
    while closed(&node.advance(node.now + Duration::from_millis(500))).is_empty() {
        stranger.raw(&mut node, id, vec![7]);
        assert!(node.now < start + Duration::from_secs(4), "it still holds its place");
    }
}

/// Opens among commands: to whom, and the bytes.
fn opens(commands: &[Command]) -> Vec<(SocketAddr, Vec<u8>)> {
    let opens = commands.iter().filter_map(|command| match command {
        Command::Net(NetCommand::SendDatagram { to, bytes, .. }) if bytes[..2] == [1, 2] => {
            Some((*to, bytes.clone()))
        }
        _ => None,
    });
    opens.collect()
}

#[test]
fn cookies_make_a_node_speak_where_it_called_and_a_few_times_only() {
    let (_, mut node) = member(PEER);
    let (to, open) = loop {
        let next = node.next(node.now + Duration::from_secs(1)).max(node.now + Duration::from_millis(1));
        if let Some(open) = opens(&node.advance(next)).pop() {
            break open;
        }
    };
    let whose = [PEER, forge::ABSENT].into_iter().find(|n| address(*n) == to).expect("it calls a member");
    let key = forge::keys(whose).session_public();
    let cookie = |n| crate::session::probe::tell_cookie(&key, &open, n);
    for n in 0..100u8 {
        let said = hear(&mut node, spoofed(n.into()), cookie(n));
        assert_eq!(opens(&said), [], "it speaks to whom it did not call");
    }
    let said: Vec<_> = (0..100).flat_map(|n| opens(&hear(&mut node, to, cookie(n)))).collect();
    assert_eq!(said.len(), 8);
    assert!(said.iter().all(|(again, _)| *again == to));
}

#[test]
fn recorded_opens_push_out_none_that_comes_from_where_the_member_is() {
    let (mut peer, mut node) = member(PEER);
    peer.payload(&mut node, &[]);
    assert!(peer.has_session());
    let boots = 0..6u8;
    let mut recorded: Vec<_> = boots
        .map(|boot| {
            peer.restart(Greeting { instance: [0x70 + boot; 8], ..peer.greeting });
            peer.handshake(node.now)
        })
        .collect();
    // The last of them is of this boot, and not recorded.
    let answer = hear(&mut node, address(PEER), recorded.pop().expect("there are six"));
    for (n, bytes) in (0..).zip(recorded) {
        hear(&mut node, spoofed(n), bytes);
    }
    peer.carry_out(&mut node, answer);
    assert!(peer.has_session());
    assert_eq!(rejects(&node, "transport datagram of an unknown session"), 0);
}

#[test]
fn who_proves_where_it_is_takes_the_place_of_a_recorded_open() {
    let (mut peer, mut node) = member(PEER);
    peer.payload(&mut node, &[]);
    let mut opens = (0..5u8).map(|boot| {
        peer.restart(Greeting { instance: [0x70 + boot; 8], ..peer.greeting });
        peer.handshake(node.now)
    });
    let (recorded, [later, open]) =
        (opens.by_ref().take(3).collect::<Vec<_>>(), [opens.next(), opens.next()]);
    let (later, open) = (later.expect("the fourth"), open.expect("the fifth"));
    for bytes in recorded {
        // From where the member was heard, by who can say so.
        hear(&mut node, address(PEER), bytes);
    }
    let elsewhere = spoofed(9);
    let told = hear(&mut node, elsewhere, open.clone());
    assert_eq!(cookies(&told), 1, "{told:?}");
    let Some(Command::Net(NetCommand::SendDatagram { bytes: answer, .. })) = told.first() else {
        panic!("{told:?}")
    };
    let handshake = &open[..open.len() - 16];
    let proof = crate::session::probe::prove(&peer.cookie(answer, handshake), handshake);
    let mut accepted = hear(&mut node, elsewhere, [handshake, &proof].concat());
    for command in &mut accepted {
        let Command::Net(NetCommand::SendDatagram { to, .. }) = command else { continue };
        assert_eq!(*to, elsewhere);
        *to = address(PEER);
    }
    assert_eq!(cookies(&hear(&mut node, address(PEER), later)), 1, "one that proves nothing takes no place");
    peer.carry_out(&mut node, accepted);
    assert!(peer.has_session());
    assert_eq!(rejects(&node, "transport datagram of an unknown session"), 0);
}

#[test]
fn a_disk_that_holds_back_what_we_say_ends_nobodys_stream() {
    let (_, mut node) = member(PEER);
    let introduce = |n: u8, node: &mut Subject| {
        let mut stranger = Attacker::new(n, false);
        stranger.number_from(1000 * u64::from(n));
        stranger.open(node, Kind::Stranger);
        let id = stranger.last_stream().expect("it was opened");
        stranger.say(node, id, &hello(n), 1);
        (stranger, id)
    };
    let (mut newcomer, joins) = introduce(5, &mut node);
    node.is_disk_slow = true;
    // The admission is written first, and all that is said later waits for that: the answer to this one too.
    newcomer.say(&mut node, joins, &Message::Join.encode(), 1);
    assert!(!newcomer.heard_messages.contains(&Message::Admitted));
    let (_, waits) = introduce(forge::STRANGER, &mut node);
    let until = node.now + Duration::from_secs(6);
    while node.now < until {
        assert_eq!(closed(&node.advance(node.now + Duration::from_millis(50))), []);
    }
    node.is_disk_slow = false;
    let said = node.finish_writes();
    assert!(said.iter().any(
        |command| matches!(command, Command::Net(NetCommand::StreamSend { stream, .. }) if *stream == waits)
    ));
    // From now on its silence is its own.
    let (start, mut ended) = (node.now, Vec::new());
    while ended.is_empty() {
        ended = closed(&node.advance(node.now + Duration::from_millis(50)));
        assert!(node.now < start + Duration::from_secs(4), "it says nothing, and stays");
    }
    assert!(node.now > start + Duration::from_millis(2900));
    assert_eq!(ended, [waits]);
}

#[test]
fn router_advertisements_drive_neither_records_nor_beacons() {
    let (_, mut node) = member(PEER);
    let first = node.node.record_sequence().counter;
    let mut to_all = 0;
    for n in 0..600u16 {
        let own = (address(SUBJECT).ip(), 24);
        let advertised = (1..11).map(|host| (IpAddr::from([0xfd12, 0x3456, n, 0, 0, 0, 0, host]), 64));
        let interface = Interface {
            index: INTERFACE,
            name: "eth0".into(),
            addresses: std::iter::once(own).chain(advertised).collect(),
            up: true,
            physical: true,
        };
        let mut commands = node.tell(Input::Interfaces(vec![interface]));
        commands.extend(node.advance(node.now + Duration::from_millis(100)));
        to_all += beacons(&commands).iter().filter(|(to, _)| to.is_none()).count();
        let endpoints = node.node.status(node.present()).endpoints;
        assert!(endpoints.iter().any(|at| at.starts_with(&own.0.to_string())), "{endpoints:?}");
    }
    let renewed = node.node.record_sequence().counter - first;
    assert!((4..=8).contains(&renewed), "{renewed} records in a minute");
    assert!(to_all <= 40, "{to_all} beacons in a minute");
}

#[test]
fn nobody_says_more_in_a_push_pull_than_a_cluster_has() {
    let digests: Vec<_> = (0..7000u64).map(|n| ObjectDigest(n.to_be_bytes())).collect();
    let (mut peer, mut node) = member(PEER);
    let id = begin(&mut peer, &mut node);
    peer.say(&mut node, id, &Message::Want(digests.clone(), false).encode(), 1);
    assert!(!is_closed(&peer, id), "a large cluster has as much");
    peer.say(&mut node, id, &Message::Want(digests, false).encode(), 1);
    assert!(is_closed(&peer, id));
    // What is known costs no check of a signature, but to say it again and again would cost time without end.
    let known = forge::roster(false).objects().map(|(_, bytes)| bytes.to_vec()).min_by_key(Vec::len);
    let known = Message::Objects(vec![known.expect("it has objects"); 200]);
    let id = begin(&mut peer, &mut node);
    peer.say(&mut node, id, &known.encode(), 190);
    assert!(!is_closed(&peer, id), "38,000 objects");
    peer.say(&mut node, id, &known.encode(), 11);
    assert!(is_closed(&peer, id), "40,200 objects");
    assert_eq!(rejects(&node, "stream message out of place"), 2);
}

#[test]
fn recorded_beacons_hide_no_address_that_a_member_signed() {
    let (mut node, _) = subject(SETTLED);
    let mut called = Vec::new();
    for n in 0..120 {
        let cluster = Some(forge::cluster_id());
        let recorded = Beacon { node: forge::id(PEER), instance: [7; 8], cluster, solicits: false, to: None };
        let mut commands = hear(&mut node, spoofed(n), sealed(recorded, n));
        commands.extend(node.advance(node.now + Duration::from_millis(250)));
        called.extend(opens(&commands).into_iter().map(|(to, _)| to));
    }
    // It is one of the four that are known beside four that beacons told, and the member that is away is called too.
    let right = called.iter().filter(|to| **to == address(PEER)).count();
    assert!(right >= 2, "{right} of {} calls in half a minute", called.len());
}

#[test]
fn who_sends_on_the_answer_of_a_member_keeps_nobody_from_it() {
    let (mut node, instance) = searching();
    let answer = |n| beacon(forge::id(PEER), Some(forge::cluster_id()), Some(instance), n);
    let tried = connects(&hear(&mut node, spoofed(1), answer(1)));
    assert_eq!(tried.iter().map(|(_, to)| *to).collect::<Vec<_>>(), [spoofed(1)]);
    node.tell(Input::StreamConnected { stream: tried[0].0 });
    let mut commands = hear(&mut node, address(PEER), answer(2));
    let began = node.now;
    while connects(&commands).is_empty() {
        assert!(node.now < began + Duration::from_millis(3700), "the member itself is not tried");
        commands = node.advance(node.now + Duration::from_millis(50));
    }
    assert_eq!(connects(&commands).iter().map(|(_, to)| *to).collect::<Vec<_>>(), [address(PEER)]);
}

#[test]
fn recorded_beacons_of_nodes_without_a_cluster_leave_room_for_a_member() {
    let (mut node, instance) = searching();
    let mut tried = 0;
    for round in 0..2 {
        // Lower ids are shaken hands with, however many they are, but may begin themselves at first.
        node.alone(Duration::from_millis(1300));
        for n in 0..100 {
            let commands = hear(&mut node, spoofed(n), beacon(low(n), None, None, round * 100 + n));
            for (stream, _) in connects(&commands) {
                node.tell(Input::StreamConnected { stream });
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 24);
    let answer = beacon(forge::id(PEER), Some(forge::cluster_id()), Some(instance), 1000);
    assert_eq!(connects(&hear(&mut node, address(PEER), answer)).len(), 1);
}

/// A node that comes before all others.
fn low(n: u32) -> NodeId {
    NodeId(std::array::from_fn(|at| if at < 28 { 0 } else { n.to_be_bytes()[at - 28] }))
}
