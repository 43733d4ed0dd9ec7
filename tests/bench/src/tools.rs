// SPDX-License-Identifier: Apache-2.0
//! Others' programs. Each gets root image and UKI, one after the other, with the old ones as what is there already.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    Pair, Row,
    measure::{Cost, measured},
    web::{Web, same},
};

/// Attempts to have bita make an archive.
const TRIES: u32 = 20;

/// Chunks that the receiver lacks come one by one; they are compressed with zstd.
pub(crate) fn casync(pair: &Pair, dir: &Path, kib: u32) -> Result<Row> {
    let size = format!("--chunk-size={}", kib << 10);
    over_http(pair, dir, |step| match step {
        Step::Make { new, name } => {
            let (store, index) = (at(dir, "store.castr"), at(dir, &format!("{name}.caibx")));
            measured(&["casync", "make", &format!("--store={store}"), &size, &index, new])
        }
        Step::Receive { web, old, name, to } => {
            let (store, index) = (web.url("store.castr"), web.url(&format!("{name}.caibx")));
            measured(&[
                "casync",
                "extract",
                &format!("--store={store}"),
                &format!("--seed={old}"),
                &index,
                to,
            ])
        }
    })
}

/// One archive; what the receiver lacks of it comes by ranges. Compressed with zstd, and of chunks as small as casync's.
pub(crate) fn bita(pair: &Pair, dir: &Path, kib: u32) -> Result<Row> {
    let (size, least) = (format!("{kib}KiB"), format!("{}KiB", kib / 4));
    over_http(pair, dir, |step| match step {
        Step::Make { new, name } => {
            let archive = at(dir, &format!("{name}.cba"));
            let words = [
                "bita",
                "compress",
                "--force-create",
                "--avg-chunk-size",
                &size,
                "--min-chunk-size",
                &least,
                "--compression",
                "zstd",
                "--compression-level",
                "9",
                "--input",
                new,
                &archive,
            ];
            // Version 0.15.0 often ends before the last chunk is in the archive.
            for _ in 0..TRIES {
                let cost = measured(&words)?;
                if unpacks(&archive, &at(dir, "unpacked"))? {
                    return Ok(cost);
                }
            }
            bail!("bita made no whole archive in {TRIES} attempts")
        }
        Step::Receive { web, old, name, to } => {
            measured(&["bita", "clone", "--seed", old, &web.url(&format!("{name}.cba")), to])
        }
    })
}

fn unpacks(archive: &str, to: &str) -> Result<bool> {
    let mut clone = Command::new("bita");
    clone.args(["clone", "--force-create", archive, to]).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(clone.status().context("failed to start bita")?.success())
}

/// The bound that one cannot easily get below: needs to know what the receiver has.
pub(crate) fn zstd(pair: &Pair, dir: &Path) -> Result<Row> {
    let (mut moved, mut cost, mut made) = (0, Cost::default(), Cost::default());
    for (number, (old, new)) in pair.files().iter().enumerate() {
        let patch = at(dir, &format!("{number}.patch"));
        let to = at(dir, &format!("{number}.out"));
        let from = format!("--patch-from={}", old.display());
        let new = new.to_string_lossy();
        made = made.then(measured(&["zstd", "-q", "-19", "--long=31", &from, &new, "-o", &patch])?);
        cost = cost.then(measured(&["zstd", "-q", "-d", "--long=31", &from, &patch, "-o", &to])?);
        moved += fs::metadata(&patch)?.len();
        ensure!(same(Path::new(&to), Path::new(&*new))?, "zstd made another file of the patch");
    }
    Ok(Row { name: String::new(), moved, cost, made: Some(made), kinds: Vec::new() })
}

pub(crate) fn whole(pair: &Pair, dir: &Path) -> Result<Row> {
    let web = Web::of(&pair.new.dir)?;
    let mut cost = Cost::default();
    for (number, (_, new)) in pair.files().iter().enumerate() {
        let name = new.file_name().unwrap_or_default().to_string_lossy();
        let to = at(dir, &number.to_string());
        cost = cost.then(measured(&["self", "download", &web.url(&name), &to])?);
        ensure!(same(Path::new(&to), new)?, "another file came");
    }
    Ok(Row { name: String::new(), moved: web.sent(), cost, made: None, kinds: Vec::new() })
}

enum Step<'a> {
    Make { new: &'a str, name: &'a str },
    Receive { web: &'a Web, old: &'a str, name: &'a str, to: &'a str },
}

/// Makes what is served of each file in `dir`, then receives all of it from there.
fn over_http(pair: &Pair, dir: &Path, run: impl Fn(Step<'_>) -> Result<Cost>) -> Result<Row> {
    let files: [(PathBuf, PathBuf); 2] = pair.files();
    let (mut made, mut cost) = (Cost::default(), Cost::default());
    for (number, (_, new)) in files.iter().enumerate() {
        made = made.then(run(Step::Make { new: &new.to_string_lossy(), name: &number.to_string() })?);
    }
    let web = Web::of(dir)?;
    for (number, (old, new)) in files.iter().enumerate() {
        let to = at(dir, &format!("{number}.out"));
        let (old, name) = (old.to_string_lossy(), number.to_string());
        cost = cost.then(run(Step::Receive { web: &web, old: &old, name: &name, to: &to })?);
        ensure!(same(Path::new(&to), new)?, "`{}` came out as another file", new.display());
    }
    Ok(Row { name: String::new(), moved: web.sent(), cost, made: Some(made), kinds: Vec::new() })
}

fn at(dir: &Path, name: &str) -> String {
    dir.join(name).to_string_lossy().into_owned()
}
