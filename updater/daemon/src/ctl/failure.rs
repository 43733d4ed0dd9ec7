// SPDX-License-Identifier: Apache-2.0
//! How a verb fails: a text that says what to do, and the exit code that `--help` promises.

use std::{fmt, process::ExitCode};

use zbus::fdo;

/// Exit codes, as documented in `cluster-update --help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Anything without a code of its own.
    Failed = 1,
    /// The call was wrong.
    Usage = 2,
    /// There is no updater to ask.
    NotRunning = 3,
    /// Only root may.
    Denied = 5,
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
        Self::new(
            Code::NotRunning,
            format!(
                "the updater is not running on this machine ({cause})\n  \
                 see why:   systemctl status cluster-updater\n  \
                 its log:   journalctl -u cluster-updater -b\n  \
                 start it:  systemctl start cluster-updater"
            ),
        )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Code::Failed, format!("{error:#}"))
    }
}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        use zbus::Error;
        match error {
            Error::MethodError(..) => fdo::Error::from(error).into(),
            Error::FDO(error) => (*error).into(),
            Error::InputOutput(cause) => Self::not_running(&format!("no connection to D-Bus: {cause}")),
            error => Self::new(Code::Failed, format!("the request to the updater failed: {error}")),
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
                Self::not_running("it ended before it was done")
            }
            fdo::Error::AccessDenied(_) => {
                Self::new(Code::Denied, "only root may do this: log in as root, or use sudo")
            }
            fdo::Error::InvalidArgs(text) => Self::new(Code::Usage, text),
            fdo::Error::Failed(text) => Self::new(Code::Failed, text),
            error => Self::new(Code::Failed, format!("the request to the updater failed: {error}")),
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::new(
            Code::Failed,
            format!(
                "the answer is not understood ({error}): cluster-update and cluster-updater must be of one release"
            ),
        )
    }
}
