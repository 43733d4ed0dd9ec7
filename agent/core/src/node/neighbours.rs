// SPDX-License-Identifier: Apache-2.0
//! Datagrams that come in, and what beacons lead to: introductions, sessions, founding.

use rand::Rng;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::dialer::enough_open;
use super::discovery::{Discovery, Reaction};
use super::parts::Node;
use super::place::At;
use super::streams::Purpose;
use crate::beacon::{Beacon, DATAGRAM_BEACON};
use crate::command::LogLevel;
use crate::consts::neighbours::*;
use crate::consts::{MAX_DATAGRAM, MAX_WIDE_DATAGRAM, WIRE_VERSION};
use crate::id::ClusterId;
use crate::record::is_endpoint;
use crate::roster::{Genesis, Roster};
use crate::session::{DATAGRAM_TRANSPORT, Path};
use crate::signed::Verified;
use crate::stream::Kind;
use crate::wire::{needs_interface, with_scope};

impl Node {
    /// A datagram arrived.
    pub(super) fn datagram(&mut self, from: SocketAddr, interface: u32, bytes: &[u8]) {
        let from = with_scope(unmapped(from), interface);
        let path = Path { address: from, interface: if needs_interface(&from) { interface } else { 0 } };
        if self.place.is_left() {
            return;
        }
        let limit = match bytes {
            [_, DATAGRAM_TRANSPORT, ..] => MAX_WIDE_DATAGRAM,
            _ => MAX_DATAGRAM,
        };
        match bytes {
            _ if bytes.len() > limit => self.ctx.rejects.count("datagram too large"),
            _ if !is_endpoint(&from) => self.ctx.rejects.count("datagram from an impossible address"),
            [WIRE_VERSION, DATAGRAM_BEACON, ..] => self.heard_beacon(path, bytes),
            [WIRE_VERSION, kind, ..] => {
                let kind = *kind;
                self.with_sessions(|sessions, context| sessions.handle(kind, path, bytes, context));
            }
            _ => self.ctx.rejects.count("datagram of another version"),
        }
    }

    fn heard_beacon(&mut self, path: Path, bytes: &[u8]) {
        let opened = self.with_discovery(|discovery, around, ctx| discovery.open(bytes, around, ctx));
        let Some(beacon) = opened else { return };
        if beacon.node != self.me && beacon.to == Some(self.instance) {
            self.streams.expect(path.address.ip());
        }
        match self.with_discovery(|discovery, around, ctx| discovery.heard(&beacon, path, around, ctx)) {
            Reaction::Nothing => {}
            Reaction::Introduce(purpose) => {
                self.connect(Kind::Stranger, purpose, beacon.node, path.address);
            }
            Reaction::Fellow => self.heard_fellow(&beacon, path),
        }
    }

    /// A member of our cluster is there: make sure of a session with it.
    fn heard_fellow(&mut self, beacon: &Beacon, path: Path) {
        let now = self.ctx.boottime();
        let Some(cluster) = self.place.cluster_mut() else { return };
        // One more way to it, perhaps: beacons come on every card that both sides have.
        cluster.sessions.suggest_last(beacon.node, path);
        let heard = cluster.sessions.last_heard(&beacon.node);
        let greeting = cluster.sessions.greeting(&beacon.node);
        let fresh = heard.is_some_and(|heard| now.saturating_sub(heard) < FRESH)
            && greeting.is_some_and(|greeting| greeting.instance == beacon.instance);
        // In a large cluster a few look after it; gossip tells the others.
        if fresh || !self.with_discovery(|discovery, around, ctx| discovery.is_one_of_few(around, ctx)) {
            return;
        }
        let enough = enough_open(self.ctx.load);
        let Some(cluster) = self.place.cluster_mut() else { return };
        // Gossip vouches for it, and has enough sessions to do so. One opens when there is something to say.
        if !cluster.sessions.is_open(&beacon.node)
            && cluster.membership.is_up(&beacon.node)
            && cluster.sessions.open_peers().len() >= enough
        {
            return;
        }
        if cluster.membership.roster().record(&beacon.node).is_none() {
            if self.with_discovery(|discovery, around, ctx| {
                discovery.introduces_fellow(beacon.node, around, ctx)
            }) {
                self.connect(Kind::Stranger, Purpose::Introduce, beacon.node, path.address);
            }
            return;
        }
        cluster.sessions.suggest(beacon.node, path);
        cluster.dialer.dial_anew(&beacon.node);
        if beacon.solicits {
            self.with_discovery(|discovery, around, ctx| discovery.answer(beacon, path, around, ctx));
        }
        self.with_sessions(|sessions, context| {
            if !sessions.doubt(beacon.node, path, context) {
                sessions.open(beacon.node, context);
            }
        });
    }

    /// Sends beacons when it is time.
    pub(super) fn beacon_tick(&mut self) {
        if !self.place.is_left() {
            self.with_discovery(Discovery::tick);
        }
    }

    /// Asks those to let us in that answered us.
    pub(super) fn seek_tick(&mut self) {
        if self.place.is_left() {
            return self.discovery.forget_senders();
        }
        while let Some(sender) = self.with_discovery(Discovery::next_to_seek) {
            self.connect(Kind::Stranger, Purpose::Seek, sender.node, sender.path.address);
        }
    }

    /// Founds if it is our turn.
    pub(super) fn founding_tick(&mut self) {
        let turn = self.with_discovery(|discovery, around, ctx| discovery.founds(around, ctx));
        if turn && matches!(self.place.at(), At::Outside { may_found: true }) {
            self.found();
        }
    }

    fn found(&mut self) {
        let (Some(join), Some(settings)) = (self.place.join(), &self.provisioning.settings) else { return };
        if join.key.cluster().is_some() {
            return;
        }
        let mut cluster = [0; 16];
        self.ctx.rng.fill_bytes(&mut cluster);
        let genesis = Genesis {
            cluster: ClusterId(cluster),
            incarnation: 1,
            name: settings.cluster_name.clone(),
            join_key: join.key.fingerprint(),
            founder: self.keys.public(),
            created: self.ctx.now.wall_secs(),
            admin_keys: Vec::new(),
        };
        let key = join.key.clone();
        let genesis = Verified::sign(genesis, &self.keys);
        self.ctx.log(
            LogLevel::Info,
            "founded a cluster",
            vec![("cluster", genesis.cluster.to_string()), ("name", genesis.name.clone())],
        );
        self.enter(Roster::new(genesis), key, BTreeMap::new());
        self.save_place();
        self.tell_own_record();
    }
}

fn unmapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            None => address,
        },
        SocketAddr::V4(_) => address,
    }
}
