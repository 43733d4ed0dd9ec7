// SPDX-License-Identifier: Apache-2.0
//! A LAN of machines in one process: virtual clock, seeded faults, disks that survive power cuts. The same seed gives the
//! same run. Each world prints its seed; when a test fails, the world prints what its machines did last and the command
//! that replays it.

mod guard;
mod host;
mod machine;
mod network;
mod queue;
mod trace;
mod weather;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use cluster_agent_core::{Command, Input, JoinKey, LogLevel, Member, MemberState, Phase, Settings, Status};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use guard::Guard;
pub use host::Host;
pub use machine::{INTERFACE, Machine, NetworkCard};
use network::{Cuts, Streams};
pub use network::{Faults, Seen};
use queue::{Event, Happening, Next, Queue};

/// A condition that is waited for is looked at this often (virtual time).
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// More machines than this are not all printed when a test fails.
const MAX_SHOWN: usize = 8;

/// The LAN.
pub struct World {
    pub now: Duration,
    pub machines: Vec<Machine>,
    pub faults: Faults,
    /// Every datagram that was delivered, when recording.
    pub capture: Option<Vec<Seen>>,
    /// All that was sent on streams, piece by piece, when recording.
    pub stream_capture: Option<Vec<Vec<u8>>>,
    /// Inputs that machines handled, for figures.
    pub handled: u64,
    /// Addresses where somebody takes connections and says nothing.
    pub silent: BTreeSet<IpAddr>,
    /// What all machines run on, if they share it.
    pub host: Option<Host>,
    /// Hash of all that the machines command, when it is wanted.
    pub guard: Option<Guard>,
    seed: u64,
    cuts: Cuts,
    queue: Queue,
    streams: Streams,
    rng: StdRng,
    /// For which of the machines asked about something did not hold the last time.
    laggard: Cell<usize>,
}

/// A join key made from a number.
pub fn join_key(n: u8) -> JoinKey {
    JoinKey::generate(&join_key_bytes(n))
}

/// The bytes that it is made of: five of its id, then the secret.
pub fn join_key_bytes(n: u8) -> [u8; 37] {
    std::array::from_fn(|i| n.wrapping_mul(31).wrapping_add(i as u8))
}

/// Settings as a file would give them.
pub fn settings(key: &JoinKey, extra: &str) -> Settings {
    let text = format!("[cluster]\nname = \"lab\"\njoin_key = \"{}\"\n{extra}\n", key.to_text());
    Settings::parse(&text).expect("the file is valid")
}

/// The seed that a person asks for.
fn asked_seed() -> Option<u64> {
    std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok())
}

/// Seeds of a scenario that runs several times; only the one asked for in a replay.
pub fn seeds(default: std::ops::Range<u64>) -> Vec<u64> {
    asked_seed().map_or_else(|| default.collect(), |seed| vec![seed])
}

impl World {
    pub fn new(default_seed: u64) -> Self {
        let seed = asked_seed().unwrap_or(default_seed);
        println!("SIM_SEED={seed}");
        Self {
            now: Duration::from_secs(5),
            machines: Vec::new(),
            faults: Faults::NONE,
            capture: None,
            stream_capture: None,
            handled: 0,
            silent: BTreeSet::new(),
            host: None,
            guard: None,
            seed,
            cuts: Cuts::default(),
            queue: Queue::default(),
            streams: Streams::new(),
            rng: StdRng::seed_from_u64(seed),
            laggard: Cell::new(0),
        }
    }

    /// Adds a machine, switched off.
    pub fn add(&mut self, settings: Option<Settings>) -> usize {
        let n = self.machines.len();
        self.machines.push(Machine::new(n, settings));
        n
    }

    /// Adds machines of one cluster, switched off.
    pub fn add_cluster(&mut self, count: usize, extra: &str) -> Vec<usize> {
        let settings = settings(&join_key(1), extra);
        (0..count).map(|_| self.add(Some(settings.clone()))).collect()
    }

    /// Adds machines of one cluster and switches them on.
    pub fn boot_cluster(&mut self, count: usize, extra: &str) -> Vec<usize> {
        let all = self.add_cluster(count, extra);
        for machine in &all {
            self.power_on(*machine);
        }
        all
    }

    pub fn power_on(&mut self, n: usize) {
        let mut seed = [0; 32];
        self.rng.fill(&mut seed);
        if let Some(host) = &mut self.host {
            host.compute(self.now, host::START);
        }
        self.machines[n].power_on(seed, self.now);
        self.settle(n);
        let interfaces = Input::Interfaces(self.machines[n].interfaces());
        self.tell(n, interfaces);
    }

    /// Power cut: nothing is said, nothing unwritten survives.
    pub fn power_off(&mut self, n: usize) {
        self.machines[n].power_off(self.now);
        self.queue.timer(n, None);
        self.break_streams(n);
    }

    /// Tells one machine something now.
    pub fn tell(&mut self, n: usize, input: Input) {
        let now = self.machines[n].present(self.now);
        let machine = &mut self.machines[n];
        if let Some(node) = &mut machine.node {
            self.handled += 1;
            machine.trace.input(self.now, &input);
            if let Some(host) = &mut self.host {
                host.compute(self.now, host::of_input(&input));
            }
            node.handle(input, now);
            self.settle(n);
        }
    }

    fn later(&mut self, n: usize, after: Duration, happening: Happening) {
        self.queue.push(self.now + after, n, self.machines[n].boots, happening);
    }

    /// Carries out a machine's commands.
    fn settle(&mut self, n: usize) {
        while let Some(command) = self.machines[n].node.as_mut().and_then(|node| node.poll_command()) {
            self.machines[n].trace.command(self.now, &command);
            if let Some(guard) = &mut self.guard {
                guard.command(self.now, n, &command);
            }
            if let Some(host) = &mut self.host {
                let peers = match &command {
                    Command::MeshApply(plan) => plan.peers.len().abs_diff(self.machines[n].mesh_peers()),
                    _ => 0,
                };
                host.compute(self.now, host::of_command(&command, peers, self.machines.len()));
            }
            self.carry_out(n, command);
        }
        self.queue.timer(n, self.machines[n].timeout());
    }

    fn carry_out(&mut self, n: usize, command: Command) {
        match command {
            Command::SendDatagram { to, bytes, .. } => self.datagram(n, to, bytes),
            Command::Multicast { interface, bytes } => self.everybody(n, interface, true, bytes),
            Command::Broadcast { interface, bytes } => self.everybody(n, interface, false, bytes),
            Command::SendToName { .. } => {}
            Command::Connect { stream, to } => self.connect(n, stream, to),
            Command::StreamSend { stream, bytes } => self.stream_send(n, stream, bytes),
            Command::StreamClose { stream } => self.stream_close(n, stream),
            Command::Persist { ticket, .. } if self.machines[n].disk_full => {
                let failed = Input::PersistFailed { ticket, error: "no space left on device".into() };
                self.later(n, Duration::from_millis(20), Happening::Input(Box::new(failed)));
            }
            Command::Persist { ticket, item, bytes } => {
                self.machines[n].writing.push((ticket, item, bytes));
                self.later(n, Duration::from_millis(20), Happening::Wrote(ticket));
            }
            other => self.machines[n].note(self.now, other),
        }
    }

    /// Runs for a while.
    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.run_until(end, |_| false);
    }

    /// Runs until something holds; panics when it does not in time.
    pub fn wait(&mut self, what: &str, limit: Duration, holds: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        if !self.run_until(start + limit, &holds) {
            panic!("not within {limit:?}: {what}");
        }
        self.now - start
    }

    fn run_until(&mut self, end: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        let mut look = self.now;
        loop {
            if self.now >= look {
                if holds(self) {
                    return true;
                }
                look = self.now + LOOK_EVERY;
            }
            let free = self.host.as_ref().map_or(Duration::ZERO, Host::free);
            let Some(next) = self.queue.peek().map(|next| next.max(free)).filter(|next| *next < end) else {
                self.now = end;
                return holds(self);
            };
            self.now = self.now.max(next);
            match self.queue.pop() {
                Some(Next::Event(event)) => self.happen(event),
                Some(Next::Timer(n)) => self.tell(n, Input::Timeout),
                None => {}
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let n = event.machine;
        if self.machines[n].boots != event.boot || !self.machines[n].is_on() {
            return;
        }
        match event.happening {
            Happening::Input(input) => self.tell(n, *input),
            Happening::Datagram(from, interface, bytes) => {
                self.machines[n].traffic.received(bytes.len());
                let bytes = bytes.to_vec();
                self.tell(n, Input::Datagram { from, interface, bytes });
            }
            Happening::Wrote(ticket) => {
                self.machines[n].wrote(ticket);
                self.tell(n, Input::Persisted(ticket));
            }
        }
    }

    /// Streams that are open at this moment.
    pub fn open_streams(&self) -> usize {
        self.streams.len() / 2
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
        first.is_some() && self.all(machines, |n| self.knows_all(n, machines.len(), first.as_ref()))
    }

    /// Whether something holds for all of these machines. The one for which it did not hold the last time is asked first:
    /// while a thousand are waited for, that is most often the whole answer.
    pub fn all(&self, machines: &[usize], holds: impl Fn(usize) -> bool) -> bool {
        let from = self.laggard.get().min(machines.len());
        let (before, after) = machines.split_at(from);
        let laggard = after.iter().chain(before).position(|n| !holds(*n));
        if let Some(at) = laggard {
            self.laggard.set((from + at) % machines.len());
        }
        laggard.is_none()
    }

    /// Whether a machine is a member of this cluster, sees exactly so many members, all of them up, and has a mesh with
    /// all others.
    pub fn knows_all(&self, n: usize, count: usize, cluster: Option<&String>) -> bool {
        let status = self.status(n);
        status.cluster_id.as_ref() == cluster
            && status.phase == Phase::Member
            && status.members.len() == 1
            && status.members.get(MemberState::Up.as_str()) == Some(&(count as u32))
            && self.machines[n].mesh_peers() == count - 1
    }

    /// Prints what a person needs to understand and replay a failure.
    fn explain(&self) {
        let mut shown: Vec<&Machine> = self.machines.iter().filter(|machine| machine.is_on()).collect();
        // Of many, those that see the least of the others.
        shown.sort_by_key(|machine| machine.ups(self.now));
        shown.truncate(MAX_SHOWN);
        for machine in shown {
            println!("\n{}", machine.describe(self.now));
            for line in machine.trace.lines(|at| {
                self.find(at.ip()).map_or_else(|| at.to_string(), |(n, _)| format!("machine {n}"))
            }) {
                println!("  {line}");
            }
        }
        let thread = std::thread::current();
        println!(
            "\nfailed at {:.3} s of virtual time. Replay:\n  SIM_SEED={} tests/toolbox/enter cargo test {}--locked -p cluster-agent-core --test {} -- --exact {} --include-ignored --nocapture\n",
            self.now.as_secs_f64(),
            self.seed,
            if cfg!(debug_assertions) { "" } else { "--profile sim --features simulation " },
            env!("CARGO_CRATE_NAME"),
            thread.name().unwrap_or("NAME"),
        );
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.explain();
        }
    }
}

/// The least important lines that are kept when there are many machines.
pub const AT_SCALE: LogLevel = LogLevel::Warn;
