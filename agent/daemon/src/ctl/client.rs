// SPDX-License-Identifier: Apache-2.0
//! The agent, asked over D-Bus.

use cluster_agent_core::Member;
use zbus::{Connection, proxy};

use super::Failure;
use crate::{
    bus::BusAddress,
    report::{IdentityReport, StatusReport},
};

#[proxy(
    interface = "org.clusteros.Agent1",
    default_service = "org.clusteros.Agent1",
    default_path = "/org/clusteros/Agent1"
)]
pub(crate) trait Agent {
    fn status(&self) -> zbus::Result<String>;
    fn members(&self) -> zbus::Result<String>;
    fn identity(&self) -> zbus::Result<String>;
    fn leave(&self) -> zbus::Result<()>;
    fn join(&self) -> zbus::Result<()>;
    #[zbus(signal)]
    fn changed(&self) -> zbus::Result<()>;
}

/// A connection to the agent of this node.
pub(crate) struct Client {
    pub(crate) agent: AgentProxy<'static>,
}

impl Client {
    /// Connects to the bus; whether an agent is there shows at the first question.
    pub(crate) async fn connect(bus: &BusAddress) -> Result<Self, Failure> {
        let connection: Connection = bus
            .connect()
            .await
            .map_err(|error| Failure::not_running(&format!("no connection to D-Bus: {error}")))?;
        // Properties are not used, and caching them would ask for them all.
        let agent = AgentProxy::builder(&connection)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build()
            .await?;
        Ok(Self { agent })
    }

    pub(crate) async fn status(&self) -> Result<StatusReport, Failure> {
        Ok(serde_json::from_str(&self.agent.status().await?)?)
    }

    pub(crate) async fn members(&self) -> Result<Vec<Member>, Failure> {
        Ok(serde_json::from_str(&self.agent.members().await?)?)
    }

    pub(crate) async fn identity(&self) -> Result<IdentityReport, Failure> {
        Ok(serde_json::from_str(&self.agent.identity().await?)?)
    }
}

/// Prints JSON from the agent for programs: as it came, so that fields this `clusterctl` does not know are kept,
/// indented for the eyes of those who write such programs.
pub(crate) fn print_json(json: &str) -> Result<(), Failure> {
    let value: serde_json::Value = serde_json::from_str(json)?;
    super::show::out(&format!("{}\n", serde_json::to_string_pretty(&value)?))
}
