// SPDX-License-Identifier: Apache-2.0
//! `just bench update`: what it costs a node to get from one release to the next: with the updater's own code, and with others'
//! programs for the same two releases. Root image and UKI count for each; the hash tree, signatures and boot loader for ours,
//! which alone has them.
//!
//! Every receiver is a process of its own: CPU time and peak memory are what the kernel says of it and its children. Everything
//! comes over HTTP on loopback, and the bytes that the server sends are counted, heads included; a patch of zstd counts with
//! the size of its file.

mod measure;
mod node;
mod tools;
mod web;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use cluster_updater::{folder::Folder, release::OpenRelease};
use cluster_updater_core::TrustedRoot;

use measure::Cost;

const MIB: f64 = (1 << 20) as f64;

/// A release in a folder. Who signed it is taken from the folder itself: this is no node.
struct Release {
    dir: PathBuf,
    trusted: TrustedRoot,
    open: OpenRelease,
}

impl Release {
    fn open(dir: &Path) -> Result<Self> {
        let what = || format!("failed to open the release in `{}`", dir.display());
        let trusted = Folder::open(dir).and_then(|folder| folder.anchor()).with_context(what)?;
        let open = OpenRelease::open(Folder::open(dir)?, trusted.clone()).with_context(what)?;
        Ok(Self { dir: dir.to_owned(), trusted, open })
    }

    fn root(&self) -> PathBuf {
        self.dir.join(self.open.manifest.files().root)
    }

    fn uki(&self) -> PathBuf {
        self.dir.join(self.open.manifest.files().uki)
    }
}

/// From one release to the next.
struct Pair {
    old: Release,
    new: Release,
}

impl Pair {
    /// Root image and UKI: the old file and the new one.
    fn files(&self) -> [(PathBuf, PathBuf); 2] {
        [(self.old.root(), self.new.root()), (self.old.uki(), self.new.uki())]
    }
}

/// A line of the table.
struct Row {
    name: String,
    moved: u64,
    /// Of receiving.
    cost: Cost,
    /// Of preparing what is sent, where something is prepared for it.
    made: Option<Cost>,
    /// What was moved, where that is known in parts.
    kinds: Vec<(&'static str, u64)>,
}

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ended = match words.as_slice() {
        ["measure", command @ ..] => measure::run(command),
        ["node", words @ ..] => node::receive(words),
        ["download", from, to] => web::download(from, Path::new(to)),
        pairs if !pairs.is_empty() && pairs.len().is_multiple_of(3) => pairs.chunks(3).try_for_each(bench),
        _ => {
            eprintln!("usage: just bench update [OLD NEW]: folders of two releases");
            return ExitCode::from(2);
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench update: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// All of them with one pair: its name, the folder before and the folder after.
fn bench(words: &[&str]) -> Result<()> {
    let [name, old, new] = words else { bail!("a pair is a name and two folders") };
    let pair = Pair { old: Release::open(Path::new(old))?, new: Release::open(Path::new(new))? };
    for (which, release) in [("from", &pair.old), ("to", &pair.new)] {
        let manifest = &release.open.manifest;
        println!(
            "{name}: {which} {} (root {:.1} MiB, UKI {:.1} MiB)",
            manifest.version,
            manifest.root.data_bytes as f64 / MIB,
            manifest.uki.bytes as f64 / MIB
        );
    }
    // In the toolbox this is the cache's disk, not memory.
    let work = tempfile::tempdir_in("/var/tmp").context("failed to make a folder in `/var/tmp`")?;
    let mut rows = Vec::new();
    for (what, run) in contestants() {
        eprintln!("bench update: {name}: {what}");
        let dir = work.path().join(rows.len().to_string());
        std::fs::create_dir(&dir)?;
        let row = run(&pair, &dir).with_context(|| format!("{name}: {what}"))?;
        rows.push(Row { name: what.to_owned(), ..row });
        std::fs::remove_dir_all(&dir)?;
    }
    print(&rows);
    Ok(())
}

type Contestant = fn(&Pair, &Path) -> Result<Row>;

fn contestants() -> [(&'static str, Contestant); 7] {
    [
        (OURS, node::bench),
        ("casync, 64 KiB", |pair, dir| tools::casync(pair, dir, 64)),
        ("casync, 16 KiB", |pair, dir| tools::casync(pair, dir, 16)),
        ("bita, 64 KiB", |pair, dir| tools::bita(pair, dir, 64)),
        ("bita, 16 KiB", |pair, dir| tools::bita(pair, dir, 16)),
        ("zstd --patch-from", tools::zstd),
        ("whole image", tools::whole),
    ]
}

const OURS: &str = "ours";

fn print(rows: &[Row]) {
    println!(
        "{:<18} {:>10} {:>7} {:>9} {:>8}   {:>10} {:>9}",
        "", "moved KiB", "CPU s", "peak MiB", "time s", "made CPU s", "peak MiB"
    );
    for row in rows {
        let peak = |cost: &Cost| format!("{:.1}", cost.peak as f64 / MIB);
        let made = row.made.as_ref().map_or_else(
            || format!("{:>10} {:>9}", "-", "-"),
            |made| format!("{:>10.2} {:>9}", made.cpu, peak(made)),
        );
        println!(
            "{:<18} {:>10} {:>7.2} {:>9} {:>8.2}   {made}",
            row.name,
            row.moved.div_ceil(1024),
            row.cost.cpu,
            peak(&row.cost),
            row.cost.seconds
        );
    }
    let ours = rows.iter().find(|row| row.name == OURS);
    if let Some(ours) = ours {
        let kinds = ours.kinds.iter().map(|(what, bytes)| format!("{what} {:.1}", *bytes as f64 / 1024.0));
        println!("ours in KiB: {}", kinds.collect::<Vec<_>>().join(", "));
    }
    let peers = rows.iter().filter(|row| row.name.starts_with("casync") || row.name.starts_with("bita"));
    if let (Some(ours), Some(best)) = (ours, peers.min_by_key(|row| row.moved)) {
        println!(
            "bytes: {:.2} of the best of casync and bita ({}), goal 0.50; peak memory {:.1} MiB, goal 61.0 (64 MB)\n",
            ours.moved as f64 / best.moved.max(1) as f64,
            best.name,
            ours.cost.peak as f64 / MIB
        );
    }
}
