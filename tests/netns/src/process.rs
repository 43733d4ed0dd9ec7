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

use anyhow::{Context as _, Result, bail, ensure};
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
/// How long the kernel may take to end a killed one. It cannot while the process waits for a device in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
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
    ///
    /// # Errors
    /// When the process is still there after it was killed; its file is kept, so that it can be found again.
    pub(crate) fn end(&self, signal: Signal) -> Result<()> {
        if let Some(pid) = self.pid() {
            send(pid, signal)?;
            if !ends_within(STOP_TIMEOUT, || self.is_running(pid)) {
                send(pid, Signal::SIGKILL)?;
                ensure!(
                    ends_within(KILL_TIMEOUT, || self.is_running(pid)),
                    "process {pid} (`{}`) still runs {} s after SIGKILL: see /proc/{pid}/stack",
                    self.file.display(),
                    KILL_TIMEOUT.as_secs()
                );
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

/// Waits until a process no longer runs, at most for `limit`. Its end sends an event only to its parent.
pub(crate) fn ends_within(limit: Duration, mut runs: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while runs() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    true
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
    fn does_not_wait_for_ever_for_what_does_not_end() {
        let begin = Instant::now();
        assert!(!ends_within(Duration::from_millis(100), || true));
        assert!(begin.elapsed() >= Duration::from_millis(100));
        let mut looks = 0;
        assert!(ends_within(Duration::from_secs(60), || {
            looks += 1;
            looks < 3
        }));
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn insists_when_a_process_ignores_the_signal() {
        let dir = std::env::temp_dir().join(format!("netns-stubborn-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let process = Process::at(dir.join("pid"));
        let mut command = Command::new("sleep");
        command.arg("600");
        process.start(command, &dir.join("log")).unwrap();
        // A stopped process takes SIGTERM only when it runs on.
        let pid = process.pid().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        process.end(Signal::SIGTERM).unwrap();
        assert_eq!(process.pid(), None);
        fs::remove_dir_all(&dir).unwrap();
    }

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
