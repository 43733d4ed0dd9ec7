// SPDX-License-Identifier: Apache-2.0
//! Staging by the daemon: which release it takes, and what it does not give up for one that cannot be had. There is no ESP to
//! mount here.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::net::UnixListener,
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use cluster_updater::{
    folder::Folder,
    paths::Paths,
    releases::{Releases, fetch},
    updater::Updater,
};
use cluster_updater_core::{
    sources::{Holder, Prefix},
    verity::BLOCK_BYTES,
};
use common::{
    Lab, bytes,
    members::{fake, runtime, say_nothing},
    run, version,
};

fn holder(number: &str, prefix: Prefix, address: SocketAddr) -> Holder {
    Holder { name: "n1".to_owned(), address, version: version(number), prefix }
}

fn import(node: &Updater, dir: &Path) {
    node.import(Folder::open(dir).unwrap().into_fd()).unwrap();
}

fn remove_image(lab: &Lab, number: &str) {
    let kept = lab.path("state/releases").join(number);
    let files = lab.open(&kept).manifest.files();
    fs::remove_file(kept.join(files.root)).unwrap();
}

/// Nobody serves here: what is in the slot needs no member.
#[test]
fn without_a_version_the_newest_that_can_be_had_is_taken_and_the_others_are_named() {
    let lab = Lab::new();
    let node = Updater::new(lab.paths(), lab.host("boot")).unwrap();
    let dir = lab.release("1.1", &bytes(51, 100 * BLOCK_BYTES));
    import(&node, &dir);
    lab.stage(&lab.open(&dir)).unwrap();
    remove_image(&lab, "1.1");
    let staged = node.stage(None, Vec::new()).unwrap();
    assert!(staged.already && staged.passed_over.is_empty(), "{staged:?}");

    import(&node, &lab.release("1.2", &bytes(52, 100 * BLOCK_BYTES)));
    remove_image(&lab, "1.2");
    let announced = holder("1.3", Prefix([7; 8]), SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
    let staged = node.stage(None, vec![announced]).unwrap();
    assert!(staged.already && staged.version == version("1.1"), "{staged:?}");
    let [newest, second] = staged.passed_over.as_slice() else { panic!("{staged:?}") };
    assert!(newest.starts_with("1.3: cluster-releases.service does not answer"), "{newest}");
    assert!(second.starts_with("1.2: no member gives the release any more"), "{second}");
    // Asked for, it is not replaced by another.
    let error = format!("{:#}", node.stage(Some(version("1.2")), Vec::new()).unwrap_err());
    assert!(error.contains("does not answer"), "{error}");
}

/// The member gives all but the root image, and then says nothing.
#[test]
fn the_way_back_stays_for_a_root_image_that_nobody_gives_and_can_be_taken_meanwhile() {
    let lab = Lab::new();
    run(Command::new("sfdisk")
        .args(["-q", "--part-label"])
        .arg(lab.disk_path())
        .args(["5", "cluster-os_0.9"]));
    fs::write(lab.entries().join("cluster-os_0.9.efi"), "the version before").unwrap();
    let dir = lab.release("1.1", &bytes(53, 300 * BLOCK_BYTES));
    let prefix = Prefix::of(&lab.open(&dir).manifest.root.hash);
    let member = fake(&dir, |stream, _, _| say_nothing(stream));

    let paths = Paths { releases: lab.path("control"), ..lab.paths() };
    let limits = fetch::Limits { stall: Duration::from_secs(1), answer: Duration::from_secs(3) };
    Releases::with_limits(limits).answer(UnixListener::bind(&paths.releases).unwrap(), runtime());
    let node = Updater::new(paths, lab.host("boot")).unwrap();
    let before = fs::read(lab.disk_path()).unwrap();
    let mut changes = node.changes();
    thread::scope(|scope| {
        let staging = scope.spawn(|| node.stage(None, vec![holder("1.1", prefix, member)]));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        while node.status().job.is_none() {
            runtime.block_on(changes.changed()).unwrap();
        }
        node.may_reboot().unwrap();
        let error = format!("{:#}", node.rollback().unwrap_err());
        assert!(error.contains("failed to mount the ESP"), "{error}");
        let error = format!("{:#}", staging.join().unwrap().unwrap_err());
        assert!(error.contains("nothing was changed") && error.contains("n1 stalled"), "{error}");
    });
    assert!(fs::read(lab.disk_path()).unwrap() == before);
    assert!(lab.entries().join("cluster-os_0.9.efi").exists());
    // What came before is kept, and nothing beside it.
    assert!(lab.open(&lab.path("state/releases/1.1")).check_rest(|_, _, _| Ok(())).is_ok());
}
