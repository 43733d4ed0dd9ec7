// SPDX-License-Identifier: Apache-2.0
//! All peers, and the datagrams between them and us.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::door::Door;
use super::handshake::Answered;
use super::packet::encrypt;
use super::peer::{Attempt, Peer};
use super::watch::{Doubts, Watched};
use super::{
    DATAGRAM_ACCEPT, DATAGRAM_COOKIE, DATAGRAM_OPEN, DATAGRAM_TRANSPORT, DATAGRAM_UNKNOWN, Event, Greeting,
    PAYLOAD_WIDE_ASK, Path,
};
use crate::consts::handshakes::SAME_FOR;
use crate::consts::sessions::*;
use crate::consts::{MAX_DATAGRAM_PAYLOAD, MAX_WIDE_DATAGRAM, WIRE_VERSION};
use crate::id::{ClusterId, NodeId};
use crate::limit::{Limiter, Rejects};
use crate::noise::Carrier;
use crate::roster::Roster;
use crate::tag::TagKey;
use crate::wire::{Reader, Writer};

/// What sessions need to know of the node.
pub(crate) struct Context<'a> {
    pub(crate) now: Duration,
    pub(crate) rng: &'a mut StdRng,
    pub(crate) rejects: &'a mut Rejects,
    pub(crate) roster: &'a Roster,
    pub(crate) me: NodeId,
    pub(crate) session_secret: &'a [u8; 32],
    /// What this machine's ticks are late: it is the peer's answers that wait.
    pub(crate) late: Duration,
    pub(crate) greeting: Greeting,
}

/// The sessions of one node in one cluster.
pub(crate) struct Sessions {
    pub(super) cluster: ClusterId,
    pub(super) peers: BTreeMap<NodeId, Peer>,
    pub(super) indices: BTreeMap<u32, NodeId>,
    pub(super) door: Door,
    /// Of streams, which begin in the same way.
    stream_tag: TagKey,
    notices: Limiter,
    /// The same to addresses of members.
    members_notices: Limiter,
    /// Notices of others that are looked into. Each costs a look at all peers.
    noticed: Limiter,
    pub(super) events: Vec<Event>,
    /// Peers from whom an answer to our handshake is waited for.
    pub(super) attempting: BTreeSet<NodeId>,
    /// Handshakes of others that were answered lately.
    pub(super) answered: Answered,
    next_sweep: Duration,
    /// Peers that are reached otherwise since `take_moved`.
    pub(super) moved: BTreeSet<NodeId>,
    pub(super) watched: Watched,
    pub(super) doubts: Doubts,
}

impl Sessions {
    /// Of the node with this session key.
    pub(crate) fn new(cluster: ClusterId, session_key: &[u8; 32], rng: &mut StdRng) -> Self {
        Self {
            door: Door::new(&cluster, session_key, rng),
            stream_tag: TagKey::new(Carrier::Stream, &cluster, session_key),
            notices: Limiter::new(NOTICES, rng.next_u64()),
            members_notices: Limiter::new(NOTICES, rng.next_u64()),
            noticed: Limiter::new(NOTICED, rng.next_u64()),
            cluster,
            peers: BTreeMap::new(),
            indices: BTreeMap::new(),
            events: Vec::new(),
            attempting: BTreeSet::new(),
            answered: Answered::default(),
            next_sweep: Duration::ZERO,
            moved: BTreeSet::new(),
            watched: Watched::new(),
            doubts: Doubts::new(),
        }
    }

    /// What first frames of streams to us are tagged with.
    pub(crate) fn stream_tag(&self) -> &TagKey {
        &self.stream_tag
    }

    /// Whether a member may be at an address, as far as we know.
    pub(crate) fn is_address_of_member(&mut self, ip: IpAddr, now: Duration) -> bool {
        self.door.is_known(ip, &self.peers, now)
    }

    /// What happened since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// A path to try for a peer: heard in a beacon.
    pub(crate) fn suggest(&mut self, peer: NodeId, path: Path) {
        self.peers.entry(peer).or_default().paths.suggest(path);
    }

    /// A path that is only tried after those that are known.
    pub(crate) fn suggest_last(&mut self, peer: NodeId, path: Path) {
        self.peers.entry(peer).or_default().paths.suggest_last(path);
    }

    /// A path that is remembered, or named in the peer's record.
    pub(crate) fn name(&mut self, peer: NodeId, path: Path) {
        self.peers.entry(peer).or_default().paths.name(path);
    }

    /// All addresses that records and our memory name.
    pub(crate) fn set_named(&mut self, named: BTreeSet<IpAddr>) {
        self.door.named = named;
    }

    /// Whether there is anything to try for a peer.
    pub(crate) fn has_path(&self, peer: &NodeId) -> bool {
        self.peers.get(peer).is_some_and(|peer| !peer.paths.is_empty())
    }

    /// The path in use with a peer.
    pub(crate) fn path(&self, peer: &NodeId) -> Option<Path> {
        self.peers.get(peer)?.paths.current()
    }

    /// Every link-local address that the peer was heard from, by the card that leads there.
    pub(crate) fn link_local(&self, peer: &NodeId) -> impl Iterator<Item = Path> {
        self.peers.get(peer).into_iter().flat_map(|peer| peer.paths.link_local())
    }

    /// Peers whose path, or the card for one of whose addresses, changed since the last call.
    pub(crate) fn take_moved(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.moved)
    }

    /// Only these interfaces are there: paths through others are forgotten.
    pub(crate) fn keep_interfaces(&mut self, there: &BTreeSet<u32>, now: Duration) {
        for (id, peer) in &mut self.peers {
            if peer.paths.keep_interfaces(there) {
                self.moved.insert(*id);
            }
        }
        self.ask_now(now);
    }

    /// How often a peer was called since it answered last.
    pub(crate) fn attempts(&self, peer: &NodeId) -> u32 {
        self.peers.get(peer).map_or(0, |peer| peer.attempts)
    }

    /// All paths to a peer.
    pub(crate) fn paths(&self, peer: &NodeId) -> Vec<Path> {
        self.peers.get(peer).map(|peer| peer.paths.all().collect()).unwrap_or_default()
    }

    /// Forgets the paths of a peer that lead to somebody else.
    pub(crate) fn forget_paths(&mut self, peer: &NodeId, leads_elsewhere: impl Fn(Path) -> bool) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.paths.forget(leads_elsewhere);
        }
    }

    pub(crate) fn last_heard(&self, peer: &NodeId) -> Option<Duration> {
        self.peers.get(peer)?.last_heard
    }

    /// What the peer said in the handshake of the session in use.
    pub(crate) fn greeting(&self, peer: &NodeId) -> Option<Greeting> {
        Some(self.peers.get(peer)?.current.as_ref()?.greeting)
    }

    /// Whether there is a session to send on.
    pub(crate) fn is_open(&self, peer: &NodeId) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.current.is_some())
    }

    /// Peers with a session.
    pub(crate) fn open_peers(&self) -> Vec<NodeId> {
        self.peers.iter().filter(|(_, peer)| peer.current.is_some()).map(|(id, _)| *id).collect()
    }

    /// How many answers to our handshakes are waited for.
    pub(crate) fn under_way(&self) -> usize {
        self.attempting.len()
    }

    /// Forgets a peer that no longer belongs to the cluster.
    pub(crate) fn forget(&mut self, peer: &NodeId) {
        self.peers.remove(peer);
        self.attempting.remove(peer);
        self.watched.remove(peer);
        self.doubts.remove(peer);
        self.indices.retain(|_, owner| owner != peer);
    }

    /// Sends a payload to a member, opening a session first if need be.
    pub(crate) fn send(&mut self, to: NodeId, payload: &[u8], context: &mut Context<'_>) {
        if payload.len() > MAX_DATAGRAM_PAYLOAD {
            context.rejects.count("own datagram too large");
            return;
        }
        let peer = self.peers.entry(to).or_default();
        match (&mut peer.current, peer.paths.current()) {
            (Some(session), Some(path)) => {
                session.used = context.now;
                if let Some(bytes) = encrypt(session, payload) {
                    self.events.push(Event::Send(path, bytes));
                }
            }
            _ => {
                peer.enqueue(payload);
                self.open(to, context);
            }
        }
    }

    /// The same, on every path that is known: on the one in use it was not answered.
    pub(crate) fn send_widely(&mut self, to: NodeId, payload: &[u8], context: &mut Context<'_>) {
        match self.peers.get(&to) {
            Some(peer) if peer.current.is_some() && peer.paths.has_choice() => {
                let paths = peer.paths.to_ask().collect();
                self.send_on(to, payload, paths, context.now);
            }
            _ => self.send(to, payload, context),
        }
    }

    /// A datagram of one of our four kinds arrived.
    pub(crate) fn handle(&mut self, kind: u8, from: Path, datagram: &[u8], context: &mut Context<'_>) {
        let result = match kind {
            DATAGRAM_OPEN => self.handle_open(from, datagram, context),
            DATAGRAM_ACCEPT => self.handle_accept(from, datagram, context),
            DATAGRAM_TRANSPORT => self.handle_transport(from, datagram, context),
            DATAGRAM_UNKNOWN => self.handle_unknown(from, datagram, context),
            DATAGRAM_COOKIE => self.handle_cookie(from, datagram),
            _ => Err("datagram of unknown kind"),
        };
        if let Err(reason) = result {
            context.rejects.count(reason);
        }
    }

    fn handle_transport(
        &mut self,
        from: Path,
        datagram: &[u8],
        context: &mut Context<'_>,
    ) -> Result<(), &'static str> {
        const MALFORMED: &str = "transport datagram malformed or forged";
        let mut r = Reader::new("transport", datagram);
        r.take(2).map_err(|_| MALFORMED)?;
        let (local, counter) = (r.u32().map_err(|_| MALFORMED)?, r.u64().map_err(|_| MALFORMED)?);
        let ciphertext = r.rest();
        if ciphertext.len() < 16 || datagram.len() > MAX_WIDE_DATAGRAM {
            return Err(MALFORMED);
        }
        let Some(id) = self.indices.get(&local).copied() else {
            let ip = from.address.ip();
            if self.notices.allow(ip, context.now)
                || (self.door.is_known(ip, &self.peers, context.now)
                    && self.members_notices.allow(ip, context.now))
            {
                let notice = Writer::new().u8(WIRE_VERSION).u8(DATAGRAM_UNKNOWN).u32(local).finish();
                // The receiver finds its session by our index, which is all that it needs to know.
                self.events.push(Event::Send(from, notice));
            }
            return Err("transport datagram of an unknown session");
        };
        let peer = self.peers.get_mut(&id).ok_or(MALFORMED)?;
        let (session, proven) = peer.session_mut(local).ok_or(MALFORMED)?;
        if !session.window.is_new(counter) {
            return Err("transport datagram seen before");
        }
        let mut plaintext = vec![0; ciphertext.len()];
        let length =
            session.transport.read_message(counter, ciphertext, &mut plaintext).map_err(|_| MALFORMED)?;
        plaintext.truncate(length);
        if context.now.saturating_sub(session.created) > EXPIRE_AFTER {
            return Err("transport datagram of an expired session");
        }
        if plaintext.len() > MAX_DATAGRAM_PAYLOAD && plaintext.first() != Some(&PAYLOAD_WIDE_ASK) {
            return Err("datagram too large");
        }
        let newest = session.window.mark(counter);
        session.heard = context.now;
        if !plaintext.is_empty() {
            session.used = context.now;
        }
        if !proven {
            if let Some(session) = peer.take_unconfirmed(local) {
                self.establish(id, session, from, context);
            }
        } else {
            peer.last_heard = Some(context.now);
            if newest && peer.paths.heard(from, context.now) {
                self.moved.insert(id);
            }
        }
        if !plaintext.is_empty() && !self.asked_or_answered(id, local, from, &plaintext, context.now) {
            self.events.push(Event::Received(id, plaintext));
        }
        Ok(())
    }

    fn handle_unknown(
        &mut self,
        from: Path,
        datagram: &[u8],
        context: &mut Context<'_>,
    ) -> Result<(), &'static str> {
        const MALFORMED: &str = "unknown-session notice malformed";
        let mut r = Reader::new("notice", datagram);
        r.take(2).map_err(|_| MALFORMED)?;
        let remote = r.u32().map_err(|_| MALFORMED)?;
        r.end().map_err(|_| MALFORMED)?;
        if !self.noticed.allow(from.address.ip(), context.now) {
            return Err("unknown-session notice over rate limit");
        }
        // Nothing proves the notice, so it ends nothing: the session stays until a new one replaces it.
        // That the peer is heard on another session says nothing for this one: it may have been lost before it was proven.
        let named = self.peers.iter().find(|(_, peer)| {
            peer.current.as_ref().is_some_and(|session| {
                session.remote == remote && context.now.saturating_sub(session.heard) >= NOTICE_GAP
            })
        });
        let id = *named.ok_or("unknown-session notice that is implausible")?.0;
        self.open(id, context);
        Ok(())
    }

    /// Retries, renews and expires. Call a few times a second.
    pub(crate) fn tick(&mut self, context: &mut Context<'_>) {
        let mut open = self.retry(context.now);
        open.extend(self.watch_tick(context));
        for (id, from) in self.doubts_tick(context.now, context.late) {
            self.open_on(id, from, context);
        }
        self.width_tick(context);
        if context.now >= self.next_sweep {
            self.next_sweep = context.now + SWEEP_EVERY;
            open.extend(self.sweep(context.now));
        }
        for id in open {
            self.open(id, context);
        }
    }

    /// Drops what is too old. Gives the peers whose session is to be renewed.
    fn sweep(&mut self, now: Duration) -> Vec<NodeId> {
        let mut renew = Vec::new();
        self.answered.forget_old(now);
        for (id, peer) in &mut self.peers {
            let unanswered = |attempt: &mut Attempt| now.saturating_sub(attempt.began) > SAME_FOR;
            if !self.attempting.contains(id)
                && let Some(old) = peer.attempt.take_if(unanswered)
            {
                self.indices.remove(&old.local);
            }
            while let Some(old) =
                peer.unconfirmed.pop_front_if(|session| now.saturating_sub(session.created) > UNCONFIRMED_FOR)
            {
                self.indices.remove(&old.local);
            }
            for slot in [&mut peer.current, &mut peer.previous] {
                if let Some(old) = slot.take_if(|session| now.saturating_sub(session.created) > EXPIRE_AFTER)
                {
                    self.indices.remove(&old.local);
                }
            }
            let stale = peer.current.as_ref().is_some_and(|session| {
                session.initiator
                    && now.saturating_sub(session.created) > REKEY_AFTER
                    && now.saturating_sub(session.used) < IDLE_AFTER
            });
            if stale {
                renew.push(*id);
            }
        }
        renew
    }
}
