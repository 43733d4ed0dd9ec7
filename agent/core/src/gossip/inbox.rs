// SPDX-License-Identifier: Apache-2.0
//! Objects that ride on gossip.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use foca::{BroadcastHandler, Invalidates};

use super::GossipId;
use crate::consts::inbox::*;
use crate::id::NodeId;
use crate::record::NodeRecord;
use crate::signed::ObjectDigest;

/// Who passed it on, and its bytes.
type Heard = (NodeId, Vec<u8>);

/// Objects that arrived and wait for the node to verify them. foca keeps its handler to itself, so the queue is shared;
/// everything runs on one thread and the lock is never contended.
#[derive(Clone, Default)]
pub(super) struct Inbox(Arc<Mutex<VecDeque<Heard>>>);

impl Inbox {
    pub(super) fn drain(&self) -> Vec<Heard> {
        match self.0.lock() {
            Ok(mut queue) => queue.drain(..).collect(),
            Err(_) => Vec::new(),
        }
    }
}

/// Names a broadcast inside foca. A node's record replaces its earlier one, so nobody fills the queue by signing many; any
/// other object replaces nothing but itself.
pub(super) struct Key(ObjectDigest);

impl Key {
    fn of(object: &[u8]) -> Self {
        Self(ObjectDigest::of(NodeRecord::signer_of(object).unwrap_or(object)))
    }
}

impl Invalidates for Key {
    fn invalidates(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl BroadcastHandler<GossipId> for Inbox {
    type Key = Key;
    type Error = Infallible;

    /// From outside: only taken in, never passed on unverified. From the node (`sender` is `None`): verified and new, so
    /// passed on.
    fn receive_item(&mut self, data: &[u8], sender: Option<&GossipId>) -> Result<Option<Key>, Infallible> {
        let Some(sender) = sender else { return Ok(Some(Key::of(data))) };
        if let Ok(mut queue) = self.0.lock()
            && queue.len() < MAX_WAITING
        {
            queue.push_back((sender.node, data.to_vec()));
        }
        Ok(None)
    }
}
