// SPDX-License-Identifier: Apache-2.0
//! Whether the path to a watched member takes packets of the mesh's full size. Our own datagrams are smaller, so they and the
//! handshakes of WireGuard pass where a full packet is dropped without a word, and connections through the mesh stand still.

use std::time::Duration;

use rand::Rng;

use super::packet::encrypt;
use super::table::{Context, Sessions};
use super::{Event, PAYLOAD_WIDE_ASK, Path};
use crate::consts::width::*;
use crate::consts::{MAX_WIDE_DATAGRAM, TRANSPORT_OVERHEAD};
use crate::id::NodeId;
use crate::wire::Writer;

/// What is known of the width of the path to one member.
#[derive(Default)]
pub(super) struct Width {
    next: Duration,
    /// The question under way: its number, and the path it took.
    question: Option<(u64, Path)>,
    /// Whether a small question was answered since.
    answered_small: bool,
    in_vain: u32,
    narrow: bool,
}

impl Width {
    /// The member answered a question of usual size.
    pub(super) fn answered_small(&mut self) {
        self.answered_small = true;
    }

    /// An answer came. Gives whether it was to the question of full size.
    pub(super) fn answered(&mut self, number: u64) -> bool {
        let ours = self.question.take_if(|(asked, _)| *asked == number).is_some();
        if ours {
            (self.in_vain, self.narrow) = (0, false);
        }
        ours
    }

    /// The number of the next question, if one is due.
    fn ask(&mut self, path: Path, number: u64, now: Duration) -> Option<u64> {
        if now < self.next {
            return None;
        }
        match self.question.take() {
            Some((_, before)) if before == path && self.answered_small => {
                self.in_vain += 1;
                self.narrow |= self.in_vain >= NARROW_AFTER;
            }
            // Nothing at all was answered, which says nothing of the width.
            Some((_, before)) if before == path => {}
            Some(_) => self.in_vain = 0,
            None => {}
        }
        self.next = now + ASK_WIDE_EVERY;
        self.question = Some((number, path));
        self.answered_small = false;
        Some(number)
    }
}

impl Sessions {
    /// Watched members to whom only small datagrams get through.
    pub(crate) fn narrow(&self) -> impl Iterator<Item = NodeId> {
        self.watched.iter().filter(|(_, watch)| watch.width.narrow).map(|(id, _)| *id)
    }

    /// Asks watched members with datagrams of full size, on the path in use.
    pub(super) fn width_tick(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        for (id, watch) in &mut self.watched {
            let Some(peer) = self.peers.get_mut(id) else { continue };
            let (Some(session), Some(path)) = (&mut peer.current, peer.paths.current()) else { continue };
            let Some(number) = watch.width.ask(path, context.rng.next_u64(), now) else { continue };
            let mut payload = Writer::new().u8(PAYLOAD_WIDE_ASK).u64(number).finish();
            payload.resize(MAX_WIDE_DATAGRAM - TRANSPORT_OVERHEAD, 0);
            if let Some(bytes) = encrypt(session, &payload) {
                self.events.push(Event::Send(path, bytes));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(n: u8) -> Path {
        Path { address: ([10, 0, 0, n], 41410).into(), interface: 0 }
    }

    /// Rounds of one question each; each is answered as `answer` says: small, wide.
    fn rounds(width: &mut Width, from: u64, count: u64, path: Path, answer: (bool, bool)) {
        for n in from..from + count {
            assert_eq!(width.ask(path, n, ASK_WIDE_EVERY * n as u32), Some(n));
            assert_eq!(width.ask(path, 0, ASK_WIDE_EVERY * n as u32), None, "not before its time");
            if answer.0 {
                width.answered_small();
            }
            assert!(!width.answered(n + 1000));
            if answer.1 {
                assert!(width.answered(n));
            }
        }
    }

    #[test]
    fn a_path_on_which_only_small_ones_are_answered_is_narrow_until_a_full_one_is() {
        let mut width = Width::default();
        rounds(&mut width, 1, 5, path(1), (true, false));
        assert!(!width.narrow, "the fifth may still be answered");
        rounds(&mut width, 6, 1, path(1), (true, false));
        assert!(width.narrow);
        rounds(&mut width, 7, 1, path(1), (true, true));
        assert!(!width.narrow);
    }

    #[test]
    fn silence_and_another_path_say_nothing_of_the_width() {
        let mut width = Width::default();
        rounds(&mut width, 1, 20, path(1), (false, false));
        assert!(!width.narrow);
        for n in 0..10 {
            rounds(&mut width, 21 + n, 1, path(1 + (n % 2) as u8), (true, false));
        }
        assert!(!width.narrow);
    }
}
