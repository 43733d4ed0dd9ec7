// SPDX-License-Identifier: Apache-2.0
//! What people see: progress, tables, command names as they would type them, and Ctrl-C.

use std::env;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Rewrites `` `vm-cluster VERB `` into what the caller types: the recipes of the justfile set `CLUSTER_OS_JUST`
/// to the command that runs them.
pub(crate) fn commands(text: &str) -> String {
    match env::var("CLUSTER_OS_JUST") {
        Ok(just) if !just.is_empty() => text
            .replace("`vm-cluster up", &format!("`{just} vm-cluster"))
            .replace("`vm-cluster ", &format!("`{just} vm-")),
        _ => text.to_owned(),
    }
}

/// From now on Ctrl-C (or a termination) does not end this process but makes [`interrupted`] true.
pub(crate) fn catch_interrupts() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (send, ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
            let (Ok(mut interrupt), Ok(mut terminate)) = signals else { return };
            // The receiver waits for exactly this.
            let _ = send.send(());
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                INTERRUPTED.store(true, Ordering::Relaxed);
            }
        });
    });
    ready.recv()?;
    Ok(())
}

/// Ctrl-C was pressed since [`catch_interrupts`].
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Progress with elapsed time: one line that changes on a terminal, a line per change elsewhere.
pub(crate) struct Progress {
    start: Instant,
    live: bool,
    last: String,
    printed: Option<Instant>,
}

/// Where nobody watches, a line at least so often says that it still goes on.
const HEARTBEAT: Duration = Duration::from_secs(30);

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            live: std::io::stderr().is_terminal(),
            last: String::new(),
            printed: None,
        }
    }

    /// Shows what is going on now.
    pub(crate) fn show(&mut self, what: &str) {
        let seconds = self.start.elapsed().as_secs();
        let mut out = std::io::stderr();
        if self.live {
            let width = terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0));
            let line: String =
                format!("{seconds:>4} s  {what}").chars().take(width.saturating_sub(1)).collect();
            // Progress is not worth failing for.
            let _ = write!(out, "\r\x1b[K{line}").and_then(|()| out.flush());
        } else if self.last != what || self.printed.is_none_or(|at| at.elapsed() > HEARTBEAT) {
            let _ = writeln!(out, "{seconds:>4} s  {what}");
            self.printed = Some(Instant::now());
        }
        what.clone_into(&mut self.last);
    }

    /// Leaves what was shown last on the screen.
    pub(crate) fn end(&self) {
        if self.live && !self.last.is_empty() {
            eprintln!();
        }
    }
}

/// A table with aligned columns, the first row its head.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let rows = [vec!["VM".into(), "NAME".into()], vec!["10".into(), "node-a".into()]];
        assert_eq!(table(&rows), "VM  NAME\n10  node-a\n");
    }
}
