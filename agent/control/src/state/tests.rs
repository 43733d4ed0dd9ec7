// SPDX-License-Identifier: Apache-2.0
//! What each command does, and what it must not do.

use std::net::Ipv4Addr;

use super::samples::{KEY, apply, at, cluster, founded, join, keys, record, repeat};
use super::{
    Command, Departure, Outcome, Refusal, RequestId, Setting, SettingKind, State, Stop, StoredJoinKey,
};
use crate::consts::{MAX_REQUESTS, MAX_STATE};
use crate::raft::LogEntry;

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Refused(refusal)
}

fn set(setting: Setting) -> Command {
    Command::Set { setting, if_version: None }
}

#[test]
fn the_cluster_id_is_the_hash_of_the_genesis() {
    let state = founded();
    let mut other = state.genesis().clone();
    other.nonce[0] ^= 1;
    assert_ne!(state.cluster(), other.cluster());
    assert_eq!(state.cluster(), state.genesis().clone().cluster());
}

#[test]
fn only_the_founder_founds() {
    let state = founded();
    let stranger = record(&keys(1), "n1");
    let key = StoredJoinKey::new(&[7; 37], false);
    assert_eq!(State::found(state.genesis().clone(), &stranger, key), Err(Refusal::BadRecord));
}

#[test]
fn a_later_member_of_the_same_name_gets_a_suffix_and_people_are_told() {
    let mut state = founded();
    let (second, _) = join(&mut state, 1, "n0");
    let (third, _) = join(&mut state, 2, "n0");
    assert_eq!(state.member(&second).unwrap().name, "n0-2");
    assert_eq!(state.member(&third).unwrap().name, "n0-3");
    assert_eq!(state.renamed().count(), 2);
    let (long, _) = join(&mut state, 3, &"x".repeat(63));
    let (longer, _) = join(&mut state, 4, &"x".repeat(63));
    assert_eq!(state.member(&long).unwrap().name.len(), 63);
    assert_eq!(state.member(&longer).unwrap().name, format!("{}-2", "x".repeat(61)));
    assert_eq!(
        apply(&mut state, Command::Rename { node: second, name: "cluster".into() }),
        refused(Refusal::BadName)
    );
    assert_eq!(apply(&mut state, Command::Rename { node: second, name: "n0-3".into() }), Outcome::Done);
    assert_eq!(state.member(&second).unwrap().name, "n0-3-2");
}

#[test]
fn an_address_stays_with_its_node() {
    let (mut state, nodes) = cluster(4);
    let address = |state: &State, n: usize| state.member(&nodes[n]).map(|member| member.ipv4);
    assert_eq!(address(&state, 0), Some(Ipv4Addr::new(10, 41, 0, 1)));
    let second = address(&state, 1);
    assert_eq!(apply(&mut state, Command::Depart { node: nodes[1], how: Departure::Left }), Outcome::Done);
    let (_, outcome) = join(&mut state, 9, "n9");
    assert_eq!(outcome, Outcome::Done);
    assert_ne!(state.member(&keys(9).node_id()).map(|member| member.ipv4), second);
    assert_eq!(join(&mut state, 1, "n1").1, Outcome::Done);
    assert_eq!(address(&state, 1), second);
}

#[test]
fn another_range_renumbers_all_and_one_that_is_too_small_nobody() {
    let (mut state, nodes) = cluster(20);
    let small = Setting::Ipv4Range(Ipv4Addr::new(10, 9, 0, 0), 28);
    assert_eq!(apply(&mut state, set(small)), refused(Refusal::NoAddress));
    assert_eq!(state.member(&nodes[0]).unwrap().ipv4, Ipv4Addr::new(10, 41, 0, 1));
    assert_eq!(apply(&mut state, set(Setting::Ipv4Range(Ipv4Addr::new(10, 9, 0, 0), 27))), Outcome::Done);
    assert!(state.members().all(|(_, member)| member.ipv4.octets()[..3] == [10, 9, 0]));
    assert!(State::decode(&state.encode()).is_ok(), "every address is there once");
}

#[test]
fn who_was_evicted_never_comes_back() {
    let (mut state, nodes) = cluster(3);
    assert_eq!(apply(&mut state, Command::Depart { node: nodes[2], how: Departure::Evicted }), Outcome::Done);
    assert_eq!(join(&mut state, 2, "n2").1, refused(Refusal::Evicted));
    // Neither by a weaker word afterwards.
    apply(&mut state, Command::Depart { node: nodes[2], how: Departure::Left });
    assert_eq!(join(&mut state, 2, "n2").1, refused(Refusal::Evicted));
    // Who left first can be evicted, too.
    apply(&mut state, Command::Depart { node: nodes[1], how: Departure::Left });
    assert_eq!(apply(&mut state, Command::Depart { node: nodes[1], how: Departure::Evicted }), Outcome::Done);
    assert_eq!(join(&mut state, 1, "n1").1, refused(Refusal::Evicted));
}

#[test]
fn a_voter_does_not_go_with_its_vote() {
    let (mut state, nodes) = cluster(2);
    let how = Departure::Removed;
    assert_eq!(apply(&mut state, Command::Depart { node: nodes[0], how }), refused(Refusal::StillVotes));
}

#[test]
fn a_member_has_no_key_of_another() {
    let (mut state, _) = cluster(2);
    let thief = keys(5);
    let victim = keys(1);
    let record = cluster_agent_proto::record::NodeRecord {
        public_key: thief.public(),
        sequence: cluster_agent_proto::record::Sequence { generation: 1, counter: 1 },
        session_key: thief.session_public(),
        wireguard_key: victim.wireguard_public(),
        feature_level: 1,
        hostname: "thief".into(),
        version: "1".into(),
        endpoints: vec![],
        labels: Default::default(),
        releases: vec![],
    };
    let record = cluster_agent_proto::signed::Verified::sign(record, &thief).as_bytes().to_vec();
    assert_eq!(apply(&mut state, Command::Join { record, key: KEY }), refused(Refusal::KeyTaken));
    let forged = record_of(&keys(6), &keys(7));
    assert_eq!(apply(&mut state, Command::Join { record: forged, key: KEY }), refused(Refusal::BadRecord));
}

/// A record of one node, signed by another.
fn record_of(node: &cluster_agent_proto::keys::Keys, signer: &cluster_agent_proto::keys::Keys) -> Vec<u8> {
    let mut bytes = record(node, "n");
    let other = record(signer, "n");
    let at = bytes.len() - 64;
    bytes[at..].copy_from_slice(&other[other.len() - 64..]);
    bytes
}

#[test]
fn a_join_key_ends_by_time_by_use_and_by_revocation() {
    let mut state = founded();
    let mut key = StoredJoinKey::new(&[8; 37], true);
    (key.expires, key.max_uses) = (Some(5_000), Some(1));
    let id = key.id;
    assert_eq!(apply(&mut state, Command::CreateJoinKey(key.clone())), Outcome::Done);
    assert_eq!(apply(&mut state, Command::CreateJoinKey(key)), refused(Refusal::JoinKeyExists));
    let ask = |n: u16| Command::Join { record: record(&keys(n), "n"), key: id };
    assert_eq!(at(&mut state, 4_999, ask(1)), Outcome::Done);
    // The same node again uses nothing up.
    assert_eq!(at(&mut state, 4_999, ask(1)), Outcome::Done);
    assert_eq!(at(&mut state, 4_999, ask(2)), refused(Refusal::UsedUpJoinKey));
    let mut late = StoredJoinKey::new(&[9; 37], true);
    late.expires = Some(6_000);
    let late_id = late.id;
    assert_eq!(at(&mut state, 5_000, Command::CreateJoinKey(late)), Outcome::Done);
    let ask = |n: u16| Command::Join { record: record(&keys(n), "n"), key: late_id };
    assert_eq!(at(&mut state, 6_000, ask(3)), refused(Refusal::ExpiredJoinKey));
    // A leader whose clock is behind does not make it valid again.
    assert_eq!(at(&mut state, 1, ask(3)), refused(Refusal::ExpiredJoinKey));
    assert_eq!(apply(&mut state, Command::RevokeJoinKey { id: KEY }), Outcome::Done);
    assert_eq!(join(&mut state, 4, "n4").1, refused(Refusal::RevokedJoinKey));
    let unknown = Command::Join { record: record(&keys(4), "n"), key: super::JoinKeyId([0; 5]) };
    assert_eq!(apply(&mut state, unknown), refused(Refusal::UnknownJoinKey));
}

#[test]
fn a_join_key_names_the_cluster_it_opens() {
    let mut state = founded();
    let key = StoredJoinKey::new(&[8; 37], true);
    let id = key.id;
    apply(&mut state, Command::CreateJoinKey(key));
    assert_eq!(state.join_key(&id).unwrap().cluster(), Some(state.cluster()));
    assert_eq!(state.join_key(&KEY).unwrap().cluster(), None);
}

#[test]
fn beyond_the_limit_requests_wait_and_these_are_bounded() {
    let mut state = founded();
    apply(&mut state, set(Setting::MaxMembers(2)));
    assert_eq!(join(&mut state, 1, "n1").1, Outcome::Done);
    for n in 0..MAX_REQUESTS as u16 {
        assert_eq!(join(&mut state, 100 + n, "n").1, Outcome::Waiting);
    }
    assert_eq!(join(&mut state, 99, "n").1, refused(Refusal::TooManyRequests));
    assert_eq!(join(&mut state, 100, "n").1, Outcome::Waiting);
    let node = keys(100).node_id();
    assert_eq!(apply(&mut state, Command::Approve { node }), Outcome::Done);
    assert!(state.member(&node).is_some());
    let node = keys(101).node_id();
    assert_eq!(apply(&mut state, Command::Reject { node }), Outcome::Done);
    assert_eq!(apply(&mut state, Command::Approve { node }), refused(Refusal::NoSuchRequest));
}

#[test]
fn a_person_decides_where_policy_says_so() {
    let mut state = founded();
    apply(&mut state, set(Setting::Admission { automatic: false }));
    let (node, outcome) = join(&mut state, 1, "n1");
    assert_eq!((outcome, state.member(&node)), (Outcome::Waiting, None));
    // Who waits can be sent away for good.
    assert_eq!(apply(&mut state, Command::Depart { node, how: Departure::Evicted }), Outcome::Done);
    assert_eq!(apply(&mut state, Command::Approve { node }), refused(Refusal::NoSuchRequest));
    assert_eq!(join(&mut state, 1, "n1").1, refused(Refusal::Evicted));
}

#[test]
fn a_request_that_is_repeated_is_done_once() {
    let mut state = founded();
    let request = RequestId([9; 16]);
    assert_eq!(repeat(&mut state, request, 2_000, set(Setting::MaxMembers(7))), Outcome::Done);
    apply(&mut state, set(Setting::MaxMembers(8)));
    assert_eq!(repeat(&mut state, request, 2_000, set(Setting::MaxMembers(7))), Outcome::Done);
    assert_eq!(state.setting(SettingKind::MaxMembers), Some(&Setting::MaxMembers(8)));
}

#[test]
fn a_change_can_be_taken_back_and_not_that_of_somebody_else() {
    let mut state = founded();
    let kind = SettingKind::MaxMembers;
    apply(&mut state, set(Setting::MaxMembers(7)));
    let version = state.setting_version(kind);
    apply(&mut state, set(Setting::MaxMembers(8)));
    let late = Command::Set { setting: Setting::MaxMembers(9), if_version: Some(version) };
    assert_eq!(apply(&mut state, late), refused(Refusal::Conflict));
    assert_eq!(apply(&mut state, Command::Undo { version: Some(version) }), refused(Refusal::Conflict));
    assert_eq!(apply(&mut state, Command::Undo { version: None }), Outcome::Done);
    assert_eq!(state.setting(kind), Some(&Setting::MaxMembers(7)));
    assert_eq!(apply(&mut state, Command::Unset { kind }), Outcome::Done);
    assert_eq!(state.setting(kind), None);
}

#[test]
fn a_value_that_makes_no_sense_cannot_even_be_read() {
    for setting in [
        Setting::SshKeys(vec!["two\nlines".into()]),
        Setting::TimeZone("/etc/passwd\n".into()),
        Setting::Ntp(vec!["-oops".into()]),
        Setting::Dns(vec![[127, 0, 0, 1].into()]),
        Setting::Proxy("ftp://x".into()),
        Setting::Certificates(vec!["no".into()]),
        Setting::Ipv4Range(Ipv4Addr::new(8, 8, 0, 0), 16),
        Setting::Ipv4Range(Ipv4Addr::new(10, 41, 0, 1), 16),
        Setting::MaxMembers(0),
        Setting::Voters(2),
    ] {
        let command = set(setting.clone());
        let bytes =
            super::Proposal { request: RequestId([1; 16]), time: 1, origin: keys(0).node_id(), command }
                .encode();
        assert!(!setting.is_valid(), "{setting:?}");
        assert!(super::Proposal::decode(&bytes).is_err(), "{setting:?}");
    }
}

#[test]
fn an_entry_of_an_unknown_kind_stops_and_is_never_skipped() {
    let mut state = founded();
    let before = state.clone();
    let mut data = super::Proposal {
        request: RequestId([1; 16]),
        time: 1,
        origin: keys(0).node_id(),
        command: Command::DropReplica { id: 9 },
    }
    .encode();
    data[1 + 16 + 8 + 32] = 200;
    let entry = LogEntry { index: 2, term: 1, is_conf: false, data };
    assert_eq!(state.apply(&entry, None), Err(Stop::Unknown(2)));
    assert_eq!(state, before);
    let later = LogEntry { index: 3, term: 1, is_conf: false, data: Vec::new() };
    assert_eq!(state.apply(&later, None), Err(Stop::Gap(3)));
}

#[test]
fn a_thousand_members_with_everything_set_fit_into_a_snapshot() {
    let mut state = founded();
    apply(&mut state, set(Setting::MaxMembers(1_200)));
    for n in 1..1_000 {
        assert_eq!(join(&mut state, n, &format!("{}{n}", "x".repeat(50))).1, Outcome::Done);
    }
    let pem = |n: usize| {
        let body = "A".repeat(7_900);
        format!("-----BEGIN CERTIFICATE-----\n{n}{body}\n-----END CERTIFICATE-----\n")
    };
    for n in 0..100 {
        let all = (0..16).map(|at| pem(n * 100 + at)).collect();
        assert_eq!(apply(&mut state, set(Setting::Certificates(all))), Outcome::Done);
    }
    let bytes = state.encode();
    println!("{} bytes", bytes.len());
    assert!(bytes.len() <= MAX_STATE / 4, "{} bytes", bytes.len());
    assert_eq!(State::decode(&bytes), Ok(state));
}

#[test]
fn a_raft_id_is_used_once() {
    let (mut state, nodes) = cluster(2);
    apply(&mut state, Command::NewReplica { node: nodes[1], nonce: 5 });
    let first = state.member(&nodes[1]).unwrap().replica.unwrap();
    apply(&mut state, Command::DropReplica { id: first.id });
    apply(&mut state, Command::NewReplica { node: nodes[1], nonce: 6 });
    let second = state.member(&nodes[1]).unwrap().replica.unwrap();
    assert!(second.id > first.id);
    let reopened = state.reopen(&nodes[0]).unwrap();
    assert!(reopened > second.id);
    assert_eq!(state.member(&nodes[1]).unwrap().replica, None);
}
