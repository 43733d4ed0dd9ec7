// SPDX-License-Identifier: Apache-2.0
//! `cluster-updater check-boot`: judges a trial boot by whether the agent is a member again (cluster-boot-check.service).
//!
//! `boot-complete.target` requires it, and systemd-bless-boot comes after that: passed, the boot is marked good. Failed,
//! however that came, systemd restarts the machine (cluster-boot-failed.service) and the boot loader has one try less, until
//! it goes back to the version before. Unknown is not the end: the boot stays as it is, unmarked, and passes when the node
//! becomes a member later.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use cluster_updater_core::{
    refund,
    verdict::{Agent, Seen, Verdict, When, judge},
};
use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{error, info, warn};
use zbus::{Connection, proxy};

use crate::{
    guard::{Guard, try_for},
    health,
    host::Host,
    paths::Paths,
    report::CheckReport,
    store::{Event, Store, write_renamed},
    systemd,
};

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// When a verdict is due.
    pub deadline: Duration,
    /// The agent may restart; silent for this long, it is not there.
    pub silence: Duration,
    /// A change that no signal told is seen after so long.
    pub look_again: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(600),
            silence: Duration::from_secs(60),
            look_again: Duration::from_secs(5),
        }
    }
}

/// It answers at once, or something is badly wrong.
const ANSWER: Duration = Duration::from_secs(30);
/// After the deadline, for one look at everything, of which nothing answers: then it is the check itself that hangs.
const GRACE: Duration = Duration::from_secs(420);
/// For what a check that hangs still has to say.
const LAST_WORDS: Duration = Duration::from_secs(2);
const NO_BUS: &str = "D-Bus takes connections and does not answer";
const AGENT: &str = "cluster-agent.service";

#[proxy(
    interface = "org.clusteros.Agent1",
    default_service = "org.clusteros.Agent1",
    default_path = "/org/clusteros/Agent1"
)]
trait ClusterAgent {
    fn status(&self) -> zbus::Result<String>;
    #[zbus(signal)]
    fn changed(&self) -> zbus::Result<()>;
}

/// What of the agent's status counts here.
#[derive(Deserialize)]
struct AgentStatus {
    phase: String,
    detail: String,
    cluster: Option<String>,
}

/// Ends this process when there is no verdict long after it was due, whatever it waits for; systemd then restarts the machine.
///
/// # Errors
/// When there is no thread for it.
pub fn guard(paths: &Paths, limits: Limits) -> Result<Guard> {
    let state = paths.state.clone();
    let guard = Guard::new(limits.deadline + GRACE, move || {
        try_for(LAST_WORDS, move || {
            error!("the check of this boot hangs; restarting");
            if let (Ok(store), Ok(host)) = (Store::attach(&state), Host::look()) {
                store.tell(&host.boot, "fail", &host.running, "the check of this boot hung");
            }
        });
        std::process::exit(1);
    })?;
    Ok(guard)
}

/// Waits for a verdict that ends it. `connect` is tried again as long as it hangs. A check that cannot go on is a boot that failed,
/// and noted as one: without a verdict in the history, the boot would look as if the power had ended it, and get its try back.
///
/// # Errors
/// When the boot failed.
pub async fn run(
    paths: &Paths,
    host: &Host,
    connect: impl AsyncFn() -> zbus::Result<Connection>,
    limits: Limits,
    guard: &Guard,
) -> Result<()> {
    watch(paths, host, connect, limits, guard).await.or_else(|error| {
        let reason = format!("{error:#}");
        note(paths, host, Verdict::Fail, &reason);
        guard.judged();
        bail!("this boot of {} failed: {reason}", host.running)
    })
}

/// Notes that this boot failed, unless its check did, which ended or never began (cluster-boot-failed.service,
/// cluster-boot-late.service).
///
/// # Errors
/// When it cannot be noted.
pub fn note_failure(paths: &Paths, host: &Host, reason: &str) -> Result<()> {
    let store = Store::attach(&paths.state)?;
    let is_judged = |event: &Event| event.boot == host.boot && refund::is_verdict(&event.what);
    if !store.history().iter().any(is_judged) {
        store.tell(&host.boot, "fail", &host.running, reason);
    }
    Ok(())
}

/// The error is why the boot failed.
async fn watch(
    paths: &Paths,
    host: &Host,
    connect: impl AsyncFn() -> zbus::Result<Connection>,
    limits: Limits,
    guard: &Guard,
) -> Result<()> {
    let deadline = Instant::now() + limits.deadline;
    let (bus, agent, mut changes) = match timeout_at(deadline, reach(&connect)).await {
        Ok(reached) => reached?,
        Err(_) => {
            without_bus(paths, host, guard)?;
            reach(&connect).await?
        }
    };
    let bus = &bus;
    let mut silent_since = None;
    let mut told = None;
    let mut first: Option<u32> = None;
    loop {
        let seen = look(bus, &agent).await;
        let count = restarts(bus).await;
        // Whoever starts the agent by hand begins the count anew.
        first = count.map(|count| first.map_or(count, |first| first.min(count))).or(first);
        let restarts = count.zip(first).map_or(0, |(count, first)| count - first);
        let now = Instant::now();
        silent_since = match seen {
            Agent::Silent(_) | Agent::Stopped(_) => silent_since.or(Some(now)),
            _ => None,
        };
        let restarting = silent_since.is_some_and(|since| now.duration_since(since) < limits.silence);
        let when = match told {
            _ if now < deadline || restarting => When::Early,
            Some(_) => When::Later,
            None => When::Due,
        };
        let needed = when == When::Due || matches!(seen, Agent::Member(_));
        let (mut broken, mut unplugged) = (Vec::new(), false);
        if needed {
            let before = Store::attach(&paths.state).is_ok_and(|store| store.had_link());
            let now = health::interfaces(bus).await;
            broken = health::broken(bus, before, now).await;
            unplugged = before && now.is_none_or(|now| now.linked == 0);
        }
        let seen = Seen { agent: seen, given_up: paths.given_up.exists(), restarts, broken, unplugged };
        if let Some((verdict, reason)) = judge(&seen, when)
            && told != Some(verdict)
        {
            told = Some(verdict);
            if verdict == Verdict::Fail {
                bail!(reason);
            }
            note(paths, host, verdict, &reason);
            guard.judged();
            if verdict == Verdict::Pass {
                return Ok(());
            }
        }
        let _ = timeout(limits.look_again, changes.next()).await;
    }
}

/// The bus, the agent on it, and its signal.
type Reached = (Connection, ClusterAgentProxy<'static>, ChangedStream);

/// Connecting is several questions and answers. A bus that never answers is not told from one that is slow, except by its
/// deadline.
async fn reach(connect: &impl AsyncFn() -> zbus::Result<Connection>) -> Result<Reached> {
    let once = async || {
        let bus = connect().await?;
        let agent = ClusterAgentProxy::builder(&bus).cache_properties(zbus::proxy::CacheProperties::No);
        let agent = agent.build().await?;
        let changes = agent.receive_changed().await?;
        zbus::Result::Ok((bus, agent, changes))
    };
    loop {
        match timeout(ANSWER, once()).await {
            Ok(reached) => return reached.context("D-Bus cannot be used"),
            Err(_) => warn!("{NO_BUS}; trying again"),
        }
    }
}

/// The deadline has come without a bus.
fn without_bus(paths: &Paths, host: &Host, guard: &Guard) -> Result<()> {
    let seen = Seen {
        agent: Agent::Silent(NO_BUS.to_owned()),
        given_up: paths.given_up.exists(),
        restarts: 0,
        broken: Vec::new(),
        unplugged: false,
    };
    if let Some((verdict, reason)) = judge(&seen, When::Due) {
        if verdict == Verdict::Fail {
            bail!(reason);
        }
        note(paths, host, verdict, &reason);
        guard.judged();
    }
    Ok(())
}

async fn look(bus: &Connection, agent: &ClusterAgentProxy<'_>) -> Agent {
    let answer = timeout(ANSWER, agent.status()).await;
    let status = answer.ok().and_then(Result::ok);
    match status.and_then(|json| serde_json::from_str::<AgentStatus>(&json).ok()) {
        Some(status) if status.phase == "member" => Agent::Member(status.cluster.unwrap_or_default()),
        Some(status) => Agent::Outside(format!("this node is {}: {}", status.phase, status.detail)),
        None => {
            let unit = timeout(ANSWER, systemd::unit_state(bus, AGENT)).await;
            match unit.ok().and_then(Result::ok) {
                Some(state) if matches!(state.active.as_str(), "inactive" | "deactivating") => {
                    Agent::Stopped(format!("{AGENT} is {state}"))
                }
                Some(state) => Agent::Silent(format!("{AGENT} is {state}")),
                None => Agent::Silent(format!("{AGENT} is not known to systemd")),
            }
        }
    }
}

async fn restarts(bus: &Connection) -> Option<u32> {
    timeout(ANSWER, systemd::restarts(bus, AGENT)).await.ok()?.ok()
}

fn note(paths: &Paths, host: &Host, verdict: Verdict, reason: &str) {
    let version = &host.running;
    let word = match verdict {
        Verdict::Pass => {
            info!(%version, reason, "this boot is good");
            "pass"
        }
        Verdict::Unknown => {
            warn!(%version, reason, "whether this boot is good is not known yet; it is not marked good until it is");
            "unknown"
        }
        Verdict::Fail => {
            error!(%version, reason, "this boot failed; restarting, so that the boot loader tries again or goes back");
            "fail"
        }
    };
    let report = CheckReport { verdict, reason: reason.to_owned() };
    let kept = serde_json::to_vec(&report).map_err(anyhow::Error::from);
    if let Err(error) = kept.and_then(|report| write_renamed(&paths.verdict, &report)) {
        warn!(error = format!("{error:#}"), "the verdict is not shown in `cluster-update status`");
    }
    match Store::attach(&paths.state) {
        Ok(store) => store.tell(&host.boot, word, version, reason),
        Err(error) => warn!(error = format!("{error:#}"), "the verdict is not in the history"),
    }
}
