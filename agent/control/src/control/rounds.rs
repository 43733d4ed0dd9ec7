// SPDX-License-Identifier: Apache-2.0
//! The leader's rounds: looks at what [`decide`] says, and does it.

use cluster_agent_proto::NodeId;
use sha2::{Digest as _, Sha256};

use super::{Control, Now};
use crate::consts::{INVITATION, LEADER_EVERY, UNWILLING};
use crate::leader::{Step, View, decide};
use crate::message::Message;
use crate::state::{Command, Proposal, RequestId};

impl Control {
    pub(super) fn look(&mut self, now: Now) {
        if !self.leads() || now.boottime < self.next_look {
            return;
        }
        self.next_look = now.boottime + LEADER_EVERY;
        let departing = self.departing();
        let (Some(state), Some(replica)) = (&self.state, &self.replica) else { return };
        // Until an entry of its own term is applied, the leader's state may be old.
        if replica.is_changing() || replica.committed() != state.index() {
            return;
        }
        if let Some((node, until)) = self.invited
            && now.boottime >= until
        {
            self.invited = None;
            self.unwilling.insert(node, now.boottime + UNWILLING);
        }
        self.unwilling.retain(|_, until| now.boottime < *until);
        let conf = replica.conf();
        self.gone.retain(|id| conf.ids().any(|one| one == *id) || state.node_of(*id).is_some());
        let view = View {
            state,
            conf: &conf,
            me: replica.id(),
            last: replica.last_index(),
            progress: replica.progress(),
            alive: &self.alive,
            gone: &self.gone,
            unwilling: &self.unwilling,
            departing: &departing,
        };
        let step = decide(&view);
        let Some(replica) = &mut self.replica else { return };
        match step {
            None => {}
            Some(Step::Change(changes)) => {
                let _ = replica.change(&changes);
            }
            Some(Step::Transfer(to)) => replica.transfer(to),
            Some(Step::Drop(id)) => self.propose_own(Command::DropReplica { id }, now),
            Some(Step::Invite(node)) if self.invited.is_none() => {
                self.invited = Some((node, now.boottime + INVITATION));
                self.send(node, &Message::Invite);
            }
            Some(Step::Invite(_)) => {}
        }
    }

    /// The member will have a replica.
    pub(super) fn offered(&mut self, from: NodeId, nonce: u64, now: Now) {
        if self.leads() && nonce != 0 && self.invited.is_some_and(|(node, _)| node == from) {
            self.invited = None;
            self.propose_own(Command::NewReplica { node: from, nonce }, now);
        }
    }

    /// The leader's own proposals need no answer. Their id says what they are, so that one is not done twice.
    fn propose_own(&mut self, command: Command, now: Now) {
        let Some(replica) = &mut self.replica else { return };
        let time = now.wall.as_millis() as u64;
        let mut proposal = Proposal { request: RequestId([0; 16]), time, origin: self.me, command };
        let hash =
            Sha256::new().chain_update(replica.last_index().to_be_bytes()).chain_update(proposal.encode());
        proposal.request.0.copy_from_slice(&hash.finalize()[..16]);
        let _ = replica.propose(proposal.encode());
    }
}
