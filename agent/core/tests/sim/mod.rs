// SPDX-License-Identifier: Apache-2.0
//! A LAN of machines in one process: virtual clock, seeded faults, disks that survive power cuts. The same seed gives the
//! same run. Each world prints its seed; `SIM_SEED=n` replays it.

// Each test binary uses a part of it.
#![allow(dead_code)]

mod machine;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use cluster_agent_core::consts::AGENT_PORT;
use cluster_agent_core::{
    Command, Input, JoinKey, Member, MemberState, Phase, Settings, Status, StreamId, Ticket,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use machine::Machine;

/// What the network does to datagrams.
#[derive(Clone, Copy)]
pub struct Faults {
    pub loss: f64,
    pub duplicate: f64,
    pub delay: Duration,
    pub jitter: Duration,
}

impl Faults {
    pub const NONE: Self =
        Self { loss: 0.0, duplicate: 0.0, delay: Duration::from_millis(1), jitter: Duration::from_millis(1) };
    pub const ROUGH: Self = Self {
        loss: 0.05,
        duplicate: 0.02,
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(50),
    };
}

enum Happening {
    Input(Box<Input>),
    Wrote(Ticket),
}

/// A datagram as somebody on the LAN sees it.
#[derive(Clone)]
pub struct Seen {
    pub from: usize,
    pub to: usize,
    pub source: SocketAddr,
    pub bytes: Vec<u8>,
}

/// The LAN.
pub struct World {
    pub now: Duration,
    pub machines: Vec<Machine>,
    pub faults: Faults,
    /// Every datagram that was delivered, when recording.
    pub capture: Option<Vec<Seen>>,
    /// Machines that cannot reach each other: those in different groups. Empty: all can.
    groups: Vec<BTreeSet<usize>>,
    cut: BTreeSet<usize>,
    events: BTreeMap<(Duration, u64), (usize, u64, Happening)>,
    next_event: u64,
    streams: BTreeMap<(usize, StreamId), (usize, StreamId)>,
    rng: StdRng,
}

/// A join key made from a number.
pub fn join_key(n: u8) -> JoinKey {
    JoinKey::generate(&std::array::from_fn(|i| n.wrapping_mul(31).wrapping_add(i as u8)))
}

/// Settings as a file would give them.
pub fn settings(key: &JoinKey, extra: &str) -> Settings {
    let text = format!("[cluster]\nname = \"lab\"\njoin_key = \"{}\"\n{extra}\n", key.to_text());
    Settings::parse(&text).expect("the file is valid")
}

impl World {
    pub fn new(default_seed: u64) -> Self {
        let seed = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(default_seed);
        println!("SIM_SEED={seed}");
        Self {
            now: Duration::from_secs(5),
            machines: Vec::new(),
            faults: Faults::NONE,
            capture: None,
            groups: Vec::new(),
            cut: BTreeSet::new(),
            events: BTreeMap::new(),
            next_event: 0,
            streams: BTreeMap::new(),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Adds a machine, switched off.
    pub fn add(&mut self, settings: Option<Settings>) -> usize {
        let n = self.machines.len();
        self.machines.push(Machine::new(n, settings));
        n
    }

    /// Adds machines of one cluster and switches them on.
    pub fn boot_cluster(&mut self, count: usize, extra: &str) -> Vec<usize> {
        let all: Vec<_> = (0..count).map(|_| self.add(Some(settings(&join_key(1), extra)))).collect();
        for machine in &all {
            self.power_on(*machine);
        }
        all
    }

    pub fn power_on(&mut self, n: usize) {
        let mut seed = [0; 32];
        self.rng.fill(&mut seed);
        self.machines[n].power_on(seed, self.now);
        self.settle(n);
        let interfaces = Input::Interfaces(self.machines[n].interfaces());
        self.tell(n, interfaces);
    }

    /// Power cut: nothing is said, nothing unwritten survives.
    pub fn power_off(&mut self, n: usize) {
        self.machines[n].power_off();
        let broken: Vec<_> = self
            .streams
            .iter()
            .filter(|((a, _), (b, _))| *a == n || *b == n)
            .map(|(k, v)| (*k, *v))
            .collect();
        for (near, far) in broken {
            self.streams.remove(&near);
            if far.0 != n {
                self.later(
                    far.0,
                    Duration::from_millis(500),
                    Happening::Input(Box::new(Input::StreamClosed { stream: far.1 })),
                );
            }
        }
    }

    /// Cuts or mends one machine's link.
    pub fn link(&mut self, n: usize, on: bool) {
        if on {
            self.cut.remove(&n);
        } else {
            self.cut.insert(n);
        }
    }

    pub fn partition(&mut self, groups: &[&[usize]]) {
        self.groups = groups.iter().map(|group| group.iter().copied().collect()).collect();
    }

    pub fn heal(&mut self) {
        self.groups.clear();
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        !self.cut.contains(&a)
            && !self.cut.contains(&b)
            && (self.groups.is_empty()
                || self.groups.iter().any(|group| group.contains(&a) && group.contains(&b)))
    }

    /// Tells one machine something now.
    pub fn tell(&mut self, n: usize, input: Input) {
        let now = self.machines[n].present(self.now);
        if let Some(node) = &mut self.machines[n].node {
            node.handle(input, now);
            self.settle(n);
        }
    }

    fn later(&mut self, n: usize, after: Duration, happening: Happening) {
        let boot = self.machines[n].boots;
        self.events.insert((self.now + after, self.next_event), (n, boot, happening));
        self.next_event += 1;
    }

    /// Carries out a machine's commands.
    fn settle(&mut self, n: usize) {
        while let Some(command) = self.machines[n].node.as_mut().and_then(|node| node.poll_command()) {
            self.carry_out(n, command);
        }
    }

    fn carry_out(&mut self, n: usize, command: Command) {
        match command {
            Command::SendDatagram { to, bytes, .. } => self.datagram(n, to, bytes),
            Command::Multicast { interface, bytes } => self.everybody(n, interface, true, &bytes),
            Command::Broadcast { interface, bytes } => self.everybody(n, interface, false, &bytes),
            Command::SendToName { .. } => {}
            Command::Connect { stream, to } => self.connect(n, stream, to),
            Command::StreamSend { stream, bytes } => {
                if let Some((far, far_stream)) = self.streams.get(&(n, stream)).copied()
                    && self.reaches(n, far)
                {
                    let data = Input::StreamData { stream: far_stream, bytes };
                    self.later(far, Duration::from_millis(2), Happening::Input(Box::new(data)));
                }
            }
            Command::StreamClose { stream } => {
                if let Some((far, far_stream)) = self.streams.remove(&(n, stream)) {
                    self.streams.remove(&(far, far_stream));
                    let closed = Input::StreamClosed { stream: far_stream };
                    self.later(far, Duration::from_millis(2), Happening::Input(Box::new(closed)));
                }
            }
            Command::Persist { ticket, .. } if self.machines[n].disk_full => {
                let failed = Input::PersistFailed { ticket, error: "no space left on device".into() };
                self.later(n, Duration::from_millis(20), Happening::Input(Box::new(failed)));
            }
            Command::Persist { ticket, item, bytes } => {
                self.machines[n].writing.push((ticket, item, bytes));
                self.later(n, Duration::from_millis(20), Happening::Wrote(ticket));
            }
            other => self.machines[n].note(other),
        }
    }

    fn source(&self, n: usize, v6: bool) -> SocketAddr {
        let ip = self.machines[n].ip(v6);
        match ip {
            IpAddr::V4(_) => SocketAddr::new(ip, AGENT_PORT),
            IpAddr::V6(v6) => SocketAddr::V6(SocketAddrV6::new(v6, AGENT_PORT, 0, machine::INTERFACE)),
        }
    }

    fn find(&self, ip: IpAddr) -> Option<usize> {
        let n = match ip {
            IpAddr::V4(v4) if v4.octets()[..3] == [10, 0, 0] => usize::from(v4.octets()[3]).checked_sub(1)?,
            IpAddr::V6(v6) if v6.segments()[0] == 0xfe80 => usize::from(v6.segments()[7]).checked_sub(1)?,
            _ => return None,
        };
        (n < self.machines.len()).then_some(n)
    }

    fn everybody(&mut self, n: usize, interface: u32, v6: bool, bytes: &[u8]) {
        assert_eq!(interface, machine::INTERFACE);
        for far in 0..self.machines.len() {
            // Broadcasts come back to their sender, as they do on real networks.
            self.deliver(n, far, self.source(n, v6), bytes);
        }
    }

    fn datagram(&mut self, n: usize, to: SocketAddr, bytes: Vec<u8>) {
        assert!(bytes.len() <= 1200, "a datagram of {} bytes", bytes.len());
        if let SocketAddr::V6(v6) = to
            && v6.ip().is_unicast_link_local()
        {
            assert_eq!(v6.scope_id(), machine::INTERFACE, "link-local addresses need their scope");
        }
        if let Some(far) = self.find(to.ip()) {
            self.deliver(n, far, self.source(n, to.is_ipv6()), &bytes);
        }
    }

    fn deliver(&mut self, from: usize, to: usize, source: SocketAddr, bytes: &[u8]) {
        if !self.reaches(from, to) || !self.machines[to].is_on() {
            return;
        }
        if let Some(capture) = &mut self.capture {
            capture.push(Seen { from, to, source, bytes: bytes.to_vec() });
        }
        let copies = 1 + usize::from(self.rng.random_bool(self.faults.duplicate));
        for _ in 0..copies {
            if self.rng.random_bool(self.faults.loss) {
                continue;
            }
            let delay = self.faults.delay + self.faults.jitter.mul_f64(self.rng.random());
            self.inject_after(to, source, bytes.to_vec(), delay);
        }
    }

    fn inject_after(&mut self, to: usize, from: SocketAddr, bytes: Vec<u8>, delay: Duration) {
        let input = Input::Datagram { from, interface: machine::INTERFACE, bytes };
        self.later(to, delay, Happening::Input(Box::new(input)));
    }

    /// A datagram from an attacker.
    pub fn inject(&mut self, to: usize, from: SocketAddr, bytes: Vec<u8>) {
        self.inject_after(to, from, bytes, Duration::from_millis(1));
    }

    fn connect(&mut self, n: usize, stream: StreamId, to: SocketAddr) {
        let far = self.find(to.ip()).filter(|far| self.machines[*far].is_on() && self.reaches(n, *far));
        let Some(far) = far else {
            self.later(
                n,
                Duration::from_millis(900),
                Happening::Input(Box::new(Input::StreamClosed { stream })),
            );
            return;
        };
        self.machines[far].accepted += 1;
        let inbound = StreamId::inbound(self.machines[far].accepted);
        self.streams.insert((n, stream), (far, inbound));
        self.streams.insert((far, inbound), (n, stream));
        let from = self.source(n, to.is_ipv6());
        self.later(
            far,
            Duration::from_millis(1),
            Happening::Input(Box::new(Input::StreamAccepted { stream: inbound, from })),
        );
        self.later(
            n,
            Duration::from_millis(1),
            Happening::Input(Box::new(Input::StreamConnected { stream })),
        );
    }

    /// Runs for a while.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.run_until(end, |_| false);
    }

    /// Runs until something holds; panics with the views of all machines when it does not in time.
    pub fn wait(&mut self, what: &str, limit: Duration, holds: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        if !self.run_until(start + limit, &holds) {
            for machine in &self.machines {
                println!("{}", machine.describe(self.now));
            }
            panic!("not within {limit:?}: {what}");
        }
        self.now - start
    }

    fn run_until(&mut self, end: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        loop {
            if holds(self) {
                return true;
            }
            let timers =
                self.machines.iter().enumerate().filter_map(|(n, machine)| Some((machine.timeout()?, n)));
            let timer = timers.min();
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let next = match (timer, event) {
                (Some((timer, _)), Some(event)) => timer.min(event),
                (Some((timer, _)), None) => timer,
                (None, Some(event)) => event,
                (None, None) => end,
            };
            if next >= end {
                self.now = end;
                return holds(self);
            }
            self.now = self.now.max(next);
            match (timer, event) {
                (_, Some(at)) if at <= next => self.happen(),
                (Some((_, n)), _) => self.tell(n, Input::Timeout),
                _ => {}
            }
        }
    }

    fn happen(&mut self) {
        let Some((_, (n, boot, happening))) = self.events.pop_first() else { return };
        if self.machines[n].boots != boot || !self.machines[n].is_on() {
            return;
        }
        match happening {
            Happening::Input(input) => self.tell(n, *input),
            Happening::Wrote(ticket) => {
                self.machines[n].wrote(ticket);
                self.tell(n, Input::Persisted(ticket));
            }
        }
    }

    pub fn status(&self, n: usize) -> Status {
        self.machines[n].status(self.now)
    }

    pub fn members(&self, n: usize) -> Vec<Member> {
        self.machines[n].members(self.now)
    }

    /// State of one machine's node as another sees it.
    pub fn state(&self, viewer: usize, of: usize) -> Option<MemberState> {
        let id = &self.machines[of].last_id;
        self.members(viewer)
            .into_iter()
            .find(|member| Some(&member.id) == id.as_ref())
            .map(|member| member.state)
    }

    /// Whether these machines, and nobody else, are one cluster in which all are up and in each other's mesh.
    pub fn is_one_cluster(&self, machines: &[usize]) -> bool {
        let first = self.status(machines[0]).cluster_id;
        first.is_some()
            && machines.iter().all(|n| {
                let members = self.members(*n);
                self.status(*n).cluster_id == first
                    && self.status(*n).phase == Phase::Member
                    && members.len() == machines.len()
                    && members.iter().all(|member| member.state == MemberState::Up)
                    && self.machines[*n].mesh_peers() == machines.len() - 1
            })
    }
}

/// Address of machine `n` on the LAN.
pub fn v4(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n as u8 + 1)
}

/// Link-local address of machine `n`.
pub fn v6(n: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n as u16 + 1)
}
