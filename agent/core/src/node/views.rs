// SPDX-License-Identifier: Apache-2.0
//! What people are shown, and notices when it changed.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::parts::Node;
use super::place::{At, Cluster};
use super::problems::listed;
use super::told::Headline;
use crate::command::{Command, LogLevel, Notice};
use crate::consts::names::MAX_WAITED_FOR;
use crate::id::{ClusterId, NodeId};
use crate::input::Now;
use crate::record::Release;
use crate::settings::{PARTITION_AREA, Problem};
use crate::view::{HeldRelease, Member, MemberState, Phase, Status};

impl Node {
    /// This node, for people and programs.
    pub fn status(&self, now: Now) -> Status {
        let (phase, detail) = self.phase();
        let settings = self.provisioning.settings.as_ref();
        let genesis = self.place.cluster().map(|cluster| cluster.membership.roster().genesis());
        Status {
            version: self.boot.version.clone(),
            name: self.own.hostname().to_owned(),
            id: self.me.to_string(),
            short_id: self.me.short(),
            address: self.me.mesh_address().to_string(),
            wireguard_key: STANDARD.encode(self.keys.wireguard_public()),
            cluster: genesis
                .map(|genesis| genesis.name.clone())
                .or_else(|| settings.map(|settings| settings.cluster_name.clone())),
            cluster_id: genesis.map(|genesis| genesis.cluster.to_string()),
            phase,
            detail,
            endpoints: self.shown_endpoints(),
            members: self.counts(),
            problems: self.all_problems(),
            development: self.boot.development.clone(),
            labels: settings.map(|settings| settings.labels.clone()).unwrap_or_default(),
            rejects: self.ctx.rejects.view(),
            uptime_seconds: now.boottime.saturating_sub(self.started.boottime).as_secs(),
        }
    }

    /// All members of the cluster and nodes that left it, this node included, ordered by name.
    pub fn members(&self, now: Now) -> Vec<Member> {
        let Some(cluster) = self.place.cluster() else { return Vec::new() };
        let mut members: Vec<_> = cluster
            .membership
            .roster()
            .everybody()
            .map(|(id, standing)| self.member(cluster, id, cluster.membership.state_of(id, standing), now))
            .collect();
        members.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        members
    }

    /// Another one whenever somebody comes, goes or changes state. The rest of [`members`](Self::members) changes all the time.
    pub fn members_version(&self) -> Option<(ClusterId, u64, u64)> {
        let cluster = self.place.cluster()?;
        let (roster, gossip) = cluster.membership.versions();
        Some((cluster.membership.roster().cluster(), roster, gossip))
    }

    fn member(&self, cluster: &Cluster, id: NodeId, state: MemberState, now: Now) -> Member {
        let record = cluster.membership.roster().record(&id);
        let stats = record.and_then(|record| cluster.mesh.stats(&record.wireguard_key));
        let heard =
            cluster.sessions.last_heard(&id).map(|heard| now.boottime.saturating_sub(heard).as_secs());
        let endpoint =
            cluster.sessions.path(&id).map(|path| path.address).or(cluster.dialer.seen().get(&id).copied());
        let mine = id == self.me;
        Member {
            name: cluster.membership.name_of(&id),
            id: id.to_string(),
            state,
            address: id.mesh_address().to_string(),
            is_self: mine,
            endpoint: if mine {
                self.shown_endpoints().into_iter().next()
            } else {
                endpoint.map(|at| ip_text(&at))
            },
            reachable: (!mine).then(|| !cluster.dialer.out_of_reach().contains(&id)),
            last_seen_seconds: if mine { Some(0) } else { heard },
            handshake_age_seconds: stats
                .and_then(|stats| stats.last_handshake)
                .map(|at| now.wall.saturating_sub(at).as_secs()),
            rx_bytes: stats.map_or(0, |stats| stats.rx),
            tx_bytes: stats.map_or(0, |stats| stats.tx),
            version: record.map(|record| record.version.clone()),
            labels: record.map(|record| record.labels.clone()).unwrap_or_default(),
            releases: record.map(|record| shown(&record.releases)).unwrap_or_default(),
            wireguard_key: record.map(|record| STANDARD.encode(record.wireguard_key)),
            admitted_by: cluster.membership.roster().admitted_by(&id).map(|admitter| admitter.to_string()),
        }
    }

    fn counts(&self) -> BTreeMap<String, u32> {
        let mut counts: BTreeMap<MemberState, u32> = BTreeMap::new();
        if let Some(cluster) = self.place.cluster() {
            for (id, standing) in cluster.membership.roster().everybody() {
                *counts.entry(cluster.membership.state_of(id, standing)).or_default() += 1;
            }
        }
        counts.into_iter().map(|(state, count)| (state.as_str().to_owned(), count)).collect()
    }

    fn shown_endpoints(&self) -> Vec<String> {
        let all = self.endpoints();
        let routable: Vec<_> =
            all.iter().filter(|at| !crate::wire::needs_interface(at)).map(ip_text).collect();
        if routable.is_empty() { all.iter().map(ip_text).collect() } else { routable }
    }

    fn all_problems(&self) -> Vec<Problem> {
        let mut problems = self.provisioning.problems.clone();
        problems.extend(self.problems.all().cloned());
        problems.extend(self.unsaved());
        problems
    }

    /// Which state files could not be saved.
    fn unsaved(&self) -> Option<Problem> {
        let failures = self.ctx.outbox.failures();
        let names: Vec<&str> = failures.keys().map(|item| item.file_name()).collect();
        let error = failures.values().next()?;
        let silent = if self.ctx.outbox.is_failing() {
            "; until then the node sends no new state to the cluster"
        } else {
            ""
        };
        Some(Problem::new(
            "disk",
            format!("could not save {}: {error}", names.join(", ")),
            format!(
                "free space on this node's disk or check it; saving is tried again every few seconds{silent}"
            ),
        ))
    }

    /// Where the node stands and one line about it.
    fn phase(&self) -> (Phase, String) {
        if let Some(why) = &self.quarantine {
            return (Phase::Quarantined, why.clone());
        }
        match self.place.at() {
            At::Left(_) => {
                (Phase::Left, "left the cluster on request; `clusterctl join` joins it again".to_owned())
            }
            At::Member(cluster) if cluster.membership.is_leaving() => {
                (Phase::Left, "is leaving the cluster".to_owned())
            }
            At::Member(cluster) => self.member_phase(cluster),
            At::Outside { .. } if self.place.join().is_none() => {
                let problems = &self.provisioning.problems;
                let detail = if problems.iter().any(|problem| problem.area == PARTITION_AREA) {
                    "cluster.toml cannot be read: see the problem of the CLUSTER-OS partition"
                } else if problems.is_empty() {
                    "no cluster.toml on the CLUSTER-OS partition of this disk"
                } else {
                    "cluster.toml has a mistake and there is no earlier copy: correct it on the CLUSTER-OS partition"
                };
                (Phase::Unprovisioned, detail.to_owned())
            }
            At::Outside { .. } if !self.discovery.founding().has_network() => (
                Phase::Searching,
                "waiting for a network: no physical interface is up with an address".to_owned(),
            ),
            At::Outside { may_found } => self.searching_phase(*may_found),
        }
    }

    fn member_phase(&self, cluster: &Cluster) -> (Phase, String) {
        let others: Vec<NodeId> = cluster.membership.others().collect();
        let up = others.iter().filter(|id| cluster.membership.is_there(id)).count();
        if others.is_empty() {
            return (Phase::Member, "the only member so far; waiting for others to join".to_owned());
        }
        if up > 0 {
            return (Phase::Member, format!("{} of {} members are up", up + 1, others.len() + 1));
        }
        let names = others.iter().map(|id| cluster.membership.name_of(id)).collect();
        (Phase::Waiting, format!("no other member answers; waiting for {}", listed(names, MAX_WAITED_FOR)))
    }

    fn searching_phase(&self, may_found: bool) -> (Phase, String) {
        let (count, lowest) = self.discovery.founding().others();
        let expect = self.provisioning.settings.as_ref().and_then(|settings| settings.expect);
        if self.streams.is_joining() || self.discovery.founding().knows_cluster() {
            return (Phase::Searching, "found a cluster; asking to be admitted".to_owned());
        }
        if !may_found {
            let detail = "was in a cluster before; waiting for a member of it, founding no new one";
            return (Phase::Waiting, detail.to_owned());
        }
        if let Some(cluster) = self.place.join().and_then(|join| join.key.cluster()) {
            return (
                Phase::Waiting,
                format!(
                    "waiting for a member of cluster {}, which the join key is bound to",
                    cluster.short()
                ),
            );
        }
        if self.discovery.founding().waits_for_named(self.ctx.boottime()) {
            let detail = "heard of a cluster; waiting for one of its members to answer";
            return (Phase::Searching, detail.to_owned());
        }
        match (expect, lowest) {
            (Some(expect), _) if count + 1 < expect as usize => (
                Phase::Searching,
                format!("found {} of {expect} expected nodes; waiting for the others", count + 1),
            ),
            (_, Some((id, name))) if id < self.me => (
                Phase::Searching,
                format!("found {count} other nodes; waiting for {name} to found the cluster"),
            ),
            (_, Some(_)) => {
                (Phase::Founding, format!("found {count} other nodes; about to found the cluster"))
            }
            (_, None) => (Phase::Searching, "looking for other nodes with this join key".to_owned()),
        }
    }

    /// Whether roster or gossip changed since the last time.
    pub(super) fn has_news(&self) -> bool {
        let shown = self.shown.of.map(|(versions, _)| versions);
        self.place.cluster().is_some_and(|cluster| shown != Some(cluster.membership.versions()))
    }

    /// Tells what changed since the last time.
    pub(super) fn notice_changes(&mut self) {
        let of = self
            .place
            .cluster()
            .map(|cluster| (cluster.membership.versions(), cluster.membership.is_leaving()));
        let same = self
            .shown
            .status
            .as_ref()
            .filter(|_| of.is_some() && self.shown.of == of && self.quarantine.is_none());
        let (phase, detail, counts) = match same {
            Some(shown) => (shown.phase, shown.detail.clone(), shown.counts.clone()),
            None => {
                self.notice_members();
                self.compare_names();
                let (phase, detail) = self.phase();
                (phase, detail, self.counts())
            }
        };
        self.shown.of = of;
        let (problems, endpoints) = (self.all_problems(), self.shown_endpoints());
        let now = Headline { phase, detail, problems, endpoints, counts };
        if self.shown.status.as_ref() != Some(&now) {
            let before = self.shown.status.replace(now).map(|shown| shown.phase);
            if before != Some(phase) {
                let fields = vec![("phase", phase.as_str().to_owned())];
                self.ctx.log(LogLevel::Info, "phase changed", fields);
            }
            self.ctx.push(Command::Notify(Notice::Status));
        }
    }

    fn notice_members(&mut self) {
        if let Some(cluster) = self.place.cluster_mut() {
            cluster.told.notice(&cluster.membership, &mut self.ctx);
        }
    }
}

fn ip_text(at: &SocketAddr) -> String {
    match at {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        other => other.ip().to_string(),
    }
}

fn shown(releases: &[Release]) -> Vec<HeldRelease> {
    let shown =
        |release: &Release| HeldRelease { version: release.version.clone(), hash: release.hash_text() };
    releases.iter().map(shown).collect()
}
