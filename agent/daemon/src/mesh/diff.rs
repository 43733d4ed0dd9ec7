// SPDX-License-Identifier: Apache-2.0
//! What must change so that a WireGuard device has the wanted peers, and nothing more: a peer that is right is not
//! touched, so its session lives on.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use super::{KeyBytes, WantedPeer};

/// A peer as the device has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ActualPeer {
    /// Where it is reached now; WireGuard moves it by itself when the peer speaks from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// As configured, in any order.
    pub allowed: Vec<(IpAddr, u8)>,
    /// Seconds, 0 for none.
    pub keepalive: u16,
}

/// The difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Not wanted any more.
    pub remove: Vec<KeyBytes>,
    /// To be added, or brought to this. The endpoint is only said where it must change.
    pub set: BTreeMap<KeyBytes, WantedPeer>,
}

/// Compares. `applied` holds the endpoints this agent last set: WireGuard may have moved on from one by itself, which
/// is right (it follows authenticated packets) and is not undone; only a *new* wish is set.
#[must_use]
pub fn changes(
    actual: &BTreeMap<KeyBytes, ActualPeer>,
    applied: &BTreeMap<KeyBytes, SocketAddr>,
    wanted: &BTreeMap<KeyBytes, WantedPeer>,
) -> Changes {
    let mut changes = Changes {
        remove: actual.keys().filter(|key| !wanted.contains_key(*key)).copied().collect(),
        set: BTreeMap::new(),
    };
    for (key, peer) in wanted {
        let Some(now) = actual.get(key) else {
            changes.set.insert(*key, peer.clone());
            continue;
        };
        let move_to = peer.endpoint.filter(|wish| {
            let wished_before = applied.get(key).copied().or(now.endpoint);
            wished_before != Some(*wish)
        });
        let mut allowed = now.allowed.clone();
        allowed.sort();
        if move_to.is_some() || allowed != peer.allowed || now.keepalive != peer.keepalive {
            changes.set.insert(*key, WantedPeer { endpoint: move_to, ..peer.clone() });
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: KeyBytes = [1; 32];
    const B: KeyBytes = [2; 32];

    fn wanted(endpoint: &str) -> WantedPeer {
        WantedPeer {
            endpoint: Some(endpoint.parse().unwrap()),
            also_at: vec![],
            allowed: vec![("fd00::1".parse().unwrap(), 128)],
            keepalive: 25,
        }
    }

    fn actual(endpoint: &str) -> ActualPeer {
        let WantedPeer { endpoint, allowed, keepalive, .. } = wanted(endpoint);
        ActualPeer { endpoint, allowed, keepalive }
    }

    #[test]
    fn adds_what_is_missing_and_removes_what_is_not_wanted() {
        let changes = changes(
            &[(A, actual("[fe80::1%2]:1"))].into(),
            &BTreeMap::new(),
            &[(B, wanted("[fe80::2%2]:1"))].into(),
        );
        assert_eq!(changes.remove, [A]);
        assert_eq!(changes.set, [(B, wanted("[fe80::2%2]:1"))].into());
    }

    #[test]
    fn a_restarted_agent_leaves_a_right_peer_alone() {
        let changes = changes(
            &[(A, actual("10.0.0.1:1"))].into(),
            &BTreeMap::new(),
            &[(A, wanted("10.0.0.1:1"))].into(),
        );
        assert_eq!(changes, Changes::default());
    }

    #[test]
    fn does_not_undo_wireguards_own_roaming_but_follows_a_new_wish() {
        let applied = [(A, "10.0.0.1:1".parse().unwrap())].into();
        let roamed = [(A, actual("10.0.0.9:1"))].into();
        assert_eq!(changes(&roamed, &applied, &[(A, wanted("10.0.0.1:1"))].into()), Changes::default());
        let moved = changes(&roamed, &applied, &[(A, wanted("10.0.0.2:1"))].into());
        assert_eq!(moved.set[&A].endpoint, Some("10.0.0.2:1".parse().unwrap()));
    }

    #[test]
    fn a_changed_allowed_ip_keeps_the_endpoint_as_it_is() {
        let mut wrong = actual("10.0.0.9:1");
        wrong.allowed.push(("fd00::bad".parse().unwrap(), 128));
        let applied = [(A, "10.0.0.1:1".parse().unwrap())].into();
        let changes = changes(&[(A, wrong)].into(), &applied, &[(A, wanted("10.0.0.1:1"))].into());
        assert_eq!(changes.set[&A].endpoint, None);
        assert_eq!(changes.set[&A].allowed, wanted("10.0.0.1:1").allowed);
    }
}
