// SPDX-License-Identifier: Apache-2.0
//! Host names are for people, who take a name for one machine. Nothing in the protocol needs them to differ, so two members
//! with one name stay members, and each tells of the other.

use super::parts::Node;
use super::place::Cluster;
use super::problems::listed;
use crate::command::LogLevel;
use crate::consts::names::*;

const AREA: &str = "hostname";

impl Node {
    /// Names the members that have this node's host name. Those that are down are left out: an identity that is gone, as
    /// after a machine was installed anew, stays listed, and nobody could do anything about it.
    pub(super) fn compare_names(&mut self) {
        let others: Vec<String> =
            self.place.cluster().map(|cluster| self.namesakes(cluster)).unwrap_or_default();
        if others.is_empty() {
            self.problems.clear(AREA);
            return;
        }
        let plural = if others.len() == 1 { "has" } else { "have" };
        let others = listed(others, MAX_NAMED);
        let message = format!("{others} {plural} the host name `{}`, as this node has", self.own.hostname());
        if !self.problems.says(AREA, &message) {
            let fields = vec![("name", self.own.hostname().to_owned()), ("others", others)];
            self.ctx.log(LogLevel::Warn, "another member has this node's host name", fields);
        }
        self.problems.set(
            AREA,
            &message,
            "give each node a `hostname` of its own in its cluster.toml, or remove that line: then each is named after its id",
        );
    }

    /// Members that are there and have our host name: short id and where each is.
    fn namesakes(&self, cluster: &Cluster) -> Vec<String> {
        let membership = &cluster.membership;
        let others = membership.others().filter(|id| membership.is_there(id));
        others
            .filter(|id| membership.name_of(id) == self.own.hostname())
            .map(|id| match membership.roster().record(&id).and_then(|record| record.endpoints.first()) {
                Some(at) => format!("node {} ({})", id.short(), at.ip()),
                None => format!("node {}", id.short()),
            })
            .collect()
    }
}
