// SPDX-License-Identifier: Apache-2.0
//! Copies of folders: a few files of the boot, compared byte by byte, and all of `/var` by tar(1), which knows about owners, links,
//! holes and attributes, and what has changed since it last looked.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Bytes that are read and written at once.
const PIECE: usize = 1 << 20;
/// What of `/var` does not move: caches and temporary files, what interrupted transfers left, the seed of random numbers, which
/// nobody may use twice, and the mark of the move itself.
const LEFT_BEHIND: [&str; 7] = [
    "./cache/*",
    "./tmp/*",
    "./lib/cluster-updater/releases/.import",
    "./lib/cluster-updater/releases/.fetch-*",
    "./lib/clusteros/moved",
    "./lib/clusteros/moved.new",
    "./lib/systemd/random-seed",
];

/// Which files and folders of a folder, by their names.
pub(crate) type Wanted<'a> = &'a dyn Fn(&OsStr) -> bool;

/// Copies the files and folders in `from` that are `wanted` to `to`. For FAT: neither owners, modes nor links.
///
/// # Errors
/// When one cannot be read or written.
pub(crate) fn files(from: &Path, to: &Path, wanted: Wanted<'_>) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("failed to make `{}`", to.display()))?;
    for (name, is_folder) in entries(from, wanted)? {
        let (from, to) = (from.join(&name), to.join(&name));
        if is_folder {
            files(&from, &to, wanted)?;
        } else {
            // fs::copy() would set a mode, which FAT refuses.
            let copied = File::open(&from).and_then(|mut file| io::copy(&mut file, &mut File::create(&to)?));
            copied.with_context(|| format!("failed to copy `{}`", from.display()))?;
        }
    }
    Ok(())
}

/// Whether `copy` holds what `from` does, byte by byte, as far as it is `wanted`.
///
/// # Errors
/// When it does not, or cannot be read.
pub(crate) fn compare(from: &Path, copy: &Path, wanted: Wanted<'_>) -> Result<()> {
    let there = entries(from, wanted)?;
    let differs = || {
        format!(
            "`{}` is not what was copied: the new disk is failing, or it changed meanwhile",
            from.display()
        )
    };
    ensure!(entries(copy, wanted)? == there, "{}", differs());
    for (name, is_folder) in there {
        let (from, copy) = (from.join(&name), copy.join(&name));
        if is_folder {
            compare(&from, &copy, wanted)?;
        } else {
            same(&from, &copy).with_context(|| format!("failed to compare `{}`", from.display()))?;
        }
    }
    Ok(())
}

/// Names in a folder, and whether each is a folder; neither links nor devices nor sockets.
fn entries(folder: &Path, wanted: Wanted<'_>) -> Result<Vec<(PathBuf, bool)>> {
    let failed = || format!("failed to list `{}`", folder.display());
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let kind = entry.file_type().with_context(failed)?;
        if (kind.is_file() || kind.is_dir()) && wanted(&entry.file_name()) {
            entries.push((entry.file_name().into(), kind.is_dir()));
        }
    }
    entries.sort();
    Ok(entries)
}

fn same(one: &Path, other: &Path) -> Result<()> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        let count = one.read(&mut left)?;
        if count == 0 {
            ensure!(other.read(&mut right)? == 0, "the copy is longer");
            return Ok(());
        }
        other.read_exact(&mut right[..count]).context("the copy is shorter or cannot be read")?;
        ensure!(
            left[..count] == right[..count],
            "the copy differs: the new disk is failing, or it changed meanwhile"
        );
    }
}

/// A copy of a folder in several passes: the first brings all, each further one what has changed or gone since.
pub(crate) struct Passes<'a> {
    /// The folder.
    pub(crate) from: &'a Path,
    /// For what tar remembers between passes.
    pub(crate) work: &'a Path,
}

impl Passes<'_> {
    /// One pass; `progress` gets the bytes so far. What changes while it is read is no failure: the next pass brings it.
    ///
    /// # Errors
    /// When something cannot be read or written.
    pub(crate) fn run(&self, to: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let (said_by_reader, said_by_writer) = (self.work.join("tar-reads"), self.work.join("tar-writes"));
        let snapshot = self.work.join("snapshot");
        let mut read = tar();
        read.args(["--create", "--one-file-system", "--sparse", "--anchored", "--directory"]).arg(self.from);
        read.arg(format!("--listed-incremental={}", snapshot.display()));
        read.args(LEFT_BEHIND.map(|pattern| format!("--exclude={pattern}"))).arg(".");
        read.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&said_by_reader)?);
        let mut write = tar();
        write
            .args(["--extract", "--preserve-permissions", "--listed-incremental=/dev/null", "--directory"])
            .arg(to);
        write.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(File::create(&said_by_writer)?);

        let mut reader = read.spawn().context("failed to run `tar`")?;
        let mut writer = write.spawn().context("failed to run `tar`")?;
        let (source, sink) = (reader.stdout.take(), writer.stdin.take());
        let piped = source.zip(sink).context("tar has no pipe").and_then(|(mut source, mut sink)| {
            let mut piece = vec![0; PIECE];
            let mut done = 0;
            loop {
                let count = match source.read(&mut piece) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    count => count?,
                };
                if count == 0 {
                    return Ok(());
                }
                sink.write_all(&piece[..count])?;
                done += count as u64;
                progress(done);
            }
        });
        let (read, written) = (reader.wait()?, writer.wait()?);
        let said = |path: &Path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        if !written.success() {
            bail!("failed to write to the new disk: tar: {}", said(&said_by_writer));
        }
        // 1: a file changed or went while it was read.
        if !matches!(read.code(), Some(0 | 1)) {
            bail!("failed to read `{}`: tar: {}", self.from.display(), said(&said_by_reader));
        }
        piped.context("failed to copy from tar to tar")
    }
}

fn tar() -> Command {
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*"]).env("LC_ALL", "C");
    tar
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn not_the_seed(name: &OsStr) -> bool {
        name != "random-seed"
    }

    fn not_the_mark(name: &OsStr) -> bool {
        name != "moved"
    }

    #[test]
    fn files_are_copied_and_a_copy_that_differs_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("EFI/BOOT")).unwrap();
        fs::write(from.join("EFI/BOOT/BOOTX64.EFI"), vec![7; PIECE + 3]).unwrap();
        fs::write(from.join("random-seed"), "seed").unwrap();
        files(&from, &to, &not_the_seed).unwrap();
        assert!(!to.join("random-seed").exists());
        compare(&from, &to, &not_the_seed).unwrap();

        let copy = to.join("EFI/BOOT/BOOTX64.EFI");
        let damaged = |bytes: Vec<u8>| {
            fs::write(&copy, bytes).unwrap();
            format!("{:#}", compare(&from, &to, &not_the_seed).unwrap_err())
        };
        let mut bytes = vec![7; PIECE + 3];
        bytes[PIECE + 1] = 8;
        assert!(damaged(bytes).contains("BOOTX64.EFI"));
        assert!(damaged(vec![7; PIECE + 4]).contains("longer"));
        assert!(damaged(vec![7; PIECE]).contains("shorter"));
        fs::remove_file(copy).unwrap();
        assert!(compare(&from, &to, &not_the_seed).is_err());
    }

    #[test]
    fn a_second_pass_brings_what_changed_and_takes_away_what_went() {
        let dir = tempfile::tempdir().unwrap();
        let (var, new, work) = (dir.path().join("var"), dir.path().join("new"), dir.path().join("work"));
        for folder in [&var.join("lib/clusteros/agent"), &var.join("cache"), &var.join("log"), &new, &work] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(var.join("lib/clusteros/agent/key"), "a key").unwrap();
        fs::set_permissions(var.join("lib/clusteros/agent/key"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(var.join("lib/clusteros/moved"), "a mark").unwrap();
        fs::write(var.join("lib/state"), "one").unwrap();
        fs::write(var.join("lib/gone"), "soon").unwrap();
        fs::write(var.join("cache/thing"), "cached").unwrap();
        fs::hard_link(var.join("lib/state"), var.join("lib/linked")).unwrap();
        symlink("state", var.join("lib/link")).unwrap();

        let passes = Passes { from: &var, work: &work };
        let mut done = 0;
        passes.run(&new, &mut |bytes| done = bytes).unwrap();
        assert!(done > 0);
        compare(&var.join("lib"), &new.join("lib"), &not_the_mark).unwrap();
        assert!(!new.join("lib/clusteros/moved").exists() && !new.join("cache/thing").exists());
        assert!(new.join("cache").is_dir());
        let key = fs::metadata(new.join("lib/clusteros/agent/key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(new.join("lib/state")).unwrap().nlink(), 2);
        assert_eq!(fs::read_link(new.join("lib/link")).unwrap(), Path::new("state"));

        // A file that changes in place, one that is replaced, one that goes, one that comes.
        fs::write(var.join("lib/state"), "two, and longer").unwrap();
        fs::write(var.join("lib/clusteros/agent/new"), "another key").unwrap();
        fs::rename(var.join("lib/clusteros/agent/new"), var.join("lib/clusteros/agent/key")).unwrap();
        fs::remove_file(var.join("lib/gone")).unwrap();
        fs::write(var.join("log/late"), "late").unwrap();
        passes.run(&new, &mut |_| {}).unwrap();
        compare(&var.join("lib"), &new.join("lib"), &not_the_mark).unwrap();
        assert_eq!(fs::read_to_string(new.join("log/late")).unwrap(), "late");
        assert!(!new.join("lib/gone").exists());
    }

    #[test]
    fn what_cannot_be_written_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let (var, work) = (dir.path().join("var"), dir.path().join("work"));
        fs::create_dir_all(&var).unwrap();
        fs::create_dir_all(&work).unwrap();
        fs::write(var.join("file"), vec![1; 3 * PIECE]).unwrap();
        let failed = Passes { from: &var, work: &work }.run(&dir.path().join("nowhere"), &mut |_| {});
        assert!(failed.unwrap_err().to_string().contains("failed to write to the new disk"));
    }
}
