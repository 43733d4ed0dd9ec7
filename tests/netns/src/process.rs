// SPDX-License-Identifier: Apache-2.0
//! Processes that outlive the command that started them, found again by id and start time, so that a recycled id is
//! never taken for one of ours.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

/// How long a process may take to end after it was asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Set once nothing may be started any more. Held while a process is started, so that each one is either in its file or
/// was never there.
static FORBIDDEN: Mutex<bool> = Mutex::new(false);

/// From now on every start fails: what ends a cluster must not race with what is still building it.
pub fn forbid_starts() {
    *FORBIDDEN.lock().unwrap_or_else(PoisonError::into_inner) = true;
}

/// A started process, remembered in a file.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    file: PathBuf,
}

impl Process {
    pub(crate) fn at(file: PathBuf) -> Self {
        Self { file }
    }

    /// Starts `command` with its output appended to `log`.
    pub(crate) fn start(&self, mut command: Command, log: &Path) -> Result<()> {
        if let Some(pid) = self.pid() {
            bail!("`{}` says that process {pid} runs already", self.file.display());
        }
        let forbidden = FORBIDDEN.lock().unwrap_or_else(PoisonError::into_inner);
        if *forbidden {
            bail!("interrupted");
        }
        let output = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Out of the terminal's group: Ctrl-C is for the command, which then ends these in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("failed to start {:?}", command.get_program()))?;
        let pid = i32::try_from(child.id())?;
        let born = start_time(pid)
            .with_context(|| format!("process {pid} was gone at once: see {}", log.display()))?;
        fs::write(&self.file, format!("{pid} {born}\n"))?;
        Ok(())
    }

    /// Its id while it runs.
    pub(crate) fn pid(&self) -> Option<i32> {
        let text = fs::read_to_string(&self.file).ok()?;
        let (pid, born) = text.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        (start_time(pid)? == born.parse::<u64>().ok()?).then_some(pid)
    }

    /// Sends `signal` and waits for the end; after a time it insists. Fine when it does not run.
    pub(crate) fn end(&self, signal: Signal) -> Result<()> {
        if let Some(pid) = self.pid() {
            send(pid, signal)?;
            let deadline = Instant::now() + STOP_TIMEOUT;
            while self.is_running(pid) {
                if Instant::now() > deadline {
                    send(pid, Signal::SIGKILL)?;
                }
                std::thread::sleep(LOOK_AGAIN);
            }
        }
        if self.file.exists() {
            fs::remove_file(&self.file)?;
        }
        Ok(())
    }

    fn is_running(&self, pid: i32) -> bool {
        // Reaps it when it is our own child; otherwise this says ECHILD and init does.
        let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        self.pid() == Some(pid)
    }
}

pub(crate) fn send(pid: i32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed to signal process {pid}")),
    }
}

/// Start time in clock ticks since boot (proc(5), stat field 22); `None` when it does not run or is a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may hold spaces and brackets: fields are counted from its end.
    let after_name = stat.rsplit_once(')')?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    // The first thread is a zombie while others still end, and with them what they hold: sockets, for one.
    let (state, threads) = (fields.first()?, fields.get(17)?.parse::<u32>().ok()?);
    if *state == "Z" && threads <= 1 {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_process_again_and_never_one_that_took_its_id() {
        let dir = std::env::temp_dir().join(format!("netns-process-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let process = Process::at(dir.join("pid"));
        let mut command = Command::new("sleep");
        command.arg("60");
        process.start(command, &dir.join("log")).unwrap();
        let pid = Process::at(dir.join("pid")).pid().unwrap();

        // Same id, other start time: somebody else's.
        let stranger = Process::at(dir.join("stranger"));
        fs::write(dir.join("stranger"), format!("{pid} 1\n")).unwrap();
        assert_eq!(stranger.pid(), None);
        stranger.end(Signal::SIGKILL).unwrap();
        assert_eq!(process.pid(), Some(pid));

        process.end(Signal::SIGTERM).unwrap();
        assert_eq!(process.pid(), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
