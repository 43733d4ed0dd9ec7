// SPDX-License-Identifier: Apache-2.0
//! This node's record is signed anew when something in it changed, or when a later one of its own came.

use super::own::Advance;
use super::parts::Node;
use crate::record::{Release, Sequence};
use crate::request::Refusal;
use crate::view::HeldRelease;

impl Node {
    /// Signs a new record if anything in it changed.
    pub(super) fn renew_record(&mut self) {
        let settings = self.provisioning.settings.as_ref();
        let labels = settings.map(|settings| settings.labels.clone()).unwrap_or_default();
        let endpoints = self.endpoints();
        if self.own.renew(&self.boot.version, labels, endpoints, &self.keys) {
            self.tell_own_record();
        }
    }

    /// Signs a new record if this node's addresses are others.
    pub(super) fn renew_endpoints(&mut self) {
        if self.own.wants_endpoints(&self.endpoints(), self.ctx.boottime()) {
            self.renew_record();
        }
    }

    /// What could not be renewed at once.
    pub(super) fn endpoints_tick(&mut self) {
        if self.own.is_endpoints_due() {
            self.renew_endpoints();
        }
    }

    /// What this node gives to others from now on, as far as its record can name it.
    pub(super) fn hold_releases(&mut self, held: &[HeldRelease]) -> Result<(), Refusal> {
        if let Some(why) = &self.quarantine {
            return Err(Refusal::Quarantined(why.clone()));
        }
        let parsed = held.iter().filter_map(|release| Release::parse(&release.version, &release.hash));
        self.own.set_releases(parsed.collect());
        self.renew_record();
        let named = |held: &HeldRelease| {
            let told = &self.own.signed().releases;
            told.iter().any(|told| told.version == held.version && told.hash_text() == held.hash)
        };
        let left_out: Vec<_> =
            held.iter().filter(|held| !named(held)).map(|held| held.version.clone()).collect();
        if left_out.is_empty() { Ok(()) } else { Err(Refusal::Releases(left_out)) }
    }

    /// Our own record, newer than what we know: state was lost or restored. Say something newer still.
    /// Only a record with our own signature leads here, never what others say.
    pub(super) fn advance_generation(&mut self, theirs: Sequence) {
        match self.own.advance_generation(theirs, self.ctx.boottime()) {
            Advance::TooSoon => {}
            Advance::Exhausted => self.problems.set(
                "identity",
                "somebody with a copy of this node's key signed the last records that the key can have; the other members \
                 believe those",
                "write the image anew to this disk, so that the node gets an identity of its own",
            ),
            Advance::Generation(generation) => {
                self.files.save_generation(generation, &mut self.ctx);
                let now = self.ctx.boottime();
                if let Some(cluster) = self.place.cluster_mut() {
                    cluster.membership.reidentify(generation, 0, now);
                }
                self.resign_record();
            }
        }
    }

    /// Signs our record again under a new sequence that covers our gossip identity.
    pub(super) fn resign_record(&mut self) {
        let bump = self.place.cluster().map(|cluster| cluster.membership.gossip().me().bump);
        self.own.renew_sequence(bump, &self.keys);
        self.tell_own_record();
    }

    /// Makes our record part of the roster and tells the others.
    pub(super) fn tell_own_record(&mut self) {
        let (record, now) = (self.own.signed().clone(), self.ctx.boottime());
        if let Some(cluster) = self.place.cluster_mut() {
            cluster.membership.tell_own(record, now);
            self.files.note_records(now);
        }
    }
}
