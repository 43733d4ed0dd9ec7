// SPDX-License-Identifier: Apache-2.0
//! A handful of control planes in one process: virtual clock, a network that loses, delays and doubles, disks that forget.
//! The same seed gives the same run. What must always hold is checked after every input.

// Each test binary uses a part of it.
#![allow(dead_code)]

mod disk;
mod weather;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster_agent_control::{
    Alive, Answer, Command, Conf, Control, Departure, Digest, Genesis, Input, JoinKeyId, Now, Outcome,
    Output, REQUEST_TIMEOUT, RequestId, Start, State, StoredJoinKey,
};
use cluster_agent_proto::NodeId;
use cluster_agent_proto::keys::Keys;
use cluster_agent_proto::record::{NodeRecord, Sequence};
use cluster_agent_proto::signed::Verified;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use disk::{Disk, Mutation};

/// Virtual milliseconds.
pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Virtual seconds.
pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// The seeds of a scenario: so many, or `CONTROL_SEEDS` of them, or only `CONTROL_SEED`.
pub fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match number("CONTROL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CONTROL_SEEDS").unwrap_or(usual),
    }
}

/// A machine.
pub struct Machine {
    pub id: NodeId,
    pub control: Option<Control>,
    pub disk: Disk,
    pub frozen_until: Duration,
    pub up_since: Duration,
    pub down_since: Duration,
    pub record: Vec<u8>,
    rng: StdRng,
    boot: u64,
    /// Of its clock from the true time, in milliseconds.
    clock: i64,
}

enum Event {
    Deliver { from: usize, to: usize, bytes: Vec<u8> },
    Written { machine: usize, boot: u64 },
    Start { machine: usize },
}

/// The network and its machines.
pub struct World {
    pub seed: u64,
    pub now: Duration,
    pub machines: Vec<Machine>,
    pub loss: f64,
    pub delay: (u64, u64),
    pub cuts: BTreeSet<(usize, usize)>,
    pub mutation: Mutation,
    pub answers: BTreeMap<RequestId, Answer>,
    pub departed: BTreeMap<usize, Departure>,
    /// Of each read the newest index that anybody was told before it was asked.
    pub reads: BTreeMap<RequestId, u64>,
    /// Requests without an answer, the machine that was asked, and its boot: an answer dies with the machine.
    asked: BTreeMap<RequestId, (usize, u64, Duration)>,
    newest: u64,
    /// Who votes, and since which index.
    pub conf: (u64, Conf),
    /// All that is sent, when somebody listens.
    pub tap: Option<Vec<Vec<u8>>>,
    events: BTreeMap<(Duration, u64), Event>,
    next: u64,
    pub rng: StdRng,
    told: Duration,
    /// What all agreed on, by incarnation and index.
    agreed: BTreeMap<(u32, u64), Digest>,
    leaders: BTreeMap<(u32, u64), NodeId>,
    evicted: BTreeMap<NodeId, (u32, u64)>,
    outcomes: BTreeMap<RequestId, Answer>,
}

/// The join key of every world.
pub const KEY: JoinKeyId = JoinKeyId([7; 5]);

/// Keys of a machine or of somebody who joins.
pub fn keys(seed: u64, n: u64) -> Keys {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(n));
    let mut random = [0; 96];
    for byte in &mut random {
        *byte = rng.random();
    }
    Keys::generate(&random)
}

/// A signed record.
pub fn record(keys: &Keys, name: &str) -> Vec<u8> {
    let record = NodeRecord {
        public_key: keys.public(),
        sequence: Sequence { generation: 1, counter: 1 },
        session_key: keys.session_public(),
        wireguard_key: keys.wireguard_public(),
        feature_level: 1,
        hostname: name.to_owned(),
        version: "1".to_owned(),
        endpoints: Vec::new(),
        labels: BTreeMap::new(),
        releases: Vec::new(),
    };
    Verified::sign(record, keys).as_bytes().to_vec()
}

impl World {
    /// Machines; the first one founds a cluster.
    pub fn new(seed: u64, count: usize) -> Self {
        let mut world = Self {
            seed,
            now: secs(1),
            machines: Vec::new(),
            loss: 0.0,
            delay: (1, 5),
            cuts: BTreeSet::new(),
            mutation: Mutation::None,
            answers: BTreeMap::new(),
            departed: BTreeMap::new(),
            reads: BTreeMap::new(),
            asked: BTreeMap::new(),
            newest: 0,
            conf: (0, Conf::default()),
            tap: None,
            events: BTreeMap::new(),
            next: 0,
            rng: StdRng::seed_from_u64(seed),
            told: Duration::ZERO,
            agreed: BTreeMap::new(),
            leaders: BTreeMap::new(),
            evicted: BTreeMap::new(),
            outcomes: BTreeMap::new(),
        };
        for n in 0..count {
            let keys = keys(seed, n as u64);
            world.machines.push(Machine {
                id: keys.node_id(),
                control: None,
                disk: Disk::default(),
                frozen_until: Duration::ZERO,
                up_since: Duration::ZERO,
                down_since: Duration::ZERO,
                record: record(&keys, &format!("n{}", n % 3)),
                rng: StdRng::seed_from_u64(seed ^ ((n as u64 + 1) << 32)),
                boot: 0,
                clock: 0,
            });
        }
        let genesis = Genesis {
            name: "lab".to_owned(),
            founder: keys(seed, 0).public(),
            nonce: [seed as u8; 32],
            created: 1,
            admin_keys: Vec::new(),
        };
        let mut random = [7; 37];
        random[5] = seed as u8;
        let now = world.clock(0);
        let machine = &mut world.machines[0];
        let found = Control::found(
            genesis,
            &machine.record,
            StoredJoinKey::new(&random, false),
            now,
            &mut machine.rng,
        );
        machine.control = Some(found.expect("a cluster is founded"));
        world.outputs(0);
        world
    }

    /// A cluster of all machines, with as many voters as it wants.
    pub fn formed(seed: u64, count: usize) -> Self {
        let mut world = Self::new(seed, count);
        for n in 1..count {
            world.join(n);
        }
        world.settle(secs(60));
        world
    }

    /// A machine asks to be let in through the first one, and starts with what that says.
    pub fn join(&mut self, n: usize) {
        let command = Command::Join { record: self.machines[n].record.clone(), key: KEY };
        let answer = self.ask(0, command);
        assert!(matches!(answer, Answer::Done(_)), "seed {}: machine {n} joins: {answer:?}", self.seed);
        let state = self.state(0).encode();
        let now = self.clock(n);
        let machine = &mut self.machines[n];
        let mut control = Control::start(machine.id, Start::default(), now, &mut machine.rng);
        control.handle(Input::Adopt { state }, now, &mut machine.rng);
        machine.control = Some(control);
        machine.up_since = self.now;
        self.outputs(n);
    }

    fn clock(&self, n: usize) -> Now {
        let wall = (1_000_000_000_000
            + self.now.as_millis() as i64
            + self.machines.get(n).map_or(0, |m| m.clock)) as u64;
        Now { boottime: self.now, wall: ms(wall) }
    }

    /// A machine's clock jumps.
    pub fn set_clock(&mut self, n: usize, by: i64) {
        self.machines[n].clock = by;
    }

    pub fn state(&self, n: usize) -> &State {
        self.machines[n].control.as_ref().and_then(Control::state).expect("the machine has a state")
    }

    pub fn is_up(&self, n: usize) -> bool {
        self.machines[n].control.is_some()
    }

    pub fn machine_of(&self, id: NodeId) -> Option<usize> {
        self.machines.iter().position(|machine| machine.id == id)
    }

    /// Who leads in the highest term.
    pub fn leader(&self) -> Option<usize> {
        let status =
            |n: usize| self.machines[n].control.as_ref().map(|control| control.status(self.clock(n)));
        let leads = (0..self.machines.len())
            .filter_map(|n| status(n).filter(|one| one.leads).map(|one| (one.term, n)));
        leads.max().map(|(_, n)| n)
    }

    /// Asks one machine, and waits for the answer.
    pub fn ask(&mut self, n: usize, command: Command) -> Answer {
        let request = self.begin(n, command);
        self.until(secs(20), |world| world.answers.contains_key(&request));
        self.answers[&request]
    }

    /// Asks one machine.
    pub fn begin(&mut self, n: usize, command: Command) -> RequestId {
        let request = RequestId(self.rng.random());
        self.note_asked(n, request);
        self.give(n, Input::Propose { request, command });
        request
    }

    /// Asks one machine what is agreed now.
    pub fn begin_read(&mut self, n: usize) -> RequestId {
        let request = RequestId(self.rng.random());
        self.reads.insert(request, self.newest);
        self.note_asked(n, request);
        self.give(n, Input::Read { request });
        request
    }

    /// The same, and waits for the answer.
    pub fn read(&mut self, n: usize) -> Answer {
        let request = self.begin_read(n);
        self.until(secs(20), |world| world.answers.contains_key(&request));
        self.answers[&request]
    }

    fn note_asked(&mut self, n: usize, request: RequestId) {
        if self.is_up(n) {
            let machine = &self.machines[n];
            let since = self.now.max(machine.frozen_until);
            self.asked.insert(request, (n, machine.boot, since));
        }
    }

    /// What one machine is told.
    pub fn give(&mut self, n: usize, input: Input) {
        let now = self.clock(n);
        let machine = &mut self.machines[n];
        if let Some(control) = &mut machine.control {
            control.handle(input, now, &mut machine.rng);
            self.outputs(n);
        }
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.next += 1;
        self.events.insert((self.now + after, self.next), event);
    }

    fn outputs(&mut self, n: usize) {
        while let Some(output) = self.machines[n].control.as_mut().and_then(Control::poll_output) {
            match output {
                Output::Persist(write) => {
                    let took = self.machines[n].disk.latency(&mut self.rng);
                    self.machines[n].disk.begin(write, self.now);
                    let boot = self.machines[n].boot;
                    self.at(took, Event::Written { machine: n, boot });
                    if self.mutation == Mutation::SkipFsync
                        && let Some((replica, id)) = self.machines[n].disk.claimed()
                    {
                        self.give(n, Input::Persisted { replica, id });
                    }
                }
                Output::Keep(state) => self.machines[n].disk.kept = Some(state),
                Output::Send { to, bytes } => {
                    let Some(to) = self.machine_of(to) else { continue };
                    if let Some(tap) = &mut self.tap {
                        tap.push(bytes.clone());
                    }
                    let copies = if self.rng.random_bool(0.02) { 2 } else { 1 };
                    for _ in 0..copies {
                        if !self.rng.random_bool(self.loss) {
                            let delay = ms(self.rng.random_range(self.delay.0..=self.delay.1));
                            self.at(delay, Event::Deliver { from: n, to, bytes: bytes.clone() });
                        }
                    }
                }
                Output::Answer { request, answer } => {
                    let seed = self.seed;
                    assert!(self.answers.insert(request, answer).is_none(), "seed {seed}: two answers");
                    self.asked.remove(&request);
                    if let Answer::Done(index) = answer {
                        let floor = self.reads.get(&request).copied().unwrap_or(0);
                        assert!(index >= floor, "seed {seed}: a read at {index} of what was {floor} before");
                        let state = self.machines[n].control.as_ref().and_then(Control::state);
                        let has = state.map_or(0, State::index);
                        let is_read = self.reads.contains_key(&request);
                        assert!(
                            !is_read || has >= index,
                            "seed {seed}: machine {n} has {has} and says {index}"
                        );
                        self.newest = self.newest.max(index);
                    }
                    if matches!(answer, Answer::Done(_) | Answer::Refused(_) | Answer::Waiting(_)) {
                        self.outcomes.insert(request, answer);
                    }
                }
                Output::Changed { .. } => {}
                Output::Departed(how) => {
                    self.departed.insert(n, how);
                }
            }
        }
        self.check(n);
    }

    /// What must always hold.
    fn check(&mut self, n: usize) {
        let now = self.clock(n);
        let Some(control) = &self.machines[n].control else { return };
        let Some(state) = control.state() else { return };
        let (seed, status) = (self.seed, control.status(now));
        assert_eq!(status.stopped, None, "seed {seed}: machine {n} stopped");
        let at = (state.incarnation(), state.index());
        let first = !self.agreed.contains_key(&at);
        let digest = *self.agreed.entry(at).or_insert(state.digest());
        assert_eq!(digest, state.digest(), "seed {seed}: machine {n} agreed on something else at {at:?}");
        if let (true, Some(term)) = (status.leads, status.term) {
            let leader = *self.leaders.entry((at.0, term)).or_insert(self.machines[n].id);
            assert_eq!(leader, self.machines[n].id, "seed {seed}: two leaders in term {term}");
        }
        if !first {
            return;
        }
        if *state.conf() != self.conf.1 {
            self.conf = (at.1, state.conf().clone());
        }
        let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for (_, member) in state.members() {
            assert!(names.insert(&member.name), "seed {seed}: name {} twice", member.name);
            assert!(addresses.insert(member.ipv4), "seed {seed}: address {} twice", member.ipv4);
        }
        for (node, since) in &self.evicted {
            assert!(at < *since || state.member(node).is_none(), "seed {seed}: {node:?} came back");
        }
    }

    /// From now on this node is nobody's member.
    pub fn note_evicted(&mut self, node: NodeId, index: u64) {
        self.evicted.insert(node, (1, index));
    }

    /// Runs to this time.
    pub fn run(&mut self, during: Duration) {
        let end = self.now + during;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until it is so; panics when that takes too long.
    pub fn until(&mut self, most: Duration, mut so: impl FnMut(&mut Self) -> bool) -> Duration {
        let (begin, end) = (self.now, self.now + most);
        while !so(self) {
            assert!(self.step(end), "seed {}: not so after {most:?}: {}", self.seed, self.describe());
        }
        self.now - begin
    }

    fn step(&mut self, end: Duration) -> bool {
        if self.now >= self.told + secs(1) {
            self.told = self.now;
            self.tell_liveness();
        }
        let timeout = |n: usize| {
            let machine = &self.machines[n];
            machine.control.as_ref().map(|control| (control.poll_timeout().max(machine.frozen_until), n))
        };
        let timer = (0..self.machines.len()).filter_map(timeout).min();
        let event = self.events.first_key_value().map(|(at, _)| at.0);
        let at = timer.map(|(at, _)| at).into_iter().chain(event).min().unwrap_or(end);
        if at > end {
            return false;
        }
        self.now = self.now.max(at);
        if event.is_none_or(|event| timer.is_some_and(|(timer, _)| timer < event)) {
            if let Some((_, n)) = timer {
                self.give(n, Input::Timeout);
            }
            return true;
        }
        let Some((_, event)) = self.events.pop_first() else { return false };
        match event {
            Event::Deliver { from, to, bytes } => {
                if self.cuts.contains(&(from, to)) || !self.is_up(to) {
                    return true;
                }
                let frozen = self.machines[to].frozen_until.saturating_sub(self.now);
                if frozen.is_zero() {
                    let from = self.machines[from].id;
                    self.give(to, Input::Message { from, bytes });
                } else {
                    self.at(frozen, Event::Deliver { from, to, bytes });
                }
            }
            Event::Written { machine, boot } => {
                if boot == self.machines[machine].boot {
                    let (mutation, now) = (self.mutation, self.now);
                    if let Some((replica, id)) = self.machines[machine].disk.written(mutation, now)
                        && mutation != Mutation::SkipFsync
                    {
                        self.give(machine, Input::Persisted { replica, id });
                    }
                }
            }
            Event::Start { machine } => self.start(machine),
        }
        true
    }

    fn tell_liveness(&mut self) {
        for n in 0..self.machines.len() {
            let silent = |m: usize| {
                let machine = &self.machines[m];
                let cut = self.cuts.contains(&(m, n));
                if m == n || (machine.control.is_some() && !cut) {
                    Duration::ZERO
                } else {
                    self.now.saturating_sub(machine.down_since)
                }
            };
            let alive = (0..self.machines.len()).map(|m| {
                let fsync = Some(self.machines[m].disk.fsync);
                (self.machines[m].id, Alive { silent: silent(m), fsync })
            });
            let alive: BTreeMap<_, _> = alive.collect();
            if self.machines[n].frozen_until <= self.now {
                self.give(n, Input::Liveness(alive));
            }
        }
    }

    /// Power is cut; what was not flushed is lost, or half of it is.
    pub fn crash(&mut self, n: usize) {
        let machine = &mut self.machines[n];
        if machine.control.take().is_some() {
            machine.down_since = self.now;
        }
        machine.boot += 1;
        let keep = self.rng.random_range(0..3);
        let mutation = self.mutation;
        self.machines[n].disk.crash(keep, mutation);
    }

    /// Power is back after this time.
    pub fn start_after(&mut self, n: usize, after: Duration) {
        self.at(after, Event::Start { machine: n });
    }

    /// Power is back.
    pub fn start(&mut self, n: usize) {
        if self.is_up(n) {
            return;
        }
        let now = self.clock(n);
        let machine = &mut self.machines[n];
        let start = machine.disk.start();
        machine.control = Some(Control::start(machine.id, start, now, &mut machine.rng));
        machine.up_since = self.now;
        self.outputs(n);
        if self.machines[n].control.as_ref().is_some_and(|control| control.state().is_none()) {
            // It asks like a newcomer, and hears what a member gives those.
            let of = |m: usize| self.machines[m].control.as_ref().and_then(Control::state).map(State::encode);
            if let Some(state) = (0..self.machines.len()).find_map(of) {
                self.give(n, Input::Adopt { state });
            }
        }
    }

    /// A person opens a new incarnation on this machine.
    pub fn recover(&mut self, n: usize) {
        self.crash(n);
        let now = self.clock(n);
        let machine = &mut self.machines[n];
        let start = machine.disk.start();
        machine.control = Control::recover(machine.id, start, now, &mut machine.rng);
        assert!(machine.control.is_some(), "it is a member in the newest state that it knows");
        machine.up_since = self.now;
        self.outputs(n);
    }

    /// All faults end.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.loss = 0.0;
        self.delay = (1, 5);
        for n in 0..self.machines.len() {
            self.machines[n].frozen_until = self.now;
            self.start(n);
        }
    }

    /// As many voters as are wanted, nobody on the way, and all have the same.
    pub fn is_settled(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let state = self.state(leader);
        let same =
            (0..self.machines.len()).filter(|n| state.member(&self.machines[*n].id).is_some()).all(|n| {
                let control = self.machines[n].control.as_ref();
                control.and_then(Control::state).is_some_and(|one| one.digest() == state.digest())
            });
        let conf = state.conf();
        let have = conf.voters.iter().all(|id| state.node_of(*id).is_some());
        // Members that are no machine here can have no vote; an even number of voters is none better than one less.
        let machines = self.machines.iter().filter(|machine| state.member(&machine.id).is_some()).count();
        let wanted = state.voters_wanted().min(machines - (machines + 1) % 2);
        same && have && conf.voters.len() == wanted && conf.learners.len() <= 1 && !conf.is_joint()
    }

    /// Runs until that is so.
    pub fn settle(&mut self, most: Duration) -> Duration {
        self.until(most, |world| world.is_settled())
    }

    /// Every request of a machine that stayed up has an answer in time.
    pub fn check_asked(&self) {
        for (request, (n, boot, since)) in &self.asked {
            let late = self.now
                > since.max(&self.machines[*n].frozen_until).saturating_add(REQUEST_TIMEOUT + secs(1));
            let lives = self.machines[*n].boot == *boot && self.is_up(*n);
            assert!(!late || !lives, "seed {}: {request:?} of machine {n} has no answer", self.seed);
        }
    }

    /// Nothing that was answered is lost.
    pub fn check_answers(&self) {
        let Some(leader) = self.leader() else { panic!("seed {}: nobody leads", self.seed) };
        let state = self.state(leader);
        for (request, answer) in &self.outcomes {
            let known = state.outcome(request);
            let same = match (answer, known) {
                (Answer::Done(index), Some(Outcome::Done))
                | (Answer::Waiting(index), Some(Outcome::Waiting)) => *index <= state.index(),
                // Of a read.
                (Answer::Done(_), None) => self.reads.contains_key(request),
                (Answer::Refused(one), Some(Outcome::Refused(other))) => *one == other,
                _ => false,
            };
            assert!(same, "seed {}: {request:?} was answered with {answer:?} and is {known:?}", self.seed);
        }
    }

    /// For failures.
    pub fn describe(&self) -> String {
        let mut text = format!("at {:?}, cuts {:?}\n", self.now, self.cuts);
        for (n, machine) in self.machines.iter().enumerate() {
            let status = machine.control.as_ref().map(|control| control.status(self.clock(n)));
            let state = machine.control.as_ref().and_then(Control::state);
            let conf = state.map(|state| (state.incarnation(), state.conf().clone()));
            text += &format!("  {n} {:?}: {status:?} {conf:?}\n", machine.id);
        }
        text
    }
}
