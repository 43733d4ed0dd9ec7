// SPDX-License-Identifier: Apache-2.0
//! Introductions: two nodes with the same join key prove themselves and see how they stand to each other. From that
//! follow handshakes before founding, admission, catching up, and the merge of two clusters founded by accident.

use super::checks::Word;
use super::conversation::{Conversation, Introduction, Joining};
use super::discovery::Discovery;
use super::learning::FORGED;
use super::output::{Page, Then, Which};
use super::parts::Node;
use crate::command::{LogLevel, StreamId};
use crate::consts::exchange::{MAX_ALIVE, MAX_OBJECTS};
use crate::consts::introduce::*;
use crate::id::{ClusterId, NodeId};
use crate::record::NodeRecord;
use crate::roster::{Genesis, Object, Roster};
use crate::signed::{ObjectDigest, Verified};
use crate::stream::Kind;
use crate::sync::{Hello, Message};

/// How two nodes stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// Neither has a cluster.
    Shake,
    /// The peer should ask us to admit it.
    TheyJoin,
    /// We should ask the peer.
    WeJoin,
    /// Same cluster.
    Sync,
    /// Two clusters, and neither may dissolve by itself.
    Apart,
}

/// What decides: cluster id, and whether it is blank.
type Standpoint = Option<(ClusterId, bool)>;

/// Both sides come to mirrored results from the same two standpoints. Of two blank clusters the higher id dissolves; a
/// blank one dissolves into one that is not; size decides nothing.
pub(super) fn relation(mine: Standpoint, theirs: Standpoint) -> Relation {
    match (mine, theirs) {
        (None, None) => Relation::Shake,
        (Some(_), None) => Relation::TheyJoin,
        (None, Some(_)) => Relation::WeJoin,
        (Some((mine, _)), Some((theirs, _))) if mine == theirs => Relation::Sync,
        (Some((_, false)), Some((_, false))) => Relation::Apart,
        (Some((_, true)), Some((_, false))) => Relation::WeJoin,
        (Some((_, false)), Some((_, true))) => Relation::TheyJoin,
        (Some((mine, true)), Some((theirs, true))) => {
            if mine > theirs {
                Relation::WeJoin
            } else {
                Relation::TheyJoin
            }
        }
    }
}

impl Node {
    /// A handshake is complete.
    pub(super) fn stream_opened(&mut self, id: StreamId, conversation: &mut Conversation) {
        match (conversation.kind(), conversation.remote_key()) {
            (Kind::Stranger, Some(_)) => {
                let hello = self.hello();
                conversation.introduce(hello.uptime);
                self.say(id, conversation, Message::Hello(hello));
            }
            (Kind::Member, Some(key)) => {
                let roster = self.place.cluster().map(|cluster| cluster.membership.roster());
                let Some(peer) = roster.and_then(|roster| roster.member_by_session_key(&key)) else {
                    self.ctx.rejects.count("stream of a node that is no member");
                    return self.end(id);
                };
                conversation.talk_with(peer, None);
                if conversation.is_ours() {
                    self.begin_exchange(id, conversation);
                }
            }
            (_, None) => self.end(id),
        }
    }

    fn hello(&self) -> Hello {
        let roster = self.place.cluster().map(|cluster| cluster.membership.roster());
        Hello {
            record: self.own.signed().as_bytes().to_vec(),
            instance: self.instance,
            uptime: super::files::millis(self.ctx.boottime().saturating_sub(self.started.boottime)),
            wall: self.clock.said(self.ctx.now),
            genesis: roster.map(|roster| roster.genesis().as_bytes().to_vec()).unwrap_or_default(),
            blank: roster.is_some_and(Roster::is_blank),
        }
    }

    /// Something was said on a stream.
    pub(super) fn stream_message(&mut self, id: StreamId, conversation: &mut Conversation, message: Message) {
        // What somebody asks before the last answer was said is no question of ours.
        if !conversation.output().is_empty() {
            return self.out_of_place(id);
        }
        if let Some(uptime) = conversation.introduces() {
            match message {
                Message::Hello(hello) if conversation.kind() == Kind::Stranger => {
                    self.heard_hello(id, conversation, uptime, &hello);
                }
                _ => {
                    self.ctx.rejects.count("stream message before introduction");
                    self.end(id);
                }
            }
        } else if conversation.is_joining() {
            self.admission_message(id, conversation, message);
        } else if matches!(message, Message::Join) && conversation.talk().is_some() {
            self.asked_to_admit(id, conversation);
        } else {
            self.exchange_message(id, conversation, message);
        }
    }

    /// A part of the answer to our question to be let in.
    fn admission_message(&mut self, id: StreamId, conversation: &mut Conversation, message: Message) {
        let Some(joining) = conversation.joining() else { return };
        match message {
            Message::Objects(objects) => {
                if let Err(reason) = self.objects_of_admission(joining, &objects) {
                    self.ctx.rejects.count(reason);
                    self.end(id);
                }
            }
            Message::Alive(known) if joining.alive.len() + known.len() <= MAX_ALIVE => {
                joining.alive.extend(known);
            }
            Message::Admitted => self.admitted(id, conversation),
            Message::Refused(why) => {
                let fields = vec![("by", joining.peer.short()), ("why", why)];
                self.ctx.log(LogLevel::Warn, "admission was refused", fields);
                self.end(id);
            }
            // The other side has no time for us, or stands otherwise than it said.
            Message::Done => self.end(id),
            _ => self.out_of_place(id),
        }
    }

    fn objects_of_admission(
        &mut self,
        joining: &mut Joining,
        objects: &[Vec<u8>],
    ) -> Result<(), &'static str> {
        for bytes in objects {
            let digest = ObjectDigest::of(bytes);
            if joining.objects.contains_key(&digest) {
                return Err("object said twice");
            }
            if joining.objects.len() >= MAX_OBJECTS
                || !self.streams.may_check(Word::Admission(joining.peer), self.ctx.boottime())
            {
                return Err("admission too large");
            }
            joining.objects.insert(digest, Object::open(bytes).map_err(|_| FORGED)?);
        }
        Ok(())
    }

    fn heard_hello(&mut self, id: StreamId, conversation: &mut Conversation, uptime: u64, hello: &Hello) {
        let record = Verified::<NodeRecord>::open(&hello.record).ok();
        let record = record.filter(|record| conversation.remote_key() == Some(record.session_key));
        let genesis = match &hello.genesis[..] {
            [] => Some(None),
            bytes => Verified::<Genesis>::open(bytes).ok().map(Some),
        };
        let (Some(record), Some(genesis)) = (record, genesis) else {
            self.ctx.rejects.count("introduction malformed");
            return self.end(id);
        };
        let peer = record.node_id();
        if peer == self.me {
            return self.met_ourselves(id, uptime, hello);
        }
        let fits = genesis.as_ref().is_none_or(|genesis| {
            self.place.join().is_some_and(|join| {
                genesis.join_key == join.key.fingerprint()
                    && join.key.cluster().is_none_or(|cluster| cluster == genesis.cluster)
            })
        });
        if !fits {
            self.ctx.rejects.count("introduction of a cluster of another join key");
            return self.end(id);
        }
        let theirs = genesis.as_ref().map(|genesis| (genesis.cluster, hello.blank));
        let name = record.hostname.clone();
        conversation.talk_with(peer, Some(Introduction { record, genesis }));
        self.introduced(id, conversation, peer, name, theirs);
    }

    /// Acts on how we stand to a node that proved itself.
    fn introduced(
        &mut self,
        id: StreamId,
        conversation: &mut Conversation,
        peer: NodeId,
        name: String,
        theirs: Standpoint,
    ) {
        let now = self.ctx.boottime();
        let mine = self
            .place
            .cluster()
            .map(|cluster| (cluster.membership.roster().cluster(), cluster.membership.roster().is_blank()));
        let outbound = conversation.is_ours();
        match relation(mine, theirs) {
            _ if self.is_leaving() || self.place.is_left() => self.end(id),
            Relation::Shake => {
                self.discovery.shook_hands(peer, name, now);
                if outbound {
                    self.answer(id, conversation, vec![Page::Say(Message::Done)], Some(Then::End));
                }
            }
            Relation::TheyJoin => {}
            Relation::WeJoin => {
                self.discovery.met_member(&peer, now);
                self.ask_to_join(id, conversation);
            }
            Relation::Sync => {
                conversation.become_push_pull();
                // Either side may lack the other's record, if it was cut off before it could save it.
                let introduced = conversation.talk().and_then(|talk| talk.introduced.as_ref());
                if let Some(introduced) = introduced.filter(|_| self.is_member(&peer)) {
                    self.learn(Object::Record(introduced.record.clone()), Some(peer));
                }
                if outbound {
                    self.begin_exchange(id, conversation);
                }
            }
            Relation::Apart => {
                self.problems.set_until(
                    "cluster",
                    "there is a second cluster with this join key; neither can join the other by itself",
                    "run `clusterctl leave` and then `clusterctl join` on each node of the smaller one",
                    now + APART_TOLD_FOR,
                );
                self.end(id);
            }
        }
    }

    fn ask_to_join(&mut self, id: StreamId, conversation: &mut Conversation) {
        if !self.streams.is_joining() && conversation.join() {
            self.say(id, conversation, Message::Join);
        } else {
            self.answer(id, conversation, vec![Page::Say(Message::Done)], Some(Then::End));
        }
    }

    /// A node that proved itself asks to be let in. Policy `auto`: whoever has the join key may come in.
    fn asked_to_admit(&mut self, id: StreamId, conversation: &mut Conversation) {
        let Some(talk) = conversation.talk() else { return };
        let Some(introduced) = &talk.introduced else { return self.out_of_place(id) };
        let record = introduced.record.clone();
        let again = std::mem::replace(&mut talk.is_answered, true);
        if again || !talk.exchange.is_new() || !self.streams.may_ask(&talk.peer, self.ctx.boottime()) {
            return self.out_of_place(id);
        }
        let refuse = |why: &str| vec![Page::Say(Message::Refused(why.to_owned()))];
        if self.place.cluster().is_none_or(|cluster| cluster.membership.is_leaving()) {
            let pages = refuse("this node is not in a cluster itself");
            return self.answer(id, conversation, pages, Some(Then::End));
        }
        self.admit(&record);
        let Some(cluster) = self.place.cluster() else { return };
        if !cluster.membership.roster().is_member(&record.node_id()) {
            return self.answer(id, conversation, refuse("the cluster is full"), Some(Then::End));
        }
        let all = vec![Page::Objects(Which::All, None), Page::Alive(None, 0), Page::Say(Message::Admitted)];
        self.answer(id, conversation, all, None);
    }

    /// The answer is complete: check it as a whole, persist it, and be a member.
    fn admitted(&mut self, id: StreamId, conversation: &mut Conversation) {
        let Some(Joining { peer, genesis, objects, alive }) = conversation.take_joining() else { return };
        let mut roster = Roster::new(genesis);
        roster.unite(objects.into_values());
        self.answer(id, conversation, vec![Page::Say(Message::Done)], Some(Then::End));
        if !roster.is_member(&self.me) || !roster.is_member(&peer) {
            return self.ctx.rejects.count("admission that does not admit");
        }
        let Some(key) = self.place.join().map(|join| join.key.clone()) else { return };
        let dissolved = self.place.cluster().map(|cluster| cluster.membership.roster().cluster().to_string());
        self.ctx.log(
            LogLevel::Info,
            if dissolved.is_some() {
                "moved to the other cluster of this join key"
            } else {
                "admitted to the cluster"
            },
            vec![
                ("cluster", roster.cluster().to_string()),
                ("name", roster.genesis().name.clone()),
                ("by", peer.short()),
                ("dissolved", dissolved.unwrap_or_default()),
            ],
        );
        self.enter(roster, key, [(peer, conversation.remote())].into());
        self.save_place();
        self.tell_own_record();
        self.learn_alive(alive);
        self.with_discovery(Discovery::invite);
        // Nobody else is sure to know us as a member yet. A session makes it tell the others that we are up.
        self.name_paths(&peer);
        self.with_sessions(|sessions, context| sessions.open(peer, context));
    }

    /// The peer holds our own key: an echo of ourselves, or a clone of this machine's disk. The one that runs longer stays.
    /// Both sides compare what both said on this stream, not what their clocks show now: else each of two that were
    /// switched on together would find that it runs a moment longer than the other said.
    fn met_ourselves(&mut self, id: StreamId, ours: u64, hello: &Hello) {
        self.end(id);
        if hello.instance == self.instance {
            return;
        }
        // A stream in each direction may be open: the side that speaks last says the longer time on its one.
        let together = ours.abs_diff(hello.uptime) < TOGETHER.as_millis() as u64;
        let theirs_first = if together { self.instance < hello.instance } else { ours < hello.uptime };
        if theirs_first {
            self.stand_aside();
        } else {
            self.problems.set_until(
                "identity",
                "another machine runs with a copy of this node's identity; it stands aside",
                "write the image again to the other machine's disk, so that it gets its own identity",
                self.ctx.boottime() + COPY_TOLD_FOR,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_come_to_mirrored_results() {
        let places: Vec<Standpoint> = vec![
            None,
            Some((ClusterId([1; 16]), true)),
            Some((ClusterId([1; 16]), false)),
            Some((ClusterId([2; 16]), true)),
            Some((ClusterId([2; 16]), false)),
        ];
        for mine in &places {
            for theirs in &places {
                let mirrored = match relation(*theirs, *mine) {
                    Relation::TheyJoin => Relation::WeJoin,
                    Relation::WeJoin => Relation::TheyJoin,
                    same => same,
                };
                assert_eq!(relation(*mine, *theirs), mirrored, "{mine:?} {theirs:?}");
            }
        }
    }

    #[test]
    fn the_higher_of_two_blank_clusters_dissolves() {
        let (low, high) = (Some((ClusterId([1; 16]), true)), Some((ClusterId([2; 16]), true)));
        assert_eq!(relation(high, low), Relation::WeJoin);
        assert_eq!(
            relation(Some((ClusterId([1; 16]), true)), Some((ClusterId([2; 16]), false))),
            Relation::WeJoin
        );
    }
}
