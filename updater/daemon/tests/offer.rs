// SPDX-License-Identifier: Apache-2.0
//! What a node serves: releases that were imported, and those whose root image is in a slot only.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    fs,
    net::SocketAddr,
    os::unix::{fs::FileExt as _, net::UnixListener},
};

use cluster_updater::{
    folder::Folder,
    paths::Paths,
    releases::{Releases, seam::Place},
    updater::Updater,
};
use cluster_updater_core::{Version, serving::Range, sources::Prefix, verity::BLOCK_BYTES};
use common::{
    BLOCKS, Lab, RUNNING, bytes,
    members::{fetcher, patient, runtime, serve},
    version,
};

/// A node and the address at which its releases are served.
fn node(lab: &Lab) -> (Updater, SocketAddr) {
    let paths = Paths { releases: lab.path("control"), ..lab.paths() };
    let (releases, runtime) = (Releases::default(), runtime());
    releases.answer(UnixListener::bind(&paths.releases).unwrap(), runtime.clone());
    let address = serve(releases, &runtime, patient());
    let updater = Updater::new(paths, lab.host("boot")).unwrap();
    updater.offer();
    (updater, address)
}

fn held(updater: &Updater) -> Vec<(Version, Prefix)> {
    updater.held().borrow().clone()
}

/// A block from byte `first` on.
fn part(first: u64) -> Range {
    Range { first, bytes: BLOCK_BYTES as u64 }
}

#[test]
fn an_imported_release_is_served_and_one_whose_image_is_in_the_other_slot_too() {
    let lab = Lab::new();
    let image = bytes(31, BLOCKS as usize * BLOCK_BYTES);
    let dir = lab.release("1.1", &image);
    let release = lab.open(&dir);
    let prefix = Prefix::of(&release.manifest.root.hash);
    let (updater, address) = node(&lab);
    assert!(held(&updater).is_empty());
    let place = Place { address, prefix };
    assert!(fetcher().list(place).is_err(), "what is not there is served");

    updater.import(Folder::open(&dir).unwrap().into_fd()).unwrap();
    assert_eq!(held(&updater), [(version("1.1"), prefix)]);
    let root = release.manifest.files().root;
    let listed = fetcher().list(place).unwrap();
    assert!(listed.contains(&(root.clone(), image.len() as u64)), "{listed:?}");
    assert!(listed.iter().any(|(name, _)| name == "manifest.json"));

    // Staged from members it would have no image in /var.
    fs::remove_file(lab.path("state/releases/1.1").join(&root)).unwrap();
    updater.offer();
    assert!(held(&updater).is_empty(), "an image that is nowhere is announced");
    assert!(fetcher().list(place).is_err(), "what is no longer there is served");

    lab.stage(&release).unwrap();
    let other = lab.slots().other.data;
    let mut slot = vec![0; other.bytes as usize];
    fs::File::open(lab.disk_path()).unwrap().read_exact_at(&mut slot, other.offset).unwrap();
    fs::write(lab.path("other-root"), slot).unwrap();
    updater.offer();
    assert_eq!(held(&updater), [(version("1.1"), prefix)]);
    let mut block = vec![0; BLOCK_BYTES];
    fetcher().get(place, &root, &[part(5 * BLOCK_BYTES as u64)], &mut block).unwrap();
    assert_eq!(block, image[5 * BLOCK_BYTES..6 * BLOCK_BYTES]);
    // The partition is longer than the image.
    assert!(fetcher().get(place, &root, &[part(image.len() as u64)], &mut block).is_err());
}

#[test]
fn a_release_that_runs_is_served_from_the_root_device() {
    let lab = Lab::new();
    // The image that runs in this lab is a release, too.
    let dir = lab.release(RUNNING, &lab.image);
    let prefix = Prefix::of(&lab.hash);
    let kept = lab.path("state/releases").join(RUNNING);
    fs::create_dir_all(&kept).unwrap();
    for entry in fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(entry.path(), kept.join(entry.file_name())).unwrap();
    }
    fs::write(lab.path("root-device"), &lab.image).unwrap();
    let (updater, address) = node(&lab);
    assert_eq!(held(&updater), [(version(RUNNING), prefix)]);
    let root = lab.open(&dir).manifest.files().root;
    assert!(!kept.join(&root).exists(), "what runs fills /var a second time");
    let mut block = vec![0; BLOCK_BYTES];
    fetcher().get(Place { address, prefix }, &root, &[part(0)], &mut block).unwrap();
    assert_eq!(block, lab.image[..BLOCK_BYTES]);
    assert!(updater.status().releases.is_empty(), "what has no image of its own is shown as imported");
}

#[test]
fn nothing_is_announced_where_nothing_serves() {
    let lab = Lab::new();
    let dir = lab.release("1.1", &bytes(31, BLOCKS as usize * BLOCK_BYTES));
    let (updater, _) = node(&lab);
    updater.import(Folder::open(&dir).unwrap().into_fd()).unwrap();
    assert_eq!(held(&updater).len(), 1);
    fs::remove_file(lab.path("control")).unwrap();
    updater.offer();
    assert!(held(&updater).is_empty());
}
