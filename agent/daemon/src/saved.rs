// SPDX-License-Identifier: Apache-2.0
//! The core's state items as records of the [`Store`].

use cluster_agent_core::{Saved, StateItem};

use crate::store::{Keep, ReadError, Store};

/// What a power cut at the wrong moment, or a dying disk, must not turn into another node is kept twice.
pub(crate) fn keep_of(item: StateItem) -> Keep {
    match item {
        StateItem::Identity | StateItem::Generation | StateItem::Membership => Keep::Twice,
        StateItem::Records | StateItem::Clock | StateItem::DamagedIdentity | StateItem::DamagedMembership => {
            Keep::Once
        }
    }
}

/// Everything the core saved; what is damaged is handed over as it is, for the core to judge and name.
pub(crate) fn read_saved(store: &Store) -> (Saved, Vec<ReadError>) {
    let mut damages = Vec::new();
    let mut read = |item: StateItem| match store.read(item.file_name()) {
        Ok(payload) => payload,
        Err(error) => {
            let bytes = match &error {
                ReadError::Damaged { bytes, .. } => bytes.clone(),
                ReadError::Io { .. } => Vec::new(),
            };
            damages.push(error);
            Some(bytes)
        }
    };
    let saved = Saved {
        identity: read(StateItem::Identity),
        generation: read(StateItem::Generation),
        membership: read(StateItem::Membership),
        records: read(StateItem::Records),
        clock: read(StateItem::Clock),
    };
    (saved, damages)
}
