// SPDX-License-Identifier: Apache-2.0
//! `logs`: the journal of a VM, or what its console printed.

use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use cluster_harness::client::Client;
use cluster_harness::console::plain;
use cluster_harness::state::ClusterDir;

/// Journal of VM N
#[derive(Args)]
pub(crate) struct Logs {
    /// Number of the VM
    vm: u32,
    /// Follow
    #[arg(short, long)]
    follow: bool,
    /// The serial console instead of the journal; works while the VM is off, too
    #[arg(long)]
    serial: bool,
    /// More arguments for journalctl, like `-u cluster-agent`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    journalctl: Vec<String>,
}

pub(crate) fn run(dir: &ClusterDir, verb: &Logs) -> Result<ExitCode> {
    if verb.serial { serial(dir, verb) } else { journal(&Client::connect(dir)?, verb) }
}

fn journal(client: &Client, verb: &Logs) -> Result<ExitCode> {
    let vm = client.vm(verb.vm);
    let more: Vec<&str> = verb.journalctl.iter().map(String::as_str).collect();
    let base = [&["journalctl", "--no-pager", "--quiet"][..], &more].concat();
    if !verb.follow {
        let output = vm.exec(&base, None, None)?;
        std::io::stdout().write_all(&output.stdout)?;
        std::io::stderr().write_all(&output.stderr)?;
        return Ok(ExitCode::from(output.status as u8));
    }
    // The guest agent has no streams: each look continues at the cursor where the last one ended.
    let mut since = vec!["--lines=20".to_owned()];
    loop {
        let mut arguments = [&base[..], &["--show-cursor"]].concat();
        arguments.extend(since.iter().map(String::as_str));
        let text = vm.exec(&arguments, None, None)?.text();
        let (lines, cursor) = text.rsplit_once("-- cursor: ").unwrap_or((&text, ""));
        print!("{lines}");
        std::io::stdout().flush()?;
        if !cursor.trim().is_empty() {
            since = vec![format!("--after-cursor={}", cursor.trim())];
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn serial(dir: &ClusterDir, verb: &Logs) -> Result<ExitCode> {
    let path = dir.vm(verb.vm).serial();
    let mut file = File::open(&path)
        .with_context(|| format!("VM {} has printed nothing yet (`{}`)", verb.vm, path.display()))?;
    loop {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        print!("{}", plain(&bytes));
        std::io::stdout().flush()?;
        if !verb.follow {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
