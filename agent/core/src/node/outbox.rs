// SPDX-License-Identifier: Apache-2.0
//! Commands in order, with *persist, then send* as a property of the queue: a write that matters holds back what depends on
//! it until it is on the disk, and nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::command::{Command, HostCommand, LogLevel, NetCommand, StateItem, StreamId, Ticket};
use crate::consts::outbox::*;

/// What depends on a write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blocks {
    /// Nothing: it only makes something faster or better.
    Nothing,
    /// What may tell of it: streams, the mesh, later writes. It is about other members, and gossip tells of it when it is
    /// saved; so heartbeats go on.
    Word,
    /// All that this node says: who it is, and where it stands.
    All,
}

/// A queue. Commands of one lane keep their order, and those of all lanes as long as nothing is held back.
type Lane = VecDeque<(u64, Command)>;

/// The queues.
#[derive(Default)]
pub(super) struct Outbox {
    /// What is done on this machine and depends on nothing.
    host: Lane,
    /// Datagrams, each with the last write of [`Blocks::All`] before it.
    datagrams: VecDeque<(u64, Option<Ticket>, Command)>,
    /// Streams, the mesh, and the writes that hold.
    ordered: Lane,
    /// Streams to close on which nothing more is said: that depends on no write, and each holds a descriptor meanwhile.
    closing: VecDeque<StreamId>,
    /// Commands so far.
    pushed: u64,
    next_ticket: u64,
    /// Writes that were handed out, until they are on the disk; of one item the last. Of those that others wait for there is one
    /// at a time.
    writes: BTreeMap<StateItem, Write>,
    /// Writes of [`Blocks::All`] that are not on the disk.
    blocking_all: BTreeSet<Ticket>,
    /// When failed writes are tried again.
    retry_at: Option<Duration>,
    /// Why the last write of an item failed; gone once one succeeds.
    failures: BTreeMap<StateItem, String>,
}

/// A write that was handed out.
struct Write {
    at: u64,
    ticket: Ticket,
    bytes: Vec<u8>,
    failed: bool,
}

impl Outbox {
    pub(super) fn push(&mut self, command: impl Into<Command>) {
        let command = command.into();
        match &command {
            Command::Net(NetCommand::StreamSend { stream, bytes }) if self.add_to_last(*stream, bytes) => {
                return;
            }
            Command::Net(NetCommand::StreamClose { stream }) => {
                let mut queued =
                    self.ordered.iter().filter(|(_, command)| stream_of(command) == Some(*stream));
                // Nothing is said on it any more, or it was not opened yet.
                if queued.next().is_none_or(|(_, first)| is_connect(first)) {
                    return self.abandon(*stream);
                }
            }
            // A plan is the whole mesh: behind a write that fails they would pile up.
            Command::Host(HostCommand::MeshApply(_)) => self.ordered.retain(|(_, queued)| !is_mesh(queued)),
            _ => {}
        }
        self.pushed += 1;
        let at = self.pushed;
        let lane = match &command {
            Command::Net(
                NetCommand::SendDatagram { .. }
                | NetCommand::Multicast { .. }
                | NetCommand::Broadcast { .. }
                | NetCommand::SendToName { .. },
            ) => {
                if self.datagrams.len() < MAX_QUEUE {
                    self.datagrams.push_back((at, self.blocking_all.last().copied(), command));
                }
                return;
            }
            Command::Net(
                NetCommand::Connect { .. } | NetCommand::StreamSend { .. } | NetCommand::StreamClose { .. },
            )
            | Command::Host(HostCommand::MeshApply(_) | HostCommand::MeshRemove) => &mut self.ordered,
            Command::Persist { item, .. } => self.lane_of(*item),
            Command::Host(
                HostCommand::SetClockFloor { .. }
                | HostCommand::SetClock { .. }
                | HostCommand::SetHostname { .. },
            )
            | Command::Answer { .. }
            | Command::Notify(_)
            | Command::Log { .. } => &mut self.host,
        };
        lane.push_back((at, command));
    }

    /// What is said on one stream at once goes out as one piece: each costs both machines a packet and a wake-up. Gives whether
    /// nothing else came in between.
    fn add_to_last(&mut self, stream: StreamId, bytes: &[u8]) -> bool {
        match self.ordered.back_mut() {
            Some((at, Command::Net(NetCommand::StreamSend { stream: last, bytes: queued })))
                if (*at, *last) == (self.pushed, stream) =>
            {
                queued.extend_from_slice(bytes);
                true
            }
            _ => false,
        }
    }

    /// Records are written after what makes this node a member: alone they would say that it has lost that.
    fn lane_of(&mut self, item: StateItem) -> &mut Lane {
        if blocks(item) || item == StateItem::Records { &mut self.ordered } else { &mut self.host }
    }

    pub(super) fn log(&mut self, level: LogLevel, message: &str, fields: Vec<(&'static str, String)>) {
        self.push(Command::Log { level, message: message.to_owned(), fields });
    }

    /// Queues a write; gives its number. A write of the same item that was not handed out yet takes the newer content instead:
    /// everything behind it still comes after what it depends on.
    pub(super) fn persist(&mut self, item: StateItem, content: Vec<u8>) -> Ticket {
        // The last one: in front may be one that failed and is tried again, whose content is older.
        let queued = self.lane_of(item).iter_mut().rev().find_map(|(_, command)| match command {
            Command::Persist { ticket, item: queued, bytes } if *queued == item => Some((*ticket, bytes)),
            _ => None,
        });
        let ticket = match queued {
            Some((ticket, bytes)) => {
                *bytes = content;
                ticket
            }
            None => {
                let ticket = Ticket(self.next_ticket);
                self.next_ticket += 1;
                self.push(Command::Persist { ticket, item, bytes: content });
                ticket
            }
        };
        if blocked_by(item) == Blocks::All {
            self.blocking_all.insert(ticket);
        }
        ticket
    }

    /// The same, and this node says nothing at all until it is on the disk.
    pub(super) fn persist_before_all(&mut self, item: StateItem, content: Vec<u8>) -> Ticket {
        let ticket = self.persist(item, content);
        self.blocking_all.insert(ticket);
        ticket
    }

    pub(super) fn pop(&mut self) -> Option<Command> {
        if let Some(stream) = self.closing.pop_front() {
            return Some(Command::Net(NetCommand::StreamClose { stream }));
        }
        let held = |after: &Option<Ticket>| {
            after.is_some_and(|after| self.blocking_all.first().is_some_and(|first| *first <= after))
        };
        let host = self.host.front().map(|(at, _)| *at);
        let datagram = self.datagrams.front().filter(|(_, after, _)| !held(after)).map(|(at, ..)| *at);
        let ordered = self.ordered.front().filter(|_| !self.is_held()).map(|(at, _)| *at);
        let first = [host, datagram, ordered].into_iter().flatten().min()?;
        let command = if host == Some(first) {
            self.host.pop_front()?.1
        } else if datagram == Some(first) {
            self.datagrams.pop_front()?.2
        } else {
            self.ordered.pop_front()?.1
        };
        if let Command::Persist { ticket, item, bytes } = &command {
            let write = Write { at: first, ticket: *ticket, bytes: bytes.clone(), failed: false };
            self.writes.insert(*item, write);
        }
        Some(command)
    }

    /// Whether streams and the mesh wait for a write that was handed out.
    fn is_held(&self) -> bool {
        self.writes.keys().any(|item| blocks(*item))
    }

    /// A write is on the disk.
    pub(super) fn persisted(&mut self, done: Ticket) {
        for (item, write) in self.writes.extract_if(.., |_, write| write.ticket == done) {
            self.failures.remove(&item);
            self.blocking_all.remove(&write.ticket);
        }
    }

    /// A write failed: it is tried again, unless newer content of its item went out meanwhile.
    pub(super) fn failed(&mut self, ticket: Ticket, error: &str, now: Duration) {
        for (item, write) in self.writes.iter_mut().filter(|(_, write)| write.ticket == ticket) {
            write.failed = true;
            self.failures.insert(*item, error.to_owned());
            self.retry_at.get_or_insert(now + RETRY);
        }
    }

    /// Tries failed writes again when it is time.
    pub(super) fn tick(&mut self, now: Duration) {
        if self.retry_at.take_if(|at| *at <= now).is_none() {
            return;
        }
        let failed: Vec<_> = self.writes.extract_if(.., |_, write| write.failed).collect();
        // The records come behind what makes this node a member.
        for (item, Write { at, ticket, bytes, .. }) in failed.into_iter().rev() {
            let lane = self.lane_of(item);
            let is_newer = |(_, command): &(u64, Command)| matches!(command, Command::Persist { item: queued, .. } if *queued == item);
            if blocks(item) || !lane.iter().any(is_newer) {
                lane.push_front((at, Command::Persist { ticket, item, bytes }));
            }
        }
    }

    /// Items that could not be saved, and why.
    pub(super) fn failures(&self) -> &BTreeMap<StateItem, String> {
        &self.failures
    }

    /// Whether a write fails that others wait for: this node says nothing on streams.
    pub(super) fn is_failing(&self) -> bool {
        self.failures.keys().any(|item| blocks(*item))
    }

    /// Closes a stream at once, whatever was still to be said on it; one that was not opened yet never is.
    pub(super) fn abandon(&mut self, stream: StreamId) {
        let of_it = |command: &Command| stream_of(command) == Some(stream);
        let connects = self.ordered.iter().any(|(_, command)| of_it(command) && is_connect(command));
        self.ordered.retain(|(_, command)| !of_it(command));
        if !connects {
            self.closing.push_back(stream);
        }
    }

    /// Streams on which we say nothing because a write is not on the disk yet.
    pub(super) fn held_back(&self) -> BTreeSet<StreamId> {
        let queued = self.ordered.iter().filter(|_| self.is_held());
        queued.filter_map(|(_, command)| stream_of(command)).collect()
    }

    /// Whether everything that later commands depend on is on the disk.
    pub(super) fn is_saved(&self) -> bool {
        let waits =
            |(_, command): &(u64, Command)| matches!(command, Command::Persist { item, .. } if blocks(*item));
        !self.is_held() && !self.ordered.iter().any(waits)
    }
}

/// The stream that a command opens, or says something on.
fn stream_of(command: &Command) -> Option<StreamId> {
    match command {
        Command::Net(NetCommand::Connect { stream, .. } | NetCommand::StreamSend { stream, .. }) => {
            Some(*stream)
        }
        _ => None,
    }
}

fn is_connect(command: &Command) -> bool {
    matches!(command, Command::Net(NetCommand::Connect { .. }))
}

fn is_mesh(command: &Command) -> bool {
    matches!(command, Command::Host(HostCommand::MeshApply(_)))
}

/// What waits for a write of an item, whoever asks for it. Records and the clock only make things faster or better.
fn blocked_by(item: StateItem) -> Blocks {
    match item {
        StateItem::Identity | StateItem::Generation => Blocks::All,
        StateItem::Membership => Blocks::Word,
        StateItem::Records | StateItem::Clock | StateItem::DamagedIdentity | StateItem::DamagedMembership => {
            Blocks::Nothing
        }
    }
}

/// Whether anything waits for a write of an item.
fn blocks(item: StateItem) -> bool {
    blocked_by(item) != Blocks::Nothing
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::command::MeshPlan;

    fn send(n: u8) -> Command {
        Command::Net(NetCommand::Multicast { interface: 1, bytes: vec![n] })
    }

    #[test]
    fn sends_nothing_that_depends_on_an_unfinished_write() {
        let mut outbox = Outbox::default();
        outbox.push(send(1));
        outbox.persist_before_all(StateItem::Membership, vec![7]);
        outbox.push(send(2));
        assert_eq!(outbox.pop(), Some(send(1)));
        let Some(Command::Persist { ticket, .. }) = outbox.pop() else { panic!("a write is next") };
        assert_eq!(outbox.pop(), None);
        outbox.persisted(Ticket(99));
        assert_eq!(outbox.pop(), None);
        outbox.persisted(ticket);
        assert_eq!(outbox.pop(), Some(send(2)));
    }

    #[test]
    fn of_the_meshes_behind_a_write_the_last_one_is_applied() {
        let mut outbox = Outbox::default();
        let mesh = |listen_port| {
            let (private_key, address, peers) = ([0; 32], Ipv6Addr::LOCALHOST, Vec::new());
            Command::Host(HostCommand::MeshApply(MeshPlan { private_key, listen_port, address, peers }))
        };
        let ticket = outbox.persist(StateItem::Membership, vec![7]);
        assert!(matches!(outbox.pop(), Some(Command::Persist { .. })));
        outbox.push(mesh(1));
        outbox.push(HostCommand::MeshRemove);
        outbox.push(mesh(2));
        outbox.push(mesh(3));
        outbox.persisted(ticket);
        let applied = [outbox.pop(), outbox.pop(), outbox.pop()];
        assert_eq!(applied, [Some(HostCommand::MeshRemove.into()), Some(mesh(3)), None]);
    }

    #[test]
    fn heartbeats_go_on_while_a_write_about_others_holds_what_may_tell_of_it() {
        let say = Command::Net(NetCommand::StreamSend { stream: StreamId(1), bytes: vec![1] });
        let mut outbox = Outbox::default();
        outbox.persist(StateItem::Membership, vec![7]);
        for command in [say.clone(), Command::Host(HostCommand::MeshRemove), send(1)] {
            outbox.push(command);
        }
        outbox.persist(StateItem::Records, vec![8]);
        let (ticket, ..) = pop_write(&mut outbox).expect("a write is next");
        assert_eq!([outbox.pop(), outbox.pop()], [Some(send(1)), None]);
        outbox.persisted(ticket);
        assert_eq!([outbox.pop(), outbox.pop()], [Some(say), Some(Command::Host(HostCommand::MeshRemove))]);
        assert!(matches!(pop_write(&mut outbox), Some((_, StateItem::Records, _))));
    }

    #[test]
    fn what_is_said_behind_a_write_of_who_this_node_is_waits_though_another_write_is_under_way() {
        let mut outbox = Outbox::default();
        outbox.persist(StateItem::Membership, vec![7]);
        let (membership, ..) = pop_write(&mut outbox).expect("a write is next");
        outbox.push(send(1));
        outbox.persist(StateItem::Generation, vec![8]);
        outbox.push(send(2));
        assert_eq!([outbox.pop(), outbox.pop()], [Some(send(1)), None]);
        outbox.persisted(membership);
        let (generation, item, _) = pop_write(&mut outbox).expect("a write is next");
        assert_eq!((item, outbox.pop()), (StateItem::Generation, None));
        outbox.failed(generation, "disk full", Duration::ZERO);
        outbox.tick(RETRY);
        assert_eq!(pop_write(&mut outbox), Some((generation, StateItem::Generation, vec![8])));
        assert_eq!(outbox.pop(), None);
        outbox.persisted(generation);
        assert_eq!(outbox.pop(), Some(send(2)));
    }

    #[test]
    fn the_newest_content_is_written_last_though_an_older_write_is_tried_again() {
        let mut outbox = Outbox::default();
        let first = outbox.persist(StateItem::Membership, vec![1]);
        assert_eq!(pop_write(&mut outbox).map(|(ticket, ..)| ticket), Some(first));
        let second = outbox.persist(StateItem::Membership, vec![2]);
        outbox.failed(first, "disk full", Duration::ZERO);
        outbox.tick(RETRY);
        assert_eq!(outbox.persist(StateItem::Membership, vec![3]), second);
        assert_eq!(pop_write(&mut outbox), Some((first, StateItem::Membership, vec![1])));
        outbox.persisted(first);
        assert_eq!(pop_write(&mut outbox), Some((second, StateItem::Membership, vec![3])));
    }

    #[test]
    fn newer_content_holds_as_much_as_any_content_of_its_item() {
        let mut outbox = Outbox::default();
        outbox.persist(StateItem::Membership, vec![1]);
        outbox.push(send(1));
        outbox.persist_before_all(StateItem::Membership, vec![2]);
        outbox.push(send(2));
        let (ticket, _, bytes) = pop_write(&mut outbox).expect("a write is next");
        assert_eq!((bytes, outbox.pop(), outbox.pop()), (vec![2], Some(send(1)), None));
        outbox.persisted(ticket);
        assert_eq!(outbox.pop(), Some(send(2)));
    }

    #[test]
    fn what_is_done_on_this_machine_waits_for_nothing() {
        let mut outbox = Outbox::default();
        outbox.persist(StateItem::Identity, vec![7]);
        assert!(pop_write(&mut outbox).is_some());
        let clock = Command::Host(HostCommand::SetClockFloor { wall: RETRY });
        outbox.push(HostCommand::MeshRemove);
        outbox.push(clock.clone());
        outbox.persist(StateItem::Clock, vec![8]);
        assert_eq!(outbox.pop(), Some(clock));
        assert!(matches!(pop_write(&mut outbox), Some((_, StateItem::Clock, _))));
        assert_eq!(outbox.pop(), None);
    }

    #[test]
    fn repeats_a_failed_write_before_anything_else() {
        let mut outbox = Outbox::default();
        outbox.persist_before_all(StateItem::Membership, vec![7]);
        outbox.push(send(1));
        let Some(Command::Persist { ticket, .. }) = outbox.pop() else { panic!("a write is next") };
        outbox.failed(ticket, "disk full", Duration::ZERO);
        assert_eq!(outbox.failures()[&StateItem::Membership], "disk full");
        outbox.tick(Duration::from_secs(1));
        assert_eq!(outbox.pop(), None);
        outbox.tick(Duration::from_secs(6));
        assert!(matches!(outbox.pop(), Some(Command::Persist { .. })));
        assert_eq!(outbox.pop(), None);
        outbox.persisted(ticket);
        assert_eq!(outbox.pop(), Some(send(1)));
        assert!(outbox.failures().is_empty());
    }

    const ALL: [StateItem; 7] = [
        StateItem::Identity,
        StateItem::Generation,
        StateItem::Membership,
        StateItem::Records,
        StateItem::Clock,
        StateItem::DamagedIdentity,
        StateItem::DamagedMembership,
    ];

    fn pop_write(outbox: &mut Outbox) -> Option<(Ticket, StateItem, Vec<u8>)> {
        match outbox.pop()? {
            Command::Persist { ticket, item, bytes } => Some((ticket, item, bytes)),
            other => panic!("a write is next, not {other:?}"),
        }
    }

    #[test]
    fn every_item_that_failed_is_written_again_and_named_until_it_is_saved() {
        for item in ALL {
            let mut outbox = Outbox::default();
            let mut now = Duration::ZERO;
            outbox.persist_before_all(item, vec![7]);
            for _ in 0..3 {
                let (ticket, ..) =
                    pop_write(&mut outbox).unwrap_or_else(|| panic!("{item:?} is tried again"));
                outbox.failed(ticket, "disk full", now);
                assert_eq!(outbox.failures().keys().collect::<Vec<_>>(), [&item]);
                now += RETRY;
                outbox.tick(now);
            }
            let (ticket, again, bytes) = pop_write(&mut outbox).expect("it is tried again");
            assert_eq!((again, bytes), (item, vec![7]));
            outbox.persisted(ticket);
            assert!(outbox.failures().is_empty(), "{item:?}: {:?}", outbox.failures());
            outbox.tick(now + RETRY);
            assert_eq!(outbox.pop(), None);
        }
    }

    #[test]
    fn a_write_that_succeeds_says_nothing_of_one_that_failed() {
        let mut outbox = Outbox::default();
        outbox.persist(StateItem::Records, vec![1]);
        outbox.persist(StateItem::Clock, vec![2]);
        let (records, ..) = pop_write(&mut outbox).unwrap();
        let (clock, ..) = pop_write(&mut outbox).unwrap();
        outbox.failed(records, "disk full", Duration::ZERO);
        outbox.persisted(clock);
        assert_eq!(outbox.failures().keys().collect::<Vec<_>>(), [&StateItem::Records]);
    }

    #[test]
    fn newer_content_takes_the_place_of_what_failed() {
        let mut outbox = Outbox::default();
        outbox.persist(StateItem::Records, vec![1]);
        let (first, ..) = pop_write(&mut outbox).unwrap();
        outbox.failed(first, "disk full", Duration::ZERO);
        outbox.persist(StateItem::Records, vec![2]);
        outbox.tick(RETRY);
        let (second, _, bytes) = pop_write(&mut outbox).unwrap();
        assert_eq!(bytes, [2]);
        assert_eq!(outbox.pop(), None, "the older content is not written after the newer one");
        outbox.persisted(second);
        assert!(outbox.failures().is_empty());
    }

    #[test]
    fn is_saved_once_nothing_that_matters_is_on_its_way() {
        let mut outbox = Outbox::default();
        outbox.persist(StateItem::Clock, vec![1]);
        assert!(outbox.is_saved());
        outbox.persist_before_all(StateItem::Membership, vec![1]);
        assert!(!outbox.is_saved());
        for last in [StateItem::Clock, StateItem::Membership] {
            let (ticket, item, _) = pop_write(&mut outbox).unwrap();
            assert_eq!(item, last);
            assert!(!outbox.is_saved(), "{item:?} was handed out");
            outbox.persisted(ticket);
        }
        assert!(outbox.is_saved());
    }

    #[test]
    fn joins_what_is_said_on_one_stream_without_overtaking_anything() {
        let say = |stream, byte| {
            Command::Net(NetCommand::StreamSend { stream: StreamId(stream), bytes: vec![byte] })
        };
        let mut outbox = Outbox::default();
        for command in [say(1, 1), say(1, 2), say(2, 3), say(1, 4), send(5), say(1, 6)] {
            outbox.push(command);
        }
        let joined = Command::Net(NetCommand::StreamSend { stream: StreamId(1), bytes: vec![1, 2] });
        let all: Vec<_> = std::iter::from_fn(|| outbox.pop()).collect();
        assert_eq!(all, [joined, say(2, 3), say(1, 4), send(5), say(1, 6)]);
    }

    #[test]
    fn closes_a_stream_while_a_write_holds_the_rest_but_not_before_what_is_said_on_it() {
        let mut outbox = Outbox::default();
        let say = Command::Net(NetCommand::StreamSend { stream: StreamId(1), bytes: vec![1] });
        let close = |n| Command::Net(NetCommand::StreamClose { stream: StreamId(n) });
        outbox.persist_before_all(StateItem::Membership, vec![7]);
        outbox.push(say.clone());
        outbox.push(close(1));
        let Some(Command::Persist { ticket, .. }) = outbox.pop() else { panic!("a write is next") };
        outbox.push(close(2));
        assert_eq!(outbox.pop(), Some(close(2)));
        assert_eq!(outbox.pop(), None);
        outbox.persisted(ticket);
        assert_eq!([outbox.pop(), outbox.pop()], [Some(say), Some(close(1))]);
    }

    #[test]
    fn a_stream_that_is_given_up_says_no_more_and_is_never_opened_late() {
        let mut outbox = Outbox::default();
        let say = |n, byte| Command::Net(NetCommand::StreamSend { stream: StreamId(n), bytes: vec![byte] });
        let connect =
            |n| Command::Net(NetCommand::Connect { stream: StreamId(n), to: ([10, 0, 0, 1], 1).into() });
        let close = |n| Command::Net(NetCommand::StreamClose { stream: StreamId(n) });
        outbox.persist_before_all(StateItem::Membership, vec![7]);
        let Some(Command::Persist { ticket, .. }) = outbox.pop() else { panic!("a write is next") };
        for command in [say(1, 1), connect(2), say(3, 3), connect(4), say(1, 4)] {
            outbox.push(command);
        }
        let held: Vec<_> = outbox.held_back().into_iter().collect();
        assert_eq!(held, [1, 2, 3, 4].map(StreamId));
        outbox.abandon(StreamId(1));
        outbox.push(close(2));
        assert_eq!([outbox.pop(), outbox.pop()], [Some(close(1)), None]);
        outbox.persisted(ticket);
        let rest: Vec<_> = std::iter::from_fn(|| outbox.pop()).collect();
        assert_eq!(rest, [say(3, 3), connect(4)]);
    }

    #[test]
    fn writes_only_the_newest_content_of_what_is_still_queued() {
        let mut outbox = Outbox::default();
        outbox.persist_before_all(StateItem::Membership, vec![1]);
        outbox.persist_before_all(StateItem::Membership, vec![2]);
        assert!(matches!(outbox.pop(), Some(Command::Persist { bytes, .. }) if bytes == [2]));
        assert_eq!(outbox.pop(), None);
    }
}
