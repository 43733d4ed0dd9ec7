// SPDX-License-Identifier: Apache-2.0
//! The node: one state machine that owns all others.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::command::Command;
use crate::input::{Boot, Input, Now, Provisioning, Saved};
use crate::view::{Member, Phase, Status};

/// A Cluster-OS node. See the [crate documentation](crate) for its contract.
pub struct Node {
    boot: Boot,
    provisioning: Provisioning,
    started: Now,
    commands: VecDeque<Command>,
}

impl Node {
    /// A node that just started. Damaged state never stops it: it is kept aside, and `status` says so.
    pub fn new(boot: Boot, provisioning: Provisioning, _saved: Saved, now: Now) -> Self {
        Self { boot, provisioning, started: now, commands: VecDeque::new() }
    }

    /// Tells the node what happened.
    pub fn handle(&mut self, input: Input, _now: Now) {
        if let Input::Provisioned(provisioning) = input {
            self.provisioning = provisioning;
        }
    }

    /// The next effect to carry out.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When (`CLOCK_BOOTTIME`) to call `handle` with [`Input::Timeout`] at the latest.
    pub fn poll_timeout(&self) -> Option<Duration> {
        None
    }

    /// This node, for people and programs.
    pub fn status(&self, now: Now) -> Status {
        Status {
            version: self.boot.version.clone(),
            name: String::new(),
            id: String::new(),
            short_id: String::new(),
            address: String::new(),
            wireguard_key: String::new(),
            cluster: self.provisioning.settings.as_ref().map(|settings| settings.cluster_name.clone()),
            cluster_id: None,
            phase: Phase::Unprovisioned,
            detail: String::new(),
            endpoints: Vec::new(),
            members: BTreeMap::new(),
            problems: self.provisioning.problems.clone(),
            development: self.boot.development.clone(),
            labels: BTreeMap::new(),
            rejects: BTreeMap::new(),
            uptime_seconds: now.boottime.saturating_sub(self.started.boottime).as_secs(),
        }
    }

    /// All members of the cluster, this node included, ordered by name.
    pub fn members(&self, _now: Now) -> Vec<Member> {
        Vec::new()
    }
}
