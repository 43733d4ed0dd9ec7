// SPDX-License-Identifier: Apache-2.0
//! What travels over the bus as JSON: made by the daemon, read by `cluster-update`.

use std::net::SocketAddr;

use cluster_updater_core::{
    Version,
    sources::{Fault, Source, Sources},
    verdict::Verdict,
};
use serde::{Deserialize, Serialize};

use crate::writer::{Moved, Progress};

/// What `Status` tells. Fields are added over time and never change their meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// The version that runs.
    pub version: Version,
    /// The slot that it runs from: `a` or `b`.
    pub slot: Option<char>,
    /// Root of its hash tree.
    pub root_hash: String,
    /// Its boot entry.
    pub boot_entry: Option<String>,
    /// The boot loader does not count it: the release is taken for good.
    pub marked_good: Option<bool>,
    /// How the check of this boot ended; none while it is under way or where nothing is checked.
    pub boot_check: Option<CheckReport>,
    /// The other slot.
    pub other: OtherSlot,
    /// Imported releases.
    pub releases: Vec<Version>,
    /// Who may sign releases.
    pub trust: TrustReport,
    /// What is being done.
    pub job: Option<JobReport>,
    /// What logind will do by itself at a later time.
    #[serde(default)]
    pub scheduled: Option<ScheduledReport>,
    /// How what was done last ended, if it failed.
    pub last_failure: Option<String>,
    /// What could not be found out.
    pub problems: Vec<String>,
    /// What stands in the way of an update, and was set by hand.
    #[serde(default)]
    pub obstacles: Vec<String>,
}

/// The slot that does not run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherSlot {
    /// What it is good for.
    pub state: OtherState,
    /// The version in it.
    pub version: Option<Version>,
    /// Its boot entry.
    pub boot_entry: Option<String>,
    /// How often the boot loader will still try it; none if it does not count.
    pub tries_left: Option<u32>,
    /// Why it failed, or why it was staged and did not start.
    pub reason: Option<String>,
}

/// What the other slot is good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OtherState {
    /// Holds nothing that could be started.
    #[default]
    Empty,
    /// Holds a newer release that the next boot starts.
    Staged,
    /// Holds an older release, which `rollback` goes back to.
    Previous,
    /// Holds a release that was tried and given up.
    Failed,
}

/// How the check of a boot ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// How.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
}

/// Who may sign releases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustReport {
    /// Version of the root document.
    pub root_version: u32,
    /// Its keys are made for development and protect nothing.
    pub development: bool,
    /// Ids of the keys.
    pub keys: Vec<String>,
    /// How many of them must have signed.
    pub threshold: u32,
}

/// What logind will do at a later time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledReport {
    /// `reboot`, or another of logind's kinds that somebody asked it for.
    pub what: String,
    /// Seconds since 1970.
    pub at: u64,
}

/// What is being done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobReport {
    /// `import`, `stage` or `rollback`.
    pub what: String,
    /// With which release, once that is known.
    pub version: Option<Version>,
    /// How far it is.
    pub progress: Option<Progress>,
    /// Members that are asked for the release.
    #[serde(default)]
    pub sources: Vec<SourceReport>,
    /// For how long.
    pub seconds: u64,
    /// For how long it is at this phase.
    #[serde(default)]
    pub phase_seconds: u64,
}

/// A member that is asked for a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Its host name.
    pub name: String,
    /// Its address.
    pub address: SocketAddr,
    /// Bytes that came from it and were right.
    pub bytes: u64,
    /// What was wrong with it last.
    pub fault: Option<Fault>,
    /// It is the one that is asked.
    pub current: bool,
}

impl SourceReport {
    /// All of them.
    #[must_use]
    pub fn of(sources: &Sources) -> Vec<Self> {
        let current = sources.current().ok().map(|holder| holder.address);
        let report = |source: &Source| Self {
            name: source.holder.name.clone(),
            address: source.holder.address,
            bytes: source.bytes,
            fault: source.fault,
            current: current == Some(source.holder.address),
        };
        sources.all().iter().map(report).collect()
    }
}

/// What `Stage` returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageReport {
    /// The release.
    pub version: Version,
    /// It was staged before.
    pub already: bool,
    /// Where the blocks of its root image came from (4096 bytes each).
    pub blocks: Moved,
    /// Bytes of its UKI, which is copied whole.
    pub uki_bytes: u64,
    /// Members that were asked for it.
    #[serde(default)]
    pub sources: Vec<SourceReport>,
    /// Newer versions that cannot be had, and why; none where a version was asked for.
    #[serde(default)]
    pub passed_over: Vec<String>,
}

/// What `Rollback` returns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackReport {
    /// A staged release was cancelled: nothing needs to be restarted.
    pub cancelled: Option<Version>,
    /// The next boot starts this version.
    pub next_boot: Version,
}
