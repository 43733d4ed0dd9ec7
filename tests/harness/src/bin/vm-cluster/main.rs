// SPDX-License-Identifier: Apache-2.0
//! `vm-cluster`: Cluster-OS clusters of VMs on this machine. One file per verb or family of verbs.

mod add;
mod capture;
mod clean;
mod copy;
mod faults;
mod info;
mod logs;
mod power;
mod shell;
mod snapshot;
mod status;
mod terminal;
mod up;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use cluster_harness::client::Client;
use cluster_harness::cluster;
use cluster_harness::state::ClusterDir;

/// Clusters of VMs on this machine, without root.
#[derive(Parser)]
#[command(
    name = "vm-cluster",
    disable_help_subcommand = true,
    after_help = "Start with:\n  \
        vm-cluster up --image build/image/cluster-os.raw      three VMs, one cluster\n  \
        vm-cluster shell 1                                    a shell in the first\n  \
        vm-cluster kill 2; vm-cluster shell 1 clusterctl nodes   see how the others notice\n  \
        vm-cluster clean                                      nothing is left\n\n\
        Exit status: 0 done, 1 failed, 2 wrong usage; `shell` has the command's."
)]
struct Arguments {
    /// Which cluster; several can run side by side
    #[arg(short, long, global = true, env = "CLUSTER", default_value = "default")]
    cluster: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Up(up::Up),
    Status(status::Status),
    Info(info::Info),
    Shell(shell::Shell),
    Cp(copy::Copy),
    Logs(logs::Logs),
    Start(power::Start),
    Stop(power::Stop),
    Kill(power::Kill),
    Add(add::Add),
    Link(faults::Link),
    Partition(faults::Partition),
    Heal(faults::Heal),
    Capture(capture::Capture),
    Snapshot(snapshot::Snapshot),
    Restore(snapshot::Restore),
    Clean(clean::Clean),
}

fn main() -> ExitCode {
    if let Some(code) = cluster::daemon_main() {
        return code;
    }
    end_quietly_when_nobody_reads();
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", terminal::commands(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

/// `vm-info | head` is no failure, though Rust's `println!` takes it for one.
fn end_quietly_when_nobody_reads() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str().is_some_and(|text| text.contains("Broken pipe")) {
            std::process::exit(0);
        }
        report(panic);
    }));
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let dir = ClusterDir::new(&arguments.cluster)?;
    let done = |()| ExitCode::SUCCESS;
    match arguments.verb {
        Verb::Up(verb) => up::run(&dir, &verb),
        Verb::Status(verb) => status::run(&dir, &verb).map(done),
        Verb::Info(verb) => info::run(&dir, &verb).map(done),
        Verb::Shell(verb) => shell::run(&Client::connect(&dir)?, &verb),
        Verb::Cp(verb) => copy::run(&Client::connect(&dir)?, &verb).map(done),
        Verb::Logs(verb) => logs::run(&dir, &verb),
        Verb::Start(verb) => power::start(&dir, &verb).map(done),
        Verb::Stop(verb) => power::stop(&dir, &verb).map(done),
        Verb::Kill(verb) => power::kill(&Client::connect(&dir)?, &verb).map(done),
        Verb::Add(verb) => add::run(&cluster::open(&dir)?, &verb).map(done),
        Verb::Link(verb) => faults::link(&Client::connect(&dir)?, &verb).map(done),
        Verb::Partition(verb) => faults::partition(&Client::connect(&dir)?, &verb).map(done),
        Verb::Heal(_) => faults::heal(&Client::connect(&dir)?).map(done),
        Verb::Capture(verb) => capture::run(&Client::connect(&dir)?, &verb).map(done),
        Verb::Snapshot(_) => snapshot::snapshot(&Client::connect(&dir)?).map(done),
        Verb::Restore(_) => snapshot::restore(&cluster::open(&dir)?).map(done),
        Verb::Clean(_) => clean::run(&dir).map(done),
    }
}
