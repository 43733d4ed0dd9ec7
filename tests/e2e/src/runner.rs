// SPDX-License-Identifier: Apache-2.0
//! Runs stories one after the other and says how they went.

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use cluster_harness::cluster::daemon_main;
use cluster_harness::pace::Pace;

use crate::{Story, TooSlow, World};

const USAGE: &str = "\
usage: cargo test --workspace --test vm -- [--ci] [--list] [--end-within SECONDS] [NAME…]
  NAME     only stories whose name contains it
  --ci     only the slice that CI runs
  --list   names only
  --end-within SECONDS
           leave out, by name, what would not end by then as slow as this machine is
needs CLUSTER_OS_IMAGE (the raw image); failures are collected in $CLUSTER_OS_LOGS or build/test-logs";

struct Wanted {
    names: Vec<String>,
    ci: bool,
    list: bool,
    end_within: Duration,
}

/// The `main` of a test program.
pub fn main(stories: &[Story]) -> ExitCode {
    if let Some(code) = daemon_main() {
        return code;
    }
    if env::args().skip(1).any(|argument| matches!(argument.as_str(), "--help" | "-h")) {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let Some(wanted) = Wanted::from(env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let chosen: Vec<&Story> = stories.iter().filter(|story| wanted.includes(story)).collect();
    if wanted.list {
        chosen
            .iter()
            .for_each(|story| println!("{}{}", story.name, if story.ci.is_some() { "  (ci)" } else { "" }));
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        let names: Vec<_> = stories.iter().map(|story| story.name).collect();
        eprintln!("no story is called `{}`; there are: {}", wanted.names.join(" "), names.join(", "));
        return ExitCode::from(2);
    }
    match run(&chosen, wanted.end_within) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Wanted {
    /// What the command line asks for, or nothing if it is wrong.
    fn from(mut arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut wanted = Self { names: Vec::new(), ci: false, list: false, end_within: Duration::MAX };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--ci" => wanted.ci = true,
                "--list" => wanted.list = true,
                "--end-within" => wanted.end_within = Duration::from_secs(arguments.next()?.parse().ok()?),
                // What `cargo test` itself may pass on.
                "--nocapture" | "--quiet" => {}
                name if !name.starts_with('-') => wanted.names.push(argument),
                _ => return None,
            }
        }
        Some(wanted)
    }

    fn includes(&self, story: &Story) -> bool {
        let named = self.names.is_empty() || self.names.iter().any(|name| story.name.contains(name.as_str()));
        named && (story.ci.is_some() || !self.ci)
    }
}

/// How many stories failed. None begun at all is a failure, too.
fn run(stories: &[&Story], end_within: Duration) -> Result<usize> {
    let mut world = World::new(logs())?;
    let start = Instant::now();
    let mut failed = Vec::new();
    let mut left_out = Vec::new();
    let mut pace = Pace::new(end_within);
    for story in stories {
        let own = Duration::from_secs(story.ci.unwrap_or(0));
        let formed = world.is_formed();
        if !pace.allows(start.elapsed(), own, formed) {
            left_out.push(format!("{} (no time)", story.name));
            continue;
        }
        println!("story {}", story.name);
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (story.run)(&mut world)));
        let outcome = outcome.unwrap_or_else(|panic| Err(anyhow!("panicked: {}", message(&panic))));
        let took = start.elapsed();
        let told = !matches!(&outcome, Err(error) if error.is::<TooSlow>());
        let alone = outcome.is_ok() && !world.is_formed();
        if told && story.ci.is_some() {
            pace.took(took, own, !formed && !alone);
        }
        let took = took.as_secs_f64();
        match outcome {
            Ok(()) => println!("story {} ... ok ({took:.1} s)\n", story.name),
            Err(error) if !told => {
                println!("story {} ... left out ({took:.1} s): {error}\n", story.name);
                left_out.push(format!("{} (too slow)", story.name));
            }
            Err(error) => {
                println!("story {} ... FAILED ({took:.1} s): {error:#}", story.name);
                println!("{}", world.collect(story.name));
                failed.push(format!("{}: {error:#}", story.name));
            }
        }
        world.end_story();
    }
    let passed = stories.len() - failed.len() - left_out.len();
    println!("{passed} passed, {} failed, in {:.0} s", failed.len(), start.elapsed().as_secs_f64());
    // Once more where whoever sees only the end of this looks.
    for story in &failed {
        println!("failed: {story}");
    }
    if !left_out.is_empty() {
        println!("left out on this machine: {}", left_out.join(", "));
    }
    ensure!(left_out.len() < stories.len(), "this machine is too slow for any of these stories");
    Ok(failed.len())
}

fn logs() -> PathBuf {
    match env::var_os("CLUSTER_OS_LOGS").filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        // Tests run in their package's folder.
        None => PathBuf::from("../../build/test-logs"),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}
