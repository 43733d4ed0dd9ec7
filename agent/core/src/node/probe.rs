// SPDX-License-Identifier: Apache-2.0
//! What fuzz targets see of a node beyond its public side: its files, its roster, and whether everything that outsiders
//! can make grow is within its limit.

use super::files;
use super::parts::Node;
use crate::join_key::JoinKey;
use crate::roster::Roster;
use crate::wire::Malformed;

/// Contents of the state files `membership` and `records` of a member.
pub(crate) fn member_files(roster: &Roster, key: &JoinKey) -> (Vec<u8>, Vec<u8>) {
    let membership = files::write_membership(&files::SavedPlaceRef::Member(roster, key));
    (membership, files::write_records(roster, &Default::default()))
}

/// Content of the state file `membership` of a node that left.
pub(crate) fn left_file(roster: &Roster) -> Vec<u8> {
    files::write_membership(&files::SavedPlaceRef::Left(roster))
}

/// Whether a `membership` file can be read.
pub(crate) fn read_membership(bytes: &[u8]) -> Result<(), Malformed> {
    files::read_membership(bytes).map(|_| ())
}

impl Node {
    /// Sequence of our newest record.
    #[cfg(test)]
    pub(crate) fn record_sequence(&self) -> crate::record::Sequence {
        self.own.sequence()
    }

    /// Panics when something has grown beyond its limit.
    pub(crate) fn assert_bounded(&self) {
        self.streams.assert_bounded();
        self.discovery.assert_bounded();
        if let Some(cluster) = self.place.cluster() {
            cluster.sessions.assert_bounded();
            cluster.membership.assert_bounded();
        }
    }
}
