// SPDX-License-Identifier: Apache-2.0
//! States for tests.

use cluster_agent_proto::NodeId;
use cluster_agent_proto::keys::Keys;
use cluster_agent_proto::record::{NodeRecord, Sequence};
use cluster_agent_proto::signed::Verified;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Command, JoinKeyId, Outcome, Proposal, ReplicaOf, RequestId, State, StoredJoinKey};
use crate::genesis::Genesis;
use crate::raft::{Conf, LogEntry};

/// The join key of these clusters.
pub(crate) const KEY: JoinKeyId = JoinKeyId([7; 5]);

/// Keys by number.
pub(crate) fn keys(n: u16) -> Keys {
    let mut random = [0; 96];
    StdRng::seed_from_u64(u64::from(n)).fill_bytes(&mut random);
    Keys::generate(&random)
}

/// A signed record.
pub(crate) fn record(keys: &Keys, name: &str) -> Vec<u8> {
    let record = NodeRecord {
        public_key: keys.public(),
        sequence: Sequence { generation: 1, counter: 1 },
        session_key: keys.session_public(),
        wireguard_key: keys.wireguard_public(),
        feature_level: 1,
        hostname: name.to_owned(),
        version: "1".to_owned(),
        endpoints: Vec::new(),
        labels: Default::default(),
        releases: Vec::new(),
    };
    Verified::sign(record, keys).as_bytes().to_vec()
}

/// A cluster of its founder.
pub(crate) fn founded() -> State {
    let keys = keys(0);
    let genesis = Genesis {
        name: "lab".into(),
        founder: keys.public(),
        nonce: [1; 32],
        created: 1_000,
        admin_keys: vec![],
    };
    State::found(genesis, &record(&keys, "n0"), StoredJoinKey::new(&[7; 37], false)).unwrap()
}

/// Proposes one command at this time.
pub(crate) fn at(state: &mut State, time: u64, command: Command) -> Outcome {
    let index = state.index() + 1;
    let mut request = [0; 16];
    request[..8].copy_from_slice(&index.to_be_bytes());
    repeat(state, RequestId(request), time, command)
}

/// Proposes one command under this id.
pub(crate) fn repeat(state: &mut State, request: RequestId, time: u64, command: Command) -> Outcome {
    let data = Proposal { request, time, origin: keys(0).node_id(), command }.encode();
    let entry = LogEntry { index: state.index() + 1, term: 1, is_conf: false, data };
    state.apply(&entry, None).unwrap().unwrap().outcome
}

/// Proposes one command.
pub(crate) fn apply(state: &mut State, command: Command) -> Outcome {
    at(state, 2_000, command)
}

/// Lets one in.
pub(crate) fn join(state: &mut State, n: u16, name: &str) -> (NodeId, Outcome) {
    let keys = keys(n);
    let outcome = apply(state, Command::Join { record: record(&keys, name), key: KEY });
    (keys.node_id(), outcome)
}

/// A cluster, and its members in the order of their admission.
pub(crate) fn cluster(members: usize) -> (State, Vec<NodeId>) {
    let mut state = founded();
    let mut nodes = vec![keys(0).node_id()];
    for n in 1..members {
        let (node, outcome) = join(&mut state, n as u16, &format!("n{n}"));
        assert_eq!(outcome, Outcome::Done);
        nodes.push(node);
    }
    (state, nodes)
}

/// Gives the first members raft ids from 1 on, and the cluster this configuration.
pub(crate) fn with_replicas(state: &mut State, nodes: &[NodeId], count: usize, conf: &Conf) {
    for (node, id) in nodes.iter().take(count).zip(1..) {
        state.members.get_mut(node).unwrap().replica = Some(ReplicaOf { id, nonce: 0 });
        state.next_replica = id + 1;
    }
    state.conf = conf.clone();
}
