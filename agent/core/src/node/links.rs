// SPDX-License-Identifier: Apache-2.0
//! This node's network interfaces, and the addresses they give it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::consts::AGENT_PORT;
use crate::input::Interface;
use crate::record::{MAX_ENDPOINTS, is_endpoint};
use crate::session::Path;
use crate::wire::{needs_interface, with_scope};

/// All interfaces as they are now.
#[derive(Default)]
pub(super) struct Links {
    all: Vec<Interface>,
}

/// A physical interface: its index, its first IPv4 and its first link-local address.
type Card = (u32, [Option<IpAddr>; 2]);

impl Links {
    /// Takes them as they are now. Gives whether anything changed, and whether that matters to others: whoever is on the LAN
    /// can add and remove other addresses by router advertisements, as often as he likes.
    pub(super) fn replace(&mut self, interfaces: Vec<Interface>) -> Option<bool> {
        if self.all == interfaces {
            return None;
        }
        let before = self.cards();
        self.all = interfaces;
        Some(self.cards() != before)
    }

    /// Those that carry agent traffic.
    pub(super) fn physical(&self) -> impl Iterator<Item = &Interface> {
        self.all
            .iter()
            .filter(|interface| interface.up && interface.physical && !interface.addresses.is_empty())
    }

    fn cards(&self) -> Vec<Card> {
        let link_local = |ip: &IpAddr| needs_interface(&SocketAddr::new(*ip, AGENT_PORT));
        let card = |interface: &Interface| {
            let all = || interface.addresses.iter().map(|(ip, _)| *ip);
            (interface.index, [all().find(IpAddr::is_ipv4), all().find(link_local)])
        };
        self.physical().map(card).collect()
    }

    /// Where this node can be reached, routable addresses first. Of too many, the first ones of each card stay, and those
    /// that are `known` already.
    pub(super) fn endpoints(&self, known: &[SocketAddr]) -> Vec<SocketAddr> {
        let all = self.physical().flat_map(|interface| interface.addresses.iter().map(|(ip, _)| *ip));
        let all: BTreeSet<IpAddr> = all.collect();
        let first: BTreeSet<IpAddr> =
            self.cards().into_iter().flat_map(|(_, first)| first).flatten().collect();
        let sockets = all.into_iter().map(|ip| SocketAddr::new(ip, AGENT_PORT));
        let mut sockets: Vec<_> = sockets.filter(is_endpoint).collect();
        let order = |at: &SocketAddr| (needs_interface(at), at.ip());
        sockets.sort_by_key(|at| (!first.contains(&at.ip()), !known.contains(at), order(at)));
        sockets.truncate(MAX_ENDPOINTS);
        sockets.sort_by_key(order);
        sockets
    }

    /// Paths to an address: a link-local one may be on any link.
    pub(super) fn paths_to(&self, address: SocketAddr) -> Vec<Path> {
        if !needs_interface(&address) {
            return vec![Path { address, interface: 0 }];
        }
        let scoped = |index| Path { address: with_scope(address, index), interface: index };
        self.physical().map(|interface| scoped(interface.index)).collect()
    }

    /// Whether a path leads to this node itself.
    pub(super) fn lead_here(&self, path: Path) -> bool {
        self.all.iter().any(|interface| {
            let there = path.interface == 0 || path.interface == interface.index;
            there && interface.addresses.iter().any(|(address, _)| *address == path.address.ip())
        })
    }
}
