// SPDX-License-Identifier: Apache-2.0
//! Programs this stands on, and running them.

use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// What must be installed, with the Debian package that has it.
const NEEDED: [(&str, &str); 7] = [
    ("dbus-daemon", "dbus-daemon"),
    ("hostname", "hostname"),
    ("ip", "iproute2"),
    ("mount", "mount"),
    ("nsenter", "util-linux"),
    ("ping", "iputils-ping"),
    ("unshare", "util-linux"),
];

/// Names everything that is missing, at once.
pub(crate) fn check() -> Result<()> {
    let mut missing: Vec<&str> =
        NEEDED.iter().filter(|(program, _)| find(program).is_none()).map(|(_, package)| *package).collect();
    if !kernel_may_have_wireguard() && find("wireguard-go").is_none() {
        missing.push("wireguard-go");
    }
    missing.dedup();
    if missing.is_empty() {
        if !kernel_may_have_wireguard() {
            File::options().read(true).write(true).open("/dev/net/tun").context(
                "wireguard-go needs /dev/net/tun, which this user may not open: run this as root, or `chmod 666` it",
            )?;
        }
        return Ok(());
    }
    let packages = missing.join(" ");
    bail!(
        "missing programs: install them with `apt-get install {packages}`, or run this in the toolbox (`tests/toolbox/enter`)"
    )
}

/// Loaded or built in. A module that could be loaded is the kernel's to say when the interface is made.
fn kernel_may_have_wireguard() -> bool {
    Path::new("/sys/module/wireguard").exists()
}

/// Full path of a program; looks where root's programs are, too.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// A command by name, found as [`find`] does.
pub(crate) fn command(program: &str) -> Result<Command> {
    Ok(Command::new(find(program).with_context(|| format!("`{program}` is not installed"))?))
}

/// Runs to the end; on failure the error holds what it said.
pub(crate) fn run(mut command: Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
