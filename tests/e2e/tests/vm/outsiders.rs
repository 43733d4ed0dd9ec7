// SPDX-License-Identifier: Apache-2.0
//! Machines on the same LAN that do not have the join key stay outside, and nothing inside changes.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use cluster_e2e::{Formed, World, note};
use cluster_harness::client::Vm;
use cluster_harness::cluster::{Provisioning, new_cluster_toml};

/// How long strangers are watched after they are up: several rounds of every announcement they make.
const WATCH: Duration = Duration::from_secs(30);

pub(crate) fn strangers_change_nothing(world: &mut World) -> Result<()> {
    let cluster = world.formed()?;
    let before = inside(cluster)?;

    let text = new_cluster_toml("lighthouse-e2e")?;
    let stranger = cluster.add(&Provisioning::File { name: "another join key".to_owned(), text })?;
    let blank = cluster.add(&Provisioning::None)?;
    stranger.wait_boot()?;
    blank.wait_boot()?;
    blank.wait_console("clusterctl join-key generate")?;
    note("the console of the one without a cluster.toml says how to provision it");

    let own = cluster_e2e::wait_all_up(stranger, 1)?;
    ensure!(
        !cluster.members.values().any(|member| member.id == own.id),
        "{own:?} has the identity of a member"
    );
    note("the one with another key has a cluster of its own, under the same name");
    sleep(WATCH);

    ensure!(
        stranger.members()?.len() == 1,
        "the one with another key sees others: {:?}",
        stranger.members()?
    );
    ensure!(blank.cluster_status()?["phase"] == "unprovisioned", "status: {}", blank.cluster_status()?);
    let after = inside(cluster)?;
    ensure!(before == after, "something changed.\nbefore: {before:#?}\nafter: {after:#?}");
    note("members, peers and error-level logs inside are what they were");
    Ok(())
}

/// What strangers must not change on a node inside.
#[derive(Debug, PartialEq, Eq)]
struct Inside {
    members: BTreeSet<String>,
    wireguard_peers: BTreeSet<String>,
    errors_of_the_agent: String,
}

fn inside(cluster: &Formed) -> Result<Vec<Inside>> {
    let look = |vm: Vm<'_>| {
        let members = vm.members()?.into_iter();
        Ok(Inside {
            members: members
                .map(|member| format!("{} {} {}", member.id, member.address, member.state))
                .collect(),
            wireguard_peers: vm.sh("wg show cluster0 allowed-ips")?.lines().map(str::to_owned).collect(),
            errors_of_the_agent: vm.sh("journalctl -b -u cluster-agent -p err --no-pager --quiet -o cat")?,
        })
    };
    cluster.vms().map(look).collect()
}
