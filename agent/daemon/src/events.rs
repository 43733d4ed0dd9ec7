// SPDX-License-Identifier: Apache-2.0
//! Everything the event loop can wake up for, in one place.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use anyhow::{Context as _, Result};
use cluster_agent_core::Provisioning;
use tokio::{
    signal::unix::Signal,
    sync::{mpsc, oneshot, watch},
    time::{Interval, MissedTickBehavior, interval, sleep},
};

use crate::{
    bus::{Answer, Request},
    clock, mesh,
    net::{
        interfaces,
        tcp::StreamEvent,
        udp::{Received, UdpSockets},
    },
    provisioning::Watcher,
    store::Outcome,
};

/// One thing that happened.
pub(crate) enum Event {
    Datagram(Received),
    Stream(StreamEvent),
    Interfaces(Vec<interfaces::Interface>),
    Written(Outcome),
    Mesh(mesh::Event),
    Bus(Request),
    ConfigMayHaveChanged,
    Provisioned(Provisioning, Option<oneshot::Sender<Answer>>),
    Resolved(SocketAddr, Vec<u8>),
    Stop(&'static str),
}

/// Where events come from.
pub(crate) struct Events {
    pub(crate) udp: Rc<UdpSockets>,
    pub(crate) streams: mpsc::Receiver<StreamEvent>,
    pub(crate) interfaces: watch::Receiver<Vec<interfaces::Interface>>,
    pub(crate) written: mpsc::UnboundedReceiver<Outcome>,
    pub(crate) mesh: mpsc::Receiver<mesh::Event>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) config: Watcher,
    pub(crate) provisioned: mpsc::Receiver<(Provisioning, Option<oneshot::Sender<Answer>>)>,
    pub(crate) resolved: mpsc::Receiver<(SocketAddr, Vec<u8>)>,
    pub(crate) terminate: Signal,
    pub(crate) interrupt: Signal,
    pub(crate) hangup: Signal,
}

impl Events {
    /// Waits for the next thing to happen. May be dropped half-way without losing one.
    pub(crate) async fn next(&mut self) -> Result<Event> {
        // Each of these futures may be dropped half-way without losing anything.
        Ok(tokio::select! {
            received = self.udp.receive() => Event::Datagram(received.context("the UDP socket failed")?),
            Some(event) = self.streams.recv() => Event::Stream(event),
            Ok(()) = self.interfaces.changed() => Event::Interfaces(self.interfaces.borrow_and_update().clone()),
            Some(outcome) = self.written.recv() => Event::Written(outcome),
            Some(event) = self.mesh.recv() => Event::Mesh(event),
            Some(request) = self.requests.recv() => Event::Bus(request),
            () = self.config.changed() => Event::ConfigMayHaveChanged,
            Some((provisioning, reply)) = self.provisioned.recv() => Event::Provisioned(provisioning, reply),
            Some((to, bytes)) = self.resolved.recv() => Event::Resolved(to, bytes),
            Some(()) = self.hangup.recv() => Event::ConfigMayHaveChanged,
            _ = self.terminate.recv() => Event::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Event::Stop("SIGINT"),
        })
    }
}

/// The core counts in boot time, which goes on while the machine sleeps; tokio's clock does not. After a resume packets
/// come and the core is told the time, so a late wake-up only matters on a dead link.
pub(crate) async fn until(deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => sleep(deadline.saturating_sub(clock::boottime())).await,
        None => std::future::pending().await,
    }
}

pub(crate) fn ticking(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

pub(crate) async fn tick(ticks: &mut Option<Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => std::future::pending().await,
    }
}
