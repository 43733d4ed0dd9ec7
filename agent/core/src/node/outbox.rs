// SPDX-License-Identifier: Apache-2.0
//! Commands in order, with *persist, then send* as a property of the queue: behind a write that matters, nothing goes out
//! until the write is on the disk.

use std::collections::VecDeque;
use std::time::Duration;

use crate::command::{Command, LogLevel, StateItem, Ticket};

const RETRY: Duration = Duration::from_secs(5);
/// Datagrams are dropped rather than queued beyond this while a slow disk holds the queue.
const MAX_QUEUE: usize = 4096;

/// The queue.
#[derive(Default)]
pub(super) struct Outbox {
    queue: VecDeque<Command>,
    next_ticket: u64,
    /// The write that everything behind it waits for.
    barrier: Option<(Ticket, Command)>,
    retry_at: Option<Duration>,
    failure: Option<String>,
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
        let droppable = matches!(
            command,
            Command::SendDatagram { .. }
                | Command::Multicast { .. }
                | Command::Broadcast { .. }
                | Command::SendToName { .. }
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
        if self.barrier.is_some() {
            return None;
        }
        let command = self.queue.pop_front()?;
        if let Command::Persist { ticket, item, .. } = &command
            && holds(*item)
        {
            self.barrier = Some((*ticket, command.clone()));
        }
        Some(command)
    }

    pub(super) fn persisted(&mut self, done: Ticket) {
        self.failure = None;
        if self.barrier.as_ref().is_some_and(|(ticket, _)| *ticket == done) {
            self.barrier = None;
            self.retry_at = None;
        }
    }

    pub(super) fn failed(&mut self, ticket: Ticket, error: String, now: Duration) {
        self.failure = Some(error);
        if self.barrier.as_ref().is_some_and(|(waiting, _)| *waiting == ticket) {
            self.retry_at = Some(now + RETRY);
        }
    }

    /// Tries a failed write again when it is time.
    pub(super) fn tick(&mut self, now: Duration) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            if let Some((_, command)) = self.barrier.take() {
                self.queue.push_front(command);
            }
        }
    }

    /// Why the last write failed.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

/// Whether later commands depend on a write. Records and the clock only make things faster or better.
fn holds(item: StateItem) -> bool {
    matches!(item, StateItem::Identity | StateItem::Generation | StateItem::Membership)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::StreamId;

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
        outbox.failed(ticket, "disk full".into(), Duration::ZERO);
        assert_eq!(outbox.failure(), Some("disk full"));
        outbox.tick(Duration::from_secs(1));
        assert_eq!(outbox.pop(), None);
        outbox.tick(Duration::from_secs(6));
        assert!(matches!(outbox.pop(), Some(Command::Persist { .. })));
        assert_eq!(outbox.pop(), None);
        outbox.persisted(ticket);
        assert_eq!(outbox.pop(), Some(send(1)));
        assert_eq!(outbox.failure(), None);
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
    fn writes_only_the_newest_content_of_what_is_still_queued() {
        let mut outbox = Outbox::default();
        outbox.persist(StateItem::Membership, vec![1]);
        outbox.persist(StateItem::Membership, vec![2]);
        assert!(matches!(outbox.pop(), Some(Command::Persist { bytes, .. }) if bytes == [2]));
        assert_eq!(outbox.pop(), None);
    }
}
