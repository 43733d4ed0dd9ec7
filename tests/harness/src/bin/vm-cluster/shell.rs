// SPDX-License-Identifier: Apache-2.0
//! `shell`: a command in a VM, or a shell on a terminal of its own.

use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use cluster_harness::client::{Client, Running, Vm};
use cluster_harness::state::ClusterDir;
use nix::sys::termios::{self, SetArg};

/// Shell in VM N, or run a command there
///
/// One argument is a line for the guest's shell, several are a command and its arguments as they are. Standard output
/// and standard error stay separate, piped input is passed on, and the exit status is that of the command.
#[derive(Args)]
pub(crate) struct Shell {
    /// Number of the VM
    vm: u32,
    /// Do not pass standard input to the command
    #[arg(short = 'n', long)]
    no_stdin: bool,
    /// What to run (default: an interactive shell)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) fn run(client: &Client, verb: &Shell) -> Result<ExitCode> {
    let vm = client.vm(verb.vm);
    let words: Vec<&str> = verb.command.iter().map(String::as_str).collect();
    let argv = match words.as_slice() {
        [] => return interactive(client, vm),
        [line] => vec!["bash", "-c", line],
        several => several.to_vec(),
    };
    let input = if verb.no_stdin { None } else { piped_input()? };
    let output = vm.exec(&argv, input.as_deref(), None)?;
    std::io::stdout().write_all(&output.stdout)?;
    std::io::stderr().write_all(&output.stderr)?;
    Ok(ExitCode::from(output.status as u8))
}

/// Standard input, if it is a pipe or a file.
fn piped_input() -> Result<Option<Vec<u8>>> {
    let stdin = std::io::stdin();
    let kind = std::fs::File::from(stdin.as_fd().try_clone_to_owned()?).metadata()?.file_type();
    if !(kind.is_fifo() || kind.is_file() || kind.is_socket()) {
        return Ok(None);
    }
    let mut input = Vec::new();
    stdin.lock().read_to_end(&mut input)?;
    Ok(Some(input))
}

/// The unit that holds the shell in the guest.
const UNIT: &str = "vm-cluster-shell";

/// A login shell on hvc0, which QEMU offers as a Unix socket.
fn interactive(client: &Client, vm: Vm<'_>) -> Result<ExitCode> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!(
            "an interactive shell needs a terminal: give a command, like `vm-cluster shell {} hostname`",
            vm.number()
        );
    }
    let console = console(client.dir(), vm.number())?;
    let term = std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned());
    let (width, height) = size();
    vm.sh(&format!("stty -F /dev/hvc0 sane rows {height} cols {width}"))?;
    let properties = ["StandardInput=tty", "StandardOutput=tty", "StandardError=tty", "TTYPath=/dev/hvc0"];
    let environment = format!("--setenv=TERM={term}");
    let mut arguments = vec![
        "systemd-run",
        "--quiet",
        "--wait",
        "--collect",
        "--unit",
        UNIT,
        &environment,
        "--setenv=HOME=/root",
        "--working-directory=/root",
    ];
    properties.iter().for_each(|property| arguments.extend(["-p", property]));
    arguments.extend(["bash", "-l"]);
    let shell = vm.spawn(&arguments, None)?;

    let saved = termios::tcgetattr(&stdin)?;
    let mut raw = saved.clone();
    termios::cfmakeraw(&mut raw);
    termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
    let result = relay(vm, &console, &shell);
    termios::tcsetattr(&stdin, SetArg::TCSANOW, &saved)?;
    // The guest may have closed it already.
    let _ = console.shutdown(std::net::Shutdown::Both);
    let status = result?;
    println!();
    Ok(ExitCode::from(status))
}

fn console(dir: &ClusterDir, vm: u32) -> Result<UnixStream> {
    let path = dir.vm(vm).console();
    UnixStream::connect(&path)
        .with_context(|| format!("VM {vm} has no console at `{}`: is it on?", path.display()))
}

/// Carries bytes both ways, and changes of the window's size, until the shell ends.
fn relay(vm: Vm<'_>, console: &UnixStream, shell: &Running<'_>) -> Result<u8> {
    let (mut from, mut to) = (console.try_clone()?, console.try_clone()?);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let mut out = std::io::stdout();
            if out.write_all(&buffer[..length]).and_then(|()| out.flush()).is_err() {
                break;
            }
        }
    });
    // Reads standard input until the process ends.
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
    });
    let mut window = size();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        if let Some(output) = shell.ended()? {
            std::io::stderr().write_all(&output.stderr)?;
            return Ok(output.status as u8);
        }
        let now = size();
        if now != window {
            window = now;
            vm.sh(&format!("stty -F /dev/hvc0 rows {} cols {}", now.1, now.0))?;
        }
    }
}

fn size() -> (u16, u16) {
    let size = terminal_size::terminal_size().map(|(width, height)| (width.0, height.0));
    size.filter(|(width, height)| *width > 0 && *height > 0).unwrap_or((80, 24))
}
