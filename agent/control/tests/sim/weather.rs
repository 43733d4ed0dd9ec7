// SPDX-License-Identifier: Apache-2.0
//! Storms: everything that goes wrong at random, while somebody changes things all the time.

use std::time::Duration;

use cluster_agent_control::{
    Answer, Command, Control, Departure, RequestId, Saved, Setting, State, StoredJoinKey,
};
use cluster_agent_proto::NodeId;
use rand::RngExt;

use super::{KEY, Mutation, World, keys, ms, record, secs};

impl World {
    /// For so long.
    pub fn storm(&mut self, during: Duration) {
        let end = self.now + during;
        let mut strangers: Vec<NodeId> = Vec::new();
        let mut evictions: Vec<(RequestId, NodeId)> = Vec::new();
        let mut joined = 0;
        while self.now < end {
            let pause = ms(self.rng.random_range(10..250));
            self.run(pause);
            let n = self.rng.random_range(0..self.machines.len());
            let m = self.rng.random_range(0..self.machines.len());
            match self.rng.random_range(0..100) {
                0..55 => {
                    joined += 1;
                    self.change(n, joined, &mut strangers, &mut evictions);
                }
                55..63 if self.is_up(n) => {
                    self.crash(n);
                    let after = ms(self.rng.random_range(50..4000));
                    self.start_after(n, after);
                }
                63..70 if n != m => {
                    self.cuts.insert((n, m));
                }
                70..73 => {
                    let others = (0..self.machines.len()).filter(|other| *other != n);
                    let both = others.flat_map(|other| [(n, other), (other, n)]);
                    self.cuts.extend(both);
                }
                73..81 => self.cuts.clear(),
                81..84 => {
                    let until = ms(self.rng.random_range(100..4000));
                    self.machines[n].frozen_until = self.now + until;
                }
                84..88 => {
                    self.loss = [0.0, 0.05, 0.3][self.rng.random_range(0..3)];
                    self.delay = [(1, 5), (1, 50), (20, 300)][self.rng.random_range(0..3)];
                }
                88..93 if self.may_be_wiped(n) => {
                    self.crash(n);
                    let mutation = self.mutation;
                    self.machines[n].disk.wipe(mutation);
                    let after = ms(self.rng.random_range(50..1000));
                    self.start_after(n, after);
                }
                93..95 => self.roll_back(n),
                95..97 => {
                    let by = self.rng.random_range(-100_000_000..100_000_000);
                    self.set_clock(n, by);
                }
                97..100 => {
                    self.machines[n].disk.fsync = [ms(1), ms(10), ms(400)][self.rng.random_range(0..3)]
                }
                _ => {}
            }
            evictions.retain(|(request, node)| match self.answers.get(request) {
                Some(Answer::Done(index)) => {
                    let (node, index) = (*node, *index);
                    self.note_evicted(node, index);
                    false
                }
                Some(_) => false,
                None => true,
            });
        }
    }

    fn change(
        &mut self,
        n: usize,
        number: u64,
        strangers: &mut Vec<NodeId>,
        evictions: &mut Vec<(RequestId, NodeId)>,
    ) {
        let command = match self.rng.random_range(0..7) {
            0 => {
                let keys = keys(self.seed, 1000 + number);
                strangers.push(keys.node_id());
                Command::Join { record: record(&keys, &format!("n{}", number % 4)), key: KEY }
            }
            1 => {
                let max = self.rng.random_range(100..2000);
                Command::Set { setting: Setting::MaxMembers(max), if_version: None }
            }
            2 => {
                let name = format!("n{}", self.rng.random_range(0..5));
                Command::Rename { node: self.machines[n].id, name }
            }
            3 if !strangers.is_empty() => {
                let node = strangers[self.rng.random_range(0..strangers.len())];
                let request = self.begin(n, Command::Depart { node, how: Departure::Evicted });
                evictions.push((request, node));
                return;
            }
            4 => Command::Undo { version: None },
            5 => {
                let mut random = [0; 37];
                random[..8].copy_from_slice(&number.to_be_bytes());
                Command::CreateJoinKey(StoredJoinKey::new(&random, true))
            }
            _ => {
                self.begin_read(n);
                return;
            }
        };
        self.begin(n, command);
    }

    fn state_of_leader(&self) -> Option<&State> {
        self.machines[self.leader()?].control.as_ref().and_then(Control::state)
    }

    /// One disk at a time: of every voter some machine has the store, nothing is being changed, and all stores say so. A voter
    /// that does not know yet that a change is over needs a majority of those before, too.
    fn may_be_wiped(&self, n: usize) -> bool {
        let Some(state) = self.state_of_leader() else { return false };
        let conf = state.conf();
        let has = |id: &u64| {
            let mut disks = self.machines.iter().map(|machine| &machine.disk.saved);
            disks.find(|saved| saved.replica == *id).is_some_and(|saved| self.knows_who_votes(saved))
        };
        let mine = self.machines[n].disk.saved.replica;
        conf.voters.len() >= 3
            && !conf.is_joint()
            && *conf == self.conf.1
            && conf.voters.iter().all(has)
            && conf.voters.contains(&mine)
    }

    fn knows_who_votes(&self, saved: &Saved) -> bool {
        let snapshot = saved.snapshot.as_ref().map_or(0, |snapshot| snapshot.index);
        saved.hard_state.commit.max(snapshot) >= self.conf.0
    }

    /// A disk goes back in time, while those who heard what it forgets are there to say so. Not to where others voted: a
    /// founder's of when it was alone asks nobody, and leads alone (docs/architecture.md).
    fn roll_back(&mut self, n: usize) {
        if !self.may_be_wiped(n) || !self.is_up(n) || self.mutation != Mutation::None {
            return;
        }
        let earlier = self.machines[n].disk.earlier.iter().find(|(_, saved)| self.knows_who_votes(saved));
        let Some((at, earlier)) = earlier.cloned() else { return };
        let others = (0..self.machines.len()).filter(|m| *m != n);
        let there = |m: usize| {
            let machine = &self.machines[m];
            self.is_up(m) && machine.up_since < at && machine.frozen_until <= self.now
        };
        if !self.cuts.is_empty() || self.loss > 0.1 || !others.clone().all(there) {
            return;
        }
        // What is on the way arrives.
        self.run(ms(400));
        if !self.is_up(n) {
            return;
        }
        self.crash(n);
        self.machines[n].disk.saved = earlier;
        self.machines[n].disk.earlier.clear();
        self.start(n);
        self.run(secs(3));
    }
}
