// SPDX-License-Identifier: Apache-2.0
//! Stories on a world: checks that are counted, and a world that is gone afterwards whatever happened.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{Node, World, forbid_starts};

/// First handshake of a tunnel and back.
const PING_LIMIT: Duration = Duration::from_secs(15);

/// Counts and prints.
#[derive(Debug, Default)]
pub struct Report {
    passed: usize,
    failed: usize,
}

impl Report {
    /// One check of the story. A failed one does not end it.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        let began = Instant::now();
        let outcome = check();
        let seconds = began.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("pass  {name} ({seconds:.1} s)");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAIL  {name} ({seconds:.1} s): {error:#}");
            }
        }
    }

    /// Prints the counts; a failure is one of the program.
    #[must_use]
    pub fn finish(&self) -> ExitCode {
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Tells a story in a fresh world of that name. The world ends with it, by a signal too; its logs are kept when a check failed.
///
/// # Errors
/// When the world cannot be made or ended, or the story itself gives up.
pub fn tell(
    name: &str,
    report: Report,
    story: impl FnOnce(&World, &mut Report) -> Result<()> + Send + 'static,
) -> Result<Report> {
    let world = World::named(&format!("{name}-{}", std::process::id()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let failed_before = report.failed;
    let outcome = runtime.block_on(async {
        let story = {
            let world = world.clone();
            tokio::task::spawn_blocking(move || {
                let mut report = report;
                world.create()?;
                story(&world, &mut report)?;
                Ok(report)
            })
        };
        tokio::select! {
            outcome = story => outcome.context("the story panicked")?,
            signal = tokio::signal::ctrl_c() => {
                signal?;
                forbid_starts();
                world.down()?;
                eprintln!("interrupted; nothing is left running");
                std::process::exit(130);
            }
        }
    });
    world.down()?;
    if outcome.as_ref().is_ok_and(|report| report.failed == failed_before) {
        std::fs::remove_dir_all(world.dir())?;
    } else {
        eprintln!("logs of all nodes: {}", world.dir().display());
    }
    outcome
}

/// Each of these nodes reaches all others of them through the mesh.
///
/// # Errors
/// Names the first pair that does not.
pub fn ping_each_other(nodes: &[Node]) -> Result<()> {
    for from in nodes {
        for to in nodes.iter().filter(|to| to.number != from.number) {
            let address = to.address()?;
            let deadline = Instant::now() + PING_LIMIT;
            // The first packet of a tunnel waits for its handshake, which a restarted peer may answer only when asked
            // again.
            while !from.output(&["ping", "-6", "-n", "-c", "1", "-W", "2", &address])?.status.success() {
                ensure!(
                    Instant::now() < deadline,
                    "node {} does not reach node {} at {address}; their tunnels:\n{}{}",
                    from.number,
                    to.number,
                    tunnels(from)?,
                    tunnels(to)?
                );
            }
        }
    }
    Ok(())
}

/// As WireGuard sees them: where each goes, when it last shook hands, what passed.
fn tunnels(node: &Node) -> Result<String> {
    let shown = node.output(&["wg", "show"])?;
    let shown = [shown.stdout, shown.stderr].concat();
    Ok(format!("node {}: {}", node.number, String::from_utf8_lossy(&shown)))
}

/// No agent of these nodes logged an error.
///
/// # Errors
/// With the lines of the first that did.
pub fn no_errors(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        let log = std::fs::read_to_string(node.agent_log())?;
        let errors: Vec<&str> =
            log.lines().filter(|line| line.contains(" ERROR ") || line.contains("panicked")).collect();
        ensure!(errors.is_empty(), "node {}: {errors:#?}", node.number);
    }
    Ok(())
}
