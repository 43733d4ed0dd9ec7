// SPDX-License-Identifier: Apache-2.0
//! Facts of the wire, from `agent/proto`, and all that an agent keeps to that others need not know, so that it can be tuned: what
//! only one room uses is in a module named after it. Numbers of a format stay with its encoder.

use std::time::Duration;

pub use cluster_agent_proto::consts::*;

/// Whoever carries out [`StreamSend`](crate::NetCommand::StreamSend) tells of every so many bytes of a stream that the socket took.
/// Most streams never carry that much, and cost no word.
pub const SENT_STEP: usize = 16 * 1024;
/// Largest `cluster.toml` that is read.
pub const MAX_CLUSTER_TOML: usize = 64 * 1024;
/// Largest state file that is read back.
pub const MAX_STATE_FILE: usize = 16 * 1024 * 1024;

pub(crate) mod ctx {
    use super::*;

    /// How often time-driven work is looked at.
    pub(crate) const TICK: Duration = Duration::from_millis(250);
    /// A tick that comes later still says that the machine was suspended, not that it is busy.
    pub(crate) const MAX_LATE: Duration = Duration::from_secs(5);
    /// Ticks that come so late say that this machine has too much to do.
    pub(crate) const BUSY: Duration = Duration::from_millis(4);
    /// About so many nodes do what many could do as well, however many hear that it is to be done.
    pub(crate) const ANSWERERS: u32 = 8;
}

pub(crate) mod router {
    use super::*;

    /// Changes of members are told at once, but not more often.
    pub(crate) const NOTICE_GAP: Duration = Duration::from_millis(50);
}

pub(crate) mod outbox {
    use super::*;

    /// A failed write is tried again after this pause: space may have been freed, a bad cable may be back.
    pub(crate) const RETRY: Duration = Duration::from_secs(5);
    /// Datagrams are dropped rather than queued beyond this while a slow disk holds them.
    pub(crate) const MAX_QUEUE: usize = 4096;
}

pub(crate) mod state_files {
    use super::*;

    /// How often the wall clock is saved.
    pub(crate) const CLOCK_SAVE_INTERVAL: Duration = Duration::from_secs(60);
    /// What may be lost is written once it is so old: more comes in the meantime, and is written with it.
    pub(crate) const DELAY: Duration = Duration::from_secs(1);
    /// While many join, each second brings something, and what was written is old before it is on the disk.
    pub(crate) const AT_LAST: Duration = Duration::from_secs(5);
}

pub(crate) mod own {
    use super::*;

    /// Shortest time between two jumps to a later generation. Each costs a write.
    pub(crate) const ADVANCE_GAP: Duration = Duration::from_secs(1);
}

pub(crate) mod clock {
    use super::*;

    /// How far members that are no majority may move the clock forward in one boot.
    pub(crate) const BUDGET: Duration = Duration::from_secs(24 * 3600);
    /// A clock this far ahead of a majority is wrong.
    pub(crate) const FAR_AHEAD: Duration = Duration::from_secs(24 * 3600);
    /// A clock that is certainly wrong follows this many members, even if they are no majority.
    pub(crate) const ENOUGH: usize = 5;
    /// The saved time grows by at most this much more than the time that passed since the agent started: what the clock gains
    /// in a month without a time server.
    pub(crate) const SLACK: Duration = Duration::from_secs(120);
    /// A time this far beyond the floor is nonsense. Some kernels take none after 2232.
    pub(crate) const HORIZON: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
    /// An agent that starts this long after the machine has had the mesh up in this boot already.
    pub(crate) const LATE_START: Duration = Duration::from_secs(15 * 60);
    /// As many as a cluster has members.
    pub(crate) const MAX_SAMPLES: usize = 4096;
    /// The problem of a wrong clock stays until the next look, and a little longer.
    pub(crate) const CLOCK_PROBLEM: Duration = Duration::from_secs(70);
}

pub(crate) mod founding {
    use super::*;

    /// How long a node listens before it founds, counted from the first interface that is up.
    pub(crate) const FOUNDING_WINDOW: Duration = Duration::from_secs(5);
    /// A handshake vouches for a node this long.
    pub(crate) const CANDIDATE_FOR: Duration = Duration::from_secs(25);
    /// After hearing a member of a founded cluster, a node does not found for so long.
    pub(crate) const CLUSTER_HEARD_FOR: Duration = Duration::from_secs(20);
    /// After a beacon that names a cluster, a node does not found for so long: two of its own beacons, at the longest.
    pub(crate) const CLUSTER_NAMED_FOR: Duration = Duration::from_secs(25);
    /// Since the first such beacon, for so long at most: they may have been recorded, and the cluster may be gone.
    pub(crate) const LONGEST_NAMED: Duration = Duration::from_secs(120);
    /// For this long after a beacon first named a cluster, nodes without one do not shake hands with each other: when many boot at
    /// once, that would cost each of them six handshakes.
    pub(crate) const JUST_NAMED: Duration = Duration::from_secs(5);
    /// While an introduction is under way, listening goes on for so long at most: slow machines take a second for each step.
    pub(crate) const LONGEST_WINDOW: Duration = Duration::from_secs(15);
    /// Nodes without a cluster that are remembered: anybody with the join key can name any number.
    pub(crate) const MAX_CANDIDATES: usize = 1024;
}

pub(crate) mod discovery {
    use super::*;
    use crate::limit::Rate;

    /// Between the first two beacons of a search; doubles with each.
    pub(crate) const FIRST: Duration = Duration::from_millis(500);
    /// The longest time between two beacons of a search: who is switched on later is found within it.
    pub(crate) const SEARCHING_MAX: Duration = Duration::from_secs(10);
    /// Between two beacons of a member that has all others up.
    pub(crate) const SETTLED: Duration = Duration::from_secs(30);
    /// At least so long between two introductions of one node.
    pub(crate) const INTRODUCTION_GAP: Duration = Duration::from_secs(2);
    /// Two nodes without a cluster shake hands again when the last time is this long ago.
    pub(crate) const SHAKE_AGAIN: Duration = Duration::from_secs(6);
    /// The higher id begins a handshake itself after so long.
    pub(crate) const BEGIN_ANYWAY: Duration = Duration::from_millis(1200);
    /// About so many answer the beacon of a stranger. It beacons again soon.
    pub(crate) const ANSWERS: u32 = 5;
    /// A crowd that joins tells each other of each within so long.
    pub(crate) const TOLD_WITHIN: Duration = Duration::from_secs(2);
    /// About so many do not wait for that: if all did, all would ask the few that know more.
    pub(crate) const AT_ONCE: u32 = 2;
    /// A node without a cluster that beacons itself this soon does not answer.
    pub(crate) const ANSWERED_BY_BEACON: Duration = Duration::from_secs(1);
    /// Members of a larger cluster beacon more rarely, so that a LAN hears as many beacons as from a cluster of this size.
    pub(crate) const BEACON_EVERY: u32 = 32;
    /// A node without a cluster shakes hands with so many others like it; beyond that only with lower ids, because only the
    /// lowest counts. A thousand that are switched on at once would else shake hands half a million times.
    pub(crate) const ENOUGH_SHAKEN: usize = 6;
    /// It begins with that so long after its network came up: until then a member may have answered, and there is nothing to
    /// found.
    pub(crate) const SHAKE_AFTER: Duration = Duration::from_millis(700);
    /// On a machine that has too much to do beacons are that much rarer: so many times what ticks are late.
    pub(crate) const PER_LATE: u32 = 4;
    /// Who was just let in on a busy machine tells so many of the nodes without a cluster that it heard before where there is one.
    /// So a crowd comes in as a tree, and not all to the few that were there first.
    pub(crate) const INVITED: usize = 4;
    /// Those that were heard this recently; who was not will beacon again.
    pub(crate) const INVITED_AFTER: Duration = Duration::from_secs(3);
    /// In a crowd, who was let in need not beacon at once: those who let it in speak for it, and it invites by name.
    pub(crate) const CROWD_BEACON: Duration = Duration::from_secs(2);
    /// How long a member counts as new: a thousand nodes that boot at once know each other by then, on slow machines too.
    pub(crate) const NEW_FOR: Duration = Duration::from_secs(30);
    /// Nodes without a cluster that may be invited: a few of a crowd are chosen.
    pub(crate) const MAX_STRANGERS: usize = 256;
    /// Introductions to members of a cluster that are tried at once.
    pub(crate) const MAX_SEEKING: usize = 2;
    /// Nodes whose introductions, waits and beacons are remembered: as many as a cluster has members.
    pub(crate) const MAX_REMEMBERED: usize = 4096;
    /// Beacons of which it is remembered that they came.
    pub(crate) const REPEATS: usize = 16_384;
    /// One beacon to all comes by IPv4 and by IPv6, by each of a few cards.
    pub(crate) const PER_BEACON: u8 = 8;
    /// Addresses whence a member of a cluster answered us, that are remembered.
    pub(crate) const MAX_SENDERS: usize = 64;
    /// How long such an answer is worth an introduction: it beacons again meanwhile.
    pub(crate) const SENDER_FOR: Duration = Duration::from_secs(5);
    /// Addresses whence somebody named us, that are remembered.
    pub(crate) const MAX_EXPECTED: usize = 256;
    /// How long a stream from there is expected: its sender has asked again by then.
    pub(crate) const EXPECTED_FOR: Duration = Duration::from_secs(10);
    /// When more ask than are answered one by one, all are answered at once, at most so often.
    pub(crate) const ANSWER_ALL: Duration = Duration::from_secs(1);
    /// Answers to beacons: each is as long as the question, and worth an introduction.
    pub(crate) const ANSWERED: Rate = Rate { per_second: 2, burst: 6, sources: Some(100) };
    /// Questions to nodes that say they have a cluster.
    pub(crate) const ASKED: Rate = Rate { per_second: 4, burst: 8, sources: None };
    /// Between two introductions to one that has this node's own identity: an echo of an earlier boot needs none.
    pub(crate) const MYSELF_AGAIN: Duration = Duration::from_secs(30);
    /// An introduction is forgotten after so long when there is no room for more.
    pub(crate) const INTRODUCED_FOR: Duration = Duration::from_secs(60);
}

pub(crate) mod introduce {
    use super::*;

    /// Of two copies of a node that were switched on within so long the instance decides, which is drawn at random.
    pub(crate) const TOGETHER: Duration = Duration::from_secs(2);
    /// That there is a second cluster is told for so long after its last introduction: the next one comes within.
    pub(crate) const APART_TOLD_FOR: Duration = Duration::from_secs(120);
    /// That there is a copy of this node is told for so long: it stands aside, and says so once a boot.
    pub(crate) const COPY_TOLD_FOR: Duration = Duration::from_secs(3600);
}

pub(crate) mod neighbours {
    use super::*;

    /// A member that heard us this recently through a session needs no beacon.
    pub(crate) const FRESH: Duration = Duration::from_secs(5);
}

pub(crate) mod streams {
    use super::*;
    use crate::limit::Rate;

    /// How long one of ours is tried with a node that does not take the connection before others are tried beside it.
    pub(crate) const CONNECTS_WITHIN: Duration = Duration::from_secs(1);
    /// The same for a node that does not prove itself. A slow machine has a crowd to prove itself to.
    pub(crate) const PROVES_WITHIN: Duration = Duration::from_secs(3);
    /// Longer by so many times what ticks are late: the key agreements of a crowd take their time.
    pub(crate) const PER_LATE: u32 = 2;
    /// Those that others opened may be without proof for so long.
    pub(crate) const UNPROVEN_FOR: Duration = Duration::from_secs(3);
    /// One that is kept for the next push-pull, for so long. The other side waits twice as long, so that it does not close one that
    /// is just being used.
    pub(crate) const REST: Duration = Duration::from_secs(5);
    /// Ours at once: each holds a descriptor, and a crowd needs no more to come in.
    pub(crate) const MAX_OUTBOUND: usize = 32;
    /// Of these so many are not for introductions to nodes without a cluster: whoever recorded the beacons of many can have all of them
    /// tried.
    pub(crate) const NOT_TO_INTRODUCE: usize = 8;
    /// Inbound ones at once on which a member proved itself: each holds a descriptor and up to a page of an answer.
    pub(crate) const MAX_MEMBERS: usize = 128;
    /// The same of others who have the join key.
    pub(crate) const MAX_STRANGERS: usize = 128;
    /// Of these, those of one address, so that nobody has all places.
    pub(crate) const MAX_INBOUND_PER_SOURCE: usize = 16;
    /// A stranger that neither asks nor is answered gives way to the next one after so long.
    pub(crate) const IDLE_AFTER: Duration = Duration::from_secs(1);
    /// All streams together hold so much that sockets have not taken: who reads least gives way to others beyond that.
    pub(crate) const ALL_UNSENT: usize = 8 << 20;
    /// First frames of others of which it is remembered that they came. An honest one comes once.
    pub(crate) const FIRST_FRAMES: usize = 16_384;
    /// One that asked to be let in and had its answer gives way after so long without a word.
    pub(crate) const ANSWERED_IDLE_AFTER: Duration = Duration::from_secs(5);
    /// Inbound ones on which nothing was proven yet.
    pub(crate) const MAX_UNPROVEN: usize = 256;
    /// Ours on which nobody proved anything, and those on which nothing more comes of an admission. A crowd waits in one queue for
    /// the key agreements of a slow machine.
    pub(crate) const SILENT_FOR: Duration = Duration::from_secs(10);
    /// When there is no room for another one of ours, one on which nobody proved anything gives way after so long.
    pub(crate) const GIVES_WAY_AFTER: Duration = Duration::from_secs(3);
    /// Key agreements and push-pulls. The addresses of members have as many besides.
    pub(crate) const ACCEPTED: Rate = Rate { per_second: 10, burst: 40, sources: Some(20) };
    /// Answers that take work, to somebody who proved who he is.
    pub(crate) const ANSWERED: Rate = Rate { per_second: 8, burst: 20, sources: None };
    /// One that takes longer than this is closed.
    pub(crate) const STREAM_DEADLINE: Duration = Duration::from_secs(20);
}

pub(crate) mod frames {
    /// Larger handshake frames are refused before anything is allocated for them.
    pub(crate) const MAX_HANDSHAKE_FRAME: usize = 256;
    /// So are larger ones of somebody whose first message did not come yet: his handshake may be a repetition.
    pub(crate) const MAX_FIRST_FRAME: usize = 4096;
}

pub(crate) mod output {
    use super::*;

    /// The next page is made while fewer bytes than this wait for the socket. More than the caller leaves untold
    /// ([`SENT_STEP`](crate::consts::SENT_STEP)), and all that there is to say in a cluster of a few hundred: on a machine with too
    /// much to do each wait for the socket is one for everything else.
    pub(crate) const LOW_WATER: usize = 256 * 1024;
    /// Less than this may wait although all was taken: it was not worth a word.
    pub(crate) const UNTOLD: usize = 2 * SENT_STEP;
    /// Who takes nothing for so long while more waits does not read.
    pub(crate) const NOT_READ: Duration = Duration::from_secs(5);
}

pub(crate) mod checks {
    use crate::limit::Rate;

    /// Signatures of one member that are checked: all that a cluster of thousands has to say at once, and then what takes a few hundredths of a processor.
    pub(crate) const OF_MEMBER: Rate = Rate { per_second: 500, burst: 8192, sources: None };
    /// In answers of one member to who asks to be let in: the largest roster at once. Less than twice as many objects have a place in
    /// it. Two may say so much, so that one that wastes it keeps nobody out.
    pub(crate) const OF_ADMISSION: Rate = Rate { per_second: 1000, burst: 40_960, sources: Some(2) };
}

pub(crate) mod exchange {
    /// More objects than this in one admission, or listed or given in one push-pull, are refused.
    pub(crate) const MAX_OBJECTS: usize = 40_000;
    /// More is not asked for at once; what is missing then comes with the next push-pull.
    pub(crate) const MAX_LACKING: usize = 12_288;
    /// More than gossip knows of the largest cluster.
    pub(crate) const MAX_ALIVE: usize = 8192;
    /// Messages of one push-pull. The largest takes half of that.
    pub(crate) const MAX_MESSAGES: u32 = 1024;
}

pub(crate) mod push_pull {
    use super::*;

    /// How often a node reconciles its full state with a random member.
    pub(crate) const PUSH_PULL_INTERVAL: Duration = Duration::from_secs(30);
    /// Wait after an exchange that taught something; doubles with each that did not, up to [`PUSH_PULL_INTERVAL`].
    pub(crate) const SOON: Duration = Duration::from_millis(250);
    /// It is longer by so many times what ticks were late lately.
    pub(crate) const PER_LATE: u32 = 4;
    /// With fewer sessions open a busy machine asks any member: else each of a crowd would ask the one that let it in again and
    /// again.
    pub(crate) const ENOUGH_TO_ASK: usize = 4;
    /// So many exchanges are under way at once: where each takes seconds, more would only make all of them slower.
    pub(crate) const MAX_AT_ONCE: usize = 2;
    /// One that takes longer does not count: its peer may be gone.
    pub(crate) const SLOW: Duration = Duration::from_secs(2);
    /// A busy machine keeps so many streams for its next push-pulls: the key agreements of a new one are most of what a
    /// push-pull costs.
    pub(crate) const KEPT: usize = 3;
    /// Push-pulls in a row with members that spoke of what we do not know; the next one is with any.
    pub(crate) const IN_A_ROW: u32 = 12;
    /// With nobody to ask, it is looked again after so long.
    pub(crate) const NOBODY: Duration = Duration::from_secs(1);
}

pub(crate) mod membership {
    /// As many as gossip passes on at once.
    pub(crate) const MAX_PENDING_BROADCASTS: usize = 64;
}

pub(crate) mod newcomers {
    use super::*;

    /// More are not remembered.
    pub(crate) const MOST: usize = 512;
    /// After that it may be gone again.
    pub(crate) const FRESH: Duration = Duration::from_secs(5);
}

pub(crate) mod leaving {
    use super::*;

    /// How long the others are told, from when the first of them can be.
    pub(crate) const TELL_FOR: Duration = Duration::from_secs(2);
    /// How often meanwhile: a datagram may be lost.
    pub(crate) const TELL_EVERY: Duration = Duration::from_millis(500);
    /// How long a node that leaves waits for a member that it can tell.
    pub(crate) const NOBODY_FOR: Duration = Duration::from_secs(5);
    /// The same after a restart in the middle of a leave: the network may come up late.
    pub(crate) const NOBODY_FOR_RESUMED: Duration = Duration::from_secs(30);
}

pub(crate) mod requests {
    use super::*;

    /// A request that takes longer is answered with what it waits for, before the bus gives up on it.
    pub(crate) const LIMIT: Duration = Duration::from_secs(15);
    /// Requests that wait at once. Only root can make them.
    pub(crate) const MAX_WAITING: usize = 16;
}

pub(crate) mod overlay {
    use super::*;

    /// A session that carried something this recently is worth an announcement instead of a handshake.
    pub(crate) const ALIVE: Duration = Duration::from_secs(4);
    /// Once nobody has joined for so long, news need not go to those alone with whom a session is open.
    pub(crate) const SETTLED: Duration = Duration::from_secs(10);
    /// Then one packet of news in so many goes to whom gossip chose, session or not.
    pub(crate) const AMONG_ALL: u32 = 4;
    /// While it waits for that many answers, its news opens no more.
    pub(crate) const MOST_UNDER_WAY: usize = 4;
}

pub(crate) mod dialer {
    use super::*;

    /// Between the first two dials of a member; doubles with each.
    pub(crate) const DIAL_FIRST: Duration = Duration::from_secs(1);
    /// The longest time between two dials: a member that comes back is found within it.
    pub(crate) const DIAL_MAX: Duration = Duration::from_secs(30);
    /// On a machine that has too much to do, what gossip has to say comes later: so many times what ticks were late lately.
    pub(crate) const PER_LATE: u32 = 8;
    /// But not later than this.
    pub(crate) const MOST_LATER: Duration = Duration::from_secs(4);
    /// Members dialled in one tick: a node that joins a thousand does not shake hands with all at once.
    pub(crate) const DIALS_PER_TICK: usize = 4;
    /// The addresses that records name are gathered anew at most this often.
    pub(crate) const GATHER_EVERY: Duration = Duration::from_secs(1);
    /// With so many members to talk to, news goes to those among whom a session is open. Were each packet for a member of its
    /// own, a hundred nodes that are switched on together would shake hands five thousand times within seconds.
    pub(crate) const ENOUGH_OPEN: usize = 16;
    /// On a machine that has too much to do, so few: each costs it four key agreements.
    pub(crate) const FEW_OPEN: usize = 3;
    /// A member is watched for so long after it gave reason to.
    pub(crate) const WATCH_FOR: Duration = Duration::from_secs(15);
    /// Members watched at once: each is asked every second.
    pub(crate) const MAX_WATCHED: usize = 32;
    /// A member that others reach, and that has not answered us on any way for so long, is named. On a network that loses one
    /// datagram in twenty eight handshakes in a row must fail until then.
    pub(crate) const NAMED_AFTER: Duration = Duration::from_secs(10);
    /// A member that is down is not called at another member's address any more after so many calls in vain.
    pub(crate) const CALLED_IN_VAIN: u32 = 3;
}

pub(crate) mod paths {
    /// Members that are named in one problem: more is no help.
    pub(crate) const MAX_NAMES: usize = 8;
}

pub(crate) mod names {
    /// Members with this node's host name that are named: a line that a person reads.
    pub(crate) const MAX_NAMED: usize = 5;
    /// Members that are named when none answers.
    pub(crate) const MAX_WAITED_FOR: usize = 5;
}

pub(crate) mod mesh {
    use super::*;

    /// The mesh waits so long for a member to tell the time.
    pub(crate) const WAIT_FOR_CLOCK: Duration = Duration::from_secs(5);
    /// When some say that the clock is far ahead, it waits this long for a majority: it can go back only before.
    pub(crate) const WAIT_FOR_MAJORITY: Duration = Duration::from_secs(30);
    /// Members are added once nobody has joined for so long: a crowd that joins is added in batches.
    pub(crate) const PLAN_QUIET: Duration = Duration::from_millis(500);
    /// Or so long after the last ones.
    pub(crate) const PLAN_GAP: Duration = Duration::from_secs(1);
    /// The same of a crowd: who is there comes first, then tunnels.
    pub(crate) const CROWD_PLAN_GAP: Duration = Duration::from_secs(10);
    /// Members of a crowd are added once nobody has joined for so long.
    pub(crate) const CROWD_PLAN_QUIET: Duration = Duration::from_secs(1);
    /// More members than that are a crowd.
    pub(crate) const CROWD: usize = 16;
    /// A batch of that many waits longer on a machine that has too much to do: so many times what ticks were late.
    pub(crate) const PER_LATE: u32 = 20;
    /// More than keepalives and handshakes carry between two looks at the counters.
    pub(crate) const BUSY_BYTES: u64 = 1000;
    /// So many members that no tunnel reaches yet are dialled each time.
    pub(crate) const WAYS_AT_ONCE: usize = 8;
    /// How often.
    pub(crate) const WAYS_EVERY: Duration = Duration::from_secs(1);
    /// A keepalive makes both ends shake hands at once. So many more tunnels get theirs at a time; one that is needed earlier
    /// comes up with its first packet.
    pub(crate) const KEPT_ALIVE_AT_ONCE: usize = 8;
    /// Between two such batches: their handshakes are done by then.
    pub(crate) const KEEP_MORE_AFTER: Duration = Duration::from_secs(2);
    /// WireGuard drops its own handshake when the other's comes meanwhile, and both try again 5 s later: two that begin in one moment on a
    /// machine that stands still now and then missed each other for 15 s. So the higher id begins this much later, and so do its repeats.
    pub(crate) const OTHER_BEGINS: Duration = Duration::from_millis(1500);
    /// A crowd has more urgent work: there they wait until nobody has joined for so long.
    pub(crate) const KEEP_QUIET: Duration = Duration::from_secs(3);
    /// But not longer than that.
    pub(crate) const KEEP_ANYWAY: Duration = Duration::from_secs(30);
}

pub(crate) mod gossip {
    use super::*;

    /// Probe round. Slow, emulated machines answer after a second.
    pub(crate) const PROBE_PERIOD: Duration = Duration::from_millis(2000);
    /// A ping has failed, and others are asked to ping, after so long.
    pub(crate) const PROBE_RTT: Duration = Duration::from_millis(1000);
    /// A member that is suspected has so long to say that it is there.
    pub(crate) const SUSPECT_TO_DOWN: Duration = Duration::from_secs(6);
    /// An unanswered ping is sent again after so long.
    pub(crate) const PING_AGAIN: Duration = Duration::from_millis(300);
    /// Pings that go out before others are asked.
    pub(crate) const PINGS: u8 = 3;
    /// A member is pinged from so long after it was first heard of. Before, it shakes hands with many others, and if a hundred
    /// are switched on together, pings are what is late; that it is there, who heard of it first knows first-hand.
    pub(crate) const SPARED_FOR: Duration = Duration::from_secs(10);
    /// A timer that is later than this is late because this node did not run: it was suspended, or its machine has too much to
    /// do. What the others said meanwhile still waits to be read.
    pub(crate) const LATE: Duration = Duration::from_millis(100);
    /// Time to read it before anybody is judged.
    pub(crate) const READ_FIRST: Duration = Duration::from_millis(50);
    /// How often that is granted.
    pub(crate) const EXCUSE_GAP: Duration = Duration::from_secs(1);
    /// More objects than this are not queued for passing on: they would take minutes, and push-pull brings them sooner.
    pub(crate) const MAX_BROADCASTS: usize = 64;
    /// Members that are asked to ping one that does not answer.
    pub(crate) const INDIRECT_PROBES: usize = 3;
    /// How often each piece of news is sent on: with fewer, live members are told that they are down in large clusters.
    pub(crate) const TRANSMISSIONS: u8 = 14;
    /// How often this node says that it is there, and to how many members that are up,
    pub(crate) const ANNOUNCE: (Duration, usize) = (Duration::from_secs(30), 1);
    /// and to how many that are down: else two that were cut off from each other stay so.
    pub(crate) const ANNOUNCE_TO_DOWN: (Duration, usize) = (Duration::from_secs(20), 2);
    /// How often news goes out, and to how many members: a thousand know it after seconds.
    pub(crate) const NEWS: (Duration, usize) = (Duration::from_millis(250), 3);
}

pub(crate) mod claims {
    use super::*;

    /// Shortest time between two new identities of this node.
    pub(crate) const RENEW_GAP: Duration = Duration::from_secs(1);
    /// It doubles with each that follows within [`RENEW_CALM`], up to this.
    pub(crate) const RENEW_GAP_MAX: Duration = Duration::from_secs(16);
    /// After this long without a new identity the next one comes at once.
    pub(crate) const RENEW_CALM: Duration = Duration::from_secs(60);
    /// Shortest time between two answers to a suspicion. One costs three packets.
    pub(crate) const REFUTE_GAP: Duration = Duration::from_millis(200);
}

pub(crate) mod early {
    use super::*;

    /// More is not kept: members can name any number of nodes that do not exist.
    pub(crate) const MOST: usize = 512;
    /// One member takes no more of it than this, so that one that lies leaves room for the others.
    pub(crate) const MOST_OF_ONE: usize = MOST / 2;
    /// Later it is no news any more.
    pub(crate) const FRESH: Duration = Duration::from_secs(5);
}

pub(crate) mod inbox {
    /// More than this waiting means that somebody floods; push-pull brings what is dropped.
    pub(crate) const MAX_WAITING: usize = 256;
}

pub(crate) mod sessions {
    use super::*;
    use crate::limit::Rate;

    /// The initiator opens a new session at this age.
    pub(crate) const REKEY_AFTER: Duration = Duration::from_secs(600);
    /// One that carried nothing for so long is not renewed: with a thousand members most pairs have nothing to say.
    pub(crate) const IDLE_AFTER: Duration = Duration::from_secs(60);
    /// How often all peers are looked at; attempts are looked at at every tick.
    pub(crate) const SWEEP_EVERY: Duration = Duration::from_secs(1);
    /// No session is used beyond this age.
    pub(crate) const EXPIRE_AFTER: Duration = Duration::from_secs(900);
    /// Unproven sessions are dropped at this age.
    pub(crate) const UNCONFIRMED_FOR: Duration = Duration::from_secs(15);
    /// Hearing a peer on a session this recently makes an "unknown session" notice implausible.
    pub(crate) const NOTICE_GAP: Duration = Duration::from_secs(2);
    /// Datagrams kept while a handshake is under way.
    pub(crate) const MAX_QUEUE: usize = 8;
    /// Unconfirmed sessions that others opened.
    pub(crate) const MAX_UNCONFIRMED: usize = 3;
    /// First wait for an answer; doubles up to [`RETRY_MAX`].
    pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(600);
    /// The longest wait for an answer.
    pub(crate) const RETRY_MAX: Duration = Duration::from_secs(10);
    /// Replayed or stray session answers must not make us try more often than this.
    pub(crate) const ATTEMPT_GAP: Duration = Duration::from_millis(500);
    /// "Unknown session" notices: each answers a datagram that anybody can have sent.
    pub(crate) const NOTICES: Rate = Rate { per_second: 5, burst: 10, sources: Some(10) };
    /// Notices of others that are looked at: each may cost a handshake.
    pub(crate) const NOTICED: Rate = Rate { per_second: 20, burst: 40, sources: Some(10) };
}

pub(crate) mod handshakes {
    use super::*;

    /// On a machine that has too much to do an answer is waited for longer, by so many times what ticks are late: to ask again would
    /// only make all of them later.
    pub(crate) const PER_LATE: u32 = 2;
    /// So long a handshake is said again as it was, and its answer is welcome. Less than [`UNCONFIRMED_FOR`], or the peer has
    /// forgotten the session that it answered with.
    pub(crate) const SAME_FOR: Duration = Duration::from_secs(5);
    /// Who knows our session key and hears us open a session can forge answers to it, each of which costs key agreements. After so
    /// many a new handshake is made, and what answers this one is dropped.
    pub(crate) const MAX_FORGED: u32 = 8;
    /// So often an open is said again because of a cookie: a peer has one for our address, or two when it changes its secret. Who knows
    /// its session key can make any number of them.
    pub(crate) const MAX_COOKIES: u32 = 8;
    /// Answers that are remembered: those to a thousand members at once.
    pub(crate) const MAX_ANSWERED: usize = 2048;
}

pub(crate) mod door {
    use super::*;
    use crate::limit::Rate;

    /// Handshakes of sources that have shown nothing.
    pub(crate) const UNPROVEN: Rate = Rate { per_second: 20, burst: 40, sources: Some(10) };
    /// Of those that have shown their cookie.
    pub(crate) const PROVEN: Rate = Rate { sources: Some(5), ..UNPROVEN };
    /// Of members' addresses: whoever was let in can name some of his own.
    pub(crate) const MEMBERS: Rate = Rate { sources: Some(10), ..UNPROVEN };
    /// Unknown sources that are told their cookie. Each may be an address where nobody is, which costs the kernel an entry
    /// in its table of neighbours for seconds.
    pub(crate) const COOKIES: Rate = Rate { per_second: 5, burst: 10, sources: Some(40) };
    /// The addresses of members are gathered anew at most this often.
    pub(crate) const GATHER_EVERY: Duration = Duration::from_secs(1);
}

pub(crate) mod cookies {
    use super::*;

    /// A cookie counts for so long, and for as long again.
    pub(crate) const SECRET_FOR: Duration = Duration::from_secs(120);
}

pub(crate) mod ways {
    use super::*;

    /// Two cards here, two there, IPv4 and IPv6.
    pub(crate) const MAX_WAYS: usize = 8;
    /// So many are left to those on which the peer was heard and those that its record or our memory names. What beacons say, which
    /// somebody may have recorded and sent from anywhere, shares the rest.
    pub(crate) const MAX_HINTS: usize = MAX_WAYS / 2;
    /// The way in use is left for another one on which the peer is heard after so much silence.
    pub(crate) const SILENT_AFTER: Duration = Duration::from_secs(1);
    /// A question goes out on so many ways at once.
    pub(crate) const MAX_ASKED: usize = 6;
}

pub(crate) mod width {
    use super::*;

    /// How often a watched member is asked with a datagram of full size.
    pub(crate) const ASK_WIDE_EVERY: Duration = Duration::from_secs(2);
    /// So many in a row without an answer, while small questions are answered, make a path narrow. On a network that loses one
    /// datagram in ten this happens once in 4000 rows.
    pub(crate) const NARROW_AFTER: u32 = 5;
}

pub(crate) mod watch {
    use super::*;

    /// How often a watched member is asked whether it is there.
    pub(crate) const ASK_EVERY: Duration = Duration::from_secs(1);
    /// More than any LAN takes, and what a tick can tell apart.
    pub(crate) const ANSWER_WITHIN: Duration = Duration::from_millis(500);
    /// On a machine that has too much to do an answer takes longer, by so many times what ticks are late.
    pub(crate) const PER_LATE: u32 = 2;
    /// A session on which a beacon casts doubt is asked about at most this often.
    pub(crate) const DOUBT_EVERY: Duration = Duration::from_secs(5);
    /// Who answers nowhere is asked ever more rarely, at last so often.
    pub(crate) const ASK_RARELY: Duration = Duration::from_secs(10);
}

pub(crate) mod limits {
    /// Sources share so many buckets. Eight bytes each; with the addresses of the largest cluster in them each has a few, and what
    /// an honest one asks for is a small part of what a bucket grants.
    pub(crate) const BUCKETS: usize = 1024;
}

pub(crate) mod repeats {
    use super::*;

    /// What came this recently is not forgotten for the sake of what comes now: else who has many recordings makes room for each of
    /// them with the others.
    pub(crate) const YOUNG: Duration = Duration::from_secs(60);
    /// How often old ones are looked for while there is no room.
    pub(crate) const CLEAN_EVERY: Duration = Duration::from_secs(1);
    /// Places for what comes while all that is remembered is young. Here the newest stays.
    pub(crate) const CELLS: usize = 1024;
}

pub(crate) mod told {
    use super::*;

    /// Lines of the journal about one member, within [`LINES_WITHIN`]: one that changes all the time fills it otherwise.
    pub(crate) const LINES: u32 = 6;
    /// Time in which they count.
    pub(crate) const LINES_WITHIN: Duration = Duration::from_secs(60);
}

pub(crate) mod pace {
    use super::*;

    /// The first pause between two writes of the records, or two records signed because of other addresses. It doubles up to the
    /// longest while there is always a reason, and begins anew when there was none for twice as long as that.
    pub(crate) const SHORTEST: Duration = Duration::from_secs(1);
    /// The longest pause: each costs a write, or each member a check.
    pub(crate) const LONGEST: Duration = Duration::from_secs(64);
}
