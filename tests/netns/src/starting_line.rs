// SPDX-License-Identifier: Apache-2.0
//! Programs that are started one after the other and begin all at once: each waits at a named pipe until it has a writer.
//! Were they to begin as they are started, the first ones would keep a small machine from starting the others.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::node::await_that;

/// Says that it is there, waits, and becomes the program.
const WAIT: &str = r#"echo >>"$0.there"; : <"$0"; exec "$@""#;

/// Where programs wait for each other; gone when dropped, and those that wait with it.
#[derive(Debug)]
pub struct StartingLine {
    pipe: PathBuf,
}

impl StartingLine {
    /// One in a folder.
    ///
    /// # Errors
    /// When the pipe cannot be made.
    pub fn in_dir(dir: &Path) -> Result<Self> {
        let line = Self { pipe: dir.join("starting-line") };
        line.remove();
        mkfifo(&line.pipe, Mode::S_IRUSR | Mode::S_IWUSR)
            .with_context(|| format!("failed to make the pipe `{}`", line.pipe.display()))?;
        fs::write(line.there(), "")?;
        Ok(line)
    }

    /// What follows in this command begins when [`StartingLine::go`] says so.
    pub(crate) fn hold(&self, command: &mut Command) {
        command.args(["sh", "-c", WAIT]).arg(&self.pipe);
    }

    /// Waits until so many are there.
    ///
    /// # Errors
    /// When they do not come.
    pub fn await_all(&self, count: usize) -> Result<()> {
        await_that("all at the starting line", || Ok(fs::metadata(self.there())?.len() >= count as u64))
    }

    /// Lets all of them begin, and whoever comes while this is kept.
    ///
    /// # Errors
    /// When the pipe is gone.
    pub fn go(&self) -> Result<File> {
        File::options().write(true).open(&self.pipe).context("failed to open the pipe")
    }

    fn there(&self) -> PathBuf {
        self.pipe.with_added_extension("there")
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.pipe);
        let _ = fs::remove_file(self.there());
    }
}

impl Drop for StartingLine {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn nobody_begins_before_all_may() {
        let dir = std::env::temp_dir().join(format!("netns-line-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let line = StartingLine::in_dir(&dir).unwrap();
        let mut waiting: Vec<_> = (0..3)
            .map(|n| {
                let mut command = Command::new("env");
                line.hold(&mut command);
                command.args(["echo", "began", &n.to_string()]).stdout(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        line.await_all(3).unwrap();
        assert!(waiting.iter_mut().all(|child| child.try_wait().unwrap().is_none()));
        let open = line.go().unwrap();
        for (n, child) in waiting.into_iter().enumerate() {
            assert_eq!(child.wait_with_output().unwrap().stdout, format!("began {n}\n").into_bytes());
        }
        drop((open, line));
        fs::remove_dir(&dir).expect("the line leaves nothing behind");
    }
}
