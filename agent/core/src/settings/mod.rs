// SPDX-License-Identifier: Apache-2.0
//! `cluster.toml`: [`Settings`] exist only validated, and whatever is wrong with a file is a [`Problem`] that names the
//! line and what to do.

mod curve;
mod fields;
mod formats;
mod key_file;
mod odd;
mod parse;
mod scan;
mod ssh_key;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::join_key::JoinKey;

pub(crate) use cluster_agent_proto::name::{is_dns_label, is_label};
pub use key_file::{MAX_KEY_FILE, read as read_key_file};
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use text::unix_lines;

/// What problems of the file are filed under.
const AREA: &str = "cluster.toml";
/// What problems of the partition that the file is on are filed under.
pub const PARTITION_AREA: &str = "CLUSTER-OS partition";

/// Validated content of `cluster.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `[cluster] name`: for people; a DNS label.
    pub cluster_name: String,
    /// `[cluster] join_key`
    pub join_key: JoinKey,
    /// `[cluster] expect`: found only when so many nodes (this one included) know each other.
    pub expect: Option<u32>,
    /// `[cluster] seeds`: asked besides the local links.
    pub seeds: Vec<Seed>,
    /// `[node] hostname`
    pub hostname: Option<String>,
    /// `[node] labels`
    pub labels: BTreeMap<String, String>,
    /// `[ssh] authorized_keys`: whole lines, checked to be public keys without options.
    pub authorized_keys: Vec<String>,
    /// `[admin] keys`: Ed25519 public keys in OpenSSH's one-line form. Kept for the control plane.
    pub admin_keys: Vec<String>,
}

impl Settings {
    /// Reads and validates a file. All mistakes are reported at once, in the order of their lines.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        parse::parse(text)
    }

    /// The text of a file, which [`Settings::parse`] reads. A byte order mark is skipped; UTF-16 is not TOML.
    ///
    /// # Errors
    /// Why it is no text.
    pub fn decode(bytes: &[u8]) -> Result<String, Problem> {
        parse::decode(bytes)
    }
}

/// A place to ask for a cluster beyond the local links.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seed {
    /// IP address and port.
    Address(SocketAddr),
    /// Host name and port, resolved by the caller.
    Name {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
}

/// Something a person should mend, with the way to do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What it is about: `cluster.toml`, `mesh`, `identity`, …
    pub area: String,
    /// Line in the file, from 1.
    pub line: Option<u32>,
    /// Column in the line, from 1, in characters.
    pub column: Option<u32>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub fix: String,
}

impl Problem {
    /// A problem without a place in a file.
    pub fn new(area: &str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { area: area.to_owned(), line: None, column: None, message: message.into(), fix: fix.into() }
    }

    /// Whether it keeps the node from its cluster.toml: the file has a mistake, or cannot be reached.
    pub fn is_about_cluster_toml(&self) -> bool {
        self.area == AREA || self.area == PARTITION_AREA
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.area)?;
        if let Some(line) = self.line {
            write!(f, " line {line}")?;
        }
        if let Some(column) = self.column {
            write!(f, ", column {column}")?;
        }
        write!(f, ": {}; {}", self.message, self.fix)
    }
}
