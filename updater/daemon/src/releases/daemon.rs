// SPDX-License-Identifier: Apache-2.0
//! The program: one socket to the mesh, one to `cluster-updater`.

use std::{
    fs::{self, Permissions},
    io,
    net::{Ipv6Addr, SocketAddr},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            fs::PermissionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use cluster_updater_core::sources::PORT;
use nix::unistd::geteuid;
use rustix::net::sockopt::socket_peercred;
use sd_notify::NotifyState;
use socket2::{Domain, Socket, Type};
use tokio::{net::TcpListener, runtime::Handle};
use tracing::{debug, error, info, warn};

use super::{
    fetch::{self, Failure, Fetcher},
    seam::{self, Answer, Question, can_be_asked, receive, send},
    server::{self, Limits},
    shelf::Shelf,
};
use crate::{logging, paths::MESH};

/// Connections that wait to be taken.
const BACKLOG: i32 = 32;

/// Gives releases to other members and fetches from them. It is run by cluster-releases.service and asked by
/// cluster-updater.
#[derive(Debug, Parser)]
#[command(name = "cluster-releases", version = crate::VERSION)]
struct Arguments {
    /// The interface whose peers are served.
    #[arg(long, default_value = MESH)]
    interface: String,
    /// Where cluster-updater asks.
    #[arg(long, default_value = seam::SOCKET)]
    control: PathBuf,
}

/// Runs until a socket fails.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let run = || -> Result<()> {
        logging::init("cluster-releases")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .build()
            .context("failed to start")?;
        let listener = listen(&arguments.interface)?;
        let control = control(&arguments.control)?;
        let releases = Releases::default();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener)?;
            releases.answer(control, Handle::current());
            if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
                debug!(%error, "systemd does not listen");
            }
            info!(interface = arguments.interface, port = PORT, "serving releases");
            releases.serve(listener, Limits::default()).await
        })
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            error!("{failure:#}");
            ExitCode::FAILURE
        }
    }
}

/// The port, on this interface only: what comes in elsewhere does not reach it, whatever the packet filter says.
fn listen(interface: &str) -> Result<std::net::TcpListener> {
    let failed = || format!("failed to listen on port {PORT} of interface `{interface}`");
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_only_v6(true)?;
        socket.set_reuse_address(true)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)).into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    Ok(open().with_context(failed)?.into())
}

/// For root, which has no rights over files and so is in this group; only root is answered.
fn control(path: &Path) -> Result<UnixListener> {
    let failed = || format!("failed to listen on `{}`", path.display());
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(failed),
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o660)).with_context(failed)?;
    Ok(listener)
}

/// What is served and how it is fetched.
#[derive(Clone, Default)]
pub struct Releases {
    shelf: Arc<Shelf>,
    limits: fetch::Limits,
}

impl Releases {
    /// One that is less patient with members: for tests.
    #[must_use]
    pub fn with_limits(limits: fetch::Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Serves members until the socket fails.
    ///
    /// # Errors
    /// When it fails.
    pub async fn serve(&self, listener: TcpListener, limits: Limits) -> Result<()> {
        server::serve(listener, self.shelf.clone(), limits).await.context("the socket to the mesh failed")
    }

    /// Answers whoever connects. While it fetches, the updater says over another connection what is served meanwhile: each
    /// has a thread of its own. Whoever is not root gets none.
    pub fn answer(&self, listener: UnixListener, runtime: Handle) {
        let releases = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let begun = stream.and_then(|stream| {
                    if is_root(&stream)? {
                        let (releases, runtime) = (releases.clone(), runtime.clone());
                        thread::Builder::new().spawn(move || {
                            if let Err(error) = releases.converse(&stream, &runtime) {
                                warn!(%error, "a conversation with cluster-updater ended early");
                            }
                        })?;
                    }
                    Ok(())
                });
                if let Err(error) = begun {
                    warn!(%error, "cluster-updater is not answered");
                }
            }
        });
    }

    /// Answers questions until the other end is gone.
    ///
    /// # Errors
    /// When it says what is not understood, or goes in the middle.
    pub fn converse(&self, stream: &UnixStream, runtime: &Handle) -> io::Result<()> {
        let mut fetcher = Fetcher::new(self.limits);
        loop {
            let mut open = Vec::new();
            let Some(question) = receive::<Question>(stream, &mut open)? else { return Ok(()) };
            let (answer, bytes) = self.reply(question, open, &mut fetcher, runtime)?;
            send(stream, &answer, &[])?;
            let mut stream = stream;
            io::Write::write_all(&mut stream, &bytes)?;
        }
    }

    fn reply(
        &self,
        question: Question,
        open: Vec<OwnedFd>,
        fetcher: &mut Fetcher,
        runtime: &Handle,
    ) -> io::Result<(Answer, Vec<u8>)> {
        let failed = |failure: Failure| Answer::Failed { fault: failure.fault, reason: failure.reason };
        let bytes = |got: Result<Vec<u8>, Failure>| match got {
            Ok(got) => Ok((Answer::Bytes(u32::try_from(got.len()).map_err(io::Error::other)?), got)),
            Err(failure) => io::Result::Ok((failed(failure), Vec::new())),
        };
        Ok(match question {
            Question::Clear => {
                self.shelf.clear();
                (Answer::Done, Vec::new())
            }
            Question::Serve(offer) => {
                info!(release = %offer.prefix, files = open.len(), "serving a release");
                self.shelf.put(offer, open)?;
                (Answer::Done, Vec::new())
            }
            Question::List { place, within } => {
                match runtime.block_on(fetcher.within(millis(within)).list(place)) {
                    Ok(files) => (Answer::Files(files), Vec::new()),
                    Err(failure) => (failed(failure), Vec::new()),
                }
            }
            Question::Get { place, name, ranges, within } => {
                ensure(can_be_asked(&ranges))?;
                bytes(runtime.block_on(fetcher.within(millis(within)).get(place, &name, &ranges)))?
            }
            Question::Outline { place, name, range, within } => {
                ensure(can_be_asked(&[range]))?;
                bytes(runtime.block_on(fetcher.within(millis(within)).outline(place, &name, range)))?
            }
        })
    }
}

fn ensure(can_be_asked: bool) -> io::Result<()> {
    if can_be_asked { Ok(()) } else { Err(io::Error::other("parts that no member gives")) }
}

fn millis(within: u32) -> Duration {
    Duration::from_millis(within.into())
}

/// Root, or in tests whoever runs this.
fn is_root(stream: &UnixStream) -> io::Result<bool> {
    let user = socket_peercred(stream.as_fd())?.uid.as_raw();
    Ok(user == 0 || user == geteuid().as_raw())
}
