// SPDX-License-Identifier: Apache-2.0
//! Commands in order, with *persist, then send* as a property of the queue: behind a write that matters, nothing goes out
//! until the write is on the disk.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::command::{Command, LogLevel, StateItem, StreamId, Ticket};

/// A failed write is tried again after this pause: space may have been freed, a bad cable may be back.
const RETRY: Duration = Duration::from_secs(5);
/// Datagrams and log lines are dropped rather than queued beyond this while a slow disk holds the queue.
const MAX_QUEUE: usize = 4096;

/// The queue.
#[derive(Default)]
pub(super) struct Outbox {
    queue: VecDeque<Command>,
    /// Streams to close on which nothing more is said: that depends on no write, and each holds a descriptor meanwhile.
    closing: VecDeque<Command>,
    next_ticket: u64,
    /// The write that everything behind it waits for.
    barrier: Option<Write>,
    /// Writes that nothing waits for, kept until they are on the disk.
    others: BTreeMap<StateItem, Write>,
    /// When failed writes are tried again.
    retry_at: Option<Duration>,
    /// Why the last write of an item failed; gone once one succeeds.
    failures: BTreeMap<StateItem, String>,
}

/// A write that was handed out.
struct Write {
    ticket: Ticket,
    item: StateItem,
    bytes: Vec<u8>,
    failed: bool,
}

impl From<Write> for Command {
    fn from(Write { ticket, item, bytes, failed: _ }: Write) -> Self {
        Self::Persist { ticket, item, bytes }
    }
}

impl Outbox {
    pub(super) fn push(&mut self, command: Command) {
        // What is said on one stream at once goes out as one piece: each costs both machines a packet and a wake-up.
        if let Command::StreamSend { stream, bytes } = &command
            && let Some(Command::StreamSend { stream: before, bytes: queued }) = self.queue.back_mut()
            && before == stream
        {
            queued.extend_from_slice(bytes);
            return;
        }
        if let Command::StreamClose { stream } = &command
            && !self.queue.iter().any(|queued| is_of_stream(queued, *stream))
        {
            self.closing.push_back(command);
            return;
        }
        let droppable = matches!(
            command,
            Command::SendDatagram { .. }
                | Command::Multicast { .. }
                | Command::Broadcast { .. }
                | Command::SendToName { .. }
                | Command::Log { .. }
        );
        if !droppable || self.queue.len() < MAX_QUEUE {
            self.queue.push_back(command);
        }
    }

    pub(super) fn log(&mut self, level: LogLevel, message: &str, fields: Vec<(&'static str, String)>) {
        self.push(Command::Log { level, message: message.to_owned(), fields });
    }

    /// Queues a write. A write of the same item that was not handed out yet takes the newer content instead: everything
    /// behind it still comes after what it depends on.
    pub(super) fn persist(&mut self, item: StateItem, content: Vec<u8>) {
        let queued = self.queue.iter_mut().find_map(|command| match command {
            Command::Persist { item: queued, bytes, .. } if *queued == item => Some(bytes),
            _ => None,
        });
        if let Some(bytes) = queued {
            *bytes = content;
            return;
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.queue.push_back(Command::Persist { ticket, item, bytes: content });
    }

    pub(super) fn pop(&mut self) -> Option<Command> {
        if let Some(close) = self.closing.pop_front() {
            return Some(close);
        }
        if self.barrier.is_some() {
            return None;
        }
        let command = self.queue.pop_front()?;
        if let Command::Persist { ticket, item, bytes } = &command {
            let write = Write { ticket: *ticket, item: *item, bytes: bytes.clone(), failed: false };
            if holds(*item) {
                self.barrier = Some(write);
            } else {
                self.others.insert(*item, write);
            }
        }
        Some(command)
    }

    /// A write is on the disk.
    pub(super) fn persisted(&mut self, done: Ticket) {
        let barrier = self.barrier.take_if(|write| write.ticket == done);
        let other =
            self.others.extract_if(.., |_, write| write.ticket == done).next().map(|(_, write)| write);
        for write in barrier.into_iter().chain(other) {
            self.failures.remove(&write.item);
        }
    }

    /// A write failed: it is tried again, unless newer content of its item went out meanwhile.
    pub(super) fn failed(&mut self, ticket: Ticket, error: &str, now: Duration) {
        let writes = self.barrier.iter_mut().chain(self.others.values_mut());
        for write in writes.filter(|write| write.ticket == ticket) {
            write.failed = true;
            self.failures.insert(write.item, error.to_owned());
            self.retry_at.get_or_insert(now + RETRY);
        }
    }

    /// Tries failed writes again when it is time.
    pub(super) fn tick(&mut self, now: Duration) {
        if self.retry_at.take_if(|at| *at <= now).is_none() {
            return;
        }
        for (item, write) in self.others.extract_if(.., |_, write| write.failed).collect::<Vec<_>>() {
            let newer = |command: &Command| matches!(command, Command::Persist { item: queued, .. } if *queued == item);
            if !self.queue.iter().any(newer) {
                self.queue.push_front(write.into());
            }
        }
        if let Some(write) = self.barrier.take_if(|write| write.failed) {
            self.queue.push_front(write.into());
        }
    }

    /// Items that could not be saved, and why.
    pub(super) fn failures(&self) -> &BTreeMap<StateItem, String> {
        &self.failures
    }

    /// Whether what is said waits for a write that was handed out.
    pub(super) fn waits(&self) -> bool {
        self.barrier.is_some()
    }

    /// Whether everything that later commands depend on is on the disk.
    pub(super) fn is_saved(&self) -> bool {
        let waits = |command: &Command| matches!(command, Command::Persist { item, .. } if holds(*item));
        self.barrier.is_none() && !self.queue.iter().any(waits)
    }
}

fn is_of_stream(command: &Command, of: StreamId) -> bool {
    match command {
        Command::Connect { stream, .. } | Command::StreamSend { stream, .. } => *stream == of,
        _ => false,
    }
}

/// Whether later commands depend on a write. Records and the clock only make things faster or better.
pub(super) fn holds(item: StateItem) -> bool {
    matches!(item, StateItem::Identity | StateItem::Generation | StateItem::Membership)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(n: u8) -> Command {
        Command::Multicast { interface: 1, bytes: vec![n] }
    }

    #[test]
    fn sends_nothing_that_depends_on_an_unfinished_write() {
        let mut outbox = Outbox::default();
        outbox.push(send(1));
        outbox.persist(StateItem::Membership, vec![7]);
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
    fn repeats_a_failed_write_before_anything_else() {
        let mut outbox = Outbox::default();
        outbox.persist(StateItem::Membership, vec![7]);
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
            outbox.persist(item, vec![7]);
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
        outbox.persist(StateItem::Membership, vec![1]);
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
        let say = |stream, byte| Command::StreamSend { stream: StreamId(stream), bytes: vec![byte] };
        let mut outbox = Outbox::default();
        for command in [say(1, 1), say(1, 2), say(2, 3), say(1, 4), send(5), say(1, 6)] {
            outbox.push(command);
        }
        let joined = Command::StreamSend { stream: StreamId(1), bytes: vec![1, 2] };
        let all: Vec<_> = std::iter::from_fn(|| outbox.pop()).collect();
        assert_eq!(all, [joined, say(2, 3), say(1, 4), send(5), say(1, 6)]);
    }

    #[test]
    fn closes_a_stream_while_a_write_holds_the_rest_but_not_before_what_is_said_on_it() {
        let mut outbox = Outbox::default();
        let say = Command::StreamSend { stream: StreamId(1), bytes: vec![1] };
        let close = |n| Command::StreamClose { stream: StreamId(n) };
        outbox.persist(StateItem::Membership, vec![7]);
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
    fn writes_only_the_newest_content_of_what_is_still_queued() {
        let mut outbox = Outbox::default();
        outbox.persist(StateItem::Membership, vec![1]);
        outbox.persist(StateItem::Membership, vec![2]);
        assert!(matches!(outbox.pop(), Some(Command::Persist { bytes, .. }) if bytes == [2]));
        assert_eq!(outbox.pop(), None);
    }
}
