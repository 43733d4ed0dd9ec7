// SPDX-License-Identifier: Apache-2.0
//! One request to a web server by the child, as its parent sees it.

use std::{fs::File, os::unix::fs::FileExt as _, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{
    child::{Failure, Head},
    web::Fetch,
};

/// The child gives a server up before this.
const SILENCE: Duration = Duration::from_secs(150);
/// Longest message of the child, and longest line before the bytes.
const MAX_TEXT: u64 = 4 << 10;

/// How it ended.
pub(super) enum Ended {
    /// All is there.
    Done,
    /// The server has no such file.
    Absent,
    /// It may go better next time; why.
    Again(String),
}

/// One request.
pub(super) struct Attempt<'a> {
    /// Where from.
    pub(super) url: &'a str,
    /// Where to.
    pub(super) spool: &'a File,
    /// The place of the first byte there.
    pub(super) base: u64,
    /// Bytes that have come.
    pub(super) got: &'a mut u64,
    /// Of how many, once known.
    pub(super) total: &'a mut Option<u64>,
}

impl Attempt<'_> {
    /// Starts the child and takes what it gives. `watch` gets how much came and how much it is to be, and returns how much it
    /// may be.
    ///
    /// # Errors
    /// When it makes no sense to ask again.
    pub(super) async fn run(
        &mut self,
        fetch: &Fetch,
        watch: &mut dyn FnMut(u64, Option<u64>) -> Result<u64>,
    ) -> Result<Ended> {
        let mut command = Command::new(&fetch.program);
        let stall = fetch.limits.stall.as_secs();
        command.args(["fetch", self.url, "--from", &self.got.to_string(), "--stall", &stall.to_string()]);
        command.env_clear().current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some((user, group)) = fetch.user {
            command.uid(user).gid(group);
        }
        let failed = || format!("failed to start `{}`", fetch.program.display());
        let mut child = command.spawn().with_context(failed)?;
        if let Some(reason) = self.take(&mut child, watch).await? {
            return Ok(Ended::Again(reason));
        }
        how(child, self.url).await
    }

    /// What comes until the child closes its output; a reason to end it before that.
    async fn take(
        &mut self,
        child: &mut Child,
        watch: &mut dyn FnMut(u64, Option<u64>) -> Result<u64>,
    ) -> Result<Option<String>> {
        let silent = || Some(format!("nothing came for {} s", SILENCE.as_secs()));
        let out = child.stdout.take().context("the child has no output")?;
        let mut out = BufReader::with_capacity(64 << 10, out);
        let mut line = Vec::new();
        let head = timeout(SILENCE, (&mut out).take(MAX_TEXT).read_until(b'\n', &mut line)).await;
        let Ok(read) = head else { return Ok(silent()) };
        if read? == 0 {
            return Ok(None);
        }
        let head: Head = serde_json::from_slice(&line).context("the child tells no size")?;
        ensure!(head.first == 0 || head.first == *self.got, "the child begins elsewhere");
        if let (Some(before), Some(now)) = (*self.total, head.total) {
            ensure!(before == now, "`{}` changed while it was fetched: import it again", self.url);
        }
        *self.got = head.first;
        *self.total = head.total.or(*self.total);
        let mut limit = watch(*self.got, *self.total)?;
        let mut piece = vec![0; 64 << 10];
        loop {
            let Ok(read) = timeout(SILENCE, out.read(&mut piece)).await else { return Ok(silent()) };
            let read = read?;
            if read == 0 {
                return Ok(None);
            }
            let end = *self.got + read as u64;
            ensure!(
                end <= limit,
                "`{}` does not end after {limit} bytes, which is all it may have",
                self.url
            );
            self.spool
                .write_all_at(&piece[..read], self.base + *self.got)
                .context("failed to write to /var what was fetched")?;
            *self.got = end;
            limit = watch(end, *self.total)?;
            ensure!(
                end <= limit,
                "`{}` does not end after {limit} bytes, which is all it may have",
                self.url
            );
        }
    }
}

/// How the child ended, and what it says of it.
async fn how(mut child: Child, url: &str) -> Result<Ended> {
    let mut text = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // It is gone already, or has nothing more to say.
        let _ = timeout(SILENCE, stderr.take(MAX_TEXT).read_to_end(&mut text)).await;
    }
    let text: String = String::from_utf8_lossy(&text).trim().chars().filter(|c| !c.is_control()).collect();
    let status = timeout(SILENCE, child.wait()).await.context("the child does not end")??;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    match code {
        Some(0) => Ok(Ended::Done),
        Some(Failure::ABSENT) => Ok(Ended::Absent),
        Some(Failure::AGAIN) => Ok(Ended::Again(text)),
        Some(Failure::FINAL) => bail!("`{url}`: {text}"),
        _ => bail!("`{url}`: the process that fetches it ended with {status}: {text}"),
    }
}
