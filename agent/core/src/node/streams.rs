// SPDX-License-Identifier: Apache-2.0
//! All streams by number, and how many there may be of whom. A conversation is taken to go on with it and put back; nobody
//! else touches it meanwhile.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::checks::{Checks, Word};
use super::conversation::Conversation;
pub(super) use super::conversation::Purpose;
use super::ctx::Ctx;
use crate::command::{NetCommand, StreamId};
use crate::consts::streams::*;
use crate::id::NodeId;
use crate::limit::Limiter;
use crate::repeats::Repeats;
use crate::session::Sessions;
use crate::stream::Kind;

/// All streams.
pub(super) struct Streams {
    /// None: taken. Gone: ended meanwhile.
    slots: BTreeMap<StreamId, Option<Box<Conversation>>>,
    next: u64,
    limits: Limits,
    /// What somebody asked for by name, on however many streams.
    answers: Limiter,
    checks: Checks,
}

/// How often a source may begin.
pub(super) struct Limits {
    /// Key agreements and push-pulls of one source.
    accepts: Limiter,
    /// The same of the addresses of members.
    accepts_of_members: Limiter,
    /// Who has no key can repeat a first frame that he recorded.
    first_frames: Repeats,
}

impl Limits {
    pub(super) fn came_before(&mut self, first_frame: &[u8], now: Duration) -> bool {
        self.first_frames.too_often(first_frame, now)
    }

    /// Whether a source may begin one more conversation.
    pub(super) fn allow(&mut self, source: IpAddr, sessions: Option<&mut Sessions>, now: Duration) -> bool {
        self.accepts.allow(source, now)
            || (sessions.is_some_and(|sessions| sessions.is_address_of_member(source, now))
                && self.accepts_of_members.allow(source, now))
    }
}

impl Streams {
    pub(super) fn new(rng: &mut StdRng) -> Self {
        Self {
            slots: BTreeMap::new(),
            next: 0,
            limits: Limits {
                accepts: Limiter::new(ACCEPTED, rng.next_u64()),
                accepts_of_members: Limiter::new(ACCEPTED, rng.next_u64()),
                first_frames: Repeats::new(1, FIRST_FRAMES, rng.next_u64()),
            },
            answers: Limiter::new(ANSWERED, rng.next_u64()),
            checks: Checks::new(rng),
        }
    }

    pub(super) fn limits(&mut self) -> &mut Limits {
        &mut self.limits
    }

    /// Whether somebody who proved who he is may have one more answer that takes work. Who asks the same again and again is
    /// turned away.
    pub(super) fn may_ask(&mut self, node: &NodeId, now: Duration) -> bool {
        self.answers.allow_name(node.as_bytes(), now)
    }

    /// Whether one more signature is checked for somebody now.
    pub(super) fn may_check(&mut self, whose: Word, now: Duration) -> bool {
        self.checks.allow(whose, now)
    }

    /// Takes a conversation, to go on with it.
    pub(super) fn take(&mut self, id: StreamId) -> Option<Box<Conversation>> {
        self.slots.get_mut(&id)?.take()
    }

    /// Puts a conversation back that was taken, unless it ended meanwhile.
    pub(super) fn put(&mut self, id: StreamId, conversation: Box<Conversation>) {
        if let Some(slot) = self.slots.get_mut(&id) {
            *slot = Some(conversation);
        }
    }

    /// Ends a stream at once: nobody reads what is still to be said on it, or it holds a place that others need.
    pub(super) fn abandon(&mut self, id: StreamId, ctx: &mut Ctx) -> Option<Box<Conversation>> {
        ctx.outbox.abandon(id);
        self.remove(id)
    }

    /// Whether a stream has not ended.
    pub(super) fn has(&self, id: StreamId) -> bool {
        self.slots.contains_key(&id)
    }

    /// A stream that somebody else opened.
    pub(super) fn add_inbound(&mut self, id: StreamId, conversation: Conversation) {
        self.slots.insert(id, Some(Box::new(conversation)));
    }

    /// A stream that is to be opened; gives its number.
    pub(super) fn add_outbound(&mut self, conversation: Conversation) -> StreamId {
        let id = StreamId(self.next);
        self.next += 1;
        self.slots.insert(id, Some(Box::new(conversation)));
        id
    }

    /// Forgets a stream; gives its conversation if nobody has taken it.
    pub(super) fn remove(&mut self, id: StreamId) -> Option<Box<Conversation>> {
        self.slots.remove(&id).flatten()
    }

    /// Ends a stream after what was said on it.
    pub(super) fn end(&mut self, id: StreamId, ctx: &mut Ctx) {
        if self.slots.remove(&id).is_some() {
            ctx.push(NetCommand::StreamClose { stream: id });
        }
    }

    pub(super) fn end_all(&mut self, ctx: &mut Ctx) {
        while let Some((id, _)) = self.slots.pop_first() {
            ctx.push(NetCommand::StreamClose { stream: id });
        }
    }

    /// Ends those on which we ask to be admitted.
    pub(super) fn end_joining(&mut self, ctx: &mut Ctx) {
        for id in self.ids(Conversation::is_joining) {
            self.end(id, ctx);
        }
    }

    fn all(&self) -> impl Iterator<Item = (StreamId, &Conversation)> {
        self.slots.iter().filter_map(|(id, open)| Some((*id, &**open.as_ref()?)))
    }

    fn conversations(&self) -> impl Iterator<Item = &Conversation> {
        self.slots.values().flatten().map(|open| &**open)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Conversation> {
        self.slots.values_mut().flatten().map(|open| &mut **open)
    }

    fn ids(&self, of: impl Fn(&Conversation) -> bool) -> Vec<StreamId> {
        self.all().filter(|(_, open)| of(open)).map(|(id, _)| id).collect()
    }

    /// Somebody with the join key is at an address, as a beacon says that came just now.
    pub(super) fn expect(&mut self, ip: IpAddr) {
        self.all_mut()
            .filter(|open| open.is_unproven() && open.source() == ip)
            .for_each(Conversation::expect);
    }

    /// Introductions to members of a cluster that are under way.
    pub(super) fn seeking(&self, now: Duration, late: Duration) -> usize {
        let seeks = self.conversations().filter(|open| open.is_ours_for(Purpose::Seek));
        seeks.filter(|open| open.is_promising(now, late)).count()
    }

    /// Whether an introduction to a member of a cluster is tried at an address where nobody has proven anything.
    pub(super) fn is_tried_at(&self, ip: IpAddr) -> bool {
        self.conversations().any(|open| open.is_tried() && open.source() == ip)
    }

    /// Whether something is under way that we began with a node.
    pub(super) fn is_busy_with(&self, node: &NodeId) -> bool {
        self.conversations().any(|open| open.is_busy_with(node))
    }

    /// Whether something is under way that we began with a node, and may still come to something.
    pub(super) fn is_tried(&self, node: &NodeId, now: Duration, late: Duration) -> bool {
        self.conversations().any(|open| open.is_busy_with(node) && open.is_promising(now, late))
    }

    /// Streams of ours that are kept for the next push-pull, and with whom; the one that rests longest is first.
    pub(super) fn kept(&self) -> Vec<(StreamId, NodeId)> {
        let ours = self.all().filter(|(_, open)| open.is_ours());
        let mut kept: Vec<_> =
            ours.filter_map(|(id, open)| Some((open.rests()?, id, open.target()?))).collect();
        kept.sort_unstable();
        kept.into_iter().map(|(_, id, node)| (id, node)).collect()
    }

    /// Whether an admission of ours is under way.
    pub(super) fn is_joining(&self) -> bool {
        self.conversations().any(Conversation::is_joining)
    }

    /// Whether an introduction is under way. A connection on which nothing was said is none.
    pub(super) fn is_introducing(&self) -> bool {
        self.conversations().any(Conversation::is_introduction)
    }

    /// Number of streams that we opened for a purpose.
    pub(super) fn outbound_for(&self, purpose: Purpose) -> usize {
        self.conversations().filter(|open| open.is_ours_for(purpose)).count()
    }

    /// Number of those on which something is under way that began since then.
    pub(super) fn begun_since(&self, since: Duration, purpose: Purpose) -> usize {
        let young = |open: &&Conversation| {
            open.is_ours_for(purpose) && open.rests().is_none() && open.began() >= since
        };
        self.conversations().filter(young).count()
    }

    /// Whether one more of ours may be opened for a purpose.
    pub(super) fn has_room_for(&self, purpose: Purpose) -> bool {
        let most = match purpose {
            Purpose::Introduce => MAX_OUTBOUND - NOT_TO_INTRODUCE,
            Purpose::Seek | Purpose::PushPull => MAX_OUTBOUND,
        };
        self.conversations().filter(|open| open.is_ours()).count() < most
    }

    /// Which gives way to one that was just proven: one that somebody uses comes before one that is only kept, and among
    /// strangers nobody has all places.
    pub(super) fn makes_room(
        &self,
        id: StreamId,
        kind: Kind,
        source: IpAddr,
        now: Duration,
        late: Duration,
    ) -> Option<StreamId> {
        let (all, same) = self.inbound_of(kind, source);
        match kind {
            _ if same > MAX_INBOUND_PER_SOURCE => {
                self.longest_rest(|open| open.kind() == kind && open.source() == source)
            }
            Kind::Member if all > MAX_MEMBERS => self.longest_rest(|open| open.kind() == Kind::Member),
            Kind::Stranger if all > MAX_STRANGERS => self.stranger_to_end(id, source, now, late),
            _ => None,
        }
    }

    /// Whether there are not too many of a kind and a source.
    pub(super) fn has_room_of(&self, kind: Kind, source: IpAddr) -> bool {
        let (all, same) = self.inbound_of(kind, source);
        let most = match kind {
            Kind::Member => MAX_MEMBERS,
            Kind::Stranger => MAX_STRANGERS,
        };
        all <= most && same <= MAX_INBOUND_PER_SOURCE
    }

    /// A write holds back what we have to say on these.
    pub(super) fn note_held(&mut self, held: BTreeSet<StreamId>, now: Duration) {
        for id in held {
            if let Some(Some(conversation)) = self.slots.get_mut(&id) {
                conversation.note_held(now);
            }
        }
    }

    /// Those whose other side has stopped reading.
    pub(super) fn unread(&self, now: Duration) -> Vec<StreamId> {
        self.ids(|open| open.is_not_read(now))
    }

    /// The one whose other side has read nothing for longest, when all together hold too much. `id` is taken, and holds
    /// `unsent` bytes.
    pub(super) fn slowest_of_too_much(&self, unsent: usize) -> Option<StreamId> {
        let others: usize = self.conversations().map(Conversation::unsent).sum();
        if unsent + others <= ALL_UNSENT {
            return None;
        }
        let unread = self.all().filter_map(|(id, open)| Some((open.unread_since()?, id)));
        unread.min().map(|(_, id)| id)
    }

    /// Ours on which nobody proved anything for long. Who does not answer is no better than one at whose address nobody is.
    pub(super) fn silent(&self, now: Duration, late: Duration) -> Vec<StreamId> {
        self.ids(|open| open.is_ours() && !open.is_proven() && open.silent_for(now) > SILENT_FOR + late)
    }

    /// Who only introduced himself, and who lets us in and says no more, holds no place.
    pub(super) fn stalled(&self, now: Duration, late: Duration) -> Vec<StreamId> {
        self.ids(|open| {
            let silent = open.silent_for(now);
            (open.is_idle_stranger() && silent > UNPROVEN_FOR + late)
                || (open.is_joining() && silent > SILENT_FOR + late)
        })
    }

    /// Those that take too long, and those that nobody uses any more.
    pub(super) fn overdue(&self, now: Duration, late: Duration) -> Vec<StreamId> {
        self.ids(|open| open.is_overdue(now, late))
    }

    /// The one of ours on which nobody has proven anything for longest, if that is long enough to give way to one for a purpose.
    pub(super) fn gives_way(&self, purpose: Purpose, now: Duration, late: Duration) -> Option<StreamId> {
        let ours = self.all().filter(|(_, open)| {
            !open.is_proven() && (open.is_ours_for(purpose) || open.is_ours_for(Purpose::Introduce))
        });
        let (id, oldest) = ours.min_by_key(|(id, open)| (open.began_or_held(), *id))?;
        (oldest.silent_for(now) >= GIVES_WAY_AFTER + late).then_some(id)
    }

    /// Inbound ones on which something was proven: all of a kind, and those of one source among them.
    fn inbound_of(&self, kind: Kind, source: IpAddr) -> (usize, usize) {
        let inbound = self.conversations().filter(|open| open.is_inbound_of(kind));
        inbound.fold((0, 0), |(all, same), open| (all + 1, same + usize::from(open.source() == source)))
    }

    /// When there is no room for one more on which nothing is proven: the oldest of the busiest address, but one whose first
    /// frame had a right tag or seal comes last. Half of the places are for who is expected, the other half for all others.
    pub(super) fn unproven_to_end(&self) -> Option<StreamId> {
        let unproven = || self.all().filter(|(_, open)| open.is_unproven());
        if unproven().count() < MAX_UNPROVEN {
            return None;
        }
        let of_expected = unproven().filter(|(_, open)| open.is_expected()).count() > MAX_UNPROVEN / 2;
        let mut addresses = BTreeMap::new();
        for (_, open) in unproven() {
            *addresses.entry(open.source()).or_insert(0) += 1;
        }
        let same_half = unproven().filter(|(_, open)| open.is_expected() == of_expected);
        let busiest = same_half.max_by_key(|(id, open)| {
            (!open.is_knocked(), addresses[&open.source()], Reverse((open.began(), *id)))
        });
        busiest.map(|(id, _)| id)
    }

    /// Which stranger gives way to another one: who has neither asked nor been answered for a while, then who was answered and says
    /// no more, else the oldest of an address that is busier than the other's.
    fn stranger_to_end(
        &self,
        new: StreamId,
        source: IpAddr,
        now: Duration,
        late: Duration,
    ) -> Option<StreamId> {
        let strangers: Vec<_> = self.all().filter(|(_, open)| open.is_inbound_of(Kind::Stranger)).collect();
        let mut addresses = BTreeMap::new();
        for (_, open) in &strangers {
            *addresses.entry(open.source()).or_insert(0) += 1;
        }
        let same = addresses.get(&source).copied().unwrap_or(0);
        let ranked = strangers.into_iter().filter(|(id, _)| *id != new).map(|(id, open)| {
            let idle = match open.idle_for(now) {
                _ if open.is_idle_stranger() && open.silent_for(now) >= IDLE_AFTER + late => 2,
                Some(idle) if open.is_answered() && idle >= ANSWERED_IDLE_AFTER + late => 1,
                _ => 0,
            };
            let ip = open.source();
            (idle, addresses[&ip], Reverse((open.began(), id)), ip)
        });
        let (idle, busy, Reverse((_, id)), ip) = ranked.max()?;
        (idle > 0 || busy > same || ip == source).then_some(id)
    }

    /// Of those that others opened and nobody uses, the one that rests longest.
    fn longest_rest(&self, of: impl Fn(&Conversation) -> bool) -> Option<StreamId> {
        let resting = self.all().filter(|(_, open)| !open.is_ours() && of(open));
        resting.filter_map(|(id, open)| Some((open.rests()?, id))).min().map(|(_, id)| id)
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn assert_bounded(&self) {
        assert!(self.slots.len() <= 32 + 128 + 128 + 256, "{} streams", self.slots.len());
        let unsent: usize = self.conversations().map(Conversation::unsent).sum();
        assert!(unsent <= (8 << 20) + (32 << 10) * self.slots.len(), "{unsent} bytes wait for sockets");
    }
}
