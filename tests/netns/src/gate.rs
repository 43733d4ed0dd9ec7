// SPDX-License-Identifier: Apache-2.0
//! The way in for later commands of a user without root.
//!
//! Such a user's namespaces belong to the user namespace of the command that made them. A later command runs in another
//! one and may not enter. So a process stays behind at the gate: it is handed the later command's arguments and terminal
//! over a Unix socket, runs it where it belongs, and hands its exit status back.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::{World, process::ends_within};

const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long a command may take to end after its caller went away; ending a cluster takes less.
const GIVE_UP: Duration = Duration::from_secs(60);

/// What a later command wants run.
#[derive(Serialize, Deserialize)]
struct Request {
    arguments: Vec<String>,
    dir: PathBuf,
    term: Option<String>,
}

/// Where this process's namespaces belong.
pub(crate) fn user_namespace() -> Result<String> {
    Ok(fs::read_link("/proc/self/ns/user")
        .context("failed to read /proc/self/ns/user")?
        .display()
        .to_string())
}

/// True when `world` was made by a user without root in another command, and must be reached through its gate.
pub fn is_needed(world: &World) -> Result<bool> {
    let Ok(owner) = fs::read_to_string(world.dir().join("user-namespace")) else { return Ok(false) };
    Ok(world.exists() && world.dir().join("gate.sock").exists() && owner != user_namespace()?)
}

/// Runs this very command on the other side; the exit status is its.
pub fn pass(world: &World) -> Result<u8> {
    let socket = world.dir().join("gate.sock");
    let mut stream = UnixStream::connect(&socket)
        .with_context(|| format!("nobody is at the gate `{}`", socket.display()))?;
    let request = Request {
        arguments: std::env::args().skip(1).collect(),
        dir: std::env::current_dir()?,
        term: std::env::var("TERM").ok(),
    };
    let mut text = serde_json::to_vec(&request)?;
    text.push(b'\n');
    let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
    let terminal = [input.as_fd(), output.as_fd(), error.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&terminal));
    let sent = sendmsg(&stream, &[IoSlice::new(&text)], &mut control, SendFlags::empty())?;
    stream.write_all(&text[sent..])?;
    let mut status = [0];
    stream.read_exact(&mut status).context("the command's status was not handed back")?;
    Ok(status[0])
}

/// Stays at the gate until it is ended.
pub fn keep(world: &World) -> Result<()> {
    let socket = world.dir().join("gate.sock");
    let listener = UnixListener::bind(&socket)
        .with_context(|| format!("failed to make the gate `{}`", socket.display()))?;
    for stream in listener.incoming() {
        let stream = stream?;
        let world = world.clone();
        thread::spawn(move || {
            if let Err(error) = serve(stream) {
                eprintln!("netns-cluster gate: {error:#}");
            }
            if !world.exists() {
                std::process::exit(0);
            }
        });
    }
    Ok(())
}

fn serve(mut stream: UnixStream) -> Result<()> {
    let (request, terminal) = receive(&mut stream)?;
    let mut command = Command::new("/proc/self/exe");
    command.args(&request.arguments).current_dir(&request.dir);
    if let Some(term) = request.term {
        command.env("TERM", term);
    }
    let Ok([input, output, error]) = <[OwnedFd; 3]>::try_from(terminal) else {
        bail!("the caller handed over no terminal")
    };
    command.stdin(input).stdout(output).stderr(error);
    let child = command.spawn();
    // Holds the terminal too; a pipe must end when the child does.
    drop(command);
    let status = wait(child?, &mut stream)?;
    stream.write_all(&[status])?;
    Ok(())
}

fn receive(stream: &mut UnixStream) -> Result<(Request, Vec<OwnedFd>)> {
    let mut text = Vec::new();
    let mut terminal = Vec::new();
    while text.last() != Some(&b'\n') {
        let mut buffer = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = recvmsg(&*stream, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags)?;
        for control in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = control {
                terminal.extend(descriptors);
            }
        }
        if message.bytes == 0 {
            bail!("the caller went away");
        }
        text.extend_from_slice(&buffer[..message.bytes]);
    }
    Ok((serde_json::from_slice(&text)?, terminal))
}

/// Waits for the child as long as its caller does; interrupts it when the caller goes away (Ctrl-C reaches the caller
/// only), and kills it when it does not end then.
fn wait(mut child: Child, stream: &mut UnixStream) -> Result<u8> {
    stream.set_read_timeout(Some(LOOK_AGAIN))?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        }
        // Waits for LOOK_AGAIN.
        if matches!(stream.read(&mut [0]), Ok(0)) {
            break;
        }
    }
    kill(Pid::from_raw(child.id().try_into()?), Signal::SIGINT)?;
    if !ends_within(GIVE_UP, || matches!(child.try_wait(), Ok(None))) {
        child.kill()?;
        let _ = ends_within(GIVE_UP, || matches!(child.try_wait(), Ok(None)));
    }
    bail!("the caller went away")
}

/// Whether the current user is root of a user namespace only.
pub(crate) fn is_root_of_namespace_only() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}

/// The arguments that make this program the gate's keeper.
pub(crate) fn keeper(executable: &Path, cluster: &str) -> Command {
    let mut command = Command::new(executable);
    command.args(["--cluster", cluster, "gate"]);
    command
}
