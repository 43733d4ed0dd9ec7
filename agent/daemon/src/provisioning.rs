// SPDX-License-Identifier: Apache-2.0
//! `cluster.toml` on its way from the config partition to the core.
//!
//! A wrong file never bricks a node: it is shown with line and fix, and the last good copy, kept in the state
//! directory, serves. So does it when the partition is missing or broken. Only a node that never had a good file is
//! unprovisioned.
//!
//! Reading is separate from watching: a [`Watcher`] only says that something *may* have changed.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd as _,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use cluster_agent_core::{Problem, Provisioning, Settings, consts::MAX_CLUSTER_TOML};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::{
    config_partition::{self, Host},
    paths::{CLUSTER_TOML, CONFIG_DIR},
    store::{Store, write_atomically},
    textfile,
};

/// What problems of the file are filed under.
const AREA: &str = "cluster.toml";
/// What a last good copy that cannot be written is filed under.
const UNKEPT: &str = "state";
/// An editor writes a file in several steps; one reading after the last serves.
const SETTLE: Duration = Duration::from_millis(100);

/// Reads the file, and the last good copy where the file does not serve; keeps a good file as the new copy.
#[must_use]
pub fn load(config_dir: &Path, store: &Store) -> Provisioning {
    // Development agents have config directories of their own, which are no partition.
    let host = (config_dir == Path::new(CONFIG_DIR)).then(Host::default);
    load_from(config_dir, store, host.as_ref())
}

fn load_from(config_dir: &Path, store: &Store, host: Option<&Host>) -> Provisioning {
    // A mount and its directory are noticed at once: two readings must not write one copy at the same time.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let file = config_dir.join(CLUSTER_TOML);
    let copy = store.path_of(CLUSTER_TOML);
    let mut problems = match read(&file) {
        Ok(Some(text)) => match Settings::parse(&text) {
            Ok(settings) => {
                let problems = keep(&copy, &text).err().map(|error| {
                    Problem::new(
                        UNKEPT,
                        format!("the last good cluster.toml cannot be kept: {error:#}"),
                        "free space on this node's disk or check it; it is tried again every few seconds",
                    )
                });
                return Provisioning { settings: Some(settings), problems: problems.into_iter().collect() };
            }
            Err(problems) => problems,
        },
        Ok(None) => match host.and_then(|host| config_partition::problem(config_dir, host)) {
            Some(unreadable) => vec![unreadable],
            None => missing(config_dir),
        },
        Err(problem) => vec![problem],
    };
    // A copy was checked when it was made. One that does not parse now is damaged, or older than a key that became
    // mandatory; either way the node is as if it had none.
    let settings = match read(&copy) {
        Ok(Some(text)) => Settings::parse(&text).ok(),
        _ => None,
    };
    if settings.is_some() {
        problems.push(Problem::new(
            AREA,
            "the last good copy is in use",
            "correct the file on the CLUSTER-OS partition, then restart the node",
        ));
    }
    Provisioning { settings, problems }
}

/// Whether nothing of it waits to be written.
#[must_use]
pub fn is_kept(provisioning: &Provisioning) -> bool {
    provisioning.problems.iter().all(|problem| problem.area != UNKEPT)
}

/// The text of the file at `path`, `None` if there is no file, or why it is no text. Editors on other systems are met half-way:
/// a byte order mark is skipped.
///
/// # Errors
/// A [`Problem`] for people.
pub fn read(path: &Path) -> std::result::Result<Option<String>, Problem> {
    let bytes = match textfile::read(path, MAX_CLUSTER_TOML) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(textfile::unreadable(AREA, path, &error)),
    };
    if bytes.len() > MAX_CLUSTER_TOML {
        return Err(Problem::new(
            AREA,
            format!("the file is larger than {} KiB", MAX_CLUSTER_TOML / 1024),
            "cluster.toml has a few lines; copy it again from another stick of this cluster",
        ));
    }
    Settings::decode(&bytes).map(Some)
}

/// No file is no mistake, except where one was plainly meant: systems that hide extensions save `cluster.toml.txt`.
fn missing(config_dir: &Path) -> Vec<Problem> {
    let meant = fs::read_dir(config_dir).ok().and_then(|entries| {
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).find(|name| {
            let name = name.to_lowercase();
            name.starts_with("cluster") && name.contains("toml") && name != CLUSTER_TOML
        })
    });
    meant
        .map(|name| Problem::new(AREA, format!("there is `{name}` instead"), "rename it to `cluster.toml`"))
        .into_iter()
        .collect()
}

fn keep(copy: &Path, text: &str) -> Result<()> {
    if fs::read(copy).is_ok_and(|now| now == text.as_bytes()) {
        return Ok(());
    }
    // It holds the join key: for root only.
    write_atomically(copy, text.as_bytes(), 0o600)?;
    info!("cluster.toml read and kept as the last good copy");
    Ok(())
}

/// Tells when the file, its directory, or what is mounted there may have changed.
#[derive(Debug)]
pub struct Watcher {
    changes: mpsc::Receiver<()>,
}

impl Watcher {
    /// Starts the thread that watches `config_dir`, existing or not.
    ///
    /// # Errors
    /// When the kernel gives no thread or no inotify instance.
    pub fn start(config_dir: &Path) -> Result<Self> {
        let (sender, changes) = mpsc::channel(1);
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .context("failed to watch the config directory (inotify)")?;
        // A partition that is mounted late gives no inotify event: the watch is on the directory underneath.
        let mounts = File::open("/proc/self/mountinfo").ok();
        let dir = config_dir.to_owned();
        thread::Builder::new()
            .name("config-watch".to_owned())
            .spawn(move || watch(&dir, &inotify, mounts.as_ref(), &sender))
            .context("failed to start the thread that watches cluster.toml")?;
        Ok(Self { changes })
    }

    /// Returns after the next change has settled; never when watching has become impossible. May be dropped and called
    /// again without missing one.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

fn watch(dir: &Path, inotify: &Inotify, mounts: Option<&File>, sender: &mpsc::Sender<()>) {
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_CREATE;
    loop {
        // Again at every round: adding a watch twice is harmless, and after a mount the path is another directory. The
        // one above it tells when the directory itself appears.
        for watched in dir.parent().into_iter().chain([dir]) {
            if let Err(error) = inotify.add_watch(watched, flags) {
                debug!(dir = %watched.display(), %error, "nothing to watch there yet");
            }
        }
        let mut sources = vec![PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        if let Some(mounts) = mounts {
            sources.push(PollFd::new(mounts.as_fd(), PollFlags::POLLPRI));
        }
        match poll(&mut sources, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                warn!(%error, "stopped watching cluster.toml; `systemctl reload cluster-agent` reads it again");
                return;
            }
        }
        thread::sleep(SETTLE);
        // Only that something happened matters, not what.
        let _ = inotify.read_events();
        if matches!(sender.try_send(()), Err(mpsc::error::TrySendError::Closed(()))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use cluster_agent_core::JoinKey;

    use super::*;

    fn good(name: &str) -> String {
        let key = JoinKey::generate(&[7; 37]).to_text();
        format!("[cluster]\nname = \"{name}\"\njoin_key = \"{key}\"\n")
    }

    struct Setup {
        dir: tempfile::TempDir,
        store: Store,
    }

    impl Setup {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&dir.path().join("state")).unwrap();
            fs::create_dir(dir.path().join("config")).unwrap();
            Self { dir, store }
        }

        fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
            fs::write(self.config().join(name), bytes).unwrap();
        }

        fn config(&self) -> PathBuf {
            self.dir.path().join("config")
        }

        fn load(&self) -> Provisioning {
            load(&self.config(), &self.store)
        }
    }

    #[test]
    fn without_any_file_the_node_is_unprovisioned_and_nothing_is_wrong() {
        let provisioning = Setup::new().load();
        assert!(provisioning.settings.is_none());
        assert!(provisioning.problems.is_empty());
        let nowhere = Setup::new();
        assert!(load(Path::new("/nonexistent"), &nowhere.store).settings.is_none());
    }

    #[test]
    fn readings_at_the_same_time_do_not_disturb_each_other() {
        let setup = Setup::new();
        setup.write(CLUSTER_TOML, good("blue"));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        assert_eq!(setup.load().problems, vec![]);
                    }
                });
            }
        });
    }

    #[test]
    fn a_wrong_file_is_named_by_line_while_the_last_good_copy_serves() {
        let setup = Setup::new();
        setup.write(CLUSTER_TOML, good("blue"));
        assert_eq!(setup.load().settings.unwrap().cluster_name, "blue");
        setup.write(CLUSTER_TOML, "[cluster]\nname = \"red\"\njoin_key = oops\n");
        let provisioning = setup.load();
        assert_eq!(provisioning.settings.unwrap().cluster_name, "blue");
        assert_eq!(provisioning.problems[0].line, Some(3), "{:?}", provisioning.problems);
        // The wrong one is not kept, and without the file the copy still serves.
        fs::remove_file(setup.config().join(CLUSTER_TOML)).unwrap();
        assert_eq!(setup.load().settings.unwrap().cluster_name, "blue");
    }

    #[test]
    fn a_copy_that_cannot_be_kept_is_named_until_it_can() {
        let setup = Setup::new();
        // A directory in the copy's place: rename fails as on a disk without room, for root too.
        let obstacle = setup.store.path_of(CLUSTER_TOML);
        fs::create_dir_all(obstacle.join("x")).unwrap();
        setup.write(CLUSTER_TOML, good("blue"));
        let provisioning = setup.load();
        assert!(provisioning.settings.is_some() && !is_kept(&provisioning));
        fs::remove_dir_all(&obstacle).unwrap();
        let provisioning = setup.load();
        assert!(is_kept(&provisioning) && provisioning.problems.is_empty());
    }

    #[test]
    fn files_of_other_systems_editors_are_read_or_explained() {
        let setup = Setup::new();
        setup.write(
            CLUSTER_TOML,
            [b"\xef\xbb\xbf".as_slice(), good("blue").replace('\n', "\r\n").as_bytes()].concat(),
        );
        assert!(setup.load().settings.is_some());

        let setup = Setup::new();
        setup.write(CLUSTER_TOML, b"\xff\xfe[\0c\0");
        assert!(setup.load().problems[0].message.contains("UTF-16"));

        let setup = Setup::new();
        setup.write(CLUSTER_TOML, b"[cluster]\nname = \"\xfcber\"\n");
        assert_eq!(setup.load().problems[0].line, Some(2));

        let setup = Setup::new();
        setup.write("cluster.toml.txt", good("blue"));
        assert!(setup.load().problems[0].message.contains("cluster.toml.txt"));

        let setup = Setup::new();
        setup.write(CLUSTER_TOML, vec![b'#'; MAX_CLUSTER_TOML + 1]);
        assert!(setup.load().problems[0].message.contains("larger"));
    }

    #[test]
    fn a_partition_that_cannot_be_read_is_not_a_missing_file() {
        let setup = Setup::new();
        let host = config_partition::tests::host(setup.dir.path(), Some("ext4"));
        let load = || load_from(&setup.config(), &setup.store, Some(&host));
        let unprovisioned = load();
        assert!(unprovisioned.settings.is_none());
        assert_eq!(unprovisioned.problems.len(), 1);
        assert!(unprovisioned.problems[0].to_string().contains("ext4"), "{}", unprovisioned.problems[0]);
        // A file that is there is read, whatever udev says; then its copy serves.
        setup.write(CLUSTER_TOML, good("blue"));
        assert_eq!(load().problems, vec![]);
        fs::remove_file(setup.config().join(CLUSTER_TOML)).unwrap();
        let with_copy = load();
        assert_eq!(with_copy.settings.unwrap().cluster_name, "blue");
        assert!(with_copy.problems[0].message.contains("ext4"), "{:?}", with_copy.problems);
        assert!(with_copy.problems[1].message.contains("last good copy"), "{:?}", with_copy.problems);
    }

    #[test]
    fn what_is_no_file_is_named() {
        let setup = Setup::new();
        fs::create_dir(setup.config().join(CLUSTER_TOML)).unwrap();
        assert!(setup.load().problems[0].message.contains("is a folder"));
        fs::remove_dir(setup.config().join(CLUSTER_TOML)).unwrap();
        for (bytes, says) in [(vec![0; 300], "not text"), (b"[\0c\0l\0u\0".to_vec(), "UTF-16")] {
            setup.write(CLUSTER_TOML, bytes);
            assert!(setup.load().problems[0].message.contains(says));
        }
        // As old Macs end lines.
        setup.write(CLUSTER_TOML, good("blue").replace('\n', "\r"));
        assert!(setup.load().settings.is_some());
    }

    #[tokio::test]
    async fn sees_that_the_partition_cannot_be_mounted() {
        let setup = Setup::new();
        let mut watcher = Watcher::start(&setup.config()).unwrap();
        let mark = setup.config().with_file_name("config-unreadable");
        let seen = tokio::time::timeout(Duration::from_secs(10), async {
            let changed = watcher.changed();
            tokio::pin!(changed);
            loop {
                // The thread may not watch yet at the first rounds.
                let _ = fs::remove_dir(&mark);
                fs::create_dir(&mark).unwrap();
                tokio::select! {
                    () = &mut changed => return,
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                }
            }
        });
        seen.await.unwrap();
    }

    #[tokio::test]
    async fn sees_the_directory_appear() {
        let setup = Setup::new();
        let late = setup.dir.path().join("late");
        let mut watcher = Watcher::start(&late).unwrap();
        let seen = tokio::time::timeout(Duration::from_secs(10), async {
            let changed = watcher.changed();
            tokio::pin!(changed);
            loop {
                // The thread may not watch yet at the first rounds.
                let _ = fs::remove_dir(&late);
                fs::create_dir(&late).unwrap();
                tokio::select! {
                    () = &mut changed => return,
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                }
            }
        });
        seen.await.unwrap();
    }

    #[tokio::test]
    async fn sees_a_file_appear_and_change() {
        let setup = Setup::new();
        let mut watcher = Watcher::start(&setup.config()).unwrap();
        // The first round of the thread adds the watch; writing until it is seen needs no sleep of a guessed length.
        let seen = tokio::time::timeout(Duration::from_secs(10), async {
            let changed = watcher.changed();
            tokio::pin!(changed);
            loop {
                setup.write(CLUSTER_TOML, good("blue"));
                tokio::select! {
                    () = &mut changed => return,
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                }
            }
        });
        seen.await.unwrap();
    }
}
