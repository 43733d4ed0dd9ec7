// SPDX-License-Identifier: Apache-2.0
//! Which input goes to whom, and who is asked what is due when time passes.

use std::time::Duration;

use super::parts::Node;
use super::place::At;
use super::requests::{Standing, Step, Verb};
use crate::command::{Command, StateItem};
use crate::consts::ctx::TICK;
use crate::consts::router::*;
use crate::input::{Input, Now};
use crate::request::{Request, RequestId};

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
            let standing = match self.place.at() {
                _ if self.quarantine.is_some() => {
                    Standing::Quarantined(self.quarantine.clone().unwrap_or_default())
                }
                At::Member(cluster) if cluster.membership.is_leaving() => Standing::Leaving,
                At::Member(_) => Standing::Member,
                At::Left(_) => Standing::Left,
                At::Outside { .. } if self.place.join().is_none() => Standing::Unprovisioned,
                At::Outside { .. } => Standing::Outside,
            };
            let outbox = &self.ctx.outbox;
            let disk = outbox.failures().get(&StateItem::Membership).map(String::as_str);
            match self.requests.next(&standing, outbox.is_saved(), disk, self.ctx.now.boottime) {
                Some(Step::Begin(Verb::Leave)) => {
                    self.leave();
                    self.leaving_tick();
                }
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
        let cluster = self.place.cluster().filter(|_| self.quarantine.is_none());
        let sooner = cluster
            .into_iter()
            .flat_map(|cluster| [cluster.membership.gossip().timeout(), Some(cluster.push_pull.next())]);
        let sooner = sooner.chain([self.has_news().then_some(self.next_notice)]);
        Some(sooner.flatten().fold(self.next_tick, Duration::min))
    }

    /// Everything that time drives.
    fn tick(&mut self) {
        let now = self.ctx.boottime();
        if let Some(cluster) = self.place.cluster_mut()
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

    /// Goes on with a leave; what gossip has to say of it goes out before the cluster is forgotten.
    fn leaving_tick(&mut self) {
        if self.tell_leave() {
            self.pump();
            self.finish_leave();
        }
    }
}
