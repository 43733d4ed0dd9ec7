// SPDX-License-Identifier: Apache-2.0
//! One peer: its sessions, the handshake we have under way, and where it is.

use std::collections::VecDeque;
use std::time::Duration;

use snow::{HandshakeState, StatelessTransportState};

use super::cookie::{self, Cookie};
use super::paths::Paths;
use super::window::Window;
use super::{Greeting, Path};
use crate::consts::sessions::*;
use crate::consts::ways::MAX_WAYS;
use crate::tag::TAG;

/// One session after its handshake.
pub(super) struct Session {
    pub(super) local: u32,
    pub(super) remote: u32,
    pub(super) transport: StatelessTransportState,
    pub(super) counter: u64,
    pub(super) window: Window,
    pub(super) created: Duration,
    /// When it last carried something.
    pub(super) used: Duration,
    /// When the peer last spoke on it.
    pub(super) heard: Duration,
    pub(super) greeting: Greeting,
    /// Ours to renew before it expires.
    pub(super) initiator: bool,
    /// The sender of the open proved with a cookie that it receives at its address. Without that the open may be a recording.
    /// Used until the session is proven.
    pub(super) is_source_proven: bool,
}

/// A handshake that we opened and that was not answered yet.
pub(super) struct Attempt {
    pub(super) local: u32,
    pub(super) handshake: Box<HandshakeState>,
    /// The peer's session key that it is for, and what it says of ourselves.
    pub(super) remote: [u8; 32],
    pub(super) greeting: Greeting,
    /// What was sent, to be sent again, with its tag. Behind it goes the proof of the cookie.
    pub(super) bytes: Vec<u8>,
    pub(super) cookie: Option<Cookie>,
    /// How often it was said again because of a cookie.
    pub(super) cookies: u32,
    /// Paths it was sent on, the newest last; at most [`MAX_WAYS`].
    pub(super) said_on: Vec<Path>,
    /// Answers that had a right tag and were none.
    pub(super) forged: u32,
    pub(super) began: Duration,
    /// The way it was sent last, and until when an answer is waited for.
    pub(super) path: Path,
    pub(super) retry_at: Duration,
}

/// Everything about one peer.
#[derive(Default)]
pub(super) struct Peer {
    /// The session to send on.
    pub(super) current: Option<Session>,
    /// Its predecessor, still received on.
    pub(super) previous: Option<Session>,
    /// Opened by the peer (or by a replay), not proven yet.
    pub(super) unconfirmed: VecDeque<Session>,
    pub(super) attempt: Option<Attempt>,
    pub(super) queue: VecDeque<Vec<u8>>,
    pub(super) paths: Paths,
    pub(super) last_heard: Option<Duration>,
    /// Attempts since the last success.
    pub(super) attempts: u32,
    pub(super) not_before: Duration,
}

impl Attempt {
    /// Notes where it is said now.
    pub(super) fn say_on(&mut self, path: Path) {
        self.path = path;
        self.said_on.retain(|said| *said != path);
        if self.said_on.len() >= MAX_WAYS {
            self.said_on.remove(0);
        }
        self.said_on.push(path);
    }

    /// What goes out.
    pub(super) fn said(&self) -> Vec<u8> {
        let proof = self.cookie.map_or([0; TAG], |cookie| cookie::prove(&cookie, &self.bytes));
        [&self.bytes[..], &proof].concat()
    }
}

impl Peer {
    /// The waits grow from round to round over all paths, and a round takes no longer because there are more of them.
    pub(super) fn retry_after(&self) -> Duration {
        let paths = self.paths.len().max(1) as u32;
        let round = RETRY_FIRST.saturating_mul(1 << (self.attempts / paths).min(8)).min(RETRY_MAX);
        (round / paths).max(RETRY_FIRST)
    }

    pub(super) fn enqueue(&mut self, payload: &[u8]) {
        if self.queue.len() >= MAX_QUEUE {
            self.queue.pop_front();
        }
        self.queue.push_back(payload.to_vec());
    }

    /// Whether one more session that is not proven would take the place of another one.
    pub(super) fn has_all_unconfirmed(&self) -> bool {
        self.unconfirmed.len() >= MAX_UNCONFIRMED
    }

    /// Adds a session that is not proven yet; gives the one that it pushes out: the oldest, but one whose source is proven last.
    pub(super) fn add_unconfirmed(&mut self, session: Session) -> Option<Session> {
        let least = self
            .has_all_unconfirmed()
            .then(|| (0..self.unconfirmed.len()).min_by_key(|at| self.unconfirmed[*at].is_source_proven));
        let pushed_out = least.flatten().and_then(|at| self.unconfirmed.remove(at));
        self.unconfirmed.push_back(session);
        pushed_out
    }

    /// Makes a session the current one; gives the one that is forgotten.
    pub(super) fn promote(&mut self, session: Session) -> Option<Session> {
        let older = self.current.replace(session);
        std::mem::replace(&mut self.previous, older)
    }

    /// The session with this index and whether it is proven.
    pub(super) fn session_mut(&mut self, local: u32) -> Option<(&mut Session, bool)> {
        let proven = self.current.iter_mut().chain(self.previous.iter_mut()).map(|session| (session, true));
        let unproven = self.unconfirmed.iter_mut().map(|session| (session, false));
        proven.chain(unproven).find(|(session, _)| session.local == local)
    }

    /// Takes an unproven session out.
    pub(super) fn take_unconfirmed(&mut self, local: u32) -> Option<Session> {
        let at = self.unconfirmed.iter().position(|session| session.local == local)?;
        self.unconfirmed.remove(at)
    }
}
