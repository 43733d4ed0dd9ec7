// SPDX-License-Identifier: Apache-2.0
//! How a verb fails: a text that says what to do, and the exit code that `--help` promises.

use std::{fmt, fs, io, path::Path, process::ExitCode};

use zbus::fdo;

use crate::paths::MOVED;

/// Exit codes, as documented in `clusterctl --help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Anything without a code of its own.
    Failed = 1,
    /// The call was wrong.
    Usage = 2,
    /// There is no agent to ask.
    NotRunning = 3,
    /// No member by that name.
    UnknownNode = 4,
    /// Only root may.
    Denied = 5,
    /// It is under way, but was not done within the time given.
    NotInTime = 6,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// Why a verb failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// For people.
    pub message: String,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn not_running(cause: &str) -> Self {
        if let Some(text) = moved(MOVED.as_ref()) {
            return Self::new(Code::NotRunning, text);
        }
        Self::new(
            Code::NotRunning,
            format!(
                "the cluster agent is not running on this node ({cause})\n  \
                 see why:   systemctl status cluster-agent\n  \
                 its log:   journalctl -u cluster-agent -b\n  \
                 start it:  systemctl start cluster-agent"
            ),
        )
    }
}

/// What a node that was installed to another disk says of itself, in one line (updater/daemon/src/install/mark.rs).
fn moved(path: &Path) -> Option<String> {
    let mark: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let text = mark["text"].as_str()?;
    Some(text.chars().filter(|c| !c.is_control()).collect())
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        use zbus::Error;
        match error {
            Error::MethodError(..) => fdo::Error::from(error).into(),
            Error::FDO(error) => (*error).into(),
            Error::InputOutput(cause) => Self::not_running(&format!("no connection to D-Bus: {cause}")),
            error => Self::new(Code::Failed, format!("the request to the agent failed: {error}")),
        }
    }
}

impl From<fdo::Error> for Failure {
    fn from(error: fdo::Error) -> Self {
        match error {
            fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_) => {
                Self::not_running("it is not on D-Bus")
            }
            fdo::Error::NoReply(_) | fdo::Error::TimedOut(_) | fdo::Error::Disconnected(_) => {
                Self::not_running("it does not answer")
            }
            fdo::Error::AccessDenied(_) => {
                Self::new(Code::Denied, "only root may do this: log in as root, or use sudo")
            }
            fdo::Error::Failed(text) => Self::new(Code::Failed, text),
            error => Self::new(Code::Failed, format!("the request to the agent failed: {error}")),
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::new(
            Code::Failed,
            format!(
                "the agent's answer is not understood ({error}): clusterctl and cluster-agent must be of one release"
            ),
        )
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(Code::Failed, format!("failed to print: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_has_moved_says_where_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("moved");
        assert_eq!(moved(&path), None);
        fs::write(&path, r#"{"state":"moved","text":"installed to \u001b/dev/nvme0n1"}"#).unwrap();
        assert_eq!(moved(&path).unwrap(), "installed to /dev/nvme0n1");
        fs::write(&path, "{").unwrap();
        assert_eq!(moved(&path), None);
    }
}
