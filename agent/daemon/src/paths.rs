// SPDX-License-Identifier: Apache-2.0
//! Where things are on a node: the one place that names files and directories.
//!
//! All of them can be moved by flags of `cluster-agent`, which is how network-namespace tests run the very same
//! binary several times on one machine.

use std::path::{Path, PathBuf};

/// Config partition, mounted read-only by `run-clusteros-config.mount`.
pub const CONFIG_DIR: &str = "/run/clusteros/config";
/// The agent's own persistent state (0700).
pub const STATE_DIR: &str = "/var/lib/clusteros/agent";
/// The agent's own volatile files, which path units watch.
pub const RUNTIME_DIR: &str = "/run/clusteros/agent";
/// Keys of `cluster.toml` that may log in, as sshd's `AuthorizedKeysFile` reads them. Root's, not the agent's.
pub const AUTHORIZED_KEYS: &str = "/run/clusteros/authorized_keys";
/// The last good ones, which serve while `cluster.toml` cannot be read. Root's, too.
pub const AUTHORIZED_KEYS_KEPT: &str = "/var/lib/clusteros/ssh/authorized_keys";
/// Is there when this node runs from another disk (`cluster-update install`); this one's agent does not start then.
pub const MOVED: &str = "/var/lib/clusteros/moved";
/// Name of the provisioning file, on the config partition and of its last good copy.
pub const CLUSTER_TOML: &str = "cluster.toml";
/// Lists development keys and settings of this image, one a line; absent in a release.
pub const DEVELOPMENT_FILE: &str = "/usr/lib/clusteros/development";
/// The running image's identification (os-release(5)); its mtime is the image's build time.
pub const OS_RELEASE: &str = "/usr/lib/os-release";

/// The directories one agent works in.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Holds `cluster.toml`; may be absent or empty.
    pub config_dir: PathBuf,
    /// Persistent, private to the agent.
    pub state_dir: PathBuf,
    /// Volatile.
    pub runtime_dir: PathBuf,
}

impl Paths {
    /// The file a person writes.
    #[must_use]
    pub fn cluster_toml(&self) -> PathBuf {
        self.config_dir.join(CLUSTER_TOML)
    }

    /// The name that this machine should have (`cluster-hostname.path`).
    #[must_use]
    pub fn hostname(&self) -> PathBuf {
        self.runtime_dir.join("hostname")
    }

    /// Written when the kernel has no WireGuard (`cluster-wireguard.path`).
    #[must_use]
    pub fn wireguard_go(&self) -> PathBuf {
        self.runtime_dir.join("wireguard-go")
    }
}

/// `KEY=value` of an os-release file, unquoted; `None` when the file or the key is absent.
#[must_use]
pub fn os_release_value(file: &Path, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let value = line.strip_prefix(key)?.strip_prefix('=')?.trim();
        Some(value.trim_matches(['"', '\'']).to_owned())
    })
}

/// Lines of the development file that name something: empty in a release image.
#[must_use]
pub fn development_settings(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file)
        .unwrap_or_default()
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_quoted_and_bare_os_release_values_and_only_whole_keys() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("os-release");
        std::fs::write(&file, "NAME=\"Cluster-OS\"\nIMAGE_VERSION_X=9\nIMAGE_VERSION=0.1.0\n").unwrap();
        assert_eq!(os_release_value(&file, "NAME").as_deref(), Some("Cluster-OS"));
        assert_eq!(os_release_value(&file, "IMAGE_VERSION").as_deref(), Some("0.1.0"));
        assert_eq!(os_release_value(&file, "IMAGE_ID"), None);
        assert_eq!(os_release_value(&dir.path().join("absent"), "NAME"), None);
    }

    #[test]
    fn development_file_ignores_comments_and_may_be_absent() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("development");
        std::fs::write(&file, "# why\n\nserial console\n").unwrap();
        assert_eq!(development_settings(&file), ["serial console"]);
        assert!(development_settings(&dir.path().join("absent")).is_empty());
    }
}
