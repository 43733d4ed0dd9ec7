// SPDX-License-Identifier: Apache-2.0
//! `clusterctl join-key`

use std::path::{Path, PathBuf};

use cluster_agent_core::{JoinKey, MAX_KEY_FILE, Settings, read_key_file};

use super::{
    Code, Failure,
    show::{out, problem},
};
use crate::textfile;

/// What can be done with join keys.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Make a cluster.toml with a new join key.
    Generate(Generate),
}

/// Makes a cluster.toml with a new join key. Needs no agent; works on any Linux PC.
///
/// The key is secret: any machine that has it can join the cluster. All nodes of a cluster have the same one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    clusterctl join-key generate > cluster.toml\n  \
    clusterctl join-key generate --name lab --ssh-key ~/.ssh/id_ed25519.pub > cluster.toml\n  \
    clusterctl join-key generate --key-only")]
pub(crate) struct Generate {
    /// Name of the cluster.
    #[arg(long, default_value = "cluster")]
    name: String,
    /// Public keys that may log in as root over SSH: a .pub file, or authorized_keys. May be given more than once.
    #[arg(long, value_name = "FILE")]
    ssh_key: Vec<PathBuf>,
    /// Print only the key.
    #[arg(long, conflicts_with = "json")]
    key_only: bool,
    /// Print a JSON object with `join_key` and `cluster_toml`.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(verb: &Verb) -> Result<(), Failure> {
    let Verb::Generate(arguments) = verb;
    if arguments.key_only {
        return out(&format!("{}\n", new_key()?));
    }
    let (key, text) = new_file(&arguments.name, &arguments.ssh_key)?;
    if arguments.json {
        let object = serde_json::json!({ "join_key": key, "cluster_toml": text });
        return out(&format!("{}\n", serde_json::to_string_pretty(&object)?));
    }
    out(&text)
}

/// A cluster.toml with a fresh join key, and that key.
pub(super) fn new_file(name: &str, ssh_key_files: &[PathBuf]) -> Result<(String, String), Failure> {
    let key = new_key()?;
    let mut ssh_keys: Vec<String> = Vec::new();
    for file in ssh_key_files {
        for key in keys_of(file)? {
            if !ssh_keys.contains(&key) {
                ssh_keys.push(key);
            }
        }
    }
    let text = cluster_toml(name, &key, &ssh_keys);
    // The agent will judge the file the same way: better to hear it now.
    if let Err(problems) = Settings::parse(&text) {
        let told: Vec<String> =
            problems.iter().map(|problem| format!("{}; {}", problem.message, problem.fix)).collect();
        return Err(Failure::new(Code::Usage, told.join("\n")));
    }
    Ok((key, text))
}

/// The keys in a file, or all that is wrong with it.
fn keys_of(file: &Path) -> Result<Vec<String>, Failure> {
    let name = file.display().to_string();
    let keys = match textfile::read(file, MAX_KEY_FILE) {
        Ok(bytes) => read_key_file(&name, &bytes),
        Err(error) => Err(vec![textfile::unreadable(&name, file, &error)]),
    };
    keys.map_err(|problems| {
        let told: String = problems.iter().map(problem).collect();
        Failure::new(
            Code::Failed,
            format!("no SSH keys are taken from `{name}`; nothing was written\n{}", told.trim_end()),
        )
    })
}

fn new_key() -> Result<String, Failure> {
    let mut random = [0; 37];
    getrandom::fill(&mut random).map_err(|error| {
        Failure::new(Code::Failed, format!("failed to get random bytes from the kernel: {error}"))
    })?;
    Ok(JoinKey::generate(&random).to_text())
}

fn cluster_toml(name: &str, key: &str, ssh_keys: &[String]) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut text = format!(
        "# Cluster-OS: put this file on the CLUSTER-OS partition of every node of the cluster.\n\
         # Keep it secret: any machine that has the join key can join the cluster.\n\n\
         [cluster]\n\
         name = {}\n\
         join_key = {}\n",
        quoted(name),
        quoted(key)
    );
    if ssh_keys.is_empty() {
        text.push_str("\n# Keys that may log in as root over SSH; there are no passwords.\n# [ssh]\n# authorized_keys = [\"ssh-ed25519 AAAA... you@example\"]\n");
    } else {
        text.push_str("\n[ssh]\nauthorized_keys = [\n");
        for key in ssh_keys {
            text.push_str(&format!("  {},\n", quoted(key)));
        }
        text.push_str("]\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_prints_is_a_cluster_toml_the_agent_takes() {
        let key = JoinKey::generate(&[9; 37]).to_text();
        let ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ4Dq1vXJ0pTqH0Rj8gWn5Q5Y7q1mYwq0H8dX5m5b3kS me@here"
            .to_owned();
        let settings = Settings::parse(&cluster_toml("lab", &key, std::slice::from_ref(&ssh))).unwrap();
        assert_eq!(settings.cluster_name, "lab");
        assert_eq!(settings.join_key.to_text(), key);
        assert_eq!(settings.authorized_keys, [ssh]);
        assert!(Settings::parse(&cluster_toml("lab", &key, &[])).unwrap().authorized_keys.is_empty());
        // A name that is none is refused rather than written.
        assert!(Settings::parse(&cluster_toml("not a \"name", &key, &[])).is_err());
    }
}
