// SPDX-License-Identifier: Apache-2.0
//! `cluster-update install`

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::unistd::geteuid;
use serde_json::json;
use zbus::connection::Builder;

use super::{
    Code, Failure,
    client::{Line, percent, seconds_left},
    show::{out, size},
};
use crate::{
    host::Host,
    install::{
        self, Phase, Plan, Progress,
        disks::{self, Found},
    },
    logind,
    paths::Paths,
};

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
#[command(after_help = "Example, on a node that runs from a stick:\n  \
    cluster-update install --list\n  \
    cluster-update install --disk /dev/nvme0n1 --dry-run\n  \
    cluster-update install --disk /dev/nvme0n1\n  \
    poweroff\n\n\
    With --json each line is an object: {\"phase\", \"done\", \"total\"} while it works, {\"installed\": true, …} at the end.\n\
    Phases: wiping, root, checking-root, boot, var, changes, checking-var, table.\n\n\
    Does not move: the release in the other slot, /var/cache, /var/tmp.")]
pub(crate) struct Arguments {
    /// The whole disk: /dev/nvme0n1, or a link in /dev/disk/by-id.
    #[arg(long, value_name = "DISK", required_unless_present = "list")]
    disk: Option<PathBuf>,
    /// Overwrite a disk that is not empty.
    #[arg(long)]
    erase: bool,
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
    /// Check everything, show what would be done, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// List the disks of this machine, and what is on them.
    #[arg(long, conflicts_with_all = ["disk", "erase", "yes", "dry_run"])]
    list: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    if !geteuid().is_root() {
        return Err(Failure::new(Code::Denied, "only root may do this: log in as root, or use sudo"));
    }
    let (host, paths) = (Host::look()?, Paths::default());
    let Some(disk) = arguments.disk.as_deref().filter(|_| !arguments.list) else {
        return list(&disks::list(&host.disk)?, arguments.json);
    };
    let _alone = install::alone(&paths)?;
    // Now that the updater schedules none any more.
    let bus = logind::connect(Builder::system()).await?;
    logind::nothing_is_scheduled(&bus).await?;
    let plan = Plan::new(host, paths, disk, arguments.erase)?;
    if arguments.json {
        out(&format!("{}\n", plan_json(&plan)))?;
    } else {
        out(&text(&plan))?;
    }
    if arguments.dry_run {
        return Ok(());
    }
    if !arguments.yes {
        confirm(&plan)?;
    }
    let mut shown = Shown::new(arguments.json);
    let moved = plan.carry_out(&mut |progress| shown.show(progress));
    shown.line.end();
    moved?;
    let target = &plan.disk.target;
    if arguments.json {
        return out(&format!(
            "{}\n",
            json!({ "installed": true, "disk": target.path, "version": plan.version })
        ));
    }
    out(&format!(
        "this node has moved to {target}, and its agent is stopped here.\n\
         Now: `poweroff`, remove the disk that it ran from, and switch on. That disk does not start the node any more.\n"
    ))
}

fn list(disks: &[Found], json: bool) -> Result<(), Failure> {
    if json {
        let disks: Vec<_> = disks.iter().map(disk_json).collect();
        return out(&format!("{}\n", serde_json::to_string_pretty(&disks)?));
    }
    let mut text = format!("{:<14} {:>10}  {:<24} HOLDS\n", "DISK", "SIZE", "MODEL");
    for Found { target, .. } in disks {
        let mut holds = Vec::new();
        if target.is_running {
            holds.push("this node runs from it".to_owned());
        } else {
            holds.extend(target.contents.iter().chain(&target.used).cloned());
        }
        if target.read_only {
            holds.push("read-only".to_owned());
        }
        let holds = if holds.is_empty() { "nothing".to_owned() } else { holds.join("; ") };
        let _ =
            writeln!(text, "{:<14} {:>10}  {:<24} {holds}", target.path, size(target.bytes), target.model);
    }
    out(&text)
}

fn disk_json(disk: &Found) -> serde_json::Value {
    let target = &disk.target;
    json!({
        "path": target.path,
        "model": target.model,
        "serial": target.serial,
        "bytes": target.bytes,
        "sector": target.sector,
        "read_only": target.read_only,
        "running": target.is_running,
        "used": target.used,
        "contents": target.contents,
    })
}

fn plan_json(plan: &Plan) -> serde_json::Value {
    let partitions: Vec<_> = plan
        .layout
        .table
        .partitions()
        .into_iter()
        .map(|partition| json!({ "number": partition.number, "name": partition.name, "bytes": partition.bytes }))
        .collect();
    json!({
        "plan": {
            "disk": disk_json(&plan.disk),
            "version": plan.version,
            "slot": plan.slot,
            "left_behind": plan.left_behind,
            "var_bytes": plan.used,
            "partitions": partitions,
        }
    })
}

fn text(plan: &Plan) -> String {
    let target = &plan.disk.target;
    let mut text = format!("install this node to {target}, {}\n", size(target.bytes));
    let mut line = |key: &str, value: &str| {
        let _ = writeln!(text, "  {key:<10} {value}");
    };
    let holds = if target.contents.is_empty() { "nothing".to_owned() } else { target.contents.join("; ") };
    line("erases", &holds);
    line("version", &format!("{}, in slot {}", plan.version, plan.slot));
    line("/var", &format!("{} of {}", size(plan.used), size(plan.layout.var.bytes)));
    if let Some(version) = &plan.left_behind {
        line(
            "stays",
            &format!("{version} in the other slot: there is no version to go back to before the next update"),
        );
    }
    text
}

fn confirm(plan: &Plan) -> Result<(), Failure> {
    let target = &plan.disk.target;
    let word = if target.serial.is_empty() { &target.path } else { &target.serial };
    if !io::stdin().is_terminal() {
        return Err(Failure::new(
            Code::Usage,
            "nobody can be asked here: `--yes` does it without a question; nothing was written",
        ));
    }
    let kind = if target.serial.is_empty() { "name" } else { "serial number" };
    eprint!(
        "All of {} is written over, and this node moves there. Type its {kind} ({word}) to go on: ",
        target.path
    );
    let _ = io::stderr().flush();
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(anyhow::Error::from)?;
    if answer.trim() != word {
        return Err(Failure::new(Code::Failed, "not confirmed; nothing was written"));
    }
    Ok(())
}

/// How far it is: a JSON object a line, or for people.
struct Shown {
    json: bool,
    line: Line,
    phase: Option<(Phase, Instant)>,
    last: Option<Instant>,
}

impl Shown {
    fn new(json: bool) -> Self {
        Self { json, line: Line::default(), phase: None, last: None }
    }

    fn show(&mut self, now: Progress) {
        let is_new = self.phase.is_none_or(|(phase, _)| phase != now.phase);
        if is_new {
            self.phase = Some((now.phase, Instant::now()));
        }
        let is_due = self.last.is_none_or(|last| last.elapsed() >= TICK);
        if !is_new && !is_due && now.done < now.total {
            return;
        }
        self.last = Some(Instant::now());
        if self.json {
            let _ = out(&format!("{}\n", json!(now)));
            return;
        }
        let whole = self.whole(now);
        self.line.print(whole, tenths(now));
    }

    fn whole(&self, now: Progress) -> String {
        let mut text = what(now.phase).to_owned();
        if now.total > 0 {
            let _ = write!(
                text,
                ": {} of {} ({} %)",
                size(now.done),
                size(now.total),
                percent(now.done, now.total)
            );
            let seconds = self.phase.map_or(0, |(_, since)| since.elapsed().as_secs());
            if let Some(left) = seconds_left(now.done, now.total, seconds) {
                let _ = write!(text, ", {left} s left");
            }
        }
        text
    }
}

fn tenths(now: Progress) -> String {
    match now.total {
        0 => what(now.phase).to_owned(),
        total => format!("{}: {} %", what(now.phase), percent(now.done, total) / 10 * 10),
    }
}

fn what(phase: Phase) -> &'static str {
    match phase {
        Phase::Wiping => "writing over what was there",
        Phase::Root => "copying the root image",
        Phase::CheckingRoot => "reading it back",
        Phase::Boot => "making file systems and copying boot files",
        Phase::Var => "copying /var",
        Phase::Changes => "stopping the agent and copying what changed",
        Phase::CheckingVar => "reading /var back",
        Phase::Table => "writing the partition table",
    }
}
