// SPDX-License-Identifier: Apache-2.0
//! The process behind a cluster: owns its QEMU processes and the switch, and does what the control socket asks.
//!
//! It runs on one thread: the kernel kills each QEMU when the thread that started it ends, and that must be the daemon's.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};

use crate::console::{Stage, plain, stage_of};
use crate::fabric::{Fabric, bind};
use crate::guest::Guest;
use crate::protocol::{Answer, ClusterStatus, Power, Request, VmStatus};
use crate::qemu;
use crate::qmp::{Qmp, Seen};
use crate::state::{ClusterDir, ClusterSpec, VmSpec};
use crate::switch::PortId;
use crate::timeouts::{self, Limit, Speed};

mod links;

/// Name of QEMU's snapshot of a cluster.
const SNAPSHOT: &str = "cluster";

/// Serves the cluster in `dir` until it is shut down. `ready` is called once requests are answered.
pub fn run(dir: ClusterDir, ready: impl FnOnce()) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(dir, ready))
}

async fn serve(dir: ClusterDir, ready: impl FnOnce()) -> Result<()> {
    let lock = File::create(dir.lock())?;
    if lock.try_lock().is_err() {
        bail!("cluster `{}` already has a daemon", dir.name());
    }
    let spec = dir.load()?.context("the cluster has no cluster.json")?;
    let control = bind(&dir.control())?;
    let daemon = Arc::new(Daemon {
        fabric: Fabric::new(spec.seed),
        machines: Mutex::new(BTreeMap::new()),
        one_at_a_time: tokio::sync::Mutex::new(()),
        end: Notify::new(),
        spec: Mutex::new(spec.clone()),
        dir: dir.clone(),
    });
    for (vm, spec) in &spec.vms {
        daemon.attach(*vm, spec)?;
    }
    ready();

    let mut terminate = signal(SignalKind::terminate())?;
    // A closed terminal is no reason to cut the power.
    let _hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        () = accept(Arc::clone(&daemon), control) => {}
        () = daemon.end.notified() => {}
        _ = terminate.recv() => {}
    }
    daemon.power_off_all().await;
    let _ = fs::remove_file(dir.control());
    // The lock is given up last: whoever gets it may rely on nothing being left.
    drop(lock);
    Ok(())
}

async fn accept(daemon: Arc<Daemon>, control: UnixListener) {
    while let Ok((stream, _)) = control.accept().await {
        tokio::spawn(converse(Arc::clone(&daemon), stream));
    }
}

async fn converse(daemon: Arc<Daemon>, stream: UnixStream) {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut held = false;
    while let Ok(Some(line)) = lines.next_line().await {
        let result = match serde_json::from_str::<Request>(&line) {
            Ok(Request::Hold) => {
                held = true;
                Ok(Value::Null)
            }
            Ok(Request::Release) => {
                held = false;
                Ok(Value::Null)
            }
            Ok(Request::Shutdown) => {
                daemon.power_off_all().await;
                daemon.end.notify_one();
                Ok(Value::Null)
            }
            Ok(request) => Arc::clone(&daemon).answer(request).await,
            Err(error) => Err(anyhow!("request not understood: {error}")),
        };
        let answer = match result {
            Ok(value) => Answer::Ok(value),
            Err(error) => Answer::Error(format!("{error:#}")),
        };
        let Ok(mut line) = serde_json::to_vec(&answer) else { break };
        line.push(b'\n');
        if writer.write_all(&line).await.is_err() {
            break;
        }
    }
    if held {
        daemon.end.notify_one();
    }
}

struct Daemon {
    dir: ClusterDir,
    spec: Mutex<ClusterSpec>,
    fabric: Arc<Fabric>,
    machines: Mutex<BTreeMap<u32, Machine>>,
    /// Held while VMs are switched on or off or snapshotted.
    one_at_a_time: tokio::sync::Mutex<()>,
    end: Notify,
}

#[derive(Default)]
struct Machine {
    running: Option<Running>,
    ended: Option<String>,
}

#[derive(Clone)]
struct Running {
    pid: u32,
    since: Instant,
    serial: PathBuf,
    qmp: Arc<Qmp>,
    guest: Arc<Guest>,
    kill: mpsc::Sender<()>,
    exited: watch::Receiver<bool>,
}

impl Daemon {
    async fn answer(self: Arc<Self>, request: Request) -> Result<Value> {
        match request {
            Request::Hold | Request::Release | Request::Shutdown => bail!("answered by the connection"),
            Request::Status => Ok(serde_json::to_value(self.status())?),
            Request::Define { vm, spec } => self.define(vm, *spec),
            Request::Start { vm } => {
                let _turn = self.one_at_a_time.lock().await;
                self.start(vm, false).await
            }
            Request::Stop { vm } => self.stop(vm).await,
            Request::Kill { vm } => self.kill(vm).await.map(Value::from),
            Request::Qmp { vm, execute, arguments } => {
                self.running(vm)?.qmp.command(&execute, arguments, self.limit(timeouts::QMP)).await
            }
            Request::Guest { vm, execute, arguments } => self.guest(vm, &execute, arguments).await,
            Request::Link { vm, nic, direction, change } => self.link(vm, nic, direction, change).await,
            Request::Partition { groups } => {
                self.fabric.switch(|switch| switch.partition(groups));
                Ok(Value::Null)
            }
            Request::Heal => {
                self.fabric.switch(|switch| switch.heal());
                self.set_carriers().await?;
                Ok(Value::Null)
            }
            Request::StartCapture { path } => self.fabric.start_capture(&path).map(|()| Value::Null),
            Request::StopCapture => {
                self.fabric.stop_capture();
                Ok(Value::Null)
            }
            Request::Snapshot => self.snapshot().await,
            Request::Restore => self.restore().await,
        }
    }

    fn status(&self) -> ClusterStatus {
        let vms = self.machines().iter().map(|(vm, machine)| (*vm, machine.status())).collect();
        let snapshot = self.spec().snapshot.is_some();
        ClusterStatus {
            pid: std::process::id(),
            vms,
            ports: self.fabric.switch(|switch| switch.view()),
            snapshot,
        }
    }

    fn define(&self, vm: u32, spec: VmSpec) -> Result<Value> {
        match self.machines().get(&vm).map(|machine| machine.running.is_some()) {
            None => {}
            Some(false) => {
                self.wire(vm, &spec)?;
                let mut cluster = self.spec();
                cluster.vms.insert(vm, spec);
                return self.dir.save(&cluster).map(|()| Value::Null);
            }
            Some(true) => bail!("VM {vm} is on: switch it off before its hardware is changed"),
        }
        self.attach(vm, &spec)?;
        let mut cluster = self.spec();
        cluster.vms.insert(vm, spec);
        self.dir.save(&cluster)?;
        Ok(Value::Null)
    }

    fn attach(&self, vm: u32, spec: &VmSpec) -> Result<()> {
        self.wire(vm, spec)?;
        self.machines().insert(vm, Machine::default());
        Ok(())
    }

    /// Makes the disks and plugs in the cables that are not there yet.
    fn wire(&self, vm: u32, spec: &VmSpec) -> Result<()> {
        let dir = self.dir.vm(vm);
        qemu::make_disks(&dir, spec)?;
        for (nic, lan) in spec.shape.nics() {
            self.fabric.attach(PortId::new(vm, nic), lan, &dir.net(nic))?;
        }
        Ok(())
    }

    async fn start(self: &Arc<Self>, vm: u32, paused: bool) -> Result<Value> {
        if self.machines().get(&vm).with_context(|| self.no_such(vm))?.running.is_some() {
            return Ok(Value::from(false));
        }
        let (spec, accel) = {
            let cluster = self.spec();
            (cluster.vms.get(&vm).cloned().with_context(|| self.no_such(vm))?, cluster.accel.clone())
        };
        let dir = self.dir.vm(vm);
        let (qmp, guest) = (bind(&dir.qmp())?, bind(&dir.guest())?);
        let log = File::create(dir.qemu_log())?;
        let mut child = Command::from(qemu::command(vm, &spec, &dir, &accel, paused))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("failed to run `setpriv qemu-system-x86_64`")?;
        let pid = child.id().unwrap_or_default();
        let since = Instant::now();
        let limit = self.limit(timeouts::QMP);
        let connect = async {
            let (qmp, guest) = tokio::try_join!(qmp.accept(), guest.accept())?;
            Ok::<_, anyhow::Error>((
                Qmp::new(qmp.0, dir.serial(), limit).await?,
                Arc::new(Guest::new(guest.0)),
            ))
        };
        let (qmp, guest) = tokio::select! {
            connected = tokio::time::timeout(limit, connect) => {
                connected.map_err(|_| anyhow!("QEMU did not connect within {} s", limit.as_secs()))??
            }
            status = child.wait() => bail!("{}", how_it_ended(status?, &dir.qemu_log())),
        };
        let (kill, killed) = mpsc::channel(1);
        let (send_exited, exited) = watch::channel(false);
        tokio::spawn(Arc::clone(self).watch_over(vm, child, killed, send_exited));
        let mut seen = qmp.seen();
        let running =
            Running { pid, since, serial: dir.serial(), qmp, guest: Arc::clone(&guest), kill, exited };
        if let Some(machine) = self.machines().get_mut(&vm) {
            *machine = Machine { running: Some(running), ended: None };
        }
        tokio::spawn(async move {
            while seen.changed().await.is_ok() {
                // The port was closed, or the machine was reset: whoever was asked will not answer.
                if !seen.borrow_and_update().port_open {
                    guest.lost_step();
                }
            }
        });
        self.set_carrier(vm).await?;
        Ok(Value::from(true))
    }

    async fn watch_over(
        self: Arc<Self>,
        vm: u32,
        mut child: Child,
        mut killed: mpsc::Receiver<()>,
        exited: watch::Sender<bool>,
    ) {
        let asked = tokio::select! {
            _ = child.wait() => false,
            asked = killed.recv() => asked.is_some(),
        };
        if asked {
            // It may have ended by itself meanwhile.
            let _ = child.start_kill();
        }
        let status = child.wait().await;
        if let Some(machine) = self.machines().get_mut(&vm) {
            machine.running = None;
            machine.ended = match status {
                Ok(status) if !asked && !status.success() => {
                    Some(how_it_ended(status, &self.dir.vm(vm).qemu_log()))
                }
                _ => None,
            };
        }
        // Nobody may be waiting.
        let _ = exited.send(true);
    }

    async fn stop(&self, vm: u32) -> Result<Value> {
        let Some(mut running) = self.machine_running(vm)? else { return Ok(Value::from(false)) };
        let limit = self.limit(timeouts::SHUTDOWN);
        if running.takes_commands() {
            // guest-shutdown never answers when it works; the exit of QEMU is the answer.
            let ask = running.guest.command("guest-shutdown", json!({"mode": "powerdown"}), limit);
            tokio::select! {
                _ = ask => {}
                _ = running.exited.wait_for(|exited| *exited) => {}
            }
        } else {
            running.qmp.command("system_powerdown", json!({}), self.limit(timeouts::QMP)).await?;
        }
        if tokio::time::timeout(limit, running.exited.wait_for(|exited| *exited)).await.is_err() {
            bail!(
                "VM {vm} did not power off within {} s: see `vm-cluster logs {vm} --serial`, \
                 or cut its power with `vm-cluster kill {vm}`",
                limit.as_secs()
            );
        }
        Ok(Value::from(true))
    }

    async fn kill(&self, vm: u32) -> Result<bool> {
        let Some(mut running) = self.machine_running(vm)? else { return Ok(false) };
        // A full channel means that someone else has asked already.
        let _ = running.kill.try_send(());
        let _ = running.exited.wait_for(|exited| *exited).await;
        Ok(true)
    }

    async fn power_off_all(&self) {
        let vms: Vec<u32> = self.machines().keys().copied().collect();
        for vm in vms {
            if let Err(error) = self.kill(vm).await {
                eprintln!("vm {vm}: {error:#}");
            }
        }
    }

    async fn guest(&self, vm: u32, execute: &str, arguments: Value) -> Result<Value> {
        let running = self.running(vm)?;
        if !running.takes_commands() {
            bail!(
                "VM {vm} accepts no commands: its guest agent is not running (`vm-cluster logs {vm} --serial`)"
            );
        }
        let answer = running.guest.command(execute, arguments, self.limit(timeouts::GUEST_AGENT)).await;
        answer.with_context(|| format!("VM {vm}"))
    }

    async fn snapshot(self: &Arc<Self>) -> Result<Value> {
        let _turn = self.one_at_a_time.lock().await;
        let machines = self.all_running();
        if machines.is_empty() {
            bail!("no VM is on");
        }
        if let Some((vm, _)) = machines.iter().find(|(_, running)| !running.takes_commands()) {
            bail!("VM {vm} is still booting: wait until `vm-cluster status` shows `system up`");
        }
        // On any failure the cluster goes on as it was.
        let result = self.frozen(&machines, |running, limit| async move {
            // Replaces the one before; that there is none is no error worth stopping for.
            let _ = running.qmp.monitor(&format!("delvm {SNAPSHOT}"), limit).await;
            running.qmp.monitor(&format!("savevm {SNAPSHOT}"), limit).await
        });
        result.await.context("failed to take the snapshot")?;
        let mut cluster = self.spec();
        cluster.snapshot = Some(machines.keys().copied().collect());
        self.dir.save(&cluster)?;
        Ok(json!({"vms": machines.len()}))
    }

    async fn restore(self: &Arc<Self>) -> Result<Value> {
        let _turn = self.one_at_a_time.lock().await;
        let wanted = self
            .spec()
            .snapshot
            .clone()
            .context("there is no snapshot: take one with `vm-cluster snapshot`")?;
        // In a QEMU that has run on, the guest's time stamp counter would not go back with the rest of its clocks: it would
        // see a leap as long as the time since the snapshot. So every VM goes on in a fresh process.
        let on: Vec<u32> = self.all_running().into_keys().collect();
        for vm in &on {
            self.kill(*vm).await?;
        }
        let extra: Vec<u32> = on.into_iter().filter(|vm| !wanted.contains(vm)).collect();
        self.fabric.switch(|switch| switch.heal());
        for vm in &wanted {
            self.start(*vm, true).await?;
        }
        let machines = self.all_running();
        self.frozen(&machines, |running, limit| async move {
            running.qmp.monitor(&format!("loadvm {SNAPSHOT}"), limit).await?;
            running.qmp.restored();
            running.guest.lost_step();
            Ok(())
        })
        .await
        .context("failed to restore the snapshot")?;
        for (vm, running) in &machines {
            self.set_carrier(*vm).await?;
            // QEMU reports the guest agent's port some moments after the VM goes on.
            let mut seen = running.qmp.seen();
            let limit = self.limit(timeouts::GUEST_AGENT);
            let open = tokio::time::timeout(limit, seen.wait_for(|seen| seen.port_open)).await;
            open.map_err(|_| {
                anyhow!("VM {vm}: the guest agent is not there after the snapshot was loaded")
            })??;
        }
        Ok(json!({"vms": wanted.len(), "switched_off": extra}))
    }

    /// Runs `act` on each machine while all of them, and the switch, stand still.
    async fn frozen<F>(
        &self,
        machines: &BTreeMap<u32, Running>,
        act: impl Fn(Running, Duration) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let limit = self.limit(timeouts::QMP);
        self.fabric.pause();
        let result = async {
            for running in machines.values() {
                running.qmp.command("stop", json!({}), limit).await?;
            }
            // What was under way belongs to a time that the VMs may not have lived.
            self.fabric.quiesce().await;
            for (vm, running) in machines {
                act(running.clone(), self.limit(timeouts::SNAPSHOT))
                    .await
                    .with_context(|| format!("VM {vm}"))?;
            }
            Ok(())
        }
        .await;
        self.fabric.resume();
        for running in machines.values() {
            running.qmp.command("cont", json!({}), limit).await?;
        }
        result
    }

    fn all_running(&self) -> BTreeMap<u32, Running> {
        self.machines().iter().filter_map(|(vm, machine)| Some((*vm, machine.running.clone()?))).collect()
    }

    fn machine_running(&self, vm: u32) -> Result<Option<Running>> {
        Ok(self.machines().get(&vm).with_context(|| self.no_such(vm))?.running.clone())
    }

    fn running(&self, vm: u32) -> Result<Running> {
        self.machine_running(vm)?
            .with_context(|| format!("VM {vm} is off: switch it on with `vm-cluster start {vm}`"))
    }

    fn no_such(&self, vm: u32) -> String {
        format!("there is no VM {vm}: `vm-cluster status` lists them, `vm-cluster add` adds one")
    }

    fn limit(&self, limit: Limit) -> Duration {
        let on = self.machines().values().filter(|machine| machine.running.is_some()).count();
        let spec = self.spec();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Speed::new(spec.accel.slowdown, on.max(1), spec.shape.cpus, cores).limit(limit)
    }

    fn machines(&self) -> MutexGuard<'_, BTreeMap<u32, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spec(&self) -> MutexGuard<'_, ClusterSpec> {
        self.spec.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// The guest agent, not the firmware, has the port open: OVMF opens every virtio-serial port and would take commands
    /// for keys. It closes them when Linux takes over, which says so on the console.
    fn takes_commands(&self) -> bool {
        let seen = *self.qmp.seen().borrow();
        if !seen.port_open || seen.restored {
            return seen.port_open;
        }
        let log = fs::read(&self.serial).unwrap_or_default();
        let console = plain(log.get(seen.boot_offset as usize..).unwrap_or_default());
        stage_of(&console) >= Stage::Kernel
    }
}

impl Machine {
    fn status(&self) -> VmStatus {
        let seen = self.running.as_ref().map_or(Seen::default(), |running| *running.qmp.seen().borrow());
        VmStatus {
            power: if self.running.is_some() { Power::On } else { Power::Off },
            pid: self.running.as_ref().map(|running| running.pid),
            uptime: self.running.as_ref().map(|running| running.since.elapsed()).unwrap_or_default(),
            guest_agent: self.running.as_ref().is_some_and(Running::takes_commands),
            resets: seen.resets,
            panicked: seen.panicked,
            serial_offset: seen.boot_offset,
            ended: self.ended.clone(),
        }
    }
}

fn how_it_ended(status: ExitStatus, log: &std::path::Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty() && !line.contains("warning"));
    let how = match status.signal() {
        Some(signal) => format!("QEMU was killed by signal {signal}"),
        None => format!("QEMU ended with status {}", status.code().unwrap_or_default()),
    };
    match last {
        Some(line) => format!("{how}: {line} (`{}`)", log.display()),
        None => format!("{how} (`{}` is empty)", log.display()),
    }
}
