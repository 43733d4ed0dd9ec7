// SPDX-License-Identifier: Apache-2.0
//! One machine: a disk, a power switch, a network card, and a node while the power is on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use cluster_agent_core::{
    Boot, Command, Interface, LogLevel, Member, MeshPlan, Node, Now, Provisioning, Saved, Settings,
    StateItem, Status, Ticket,
};

use super::{v4, v6};

/// Index of every machine's only card; not 1, so that a forgotten scope shows.
pub const INTERFACE: u32 = 7;

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
    /// Without DHCP there is only a link-local address.
    pub has_v4: bool,
    /// What the machine's wall clock shows at virtual time zero.
    pub wall: Duration,
    pub mesh: Option<MeshPlan>,
    pub floor: Option<Duration>,
    /// Commands that the simulation does not carry out, as they came.
    pub log: Vec<Command>,
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
            has_v4: true,
            wall: Duration::from_secs(1_800_000_000),
            mesh: None,
            floor: None,
            log: Vec::new(),
            last_id: None,
        }
    }

    pub fn power_on(&mut self, seed: [u8; 32], now: Duration) {
        assert!(self.node.is_none(), "machine {} is on", self.number);
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
    }

    pub fn power_off(&mut self) {
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

    pub fn ip(&self, want_v6: bool) -> IpAddr {
        if want_v6 { IpAddr::V6(v6(self.number)) } else { IpAddr::V4(v4(self.number)) }
    }

    pub fn interfaces(&self) -> Vec<Interface> {
        let mut addresses = vec![(self.ip(true), 64)];
        if self.has_v4 {
            addresses.push((self.ip(false), 24));
        }
        vec![
            Interface {
                index: 1,
                name: "lo".into(),
                addresses: vec![("127.0.0.1".parse().expect("an address"), 8)],
                up: true,
                physical: false,
            },
            Interface { index: INTERFACE, name: "eth0".into(), addresses, up: true, physical: true },
        ]
    }

    pub fn timeout(&self) -> Option<Duration> {
        self.node.as_ref()?.poll_timeout()
    }

    pub fn note(&mut self, command: Command) {
        match &command {
            Command::MeshApply(plan) => {
                assert!(self.floor.is_some(), "the clock comes before the mesh");
                self.mesh = Some(plan.clone());
            }
            Command::MeshRemove => self.mesh = None,
            Command::SetClockFloor { wall } => self.floor = Some(*wall),
            _ => {}
        }
        self.log.push(command);
    }

    pub fn mesh_peers(&self) -> usize {
        self.mesh.as_ref().map_or(0, |plan| plan.peers.len())
    }

    pub fn status(&self, now: Duration) -> Status {
        self.node.as_ref().expect("the machine is on").status(self.present(now))
    }

    pub fn members(&self, now: Duration) -> Vec<Member> {
        self.node.as_ref().map(|node| node.members(self.present(now))).unwrap_or_default()
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
            .map(|member| format!("{} {}", &member.id[..8], member.state.as_str()))
            .collect();
        format!(
            "machine {} {} {} cluster {:?}: {}; mesh {}; members {members:?}; rejects {:?}; problems {:?}",
            self.number,
            status.short_id,
            status.phase.as_str(),
            status.cluster_id.map(|id| id[..8].to_owned()),
            status.detail,
            self.mesh_peers(),
            status.rejects,
            status.problems,
        )
    }
}
