// SPDX-License-Identifier: Apache-2.0
//! The check of a trial boot, beside an agent and a systemd that are made up.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::{
    collections::BTreeMap,
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use cluster_updater::{
    check::{self, Limits},
    guard::Guard,
    host::Host,
    paths::Paths,
    report::{CheckReport, OtherSlot, StatusReport, TrustReport},
    store::Store,
};
use cluster_updater_core::{Digest, Version, verdict::Verdict};
use zbus::{Connection, OwnedObjectPath, connection, fdo, interface, object_server::SignalEmitter};

const LIMITS: Limits = Limits {
    deadline: Duration::from_millis(300),
    silence: Duration::from_millis(150),
    look_again: Duration::from_millis(20),
};
const LOOPBACK: (&str, &str, &str) = ("lo", "unmanaged", "carrier");
const AGENT_RESTARTS: (&str, (&str, &str)) = ("cluster-agent.service", ("activating", "auto-restart"));
/// Nothing is waited for by its time.
const PATIENT: Limits = Limits {
    deadline: Duration::from_secs(600),
    silence: Duration::from_secs(600),
    look_again: Duration::from_secs(600),
};

/// The phase that it tells; none: it does not answer.
struct Agent(Arc<Mutex<Option<&'static str>>>);

#[interface(name = "org.clusteros.Agent1")]
impl Agent {
    fn status(&self) -> fdo::Result<String> {
        let phase = self.0.lock().unwrap().ok_or_else(|| fdo::Error::Failed("no".into()))?;
        Ok(format!(r#"{{"phase":"{phase}","detail":"so it is","cluster":"lab","more":1}}"#))
    }

    #[zbus(signal)]
    async fn changed(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;
}

/// What runs beside the agent.
#[derive(Default)]
struct Beside {
    /// Active and sub state where it is not active.
    units: BTreeMap<&'static str, (&'static str, &'static str)>,
    /// How often systemd has started the agent again; each look finds one more where it crashes.
    restarts: u32,
    crashes: bool,
    /// Administrative and carrier state of interfaces.
    /// Name, administrative state, carrier.
    links: Vec<(&'static str, &'static str, &'static str)>,
    /// What is wrong with the updater; none: it does not answer.
    updater: Option<Vec<&'static str>>,
}

const UNITS: [&str; 4] =
    ["cluster-agent.service", "nftables.service", "systemd-networkd.service", "ssh.service"];

struct Manager;

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn get_unit(&self, name: &str) -> fdo::Result<OwnedObjectPath> {
        let number = UNITS.iter().position(|unit| *unit == name).expect("no other unit is asked for");
        Ok(format!("/unit/{number}").try_into().unwrap())
    }
}

struct Unit(&'static str, Arc<Mutex<Beside>>);

impl Unit {
    fn state(&self) -> (&'static str, &'static str) {
        self.1.lock().unwrap().units.get(self.0).copied().unwrap_or(("active", "running"))
    }
}

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn active_state(&self) -> String {
        self.state().0.into()
    }

    #[zbus(property)]
    fn sub_state(&self) -> String {
        self.state().1.into()
    }
}

/// The same objects as services.
struct Service(Arc<Mutex<Beside>>);

#[interface(name = "org.freedesktop.systemd1.Service")]
impl Service {
    #[zbus(property)]
    fn n_restarts(&self) -> u32 {
        let mut beside = self.0.lock().unwrap();
        beside.restarts += u32::from(beside.crashes);
        beside.restarts
    }
}

struct Network(Arc<Mutex<Beside>>);

#[interface(name = "org.freedesktop.network1.Manager")]
impl Network {
    fn list_links(&self) -> Vec<(i32, String, OwnedObjectPath)> {
        let links = self.0.lock().unwrap().links.clone();
        let path = |number: usize| format!("/link/{number}").try_into().unwrap();
        links.iter().enumerate().map(|(number, link)| (1, link.0.to_owned(), path(number))).collect()
    }
}

struct Link(usize, Arc<Mutex<Beside>>);

#[interface(name = "org.freedesktop.network1.Link")]
impl Link {
    #[zbus(property)]
    fn administrative_state(&self) -> String {
        self.1.lock().unwrap().links[self.0].1.into()
    }

    #[zbus(property)]
    fn carrier_state(&self) -> String {
        self.1.lock().unwrap().links[self.0].2.into()
    }
}

struct Updater(Arc<Mutex<Beside>>);

#[interface(name = "org.clusteros.Updater1")]
impl Updater {
    fn status(&self) -> fdo::Result<String> {
        let beside = self.0.lock().unwrap();
        let problems = beside.updater.as_ref().ok_or_else(|| fdo::Error::Failed("no".into()))?;
        let report = StatusReport {
            scheduled: None,
            version: Version::parse("1.1").unwrap(),
            slot: Some('b'),
            root_hash: String::new(),
            boot_entry: None,
            marked_good: None,
            boot_check: None,
            other: OtherSlot::default(),
            releases: Vec::new(),
            trust: TrustReport::default(),
            job: None,
            last_failure: None,
            problems: problems.iter().map(|&problem| problem.to_owned()).collect(),
            // Nobody restarts for what somebody set by hand: it would stay.
            obstacles: vec!["an entry was chosen by hand".into()],
        };
        Ok(serde_json::to_string(&report).unwrap())
    }
}

fn host(boot: &str) -> Host {
    Host {
        running: Version::parse("1.1").unwrap(),
        root_hash: Digest([0; 32]),
        disk: "/nowhere".into(),
        sector: 512,
        under_root: Vec::new(),
        boot: boot.into(),
        counted: true,
    }
}

struct Boot {
    dir: tempfile::TempDir,
    phase: Arc<Mutex<Option<&'static str>>>,
    beside: Arc<Mutex<Beside>>,
    server: Connection,
    client: Connection,
}

impl Boot {
    async fn new(phase: Option<&'static str>) -> Self {
        let phase = Arc::new(Mutex::new(phase));
        let units = [AGENT_RESTARTS].into();
        let links = vec![LOOPBACK, ("eth0", "configured", "carrier")];
        let beside = Beside { updater: Some(Vec::new()), units, links, ..Beside::default() };
        let beside = Arc::new(Mutex::new(beside));
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut server = connection::Builder::unix_stream(ours)
            .server("0123456789abcdef0123456789abcdef")
            .p2p()
            .serve_at("/org/clusteros/Agent1", Agent(phase.clone()))
            .serve_at("/org/freedesktop/systemd1", Manager)
            .serve_at("/org/freedesktop/network1", Network(beside.clone()))
            .serve_at("/org/clusteros/Updater1", Updater(beside.clone()));
        for number in 0..2 {
            server = server.serve_at(format!("/link/{number}"), Link(number, beside.clone()));
        }
        for (number, unit) in UNITS.into_iter().enumerate() {
            let path = format!("/unit/{number}");
            server = server.serve_at(path.clone(), Unit(unit, beside.clone()));
            server = server.serve_at(path, Service(beside.clone()));
        }
        let client = connection::Builder::unix_stream(theirs).p2p();
        let (server, client) = tokio::join!(server.build(), client.build());
        Self {
            dir: tempfile::tempdir().unwrap(),
            phase,
            beside,
            server: server.unwrap(),
            client: client.unwrap(),
        }
    }

    async fn check(&self, limits: Limits) -> anyhow::Result<()> {
        self.check_on(async || Ok(self.client.clone()), limits).await
    }

    async fn check_on(
        &self,
        connect: impl AsyncFn() -> zbus::Result<Connection>,
        limits: Limits,
    ) -> anyhow::Result<()> {
        check::run(&self.paths(), &host("boot"), connect, limits, &Guard::none()).await
    }

    fn paths(&self) -> Paths {
        Paths {
            state: self.dir.path().join("state"),
            verdict: self.dir.path().join("verdict"),
            given_up: self.dir.path().join("given-up"),
            ..Paths::default()
        }
    }

    fn had_link(&self) {
        Store::attach(&self.dir.path().join("state")).unwrap().note_link(true);
    }

    fn given_up(&self) {
        std::fs::write(self.dir.path().join("given-up"), "").unwrap();
    }

    fn verdict(&self) -> Option<Verdict> {
        let text = std::fs::read(self.dir.path().join("verdict")).ok()?;
        Some(serde_json::from_slice::<CheckReport>(&text).unwrap().verdict)
    }

    fn history(&self) -> Vec<String> {
        let store = Store::attach(Path::new(&self.dir.path().join("state"))).unwrap();
        store.history().into_iter().map(|event| format!("{}: {}", event.what, event.detail)).collect()
    }

    async fn becomes(&self, phase: &'static str) {
        *self.phase.lock().unwrap() = Some(phase);
        Agent::changed(&SignalEmitter::new(&self.server, "/org/clusteros/Agent1").unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn a_member_passes_as_soon_as_the_agent_says_so() {
    let boot = Boot::new(Some("searching")).await;
    let change = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(boot.verdict(), None);
        boot.becomes("member").await;
    };
    let (checked, ()) = tokio::join!(boot.check(PATIENT), change);
    checked.unwrap();
    assert_eq!(boot.verdict(), Some(Verdict::Pass));
    assert_eq!(boot.history(), ["pass: this node is a member of `lab`"]);
}

#[tokio::test]
async fn without_its_agent_a_trial_fails_and_says_why() {
    let boot = Boot::new(None).await;
    let error = boot.check(LIMITS).await.unwrap_err().to_string();
    assert!(error.contains("cluster-agent.service is activating (auto-restart)"), "{error}");
    assert_eq!(boot.verdict(), Some(Verdict::Fail));
    assert!(boot.history()[0].starts_with("fail: the agent does not answer"), "{:?}", boot.history());
}

#[tokio::test]
async fn a_node_that_hears_nobody_is_not_judged_until_it_does() {
    let boot = Boot::new(Some("waiting")).await;
    let change = async {
        while boot.verdict().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(boot.verdict(), Some(Verdict::Unknown));
        boot.becomes("member").await;
    };
    let (checked, ()) = tokio::join!(boot.check(LIMITS), change);
    checked.unwrap();
    assert_eq!(boot.verdict(), Some(Verdict::Pass));
    assert_eq!(boot.history().len(), 2);
}

/// Passed, it would be marked good, and the next boot would start what was given up.
#[tokio::test]
async fn a_version_that_was_given_up_by_hand_never_passes() {
    let boot = Boot::new(Some("member")).await;
    boot.given_up();
    let told = async {
        while boot.verdict().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        checked = boot.check(LIMITS) => panic!("ended: {checked:?}"),
        // Longer than until the deadline.
        () = async { told.await; tokio::time::sleep(2 * LIMITS.deadline).await } => {}
    }
    assert_eq!(boot.verdict(), Some(Verdict::Unknown));
}

/// The node is a member, and could never be updated, reached or protected again.
#[tokio::test]
async fn a_member_whose_release_is_broken_elsewhere_fails_at_the_deadline() {
    type Break = fn(&mut Beside);
    let cases: [(&str, Break); 5] = [
        ("the updater does not answer", |beside| beside.updater = None),
        ("no slot can be read", |beside| beside.updater = Some(vec!["no slot can be read"])),
        ("nftables.service is failed (failed)", |beside| {
            beside.units.insert("nftables.service", ("failed", "failed"));
        }),
        ("systemd-networkd.service is inactive (dead)", |beside| {
            beside.units.insert("systemd-networkd.service", ("inactive", "dead"));
        }),
        ("ssh.service is activating (auto-restart)", |beside| {
            beside.units.insert("ssh.service", ("activating", "auto-restart"));
        }),
    ];
    for (wanted, broken) in cases {
        let boot = Boot::new(Some("member")).await;
        broken(&mut boot.beside.lock().unwrap());
        let error = boot.check(LIMITS).await.unwrap_err().to_string();
        assert!(error.contains(wanted), "`{wanted}` is not in: {error}");
        assert_eq!(boot.verdict(), Some(Verdict::Fail));
    }
}

#[tokio::test]
async fn what_comes_up_late_is_waited_for_and_a_node_without_keys_has_no_ssh() {
    let boot = Boot::new(Some("member")).await;
    boot.beside.lock().unwrap().updater = None;
    boot.beside.lock().unwrap().units.insert("ssh.service", ("inactive", "dead"));
    let later = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(boot.verdict(), None);
        boot.beside.lock().unwrap().updater = Some(Vec::new());
    };
    let limits = Limits { deadline: PATIENT.deadline, ..LIMITS };
    let (checked, ()) = tokio::join!(boot.check(limits), later);
    checked.unwrap();
    assert_eq!(boot.verdict(), Some(Verdict::Pass));
}

/// It answers now and then, so that it is never silent for long.
#[tokio::test]
async fn an_agent_that_keeps_crashing_fails_at_the_deadline() {
    let boot = Boot::new(Some("searching")).await;
    boot.beside.lock().unwrap().restarts = 7;
    boot.beside.lock().unwrap().crashes = true;
    let error = boot.check(LIMITS).await.unwrap_err().to_string();
    assert!(error.contains("the agent was started again"), "{error}");
    assert_eq!(boot.verdict(), Some(Verdict::Fail));
}

#[tokio::test]
async fn who_stops_the_agent_of_a_node_that_hears_nobody_gets_no_restart() {
    let boot = Boot::new(Some("waiting")).await;
    // It crashed before the check began.
    boot.beside.lock().unwrap().restarts = 7;
    let stopped = async {
        while boot.verdict().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        boot.beside.lock().unwrap().units.insert(AGENT_RESTARTS.0, ("inactive", "dead"));
        *boot.phase.lock().unwrap() = None;
        // Much longer than it may be silent.
        tokio::time::sleep(4 * LIMITS.silence).await;
    };
    tokio::select! {
        checked = boot.check(LIMITS) => panic!("ended: {checked:?}"),
        () = stopped => {}
    }
    assert_eq!(boot.verdict(), Some(Verdict::Unknown));
}

/// A kernel without the driver: alone in its cluster, a node is a member all the same.
#[tokio::test]
async fn a_release_without_the_network_interface_that_there_was_fails() {
    let boot = Boot::new(Some("member")).await;
    boot.beside.lock().unwrap().links = vec![LOOPBACK, ("cluster0", "pending", "carrier")];
    boot.check(LIMITS).await.unwrap();
    assert_eq!(boot.verdict(), Some(Verdict::Pass), "it never had one");
    boot.had_link();
    let error = boot.check(LIMITS).await.unwrap_err().to_string();
    assert!(error.contains("there is no network interface"), "{error}");
}

/// The whole lab lost power, and the switch takes longest.
#[tokio::test]
async fn a_node_alone_waits_for_the_link_that_it_had() {
    let boot = Boot::new(Some("member")).await;
    boot.had_link();
    boot.beside.lock().unwrap().links = vec![LOOPBACK, ("eth0", "configuring", "no-carrier")];
    let change = async {
        while boot.verdict().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(boot.verdict(), Some(Verdict::Unknown));
        boot.beside.lock().unwrap().links[1].2 = "carrier";
    };
    let (checked, ()) = tokio::join!(boot.check(LIMITS), change);
    checked.unwrap();
    assert_eq!(boot.verdict(), Some(Verdict::Pass));
}

/// It takes connections and never says a word.
#[tokio::test]
async fn a_bus_that_never_answers_fails_the_boot_at_the_deadline() {
    let boot = Boot::new(Some("member")).await;
    let held = std::sync::Mutex::new(Vec::new());
    let silent = async || {
        let (ours, theirs) = UnixStream::pair()?;
        held.lock().unwrap().push(theirs);
        connection::Builder::unix_stream(ours).build().await
    };
    let begun = std::time::Instant::now();
    let error = boot.check_on(silent, LIMITS).await.unwrap_err().to_string();
    assert!(error.contains("D-Bus takes connections and does not answer"), "{error}");
    assert_eq!(boot.verdict(), Some(Verdict::Fail));
    assert!(boot.history()[0].starts_with("fail: "), "{:?}", boot.history());
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// What was given up by hand restarts when somebody restarts it.
#[tokio::test]
async fn a_bus_that_never_answers_restarts_nothing_that_was_given_up_by_hand() {
    let boot = Boot::new(Some("member")).await;
    boot.given_up();
    let silent = async || std::future::pending().await;
    let told = async {
        while boot.verdict().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(LIMITS.deadline).await;
    };
    tokio::select! {
        checked = boot.check_on(silent, LIMITS) => panic!("ended: {checked:?}"),
        () = told => {}
    }
    assert_eq!(boot.verdict(), Some(Verdict::Unknown));
}

/// Without a word in the history, it would be taken for a power cut, and its try given back.
#[tokio::test]
async fn a_check_that_breaks_is_a_boot_that_failed() {
    let boot = Boot::new(Some("member")).await;
    let no_bus = async || Err(zbus::Error::Failure("no such socket".into()));
    let error = boot.check_on(no_bus, LIMITS).await.unwrap_err().to_string();
    assert!(error.contains("no such socket"), "{error}");
    assert_eq!(boot.verdict(), Some(Verdict::Fail));
    assert_eq!(boot.history(), ["fail: D-Bus cannot be used: no such socket"]);
}

/// What the check could not note itself: it crashed, or never began.
#[tokio::test]
async fn a_failure_is_noted_once() {
    let boot = Boot::new(Some("waiting")).await;
    tokio::select! {
        checked = boot.check(LIMITS) => panic!("ended: {checked:?}"),
        () = async { while boot.verdict().is_none() { tokio::time::sleep(LIMITS.look_again).await } } => {}
    }
    check::note_failure(&boot.paths(), &host("boot"), "it crashed").unwrap();
    check::note_failure(&boot.paths(), &host("boot"), "it crashed").unwrap();
    assert_eq!(boot.history().len(), 2);
    assert_eq!(boot.history()[1], "fail: it crashed");
    check::note_failure(&boot.paths(), &host("another"), "it never began").unwrap();
    assert_eq!(boot.history()[2], "fail: it never began");
}
