// SPDX-License-Identifier: Apache-2.0
//! What the updater and the agent tell each other: who holds which release, and which ones this node holds.

use std::{
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use cluster_updater_core::{
    Version,
    sources::{Holder, PORT, Prefix},
};
use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio::{sync::watch, time::timeout};
use tracing::debug;
use zbus::{Connection, proxy, proxy::CacheProperties};

/// The agent answers at once, or hangs: an imported release is not to wait for it.
const ANSWER: Duration = Duration::from_secs(10);

#[proxy(
    interface = "org.clusteros.Agent1",
    default_service = "org.clusteros.Agent1",
    default_path = "/org/clusteros/Agent1"
)]
trait MemberAgent {
    fn members(&self) -> zbus::Result<String>;
    fn set_releases(&self, releases: &[(String, String)]) -> zbus::Result<()>;
}

/// What of a member counts here.
#[derive(Deserialize)]
struct Member {
    name: String,
    state: String,
    address: Ipv6Addr,
    #[serde(rename = "self")]
    is_self: bool,
    reachable: Option<bool>,
    #[serde(default)]
    releases: Vec<Announced>,
}

#[derive(Deserialize)]
struct Announced {
    version: String,
    hash: String,
}

/// Members that can be reached and say that they hold a release.
///
/// # Errors
/// When the agent does not answer.
pub async fn holders(bus: &Connection) -> Result<Vec<Holder>> {
    let ask = async {
        let agent = MemberAgentProxy::builder(bus).cache_properties(CacheProperties::No).build().await?;
        agent.members().await
    };
    let told = timeout(ANSWER, ask).await.context("the agent does not answer")?;
    from_members(&told.context("the agent does not say which members hold releases")?)
}

fn from_members(json: &str) -> Result<Vec<Holder>> {
    let members: Vec<Member> = serde_json::from_str(json).context("the agent's list of members")?;
    let near = members
        .into_iter()
        .filter(|member| !member.is_self && member.state == "up" && member.reachable != Some(false));
    let holders = near.flat_map(|member| {
        let (name, address) = (member.name, SocketAddr::from((member.address, PORT)));
        // A member may announce anything.
        member.releases.into_iter().filter_map(move |release| {
            Some(Holder {
                name: name.clone(),
                address,
                version: Version::parse(&release.version)?,
                prefix: Prefix::parse(&release.hash)?,
            })
        })
    });
    Ok(holders.collect())
}

/// Tells the agent what this node holds, whenever that changes or the agent starts.
///
/// # Errors
/// When the bus is gone.
pub async fn announce(bus: &Connection, mut held: watch::Receiver<Vec<(Version, Prefix)>>) -> Result<()> {
    let agent = MemberAgentProxy::builder(bus).cache_properties(CacheProperties::No).build().await?;
    let mut owners = agent.inner().receive_owner_changed().await?;
    loop {
        let now = held.borrow_and_update().clone();
        let now: Vec<(String, String)> =
            now.into_iter().map(|(version, prefix)| (version.to_string(), prefix.to_string())).collect();
        match timeout(ANSWER, agent.set_releases(&now)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "the agent is not there; it is told when it comes"),
            // systemd starts one that hangs anew.
            Err(_) => debug!("the agent does not answer; it is told when it comes"),
        }
        tokio::select! {
            changed = held.changed() => changed?,
            owner = owners.next() => {
                owner.context("the bus is gone")?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_are_members_that_can_be_reached_and_announce_sense() {
        let member = |name: &str, state: &str, own: bool, reachable: &str, version: &str| {
            format!(
                r#"{{"name":"{name}","state":"{state}","address":"fdc1:505::7","self":{own},"reachable":{reachable},
                "more":1,"releases":[{{"version":"{version}","hash":"00112233445566aa"}}]}}"#
            )
        };
        let members = [
            member("good", "up", false, "true", "0.1.1"),
            member("me", "up", true, "null", "0.1.1"),
            member("dead", "down", false, "true", "0.1.1"),
            member("far", "up", false, "false", "0.1.1"),
            member("odd", "up", false, "true", "0.1.1+3"),
            r#"{"name":"old","state":"up","address":"fdc1:505::8","self":false,"reachable":true}"#.to_owned(),
        ];
        let found = from_members(&format!("[{}]", members.join(","))).unwrap();
        let names: Vec<&str> = found.iter().map(|holder| holder.name.as_str()).collect();
        assert_eq!(names, ["good"]);
        assert_eq!(found[0].address, "[fdc1:505::7]:41412".parse().unwrap());
    }
}
