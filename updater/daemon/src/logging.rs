// SPDX-License-Identifier: Apache-2.0
//! Logs with fields: to journald under systemd, as plain lines on stderr anywhere else.

use anyhow::{Context as _, Result};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// `CLUSTER_UPDATER_LOG` takes a level, and levels of modules.
const FILTER_VARIABLE: &str = "CLUSTER_UPDATER_LOG";
const DEFAULT_FILTER: &str = "info,zbus=warn";

/// Installs the subscriber for the whole process; `identifier` is for `journalctl -t`.
///
/// # Errors
/// When the filter cannot be read, or journald cannot be reached although stderr is the journal.
pub fn init(identifier: &str) -> Result<()> {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| DEFAULT_FILTER.to_owned());
    let filter: Targets = filter
        .parse()
        .with_context(|| format!("failed to read {FILTER_VARIABLE}=`{filter}`: use e.g. `debug`"))?;
    if systemd_journal_logger::connected_to_journal() {
        let journal = tracing_journald::layer()
            .context("failed to reach journald at /run/systemd/journal/socket")?
            .with_syslog_identifier(identifier.to_owned())
            .with_field_prefix(Some("CLUSTER".to_owned()));
        tracing_subscriber::registry().with(filter).with(journal).try_init()?;
    } else {
        let stderr =
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
        tracing_subscriber::registry().with(filter).with(stderr).try_init()?;
    }
    Ok(())
}
