// SPDX-License-Identifier: Apache-2.0
//! Fuzz targets: the decoders of what other nodes and disks say (`docs/fuzzing.md`).

use cluster_agent_proto::wire::{Reader, Writer};

use crate::genesis::Genesis;
use crate::message::Message;
use crate::raft::{LogEntry, Snapshot};
use crate::state::{Proposal, State};

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also of its corpus.
    pub name: &'static str,
    /// What it reads.
    pub about: &'static str,
    /// Runs one input; panics when it finds something.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] =
    &[Target { name: "control", about: "messages, entries, snapshots and state of the control plane", run }];

/// What a decoder takes it gives back byte by byte.
fn run(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    match kind % 6 {
        0 => {
            if let Ok(message) = Message::decode(body) {
                assert_eq!(message.encode(), body);
            }
        }
        1 => {
            if let Ok(entry) = LogEntry::decode(body) {
                assert_eq!(entry.encode(), body);
            }
        }
        2 => {
            if let Ok(snapshot) = Snapshot::decode(body) {
                assert_eq!(snapshot.encode(), body);
            }
        }
        3 => {
            if let Ok(proposal) = Proposal::decode(body) {
                assert_eq!(proposal.encode(), body);
            }
        }
        4 => {
            if let Ok(state) = State::decode(body) {
                assert_eq!(state.encode(), body);
            }
        }
        _ => {
            let mut r = Reader::new("fuzz", body);
            if let Ok(genesis) = Genesis::read(&mut r) {
                let mut w = Writer::new();
                genesis.write(&mut w);
                assert_eq!(w.finish(), body[..body.len() - r.remaining()]);
            }
        }
    }
}

/// Inputs to begin with: name of the target and input.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let (state, entry, snapshot, proposal) = samples::all();
    let mut seeds: Vec<Vec<u8>> =
        samples::messages().iter().map(|message| [&[0], &message.encode()[..]].concat()).collect();
    seeds.push([&[1], &entry.encode()[..]].concat());
    seeds.push([&[2], &snapshot.encode()[..]].concat());
    seeds.extend(proposal.iter().map(|one| [&[3], &one.encode()[..]].concat()));
    seeds.push([&[4], &state.encode()[..]].concat());
    seeds.push([&[5], &state.genesis().encode()[..]].concat());
    seeds.into_iter().map(|seed| ("control", seed)).collect()
}

/// One of each.
mod samples {
    use cluster_agent_proto::NodeId;
    use cluster_agent_proto::keys::Keys;
    use cluster_agent_proto::record::{NodeRecord, Sequence};
    use cluster_agent_proto::signed::Verified;

    use crate::genesis::Genesis;
    use crate::message::{Message, News};
    use crate::raft::{Conf, LogEntry, Snapshot, sample_messages};
    use crate::state::{
        Command, Departure, JoinKeyId, Outcome, Proposal, Refusal, RequestId, Setting, SettingKind, State,
        StoredJoinKey,
    };

    const REQUEST: RequestId = RequestId([4; 16]);

    fn record(keys: &Keys) -> Vec<u8> {
        let record = NodeRecord {
            public_key: keys.public(),
            sequence: Sequence { generation: 1, counter: 1 },
            session_key: keys.session_public(),
            wireguard_key: keys.wireguard_public(),
            feature_level: 1,
            hostname: "alpha".to_owned(),
            version: "1".to_owned(),
            endpoints: Vec::new(),
            labels: Default::default(),
            releases: Vec::new(),
        };
        Verified::sign(record, keys).as_bytes().to_vec()
    }

    fn commands(record: Vec<u8>) -> Vec<Command> {
        let node = NodeId([3; 32]);
        vec![
            Command::Join { record, key: JoinKeyId([7; 5]) },
            Command::Approve { node },
            Command::Reject { node },
            Command::Depart { node, how: Departure::Evicted },
            Command::Rename { node, name: "beta".to_owned() },
            Command::Set { setting: Setting::Dns(vec![[192, 0, 2, 1].into()]), if_version: Some(3) },
            Command::Set {
                setting: Setting::SshKeys(vec!["ssh-ed25519 AAAA me".to_owned()]),
                if_version: None,
            },
            Command::Set { setting: Setting::Ipv4Range([10, 42, 0, 0].into(), 16), if_version: None },
            Command::Unset { kind: SettingKind::Ntp },
            Command::Undo { version: Some(1) },
            Command::CreateJoinKey(StoredJoinKey::new(&[8; 37], true)),
            Command::RevokeJoinKey { id: JoinKeyId([8; 5]) },
            Command::NewReplica { node, nonce: 9 },
            Command::DropReplica { id: 2 },
        ]
    }

    pub(super) fn all() -> (State, LogEntry, Snapshot, Vec<Proposal>) {
        let keys = Keys::generate(&std::array::from_fn(|i| i as u8));
        let other = Keys::generate(&std::array::from_fn(|i| 200 - i as u8));
        let genesis = Genesis {
            name: "lab".to_owned(),
            founder: keys.public(),
            nonce: [1; 32],
            created: 1_000,
            admin_keys: vec![[5; 32]],
        };
        let key = StoredJoinKey::new(&[7; 37], false);
        let mut state = State::found(genesis, &record(&keys), key).expect("the founder's record is sound");
        let proposals = commands(record(&other)).into_iter().zip(1..);
        let proposal = |(command, n): (Command, u8)| Proposal {
            request: RequestId([n; 16]),
            time: 2_000,
            origin: keys.node_id(),
            command,
        };
        let proposals: Vec<_> = proposals.map(proposal).collect();
        let mut entry = LogEntry { index: 1, term: 1, is_conf: false, data: Vec::new() };
        for (proposal, index) in proposals.iter().zip(2..) {
            entry = LogEntry { index, term: 1, is_conf: false, data: proposal.encode() };
            state.apply(&entry, None).expect("it follows");
        }
        let conf = Conf { voters: vec![1], ..Conf::default() };
        let snapshot = Snapshot { index: state.index(), term: 1, conf, state: state.encode() };
        (state, entry, snapshot, proposals)
    }

    pub(super) fn messages() -> Vec<Message> {
        let (state, entry, snapshot, proposals) = all();
        let refused = Outcome::Refused(Refusal::Full);
        let mut all = vec![
            Message::RollCall { replica: 1, stored: 2 },
            Message::Heard { replica: 1, stored: 2 },
            Message::Gone { replica: 1 },
            Message::Answered { request: REQUEST, index: 7, outcome: Outcome::Waiting },
            Message::Answered { request: REQUEST, index: 7, outcome: refused },
            Message::Read { request: REQUEST },
            Message::ReadAt { request: REQUEST, index: 7 },
            Message::Invite,
            Message::Incarnation { incarnation: 2 },
            Message::Offer { nonce: 5 },
            Message::Pull { incarnation: 1, index: 7, digest: state.digest() },
            Message::News { leader: None, age: 5, news: News::Same },
            Message::News { leader: None, age: 5, news: News::Departed(Departure::Left) },
            Message::News { leader: Some(NodeId([3; 32])), age: 5, news: News::State(state.encode()) },
            Message::News { leader: None, age: 5, news: News::Entries(vec![entry.clone()], state.digest()) },
        ];
        let forward =
            |one: &Proposal| Message::Forward { request: one.request, command: one.command.clone() };
        all.extend(proposals.iter().map(forward));
        let raft = |message| Message::Raft { incarnation: 1, stored: 3, nonce: 4, message };
        all.extend(sample_messages(&entry, &snapshot).into_iter().map(raft));
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_nodes_really_say_is_read() {
        let all = seeds();
        assert!(all.len() > 30);
        for (_, seed) in all {
            let (kind, body) = (seed[0], &seed[1..]);
            let read = match kind {
                0 => Message::decode(body).is_ok(),
                1 => LogEntry::decode(body).is_ok(),
                2 => Snapshot::decode(body).is_ok(),
                3 => Proposal::decode(body).is_ok(),
                4 => State::decode(body).is_ok(),
                _ => Genesis::decode(body).is_ok(),
            };
            assert!(read, "kind {kind}: {body:02x?}");
            run(&seed);
        }
    }

    /// The corpus as it is checked in (docs/fuzzing.md): each input behind its length.
    #[test]
    fn control_corpus_finds_nothing() {
        // Asked when it runs: a checkout may have been moved since it was compiled.
        let package = std::env::var("CARGO_MANIFEST_DIR").expect("runs under cargo");
        let packed =
            std::fs::read(format!("{package}/../../tests/fuzz/corpus/control")).expect("the corpus is there");
        let (mut r, mut count) = (Reader::new("corpus", &packed), 0);
        while r.remaining() > 0 {
            let length = r.u32().expect("a length") as usize;
            run(r.take(length).expect("an input"));
            count += 1;
        }
        assert!(count >= 20, "only {count} inputs");
    }

    proptest! {
        #[test]
        fn a_decoder_gives_back_what_it_takes(
            seed: prop::sample::Index,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut: Option<prop::sample::Index>,
        ) {
            let all = seeds();
            let (_, mut bytes) = all[seed.index(all.len())].clone();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()) + 1);
            }
            run(&bytes);
        }
    }
}
