// SPDX-License-Identifier: Apache-2.0
//! The parts of a node, and what most of its files do with several of them at once.

use std::net::SocketAddr;
use std::time::Duration;

use super::clock::Clock;
use super::ctx::Ctx;
use super::discovery::{Around, Discovery};
use super::links::Links;
use super::own::OwnRecord;
use super::place::Place;
use super::problems::Problems;
use super::requests::Requests;
use super::state_files::StateFiles;
use super::streams::Streams;
use super::told::Shown;
use crate::id::NodeId;
use crate::input::{Boot, Now, Provisioning};
use crate::keys::Keys;
use crate::session::{Context, Greeting, Sessions};

/// A Cluster-OS node. See the [crate documentation](crate) for its contract.
pub struct Node {
    pub(super) ctx: Ctx,
    pub(super) boot: Boot,
    pub(super) provisioning: Provisioning,
    pub(super) started: Now,
    pub(super) next_tick: Duration,
    pub(super) next_notice: Duration,
    pub(super) keys: Keys,
    pub(super) me: NodeId,
    pub(super) instance: [u8; 8],
    pub(super) own: OwnRecord,
    pub(super) place: Place,
    pub(super) links: Links,
    pub(super) clock: Clock,
    pub(super) files: StateFiles,
    pub(super) discovery: Discovery,
    pub(super) streams: Streams,
    /// Why this node stands aside.
    pub(super) quarantine: Option<String>,
    pub(super) problems: Problems,
    pub(super) requests: Requests,
    pub(super) shown: Shown,
}

impl Node {
    /// Runs something on the sessions, with all they need to know.
    pub(super) fn with_sessions<R: Default>(
        &mut self,
        run: impl FnOnce(&mut Sessions, &mut Context<'_>) -> R,
    ) -> R {
        let Some(cluster) = self.place.cluster_mut() else { return R::default() };
        let id = cluster.membership.gossip().me();
        let mut context = Context {
            now: self.ctx.boottime(),
            rng: &mut self.ctx.rng,
            rejects: &mut self.ctx.rejects,
            roster: cluster.membership.roster(),
            me: self.me,
            session_secret: self.keys.session_secret(),
            late: self.ctx.load.late(),
            greeting: Greeting {
                instance: self.instance,
                generation: id.generation,
                bump: id.bump,
                wall: self.clock.said(self.ctx.now),
            },
        };
        run(&mut cluster.sessions, &mut context)
    }

    /// Runs something on discovery, with all it needs to know. Without a join key there is nothing to discover.
    pub(super) fn with_discovery<R: Default>(
        &mut self,
        run: impl FnOnce(&mut Discovery, &Around<'_>, &mut Ctx) -> R,
    ) -> R {
        let Some(join) = self.place.join() else { return R::default() };
        let cluster = self.place.cluster();
        let around = Around {
            me: self.me,
            instance: self.instance,
            seal: &join.seal,
            membership: cluster.map(|cluster| &cluster.membership),
            lacks_paths: cluster.is_some_and(|cluster| !cluster.dialer.out_of_reach().is_empty()),
            streams: &self.streams,
            links: &self.links,
            settings: self.provisioning.settings.as_ref(),
        };
        run(&mut self.discovery, &around, &mut self.ctx)
    }

    /// Where this node can be reached.
    pub(super) fn endpoints(&self) -> Vec<SocketAddr> {
        self.links.endpoints(&self.own.signed().endpoints)
    }

    /// Whether a node is a member of this node's cluster.
    pub(super) fn is_member(&self, id: &NodeId) -> bool {
        self.place.cluster().is_some_and(|cluster| cluster.membership.roster().is_member(id))
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.place.cluster().is_some_and(|cluster| cluster.membership.is_leaving())
    }
}
