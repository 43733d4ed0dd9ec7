// SPDX-License-Identifier: Apache-2.0
//! Talking to a cluster: its daemon, and through it the guests. Blocking, so that tests read as stories.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::console::{Stage, plain, stage_of};
use crate::protocol::{Answer, ClusterStatus, Power, Request, VmStatus};
use crate::state::{ClusterDir, ClusterSpec};
use crate::timeouts::{self, Limit, Speed};

/// How often something is looked at that has no event, at full speed.
const LOOK: Duration = Duration::from_millis(250);
/// Files are carried in pieces: the guest agent takes one JSON line at a time.
const PIECE: usize = 256 * 1024;

/// A connection to the daemon of a cluster.
pub struct Client {
    dir: ClusterDir,
    stream: Mutex<BufReader<UnixStream>>,
}

/// A member as `clusterctl nodes --json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Host name.
    pub name: String,
    /// Node id.
    pub id: String,
    /// `up`, `suspect`, `down` or `left`.
    pub state: String,
    /// Mesh address.
    pub address: String,
    /// It is the node that was asked.
    #[serde(rename = "self", default)]
    pub is_self: bool,
}

/// How a command in a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 128 and the signal for a command that a signal ended.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    /// Both outputs as text.
    pub fn all(&self) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.stdout), String::from_utf8_lossy(&self.stderr))
    }
}

impl Client {
    /// Connects to the cluster in `dir`.
    pub fn connect(dir: &ClusterDir) -> Result<Self> {
        let stream = UnixStream::connect(dir.control()).with_context(|| {
            let name = dir.name();
            if dir.root().join("cluster.json").exists() {
                format!("cluster `{name}` is off: `vm-cluster start` starts it again")
            } else {
                format!("there is no cluster `{name}`: `vm-cluster up` makes one")
            }
        })?;
        Ok(Self { dir: dir.clone(), stream: Mutex::new(BufReader::new(stream)) })
    }

    /// A second connection, for another thread.
    pub fn another(&self) -> Result<Self> {
        Self::connect(&self.dir)
    }

    /// The cluster's files.
    pub fn dir(&self) -> &ClusterDir {
        &self.dir
    }

    /// What the cluster consists of.
    pub fn spec(&self) -> Result<ClusterSpec> {
        self.dir.load()?.context("the cluster is being removed")
    }

    /// Asks the daemon.
    pub fn request(&self, request: &Request) -> Result<Value> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let gone = || {
            format!(
                "the daemon of cluster `{}` is gone (`{}`)",
                self.dir.name(),
                self.dir.daemon_log().display()
            )
        };
        stream.get_mut().write_all(line.as_bytes()).with_context(gone)?;
        let mut answer = String::new();
        stream.read_line(&mut answer).with_context(gone)?;
        ensure!(!answer.is_empty(), gone());
        match serde_json::from_str(&answer).context("the daemon's answer is not understood")? {
            Answer::Ok(value) => Ok(value),
            Answer::Error(error) => Err(anyhow!(error)),
        }
    }

    /// State of VMs and switch.
    pub fn status(&self) -> Result<ClusterStatus> {
        Ok(serde_json::from_value(self.request(&Request::Status)?)?)
    }

    /// How fast guests run here, with the VMs that are on now.
    pub fn speed(&self) -> Result<Speed> {
        let spec = self.spec()?;
        let on = self.status()?.vms.values().filter(|vm| vm.power == Power::On).count();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Speed::new(spec.accel.slowdown, on.max(1), spec.shape.cpus, cores))
    }

    /// VM `number`.
    pub fn vm(&self, number: u32) -> Vm<'_> {
        Vm { client: self, number }
    }

    /// Numbers of the VMs that are on.
    pub fn running(&self) -> Result<Vec<u32>> {
        let status = self.status()?;
        Ok(status.vms.iter().filter(|(_, vm)| vm.power == Power::On).map(|(vm, _)| *vm).collect())
    }

    /// Looks again and again until `look` finds what it looks for. What it says instead is part of the error when `limit`
    /// is over.
    pub fn wait_for<T>(&self, what: &str, limit: Limit, look: impl Fn() -> Result<Seen<T>>) -> Result<T> {
        let speed = self.speed()?;
        let start = Instant::now();
        loop {
            let last = match look()? {
                Seen::Found(value) => return Ok(value),
                Seen::NotYet(last) => last,
            };
            if start.elapsed() > speed.limit(limit) {
                bail!(
                    "waited for {what} for {} s (limit `{}`: {} s, times {:.1} on this host), \
                     last seen: {last}; logs are in `{}`",
                    start.elapsed().as_secs(),
                    limit.name,
                    limit.seconds,
                    speed.factor,
                    self.dir.root().display()
                );
            }
            sleep(LOOK.mul_f64(speed.factor.min(8.0)));
        }
    }
}

/// What a look found.
pub enum Seen<T> {
    /// What was looked for.
    Found(T),
    /// What there was instead.
    NotYet(String),
}

/// One VM of a cluster.
#[derive(Clone, Copy)]
pub struct Vm<'a> {
    client: &'a Client,
    number: u32,
}

impl<'a> Vm<'a> {
    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its state.
    pub fn status(&self) -> Result<VmStatus> {
        let no_such = || format!("there is no VM {}: `vm-cluster status` lists them", self.number);
        self.client.status()?.vms.remove(&self.number).with_context(no_such)
    }

    /// Switches it on.
    pub fn start(&self) -> Result<bool> {
        Ok(self.client.request(&Request::Start { vm: self.number })? == true)
    }

    /// Shuts it down cleanly.
    pub fn stop(&self) -> Result<bool> {
        Ok(self.client.request(&Request::Stop { vm: self.number })? == true)
    }

    /// Cuts its power.
    pub fn kill(&self) -> Result<bool> {
        Ok(self.client.request(&Request::Kill { vm: self.number })? == true)
    }

    /// A command of the guest agent.
    pub fn guest(&self, execute: &str, arguments: Value) -> Result<Value> {
        self.client.request(&Request::Guest { vm: self.number, execute: execute.to_owned(), arguments })
    }

    /// A command of QEMU.
    pub fn qmp(&self, execute: &str, arguments: Value) -> Result<Value> {
        self.client.request(&Request::Qmp { vm: self.number, execute: execute.to_owned(), arguments })
    }

    /// Runs a command and waits until it ends; `None` waits as long as it takes.
    pub fn exec(&self, argv: &[&str], stdin: Option<&[u8]>, limit: Option<Limit>) -> Result<Output> {
        self.spawn(argv, stdin)?.wait(limit)
    }

    /// Starts a command.
    pub fn spawn(&self, argv: &[&str], stdin: Option<&[u8]>) -> Result<Running<'a>> {
        let (program, rest) = argv.split_first().context("no command given")?;
        let mut arguments = json!({"path": program, "arg": rest, "capture-output": true});
        if let Some(input) = stdin {
            arguments["input-data"] = Value::from(BASE64.encode(input));
        }
        let pid = self.guest("guest-exec", arguments)?["pid"].clone();
        Ok(Running { vm: *self, what: argv.join(" "), pid, since: Instant::now() })
    }

    /// Runs a line of shell. A pipe fails when any of its programs does, so do not let one close it early (`| head`).
    pub fn try_sh(&self, line: &str) -> Result<Output> {
        self.exec(&["bash", "-o", "pipefail", "-c", line], None, Some(timeouts::COMMAND))
    }

    /// Runs a line of shell that must succeed, and returns what it printed.
    pub fn sh(&self, line: &str) -> Result<String> {
        let output = self.try_sh(line)?;
        ensure!(
            output.status == 0,
            "`{line}` in VM {} ended with status {}: {}",
            self.number,
            output.status,
            output.all().trim()
        );
        Ok(output.text())
    }

    /// What `clusterctl nodes` of this VM says.
    pub fn members(&self) -> Result<Vec<Member>> {
        let text = self.sh("clusterctl nodes --json")?;
        serde_json::from_str(&text).with_context(|| format!("`clusterctl nodes --json` printed: {text}"))
    }

    /// What `clusterctl status` of this VM says.
    pub fn cluster_status(&self) -> Result<Value> {
        let text = self.sh("clusterctl status --json")?;
        serde_json::from_str(&text).with_context(|| format!("`clusterctl status --json` printed: {text}"))
    }

    /// What the console printed since power on or the last reboot, without control sequences.
    pub fn console(&self) -> Result<String> {
        let offset = self.status()?.serial_offset;
        let path = self.client.dir.vm(self.number).serial();
        Ok(plain(fs::read(path).unwrap_or_default().get(offset as usize..).unwrap_or_default()))
    }

    /// What the second serial port printed since the VM was made, without control sequences.
    pub fn second_console(&self) -> String {
        plain(&fs::read(self.client.dir.vm(self.number).second_serial()).unwrap_or_default())
    }

    /// Waits until commands can be run.
    pub fn wait_boot(&self) -> Result<()> {
        let what = format!("VM {} to accept commands", self.number);
        self.client.wait_for(&what, timeouts::BOOT, || {
            let status = self.status()?;
            if status.power == Power::Off {
                bail!(
                    "VM {} is off{}",
                    self.number,
                    status.ended.map(|how| format!(": {how}")).unwrap_or_default()
                );
            }
            Ok(if status.guest_agent { Seen::Found(()) } else { Seen::NotYet(self.stage()?.to_string()) })
        })
    }

    /// Waits until the console shows `text`.
    pub fn wait_console(&self, text: &str) -> Result<()> {
        let what = format!("`{text}` on the console of VM {}", self.number);
        self.client.wait_for(&what, timeouts::CONSOLE, || {
            let console = self.console()?;
            if console.contains(text) {
                return Ok(Seen::Found(()));
            }
            let tail: Vec<_> = console.lines().rev().take(5).collect();
            Ok(Seen::NotYet(tail.into_iter().rev().collect::<Vec<_>>().join(" | ")))
        })
    }

    /// Waits until `clusterctl nodes` of this VM satisfies `wanted`.
    pub fn wait_members(
        &self,
        what: &str,
        limit: Limit,
        wanted: impl Fn(&[Member]) -> bool,
    ) -> Result<Vec<Member>> {
        let what = format!("VM {} to see {what}", self.number);
        self.client.wait_for(&what, limit, || match self.members() {
            Ok(members) if wanted(&members) => Ok(Seen::Found(members)),
            Ok(members) => Ok(Seen::NotYet(states(&members))),
            Err(error) => Ok(Seen::NotYet(format!("{error:#}"))),
        })
    }

    /// How far its boot is.
    pub fn stage(&self) -> Result<Stage> {
        let status = self.status()?;
        Ok(match status.power {
            Power::Off => Stage::Off,
            Power::On if status.guest_agent => Stage::System,
            Power::On => stage_of(&self.console()?),
        })
    }

    /// Copies a file of the host into the guest.
    pub fn push(&self, from: &Path, to: &str) -> Result<u64> {
        let content = fs::read(from).with_context(|| format!("failed to read `{}`", from.display()))?;
        let handle = self.guest("guest-file-open", json!({"path": to, "mode": "w"}))?;
        let write = || {
            for piece in content.chunks(PIECE) {
                let piece = json!({"handle": handle, "buf-b64": BASE64.encode(piece)});
                self.guest("guest-file-write", piece)?;
            }
            Ok(content.len() as u64)
        };
        let result = write();
        self.guest("guest-file-close", json!({"handle": handle}))?;
        result
    }

    /// Copies a file of the guest to the host.
    pub fn pull(&self, from: &str, to: &Path) -> Result<u64> {
        let handle = self.guest("guest-file-open", json!({"path": from, "mode": "r"}))?;
        let read = || {
            let mut file =
                fs::File::create(to).with_context(|| format!("failed to create `{}`", to.display()))?;
            let mut length = 0;
            loop {
                let piece = self.guest("guest-file-read", json!({"handle": handle, "count": PIECE}))?;
                let bytes = BASE64.decode(piece["buf-b64"].as_str().unwrap_or_default().as_bytes())?;
                file.write_all(&bytes)?;
                length += bytes.len() as u64;
                if piece["eof"] == true || bytes.is_empty() {
                    return Ok(length);
                }
            }
        };
        let result = read();
        self.guest("guest-file-close", json!({"handle": handle}))?;
        result
    }
}

/// A command that runs in a VM.
pub struct Running<'a> {
    vm: Vm<'a>,
    what: String,
    pid: Value,
    since: Instant,
}

impl Running<'_> {
    /// How it ended, if it has.
    pub fn ended(&self) -> Result<Option<Output>> {
        let state = self.vm.guest("guest-exec-status", json!({"pid": self.pid}))?;
        if state["exited"] == true { output(&state).map(Some) } else { Ok(None) }
    }

    /// Waits until it ends; `limit` counts from its start.
    pub fn wait(&self, limit: Option<Limit>) -> Result<Output> {
        let limit =
            limit.map(|limit| Ok::<_, anyhow::Error>(self.vm.client.speed()?.limit(limit))).transpose()?;
        let mut pause = Duration::from_millis(20);
        loop {
            if let Some(output) = self.ended()? {
                return Ok(output);
            }
            if let Some(limit) = limit.filter(|limit| self.since.elapsed() > *limit) {
                bail!("`{}` in VM {} still runs after {} s", self.what, self.vm.number, limit.as_secs());
            }
            sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }
}

/// Members and their states on one line.
pub fn states(members: &[Member]) -> String {
    if members.is_empty() {
        return "no members".to_owned();
    }
    members.iter().map(|member| format!("{} {}", member.name, member.state)).collect::<Vec<_>>().join(", ")
}

fn output(state: &Value) -> Result<Output> {
    let decode = |key: &str| {
        BASE64
            .decode(state[key].as_str().unwrap_or_default().as_bytes())
            .context("guest output is not base64")
    };
    let status = match (state["exitcode"].as_i64(), state["signal"].as_i64()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => bail!("the guest agent did not say how the command ended"),
    };
    Ok(Output { status: status as i32, stdout: decode("out-data")?, stderr: decode("err-data")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_ended_by_a_signal_has_the_shells_status() {
        let ended = |state| output(&state).expect("ended").status;
        assert_eq!(ended(json!({"exited": true, "exitcode": 3})), 3);
        assert_eq!(ended(json!({"exited": true, "signal": 9})), 137);
    }
}
