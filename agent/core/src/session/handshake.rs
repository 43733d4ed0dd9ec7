// SPDX-License-Identifier: Apache-2.0
//! Handshakes between members: opened, said again, answered. A handshake costs both sides a millisecond, so what is said
//! again are the same bytes, to which the same bytes are the answer: a hundred nodes on a machine that is too slow for them
//! would else spend their time on handshakes that nobody waits for any more.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cookie;
use super::door::Verdict;
use super::packet::{
    encrypt, fresh_index, new_session, read_greeting, read_handshake, write_greeting, write_handshake,
};
use super::peer::{Attempt, Session};
use super::table::{Context, Sessions};
use super::{DATAGRAM_ACCEPT, DATAGRAM_OPEN, Event, Greeting, Path};
use crate::consts::WIRE_VERSION;
use crate::consts::handshakes::*;
use crate::consts::sessions::{ATTEMPT_GAP, UNCONFIRMED_FOR};
use crate::id::NodeId;
use crate::noise::{self, Carrier};
use crate::tag::{TAG, TagKey};
use crate::wire::{Reader, Writer};

/// Handshakes of others by their bytes, and what was answered.
#[derive(Default)]
pub(super) struct Answered {
    by_handshake: BTreeMap<Vec<u8>, Answer>,
    /// Those of nodes that were no members, with the session key that each proved and when it came.
    strangers: BTreeMap<Vec<u8>, ([u8; 32], Duration)>,
}

struct Answer {
    bytes: Vec<u8>,
    /// Our index of the session that it made, and the session's peer.
    session: (u32, NodeId),
    /// What we said of ourselves in it.
    greeting: Greeting,
    at: Duration,
}

impl Answered {
    pub(super) fn forget_old(&mut self, now: Duration) {
        self.by_handshake.retain(|_, answer| now.saturating_sub(answer.at) < UNCONFIRMED_FOR);
        self.strangers.retain(|_, (_, at)| now.saturating_sub(*at) < UNCONFIRMED_FOR);
    }

    /// Whether this very handshake came from a node that was no member, and still is none.
    fn is_strangers(&self, handshake: &[u8], is_member: impl Fn(&[u8; 32]) -> bool) -> bool {
        self.strangers.get(handshake).is_some_and(|(key, _)| !is_member(key))
    }

    fn remember_stranger(&mut self, handshake: &[u8], key: [u8; 32], now: Duration) {
        if self.strangers.len() < MAX_ANSWERED {
            self.strangers.insert(handshake.to_vec(), (key, now));
        }
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn len(&self) -> usize {
        self.by_handshake.len().max(self.strangers.len())
    }

    /// The answer that was given, unless we would say something else today.
    fn again(
        &self,
        handshake: &[u8],
        greeting: &Greeting,
        indices: &BTreeMap<u32, NodeId>,
    ) -> Option<Vec<u8>> {
        let answer = self.by_handshake.get(handshake)?;
        let stands = indices.get(&answer.session.0) == Some(&answer.session.1);
        (stands && says_the_same(&answer.greeting, greeting)).then(|| answer.bytes.clone())
    }

    fn remember(&mut self, handshake: &[u8], answer: Answer) {
        if self.by_handshake.len() < MAX_ANSWERED {
            self.by_handshake.insert(handshake.to_vec(), answer);
        }
    }
}

/// Whether two greetings are the same but for the clock, which may be a few seconds late.
fn says_the_same(one: &Greeting, other: &Greeting) -> bool {
    Greeting { wall: 0, ..*one } == Greeting { wall: 0, ..*other }
}

impl Sessions {
    /// Opens a session unless an answer is waited for or it was tried just now.
    pub(crate) fn open(&mut self, to: NodeId, context: &mut Context<'_>) {
        self.open_on(to, None, context);
    }

    /// The same, on this path if one is given.
    pub(super) fn open_on(&mut self, to: NodeId, path: Option<Path>, context: &mut Context<'_>) {
        let now = context.now;
        let Some(remote) = context.roster.record(&to).map(|record| record.session_key) else { return };
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if self.attempting.contains(&to) || now < peer.not_before {
            return;
        }
        let Some(path) = path.or_else(|| peer.paths.in_turn(peer.attempts)) else { return };
        let retry_at = now + peer.retry_after() + context.late * PER_LATE;
        let same = |attempt: &mut Attempt| {
            attempt.remote == remote
                && attempt.forged < MAX_FORGED
                && now.saturating_sub(attempt.began) <= SAME_FOR
                && says_the_same(&attempt.greeting, &context.greeting)
        };
        if !peer.attempt.as_mut().is_some_and(same) {
            let local = fresh_index(&self.indices, context.rng);
            let Some(attempt) = self.begin(local, remote, path, context) else { return };
            let Some(peer) = self.peers.get_mut(&to) else { return };
            if let Some(old) = peer.attempt.replace(attempt) {
                self.indices.remove(&old.local);
            }
            self.indices.insert(local, to);
        }
        let Some(peer) = self.peers.get_mut(&to) else { return };
        let Some(attempt) = &mut peer.attempt else { return };
        attempt.say_on(path);
        attempt.retry_at = retry_at;
        self.events.push(Event::Send(path, attempt.said()));
        peer.not_before = now + ATTEMPT_GAP;
        self.attempting.insert(to);
    }

    fn begin(&self, local: u32, remote: [u8; 32], path: Path, context: &mut Context<'_>) -> Option<Attempt> {
        let mut handshake = Box::new(noise::member_initiator(
            context.rng,
            Carrier::Datagrams,
            &self.cluster,
            context.session_secret,
            &remote,
        ));
        let head = Writer::new().u8(WIRE_VERSION).u8(DATAGRAM_OPEN).u32(local).finish();
        let mut bytes = write_handshake(&mut handshake, head, &write_greeting(&context.greeting))?;
        TagKey::new(Carrier::Datagrams, &self.cluster, &remote).append(&mut bytes);
        Some(Attempt {
            local,
            handshake,
            remote,
            greeting: context.greeting,
            bytes,
            cookie: None,
            cookies: 0,
            said_on: Vec::new(),
            forged: 0,
            path,
            began: context.now,
            retry_at: context.now,
        })
    }

    pub(super) fn handle_open(
        &mut self,
        from: Path,
        datagram: &[u8],
        context: &mut Context<'_>,
    ) -> Result<(), &'static str> {
        const MALFORMED: &str = "handshake malformed or not for us";
        const OVER_LIMIT: &str = "handshake over rate limit";
        let knock = self.door.open(datagram).ok_or("handshake that is not for us")?;
        if let Some(answer) = self.answered.again(knock.bytes, &context.greeting, &self.indices) {
            if !self.door.repeats(from, &self.peers, context.now) {
                return Err(OVER_LIMIT);
            }
            self.events.push(Event::Send(from, answer));
            return Ok(());
        }
        const STRANGER: &str = "handshake of a node that is no member";
        let is_member = |key: &[u8; 32]| context.roster.member_by_session_key(key).is_some();
        if self.answered.is_strangers(knock.bytes, is_member) {
            return Err(STRANGER);
        }
        let mut r = Reader::new("handshake", knock.message);
        r.take(2).map_err(|_| MALFORMED)?;
        let remote = r.u32().map_err(|_| MALFORMED)?;
        match self.door.judge(from, &knock, &self.peers, context.now) {
            Verdict::Agree => {}
            Verdict::Refuse => return Err(OVER_LIMIT),
            Verdict::TellCookie => {
                let answer =
                    self.door.cookies.answer(from.address, remote, knock.tag, context.now, context.rng);
                self.events.push(Event::Send(from, answer));
                return Err("handshake that has to prove its source");
            }
        }
        let mut handshake =
            noise::member_responder(context.rng, Carrier::Datagrams, &self.cluster, context.session_secret);
        let greeting = read_handshake(&mut handshake, r.rest()).ok_or(MALFORMED)?;
        let greeting = read_greeting(&greeting).map_err(|_| MALFORMED)?;
        let key = noise::remote_static(&handshake).ok_or(MALFORMED)?;
        let Some(id) = context.roster.member_by_session_key(&key) else {
            self.answered.remember_stranger(knock.bytes, key, context.now);
            return Err(STRANGER);
        };
        if id == context.me {
            return Err("handshake of ourselves");
        }
        let is_proven = self.door.is_proven(from, &knock);
        let peer = self.peers.entry(id).or_default();
        // Recorded opens fill the places too. Who hears us at its address comes again with the proof, and only that takes a place
        // from another one.
        if peer.has_all_unconfirmed() && !is_proven {
            let answer = self.door.cookies.answer(from.address, remote, knock.tag, context.now, context.rng);
            self.events.push(Event::Send(from, answer));
            return Err("handshake that has to prove its source");
        }
        let local = fresh_index(&self.indices, context.rng);
        let mut head = Writer::new();
        head.u8(WIRE_VERSION).u8(DATAGRAM_ACCEPT).u32(remote).u32(local);
        let mut bytes = write_handshake(&mut handshake, head.finish(), &write_greeting(&context.greeting))
            .ok_or(MALFORMED)?;
        TagKey::new(Carrier::Datagrams, &self.cluster, &key).append(&mut bytes);
        let mut session =
            new_session(handshake, local, remote, greeting, context.now, false).ok_or(MALFORMED)?;
        session.is_source_proven = is_proven;
        self.indices.insert(local, id);
        if let Some(pushed_out) = peer.add_unconfirmed(session) {
            self.indices.remove(&pushed_out.local);
        }
        self.events.push(Event::Send(from, bytes.clone()));
        let answer = Answer { bytes, session: (local, id), greeting: context.greeting, at: context.now };
        self.answered.remember(knock.bytes, answer);
        Ok(())
    }

    pub(super) fn handle_accept(
        &mut self,
        from: Path,
        datagram: &[u8],
        context: &mut Context<'_>,
    ) -> Result<(), &'static str> {
        const MALFORMED: &str = "handshake answer malformed";
        let message = self.door.untag(datagram).ok_or("handshake answer that is not for us")?;
        let mut r = Reader::new("handshake answer", message);
        r.take(2).map_err(|_| MALFORMED)?;
        let (local, remote) = (r.u32().map_err(|_| MALFORMED)?, r.u32().map_err(|_| MALFORMED)?);
        let id = *self.indices.get(&local).ok_or("handshake answer to nothing")?;
        let peer = self.peers.get_mut(&id).ok_or("handshake answer to nothing")?;
        let attempt = peer.attempt.take_if(|attempt| attempt.local == local && attempt.forged < MAX_FORGED);
        let mut attempt = attempt.ok_or("handshake answer to nothing")?;
        // A forged answer must not end the attempt. snow leaves the state as it was when decryption fails.
        let Some(greeting) = read_handshake(&mut attempt.handshake, r.rest()) else {
            attempt.forged += 1;
            peer.attempt = Some(attempt);
            return Err(MALFORMED);
        };
        // The peer proved itself and the attempt is over, whatever else it says.
        let session = read_greeting(&greeting)
            .ok()
            .and_then(|greeting| new_session(*attempt.handshake, local, remote, greeting, context.now, true));
        let Some(session) = session else {
            self.indices.remove(&local);
            self.attempting.remove(&id);
            return Err(MALFORMED);
        };
        self.establish(id, session, from, context);
        Ok(())
    }

    /// The peer has much to do and wants to know first whether we hear it: say the same again, with the proof.
    pub(super) fn handle_cookie(&mut self, from: Path, datagram: &[u8]) -> Result<(), &'static str> {
        const MALFORMED: &str = "cookie malformed or forged";
        let mut r = Reader::new("cookie", datagram);
        r.take(2).map_err(|_| MALFORMED)?;
        let local = r.u32().map_err(|_| MALFORMED)?;
        let id = self.indices.get(&local).ok_or("cookie for nothing")?;
        let attempt = self.peers.get_mut(id).and_then(|peer| peer.attempt.as_mut());
        let attempt = attempt.filter(|attempt| attempt.local == local).ok_or("cookie for nothing")?;
        let tag = attempt.bytes.last_chunk::<TAG>().ok_or(MALFORMED)?;
        let cookie = cookie::open(&self.cluster, &attempt.remote, tag, r.rest()).ok_or(MALFORMED)?;
        // The answer goes where we called: else who makes cookies, or sends on true ones, has us speak to whom he likes.
        let path = attempt.said_on.iter().find(|path| path.address == from.address);
        let path = *path.ok_or("cookie from where nobody was called")?;
        // Each is worth one more word from us: else who repeats it makes us repeat that.
        if attempt.cookie == Some(cookie) {
            return Ok(());
        }
        if attempt.cookies >= MAX_COOKIES {
            return Err("cookies over limit");
        }
        attempt.cookies += 1;
        attempt.cookie = Some(cookie);
        self.events.push(Event::Send(path, attempt.said()));
        Ok(())
    }

    /// A session is proven: use it, send what waited, or at least one datagram that proves us to the peer.
    pub(super) fn establish(&mut self, id: NodeId, session: Session, path: Path, context: &Context<'_>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let greeting = session.greeting;
        let ours = session.initiator;
        if let Some(forgotten) = peer.promote(session) {
            self.indices.remove(&forgotten.local);
        }
        // Who answered our handshake is reached on that path; who opened one himself is only heard on it.
        let moved =
            if ours { peer.paths.answered(path, context.now) } else { peer.paths.heard(path, context.now) };
        peer.last_heard = Some(context.now);
        peer.attempts = 0;
        self.attempting.remove(&id);
        if let Some(attempt) = peer.attempt.take() {
            self.indices.remove(&attempt.local);
        }
        let waiting = std::mem::take(&mut peer.queue);
        if let Some(session) = &mut peer.current {
            let proof = (ours && waiting.is_empty()).then(Vec::new);
            for payload in proof.into_iter().chain(waiting) {
                if let Some(bytes) = encrypt(session, &payload) {
                    self.events.push(Event::Send(path, bytes));
                }
            }
        }
        self.events.push(Event::Established(id, greeting));
        if moved {
            self.moved.insert(id);
        }
    }

    /// Stops waiting for answers that are late. Gives the peers to try again at once.
    pub(super) fn retry(&mut self, now: Duration) -> Vec<NodeId> {
        let mut again = Vec::new();
        for id in self.attempting.clone() {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let Some(attempt) = peer.attempt.as_ref().filter(|attempt| attempt.retry_at <= now) else {
                continue;
            };
            self.attempting.remove(&id);
            peer.attempts = peer.attempts.saturating_add(1);
            // One answer may be lost, or late because the peer has much to do.
            if peer.attempts > 1 && peer.attempts.is_power_of_two() {
                self.events.push(Event::Unanswered(attempt.path));
            }
            if peer.attempts as usize > peer.paths.len().max(4) {
                peer.queue.clear();
            }
            let urgent = !peer.queue.is_empty() || self.watched.contains_key(&id);
            if urgent {
                again.push(id);
            }
            peer.not_before = now + if urgent { Duration::ZERO } else { peer.retry_after() };
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::id::ClusterId;

    fn greeting(bump: u32, wall: u64) -> Greeting {
        Greeting { instance: [1; 8], generation: 3, bump, wall }
    }

    #[test]
    fn an_answer_is_given_again_while_it_is_true() {
        let (peer, now) = (NodeId([7; 32]), Duration::from_secs(100));
        let mut sessions = Sessions::new(ClusterId([0; 16]), &[0; 32], &mut StdRng::from_seed([1; 32]));
        let answer =
            Answer { bytes: vec![1, 2, 3], session: (5, peer), greeting: greeting(0, 1000), at: now };
        sessions.indices.insert(5, peer);
        sessions.answered.remember(b"handshake", answer);
        let again = |sessions: &Sessions, bytes: &[u8], bump| {
            sessions.answered.again(bytes, &greeting(bump, 2000), &sessions.indices)
        };
        assert_eq!(again(&sessions, b"handshake", 0), Some(vec![1, 2, 3]));
        assert_eq!(again(&sessions, b"another", 0), None);
        assert_eq!(again(&sessions, b"handshake", 1), None, "we would say something else today");
        sessions.answered.forget_old(now + UNCONFIRMED_FOR);
        assert_eq!(again(&sessions, b"handshake", 0), None, "the session is forgotten by now");
    }

    #[test]
    fn a_strangers_handshake_is_looked_at_again_once_it_is_a_member() {
        let now = Duration::from_secs(100);
        let mut answered = Answered::default();
        answered.remember_stranger(b"handshake", [7; 32], now);
        assert!(answered.is_strangers(b"handshake", |_| false));
        assert!(!answered.is_strangers(b"another", |_| false));
        assert!(!answered.is_strangers(b"handshake", |key| *key == [7; 32]), "it was admitted since");
        answered.forget_old(now + UNCONFIRMED_FOR);
        assert!(!answered.is_strangers(b"handshake", |_| false));
    }

    #[test]
    fn no_answer_is_given_to_a_session_that_is_gone() {
        let mut sessions = Sessions::new(ClusterId([0; 16]), &[0; 32], &mut StdRng::from_seed([1; 32]));
        let answer = Answer {
            bytes: vec![1],
            session: (5, NodeId([7; 32])),
            greeting: greeting(0, 0),
            at: Duration::ZERO,
        };
        sessions.answered.remember(b"handshake", answer);
        assert_eq!(sessions.answered.again(b"handshake", &greeting(0, 0), &sessions.indices), None);
    }
}
