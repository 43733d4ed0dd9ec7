// SPDX-License-Identifier: Apache-2.0
//! `clusterctl recover`: when most voters are gone for good, one survivor opens a new incarnation from the newest state it
//! followed. What was agreed after that state is lost; what the caller tells people, and has them confirm, is not ours.

use cluster_agent_proto::NodeId;

use crate::raft::{HardState, Saved, Snapshot};
use crate::state::State;

/// The store of the new incarnation's only voter, `None` if the node is no member in this state. Its raft id was never used;
/// all older ones are void.
pub fn recover(newest: &State, node: &NodeId) -> Option<Saved> {
    let mut state = newest.clone();
    let replica = state.reopen(node)?;
    let (index, conf) = (state.index(), state.conf().clone());
    // Terms begin anew: messages of another incarnation are refused before raft sees them.
    let snapshot = Snapshot { index, term: 1, conf, state: state.encode() };
    let hard_state = HardState { term: 1, vote: 0, commit: index };
    Some(Saved { replica, sequence: 0, hard_state, snapshot: Some(snapshot), entries: Vec::new() })
}
