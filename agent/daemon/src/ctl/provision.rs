// SPDX-License-Identifier: Apache-2.0
//! `clusterctl provision`

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cluster_agent_core::{Settings, gpt::TableError};

use super::{
    Code, Failure, join_key,
    show::{out, problem, size},
};
use crate::{
    media::{
        image::{Step, write as write_image},
        target::{Medium, Target},
    },
    paths::CLUSTER_TOML,
    provisioning,
};

/// 14.4 GiB, in whole MiB: the smallest disk that is sold as 16 GB. All texts name this size.
const SMALLEST: u64 = 14_745 << 20;
/// Lines of each side that a difference shows.
const SHOWN_LINES: usize = 20;
/// How often progress is shown.
const TICK: Duration = Duration::from_millis(500);

/// Writes cluster.toml to a stick, a disk, an image file, or a mounted CLUSTER-OS partition. Needs no agent; works on any
/// Linux PC.
///
/// The file is checked as a node would check it. A different cluster.toml on the target is replaced only with `--force`.
/// After writing, the file is flushed and read back. Nothing else on the target is touched, unless `--image` writes the
/// whole image first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    clusterctl provision /dev/sdX --config cluster.toml             a stick with Cluster-OS\n  \
    clusterctl provision cluster-os.raw --config cluster.toml       an image file\n  \
    clusterctl provision /media/me/CLUSTER-OS --config cluster.toml a mounted partition\n  \
    clusterctl provision /dev/sdX --new lab --ssh-key ~/.ssh/id_ed25519.pub\n      \
                                        a new cluster; ./cluster.toml is for its other sticks\n  \
    clusterctl provision /dev/sdX --image cluster-os.raw --config cluster.toml\n      \
                                        writes the image, then cluster.toml")]
pub(crate) struct Arguments {
    /// Image file, stick or disk (/dev/sdX), its CLUSTER-OS partition, or the folder where that is mounted.
    target: PathBuf,
    /// The cluster.toml to write; with --new, where to keep the new one [default: cluster.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Make a cluster.toml with a new join key, for a cluster of this name.
    #[arg(long, value_name = "NAME")]
    new: Option<String>,
    /// With --new: public keys that may log in as root over SSH, a .pub file or authorized_keys. May be given more than
    /// once.
    #[arg(long, value_name = "FILE", requires = "new")]
    ssh_key: Vec<PathBuf>,
    /// Replace a different cluster.toml.
    #[arg(long)]
    force: bool,
    /// Write this raw image to the target first. Erases the target; asks first.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// With --image: also accept a disk that is neither removable nor on USB.
    #[arg(long, requires = "image")]
    yes_really: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Some((text, source)) = text(arguments)? else {
        if let Some(image) = &arguments.image {
            write_whole(&arguments.target, image, arguments.yes_really)?;
            return out(
                "It has no cluster.toml yet: write one with `clusterctl provision TARGET --config FILE`, or copy it to \
                 the partition CLUSTER-OS on any computer.\n",
            );
        }
        return Err(Failure::new(
            Code::Usage,
            "nothing to write: use `--config FILE` for a cluster.toml that you have, `--new NAME` for a new cluster",
        ));
    };
    let settings = checked(&text, &source)?;
    let target = match &arguments.image {
        // Still open, and nobody else's: a desktop would mount the new partitions at once.
        Some(image) => Target::Medium(write_whole(&arguments.target, image, arguments.yes_really)?),
        None => open(&arguments.target)?,
    };
    let place = target.place().map_err(failed)?;
    let there = place.read().map_err(failed)?;
    let lab = format!("cluster `{}`, join key {}", settings.cluster_name, settings.join_key.id());
    if there.as_deref() == Some(text.as_bytes()) {
        keep(arguments, &text, &source)?;
        return out(&format!("{place} already has exactly this file ({lab})\n"));
    }
    // What came with an image that was just written is nobody's to keep.
    if let Some(there) = &there
        && !arguments.force
        && arguments.image.is_none()
    {
        return Err(Failure::new(
            Code::Failed,
            format!(
                "{place} already has a different file; nothing was changed. `--force` replaces it. The difference:\n{}",
                difference(&String::from_utf8_lossy(there), &text)
            ),
        ));
    }
    keep(arguments, &text, &source)?;
    place.write(text.as_bytes()).map_err(failed)?;
    let how = if there.is_some() { "replaced" } else { "written" };
    out(&format!("{place}: {how}, flushed and read back ({} bytes; {lab})\n", text.len()))?;
    if arguments.new.is_some() {
        out(&format!(
            "The same file is in `{0}`, for the other machines: `clusterctl provision … --config {0}`. Keep it secret.\n",
            source.display()
        ))?;
    }
    Ok(())
}

/// What is to be written and the file it is from, or goes to.
fn text(arguments: &Arguments) -> Result<Option<(String, PathBuf)>, Failure> {
    if let Some(name) = &arguments.new {
        let keep = arguments.config.clone().unwrap_or_else(|| CLUSTER_TOML.into());
        if keep.exists() {
            return Err(Failure::new(
                Code::Failed,
                format!(
                    "`{0}` already exists: use it with `--config {0}` and without `--new`, or name another file with `--config`",
                    keep.display()
                ),
            ));
        }
        return Ok(Some((join_key::new_file(name, &arguments.ssh_key)?.1, keep)));
    }
    let Some(file) = &arguments.config else { return Ok(None) };
    match provisioning::read(file) {
        Ok(Some(text)) => Ok(Some((text, file.clone()))),
        Ok(None) => Err(Failure::new(Code::Failed, format!("there is no file `{}`", file.display()))),
        Err(wrong) => Err(Failure::new(
            Code::Failed,
            format!(
                "`{}` cannot be used; nothing was changed\n{}",
                file.display(),
                problem(&wrong).trim_end()
            ),
        )),
    }
}

fn checked(text: &str, source: &Path) -> Result<Settings, Failure> {
    Settings::parse(text).map_err(|problems| {
        let told: String = problems.iter().map(problem).collect();
        Failure::new(
            Code::Failed,
            format!("`{}` has mistakes; nothing was changed\n{}", source.display(), told.trim_end()),
        )
    })
}

/// A new file is kept before it is written to the target: the next stick needs the same one.
fn keep(arguments: &Arguments, text: &str, file: &Path) -> Result<(), Failure> {
    if arguments.new.is_none() {
        return Ok(());
    }
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut open| open.write_all(text.as_bytes()).and_then(|()| open.sync_all()));
    written.map_err(|error| {
        Failure::new(
            Code::Failed,
            format!("failed to keep the new file as `{}`; nothing was changed: {error}", file.display()),
        )
    })
}

fn write_whole(path: &Path, image: &Path, yes_really: bool) -> Result<Medium, Failure> {
    let refuse = |message: String| Err(Failure::new(Code::Failed, message));
    let source = File::open(image).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (length, source) = source.map_err(|error| {
        Failure::new(Code::Failed, format!("failed to open the image `{}`: {error}", image.display()))
    })?;
    check_image(image, &source, length)?;
    let Target::Medium(medium) = open(path)? else {
        return refuse(format!("`{}` is a folder: an image goes onto a whole stick or disk", path.display()));
    };
    if medium.is_partition() {
        return refuse(format!("`{}` is a partition: name the whole disk", path.display()));
    }
    if !medium.is_removable() && !yes_really {
        return refuse(format!(
            "{} ({}) is neither removable nor on USB, so it may be a disk of this computer; nothing was changed. \
             `--yes-really` writes to it anyway",
            medium.described().unwrap_or_default(),
            size(medium.size)
        ));
    }
    if medium.size < SMALLEST {
        return refuse(format!(
            "`{}` has {}, Cluster-OS needs at least {} (sold as 16 GB); nothing was changed",
            path.display(),
            size(medium.size),
            size(SMALLEST)
        ));
    }
    confirm(&medium, image)?;
    let mut progress = Progress::new(length);
    let step = |step, done| progress.show(step, done);
    write_image(&source, length, &medium.file, medium.size, step).map_err(failed)?;
    out(&format!("{}: {} written, flushed and read back\n", path.display(), size(length)))?;
    Ok(medium)
}

/// Only what carries our partition is an image of ours.
fn check_image(image: &Path, file: &File, length: u64) -> Result<(), Failure> {
    let handle = file.try_clone()?;
    Medium::of_file(image, handle, length).place().map(drop).map_err(failed)
}

/// Shows what will be lost and lets a person type its name.
fn confirm(medium: &Medium, image: &Path) -> Result<(), Failure> {
    let name = medium.short_name();
    let shown = medium.described().unwrap_or_else(|| format!("file {}", medium.path.display()));
    let partitions = match medium.table() {
        Ok(table) if !table.partitions.is_empty() => {
            let names: Vec<String> = table
                .partitions
                .iter()
                .map(|part| format!("`{}` ({})", part.name, size(part.length)))
                .collect();
            format!("It has: {}.", names.join(", "))
        }
        Err(TableError::Other(name)) => format!("It holds {name}."),
        _ => "It has no GPT partitions.".to_owned(),
    };
    out(&format!(
        "{shown}, {}\n{partitions}\nEverything on it will be erased and replaced by {}.\nType {name} to continue: ",
        size(medium.size),
        image.display()
    ))?;
    io::stdout().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if line.trim() != name {
        return Err(Failure::new(Code::Failed, "the name does not match; nothing was changed"));
    }
    Ok(())
}

fn open(path: &Path) -> Result<Target, Failure> {
    Target::open(path).map_err(failed)
}

fn failed(error: anyhow::Error) -> Failure {
    Failure::new(Code::Failed, format!("{error:#}"))
}

/// The lines that differ, without the join keys in them; what both begin and end with is left out.
fn difference(there: &str, new: &str) -> String {
    let (there, new): (Vec<&str>, Vec<&str>) = (there.lines().collect(), new.lines().collect());
    let head = there.iter().zip(&new).take_while(|(there, new)| there == new).count();
    let (there, new) = (&there[head..], &new[head..]);
    let tail = there.iter().rev().zip(new.iter().rev()).take_while(|(there, new)| there == new).count();
    let mut text = String::new();
    for (sign, lines) in [('-', &there[..there.len() - tail]), ('+', &new[..new.len() - tail])] {
        for line in lines.iter().take(SHOWN_LINES) {
            text.push_str(&format!("  {sign} {}\n", masked(line)));
        }
        if lines.len() > SHOWN_LINES {
            text.push_str(&format!("  {sign} … {} more lines\n", lines.len() - SHOWN_LINES));
        }
    }
    if text.is_empty() {
        text.push_str("  only line ends or a byte order mark\n");
    }
    text.trim_end().to_owned()
}

/// A join key shows no more than what tells two apart; nor does a line that could drive a terminal.
fn masked(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("cos1-") {
        let end =
            rest[at..].find(|c: char| !c.is_ascii_alphanumeric() && c != '-').map_or(rest.len(), |n| at + n);
        let shown = (at + 13).min(end);
        text.push_str(&rest[..shown]);
        if shown < end {
            text.push('…');
        }
        rest = &rest[end..];
    }
    text.push_str(rest);
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(200).collect()
}

/// Progress of a long write: one line that changes on a terminal, one every tenth elsewhere.
struct Progress {
    length: u64,
    live: bool,
    began: Instant,
    shown: Option<(Step, Instant, u64)>,
}

impl Progress {
    fn new(length: u64) -> Self {
        Self { length, live: io::stderr().is_terminal(), began: Instant::now(), shown: None }
    }

    fn show(&mut self, step: Step, done: u64) {
        let tenth = done * 10 / self.length.max(1);
        let (new_step, due) = match self.shown {
            Some((last, at, last_tenth)) if last == step => {
                (false, if self.live { at.elapsed() >= TICK } else { tenth > last_tenth })
            }
            _ => (true, true),
        };
        if !due && done < self.length {
            return;
        }
        if new_step {
            self.began = Instant::now();
        }
        self.shown = Some((step, Instant::now(), tenth));
        let what = match step {
            Step::Write => "writing",
            Step::Compare => "reading back",
        };
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "shown"
        )]
        let rate = (done as f64 / seconds) as u64;
        let mut line = format!("{what}: {} of {}", size(done), size(self.length));
        if !new_step {
            line.push_str(&format!(" ({}/s)", size(rate)));
        }
        let mut stderr = io::stderr();
        // Progress is not worth failing for.
        let _ = if self.live {
            let end = if done == self.length { "\n" } else { "" };
            write!(stderr, "\r\x1b[K{line}{end}")
        } else {
            writeln!(stderr, "{line}")
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_what_changed_and_no_secret() {
        let key = "cos1-ae7atrlngyyabcdefgh234567";
        let there = format!("[cluster]\nname = \"lab\"\njoin_key = \"{key}\"\n");
        let new = there.replace("lab", "office");
        assert_eq!(difference(&there, &new), "  - name = \"lab\"\n  + name = \"office\"");
        let other = there.replace("ae7a", "bbbb");
        assert_eq!(
            difference(&there, &other),
            "  - join_key = \"cos1-ae7atrln…\"\n  + join_key = \"cos1-bbbbtrln…\""
        );
        assert_eq!(difference("a\r\n", "a\n"), "  only line ends or a byte order mark");
        let long: String = (0..50).map(|n| format!("line {n}\n")).collect();
        assert!(difference(&long, "").ends_with("  - … 30 more lines"));
        assert_eq!(masked("\x1b[2Jx cos1- cos1-é"), "?[2Jx cos1- cos1-é");
    }
}
