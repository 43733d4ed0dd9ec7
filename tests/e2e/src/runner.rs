// SPDX-License-Identifier: Apache-2.0
//! Runs stories one after the other, in the world that they share.

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use clap::Parser;
use cluster_harness::cluster::daemon_main;
use cluster_harness::pace::Pace;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::{Story, TooSlow, World, note};

/// Stories on the image that CLUSTER_OS_IMAGE names. What fails is collected in $CLUSTER_OS_LOGS or build/test-logs.
#[derive(Parser)]
#[command(bin_name = "cargo test --workspace --test vm --")]
struct Wanted {
    /// Only the slice that CI runs
    #[arg(long)]
    ci: bool,
    /// Leave out, by name, what would not end by then as slow as this machine is
    #[arg(long, value_name = "SECONDS")]
    end_within: Option<u64>,
    #[command(flatten)]
    usual: Arguments,
    /// More of them
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

impl Wanted {
    fn includes(&self, story: &Story) -> bool {
        let mut filters = self.usual.filter.iter().chain(&self.filters).peekable();
        let named = filters.peek().is_none() || filters.any(|filter| story.name.contains(filter.as_str()));
        named && (story.ci.is_some() || !self.ci)
    }
}

/// The `main` of a test program.
pub fn main(stories: &'static [Story]) -> ExitCode {
    if let Some(code) = daemon_main() {
        return code;
    }
    let wanted = Wanted::parse();
    let chosen: Vec<&Story> = stories.iter().filter(|story| wanted.includes(story)).collect();
    if chosen.is_empty() {
        let names: Vec<_> = stories.iter().map(|story| story.name).collect();
        eprintln!("no story is called that; there are: {}", names.join(", "));
        return ExitCode::from(2);
    }
    if wanted.usual.list {
        let mark = |story: &Story| if story.ci.is_some() { "  (ci)" } else { "" };
        chosen.iter().for_each(|story| println!("{}{}", story.name, mark(story)));
        return ExitCode::SUCCESS;
    }
    let world = match World::new(logs()) {
        Ok(world) => world,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    // `cargo test --quiet` would hide which story it is that tells how it goes.
    let usual = Arguments { filter: None, quiet: false, test_threads: Some(1), ..wanted.usual };
    let stage = Arc::new(Mutex::new(Stage {
        began: Instant::now(),
        pace: Pace::new(wanted.end_within.map_or(Duration::MAX, Duration::from_secs)),
        world,
        left_out: Vec::new(),
    }));
    let trial = |story: &'static Story| {
        let stage = Arc::clone(&stage);
        let tell = move || stage.lock().unwrap_or_else(PoisonError::into_inner).tell(story);
        Trial::ignorable_test(story.name, tell)
    };
    let told = libtest_mimic::run(&usual, chosen.into_iter().map(trial).collect());
    let left_out = &stage.lock().unwrap_or_else(PoisonError::into_inner).left_out;
    if !left_out.is_empty() {
        println!("left out on this machine: {}", left_out.join(", "));
    }
    if told.num_passed + told.num_failed == 0 {
        eprintln!("error: no story was told on this machine");
        return ExitCode::FAILURE;
    }
    told.exit_code()
}

/// Where stories are told.
struct Stage {
    began: Instant,
    pace: Pace,
    world: World,
    left_out: Vec<String>,
}

impl Stage {
    fn tell(&mut self, story: &Story) -> Result<Completion, Failed> {
        // The runner's line ends in front of the story's own.
        println!();
        let world = &mut self.world;
        let own = Duration::from_secs(story.ci.unwrap_or(0));
        let formed = world.is_formed();
        if !self.pace.allows(self.began.elapsed(), own, formed) {
            self.left_out.push(format!("{} (no time)", story.name));
            return Ok(Completion::ignored_with("no time"));
        }
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| (story.run)(world)));
        let outcome = outcome.unwrap_or_else(|panic| Err(anyhow!("panicked: {}", message(&panic))));
        let took = began.elapsed();
        note(&format!("took {:.1} s", took.as_secs_f64()));
        let too_slow = outcome.as_ref().is_err_and(|error| error.is::<TooSlow>());
        let alone = outcome.is_ok() && !world.is_formed();
        if !too_slow && story.ci.is_some() {
            self.pace.took(took, own, !formed && !alone);
        }
        let completion = match outcome {
            Ok(()) => Ok(Completion::Completed),
            Err(error) if too_slow => {
                self.left_out.push(format!("{} (too slow)", story.name));
                Ok(Completion::ignored_with(error))
            }
            Err(error) => Err(format!("{error:#}\n{}", world.collect(story.name)).into()),
        };
        world.end_story();
        completion
    }
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
