// SPDX-License-Identifier: Apache-2.0
//! What people were told last, to notice what changed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ctx::Ctx;
use super::membership::{Membership, Versions};
use crate::command::{Command, LogLevel, Notice};
use crate::consts::told::{LINES, LINES_WITHIN};
use crate::id::NodeId;
use crate::settings::Problem;
use crate::view::{MemberState, Phase};

/// What was last told, to notice changes.
#[derive(Default)]
pub(super) struct Shown {
    pub(super) hostname: String,
    pub(super) status: Option<Headline>,
    /// Of which roster and gossip `status` is, and whether the node was leaving.
    pub(super) of: Option<(Versions, bool)>,
}

/// What makes a change of the status worth telling.
#[derive(PartialEq, Eq)]
pub(super) struct Headline {
    pub(super) phase: Phase,
    pub(super) detail: String,
    pub(super) problems: Vec<Problem>,
    pub(super) endpoints: Vec<String>,
    pub(super) counts: BTreeMap<String, u32>,
}

/// What was told of each member last.
#[derive(Default)]
pub(super) struct Told {
    states: BTreeMap<NodeId, MemberState>,
    /// Lines of the log about each in the last minute.
    lines: BTreeMap<NodeId, Lines>,
}

impl Told {
    /// Tells whose state changed since the last time.
    pub(super) fn notice(&mut self, membership: &Membership, ctx: &mut Ctx) {
        for (id, standing) in membership.roster().everybody() {
            let state = membership.state_of(id, standing);
            let before = self.states.insert(id, state);
            if before == Some(state) {
                continue;
            }
            let level = match (self.lines.entry(id).or_default().one_more(ctx.boottime()), state, before) {
                (false, ..) => LogLevel::Debug,
                // A member of which nothing was heard yet did not fall.
                (true, MemberState::Down, Some(_)) => LogLevel::Warn,
                (true, ..) => LogLevel::Info,
            };
            let name = membership.name_of(&id);
            let fields = vec![
                ("member", id.to_string()),
                ("name", name.clone()),
                ("state", state.as_str().to_owned()),
            ];
            ctx.log(level, "member state changed", fields);
            ctx.push(Command::Notify(Notice::Member { id, name, state }));
        }
    }
}

/// How often the journal is told of one member: one that changes all the time fills it otherwise.
#[derive(Default)]
struct Lines {
    since: Duration,
    count: u32,
}

impl Lines {
    /// Whether one more is told; notes it.
    fn one_more(&mut self, now: Duration) -> bool {
        if now.saturating_sub(self.since) >= LINES_WITHIN {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count <= LINES
    }
}
