// SPDX-License-Identifier: Apache-2.0
//! The node: one state machine that owns all others. This file has its contract and its parts; what it does is in the
//! files beside it, one concern each.

mod checks;
mod clock;
mod cluster;
mod conversation;
mod ctx;
mod dialer;
mod discovery;
mod exchange;
mod files;
mod founding;
mod introduce;
mod leaving;
mod links;
mod membership;
mod mesh;
mod names;
mod neighbours;
mod newcomers;
mod outbox;
mod output;
mod overlay;
mod own;
mod paths;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod probe;
mod problems;
mod push_pull;
mod requests;
mod start;
mod state_files;
mod stream_io;
mod streams;
mod views;

use std::time::Duration;

use ctx::{Ctx, TICK};
use dialer::Dialer;
use links::Links;
use membership::{Membership, Versions};
use mesh::MeshPlanner;
use own::OwnRecord;
use problems::Problems;
use push_pull::PushPull;
use requests::{Requests, Standing, Step, Verb};
use state_files::StateFiles;

use crate::beacon::Seal;
use crate::command::{Command, StateItem};
use crate::id::NodeId;
use crate::input::{Boot, Input, Now, Provisioning};
use crate::join_key::JoinKey;
use crate::keys::Keys;
use crate::request::{Request, RequestId};
use crate::roster::Roster;
use crate::session::Sessions;

/// Changes of members are told at once, but not more often.
const NOTICE_GAP: Duration = Duration::from_millis(50);

/// A Cluster-OS node. See the [crate documentation](crate) for its contract.
pub struct Node {
    ctx: Ctx,
    boot: Boot,
    provisioning: Provisioning,
    started: Now,
    next_tick: Duration,
    next_notice: Duration,
    keys: Keys,
    me: NodeId,
    instance: [u8; 8],
    own: OwnRecord,
    /// The join key in force: the cluster's for a member, else the file's.
    join: Option<Join>,
    place: Place,
    links: Links,
    clock: clock::Clock,
    files: StateFiles,
    discovery: discovery::Discovery,
    streams: streams::Streams,
    /// Why this node stands aside.
    quarantine: Option<String>,
    problems: Problems,
    requests: Requests,
    shown: views::Shown,
}

/// A join key and what follows from it.
struct Join {
    key: JoinKey,
    seal: Seal,
    psk: [u8; 32],
}

impl Join {
    fn new(key: JoinKey) -> Self {
        Self { seal: Seal::new(&key.discovery_key()), psk: key.admission_psk(), key }
    }
}

/// Where the node stands.
enum Place {
    /// In no cluster. One that was ever admitted does not found.
    Outside {
        may_found: bool,
    },
    Member(Box<Cluster>),
    /// Left on request; `clusterctl join` brings it back.
    Left(Box<Roster>),
}

/// Everything about the cluster this node belongs to.
struct Cluster {
    membership: Membership,
    sessions: Sessions,
    dialer: Dialer,
    push_pull: PushPull,
    mesh: MeshPlanner,
    told: views::Told,
}

impl Node {
    /// Tells the node what happened.
    pub fn handle(&mut self, input: Input, now: Now) {
        self.ctx.now = now;
        match input {
            Input::Persisted(ticket) => self.persisted(ticket),
            Input::PersistFailed { ticket, error } => self.ctx.outbox.failed(ticket, &error, now.boottime),
            Input::Provisioned(provisioning) => self.provision(provisioning),
            Input::External { area, message, fix } => self.problems.set_external(&area, &message, &fix),
            Input::Request { id, request } => self.request(id, request),
            Input::Timeout => {}
            _ if self.quarantine.is_some() => {}
            Input::Datagram { from, interface, bytes } => self.datagram(from, interface, &bytes),
            Input::StreamAccepted { stream, from } => self.stream_accepted(stream, from),
            Input::StreamConnected { stream } => self.stream_connected(stream),
            Input::StreamData { stream, bytes } => self.stream_data(stream, &bytes),
            Input::StreamSent { stream, bytes } => self.stream_sent(stream, bytes),
            Input::StreamClosed { stream } => self.stream_closed(stream),
            Input::Interfaces(interfaces) => self.interfaces_changed(interfaces),
            Input::MeshStats(stats) => self.mesh_stats(stats),
        }
        self.serve_requests();
        self.tick();
        self.pump();
        if self.has_news() && self.ctx.boottime() >= self.next_notice {
            self.notice_changes();
            self.next_notice = self.ctx.boottime() + NOTICE_GAP;
        }
    }

    fn request(&mut self, id: RequestId, request: Request) {
        let now = self.ctx.boottime();
        let added = match request {
            Request::Leave => self.requests.add(id, Verb::Leave, now),
            Request::Join => self.requests.add(id, Verb::Join, now),
            Request::Releases(held) => {
                let result = self.hold_releases(&held);
                return self.ctx.push(Command::Answer { id, result });
            }
        };
        if let Err(refusal) = added {
            self.ctx.push(Command::Answer { id, result: Err(refusal) });
        }
    }

    /// Begins leaves and joins whose turn it is, and answers those that are done.
    fn serve_requests(&mut self) {
        while !self.requests.is_empty() {
            let standing = match &self.place {
                _ if self.quarantine.is_some() => {
                    Standing::Quarantined(self.quarantine.clone().unwrap_or_default())
                }
                Place::Member(cluster) if cluster.membership.is_leaving() => Standing::Leaving,
                Place::Member(_) => Standing::Member,
                Place::Left(_) => Standing::Left,
                Place::Outside { .. } if self.join.is_none() => Standing::Unprovisioned,
                Place::Outside { .. } => Standing::Outside,
            };
            let outbox = &self.ctx.outbox;
            let disk = outbox.failures().get(&StateItem::Membership).map(String::as_str);
            match self.requests.next(&standing, outbox.is_saved(), disk, self.ctx.now.boottime) {
                Some(Step::Begin(Verb::Leave)) => self.leave(),
                Some(Step::Begin(Verb::Join)) => self.rejoin(),
                Some(Step::Answer(id, result)) => self.ctx.push(Command::Answer { id, result }),
                None => return,
            }
        }
    }

    /// The next effect to carry out.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.ctx.outbox.pop()
    }

    /// When (`CLOCK_BOOTTIME`) to call `handle` with [`Input::Timeout`] at the latest.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let cluster = self.cluster().filter(|_| self.quarantine.is_none());
        let sooner = cluster
            .into_iter()
            .flat_map(|cluster| [cluster.membership.gossip().timeout(), Some(cluster.push_pull.next())]);
        let sooner = sooner.chain([self.has_news().then_some(self.next_notice)]);
        Some(sooner.flatten().fold(self.next_tick, Duration::min))
    }

    /// Everything that time drives.
    fn tick(&mut self) {
        let now = self.ctx.boottime();
        if let Place::Member(cluster) = &mut self.place
            && self.quarantine.is_none()
        {
            cluster.membership.tick(now);
            self.push_pull_tick();
        }
        if now < self.next_tick {
            return;
        }
        self.ctx.load.measure(self.next_tick, now);
        self.next_tick = now + TICK;
        self.ctx.outbox.tick(now);
        self.clock_tick();
        self.problems.tick(now);
        if self.quarantine.is_none() {
            self.endpoints_tick();
            self.beacon_tick();
            self.seek_tick();
            self.stream_tick();
            self.founding_tick();
            self.overlay_tick();
            self.leaving_tick();
            self.pump();
            let moved = self.paths_tick();
            self.mesh_tick(&moved);
            self.files_tick();
        }
        self.notice_changes();
    }

    fn cluster(&self) -> Option<&Cluster> {
        match &self.place {
            Place::Member(cluster) => Some(cluster),
            _ => None,
        }
    }

    fn cluster_mut(&mut self) -> Option<&mut Cluster> {
        match &mut self.place {
            Place::Member(cluster) => Some(cluster),
            _ => None,
        }
    }
}
