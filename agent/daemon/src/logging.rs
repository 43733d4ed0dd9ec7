// SPDX-License-Identifier: Apache-2.0
//! Logs with fields: journald's own protocol under systemd, plain lines on stderr anywhere else.
//!
//! Two sources meet here: our own `tracing` events and the `log` records of libraries. Each goes to journald by the
//! library that keeps its fields (tracing's own `log` feature would flatten them into the message), under one
//! syslog identifier. journald stamps the time, so no line carries another.

use std::{env, fmt::Write as _, sync::OnceLock};

use anyhow::{Context as _, Result};
use cluster_agent_core::LogLevel;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Identifier for `journalctl -t`.
const IDENTIFIER: &str = "cluster-agent";
/// `CLUSTER_AGENT_LOG` takes a level, and levels of modules: `debug`, or `info,cluster_agent=debug,zbus=warn`.
const FILTER_VARIABLE: &str = "CLUSTER_AGENT_LOG";
/// zbus and netlink speak of every message at info and below; they are asked for by name when wanted.
const DEFAULT_FILTER: &str = "info,zbus=warn,netlink_proto=warn,defguard_wireguard_rs=warn";

/// Whether records go to journald.
static JOURNAL: OnceLock<bool> = OnceLock::new();

/// Installs the subscriber for the whole process.
///
/// # Errors
/// When a subscriber is installed already, or journald's socket cannot be reached although systemd says that stderr
/// is the journal.
pub fn init() -> Result<()> {
    let filter = env::var(FILTER_VARIABLE).unwrap_or_else(|_| DEFAULT_FILTER.to_owned());
    let filter: Targets = filter
        .parse()
        .with_context(|| format!("failed to read {FILTER_VARIABLE}=`{filter}`: use e.g. `debug`"))?;

    // JOURNAL_STREAM names the very socket that stderr is, so a shell started by a unit does not count.
    let journal = *JOURNAL.get_or_init(systemd_journal_logger::connected_to_journal);
    if journal {
        let journal = tracing_journald::layer()
            .context("failed to reach journald at /run/systemd/journal/socket")?
            .with_syslog_identifier(IDENTIFIER.to_owned())
            .with_field_prefix(Some("CLUSTER".to_owned()));
        tracing_subscriber::registry().with(filter).with(journal).try_init()?;
        systemd_journal_logger::JournalLog::new()
            .context("failed to reach journald for library logs")?
            .with_syslog_identifier(IDENTIFIER.to_owned())
            .install()?;
        // The libraries' own chatter is filtered by level only: `log` has no directives.
        log::set_max_level(log::LevelFilter::Warn);
    } else {
        let stderr =
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
        tracing_subscriber::registry().with(filter).with(stderr).try_init()?;
    }
    Ok(())
}

/// Logs what the core says. Its fields are named at run time, which tracing's macros cannot do: under journald they go
/// as fields by way of `log`'s key-value pairs. They are behind the message too, as `journalctl` shows nothing else.
pub fn core(level: LogLevel, message: &str, fields: &[(&'static str, String)]) {
    let (tracing_level_enabled, log_level) = match level {
        LogLevel::Error => (tracing::enabled!(tracing::Level::ERROR), log::Level::Error),
        LogLevel::Warn => (tracing::enabled!(tracing::Level::WARN), log::Level::Warn),
        LogLevel::Info => (tracing::enabled!(tracing::Level::INFO), log::Level::Info),
        LogLevel::Debug => (tracing::enabled!(tracing::Level::DEBUG), log::Level::Debug),
    };
    if !tracing_level_enabled {
        return;
    }
    let mut line = message.to_owned();
    for (name, value) in fields {
        let _ = write!(line, " {name}={value:?}");
    }
    if JOURNAL.get() == Some(&true) {
        let pairs: Vec<(String, &str)> =
            fields.iter().map(|(name, value)| (format!("cluster_{name}"), value.as_str())).collect();
        log::logger().log(
            &log::Record::builder()
                .level(log_level)
                .target("cluster_agent_core")
                .args(format_args!("{line}"))
                .key_values(&pairs)
                .build(),
        );
        return;
    }
    match level {
        LogLevel::Error => tracing::error!("{line}"),
        LogLevel::Warn => tracing::warn!("{line}"),
        LogLevel::Info => tracing::info!("{line}"),
        LogLevel::Debug => tracing::debug!("{line}"),
    }
}
