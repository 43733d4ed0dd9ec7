// SPDX-License-Identifier: Apache-2.0
//! What is known of the cluster and of who is alive in it: roster and gossip. Everything that is learned comes in here, and
//! only here are the two written, so that gossip never lacks what the roster says.

use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::ctx::Ctx;
use super::leaving::Leaving;
use super::newcomers::Newcomers;
use crate::command::{LogLevel, Ticket};
use crate::consts::membership::*;
use crate::gossip::{Gossip, GossipId, Liveness, Outcome, Word};
use crate::id::NodeId;
use crate::record::NodeRecord;
use crate::roster::{Learned, Object, Roster, Standing, Union};
use crate::signed::{ObjectDigest, Verified};
use crate::summary::Summary;
use crate::view::MemberState;

const CONTRADICTS: &str = "object that contradicts what is known";
/// Usual while nodes join: a newcomer's record may come before its admission.
const ABOUT_NO_MEMBER: &str = "object about a node that is no member";

/// Versions of roster and gossip; work that walks all members is done when they changed, not at every tick.
pub(super) type Versions = (u64, u64);

/// The cluster that this node belongs to, as far as it knows.
pub(super) struct Membership {
    me: NodeId,
    roster: Roster,
    gossip: Gossip,
    since: Duration,
    quiet: Quiet,
    newcomers: Newcomers,
    /// Objects that the others are told once these writes are on the disk, and whom each is about.
    pending_broadcasts: Vec<(Ticket, NodeId, Vec<u8>)>,
    /// A leave was signed; the node tells the others.
    leaving: Option<Leaving>,
}

/// How long the roster has been as it is.
#[derive(Default)]
struct Quiet {
    version: u64,
    since: Duration,
}

impl Membership {
    pub(super) fn new(roster: Roster, id: GossipId, seed: [u8; 32], now: Duration) -> Self {
        Self {
            me: id.node,
            roster,
            gossip: Gossip::new(id, StdRng::from_seed(seed)),
            since: now,
            quiet: Quiet::default(),
            newcomers: Newcomers::default(),
            pending_broadcasts: Vec::new(),
            leaving: None,
        }
    }

    /// This node.
    pub(super) fn me(&self) -> NodeId {
        self.me
    }

    pub(super) fn roster(&self) -> &Roster {
        &self.roster
    }

    pub(super) fn into_roster(self) -> Roster {
        self.roster
    }

    pub(super) fn gossip(&self) -> &Gossip {
        &self.gossip
    }

    pub(super) fn versions(&self) -> Versions {
        (self.roster.version(), self.gossip.version())
    }

    /// When this node entered the cluster in this boot.
    pub(super) fn since(&self) -> Duration {
        self.since
    }

    /// All members but this node.
    pub(super) fn others(&self) -> impl Iterator<Item = NodeId> {
        self.roster.members().filter(|id| *id != self.me)
    }

    /// Host name of a member; the default one while its record is missing.
    pub(super) fn name_of(&self, id: &NodeId) -> String {
        self.roster.record(id).map_or_else(|| id.default_hostname(), |record| record.hostname.clone())
    }

    /// State of one who is or was a member.
    pub(super) fn state_of(&self, id: NodeId, standing: Standing) -> MemberState {
        match standing {
            Standing::Left => MemberState::Left,
            Standing::Member if id == self.me => MemberState::Up,
            Standing::Member => self.gossip.states().get(&id).map_or(MemberState::Down, Liveness::shown),
        }
    }

    pub(super) fn is_up(&self, id: &NodeId) -> bool {
        self.gossip.state(id) == Some(MemberState::Up)
    }

    /// Whether gossip has heard of a node and does not hold it for down.
    pub(super) fn is_there(&self, id: &NodeId) -> bool {
        self.gossip.states().get(id).is_some_and(|one| one.shown() != MemberState::Down)
    }

    /// Whether this very object is known. Much cheaper than checking its signature again.
    pub(super) fn knows(&self, bytes: &[u8]) -> bool {
        self.roster.knows(&ObjectDigest::of(bytes))
    }

    /// What is known, in short.
    pub(super) fn summary(&self) -> Summary {
        let gone = self.roster.everybody().filter(|(_, standing)| *standing == Standing::Left);
        let alive = self.gossip.folded(&gone.map(|(id, _)| id).collect());
        Summary { objects: self.roster.folded().clone(), alive }
    }

    /// How long the roster has been as it is. Called at every tick.
    pub(super) fn watch_quiet(&mut self, now: Duration) -> Duration {
        if self.quiet.version != self.roster.version() {
            self.quiet = Quiet { version: self.roster.version(), since: now };
        }
        self.quiet_for(now)
    }

    /// The same as of the last tick.
    pub(super) fn quiet_for(&self, now: Duration) -> Duration {
        now.saturating_sub(self.quiet.since)
    }

    /// Takes a verified object, and passes on what is new; but `later` only when it is
    /// saved. `from` is who told us, if anybody did.
    pub(super) fn learn(
        &mut self,
        object: Object,
        from: Option<NodeId>,
        later: bool,
        ctx: &mut Ctx,
    ) -> Learned {
        let (bytes, about) = (object.as_bytes().to_vec(), object.about());
        let learned = self.roster.add(object);
        match learned {
            Learned::Nothing => {}
            Learned::Refused | Learned::Unknown => {
                ctx.rejects.count(if learned == Learned::Refused { CONTRADICTS } else { ABOUT_NO_MEMBER });
                if let Some(from) = from {
                    let fields = vec![("about", about.short()), ("from", from.short())];
                    ctx.log(LogLevel::Debug, "refused an object", fields);
                }
            }
            Learned::Membership if later => self.recall(ctx.boottime()),
            Learned::Record | Learned::Membership => {
                // The others refuse a record that they hear before the admission of its node.
                match self.pending_broadcasts.iter().rev().find(|(_, pending, _)| *pending == about) {
                    Some((ticket, ..)) => self.broadcast_when_saved(*ticket, about, bytes, ctx),
                    None => self.gossip.broadcast(ctx.boottime(), &bytes),
                }
                self.recall(ctx.boottime());
            }
        }
        learned
    }

    /// The others are told of an object when it is on the disk. Of too many they hear by push-pull.
    pub(super) fn broadcast_when_saved(
        &mut self,
        ticket: Ticket,
        about: NodeId,
        object: Vec<u8>,
        ctx: &mut Ctx,
    ) {
        if self.pending_broadcasts.len() < MAX_PENDING_BROADCASTS {
            self.pending_broadcasts.push((ticket, about, object));
        } else {
            ctx.rejects.count("object left to push-pulls, because too many wait for the disk");
        }
    }

    /// A write is on the disk.
    pub(super) fn broadcast_saved(&mut self, done: Ticket, now: Duration) {
        for (_, _, object) in self.pending_broadcasts.extract_if(.., |(ticket, ..)| *ticket == done) {
            self.gossip.broadcast(now, &object);
        }
    }

    /// Takes many objects that a member gave. They are not passed on: the others push and pull too.
    pub(super) fn learn_all(&mut self, objects: Vec<Object>, from: NodeId, ctx: &mut Ctx) -> Union {
        let union = self.roster.unite(objects);
        for _ in 0..union.refused {
            ctx.rejects.count(CONTRADICTS);
        }
        for _ in 0..union.unknown {
            ctx.rejects.count(ABOUT_NO_MEMBER);
        }
        if union.refused > 0 {
            let fields = vec![("objects", union.refused.to_string()), ("from", from.short())];
            ctx.log(LogLevel::Debug, "refused objects", fields);
        }
        if union.records || union.membership {
            self.recall(ctx.boottime());
        }
        union
    }

    /// Takes this node's own record.
    pub(super) fn take_own(&mut self, record: Verified<NodeRecord>) {
        self.roster.add(Object::Record(record));
    }

    /// The same, and tells the others.
    pub(super) fn tell_own(&mut self, record: Verified<NodeRecord>, now: Duration) {
        let bytes = record.as_bytes().to_vec();
        self.take_own(record);
        self.gossip.broadcast(now, &bytes);
    }

    fn recall(&mut self, now: Duration) {
        self.gossip.recall(now, |node| word(&self.roster, node));
    }

    /// Takes what another member's gossip knows. Gives whether that changed anything.
    pub(super) fn hear_alive(&mut self, known: Vec<Liveness>, now: Duration) -> bool {
        let before = self.gossip.version();
        self.gossip.hear_all(now, known, |node| word(&self.roster, node));
        self.gossip.version() != before
    }

    /// A gossip packet came through the session with a member.
    pub(super) fn hear_packet(&mut self, from: NodeId, packet: &[u8], ctx: &mut Ctx) {
        let heard = self.gossip.receive(ctx.boottime(), from, packet, |node| word(&self.roster, node));
        if let Err(reason) = heard {
            ctx.rejects.count(reason);
        }
    }

    /// Somebody passed on something new about a node, as everybody does once: it is up, and so are others of whom that was
    /// waited for.
    pub(super) fn hear_news_of(&mut self, node: NodeId, now: Duration) {
        self.hear_newcomers(std::iter::once(node), now);
    }

    /// A push-pull brought admissions of these dates.
    pub(super) fn hear_admitted(&mut self, dated: &[(NodeId, u64)], ctx: &Ctx) {
        let recent = Newcomers::recent(dated, ctx.now);
        self.hear_newcomers(recent, ctx.boottime());
    }

    fn hear_newcomers(&mut self, nodes: impl Iterator<Item = NodeId>, now: Duration) {
        for node in nodes {
            if self.roster.is_member(&node) && self.gossip.state(&node).is_none() {
                self.newcomers.hear(node, now);
            }
        }
        let up = self.newcomers.take_up(&self.roster, &self.gossip, now);
        if !up.is_empty() {
            self.gossip.apply(now, up.into_iter());
        }
    }

    /// A node that this one admitted is up, as we found out ourselves.
    pub(super) fn vouch_for(&mut self, record: &NodeRecord, now: Duration) {
        let up = Liveness::since_boot(record.node_id(), record.sequence.generation);
        if self.roster.is_member(&up.id.node) {
            self.gossip.vouch(now, up);
        }
    }

    /// Tells a member that this node is there.
    pub(super) fn announce_to(&mut self, member: GossipId, now: Duration) {
        self.gossip.announce(now, member);
    }

    /// A member that spoke of what is not known here is asked now.
    pub(super) fn asks(&mut self, member: &NodeId) {
        self.gossip.ask(member);
    }

    /// Another gossip identity of this node.
    pub(super) fn reidentify(&mut self, generation: u32, bump: u32, now: Duration) {
        self.gossip.reidentify(now, generation, bump);
    }

    pub(super) fn tick(&mut self, now: Duration) {
        self.gossip.tick(now);
    }

    pub(super) fn take_outcomes(&mut self) -> Vec<Outcome> {
        self.gossip.take_outcomes()
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// A leave of this node begins, or goes on after a restart.
    pub(super) fn begin_leave(&mut self, leaving: Leaving) {
        self.leaving = Some(leaving);
    }

    /// What is to be done for a leave. `reached`: members with a session.
    pub(super) fn leave_tick(&mut self, reached: &[NodeId], now: Duration) -> Option<super::leaving::Step> {
        let alone = self.roster.members().all(|id| id == self.me);
        let step = self.leaving.as_mut()?.tick(alone, !reached.is_empty(), now);
        if step == super::leaving::Step::Out {
            self.gossip.leave(now);
        }
        Some(step)
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn assert_bounded(&self) {
        self.gossip.assert_bounded();
        self.newcomers.assert_bounded();
    }
}

/// What a node signed last, for what others say of it.
fn word(roster: &Roster, node: &NodeId) -> Word {
    match roster.record(node) {
        _ if !roster.is_member(node) => Word::Stranger,
        Some(record) => Word::Signed(record.sequence),
        None => Word::Missing,
    }
}
