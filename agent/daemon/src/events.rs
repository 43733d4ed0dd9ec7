// SPDX-License-Identifier: Apache-2.0
//! Everything the event loop can wake up for, in one place.

use std::{net::SocketAddr, pin::Pin, rc::Rc, time::Duration};

use anyhow::{Context as _, Result};
use cluster_agent_core::Provisioning;
use tokio::{
    signal::unix::Signal,
    sync::{mpsc, oneshot, watch},
    time::{Instant, Interval, MissedTickBehavior, Sleep, interval, sleep},
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

/// As exact as timers are.
const EXACT: Duration = Duration::from_millis(1);

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
    pub(crate) written: mpsc::UnboundedReceiver<Outcome>,
    /// From [`Rare::forward`].
    pub(crate) rare: mpsc::Receiver<Event>,
}

/// Where events come from seldom.
pub(crate) struct Rare {
    pub(crate) interfaces: watch::Receiver<Vec<interfaces::Interface>>,
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
            Some(outcome) = self.written.recv() => Event::Written(outcome),
            Some(event) = self.rare.recv() => event,
        })
    }
}

impl Rare {
    /// Hands them on through one channel: the loop looks at all it waits for at every turn, and most turns are of a datagram.
    pub(crate) fn forward(mut self) -> mpsc::Receiver<Event> {
        let (sender, events) = mpsc::channel(16);
        tokio::spawn(async move { while sender.send(self.next().await).await.is_ok() {} });
        events
    }

    async fn next(&mut self) -> Event {
        // Each of these futures may be dropped half-way without losing anything.
        tokio::select! {
            Ok(()) = self.interfaces.changed() => Event::Interfaces(self.interfaces.borrow_and_update().clone()),
            Some(event) = self.mesh.recv() => Event::Mesh(event),
            Some(request) = self.requests.recv() => Event::Bus(request),
            () = self.config.changed() => Event::ConfigMayHaveChanged,
            Some((provisioning, reply)) = self.provisioned.recv() => Event::Provisioned(provisioning, reply),
            Some((to, bytes)) = self.resolved.recv() => Event::Resolved(to, bytes),
            Some(()) = self.hangup.recv() => Event::ConfigMayHaveChanged,
            _ = self.terminate.recv() => Event::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Event::Stop("SIGINT"),
        }
    }
}

/// One timer for all deadlines. The core counts in boot time, which goes on while the machine sleeps; tokio's clock does not.
/// After a resume packets come and the core is told the time, so a late wake-up only matters on a dead link.
pub(crate) struct Alarm {
    sleep: Pin<Box<Sleep>>,
}

impl Alarm {
    pub(crate) fn new() -> Self {
        Self { sleep: Box::pin(sleep(Duration::ZERO)) }
    }

    /// Waits until then.
    pub(crate) async fn at(&mut self, deadline: Option<Duration>) {
        let Some(deadline) = deadline else { return std::future::pending().await };
        let at = Instant::now() + deadline.saturating_sub(clock::boottime());
        // The two clocks are read one after the other; a timer that is set anew costs more than this is worth.
        let set = self.sleep.deadline();
        if self.sleep.is_elapsed() || at + EXACT < set || at > set + EXACT {
            self.sleep.as_mut().reset(at);
        }
        self.sleep.as_mut().await;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::Alarm;
    use crate::clock;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Whether it goes off at once, or is left waiting, as by an event that comes first.
    async fn goes_off(alarm: &mut Alarm, at: Option<Duration>) -> bool {
        tokio::select! {
            biased;
            () = alarm.at(at) => true,
            () = std::future::ready(()) => false,
        }
    }

    fn after(duration: Duration) -> Option<Duration> {
        Some(clock::boottime() + duration)
    }

    async fn must_go_off(alarm: &mut Alarm, at: Option<Duration>) {
        timeout(Duration::from_secs(20), alarm.at(at)).await.expect("it goes off long before");
    }

    #[tokio::test]
    async fn one_alarm_serves_deadlines_that_come_nearer_and_go_away_again() {
        let mut alarm = Alarm::new();
        assert!(!goes_off(&mut alarm, after(HOUR)).await);
        must_go_off(&mut alarm, after(Duration::from_millis(30))).await;
        assert!(!goes_off(&mut alarm, after(HOUR)).await, "it went off for the deadline before");
        assert!(!goes_off(&mut alarm, None).await);
        must_go_off(&mut alarm, after(Duration::from_millis(30))).await;
        assert!(!goes_off(&mut alarm, None).await);
    }

    #[tokio::test]
    async fn a_deadline_that_was_put_off_is_forgotten() {
        let mut alarm = Alarm::new();
        let soon = after(Duration::from_millis(200));
        assert!(!goes_off(&mut alarm, soon).await);
        tokio::select! {
            biased;
            () = alarm.at(after(HOUR)) => panic!("it went off for the deadline before"),
            () = sleep(Duration::from_millis(300)) => {}
        }
    }

    #[tokio::test]
    async fn what_is_due_already_is_due_now() {
        let mut alarm = Alarm::new();
        assert!(!goes_off(&mut alarm, after(HOUR)).await);
        must_go_off(&mut alarm, Some(Duration::ZERO)).await;
        must_go_off(&mut alarm, Some(Duration::ZERO)).await;
    }
}
