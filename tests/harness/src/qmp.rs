// SPDX-License-Identifier: Apache-2.0
//! QEMU's machine protocol: JSON lines, one answer per command, events in between.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, mpsc, watch};

/// What QEMU's events told so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    /// Something in the guest has the guest agent's port open.
    pub(crate) port_open: bool,
    /// The machine goes on from a snapshot since it was last reset: its console does not tell how far its boot was.
    pub(crate) restored: bool,
    /// Length of the console's log when the machine was last switched on or reset.
    pub(crate) boot_offset: u64,
    /// Times the machine was reset (a reboot) since power on.
    pub(crate) resets: u32,
    /// The guest's kernel reported a panic.
    pub(crate) panicked: bool,
}

pub(crate) struct Qmp {
    channel: Mutex<Channel>,
    seen: Arc<watch::Sender<Seen>>,
}

struct Channel {
    writer: OwnedWriteHalf,
    answers: mpsc::UnboundedReceiver<Value>,
    last_id: u64,
}

impl Qmp {
    /// Takes over a connection that QEMU has just made.
    pub(crate) async fn new(stream: UnixStream, serial: PathBuf, limit: Duration) -> Result<Arc<Self>> {
        let (reader, writer) = stream.into_split();
        let (send_answer, answers) = mpsc::unbounded_channel();
        let console_length = move || std::fs::metadata(&serial).map_or(0, |metadata| metadata.len());
        let seen = Arc::new(watch::Sender::new(Seen { boot_offset: console_length(), ..Seen::default() }));
        let send_seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut lines = BufReader::new(reader).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
                if message.get("event").is_some() {
                    send_seen.send_if_modified(|seen| note(seen, &message, &console_length));
                } else if message.get("QMP").is_none() && send_answer.send(message).is_err() {
                    break;
                }
            }
        });
        let channel = Mutex::new(Channel { writer, answers, last_id: 0 });
        let qmp = Arc::new(Self { channel, seen });
        qmp.command("qmp_capabilities", json!({}), limit).await?;
        Ok(qmp)
    }

    /// What events told; changes can be awaited.
    pub(crate) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// To be called after a snapshot was loaded, which looks like a reset.
    pub(crate) fn restored(&self) {
        self.seen.send_modify(|seen| seen.restored = true);
    }

    /// Runs a command and returns what it returns.
    pub(crate) async fn command(&self, execute: &str, arguments: Value, limit: Duration) -> Result<Value> {
        let mut channel = self.channel.lock().await;
        channel.last_id += 1;
        let id = channel.last_id;
        let line = format!("{}\n", json!({"execute": execute, "arguments": arguments, "id": id}));
        let exchange = async {
            channel.writer.write_all(line.as_bytes()).await.context("QEMU is gone")?;
            loop {
                let mut answer = channel.answers.recv().await.context("QEMU ended")?;
                // An answer to a command that was given up on has another id.
                if answer["id"] != id {
                    continue;
                }
                if let Some(error) = answer.get("error") {
                    bail!(
                        "QEMU refused `{execute}`: {}",
                        error["desc"].as_str().unwrap_or("no reason given")
                    );
                }
                return Ok(answer["return"].take());
            }
        };
        tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| anyhow!("QEMU did not answer `{execute}` within {} s", limit.as_secs()))?
    }

    /// Runs a command of the human monitor; what it prints is an error.
    pub(crate) async fn monitor(&self, line: &str, limit: Duration) -> Result<()> {
        let printed = self.command("human-monitor-command", json!({"command-line": line}), limit).await?;
        match printed.as_str().map(str::trim) {
            None | Some("") => Ok(()),
            Some(complaint) => bail!("QEMU failed at `{line}`: {complaint}"),
        }
    }
}

fn note(seen: &mut Seen, message: &Value, console_length: &impl Fn() -> u64) -> bool {
    let before = *seen;
    match message["event"].as_str() {
        Some("VSERPORT_CHANGE") if message["data"]["id"] == "guest" => {
            seen.port_open = message["data"]["open"] == true;
        }
        Some("RESET") => {
            let resets = seen.resets + 1;
            *seen = Seen { resets, boot_offset: console_length(), ..Seen::default() };
        }
        Some("GUEST_PANICKED") => seen.panicked = true,
        _ => {}
    }
    *seen != before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_guest_agents_port() {
        let mut seen = Seen::default();
        let mut note = |message| (note(&mut seen, &message, &|| 77), seen);
        let change = |id, open| json!({"event": "VSERPORT_CHANGE", "data": {"id": id, "open": open}});
        assert!(!note(change("other", true)).0);
        assert!(note(change("guest", true)).1.port_open);
        assert!(!note(change("guest", false)).1.port_open);
        assert!(note(change("guest", true)).1.port_open);
        let (_, seen) = note(json!({"event": "RESET", "data": {"guest": true}}));
        assert_eq!(seen, Seen { resets: 1, boot_offset: 77, ..Seen::default() });
    }

    #[tokio::test]
    async fn answers_are_matched_and_refusals_are_errors() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let qemu = tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            let mut lines = BufReader::new(reader).lines();
            writer.write_all(b"{\"QMP\": {}}\n").await.expect("greeting");
            let answers = [
                r#"{"return": {}, "id": 1}"#,
                "{\"return\": \"stale\", \"id\": 1}\n{\"event\": \"STOP\"}\n{\"return\": \"fresh\", \"id\": 2}",
                r#"{"error": {"desc": "no such thing"}, "id": 3}"#,
            ];
            for answer in answers {
                lines.next_line().await.expect("read").expect("a command");
                writer.write_all(format!("{answer}\n").as_bytes()).await.expect("write");
            }
        });
        let limit = Duration::from_secs(5);
        let qmp = Qmp::new(ours, "/nonexistent".into(), limit).await.expect("handshake");
        assert_eq!(qmp.command("query", json!({}), limit).await.expect("answer"), "fresh");
        let error = qmp.command("bad", json!({}), limit).await.expect_err("refused").to_string();
        assert_eq!(error, "QEMU refused `bad`: no such thing");
        qemu.await.expect("fake QEMU");
        assert!(qmp.command("late", json!({}), limit).await.is_err(), "QEMU has ended");
    }
}
