// SPDX-License-Identifier: Apache-2.0
//! The front door: inputs, outputs, and what goes from one part to another.

mod guard;
mod requests;
mod rounds;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use cluster_agent_proto::NodeId;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::consts::TICK;
use crate::follow::{Follow, Followed, Pulls, news_since};
use crate::genesis::Genesis;
use crate::leader::Alive;
use crate::message::Message;
use crate::raft::{Committed, HardState, Persist, Replica, Role, Saved, Snapshot};
use crate::recover::recover;
use crate::state::{Command, Departure, Outcome, Refusal, RequestId, State, Stop, StoredJoinKey};
use guard::RollCall;
use requests::{Pending, Reading};

/// The present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Never steps, counts while the machine sleeps.
    pub boottime: Duration,
    /// Since 1970; may be wrong. The leader's is written into the log.
    pub wall: Duration,
}

/// What the disk held.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The sum of all [`Persist`]s; `None` or damaged: there is no replica here any more.
    pub replica: Option<Saved>,
    /// The bytes of the last [`Output::Keep`].
    pub kept: Option<Vec<u8>>,
}

/// Everything that may be told to a [`Control`].
#[derive(Clone, Debug)]
pub enum Input {
    /// [`Control::poll_timeout`] has passed.
    Timeout,
    /// What another node said.
    Message {
        /// Who the session proves it to be.
        from: NodeId,
        /// Its [`Output::Send`].
        bytes: Vec<u8>,
    },
    /// This write and all before are on the disk.
    Persisted {
        /// Of the [`Persist`].
        replica: u64,
        /// Of the same.
        id: u64,
    },
    /// Somebody on this node wants a change.
    Propose {
        /// Drawn at random; the same for a repetition.
        request: RequestId,
        /// What.
        command: Command,
    },
    /// Somebody on this node wants to know what is agreed now, not what this node followed so far.
    Read {
        /// Drawn at random.
        request: RequestId,
    },
    /// How members are; this node too, or a leader does not know that its own disk is slow.
    Liveness(BTreeMap<NodeId, Alive>),
    /// The state of a cluster that let this node in; or a newer one, on the order of a person.
    Adopt {
        /// As [`State::encode`] made it.
        state: Vec<u8>,
    },
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is agreed, at this index or before. A read: the state of this node is at least this new.
    Done(u64),
    /// Agreed is that the joiner waits for a person.
    Waiting(u64),
    /// Agreed is that it does not happen.
    Refused(Refusal),
    /// Nobody who could decide was told: it has not happened, and will not.
    NotDone,
    /// No answer in time: it may have happened, and may still.
    Unknown,
}

/// Everything that a [`Control`] wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Write to the replica's store, flush, and say [`Input::Persisted`].
    Persist(Persist),
    /// Keep the followed state for the next start. Nothing waits for it.
    Keep(Vec<u8>),
    /// Give this to another node, if it can be reached.
    Send {
        /// Who.
        to: NodeId,
        /// At most [`MAX_MESSAGE`](crate::MAX_MESSAGE).
        bytes: Vec<u8>,
    },
    /// A request has its answer.
    Answer {
        /// Which.
        request: RequestId,
        /// Its only one.
        answer: Answer,
    },
    /// The state is another one.
    Changed {
        /// Index of the last entry in it.
        index: u64,
    },
    /// A voter says that this node is no member any more.
    Departed(Departure),
}

/// What people are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Index of the state.
    pub index: u64,
    /// Raft id of this node's replica.
    pub replica: Option<u64>,
    /// Its term.
    pub term: Option<u64>,
    /// It leads.
    pub leads: bool,
    /// It has a vote.
    pub votes: bool,
    /// Who leads, as far as is known.
    pub leader: Option<NodeId>,
    /// Since the state was known to be the newest; `None`: never.
    pub age: Option<Duration>,
    /// Why this node does not go on.
    pub stopped: Option<Stop>,
}

/// The control plane of one node.
pub struct Control {
    me: NodeId,
    state: Option<State>,
    /// Newer than what the replica has applied: only to know who has which raft id.
    ahead: Option<Box<State>>,
    replica: Option<Replica>,
    stopped: Option<Stop>,
    departed: bool,
    roll_call: Option<RollCall>,
    /// Of each replica the last write that it spoke of.
    heard: BTreeMap<u64, u64>,
    /// Raft ids that this node had: never again.
    spent: BTreeSet<u64>,
    /// Drawn in this run, for a raft id that may be given to this node.
    nonce: u64,
    /// When a leader was heard last.
    led: Duration,
    pending: BTreeMap<RequestId, Pending>,
    reading: BTreeMap<RequestId, Reading>,
    follow: Follow,
    pulls: Pulls,
    alive: BTreeMap<NodeId, Alive>,
    gone: BTreeSet<u64>,
    invited: Option<(NodeId, Duration)>,
    unwilling: BTreeMap<NodeId, Duration>,
    next_look: Duration,
    next_tick: Duration,
    outputs: VecDeque<Output>,
    malformed: u64,
}

impl Control {
    fn new(me: NodeId, now: Now, rng: &mut StdRng) -> Self {
        Self {
            me,
            state: None,
            ahead: None,
            replica: None,
            stopped: None,
            departed: false,
            roll_call: None,
            heard: BTreeMap::new(),
            spent: BTreeSet::new(),
            nonce: rng.random_range(1..u64::MAX),
            led: now.boottime,
            pending: BTreeMap::new(),
            reading: BTreeMap::new(),
            follow: Follow::new(rng.random_range(0..1 << 16)),
            pulls: Pulls::default(),
            alive: BTreeMap::new(),
            gone: BTreeSet::new(),
            invited: None,
            unwilling: BTreeMap::new(),
            next_look: now.boottime,
            next_tick: now.boottime + TICK,
            outputs: VecDeque::new(),
            malformed: 0,
        }
    }

    /// A new cluster, of which this node is the only member.
    pub fn found(
        genesis: Genesis,
        record: &[u8],
        first_key: StoredJoinKey,
        now: Now,
        rng: &mut StdRng,
    ) -> Result<Self, Refusal> {
        let mut control = Self::new(NodeId::of_public_key(&genesis.founder), now, rng);
        let state = State::found(genesis, record, first_key)?;
        let (index, conf) = (state.index(), state.conf().clone());
        let snapshot = Snapshot { index, term: 1, conf, state: state.encode() };
        let hard_state = HardState { term: 1, vote: 0, commit: index };
        let saved =
            Saved { replica: 1, sequence: 0, hard_state, snapshot: Some(snapshot), entries: Vec::new() };
        control.state = Some(state);
        control.begin(saved, rng);
        Ok(control)
    }

    /// A new incarnation of the cluster, of which this node is the only voter: most of the others are gone for good. `None` if
    /// this node is no member in the newest state that it knows.
    pub fn recover(me: NodeId, start: Start, now: Now, rng: &mut StdRng) -> Option<Self> {
        let mut control = Self::start(me, start, now, rng);
        // What the replica had but not applied is not known to be agreed; the newest state is.
        let saved = recover(control.state.as_ref()?, &me)?;
        control.outputs.clear();
        control.roll_call = None;
        control.state = State::decode(&saved.snapshot.as_ref()?.state).ok();
        control.begin(saved, rng);
        Some(control)
    }

    /// Goes on with what the disk held.
    pub fn start(me: NodeId, start: Start, now: Now, rng: &mut StdRng) -> Self {
        let mut control = Self::new(me, now, rng);
        let kept = start.kept.and_then(|bytes| State::decode(&bytes).ok());
        if let Some(saved) = start.replica.filter(|saved| saved.replica != 0) {
            let state = saved.snapshot.as_ref().map(|snapshot| State::decode(&snapshot.state)).transpose();
            control.spent.insert(saved.replica);
            // A newer state that was followed may say that this raft id is nobody's any more.
            let void = match (&state, &kept) {
                (Ok(Some(state)), Some(kept)) if kept.follows(state) => {
                    let mine = kept.member(&me).and_then(|member| member.replica);
                    kept.incarnation() > state.incarnation()
                        || mine.is_none_or(|mine| mine.id > saved.replica)
                }
                _ => false,
            };
            match (Replica::start(&saved, rng).filter(|_| !void), state) {
                (Some(replica), Ok(state)) => {
                    control.replica = Some(replica);
                    // A learner that heard nothing yet knows the state that it followed before.
                    control.ahead = kept
                        .clone()
                        .filter(|kept| state.as_ref().is_some_and(|state| kept.follows(state)))
                        .map(Box::new);
                    control.state = state.or(kept);
                    control.work(now, rng);
                    control.call_roll(now);
                }
                // A damaged or void store: its id is given up, its state may still be the newest that this node knows.
                (_, state) => {
                    let state = state.ok().flatten();
                    let newer = |kept: &State| state.as_ref().is_none_or(|state| kept.follows(state));
                    control.state = kept.filter(newer).or(state);
                    control.discard(saved.sequence);
                }
            }
        } else {
            control.state = kept;
        }
        control
    }

    /// The only voter of a group begins, with a store that does not exist yet.
    fn begin(&mut self, saved: Saved, rng: &mut StdRng) {
        self.spent.insert(saved.replica);
        self.replica = Replica::begin(&saved, rng);
        if let Some(replica) = &mut self.replica {
            replica.campaign(rng);
        }
    }

    /// Something happened.
    pub fn handle(&mut self, input: Input, now: Now, rng: &mut StdRng) {
        match input {
            Input::Timeout => {}
            Input::Message { from, bytes } => match Message::decode(&bytes) {
                Ok(message) => self.message(from, message, now, rng),
                Err(_) => self.malformed += 1,
            },
            Input::Persisted { replica: of, id } => {
                if let Some(replica) = self.replica.as_mut().filter(|replica| replica.id() == of) {
                    replica.persisted(id);
                }
            }
            Input::Propose { request, command } => self.propose(request, command, now),
            Input::Read { request } => self.read(request, now, rng),
            Input::Liveness(alive) => self.alive = alive,
            Input::Adopt { state } => {
                if let Ok(state) = State::decode(&state) {
                    self.adopt(Box::new(state), rng);
                }
            }
        }
        self.tick(now, rng);
        self.work(now, rng);
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due, by `boottime`.
    pub fn poll_timeout(&self) -> Duration {
        self.next_tick
    }

    /// What this node knows to be agreed. `None` until it is a member.
    pub fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    /// Messages that could not be read.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// How it stands.
    pub fn status(&self, now: Now) -> Status {
        let replica = self.replica.as_ref();
        let leads = replica.is_some_and(|replica| replica.role() == Role::Leader);
        let id = replica.map(Replica::id);
        let confirmed = if leads { Some(now.boottime) } else { self.follow.confirmed };
        Status {
            index: self.state.as_ref().map_or(0, State::index),
            replica: id,
            term: replica.map(Replica::term),
            leads,
            votes: id.is_some_and(|id| replica.is_some_and(|replica| replica.conf().votes(id))),
            leader: self.leader(),
            age: confirmed.map(|at| now.boottime.saturating_sub(at)),
            stopped: self.stopped,
        }
    }

    /// The node that leads, as far as is known.
    fn leader(&self) -> Option<NodeId> {
        match self.replica.as_ref().and_then(Replica::leader) {
            Some(id) => self.node_of(id),
            None if self.replica.as_ref().is_some_and(|replica| replica.conf().votes(replica.id())) => None,
            None => self.follow.leader,
        }
    }

    fn leads(&self) -> bool {
        self.replica.as_ref().is_some_and(|replica| replica.role() == Role::Leader) && self.stopped.is_none()
    }

    fn node_of(&self, replica: u64) -> Option<NodeId> {
        let of = |state: &State| state.node_of(replica);
        self.state.as_ref().and_then(of).or_else(|| self.ahead.as_deref().and_then(of))
    }

    fn send(&mut self, to: NodeId, message: &Message) {
        let bytes = message.encode();
        if !bytes.is_empty() && to != self.me {
            self.outputs.push_back(Output::Send { to, bytes });
        }
    }

    /// A state that came from outside the log.
    fn adopt(&mut self, state: Box<State>, rng: &mut StdRng) {
        if self.state.as_ref().is_some_and(|known| !state.follows(known)) {
            return;
        }
        if let Some(replica) = &self.replica {
            let mine = state.member(&self.me).and_then(|member| member.replica);
            let same = self.state.as_ref().is_none_or(|known| known.incarnation() == state.incarnation());
            if same && mine.is_some_and(|mine| mine.id == replica.id()) {
                // The log brings it here, in order; meanwhile it says who is who.
                match self.state {
                    Some(_) => self.ahead = Some(state),
                    None => self.state = Some(*state),
                }
                return;
            }
            let sequence = replica.durable();
            self.retire(sequence, rng);
        }
        self.departed = false;
        self.outputs.push_back(Output::Keep(state.encode()));
        self.outputs.push_back(Output::Changed { index: state.index() });
        self.state = Some(*state);
        self.ahead = None;
    }

    /// Gives the replica up. Its raft id is not used again.
    fn retire(&mut self, sequence: u64, rng: &mut StdRng) {
        self.replica = None;
        self.roll_call = None;
        self.ahead = None;
        self.pulls.clear();
        self.nonce = rng.random_range(1..u64::MAX);
        if let Some(state) = &self.state {
            self.outputs.push_back(Output::Keep(state.encode()));
        }
        self.discard(sequence);
    }

    /// Empties the store, so that the next start does not find it.
    fn discard(&mut self, sequence: u64) {
        self.outputs.push_back(Output::Persist(Persist {
            id: sequence + 1,
            replica: 0,
            fresh: true,
            hard_state: None,
            snapshot: None,
            drop_log: false,
            entries: Vec::new(),
        }));
    }

    fn tick(&mut self, now: Now, rng: &mut StdRng) {
        if now.boottime < self.next_tick {
            return;
        }
        // Ticks that a frozen node missed are not made up for: it would think that all others were silent.
        self.next_tick = now.boottime + TICK;
        if self.stopped.is_none() {
            self.answer_roll_call_in_time(now);
            if self.roll_call.is_none()
                && let Some(replica) = &mut self.replica
            {
                replica.tick(rng);
            }
            self.look(now);
        }
        self.retry(now, rng);
        self.follow_voters(now);
        self.tell_news(now);
    }

    /// Carries on until nothing is left to do.
    fn work(&mut self, now: Now, rng: &mut StdRng) {
        let before = self.state.as_ref().map_or(0, State::index);
        if self.stopped.is_some() {
            return;
        }
        while let Some(replica) = &mut self.replica {
            let (agreed, reads) = replica.work(rng);
            if agreed.is_empty() && reads.is_empty() {
                break;
            }
            for one in agreed {
                if let Err(stop) = self.agreed(one) {
                    self.stopped = Some(stop);
                    return;
                }
            }
            for (index, context) in reads {
                self.read_confirmed(index, &context);
            }
        }
        self.finish_reads();
        if let (Some(replica), Some(state)) = (&mut self.replica, &self.state)
            && replica.wants_snapshot()
        {
            replica.give_snapshot(state.encode());
        }
        self.flush();
        let index = self.state.as_ref().map_or(0, State::index);
        if index != before {
            self.outputs.push_back(Output::Changed { index });
            self.settle();
            self.tell_news(now);
        }
    }

    fn agreed(&mut self, one: Committed) -> Result<(), Stop> {
        match one {
            Committed::Snapshot(snapshot) => {
                // It was read once before raft got it.
                let state = State::decode(&snapshot.state).map_err(|_| Stop::Unknown(snapshot.index))?;
                self.state = Some(state);
            }
            Committed::Conf(entry, conf) => {
                let state = self.state.as_mut().ok_or(Stop::Gap(entry.index))?;
                state.apply(&entry, Some(&conf))?;
            }
            Committed::Entry(entry) => {
                let state = self.state.as_mut().ok_or(Stop::Gap(entry.index))?;
                if let Some(applied) = state.apply(&entry, None)? {
                    self.done(applied.request, entry.index, applied.outcome);
                }
            }
        }
        if self
            .ahead
            .as_ref()
            .is_some_and(|ahead| self.state.as_ref().is_none_or(|state| !ahead.follows(state)))
        {
            self.ahead = None;
        }
        Ok(())
    }

    /// Gives out what the replica has to say.
    fn flush(&mut self) {
        let Some(replica) = &mut self.replica else { return };
        while let Some(write) = replica.poll_persist() {
            self.outputs.push_back(Output::Persist(write));
        }
        let mut messages = Vec::new();
        while let Some(message) = replica.poll_message() {
            messages.push(message);
        }
        let stored = replica.durable();
        let incarnation = self.state.as_ref().map_or(0, State::incarnation);
        for message in messages {
            let Some(to) = self.node_of(message.to) else { continue };
            let member = self.state.as_ref().and_then(|state| state.member(&to));
            let replica = member.and_then(|member| member.replica).filter(|replica| replica.id == message.to);
            let nonce = replica.map_or(0, |replica| replica.nonce);
            self.send(to, &Message::Raft { incarnation, stored, nonce, message });
        }
    }

    fn ask_at_once(&mut self, node: NodeId, now: Now) {
        if let Some(state) = &self.state {
            let message = self.follow.ask_this(node, state, now.boottime);
            self.send(node, &message);
        }
    }

    fn follow_voters(&mut self, now: Now) {
        let led = now.boottime.saturating_sub(self.led) < crate::consts::LEADER_SILENT;
        let in_group = self.replica.is_some() && (led || self.leads());
        if in_group || self.departed || self.stopped.is_some() {
            return;
        }
        let Some(state) = self.ahead.as_deref().or(self.state.as_ref()) else { return };
        if let Some((to, message)) = self.follow.ask(&self.me, state, now.boottime) {
            self.send(to, &message);
        }
    }

    fn followed(
        &mut self,
        from: NodeId,
        leader: Option<NodeId>,
        age: u64,
        news: crate::message::News,
        now: Now,
        rng: &mut StdRng,
    ) {
        let Some(state) = self.ahead.as_deref().or(self.state.as_ref()) else { return };
        match self.follow.answer(from, state, age, news, now.boottime) {
            Followed::Nothing => {}
            Followed::Newer(state) => {
                self.follow.leader = leader;
                self.adopt(state, rng);
                self.settle();
            }
            Followed::Departed(how) => {
                if let Some(replica) = &self.replica {
                    let sequence = replica.durable();
                    self.retire(sequence, rng);
                }
                self.departed = true;
                self.outputs.push_back(Output::Departed(how));
                return;
            }
        }
        self.follow.leader = leader;
        self.follow_voters(now);
    }

    fn tell_news(&mut self, now: Now) {
        let Some(state) = &self.state else { return };
        let due = self.pulls.due(state, now.boottime);
        if due.is_empty() {
            return;
        }
        let confirmed = if self.leads() { Some(now.boottime) } else { self.follow.confirmed };
        let age = confirmed.map_or(u64::MAX / 2, |at| now.boottime.saturating_sub(at).as_millis() as u64);
        let leader = self.leader();
        let answers: Vec<_> = due
            .into_iter()
            .map(|(to, index)| (to, news_since(state, self.replica.as_ref(), index)))
            .collect();
        for (to, news) in answers {
            self.send(to, &Message::News { leader, age, news });
        }
    }
}

/// An outcome as an answer.
fn answer_of(outcome: Outcome, index: u64) -> Answer {
    match outcome {
        Outcome::Done => Answer::Done(index),
        Outcome::Waiting => Answer::Waiting(index),
        Outcome::Refused(refusal) => Answer::Refused(refusal),
    }
}
