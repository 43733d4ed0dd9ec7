// SPDX-License-Identifier: Apache-2.0
//! From saved files to a running node, and changes of `cluster.toml`.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::clock::Clock;
use super::ctx::Ctx;
use super::discovery::Discovery;
use super::files::{self, SavedPlace};
use super::links::Links;
use super::own::OwnRecord;
use super::parts::Node;
use super::place::Place;
use super::problems::Problems;
use super::requests::Requests;
use super::state_files::StateFiles;
use super::streams::Streams;
use super::told::Shown;
use crate::command::{HostCommand, LogLevel, StateItem};
use crate::consts::clock::*;
use crate::input::{Boot, Interface, Now, Provisioning, Saved};
use crate::join_key::JoinKey;
use crate::keys::Keys;
use crate::roster::{Roster, Standing};

impl Node {
    /// A node that just started. Damaged state never stops it: it is kept aside, and `status` says so.
    pub fn new(boot: Boot, provisioning: Provisioning, saved: Saved, now: Now) -> Self {
        let mut ctx = Ctx::new(now, StdRng::from_seed(boot.seed));
        let (keys, lost_identity) = load_keys(&saved, &mut ctx);
        let me = keys.node_id();

        let last = saved.generation.as_deref().map(files::read_generation);
        // A lost counter must still not repeat: start where no earlier boot can have been.
        let lost = last.is_none_or(|last| last.is_err()) && saved.identity.is_some();
        let generation = if lost {
            (ctx.rng.next_u32() >> 12).max(1)
        } else {
            last.and_then(Result::ok).unwrap_or(0).saturating_add(1)
        };
        let mut files = StateFiles::new(now.boottime);
        files.save_generation(generation, &mut ctx);

        let saved_wall = saved.clock.as_deref().and_then(|bytes| files::read_clock(bytes).ok());
        let mut instance = [0; 8];
        ctx.rng.fill_bytes(&mut instance);
        let (discovery, streams) = (Discovery::new(now.boottime, &mut ctx.rng), Streams::new(&mut ctx.rng));
        let mut node = Self {
            clock: Clock::new(boot.build_time, saved_wall, now),
            boot,
            provisioning: Provisioning::default(),
            started: now,
            ctx,
            next_tick: now.boottime,
            next_notice: now.boottime,
            own: OwnRecord::new(&keys, generation),
            keys,
            me,
            instance,
            place: Place::new(),
            links: Links::default(),
            files,
            discovery,
            streams,
            quarantine: None,
            problems: Problems::default(),
            requests: Requests::default(),
            shown: Shown::default(),
        };
        if let Some((message, fix)) = lost_identity {
            node.problems.set("identity", &message, fix);
        }
        node.load_membership(&saved);
        node.provision(provisioning);
        node.ctx.log(
            LogLevel::Info,
            "node started",
            vec![
                ("node", me.to_string()),
                ("address", me.mesh_address().to_string()),
                ("generation", generation.to_string()),
            ],
        );
        node
    }

    fn load_membership(&mut self, saved: &Saved) {
        const WAITS: &str = "start another member of the cluster, which lets this node in again; the file is kept as membership.damaged";
        let Some(bytes) = &saved.membership else {
            // Only members keep records.
            if saved.records.is_some() {
                self.place.search();
                self.problems.set(
                    "membership",
                    "the saved membership is gone; this node was in a cluster and waits to be admitted again",
                    "start another member of the cluster, which lets this node in again; check the disk",
                );
            }
            return;
        };
        let what = match files::read_membership(bytes) {
            Ok(SavedPlace::Returning) => return self.place.search(),
            Ok(SavedPlace::Left(roster)) => return self.stay_left(roster),
            Ok(SavedPlace::Member(roster, key)) => match roster.standing(&self.me) {
                Some(standing) => return self.come_back(saved, roster, key, standing),
                // Not a leave: the file is of an earlier identity of this machine, or of another machine.
                None => "the saved membership does not name this node; it joins as a new node",
            },
            Err(_) => {
                "the saved membership is damaged; this node was in a cluster and waits to be admitted again"
            }
        };
        self.ctx.outbox.persist(StateItem::DamagedMembership, bytes.clone());
        self.place.search();
        self.problems.set("membership", what, WAITS);
    }

    /// The cluster that the saved membership describes, as it was when this node stopped.
    fn come_back(&mut self, saved: &Saved, mut roster: Roster, key: JoinKey, standing: Standing) {
        let seen = saved.records.as_deref().map(|records| files::read_records(records, &mut roster));
        if let Some(Err(_)) = seen {
            const ANEW: &str = "saved records are damaged; members will be found anew";
            self.ctx.log(LogLevel::Warn, ANEW, vec![]);
        }
        self.enter(roster, key, seen.and_then(Result::ok).unwrap_or_default());
        if standing == Standing::Left {
            self.resume_leave();
        }
    }

    /// Takes over what `cluster.toml` says.
    pub(super) fn provision(&mut self, provisioning: Provisioning) {
        let changed = self.provisioning.settings != provisioning.settings;
        self.provisioning = provisioning;
        self.choose_join_key();
        let settings = self.provisioning.settings.as_ref();
        let hostname = settings.and_then(|settings| settings.hostname.clone());
        let name = hostname.unwrap_or_else(|| self.me.default_hostname());
        if self.shown.hostname != name {
            self.shown.hostname.clone_from(&name);
            self.ctx.push(HostCommand::SetHostname { name: name.clone() });
        }
        self.own.set_hostname(name);
        self.renew_record();
        // The file may be read again and again, because its copy cannot be kept.
        if changed {
            self.discovery.restart(self.ctx.boottime());
        }
    }

    pub(super) fn interfaces_changed(&mut self, interfaces: Vec<Interface>) {
        let Some(matters) = self.links.replace(interfaces) else { return };
        let now = self.ctx.boottime();
        let up = self.links.physical().next().is_some();
        self.discovery.note_network(up, now);
        if matters {
            self.discovery.restart(now);
            let there = self.links.physical().map(|interface| interface.index).collect();
            if let Some(cluster) = self.place.cluster_mut() {
                cluster.dialer.dial_all();
                cluster.sessions.keep_interfaces(&there, now);
            }
        }
        self.renew_endpoints();
    }

    /// Persists now and then what may be lost.
    pub(super) fn files_tick(&mut self) {
        if let (Some(cluster), Some(join)) = (self.place.cluster(), self.place.join()) {
            self.files.tick(&cluster.membership, &cluster.dialer, &join.key, &mut self.ctx);
        }
    }

    /// Saves the time now and then.
    pub(super) fn clock_tick(&mut self) {
        if self.files.clock_tick(&mut self.clock, &mut self.ctx) {
            self.mind_clock();
        }
    }

    /// Names a clock that can only be put right before the next start of the mesh.
    pub(super) fn mind_clock(&mut self) {
        let others: Vec<_> =
            self.place.cluster().into_iter().flat_map(|cluster| cluster.membership.others()).collect();
        if let Some(ahead) = self.clock.ahead(&others, self.ctx.now) {
            let hours = ahead.as_secs() / 3600;
            self.problems.set_until(
                "clock",
                &format!("the clock of this node is {hours} hours ahead of most members"),
                "check its time server and the clock of its firmware, then restart the node: before its mesh starts the \
                 clock follows the majority",
                self.ctx.boottime() + CLOCK_PROBLEM,
            );
        }
    }
}

/// The identity from its file, or a new one; and what to tell when this machine had another one before.
fn load_keys(saved: &Saved, ctx: &mut Ctx) -> (Keys, Option<(String, &'static str)>) {
    let lost = match saved.identity.as_deref().map(Keys::from_file) {
        Some(Ok(keys)) => return (keys, None),
        Some(Err(_)) => {
            let damaged = saved.identity.clone().unwrap_or_default();
            ctx.outbox.persist(StateItem::DamagedIdentity, damaged);
            Some(("is damaged", "check the disk; the damaged file is kept as identity.damaged"))
        }
        None if saved.generation.is_some() || saved.membership.is_some() || saved.records.is_some() => {
            Some(("is gone", "check the disk, unless the file was removed on purpose"))
        }
        None => None,
    };
    let problem = lost.map(|(how, fix)| {
        let message = format!(
            "the saved identity {how}; this node took a new one and is a new node for the cluster, in which the old one stays listed as down"
        );
        ctx.log(LogLevel::Warn, "took a new identity", vec![("why", message.clone())]);
        (message, fix)
    });
    let mut random = [0; 96];
    ctx.rng.fill_bytes(&mut random);
    let keys = Keys::generate(&random);
    ctx.outbox.persist(StateItem::Identity, keys.to_file());
    (keys, problem)
}

impl Now {
    /// Wall clock in seconds.
    pub(crate) fn wall_secs(&self) -> u64 {
        self.wall.as_secs()
    }
}
