// SPDX-License-Identifier: Apache-2.0
//! Who is alive: SWIM with suspicion, by foca. What foca 2.0 needs around it is here; see `docs/adr/` and platform notes.
//!
//! * `notify_down_members` is off while `ChangeSuspectToDown` runs, or live members that refuted are told they are down.
//! * Members that are new are not pinged: foca takes whom it probes from its own list, so it is told that they answered.
//! * Broadcasts that arrive only go to the node, which verifies them and hands back what was new.
//! * A ping that is not answered is sent again, or every lost datagram would be a suspicion: at a thousand nodes that lose
//!   one in twenty, fifty in a second.
//! * What a packet says of nodes that were never admitted, or not yet to our knowledge, does not reach foca: it would probe
//!   them, could not reach them, and would declare members down whose admission is still on its way to us. That they are
//!   alive is kept until their admission is here. What is no news does not reach it either: foca searches all members for
//!   each, and of what goes round most is heard many times.
//! * The identity that a packet claims must be the peer of the session it came through.
//! * What members say of each other counts only as far as the named node's own record covers it ([`claims`]).

mod claims;
mod codec;
mod early;
mod inbox;
mod members;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{Config, Foca, Identity, Member, Notification, PeriodicParams, State, Timer};
use rand::rngs::StdRng;

use claims::Claims;
pub(crate) use claims::Word;
use codec::GossipCodec;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use codec::envelope as packet_envelope;
use codec::{Envelope, Probe, acknowledgement, envelope, objects, only};
pub(crate) use codec::{LIVENESS, Liveness, readdressed};
use early::Early;
use inbox::Inbox;
use members::Members;

use crate::consts::GOSSIP_PACKET;
use crate::consts::gossip::*;
use crate::id::NodeId;
use crate::record::NodeRecord;
use crate::summary::Folded;
use crate::view::MemberState;

/// A node in gossip. Of two identities of one node the one with higher generation, then higher bump, counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GossipId {
    pub(crate) node: NodeId,
    /// Boots of the node, persisted.
    pub(crate) generation: u32,
    /// Renewals within the boot, after others declared it down. At most the counter of the node's record.
    pub(crate) bump: u32,
}

impl Identity for GossipId {
    type Addr = NodeId;

    /// foca renews nothing: the next identity is the node's to choose ([`claims`]).
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        (self.generation, self.bump) > (adversary.generation, adversary.bump)
    }
}

fn config(notify_down_members: bool) -> Config {
    let periodic = |(frequency, members)| {
        let num_members = NonZeroUsize::new(members).unwrap_or(NonZeroUsize::MIN);
        Some(PeriodicParams { frequency, num_members })
    };
    Config {
        probe_period: PROBE_PERIOD,
        probe_rtt: PROBE_RTT,
        num_indirect_probes: NonZeroUsize::new(INDIRECT_PROBES).unwrap_or(NonZeroUsize::MIN),
        max_transmissions: NonZeroU8::new(TRANSMISSIONS).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: SUSPECT_TO_DOWN,
        remove_down_after: None,
        max_packet_size: NonZeroUsize::new(GOSSIP_PACKET).unwrap_or(NonZeroUsize::MIN),
        notify_down_members,
        periodic_announce: periodic(ANNOUNCE),
        periodic_announce_to_down_members: periodic(ANNOUNCE_TO_DOWN),
        periodic_gossip: periodic(NEWS),
    }
}

/// What gossip gives back.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Send this packet to a member.
    Send(NodeId, Vec<u8>),
    /// Send this packet to this member, or to any other: it carries news.
    Spread(NodeId, Vec<u8>),
    /// Send this packet once more, on every way there is: it was not answered.
    Again(NodeId, Vec<u8>),
    /// A member answered none of our pings.
    Silent(NodeId),
    /// A member passed on an object; not verified yet.
    Heard(NodeId, Vec<u8>),
    /// Others believe that this node is down, or that it has another identity. It has to take one above all that its record
    /// covers.
    Renew,
    /// A member spoke of a node that is none, or of a boot that has no record, to our knowledge.
    Unknown,
}

/// A ping that waits for its answer.
struct Ping {
    to: NodeId,
    number: u8,
    packet: Vec<u8>,
    again: Duration,
    sent: u8,
}

/// The gossip of one node in one cluster.
pub(crate) struct Gossip {
    foca: Foca<GossipId, GossipCodec, StdRng, Inbox>,
    timers: BTreeMap<(Duration, u64), Timer<GossipId>>,
    next_timer: u64,
    outcomes: Vec<Outcome>,
    inbox: Inbox,
    ping: Option<Ping>,
    members: Members,
    early: Early,
    version: u64,
    /// Before this no lateness of this node is excused again.
    next_excuse: Duration,
    answers: claims::Answers,
}

impl Gossip {
    pub(crate) fn new(me: GossipId, rng: StdRng) -> Self {
        let inbox = Inbox::default();
        Self {
            foca: Foca::with_custom_broadcast(me, config(true), rng, GossipCodec, inbox.clone()),
            inbox,
            timers: BTreeMap::new(),
            next_timer: 0,
            outcomes: Vec::new(),
            ping: None,
            members: Members::default(),
            early: Early::default(),
            version: 0,
            next_excuse: Duration::ZERO,
            answers: claims::Answers::default(),
        }
    }

    /// Our identity as it is now; foca renews it by itself.
    pub(crate) fn me(&self) -> GossipId {
        *self.foca.identity()
    }

    pub(crate) fn take_outcomes(&mut self) -> Vec<Outcome> {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        outcomes.extend(self.inbox.drain().into_iter().map(|(from, bytes)| Outcome::Heard(from, bytes)));
        // Of the objects in a packet foca puts the longest first: a record before the admission of its node, without which it
        // would be refused.
        let is_record =
            |one: &Outcome| matches!(one, Outcome::Heard(_, bytes) if NodeRecord::signer_of(bytes).is_some());
        outcomes.sort_by_key(is_record);
        outcomes
    }

    /// State of a member, `None` when gossip has not heard of it.
    pub(crate) fn state(&self, node: &NodeId) -> Option<MemberState> {
        self.identity(node).map(|(_, state)| state)
    }

    /// Number of members that are up.
    pub(crate) fn up(&self) -> usize {
        self.foca.num_members()
    }

    /// Identity and state of a member.
    pub(crate) fn identity(&self, node: &NodeId) -> Option<(GossipId, MemberState)> {
        self.states().get(node).map(|one| (one.id, one.shown()))
    }

    /// All that gossip has heard of.
    pub(crate) fn states(&self) -> &BTreeMap<NodeId, Liveness> {
        self.members.by_node()
    }

    /// Grows whenever an identity or a state changes.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// All that gossip knows, for a push-pull. Ourselves included, so that the other side need not hear it elsewhere; of
    /// our earlier identities nobody else keeps anything.
    pub(crate) fn liveness(&self) -> impl Iterator<Item = Liveness> {
        let others = self.states().values().filter(|one| one.id.node != self.me().node);
        std::iter::once(self.myself()).chain(others.copied())
    }

    /// The same in short, without those that are gone.
    pub(crate) fn folded(&self, gone: &BTreeSet<NodeId>) -> Folded {
        let mut folded = self.members.folded().clone();
        let me = self.me().node;
        let earlier = (!gone.contains(&me)).then_some(&me);
        for one in gone.iter().chain(earlier).filter_map(|node| self.states().get(node)) {
            folded.alive(one);
        }
        if !gone.contains(&me) {
            folded.alive(&self.myself());
        }
        folded
    }

    fn myself(&self) -> Liveness {
        Liveness { id: self.me(), incarnation: 0, state: State::Alive }
    }

    /// Takes over what is true to our own knowledge.
    pub(crate) fn apply(&mut self, now: Duration, known: impl Iterator<Item = Liveness>) {
        let members = known.map(|one| Member::new(one.id, one.incarnation, one.state));
        self.run(now, |foca, runtime| foca.apply_many(members, false, runtime));
    }

    /// Takes over what another member knows, as far as records cover it. It gave its records before.
    pub(crate) fn hear_all(&mut self, now: Duration, known: Vec<Liveness>, word: impl Fn(&NodeId) -> Word) {
        let mut claims = Claims::new(self.me(), &self.members, &mut self.answers);
        let taken: Vec<_> = known.into_iter().filter(|one| claims.takes(one, word(&one.id.node))).collect();
        self.apply(now, taken.into_iter());
        self.answer(now);
    }

    /// Answers what others say of this node, if it is time.
    fn answer(&mut self, now: Duration) {
        if let Some(incarnation) = self.answers.refute_now(now) {
            let suspect = Member::new(self.me(), incarnation, State::Suspect);
            self.run(now, |foca, runtime| foca.apply_many(std::iter::once(suspect), false, runtime));
        }
        if self.answers.renew_now(now) {
            self.outcomes.push(Outcome::Renew);
        }
    }

    /// There are new members or records: takes over what was said of them before.
    pub(crate) fn recall(&mut self, now: Duration, word: impl Fn(&NodeId) -> Word) {
        let said = self.early.take(now, |one| word(&one.id.node).covers(&one.id));
        if !said.is_empty() {
            self.hear_all(now, said, word);
        }
    }

    /// Members that spoke of nodes that are no members, to our knowledge, and were not asked about them yet.
    pub(crate) fn speakers(&self, now: Duration) -> BTreeSet<NodeId> {
        self.early.speakers(now)
    }

    /// One of them is asked now.
    pub(crate) fn ask(&mut self, node: &NodeId) {
        self.early.ask(node);
    }

    /// Takes over what we found out ourselves, and tells the others.
    pub(crate) fn vouch(&mut self, now: Duration, one: Liveness) {
        let member = Member::new(one.id, one.incarnation, one.state);
        self.run(now, |foca, runtime| foca.apply_many(std::iter::once(member), true, runtime));
    }

    /// Tells a member that we are there.
    pub(crate) fn announce(&mut self, now: Duration, to: GossipId) {
        self.run(now, |foca, runtime| foca.announce(to, runtime));
    }

    /// A packet came through the session with `from`.
    pub(crate) fn receive(
        &mut self,
        now: Duration,
        from: NodeId,
        packet: &[u8],
        word: impl Fn(&NodeId) -> Word,
    ) -> Result<(), &'static str> {
        const MALFORMED: &str = "gossip malformed";
        let envelope = envelope(packet).map_err(|_| MALFORMED)?;
        if envelope.source.node != from {
            return Err("gossip in the name of another node");
        }
        if !word(&from).covers(&envelope.source) {
            // Its record may be in this very packet, or can be asked for.
            let source = Liveness { id: envelope.source, incarnation: 0, state: State::Alive };
            let news = self.early.hear(source, from, now);
            self.outcomes.extend(news.then_some(Outcome::Unknown));
            let objects = objects(packet, &envelope).map_err(|_| MALFORMED)?;
            self.outcomes.extend(objects.into_iter().map(|object| Outcome::Heard(from, object.to_vec())));
            return Err("gossip under an identity that its node's record does not cover");
        }
        if let Probe::Ack(number) = envelope.probe {
            self.ping.take_if(|ping| ping.to == from && ping.number == number);
        }
        let me = self.me();
        if envelope.undead && envelope.destination == me {
            self.answers.renew = true;
            self.answer(now);
            return Ok(());
        }
        let mut claims = Claims::new(me, &self.members, &mut self.answers);
        let (early, mut unknown) = (&mut self.early, false);
        let packet = only(packet, &envelope, |one| {
            let word = word(&one.id.node);
            if !word.covers(&one.id) {
                unknown |= early.hear(*one, from, now);
            }
            claims.takes(one, word)
        });
        self.outcomes.extend(unknown.then_some(Outcome::Unknown));
        let packet = packet.map_err(|_| MALFORMED)?;
        let done = self.run(now, |foca, runtime| foca.handle_data(&packet, runtime));
        self.answer(now);
        if done { Ok(()) } else { Err(MALFORMED) }
    }

    /// Passes a verified object on to all.
    pub(crate) fn broadcast(&mut self, now: Duration, object: &[u8]) {
        if self.foca.custom_broadcast_backlog() >= MAX_BROADCASTS {
            return;
        }
        self.run(now, |foca, _runtime| foca.add_broadcast(object).map(|_| ()));
    }

    /// Goes on under a higher identity: others remember one that we lost, or were told of one.
    pub(crate) fn reidentify(&mut self, now: Duration, generation: u32, bump: u32) {
        let me = GossipId { generation, bump, ..self.me() };
        self.run(now, |foca, runtime| foca.change_identity(me, runtime));
    }

    /// Says goodbye.
    pub(crate) fn leave(&mut self, now: Duration) {
        self.run(now, |foca, runtime| foca.leave_cluster(runtime));
    }

    /// When the next timer is due.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        let timer = self.timers.first_key_value().map(|((at, _), _)| *at);
        let ping = self.ping.as_ref().map(|ping| ping.again);
        timer.into_iter().chain(ping).chain(self.answers.due()).min()
    }

    /// Runs timers that are due.
    pub(crate) fn tick(&mut self, now: Duration) {
        self.excuse_lateness(now);
        self.ping_again(now);
        self.answer(now);
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) {
            let timer = entry.remove();
            let silence = matches!(timer, Timer::ChangeSuspectToDown { .. });
            if silence {
                let _ = self.foca.set_config(config(false));
            }
            self.run(now, |foca, runtime| foca.handle_timer(timer, runtime));
            if silence {
                let _ = self.foca.set_config(config(true));
            }
        }
    }

    /// Panics when timers pile up: each member has a few at most.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn assert_bounded(&self) {
        let members = self.foca.iter_membership_state().count();
        self.early.assert_bounded();
        assert!(self.timers.len() <= 64 + 16 * members, "{} timers for {members} members", self.timers.len());
    }

    /// Time in which this node did not run is no time in which others were silent: all timers wait that much longer.
    fn excuse_lateness(&mut self, now: Duration) {
        let late = self.timeout().map_or(Duration::ZERO, |due| now.saturating_sub(due));
        if late <= LATE || now < self.next_excuse {
            return;
        }
        self.next_excuse = now + EXCUSE_GAP;
        let longer = late + READ_FIRST;
        let timers = std::mem::take(&mut self.timers);
        // News is for others, and judges nobody.
        let wait = |timer: &Timer<GossipId>| match timer {
            Timer::PeriodicGossip(_) => Duration::ZERO,
            _ => longer,
        };
        self.timers =
            timers.into_iter().map(|((at, number), timer)| ((at + wait(&timer), number), timer)).collect();
        if let Some(ping) = &mut self.ping {
            ping.again += longer;
        }
    }

    fn ping_again(&mut self, now: Duration) {
        let Some(ping) = self.ping.as_mut().filter(|ping| ping.again <= now) else { return };
        if ping.sent >= PINGS {
            self.outcomes.push(Outcome::Silent(ping.to));
            self.ping = None;
            return;
        }
        self.outcomes.push(Outcome::Again(ping.to, ping.packet.clone()));
        ping.sent += 1;
        ping.again = now + PING_AGAIN;
    }

    /// Runs foca once. Its errors are of three sorts: packets we could not decode (counted by the caller), bugs that it
    /// recovers from by itself, and calls it finds superfluous; none needs more than the answer "failed".
    fn run(
        &mut self,
        now: Duration,
        call: impl FnOnce(
            &mut Foca<GossipId, GossipCodec, StdRng, Inbox>,
            &mut Collector<'_>,
        ) -> Result<(), foca::Error>,
    ) -> bool {
        let mut collector = Collector {
            now,
            timers: &mut self.timers,
            next_timer: &mut self.next_timer,
            outcomes: &mut self.outcomes,
            ping: &mut self.ping,
            members: &self.members,
            spared: None,
        };
        let done = call(&mut self.foca, &mut collector).is_ok();
        if let Some((member, number)) = collector.spared.take() {
            let incarnation = self.members.by_node().get(&member.node).map_or(0, |one| one.incarnation);
            let answer = acknowledgement(member, incarnation, *self.foca.identity(), number);
            let _ = self.foca.handle_data(&answer[..], &mut collector);
        }
        if self.members.follow(now, self.foca.iter_membership_state()) {
            self.version += 1;
        }
        done
    }
}

/// Whether there is one such timer at a time.
fn is_periodic(timer: &Timer<GossipId>) -> bool {
    matches!(
        timer,
        Timer::ProbeRandomMember(_)
            | Timer::PeriodicAnnounce(_)
            | Timer::PeriodicAnnounceDown(_)
            | Timer::PeriodicGossip(_)
    )
}

/// Carries foca's wishes out by noting them.
struct Collector<'a> {
    now: Duration,
    timers: &'a mut BTreeMap<(Duration, u64), Timer<GossipId>>,
    next_timer: &'a mut u64,
    outcomes: &'a mut Vec<Outcome>,
    ping: &'a mut Option<Ping>,
    members: &'a Members,
    /// Who was not pinged because it is new: foca is told that it answered.
    spared: Option<(GossipId, u8)>,
}

impl foca::Runtime<GossipId> for Collector<'_> {
    /// States are asked for, not noted: suspicion has no notification.
    fn notify(&mut self, _: Notification<'_, GossipId>) {}

    fn send_to(&mut self, to: GossipId, data: &[u8]) {
        let envelope = envelope(data);
        if let Ok(Envelope { probe: Probe::Ping(number), .. }) = envelope {
            let since = self.members.since(&to.node).unwrap_or(self.now);
            if self.now.saturating_sub(since) < SPARED_FOR {
                self.spared = Some((to, number));
                return;
            }
            let (packet, again) = (data.to_vec(), self.now + PING_AGAIN);
            *self.ping = Some(Ping { to: to.node, number, packet, again, sent: 1 });
        }
        let news = envelope.is_ok_and(|envelope| envelope.news);
        let send = if news { Outcome::Spread } else { Outcome::Send };
        self.outcomes.push(send(to.node, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<GossipId>, after: Duration) {
        // foca forgets its periodic timers when it loses its last member, and begins new ones with the next; old ones would
        // pile up where members come and go.
        if is_periodic(&event) {
            let kind = std::mem::discriminant(&event);
            self.timers.retain(|_, timer| std::mem::discriminant(timer) != kind);
        }
        self.timers.insert((self.now + after, *self.next_timer), event);
        *self.next_timer += 1;
    }
}
