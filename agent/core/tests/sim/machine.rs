// SPDX-License-Identifier: Apache-2.0
//! One machine: a disk, a power switch, a network card, and a node while the power is on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use cluster_agent_core::{
    Boot, Command, HostCommand, Interface, LogLevel, Member, MemberState, MeshPeer, MeshPlan, Node, NodeId,
    Notice, Now, Provisioning, Refusal, Saved, Settings, StateItem, Status, Ticket,
};

use super::network::{v4, v6};
use super::trace::{Step, Trace};

/// Index of every machine's first card; not 1, so that a forgotten scope shows.
pub const INTERFACE: u32 = 7;

/// One network card.
#[derive(Clone, Copy)]
pub struct NetworkCard {
    /// The switch it hangs on.
    pub lan: u8,
    pub carrier: bool,
}

/// What a machine said and heard, counted in bytes of payload.
#[derive(Clone, Copy, Default)]
pub struct Traffic {
    pub sent_datagrams: u64,
    pub sent_bytes: u64,
    pub received_datagrams: u64,
    pub received_bytes: u64,
    pub stream_bytes: u64,
    /// Streams that it opened.
    pub connects: u64,
    /// Sessions that it opened, and those that it answered.
    pub opens: u64,
    pub accepts: u64,
}

impl Traffic {
    pub fn sent(&mut self, bytes: &[u8]) {
        self.sent_datagrams += 1;
        self.sent_bytes += bytes.len() as u64;
        match bytes.get(1) {
            Some(2) => self.opens += 1,
            Some(3) => self.accepts += 1,
            _ => {}
        }
    }

    pub fn received(&mut self, bytes: usize) {
        self.received_datagrams += 1;
        self.received_bytes += bytes as u64;
    }

    pub fn streamed(&mut self, bytes: usize) {
        self.stream_bytes += bytes as u64;
    }
}

/// One machine.
pub struct Machine {
    number: usize,
    pub settings: Option<Settings>,
    pub node: Option<Node>,
    pub disk: BTreeMap<StateItem, Vec<u8>>,
    pub writing: Vec<(Ticket, StateItem, Vec<u8>)>,
    pub boots: u64,
    pub accepted: u64,
    pub disk_full: bool,
    /// One on the LAN, unless a test says otherwise.
    pub cards: Vec<NetworkCard>,
    /// Without DHCP there is only a link-local address.
    pub has_v4: bool,
    /// What the machine's wall clock shows at virtual time zero.
    pub wall: Duration,
    pub mesh: Option<MeshPlan>,
    /// How requests were answered, by their numbers.
    pub answers: BTreeMap<u64, Result<(), Refusal>>,
    pub floor: Option<Duration>,
    /// Meshes that were asked for.
    pub plans: u64,
    /// Those in which only the card for some address is another: tunnels are left alone.
    pub routes: u64,
    /// Log lines of at least `log_level`, as they came.
    pub log: Vec<Command>,
    pub log_level: LogLevel,
    once_up: BTreeSet<NodeId>,
    /// When this machine saw whom go from up to down.
    pub downs: Vec<(Duration, String)>,
    pub traffic: Traffic,
    pub trace: Trace,
    pub last_id: Option<String>,
}

impl Machine {
    pub fn new(number: usize, settings: Option<Settings>) -> Self {
        Self {
            number,
            settings,
            node: None,
            disk: BTreeMap::new(),
            writing: Vec::new(),
            boots: 0,
            accepted: 0,
            disk_full: false,
            cards: vec![NetworkCard { lan: 0, carrier: true }],
            has_v4: true,
            wall: Duration::from_secs(1_800_000_000),
            mesh: None,
            answers: BTreeMap::new(),
            floor: None,
            plans: 0,
            routes: 0,
            log: Vec::new(),
            log_level: LogLevel::Debug,
            once_up: BTreeSet::new(),
            downs: Vec::new(),
            traffic: Traffic::default(),
            trace: Trace::default(),
            last_id: None,
        }
    }

    pub fn power_on(&mut self, seed: [u8; 32], now: Duration) {
        assert!(self.node.is_none(), "machine {} is on", self.number);
        self.trace.note(now, Step::Did("POWER ON".into()));
        let saved = Saved {
            identity: self.disk.get(&StateItem::Identity).cloned(),
            generation: self.disk.get(&StateItem::Generation).cloned(),
            membership: self.disk.get(&StateItem::Membership).cloned(),
            records: self.disk.get(&StateItem::Records).cloned(),
            clock: self.disk.get(&StateItem::Clock).cloned(),
        };
        let boot = Boot {
            seed,
            version: "1.2.3".into(),
            build_time: Duration::from_secs(1_700_000_000),
            development: Vec::new(),
        };
        let provisioning = Provisioning { settings: self.settings.clone(), problems: Vec::new() };
        let node = Node::new(boot, provisioning, saved, self.present(now));
        self.last_id = Some(node.status(self.present(now)).id);
        self.node = Some(node);
        self.boots += 1;
        self.mesh = None;
        self.floor = None;
        self.once_up.clear();
    }

    pub fn power_off(&mut self, now: Duration) {
        self.trace.note(now, Step::Did("POWER CUT".into()));
        self.node = None;
        self.writing.clear();
        self.boots += 1;
        self.mesh = None;
    }

    pub fn is_on(&self) -> bool {
        self.node.is_some()
    }

    /// A write reached the disk.
    pub fn wrote(&mut self, ticket: Ticket) {
        if let Some(at) = self.writing.iter().position(|(writing, _, _)| *writing == ticket) {
            let (_, item, bytes) = self.writing.remove(at);
            self.disk.insert(item, bytes);
        }
    }

    pub fn present(&self, now: Duration) -> Now {
        Now { boottime: now, wall: self.wall + now }
    }

    pub fn ip(&self, card: usize, want_v6: bool) -> IpAddr {
        if want_v6 { IpAddr::V6(v6(self.number, card)) } else { IpAddr::V4(v4(self.number, card)) }
    }

    pub fn interfaces(&self) -> Vec<Interface> {
        let loopback = Interface {
            index: 1,
            name: "lo".into(),
            addresses: vec![("127.0.0.1".parse().expect("an address"), 8)],
            up: true,
            physical: false,
        };
        let card = |(n, card): (usize, &NetworkCard)| Interface {
            index: INTERFACE + n as u32,
            name: format!("eth{n}"),
            addresses: [(self.ip(n, true), 64), (self.ip(n, false), 16)]
                .into_iter()
                .filter(|(ip, _)| card.carrier && (ip.is_ipv6() || self.has_v4))
                .collect(),
            up: card.carrier,
            physical: true,
        };
        std::iter::once(loopback).chain(self.cards.iter().enumerate().map(card)).collect()
    }

    pub fn timeout(&self) -> Option<Duration> {
        self.node.as_ref()?.poll_timeout()
    }

    pub fn note(&mut self, now: Duration, command: Command) {
        match command {
            Command::Answer { id, result } => {
                assert!(self.answers.insert(id.0, result).is_none(), "request {} was answered twice", id.0);
            }
            Command::Host(HostCommand::MeshApply(plan)) => {
                assert!(self.floor.is_some(), "the clock comes before the mesh");
                let same = self.mesh.as_ref().is_some_and(|before| is_same_for_wireguard(before, &plan));
                *(if same { &mut self.routes } else { &mut self.plans }) += 1;
                self.mesh = Some(plan);
            }
            Command::Host(HostCommand::MeshRemove) => self.mesh = None,
            Command::Host(HostCommand::SetClockFloor { wall } | HostCommand::SetClock { wall }) => {
                self.floor = Some(wall)
            }
            Command::Notify(Notice::Member { id, state: MemberState::Up, .. }) => {
                self.once_up.insert(id);
            }
            // Somebody of whom nothing was heard yet is shown as down too.
            Command::Notify(Notice::Member { id, state: MemberState::Down, .. })
                if self.once_up.remove(&id) =>
            {
                self.downs.push((now, id.short()));
            }
            Command::Log { level, .. } if level <= self.log_level => self.log.push(command),
            _ => {}
        }
    }

    pub fn mesh_peers(&self) -> usize {
        self.mesh.as_ref().map_or(0, |plan| plan.peers.len())
    }

    /// Of those, how many have a keepalive.
    pub fn mesh_peers_kept_alive(&self) -> usize {
        self.mesh
            .as_ref()
            .map_or(0, |plan| plan.peers.iter().filter(|peer| !peer.keepalive.is_zero()).count())
    }

    /// Of those, how many it knows where to send to.
    pub fn mesh_ways(&self) -> usize {
        self.mesh.as_ref().map_or(0, |plan| plan.peers.iter().filter(|peer| peer.endpoint.is_some()).count())
    }

    pub fn status(&self, now: Duration) -> Status {
        self.node.as_ref().expect("the machine is on").status(self.present(now))
    }

    pub fn members(&self, now: Duration) -> Vec<Member> {
        self.node.as_ref().map(|node| node.members(self.present(now))).unwrap_or_default()
    }

    /// Members that this machine sees up.
    pub fn ups(&self, now: Duration) -> u32 {
        let Some(node) = &self.node else { return 0 };
        node.status(self.present(now)).members.get(MemberState::Up.as_str()).copied().unwrap_or(0)
    }

    /// Log lines of at least a level.
    pub fn logged(&self, least: LogLevel) -> Vec<String> {
        let lines = self.log.iter().filter_map(|command| match command {
            Command::Log { level, message, fields } if *level <= least => {
                Some(format!("{message} {fields:?}"))
            }
            _ => None,
        });
        lines.collect()
    }

    pub fn describe(&self, now: Duration) -> String {
        let Some(node) = &self.node else { return format!("machine {}: off", self.number) };
        let status = node.status(self.present(now));
        let members: Vec<_> = node
            .members(self.present(now))
            .iter()
            .filter(|member| status.members.len() > 1 && member.state != MemberState::Up)
            .take(20)
            .map(|member| format!("{} {}", &member.id[..8], member.state.as_str()))
            .collect();
        format!(
            "machine {} {} {} cluster {:?}: {}; mesh {}; members {:?} not up: {members:?}; rejects {:?}; problems {:?}",
            self.number,
            status.short_id,
            status.phase.as_str(),
            status.cluster_id.map(|id| id[..8].to_owned()),
            status.detail,
            self.mesh_peers(),
            status.members,
            status.rejects,
            status.problems,
        )
    }
}

/// Whether two meshes differ in nothing but `also_at`.
fn is_same_for_wireguard(one: &MeshPlan, other: &MeshPlan) -> bool {
    let device = |plan: &MeshPlan| (plan.private_key, plan.listen_port, plan.address);
    let tunnel = |(one, other): (&MeshPeer, &MeshPeer)| {
        // All fields by name, so that a new one is thought of here.
        let MeshPeer { id, public_key, endpoint, also_at: _, allowed_ips, keepalive } = one;
        *id == other.id
            && *public_key == other.public_key
            && *endpoint == other.endpoint
            && *allowed_ips == other.allowed_ips
            && *keepalive == other.keepalive
    };
    device(one) == device(other)
        && one.peers.len() == other.peers.len()
        && one.peers.iter().zip(&other.peers).all(tunnel)
}
