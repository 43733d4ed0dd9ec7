// SPDX-License-Identifier: Apache-2.0
//! What a program costs. A process that has only this one child asks the kernel: what it says of children is the sum of their
//! CPU times and the largest of their peaks, of all that there were.

use std::{
    env,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};
use serde::{Deserialize, Serialize};

/// Of one program, or of several one after the other.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// User and system time, seconds.
    pub(crate) cpu: f64,
    /// Most memory that was resident at once, bytes.
    pub(crate) peak: u64,
    /// From begin to end, seconds.
    pub(crate) seconds: f64,
}

impl Cost {
    pub(crate) fn then(self, next: Self) -> Self {
        Self {
            cpu: self.cpu + next.cpu,
            peak: self.peak.max(next.peak),
            seconds: self.seconds + next.seconds,
        }
    }
}

/// Runs a program of the toolbox, or a verb of this one (`self`).
///
/// # Errors
/// When it fails.
pub(crate) fn measured(words: &[&str]) -> Result<Cost> {
    let own = env::current_exe().context("failed to find this program")?;
    let output = Command::new(&own)
        .arg("measure")
        .args(words)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("failed to run `{}`", words.join(" ")))?;
    ensure!(output.status.success(), "`{}` ended with {}", words.join(" "), output.status);
    serde_json::from_slice(&output.stdout).context("what was measured is not understood")
}

/// In the process between: runs the words and prints their cost.
///
/// # Errors
/// When they fail.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let (program, arguments) = words.split_first().context("nothing to measure")?;
    let own = env::current_exe()?;
    let mut command = if *program == "self" { Command::new(own) } else { Command::new(program) };
    let begun = Instant::now();
    let status = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("failed to start `{program}`"))?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(status.success(), "`{}` ended with {status}", words.join(" "));
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("the kernel does not say what it cost")?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    let peak = u64::try_from(usage.max_rss())? * 1024;
    println!("{}", serde_json::to_string(&Cost { cpu: micros as f64 / 1e6, peak, seconds })?);
    Ok(())
}
