// SPDX-License-Identifier: Apache-2.0
//! What raft 0.7 does to those who do not know it: one test for each trap, and for what this wall does about it.

use ::raft::eraftpb::{Entry, Message, MessageType};
use cluster_agent_proto::wire::{Reader, Writer};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::codec::{read_message, write_message};
use super::replica::{Change, Committed, Fault, Replica, Role};
use super::store::{Conf, HardState, Saved, Snapshot};
use crate::consts::{ELECTION_TICKS, SNAPSHOT_TICKS};

/// Replicas that hear each other at once. A disk can be held: it then writes nothing.
struct Group {
    replicas: Vec<Replica>,
    held_disks: Vec<u64>,
    cut: Vec<u64>,
    /// That were sent, and of these the first that do not arrive.
    snapshots: usize,
    snapshots_to_lose: usize,
    agreed: Vec<Vec<Committed>>,
    reads: Vec<Vec<u64>>,
    rng: StdRng,
}

fn saved(id: u64, voters: &[u64], learners: &[u64]) -> Saved {
    let conf = Conf { voters: voters.to_vec(), learners: learners.to_vec(), ..Conf::default() };
    let snapshot = Snapshot { index: 1, term: 1, conf, state: vec![1] };
    let hard_state = HardState { term: 1, vote: 0, commit: 1 };
    Saved { replica: id, sequence: 1, hard_state, snapshot: Some(snapshot), entries: Vec::new() }
}

impl Group {
    fn new(voters: &[u64], learners: &[u64]) -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let ids: Vec<u64> = voters.iter().chain(learners).copied().collect();
        let start = |id: &u64| Replica::start(&saved(*id, voters, learners), &mut rng).unwrap();
        let replicas: Vec<_> = ids.iter().map(start).collect();
        let count = replicas.len();
        Self {
            replicas,
            held_disks: Vec::new(),
            cut: Vec::new(),
            snapshots: 0,
            snapshots_to_lose: 0,
            agreed: vec![Vec::new(); count],
            reads: vec![Vec::new(); count],
            rng: StdRng::seed_from_u64(2),
        }
    }

    fn one(&mut self, id: u64) -> &mut Replica {
        self.replicas.iter_mut().find(|replica| replica.id() == id).unwrap()
    }

    fn pump(&mut self) {
        loop {
            let mut messages = Vec::new();
            for (n, replica) in self.replicas.iter_mut().enumerate() {
                let (agreed, reads) = replica.work(&mut self.rng);
                self.agreed[n].extend(agreed);
                self.reads[n].extend(reads.into_iter().map(|(index, _)| index));
                if !self.held_disks.contains(&replica.id()) {
                    while let Some(write) = replica.poll_persist() {
                        replica.persisted(write.id);
                        messages.push(None);
                    }
                }
                while let Some(message) = replica.poll_message() {
                    messages.push(Some(message));
                }
            }
            if messages.is_empty() {
                break;
            }
            for message in messages.into_iter().flatten() {
                if self.cut.contains(&message.to) || self.cut.contains(&message.from) {
                    continue;
                }
                if message.get_msg_type() == MessageType::MsgSnapshot {
                    self.snapshots += 1;
                    if self.snapshots <= self.snapshots_to_lose {
                        continue;
                    }
                }
                let rng = &mut self.rng;
                if let Some(to) = self.replicas.iter_mut().find(|replica| replica.id() == message.to) {
                    let _ = to.step(through_the_wire(&message), rng);
                }
            }
        }
    }

    fn elect(&mut self, id: u64) {
        let mut rng = StdRng::seed_from_u64(3);
        self.one(id).campaign(&mut rng);
        self.pump();
        assert_eq!(self.one(id).role(), Role::Leader);
    }

    fn tick(&mut self, id: u64) {
        let mut rng = StdRng::seed_from_u64(4);
        self.one(id).tick(&mut rng);
    }
}

fn through_the_wire(message: &Message) -> Message {
    let mut w = Writer::new();
    write_message(&mut w, message).unwrap();
    let bytes = w.finish();
    let mut r = Reader::new("test", &bytes);
    let read = read_message(&mut r).unwrap();
    assert_eq!((&read, r.remaining()), (message, 0));
    read
}

fn message(of: MessageType, from: u64, to: u64, term: u64) -> Message {
    let mut message = Message::default();
    message.set_msg_type(of);
    (message.from, message.to, message.term) = (from, to, term);
    message
}

#[test]
fn what_one_proposes_all_agree_on() {
    let mut group = Group::new(&[1, 2, 3], &[]);
    group.elect(2);
    assert!(!group.one(1).propose(vec![7]), "only the leader proposes");
    assert!(group.one(2).propose(vec![7]));
    group.pump();
    for agreed in &group.agreed {
        assert!(agreed.iter().any(|one| matches!(one, Committed::Entry(entry) if entry.data == [7])));
    }
}

/// An empty proposal makes a leader panic; reads and raft's messages to itself are nobody else's business.
#[test]
fn only_what_peers_say_is_read_from_the_wire() {
    let no = [
        MessageType::MsgHup,
        MessageType::MsgBeat,
        MessageType::MsgPropose,
        MessageType::MsgUnreachable,
        MessageType::MsgSnapStatus,
        MessageType::MsgCheckQuorum,
        MessageType::MsgTransferLeader,
        MessageType::MsgReadIndex,
        MessageType::MsgReadIndexResp,
    ];
    for of in no {
        assert_eq!(write_message(&mut Writer::new(), &message(of, 1, 2, 1)), None, "{of:?}");
    }
    let mut w = Writer::new();
    write_message(&mut w, &message(MessageType::MsgHeartbeat, 1, 2, 1)).unwrap();
    let bytes = w.finish();
    let reads = |kind: &u8| {
        let bytes = [&[*kind], &bytes[1..]].concat();
        read_message(&mut Reader::new("test", &bytes)).is_ok()
    };
    let read = (0..=255).filter(reads).count();
    // All but the one that must have a snapshot.
    assert_eq!(read, 9);
}

/// Raft counts how far entries are apart, and does not ask whether they are.
#[test]
fn entries_that_do_not_follow_each_other_are_not_read() {
    let entry = |index, term| {
        let mut entry = Entry::default();
        (entry.index, entry.term) = (index, term);
        entry
    };
    let reads = |entries: Vec<Entry>| {
        let mut append = message(MessageType::MsgAppend, 1, 2, 5);
        (append.index, append.log_term) = (7, 3);
        append.set_entries(entries.into());
        let mut w = Writer::new();
        write_message(&mut w, &append).unwrap();
        read_message(&mut Reader::new("test", &w.finish())).is_ok()
    };
    assert!(reads(vec![entry(8, 3), entry(9, 5)]));
    for bad in [vec![entry(9, 3)], vec![entry(8, 2)], vec![entry(8, 6)], vec![entry(8, 4), entry(10, 4)]] {
        assert!(!reads(bad.clone()), "{bad:?}");
    }
}

/// Raft panics in `commit_to`.
#[test]
fn a_voter_whose_disk_lost_entries_is_told_so() {
    let mut group = Group::new(&[1, 2, 3], &[]);
    group.elect(1);
    assert!(group.one(1).propose(vec![7]));
    group.pump();
    let mut rng = StdRng::seed_from_u64(5);
    let mut wiped = Replica::start(&saved(2, &[1, 2, 3], &[]), &mut rng).unwrap();
    let term = group.one(1).term();
    let mut heartbeat = message(MessageType::MsgHeartbeat, 1, 2, term);
    heartbeat.commit = group.one(1).committed();
    assert_eq!(wiped.step(heartbeat, &mut rng), Err(Fault::LogLost));
}

#[test]
fn a_follower_that_claims_what_the_leader_does_not_have_is_not_believed() {
    let mut group = Group::new(&[1, 2, 3], &[]);
    group.elect(1);
    let mut rng = StdRng::seed_from_u64(5);
    let mut claim = message(MessageType::MsgAppendResponse, 2, 1, group.one(1).term());
    claim.index = 1000;
    assert_eq!(group.one(1).step(claim, &mut rng), Err(Fault::Nonsense));
    let order = message(MessageType::MsgTimeoutNow, 3, 2, group.one(1).term());
    assert_eq!(
        group.one(2).step(order, &mut rng),
        Err(Fault::Nonsense),
        "only the leader gives leadership away"
    );
}

/// A read before the leader's first entry is agreed is dropped without a word: it is asked again.
#[test]
fn a_read_that_is_dropped_is_answered_when_it_is_asked_again() {
    let mut group = Group::new(&[1], &[]);
    group.held_disks = vec![1];
    let mut rng = StdRng::seed_from_u64(3);
    group.one(1).campaign(&mut rng);
    group.pump();
    assert_eq!(group.one(1).role(), Role::Leader);
    group.one(1).read_index(&[1; 16]);
    group.held_disks = Vec::new();
    group.pump();
    assert_eq!(group.reads[0].len(), 0);
    group.one(1).read_index(&[2; 16]);
    group.pump();
    assert_eq!(group.reads[0], [2]);
}

/// Raft lets it lead on, and panics when the next entry is agreed. Leadership is given away first (leader/mod.rs), but a new
/// leader can have its own removal in its log.
#[test]
fn a_leader_that_is_removed_leads_no_more() {
    let mut group = Group::new(&[1, 2, 3], &[]);
    group.elect(1);
    assert!(group.one(1).change(&[Change::Remove(1)]));
    assert!(group.one(1).propose(vec![7]));
    group.pump();
    assert_eq!(group.one(1).conf().voters, [2, 3]);
    assert_eq!(group.one(1).role(), Role::Follower);
    assert!(!group.one(1).propose(vec![8]));
    while [2, 3].iter().all(|id| group.one(*id).role() != Role::Leader) {
        group.tick(2);
        group.tick(3);
        group.pump();
    }
    let leader = if group.one(2).role() == Role::Leader { 2 } else { 3 };
    assert!(group.one(leader).propose(vec![9]));
    group.pump();
    let agreed = |data: u8| {
        move |all: &Vec<Committed>| {
            all.iter().any(|one| matches!(one, Committed::Entry(entry) if entry.data == [data]))
        }
    };
    assert!([7, 9].into_iter().all(|data| group.agreed[1..].iter().all(agreed(data))));
}

#[test]
fn leadership_can_be_given_away() {
    let mut group = Group::new(&[1, 2, 3], &[]);
    group.elect(1);
    group.one(1).transfer(3);
    group.pump();
    assert_eq!(group.one(3).role(), Role::Leader);
}

#[test]
fn heartbeats_wait_for_no_disk_and_what_promises_something_does() {
    let mut group = Group::new(&[1, 2, 3], &[]);
    group.elect(1);
    group.held_disks = vec![2, 3];
    assert!(group.one(1).propose(vec![7]));
    group.pump();
    assert!(group.one(1).committed() < group.one(1).last_index(), "nobody has it on a disk");
    for _ in 0..30 * ELECTION_TICKS {
        group.tick(1);
        group.pump();
    }
    assert_eq!(group.one(1).role(), Role::Leader, "the others still say that they are there");
    assert!(group.one(1).committed() < group.one(1).last_index());
    group.held_disks = Vec::new();
    group.pump();
    assert_eq!(group.one(1).committed(), group.one(1).last_index());
}

#[test]
fn a_vote_waits_for_the_disk() {
    let mut group = Group::new(&[1, 2, 3], &[]);
    group.held_disks = vec![2, 3];
    let mut rng = StdRng::seed_from_u64(3);
    group.one(1).campaign(&mut rng);
    group.pump();
    assert_eq!(group.one(1).role(), Role::Candidate);
    group.held_disks = vec![3];
    group.pump();
    assert_eq!(group.one(1).role(), Role::Leader);
}

/// It leads at once. If it then forgot the term, it would lead in it twice, and a learner could have other entries of it.
#[test]
fn a_single_voter_says_nothing_in_a_term_that_is_not_on_its_disk() {
    let mut group = Group::new(&[1], &[2]);
    let mut rng = StdRng::seed_from_u64(3);
    let one = group.one(1);
    one.campaign(&mut rng);
    one.work(&mut rng);
    assert_eq!(one.role(), Role::Leader);
    assert_eq!(one.poll_message(), None);
    group.pump();
    assert_eq!(group.one(2).leader(), Some(1));
}

#[test]
fn who_waits_for_its_disk_asks_for_no_votes() {
    let mut group = Group::new(&[1, 2, 3], &[]);
    group.elect(1);
    group.held_disks = vec![2];
    assert!(group.one(1).propose(vec![7]));
    group.pump();
    let term = group.one(2).term();
    for _ in 0..10 * ELECTION_TICKS {
        group.tick(2);
    }
    assert_eq!((group.one(2).role(), group.one(2).term()), (Role::Follower, term));
}

/// Raft waits for ever for the answer to a snapshot.
#[test]
fn a_snapshot_that_got_lost_is_sent_again() {
    let mut group = Group::new(&[1], &[]);
    group.elect(1);
    let mut rng = StdRng::seed_from_u64(6);
    let learner = Replica::fresh(2, &mut rng).unwrap();
    group.replicas.push(learner);
    group.agreed.push(Vec::new());
    group.reads.push(Vec::new());
    assert!(group.one(1).change(&[Change::Learn(2)]));
    group.snapshots_to_lose = 1;
    for _ in 0..2 * SNAPSHOT_TICKS + 20 {
        group.tick(1);
        group.pump();
        let one = group.one(1);
        if one.wants_snapshot() {
            one.give_snapshot(vec![1]);
        }
    }
    assert_eq!(group.snapshots, 2, "one that got lost, one that did not");
    assert_eq!(group.one(2).last_index(), group.one(1).last_index());
}

#[test]
fn the_same_seed_asks_for_votes_at_the_same_time() {
    let ticks = |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut replica = Replica::start(&saved(1, &[1, 2, 3], &[]), &mut rng).unwrap();
        let mut all = Vec::new();
        for tick in 0..20 * ELECTION_TICKS {
            replica.tick(&mut rng);
            replica.work(&mut rng);
            while let Some(write) = replica.poll_persist() {
                replica.persisted(write.id);
            }
            while replica.poll_message().is_some() {
                all.push(tick);
            }
        }
        all
    };
    assert_eq!(ticks(1), ticks(1));
    assert!((2..10).any(|seed| ticks(seed) != ticks(1)));
}

#[test]
fn a_damaged_log_is_not_voted_with() {
    let mut rng = StdRng::seed_from_u64(1);
    let entry = |index, term| super::LogEntry { index, term, is_conf: false, data: vec![1] };
    let mut good = saved(1, &[1, 2, 3], &[]);
    good.entries = vec![entry(2, 1), entry(3, 1)];
    good.hard_state.commit = 3;
    assert!(Replica::start(&good, &mut rng).is_some());
    let mut torn = good.clone();
    torn.entries.pop();
    assert!(Replica::start(&torn, &mut rng).is_none(), "a committed entry is gone");
    let mut gap = good.clone();
    gap.entries.remove(0);
    assert!(Replica::start(&gap, &mut rng).is_none(), "an entry is missing");
}
