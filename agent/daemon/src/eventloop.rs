// SPDX-License-Identifier: Apache-2.0
//! The one loop: whatever happens becomes an input of the core, and whatever the core commands is carried out by the
//! module that owns the effect. Nothing here waits: what takes time runs elsewhere and comes back as an event.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use cluster_agent_core::{
    Boot, ClusterId, Command, HostCommand, Input, Interface, Member, NetCommand, Node, Notice, Now,
    Provisioning, RequestId, StreamId, Ticket,
    consts::{AGENT_PORT, MESH_INTERFACE, MULTICAST_GROUP},
};
use tokio::{
    net::lookup_host,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{debug, error, info, warn};

use crate::{
    bus::{self, Answer, BusAddress, Order, Request, View},
    clock,
    events::{Alarm, Event, Events, Rare, tick, ticking},
    host, logging,
    mesh::{self, Mesh, Wanted},
    net::{
        interfaces::{self, Physical},
        tcp::{StreamEvent, Streams},
        udp::UdpSockets,
    },
    paths::{self, DEVELOPMENT_FILE, OS_RELEASE, Paths},
    provisioning::{self, Watcher},
    report::{IdentityReport, StatusReport},
    saved::{keep_of, read_saved},
    service::Service,
    signals::Signals,
    store::{Outcome, Store, Writer},
    version,
};

/// How long a stop waits for the disk.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// What cluster.toml leads to is written again after this pause when it could not be: a disk has room again, or is back.
const RELOAD_RETRY: Duration = Duration::from_secs(10);

/// What to do about addresses of the mesh elsewhere.
const INTRUDER_FIX: &str = "remove that address, route or rule, or give its network another range; the range of the mesh cannot be changed";

/// So many datagrams more are taken in one turn of the loop, and no more, so that nothing else waits for long.
const AT_ONCE: usize = 32;

/// Members are listed anew at most this often while nobody comes, goes or changes state: any local user may ask, and a list of
/// thousands takes time from all else.
const MEMBERS_FRESH: Duration = Duration::from_secs(1);

/// How this agent is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its directories.
    pub paths: Paths,
    /// Its bus.
    pub bus: BusAddress,
    /// Which interfaces it speaks over.
    pub physical: Physical,
    /// Never set the machine's clock.
    pub keep_clock: bool,
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// When a port is taken, the state directory cannot be used, or the kernel lacks something essential.
pub async fn run(options: Options) -> Result<()> {
    let (mut agent, mut events) = Agent::start(options).await?;
    let mut watchdog = Service::watchdog_interval().map(ticking);
    agent.service.ready();
    info!(version = version::AGENT, id = agent.node.status(now()).short_id, "agent ready");
    let mut alarm = Alarm::new();
    loop {
        agent.carry_out_commands();
        let due = [agent.node.poll_timeout(), agent.signals.due(), agent.reload_at];
        let due = due.into_iter().flatten().min();
        tokio::select! {
            event = events.next() => match event? {
                Event::Stop(name) => {
                    info!(signal = name, "stopping; the mesh stays up");
                    return agent.stop(events.written).await;
                }
                event => {
                    let more = matches!(event, Event::Datagram(_));
                    agent.handle(event);
                    if more && agent.handle_waiting_datagrams() {
                        // There may be no end to them: the bus and streams want their turn, too.
                        tokio::task::yield_now().await;
                    }
                }
            },
            // What signals have to tell `carry_out_commands` tells.
            () = alarm.at(due) => agent.time_passed(),
            () = tick(&mut watchdog) => agent.service.alive(),
        }
    }
}

/// The list of members as it was told last.
struct MembersView {
    version: Option<(ClusterId, u64, u64)>,
    made: Duration,
    json: String,
}

/// The core and the modules that act for it.
struct Agent {
    options: Options,
    node: Node,
    udp: Rc<UdpSockets>,
    streams: Streams,
    accepted: u64,
    store: Store,
    writer: Writer,
    mesh: Mesh,
    mesh_backend: Option<&'static str>,
    /// What else was seen to have addresses of the mesh.
    intruders: String,
    orders: mpsc::Sender<Order>,
    provisioned: mpsc::Sender<(Provisioning, Option<oneshot::Sender<Answer>>)>,
    resolved: mpsc::Sender<(SocketAddr, Vec<u8>)>,
    service: Service,
    signals: Signals,
    /// Requests that the core has not answered yet, and the number of the last one.
    replies: BTreeMap<RequestId, oneshot::Sender<Answer>>,
    asked: u64,
    members_view: Option<MembersView>,
    /// State files whose last write failed.
    unsaved: BTreeSet<&'static str>,
    /// When files that cluster.toml leads to are written again, because they could not be.
    reload_at: Option<Duration>,
}

impl Agent {
    async fn start(options: Options) -> Result<(Self, Events)> {
        let udp = Rc::new(UdpSockets::bind(AGENT_PORT, MULTICAST_GROUP)?);
        let (streams, stream_events) = Streams::listen(AGENT_PORT)?;
        let store = Store::open(&options.paths.state_dir)?;
        let (writer, written) = Writer::start(store.clone())?;
        let (mesh, mesh_events) = Mesh::start(options.paths.wireguard_go())?;
        let mut interfaces = interfaces::watch(options.physical.clone(), MESH_INTERFACE).await?;
        let (requests, request_events) = mpsc::channel(32);
        let (orders, order_events) = mpsc::channel(256);
        let (provisioned, provisioned_events) = mpsc::channel(4);
        let (resolved, resolved_events) = mpsc::channel(64);
        let config = Watcher::start(&options.paths.config_dir)?;

        let (saved, damages) = read_saved(&store)
            .context("the node's state cannot be read; `ls -l` the file, and give it to the agent's user")?;
        let provisioning = provisioning::load(&options.paths.config_dir, &store);
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).context("the kernel gives no randomness")?;
        let boot = Boot {
            seed,
            version: version::of_system(OS_RELEASE.as_ref()),
            build_time: version::built_at(OS_RELEASE.as_ref()),
            development: paths::development_settings(DEVELOPMENT_FILE.as_ref()),
        };
        let kept = provisioning::is_kept(&provisioning);
        let node = Node::new(boot, provisioning, saved, now());

        let mut agent = Self {
            options,
            node,
            udp: udp.clone(),
            streams,
            accepted: 0,
            store,
            writer,
            mesh,
            mesh_backend: None,
            intruders: String::new(),
            orders,
            provisioned,
            resolved,
            service: Service::default(),
            signals: Signals::default(),
            replies: BTreeMap::new(),
            asked: 0,
            members_view: None,
            unsaved: BTreeSet::new(),
            reload_at: None,
        };
        let first = interfaces.borrow_and_update().clone();
        let rare = Rare {
            interfaces,
            mesh: mesh_events,
            requests: request_events,
            config,
            provisioned: provisioned_events,
            resolved: resolved_events,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        };
        let events = Events { udp, streams: stream_events, written, rare: rare.forward() };
        for damage in damages {
            error!(error = format!("{:#}", anyhow::Error::from(damage)), "a state file cannot be used");
        }
        if !agent.udp.has_ipv6() {
            agent.external("ipv6", "the kernel has no IPv6: the mesh cannot work; remove `ipv6.disable=1`");
        }
        agent.signals.changed();
        agent.retry_unless_kept(kept);
        agent.interfaces(first);
        // Answers come from the loop, which begins when this returns; callers that are early wait that long.
        bus::serve(agent.options.bus.clone(), version::AGENT.to_owned(), requests, order_events).await;
        Ok((agent, events))
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Datagram(received) => self.tell(Input::Datagram {
                from: received.from,
                interface: received.interface,
                bytes: received.bytes,
            }),
            Event::Stream(event) => self.stream(event),
            Event::Interfaces(interfaces) => self.interfaces(interfaces),
            Event::Written(Outcome { name, tickets, result }) => {
                // The core tries again every few seconds; the journal hears of the change, status of the state.
                match &result {
                    Err(error) if self.unsaved.insert(name) => {
                        error!(error, "state cannot be saved: free space, or check the disk");
                    }
                    Ok(()) if self.unsaved.remove(name) => info!(name, "saved after all"),
                    _ => {}
                }
                for ticket in tickets.into_iter().map(Ticket) {
                    self.tell(match &result {
                        Ok(()) => Input::Persisted(ticket),
                        Err(error) => Input::PersistFailed { ticket, error: error.clone() },
                    });
                }
            }
            Event::Mesh(event) => self.mesh(event),
            Event::Bus(request) => self.answer(request),
            Event::ConfigMayHaveChanged => self.load_provisioning(None),
            Event::Provisioned(provisioning, reply) => {
                let kept = provisioning::is_kept(&provisioning);
                self.tell(Input::Provisioned(provisioning));
                self.retry_unless_kept(kept);
                reply.map(|reply| reply.send(Ok(String::new())));
            }
            Event::Resolved(to, bytes) => self.send(to, 0, &bytes),
            Event::Stop(_) => {}
        }
    }

    /// Datagrams come in heaps where this process had to wait for its turn; a turn of the loop for each costs more than most
    /// of them do. Gives whether more may be waiting.
    fn handle_waiting_datagrams(&mut self) -> bool {
        for _ in 0..AT_ONCE {
            match self.udp.receive_more() {
                Some(received) => self.handle(Event::Datagram(received)),
                None => return false,
            }
        }
        true
    }

    fn tell(&mut self, input: Input) {
        self.node.handle(input, now());
    }

    fn time_passed(&mut self) {
        self.tell(Input::Timeout);
        if self.reload_at.take_if(|at| *at <= now().boottime).is_some() {
            self.load_provisioning(None);
        }
    }

    fn external(&mut self, area: &str, message: &str) {
        self.external_with_fix(area, message, "");
    }

    fn external_with_fix(&mut self, area: &str, message: &str, fix: &str) {
        let (area, message, fix) = (area.to_owned(), message.to_owned(), fix.to_owned());
        self.tell(Input::External { area, message, fix });
    }

    /// Every effect there is.
    fn carry_out_commands(&mut self) {
        while let Some(command) = self.node.poll_command() {
            match command {
                Command::Net(command) => self.net(command),
                Command::Host(command) => self.host(command),
                Command::Persist { ticket, item, bytes } => {
                    self.writer.write(item.file_name(), keep_of(item), bytes, ticket.0);
                }
                Command::Answer { id, result } => {
                    if let Some(reply) = self.replies.remove(&id) {
                        // Who went away is not interested any more.
                        let _ = reply.send(result.map(|()| String::new()).map_err(|why| why.to_string()));
                    }
                }
                Command::Notify(notice) => self.notify(notice),
                Command::Log { level, message, fields } => logging::core(level, &message, &fields),
            }
        }
        let orders = self.signals.take(now().boottime);
        if !orders.is_empty() {
            let status = self.node.status(now());
            self.service.status(&format!("{}: {}", status.phase.as_str(), status.detail));
            orders.into_iter().for_each(|order| self.order(order));
        }
    }

    fn net(&mut self, command: NetCommand) {
        match command {
            NetCommand::SendDatagram { to, interface, bytes } => self.send(to, interface, &bytes),
            NetCommand::Multicast { interface, bytes } => {
                if let Err(error) = self.udp.multicast(interface, &bytes) {
                    debug!(interface, %error, "multicast not sent");
                }
            }
            NetCommand::Broadcast { interface, bytes } => {
                if let Err(error) = self.udp.broadcast(interface, &bytes) {
                    debug!(interface, %error, "broadcast not sent");
                }
            }
            NetCommand::SendToName { host, port, bytes } => self.resolve_and_send(host, port, bytes),
            NetCommand::Connect { stream, to } => self.streams.connect(stream.0, to),
            NetCommand::StreamSend { stream, bytes } => self.streams.send(stream.0, bytes),
            NetCommand::StreamClose { stream } => {
                self.streams.close(stream.0);
            }
        }
    }

    fn host(&mut self, command: HostCommand) {
        match command {
            HostCommand::SetClockFloor { wall } => self.set_clock(wall, clock::raise_to),
            HostCommand::SetClock { wall } => self.set_clock(wall, clock::set_to),
            HostCommand::MeshApply(plan) => self.mesh.apply(Wanted::from(plan)),
            HostCommand::MeshRemove => self.mesh.remove(),
            HostCommand::SetHostname { name } => host::ask_for_name(&self.options.paths.hostname(), &name),
        }
    }

    fn send(&mut self, to: SocketAddr, interface: u32, bytes: &[u8]) {
        if let Err(error) = self.udp.send(to, interface, bytes) {
            debug!(%to, interface, %error, "datagram not sent");
        }
    }

    fn resolve_and_send(&self, host: String, port: u16, bytes: Vec<u8>) {
        let resolved = self.resolved.clone();
        tokio::spawn(async move {
            match lookup_host((host.as_str(), port)).await {
                Ok(addresses) => {
                    for address in addresses {
                        if resolved.send((address, bytes.clone())).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => debug!(host, %error, "a seed's name is not resolved"),
            }
        });
    }

    fn set_clock(&mut self, wall: Duration, set: fn(Duration) -> Result<clock::Step>) {
        if self.options.keep_clock {
            debug!(wall = wall.as_secs(), "leaving the clock as it is (--keep-clock)");
            return;
        }
        match set(wall) {
            Ok(clock::Step::None) => self.external("clock", ""),
            Ok(clock::Step::Forward(step)) => {
                warn!(
                    seconds = step.as_secs(),
                    "the clock was set forward: it was behind a time that has passed for certain"
                );
                self.external("clock", "");
            }
            Ok(clock::Step::Back(step)) => {
                warn!(seconds = step.as_secs(), "the clock was set back: it was ahead of most members");
                self.external("clock", "");
            }
            Err(error) => {
                error!(error = format!("{error:#}"), "the clock cannot be set");
                self.external(
                    "clock",
                    &format!("{error:#}; peers may refuse this node's WireGuard handshakes"),
                );
            }
        }
    }

    fn notify(&mut self, notice: Notice) {
        match notice {
            Notice::Status => self.signals.changed(),
            Notice::Member { id, name, state } => {
                self.signals.member_changed(id, name, state.as_str().to_owned());
            }
        }
    }

    /// Signals are hints: one that does not fit behind a stuck bus is dropped, and its reader asks again later.
    fn order(&self, order: Order) {
        if let Err(mpsc::error::TrySendError::Full(order)) = self.orders.try_send(order) {
            warn!(?order, "D-Bus is too slow; dropped a signal");
        }
    }

    fn stream(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::Accepted { from, stream } => {
                self.accepted += 1;
                let id = StreamId::inbound(self.accepted);
                if self.streams.adopt(id.0, stream) {
                    self.tell(Input::StreamAccepted { stream: id, from });
                }
            }
            StreamEvent::Connected { id } if self.streams.is_open(id) => {
                self.tell(Input::StreamConnected { stream: StreamId(id) });
            }
            StreamEvent::Data { id, bytes } if self.streams.is_open(id) => {
                self.tell(Input::StreamData { stream: StreamId(id), bytes });
            }
            StreamEvent::Sent { id, bytes } if self.streams.is_open(id) => {
                self.tell(Input::StreamSent { stream: StreamId(id), bytes });
            }
            // A stream the core has closed is none any more, even if its last bytes are still under way.
            StreamEvent::Connected { .. } | StreamEvent::Data { .. } | StreamEvent::Sent { .. } => {}
            StreamEvent::Closed { id } => {
                if self.streams.close(id) {
                    self.tell(Input::StreamClosed { stream: StreamId(id) });
                }
            }
        }
    }

    fn interfaces(&mut self, interfaces: Vec<interfaces::Interface>) {
        let usable: BTreeSet<u32> = interfaces
            .iter()
            .filter(|interface| interface.physical && interface.up)
            .filter(|interface| interface.addresses.iter().any(|(address, _)| address.is_ipv6()))
            .map(|interface| interface.index)
            .collect();
        self.udp.join_group_on(&usable);
        let interfaces = interfaces
            .into_iter()
            .map(|interface| Interface {
                index: interface.index,
                name: interface.name,
                addresses: interface.addresses,
                up: interface.up,
                physical: interface.physical,
            })
            .collect();
        self.tell(Input::Interfaces(interfaces));
    }

    fn mesh(&mut self, event: mesh::Event) {
        match event {
            mesh::Event::Ready { backend } => {
                self.mesh_backend = Some(backend);
                self.signals.changed();
            }
            mesh::Event::Stats(stats) => {
                self.external("mesh", "");
                self.tell(Input::MeshStats(stats));
            }
            mesh::Event::Intruders { message } => {
                if message != self.intruders {
                    if !message.is_empty() {
                        warn!(found = message, "something else has addresses of the mesh");
                    }
                    self.external_with_fix("mesh route", &message, INTRUDER_FIX);
                    self.intruders = message;
                }
            }
            mesh::Event::Failing { error } => self.external("mesh", &error),
            mesh::Event::Removed => {
                self.mesh_backend = None;
                self.signals.changed();
                self.external("mesh", "");
                self.external("mesh route", "");
                self.intruders.clear();
            }
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::View(view, reply) => {
                let json = match view {
                    View::Status => serde_json::to_string(&self.status()),
                    View::Members => self.members(),
                    View::Identity => serde_json::to_string(&IdentityReport::from(self.node.status(now()))),
                };
                // A caller that went away is not interested any more.
                let _ = reply.send(json.map_err(|error| format!("failed to encode the view: {error}")));
            }
            Request::Core(request, reply) => {
                self.asked += 1;
                let id = RequestId(self.asked);
                self.replies.insert(id, reply);
                self.tell(Input::Request { id, request });
            }
            Request::Reload(reply) => self.load_provisioning(Some(reply)),
        }
    }

    fn members(&mut self) -> serde_json::Result<String> {
        let (present, version) = (now(), self.node.members_version());
        if let Some(view) = &self.members_view
            && view.version == version
            && present.boottime.saturating_sub(view.made) < MEMBERS_FRESH
        {
            return Ok(view.json.clone());
        }
        let json = serde_json::to_string::<Vec<Member>>(&self.node.members(present))?;
        self.members_view = Some(MembersView { version, made: present.boottime, json: json.clone() });
        Ok(json)
    }

    fn status(&self) -> StatusReport {
        StatusReport {
            status: self.node.status(now()),
            agent_version: version::AGENT.to_owned(),
            mesh_backend: self.mesh_backend.map(str::to_owned),
        }
    }

    /// A worn-out stick may take seconds to read.
    fn load_provisioning(&self, reply: Option<oneshot::Sender<Answer>>) {
        let (dir, store, provisioned) =
            (self.options.paths.config_dir.clone(), self.store.clone(), self.provisioned.clone());
        tokio::spawn(async move {
            match tokio::task::spawn_blocking(move || provisioning::load(&dir, &store)).await {
                Ok(provisioning) => {
                    let _ = provisioned.send((provisioning, reply)).await;
                }
                Err(error) => error!(%error, "reading cluster.toml panicked"),
            }
        });
    }

    /// When the last good copy of cluster.toml cannot be written, it is tried again later.
    fn retry_unless_kept(&mut self, kept: bool) {
        self.reload_at = (!kept).then(|| now().boottime + RELOAD_RETRY);
    }

    async fn stop(self, mut written: mpsc::UnboundedReceiver<Outcome>) -> Result<()> {
        self.service.stopping();
        drop(self.writer);
        // The writer ends when everything it was asked for has been tried.
        let flushed = timeout(FLUSH_LIMIT, async { while written.recv().await.is_some() {} }).await;
        if flushed.is_err() {
            warn!("the disk is too slow to save everything before stopping");
        }
        Ok(())
    }
}

fn now() -> Now {
    Now { boottime: clock::boottime(), wall: clock::wall() }
}
