// SPDX-License-Identifier: Apache-2.0
//! The power fails at every point of an update, and what boots is a whole version: one VM stages a release, cancels that,
//! is updated, rolled back and stages again while each of its writes is recorded; then the record is cut, some hundred times on paper and a dozen times for real.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use cluster_e2e::{World, note, rebase};
use cluster_harness::client::Vm;
use cluster_harness::cluster::Provisioning;
use cluster_harness::cuts::{Cut, Judge, Lost, Replay, Whole, WriteLog, boot_regions, cuts};
use cluster_harness::image::run;
use cluster_harness::state::Shape;
use serde_json::{Value, json};

use crate::stick::{Stick, version_of};
use crate::update::{import, is_good, long, ready, restart, status};

/// Random cuts, beside those around each write to what boots.
const RANDOM: usize = 200;
/// Cuts that are booted.
const BOOTS: usize = 14;
/// So many of these have a torn partition table.
const TORN: usize = 5;
/// Names the folder of a recording, which is then taken as it is: `build/campaign/powercut/recording`.
const AGAIN: &str = "CLUSTER_OS_CUTS";
/// Decides which cuts are random, and how.
const SEED: &str = "CLUSTER_OS_CUT_SEED";

pub(crate) fn every_cut_leaves_a_whole_version(world: &mut World) -> Result<()> {
    let recording = Recording::of(world)?;
    let mut judge = judge(world)?;
    let (base, log) = recording.open()?;
    let mut replay = Replay::new(&base, recording.bytes, &log)?;
    let cuts = recording.cuts(&log)?;
    let mut bad = Vec::new();
    let mut counts: BTreeMap<(usize, &str), BTreeMap<String, usize>> = BTreeMap::new();
    for cut in &cuts {
        match judge.boots(&replay.state(cut)) {
            Ok(choice) => {
                let during = recording.marks.iter().rposition(|(_, at)| *at < cut.after).unwrap_or_default();
                let chosen = format!("{} ({:?} table)", choice.version, choice.table);
                *counts.entry((during, kind(cut))).or_default().entry(chosen).or_default() += 1;
            }
            Err(error) => bad.push(format!("{cut}: {error:#}")),
        }
    }
    for ((during, kind), chosen) in counts {
        let chosen: Vec<String> = chosen.iter().map(|(what, count)| format!("{count} × {what}")).collect();
        note(&format!("{}, {kind}: {}", recording.marks[during].0, chosen.join(", ")));
    }
    note(&format!("{} cuts boot a whole version, {} do not", cuts.len() - bad.len(), bad.len()));
    ensure!(bad.is_empty(), "{} cuts boot nothing whole:\n{}", bad.len(), bad.join("\n"));
    ensure!(cuts.len() >= 200, "only {} cuts", cuts.len());
    Ok(())
}

pub(crate) fn cut_disks_boot(world: &mut World) -> Result<()> {
    let recording = Recording::of(world)?;
    let mut judge = judge(world)?;
    let (base, log) = recording.open()?;
    let disk = recording.folder.join("cut.raw");
    let chosen = few(&recording.cuts(&log)?);
    ensure!(chosen.len() >= 12, "only {} cuts", chosen.len());
    let mut replay = Replay::new(&base, recording.bytes, &log)?;
    for cut in &chosen {
        let medium = replay.state(cut);
        let choice = judge.boots(&medium).with_context(|| format!("{cut}"))?;
        medium.save(&recording.base(), &disk)?;
        let node = world.machine(&Provisioning::None, Shape::default())?;
        rebase(node, &disk)?;
        let vm = node.vm();
        vm.start()?;
        ready(node).with_context(|| format!("{cut}"))?;
        let now = status(vm)?;
        ensure!(
            now["version"] == choice.version.to_string(),
            "{cut}: {choice:?} should boot, and {now} does"
        );
        note(&format!("{cut}: {} is a member ({:?} table)", choice.version, choice.table));
        fs::remove_file(&disk)?;
    }
    note(&format!("{} cut disks booted what was foretold", chosen.len()));
    Ok(())
}

/// Knows the two versions.
fn judge(world: &World) -> Result<Judge> {
    let (running, loader) = Whole::of_image(world.image())?;
    let (next, _) = Whole::of_image(&world.other_image()?)?;
    Ok(Judge::new(vec![running, next], loader))
}

/// A dozen of the cuts, in their order: torn writes, most of them of partition tables, and losses.
fn few(cuts: &[Cut]) -> Vec<Cut> {
    let spread = |of: Vec<Cut>, count: usize| -> Vec<Cut> {
        let last = of.len().saturating_sub(1);
        (0..count.min(of.len())).map(|index| of[index * last / (count - 1)]).collect()
    };
    let is_torn = |cut: &Cut| matches!(cut.lost, Lost::Tail(_) | Lost::Head(_));
    let (torn, others): (Vec<_>, Vec<_>) = cuts.iter().copied().partition(is_torn);
    let random = others.into_iter().filter(|cut| cut.lost != Lost::Nothing).collect();
    let mut few = [spread(torn, TORN), spread(random, BOOTS - TORN)].concat();
    few.sort_by_key(|cut| cut.after);
    few
}

/// An update of one VM, write by write.
struct Recording {
    folder: PathBuf,
    /// Of the disk.
    bytes: u64,
    /// Numbers of writes at which something began, with its name.
    marks: Vec<(String, usize)>,
}

impl Recording {
    /// This process's, which is made once, or the one that [`AGAIN`] names.
    fn of(world: &mut World) -> Result<Self> {
        static MADE: OnceLock<PathBuf> = OnceLock::new();
        let again = std::env::var_os(AGAIN).map(PathBuf::from);
        if let Some(folder) = again.or_else(|| MADE.get().cloned()) {
            return Self::load(folder);
        }
        let folder = world.logs().join("recording");
        let recording = Self::make(world, folder.clone())?;
        MADE.get_or_init(|| folder);
        Ok(recording)
    }

    fn make(world: &mut World, folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
        let release = world.other_release()?;
        let (stick, next) = (Stick::new(&release)?, version_of(&release)?);
        let node = stick.machine_of(world, Shape { log_writes: true, ..Shape::default() })?;
        let vm = node.vm();
        let files = node.dir().vm(1);
        let mut marks = Vec::new();
        let mut mark = |name: &str| -> Result<()> {
            let at = WriteLog::open(&files.writes())?.writes().len();
            marks.push((name.to_owned(), at));
            Ok(())
        };
        vm.start()?;
        ready(node)?;
        let version = status(vm)?["version"].as_str().context("a status without a version")?.to_owned();
        import(vm)?;
        settle(vm)?;
        mark("stage")?;
        stage(vm, &next)?;
        mark("cancel")?;
        let said = vm.sh("cluster-update rollback")?;
        ensure!(status(vm)?["other"]["state"] != "staged", "a cancelled release is staged: {said}");
        mark("stage what was cancelled")?;
        stage(vm, &next)?;
        mark("switch")?;
        restart(node)?;
        is_good(node, &next, "b")?;
        settle(vm)?;
        mark("rollback")?;
        vm.sh("cluster-update rollback")?;
        restart(node)?;
        is_good(node, &version, "a")?;
        import(vm)?;
        settle(vm)?;
        mark("stage what was given up")?;
        stage(vm, &next)?;
        settle(vm)?;
        mark("end")?;
        vm.kill()?;
        let spec = node.spec()?.vms.remove(&1).context("there is no VM 1")?;
        copy(&spec.base, &folder.join("before.raw"))?;
        copy(&files.writes(), &folder.join("writes.log"))?;
        let bytes = spec.shape.disk_bytes;
        fs::write(folder.join("marks.json"), serde_json::to_vec(&json!({"bytes": bytes, "marks": marks}))?)?;
        Ok(Self { folder, bytes, marks })
    }

    fn load(folder: PathBuf) -> Result<Self> {
        let path = folder.join("marks.json");
        let text = fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
        let mut value: Value = serde_json::from_slice(&text)?;
        let bytes = value["bytes"].as_u64().context("no size")?;
        Ok(Self { folder, bytes, marks: serde_json::from_value(value["marks"].take())? })
    }

    /// All that is tried.
    fn cuts(&self, log: &WriteLog) -> Result<Vec<Cut>> {
        let base = File::open(self.base())?;
        let (_, from) = self.marks.first().context("no marks")?;
        let (_, to) = self.marks.last().context("no marks")?;
        let begin = Cut { after: *from, lost: Lost::Nothing };
        let regions = boot_regions(&Replay::new(&base, self.bytes, log)?.state(&begin))?;
        let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        let cuts = cuts(log, *from..*to, &regions, RANDOM, seed);
        note(&format!("{} cuts of {} writes and flushes; seed {seed}", cuts.len(), to - from));
        Ok(cuts)
    }

    /// The disk when the record began.
    fn base(&self) -> PathBuf {
        self.folder.join("before.raw")
    }

    fn open(&self) -> Result<(File, WriteLog)> {
        let base = self.base();
        let file = File::open(&base).with_context(|| format!("failed to open `{}`", base.display()))?;
        Ok((file, WriteLog::open(&self.folder.join("writes.log"))?))
    }
}

fn kind(cut: &Cut) -> &'static str {
    match cut.lost {
        Lost::Nothing => "complete up to a write",
        Lost::Tail(_) | Lost::Head(_) => "last write torn",
        Lost::AllButLast => "last write alone",
        Lost::Random(_) => "random losses",
    }
}

/// By name: what was rolled back is not taken otherwise.
fn stage(vm: Vm<'_>, version: &str) -> Result<()> {
    let staged = long(vm, &format!("cluster-update stage {version}"))?;
    ensure!(staged.status == 0, "stage: {}", staged.all());
    Ok(())
}

/// What was done before is on the disk.
fn settle(vm: Vm<'_>) -> Result<()> {
    vm.sh("sync").map(drop)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").args(["--reflink=auto", "--sparse=always", "--"]).arg(from).arg(to))
}
