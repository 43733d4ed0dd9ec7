// SPDX-License-Identifier: Apache-2.0
//! Which release this is.

use std::{
    fs,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use crate::paths::os_release_value;

/// Version this binary was built as.
pub const AGENT: &str = match option_env!("CLUSTER_OS_VERSION") {
    Some(version) => version,
    None => "0.0.0-dev",
};

/// Version of the running system; the agent's own where the system is no image of ours.
#[must_use]
pub fn of_system(os_release: &Path) -> String {
    os_release_value(os_release, "IMAGE_VERSION")
        .filter(|version| !version.is_empty())
        .unwrap_or_else(|| AGENT.to_owned())
}

/// When the system was built: an image's files all carry that time. Zero when unknown.
#[must_use]
pub fn built_at(os_release: &Path) -> Duration {
    fs::metadata(os_release)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|modified| modified.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default()
}
