// SPDX-License-Identifier: Apache-2.0
//! `capture`: a pcap of everything on the switch.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use cluster_harness::client::Client;
use cluster_harness::pcap;
use cluster_harness::protocol::Request;

use crate::terminal::{Progress, catch_interrupts, interrupted};

/// Record every frame on the switch, dropped ones too, as pcap
#[derive(Args)]
pub(crate) struct Capture {
    /// File to write
    file: PathBuf,
    /// Seconds (default: until Ctrl-C)
    seconds: Option<u64>,
}

pub(crate) fn run(client: &Client, verb: &Capture) -> Result<()> {
    catch_interrupts()?;
    let path = std::path::absolute(&verb.file)?;
    client.request(&Request::StartCapture { path: path.clone() })?;
    let until = verb.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut progress = Progress::new();
    let what = if until.is_some() { "recording" } else { "recording until Ctrl-C" };
    while !interrupted() && until.is_none_or(|until| Instant::now() < until) {
        progress.show(what);
        std::thread::sleep(Duration::from_millis(100));
    }
    progress.end();
    client.request(&Request::StopCapture)?;
    println!("{} frames in {}", pcap::frames(&std::fs::read(&path)?).len(), path.display());
    Ok(())
}
