// SPDX-License-Identifier: Apache-2.0
//! The interface on the bus is the one in `org.clusteros.Updater1.xml`; and what the updater says of a node.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    fs,
    os::unix::net::UnixStream,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use cluster_updater::{
    bus::{NAME, PATH, Service},
    folder::Folder,
    report::{OtherState, StatusReport},
    updater::Updater,
};
use cluster_updater_core::{Esp as _, verity::BLOCK_BYTES};
use common::{Lab, RUNNING, bytes, run, version};
use nix::fcntl::{Flock, FlockArg};
use zbus::{Connection, connection};

fn updater(lab: &Lab, boot: &str) -> Updater {
    Updater::new(lab.paths(), lab.host(boot)).unwrap()
}

/// The object on one end of a socket pair, a caller on the other: no bus daemon is needed.
async fn connected(updater: Updater) -> (Connection, Connection) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let guid = "0123456789abcdef0123456789abcdef";
    let service = Service::new(Arc::new(updater));
    let server = connection::Builder::unix_stream(ours).server(guid).p2p().serve_at(PATH, service);
    let client = connection::Builder::unix_stream(theirs).p2p();
    let (server, client) = tokio::join!(server.build(), client.build());
    (server.unwrap(), client.unwrap())
}

/// The `<interface>` element of one name, without comments and indentation.
fn interface(xml: &str, name: &str) -> Vec<String> {
    let start = xml.find(&format!("<interface name=\"{name}\">")).expect("the interface is there");
    let end = xml[start..].find("</interface>").expect("and ends") + start;
    let mut element = xml[start..end].to_owned();
    while let Some(comment) = element.find("<!--") {
        let length = element[comment..].find("-->").expect("a comment ends") + "-->".len();
        element.replace_range(comment..comment + length, "");
    }
    element.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[tokio::test]
async fn the_running_object_has_the_interface_of_the_file() {
    let (_server, client) = connected(updater(&Lab::new(), "boot")).await;
    let reply = client
        .call_method(None::<&str>, PATH, Some("org.freedesktop.DBus.Introspectable"), "Introspect", &())
        .await
        .unwrap();
    let running: String = reply.body().deserialize().unwrap();
    let file = include_str!("../org.clusteros.Updater1.xml");
    assert_eq!(interface(&running, NAME), interface(file, NAME), "the running object:\n{running}");
}

#[tokio::test]
async fn whoever_cannot_show_to_be_root_reads_the_status_and_nothing_else() {
    let lab = Lab::new();
    let (_server, client) = connected(updater(&lab, "boot")).await;
    // A peer without a bus in between has no name whose user could be asked for.
    for method in ["History", "Rollback", "Reboot", "CancelReboot", "RefreshBootLoader"] {
        let error = client.call_method(None::<&str>, PATH, Some(NAME), method, &()).await.unwrap_err();
        assert!(error.to_string().contains("only root"), "{method}: {error}");
    }
    let error = client
        .call_method(None::<&str>, PATH, Some(NAME), "ScheduleReboot", &(1u64, true))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("only root"), "{error}");
    let error = client.call_method(None::<&str>, PATH, Some(NAME), "Stage", &"").await.unwrap_err();
    assert!(error.to_string().contains("only root"), "{error}");
    let folder = zbus::OwnedFd::from(Folder::open(lab.dir.path()).unwrap().into_fd());
    let error = client.call_method(None::<&str>, PATH, Some(NAME), "Import", &folder).await.unwrap_err();
    assert!(error.to_string().contains("only root"), "{error}");
    let reply = client.call_method(None::<&str>, PATH, Some(NAME), "Status", &()).await.unwrap();
    let status: StatusReport = serde_json::from_str(&reply.body().deserialize::<String>().unwrap()).unwrap();
    assert_eq!(status.version, version(RUNNING));
}

#[test]
fn the_status_says_what_is_where() {
    let lab = Lab::new();
    let first = updater(&lab, "first").status();
    assert_eq!(
        (first.slot, first.marked_good, first.other.state),
        (Some('a'), Some(true), OtherState::Empty)
    );
    assert_eq!((first.trust.root_version, first.trust.development), (1, true));
    assert_eq!(first.problems, [""; 0]);

    let dir = lab.release("1.1", &bytes(31, 100 * BLOCK_BYTES));
    let node = updater(&lab, "first");
    assert_eq!(node.import(Folder::open(&dir).unwrap().into_fd()).unwrap(), version("1.1"));
    lab.stage(&lab.open(&dir)).unwrap();
    let staged = updater(&lab, "first").status();
    assert_eq!(staged.releases, [version("1.1")]);
    assert_eq!((staged.other.state, staged.other.tries_left), (OtherState::Staged, Some(3)));
    assert_eq!(staged.other.reason, None);

    // Neither boot loader nor firmware says why something else was started.
    let store = cluster_updater::store::Store::attach(&lab.path("state")).unwrap();
    store.tell("first", "staged", &version("1.1"), "");
    assert_eq!(updater(&lab, "first").status().other.reason, None);
    let passed_over = updater(&lab, "second").status().other;
    let reason = passed_over.reason.unwrap();
    assert!(
        passed_over.state == OtherState::Staged && reason.contains("the boot loader passed it over"),
        "{reason}"
    );
    let entry = fs::File::options().write(true).open(lab.entries().join("cluster-os_1.1+3-0.efi")).unwrap();
    let whole = entry.metadata().unwrap().len();
    entry.set_len(whole - 1).unwrap();
    let reason = updater(&lab, "second").status().other.reason.unwrap();
    assert!(reason.contains(&format!("has {} bytes instead of {whole}", whole - 1)), "{reason}");
    entry.set_len(whole).unwrap();

    // The boot loader gave it up.
    lab.esp().rename("cluster-os_1.1+3-0.efi", "cluster-os_1.1+0-3.efi").unwrap();
    let failed = updater(&lab, "second").status();
    assert_eq!(failed.other.state, OtherState::Failed);
    assert!(failed.other.reason.unwrap().contains("did not come up"));
    store.tell("second", "fail", &version("1.1"), "the agent does not answer");
    let told = updater(&lab, "third").status();
    assert_eq!(told.other.reason.as_deref(), Some("the agent does not answer"));
    let events: Vec<String> = store.history().into_iter().map(|event| event.what).collect();
    assert_eq!(events, ["booted", "imported", "staged", "booted", "fail", "booted"]);
}

#[test]
fn what_fails_is_kept_and_does_not_block_what_follows() {
    let lab = Lab::new();
    let node = updater(&lab, "boot");
    let error = format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
    assert!(error.contains("was imported here or is held by a member"), "{error}");
    assert!(node.status().last_failure.unwrap().contains("was imported here or is held by a member"));
    let same = lab.release(RUNNING, &bytes(32, 100 * BLOCK_BYTES));
    let error = format!("{:#}", node.import(Folder::open(&same).unwrap().into_fd()).unwrap_err());
    assert!(error.contains("is what runs"), "{error}");
    let dir = lab.release("1.1", &bytes(33, 100 * BLOCK_BYTES));
    node.import(Folder::open(&dir).unwrap().into_fd()).unwrap();
    assert_eq!(node.status().last_failure, None);
    // There is no ESP to mount here: the disk must be as it was.
    let before = fs::read(lab.disk_path()).unwrap();
    let error = format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
    assert!(error.contains("failed to mount the ESP"), "{error}");
    assert!(fs::read(lab.disk_path()).unwrap() == before);
    node.may_reboot().unwrap();
}

/// There is no ESP to mount here: whatever is refused for another reason was decided before.
#[test]
fn what_must_not_be_done_is_refused_before_the_esp_is_made_writable() {
    let lab = Lab::new();
    let node = updater(&lab, "boot");
    let dir = lab.release("1.1", &bytes(34, 100 * BLOCK_BYTES));
    node.import(Folder::open(&dir).unwrap().into_fd()).unwrap();
    lab.esp().rename("cluster-os_1.0.efi", "cluster-os_1.0+2-1.efi").unwrap();
    let error = format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
    assert!(error.contains("is on trial"), "{error}");
    let error = format!("{:#}", node.rollback().unwrap_err());
    assert!(error.contains("there is no version to go back to"), "{error}");
    assert!(!lab.path("given-up").exists());

    run(Command::new("sfdisk")
        .args(["-q", "--part-label"])
        .arg(lab.disk_path())
        .args(["5", "cluster-os_0.9"]));
    fs::write(lab.entries().join("cluster-os_0.9.efi"), "the version before").unwrap();
    let error = format!("{:#}", node.rollback().unwrap_err());
    assert!(error.contains("failed to mount the ESP"), "{error}");
    // Told before anything is renamed: from now on this boot is not marked good.
    assert!(lab.path("given-up").exists());
}

#[test]
fn who_else_writes_to_the_esp_is_waited_for() {
    let lab = Lab::new();
    let node = updater(&lab, "boot");
    let dir = lab.release("1.1", &bytes(35, 100 * BLOCK_BYTES));
    node.import(Folder::open(&dir).unwrap().into_fd()).unwrap();
    let lock = fs::File::create(lab.path("esp.lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
    let held = Duration::from_millis(300);
    let begin = Instant::now();
    let other = thread::spawn(move || {
        thread::sleep(held);
        drop(lock);
    });
    let error = format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
    assert!(error.contains("failed to mount the ESP") && begin.elapsed() >= held, "{error}");
    other.join().unwrap();
}

#[test]
fn the_way_back_is_not_given_up_for_a_release_that_was_damaged_since() {
    let lab = Lab::new();
    let node = updater(&lab, "boot");
    let dir = lab.release("1.1", &bytes(36, 100 * BLOCK_BYTES));
    node.import(Folder::open(&dir).unwrap().into_fd()).unwrap();
    let files = lab.open(&dir).manifest.files();
    for name in [&files.root, &files.uki, &files.boot_loader] {
        let kept = lab.path("state/releases/1.1").join(name);
        let good = fs::read(&kept).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        fs::write(&kept, bad).unwrap();
        let error = format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
        assert!(error.contains("damaged or changed"), "{name}: {error}");
        fs::write(&kept, good).unwrap();
    }
    // Whole, it comes as far as the ESP, which is none here.
    let error = format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
    assert!(error.contains("failed to mount the ESP"), "{error}");
}

/// Tries left and a newer version count for nothing then.
#[test]
fn an_entry_that_was_chosen_by_hand_is_named_and_ends_an_update() {
    let lab = Lab::new();
    let node = updater(&lab, "boot");
    let dir = lab.release("1.1", &bytes(37, 100 * BLOCK_BYTES));
    node.import(Folder::open(&dir).unwrap().into_fd()).unwrap();
    fs::create_dir(lab.path("efivars")).unwrap();
    for (name, verb) in [("LoaderEntryDefault", "set-default"), ("LoaderEntryOneShot", "set-oneshot")] {
        let variable = lab.path("efivars").join(format!("{name}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"));
        let text = "cluster-os_1.0.efi\0".encode_utf16().flat_map(u16::to_le_bytes);
        fs::write(&variable, [7, 0, 0, 0].into_iter().chain(text).collect::<Vec<u8>>()).unwrap();
        let error = format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
        assert!(error.contains("`cluster-os_1.0.efi`") && error.contains(verb), "{error}");
        // A failure forgets what was seen.
        let status = node.status();
        assert_eq!((status.obstacles.len(), status.problems.len()), (1, 0), "{status:?}");
        fs::write(&variable, [7, 0, 0, 0]).unwrap();
        let error = format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
        assert!(error.contains("failed to mount the ESP"), "{error}");
    }
}

/// Trees and block lists are as large as a manifest says.
#[test]
fn of_a_release_that_does_not_fit_only_the_manifest_is_read() {
    let lab = Lab::new();
    let node = updater(&lab, "boot");
    let dir = lab.release("1.1", &bytes(38, 600 * BLOCK_BYTES));
    let files = lab.open(&dir).manifest.files();
    fs::remove_file(dir.join(&files.tree)).unwrap();
    let error = format!("{:#}", node.import(Folder::open(&dir).unwrap().into_fd()).unwrap_err());
    assert!(error.contains("the other slot is too small"), "{error}");
}

/// The way back must not wait for a stick or a server. Here it is the history, which somebody else holds, that an import waits
/// for.
#[test]
fn an_import_that_hangs_blocks_neither_rollback_nor_restart() {
    let lab = Lab::new();
    let node = updater(&lab, "boot");
    let dir = lab.release("1.1", &bytes(39, 100 * BLOCK_BYTES));
    let history = fs::File::options().write(true).open(lab.path("state/history.lock")).unwrap();
    let history = Flock::lock(history, FlockArg::LockExclusive).map_err(|(_, error)| error).unwrap();
    let mut changes = node.changes();
    thread::scope(|scope| {
        let import = scope.spawn(|| node.import(Folder::open(&dir).unwrap().into_fd()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        while node.status().job.is_none() {
            runtime.block_on(changes.changed()).unwrap();
        }
        let busy = format!("{:#}", node.stage(None, Vec::new()).unwrap_err());
        assert!(busy.contains("the updater is busy (import"), "{busy}");
        let error = format!("{:#}", node.rollback().unwrap_err());
        assert!(error.contains("there is no version to go back to"), "{error}");
        node.may_reboot().unwrap();
        assert_eq!(node.status().job.unwrap().what, "import");
        drop(history);
        import.join().unwrap().unwrap();
    });
    assert_eq!(node.status().job, None);
}
