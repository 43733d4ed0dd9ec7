// SPDX-License-Identifier: Apache-2.0
//! The channel to qemu-guest-agent in a VM (QEMU's docs/interop/qemu-ga.rst): JSON lines over virtio-serial, strictly
//! one exchange after the other.
//!
//! After an exchange that was given up, a reboot or a restored snapshot the two ends disagree about whose turn it is;
//! `guest-sync-delimited` with a fresh number brings them together again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, watch};

/// Sent before a sync request and by the guest before its answer: a byte that JSON never contains.
const DELIMITER: u8 = 0xff;

static SYNC: AtomicU64 = AtomicU64::new(1);

pub(crate) struct Guest {
    channel: Mutex<Channel>,
    /// Counts the times that the other end was reset.
    resets: watch::Sender<u64>,
}

struct Channel {
    stream: BufReader<UnixStream>,
    /// The count of resets at which both ends agreed whose turn it is.
    in_step: Option<u64>,
}

impl Guest {
    pub(crate) fn new(stream: UnixStream) -> Self {
        let channel = Channel { stream: BufReader::new(stream), in_step: None };
        Self { channel: Mutex::new(channel), resets: watch::Sender::new(0) }
    }

    /// To be called when the other end was reset; what is being asked fails at once.
    pub(crate) fn lost_step(&self) {
        self.resets.send_modify(|resets| *resets += 1);
    }

    /// Runs one command of the guest agent and returns what it returns.
    pub(crate) async fn command(&self, execute: &str, arguments: Value, limit: Duration) -> Result<Value> {
        let mut channel = self.channel.lock().await;
        let mut resets = self.resets.subscribe();
        let now = *resets.borrow_and_update();
        let was_in_step = channel.in_step.take() == Some(now);
        let exchange = async {
            if !was_in_step {
                synchronise(&mut channel.stream).await?;
            }
            channel
                .stream
                .write_all(format!("{}\n", json!({"execute": execute, "arguments": arguments})).as_bytes())
                .await?;
            let answer = read_line(&mut channel.stream).await?;
            channel.in_step = Some(now);
            Ok::<_, anyhow::Error>(answer)
        };
        let mut answer = tokio::select! {
            answer = exchange => answer?,
            _ = resets.changed() => bail!("the VM was reset while the guest agent was asked `{execute}`"),
            () = tokio::time::sleep(limit) => {
                bail!("the guest agent did not answer `{execute}` within {} s", limit.as_secs())
            }
        };
        if let Some(error) = answer.get("error") {
            bail!(
                "the guest agent refused `{execute}`: {}",
                error["desc"].as_str().unwrap_or("no reason given")
            );
        }
        Ok(answer["return"].take())
    }
}

async fn synchronise(stream: &mut BufReader<UnixStream>) -> Result<()> {
    let id = SYNC.fetch_add(1, Ordering::Relaxed);
    let mut request = vec![DELIMITER];
    request
        .extend(format!("{}\n", json!({"execute": "guest-sync-delimited", "arguments": {"id": id}})).bytes());
    stream.write_all(&request).await?;
    loop {
        while stream.read_u8().await.context("the guest agent's channel is closed")? != DELIMITER {}
        // Answers to older sync requests may come first.
        if read_line(stream).await.is_ok_and(|answer| answer["return"] == id) {
            return Ok(());
        }
    }
}

async fn read_line(stream: &mut BufReader<UnixStream>) -> Result<Value> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await?;
    ensure!(line.ends_with(b"\n"), "the guest agent's channel was closed");
    serde_json::from_slice(&line).context("the guest agent's answer is not JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// A guest agent that first has old output to get rid of, and never answers `guest-hang`.
    async fn agent(stream: UnixStream) {
        let mut stream = BufReader::new(stream);
        stream.write_all(b"{\"return\": \"left over\"}\n").await.expect("write");
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).await.expect("read") > 0 {
            let start = line.iter().rposition(|byte| *byte == DELIMITER).map_or(0, |at| at + 1);
            let request: Value = serde_json::from_slice(&line[start..]).expect("JSON");
            let answer = match request["execute"].as_str() {
                Some("guest-sync-delimited") => {
                    format!("\u{0}{}\n", json!({"return": request["arguments"]["id"]}))
                }
                Some("guest-hang") => String::new(),
                Some("guest-ping") => "{\"return\": {}}\n".to_owned(),
                _ => "{\"error\": {\"desc\": \"no such command\"}}\n".to_owned(),
            };
            let bytes: Vec<u8> =
                answer.bytes().map(|byte| if byte == 0 { DELIMITER } else { byte }).collect();
            stream.write_all(&bytes).await.expect("write");
            line.clear();
        }
    }

    #[tokio::test]
    async fn skips_what_is_left_over_and_recovers_after_a_hang() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        tokio::spawn(agent(theirs));
        let guest = Guest::new(ours);
        assert_eq!(guest.command("guest-ping", json!({}), LIMIT).await.expect("answer"), json!({}));
        let error =
            guest.command("guest-hang", json!({}), Duration::from_millis(50)).await.expect_err("hangs");
        assert!(error.to_string().contains("did not answer `guest-hang`"), "{error}");
        assert_eq!(guest.command("guest-ping", json!({}), LIMIT).await.expect("answer"), json!({}));
        let hang = guest.command("guest-hang", json!({}), LIMIT);
        let (answer, ()) = tokio::join!(hang, async { guest.lost_step() });
        assert!(answer.expect_err("reset").to_string().contains("was reset"));
        let error = guest.command("guest-odd", json!({}), LIMIT).await.expect_err("refused").to_string();
        assert_eq!(error, "the guest agent refused `guest-odd`: no such command");
    }
}
