// SPDX-License-Identifier: Apache-2.0
//! `clusterctl ssh-keys`: run by root (cluster-ssh-keys@.service), at boot and whenever cluster.toml may have changed.
//!
//! Who may log in as root is not the agent's to say: it speaks to the network. So this reads cluster.toml itself, by the
//! same rules as the agent: a good file rules and is remembered, a missing or wrong one leaves the last good keys.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use cluster_agent_core::Settings;

use super::{Code, Failure, show::out};
use crate::{
    host::set_authorized_keys,
    paths::{AUTHORIZED_KEYS, AUTHORIZED_KEYS_KEPT, CLUSTER_TOML, CONFIG_DIR},
    provisioning,
};

/// Writes the SSH keys of cluster.toml where sshd reads them.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where cluster.toml is.
    #[arg(long, value_name = "DIR", default_value = CONFIG_DIR)]
    config_dir: PathBuf,
    /// Where the last good keys are kept.
    #[arg(long, value_name = "FILE", default_value = AUTHORIZED_KEYS_KEPT)]
    kept: PathBuf,
    /// Where sshd reads them.
    #[arg(long, value_name = "FILE", default_value = AUTHORIZED_KEYS)]
    to: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match put(&arguments.config_dir.join(CLUSTER_TOML), &arguments.kept, &arguments.to) {
        Ok(text) => out(&format!("{text}\n")),
        Err(error) => Err(Failure::new(Code::Failed, format!("{error:#}"))),
    }
}

fn put(file: &Path, kept: &Path, to: &Path) -> Result<String> {
    let dir = kept.parent().unwrap_or(Path::new("/"));
    // Two of these at once: the one that reads later must also write later.
    let _one_at_a_time = File::open(dir)
        .and_then(|dir| dir.lock().map(|()| dir))
        .with_context(|| format!("failed to lock `{}`", dir.display()))?;
    let of_file = match provisioning::read(file) {
        Ok(Some(text)) => Settings::parse(&text).ok().map(|settings| settings.authorized_keys),
        Ok(None) | Err(_) => None,
    };
    let Some(keys) = of_file else {
        let keys = lines_of(kept)?;
        set_authorized_keys(to, &keys)?;
        return Ok(format!("no good `{}`: {} keys of the last good one", file.display(), keys.len()));
    };
    // The disk may be full; who may log in now does not depend on it.
    set_authorized_keys(to, &keys)?;
    set_authorized_keys(kept, &keys).context("the keys are in place until the next boot only")?;
    Ok(format!("{} keys of `{}`", keys.len(), file.display()))
}

fn lines_of(file: &Path) -> Result<Vec<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("failed to read `{}`", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use cluster_agent_core::JoinKey;

    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea someone@example";

    struct Setup {
        dir: tempfile::TempDir,
    }

    impl Setup {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn toml(&self, keys: &[&str]) {
            let join = JoinKey::generate(&[7; 37]).to_text();
            let text = format!(
                "[cluster]\nname = \"lab\"\njoin_key = \"{join}\"\n[ssh]\nauthorized_keys = {keys:?}\n"
            );
            fs::write(self.path("cluster.toml"), text).unwrap();
        }

        /// What sshd reads afterwards; each time as after a reboot.
        fn after_boot(&self) -> Option<String> {
            let _ = fs::remove_file(self.path("run"));
            put(&self.path("cluster.toml"), &self.path("kept"), &self.path("run")).unwrap();
            fs::read_to_string(self.path("run")).ok()
        }
    }

    #[test]
    fn a_good_file_rules_and_the_last_good_keys_outlive_a_missing_or_wrong_one() {
        let setup = Setup::new();
        assert_eq!(setup.after_boot(), None);
        setup.toml(&[KEY]);
        assert_eq!(setup.after_boot().unwrap(), format!("{KEY}\n"));
        fs::write(setup.path("cluster.toml"), "[cluster]\nname = oops").unwrap();
        assert_eq!(setup.after_boot().unwrap(), format!("{KEY}\n"));
        fs::remove_file(setup.path("cluster.toml")).unwrap();
        assert_eq!(setup.after_boot().unwrap(), format!("{KEY}\n"));
        setup.toml(&[]);
        assert_eq!(setup.after_boot(), None);
        fs::remove_file(setup.path("cluster.toml")).unwrap();
        assert_eq!(setup.after_boot(), None, "keys that a good file took away came back");
    }

    #[test]
    fn keys_are_in_place_even_where_they_cannot_be_kept() {
        let setup = Setup::new();
        setup.toml(&[KEY]);
        fs::create_dir_all(setup.path("kept/x")).unwrap();
        let outcome = put(&setup.path("cluster.toml"), &setup.path("kept"), &setup.path("run"));
        assert!(format!("{:#}", outcome.unwrap_err()).contains("until the next boot"));
        assert_eq!(fs::read_to_string(setup.path("run")).unwrap(), format!("{KEY}\n"));
    }
}
