// SPDX-License-Identifier: Apache-2.0
//! A leave under way: it is told to the others for a while, and then this node is out.

use std::time::Duration;

use crate::consts::leaving::*;
use crate::roster::Leave;
use crate::signed::Verified;

/// The signed leave, and when it is told to whom.
pub(super) struct Leaving {
    /// When it ends if no member can be told.
    at_last: Duration,
    /// When it ends; known once there is somebody to tell.
    until: Option<Duration>,
    next: Duration,
    object: Vec<u8>,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    /// Send this object to all members with a session.
    Tell(Vec<u8>),
    Out,
}

impl Leaving {
    pub(super) fn new(leave: &Verified<Leave>, now: Duration) -> Self {
        Self::ending(leave, now, NOBODY_FOR)
    }

    /// One that was signed and saved before the agent stopped.
    pub(super) fn resumed(leave: &Verified<Leave>, now: Duration) -> Self {
        Self::ending(leave, now, NOBODY_FOR_RESUMED)
    }

    fn ending(leave: &Verified<Leave>, now: Duration, patience: Duration) -> Self {
        Self { at_last: now + patience, until: None, next: now, object: leave.as_bytes().to_vec() }
    }

    /// `alone`: there are no other members. `reaches`: there is a session with one.
    pub(super) fn tick(&mut self, alone: bool, reaches: bool, now: Duration) -> Step {
        if alone {
            self.until = Some(now);
        } else if reaches {
            self.until.get_or_insert(now + TELL_FOR);
        }
        if now >= self.until.unwrap_or(self.at_last) {
            return Step::Out;
        }
        if now < self.next {
            return Step::Wait;
        }
        self.next = now + TELL_EVERY;
        Step::Tell(self.object.clone())
    }
}
