// SPDX-License-Identifier: Apache-2.0
//! `org.clusteros.Agent1` on the system bus: what `clusterctl`, the updater and other programs ask of the agent.
//!
//! Handlers convert and forward: each question becomes a [`Request`] to the event loop, whose answer is the reply. The
//! loop never waits for anything, so no caller can make another one wait. Views travel as JSON text: they grow from
//! release to release, and a reader that does not know a field skips it. `org.clusteros.Agent1.xml` beside this
//! crate's `Cargo.toml` is the interface as others may rely on it.
//!
//! A bus that dies takes nothing with it: the agent goes on, and comes back to the bus when the bus does.

use std::time::Duration;

use anyhow::{Context as _, Result};
use cluster_agent_core::HeldRelease;
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};
use zbus::{Connection, connection, fdo, interface, message::Header, object_server::SignalEmitter};

/// Well-known name.
pub const NAME: &str = "org.clusteros.Agent1";
/// The one object.
pub const PATH: &str = "/org/clusteros/Agent1";

/// Between attempts to reach a bus that is gone.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// A bus that is there answers at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The event loop answers in milliseconds, or something is badly wrong.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A question or an order from the bus.
#[derive(Debug)]
pub enum Request {
    /// Which view, and where its JSON goes.
    View(View, oneshot::Sender<Answer>),
    /// What the core does, and answers when it is done.
    Core(cluster_agent_core::Request, oneshot::Sender<Answer>),
    /// Read cluster.toml again.
    Reload(oneshot::Sender<Answer>),
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// This node and its cluster.
    Status,
    /// All members.
    Members,
    /// This node's keys and addresses.
    Identity,
}

/// JSON, or an error for a person.
pub type Answer = std::result::Result<String, String>;

/// What the event loop wants said or done on the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Emit `Changed`.
    Changed,
    /// Emit `MemberChanged`.
    MemberChanged {
        /// Full node id.
        id: String,
        /// Host name.
        name: String,
        /// up, suspect, down or left.
        state: String,
    },
}

/// The object on the bus.
#[derive(Debug)]
pub struct Agent {
    requests: mpsc::Sender<Request>,
    version: String,
}

impl Agent {
    /// An object that forwards to the owner of `requests`.
    #[must_use]
    pub fn new(requests: mpsc::Sender<Request>, version: String) -> Self {
        Self { requests, version }
    }

    async fn ask(&self, request: impl FnOnce(oneshot::Sender<Answer>) -> Request) -> fdo::Result<String> {
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            self.requests.send(request(reply)).await.ok()?;
            answer.await.ok()
        };
        match timeout(ANSWER_TIMEOUT, exchange).await {
            Ok(Some(Ok(json))) => Ok(json),
            Ok(Some(Err(error))) => Err(fdo::Error::Failed(error)),
            Ok(None) => Err(fdo::Error::Failed("the agent is stopping".to_owned())),
            Err(_elapsed) => Err(fdo::Error::TimedOut("the agent does not answer".to_owned())),
        }
    }
}

#[interface(name = "org.clusteros.Agent1")]
impl Agent {
    /// This node and its cluster, as a JSON object.
    #[zbus(out_args("json"))]
    async fn status(&self) -> fdo::Result<String> {
        self.ask(|reply| Request::View(View::Status, reply)).await
    }

    /// All members, this node included, as a JSON array.
    #[zbus(out_args("json"))]
    async fn members(&self) -> fdo::Result<String> {
        self.ask(|reply| Request::View(View::Members, reply)).await
    }

    /// This node's id, keys and addresses, as a JSON object. Nothing secret.
    #[zbus(out_args("json"))]
    async fn identity(&self) -> fdo::Result<String> {
        self.ask(|reply| Request::View(View::Identity, reply)).await
    }

    /// Leaves the cluster; returns when this node is out. Root only.
    async fn leave(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> fdo::Result<()> {
        root_only(bus, &header).await?;
        self.ask(|reply| Request::Core(cluster_agent_core::Request::Leave, reply)).await.map(drop)
    }

    /// Joins again after a leave; returns when this node looks for the cluster, `Status` tells when it is in. Root only.
    async fn join(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> fdo::Result<()> {
        root_only(bus, &header).await?;
        self.ask(|reply| Request::Core(cluster_agent_core::Request::Join, reply)).await.map(drop)
    }

    /// Reads cluster.toml again. Root only.
    async fn reload(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> fdo::Result<()> {
        root_only(bus, &header).await?;
        self.ask(Request::Reload).await.map(drop)
    }

    /// Tells the other members which releases this node gives to them: version and the first 8 bytes of the root hash, in
    /// hexadecimal. Root only.
    async fn set_releases(
        &self,
        releases: Vec<(String, String)>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] bus: &Connection,
    ) -> fdo::Result<()> {
        root_only(bus, &header).await?;
        let held = releases.into_iter().map(|(version, hash)| HeldRelease { version, hash }).collect();
        self.ask(|reply| Request::Core(cluster_agent_core::Request::Releases(held), reply)).await.map(drop)
    }

    /// Version of the agent.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        self.version.clone()
    }

    /// Something that `Status` or `Members` tells has changed.
    #[zbus(signal)]
    async fn changed(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;

    /// A member appeared or is in another state: up, suspect, down, left.
    #[zbus(signal)]
    async fn member_changed(
        emitter: &SignalEmitter<'_>,
        id: &str,
        name: &str,
        state: &str,
    ) -> zbus::Result<()>;
}

/// The bus policy says the same; a bus without it (a private one) must not make a user root of the cluster.
async fn root_only(bus: &Connection, header: &Header<'_>) -> fdo::Result<()> {
    let denied = || fdo::Error::AccessDenied("only root may change the cluster".to_owned());
    let sender = header.sender().ok_or_else(denied)?;
    let user = fdo::DBusProxy::new(bus).await?.get_connection_unix_user(sender.into()).await?;
    if user == 0 { Ok(()) } else { Err(denied()) }
}

/// Where the bus is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusAddress {
    /// The system bus, as `DBUS_SYSTEM_BUS_ADDRESS` or the default says.
    System,
    /// This one.
    At(String),
}

impl BusAddress {
    /// Connects without serving anything.
    ///
    /// # Errors
    /// When there is no bus or it does not let us in.
    pub async fn connect(&self) -> zbus::Result<Connection> {
        self.builder().build().await
    }

    fn builder(&self) -> connection::Builder<'static> {
        match self {
            Self::System => connection::Builder::system(),
            Self::At(address) => connection::Builder::address(address.as_str()),
        }
    }
}

/// Serves the object from now on, over deaths of the bus. Returns once the first attempt is through, so that a
/// "ready" after it is true where there is a bus.
pub async fn serve(
    address: BusAddress,
    version: String,
    requests: mpsc::Sender<Request>,
    orders: mpsc::Receiver<Order>,
) {
    let first = match connect(&address, &version, &requests).await {
        Ok(bus) => Some(bus),
        Err(error) => {
            warn!(error = format!("{error:#}"), "not on D-Bus yet; clusterctl does not work until then");
            None
        }
    };
    tokio::spawn(keep(address, version, requests, orders, first));
}

async fn connect(
    address: &BusAddress,
    version: &str,
    requests: &mpsc::Sender<Request>,
) -> Result<Connection> {
    let agent = Agent::new(requests.clone(), version.to_owned());
    let build = address.builder().serve_at(PATH, agent).name(NAME).build();
    timeout(CONNECT_TIMEOUT, build).await.context("D-Bus does not answer")?.with_context(|| {
        format!("failed to serve {NAME}: is another cluster-agent running, or its D-Bus policy missing?")
    })
}

async fn keep(
    address: BusAddress,
    version: String,
    requests: mpsc::Sender<Request>,
    mut orders: mpsc::Receiver<Order>,
    mut bus: Option<Connection>,
) {
    let mut pause = RECONNECT.0;
    loop {
        let Some(connection) = bus.take() else {
            tokio::select! {
                () = sleep(pause) => {}
                order = orders.recv() => match order {
                    // Nobody listens to signals now.
                    Some(_) => continue,
                    None => return,
                }
            }
            pause = (pause * 2).min(RECONNECT.1);
            match connect(&address, &version, &requests).await {
                Ok(connection) => bus = Some(connection),
                Err(error) => debug!(error = format!("{error:#}"), "still no bus"),
            }
            continue;
        };
        pause = RECONNECT.0;
        info!(name = NAME, "serving on D-Bus");
        loop {
            tokio::select! {
                () = connection.closed() => {
                    warn!("D-Bus closed the connection; connecting again");
                    break;
                }
                order = orders.recv() => {
                    let Some(order) = order else { return };
                    if let Err(error) = carry_out(&connection, order).await {
                        debug!(%error, "a signal was not sent");
                    }
                }
            }
        }
    }
}

async fn carry_out(connection: &Connection, order: Order) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(connection, PATH)?;
    match order {
        Order::Changed => Agent::changed(&emitter).await,
        Order::MemberChanged { id, name, state } => Agent::member_changed(&emitter, &id, &name, &state).await,
    }
}
