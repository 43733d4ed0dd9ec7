// SPDX-License-Identifier: Apache-2.0
//! Taking a release in: only what is signed and whole, and nothing is left of what is not.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use cluster_updater::{folder::Folder, make, release::OpenRelease, store::Store};
use cluster_updater_core::{keys::SecretKey, verity::BLOCK_BYTES};
use common::{Lab, bytes, key, version};

fn import(lab: &Lab, dir: &Path) -> anyhow::Result<Store> {
    let store = Store::open(&lab.path("store"))?;
    let trusted = store.trusted(&lab.path("root"))?;
    store.import(&OpenRelease::open(Folder::open(dir)?, trusted)?, &mut |_| {})?;
    Ok(store)
}

fn lab() -> (Lab, PathBuf) {
    let lab = Lab::new();
    lab.trusted();
    let dir = lab.release("1.1", &bytes(21, 300 * BLOCK_BYTES));
    (lab, dir)
}

fn left_in_store(lab: &Lab) -> Vec<String> {
    let names = fs::read_dir(lab.path("store/releases")).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_was_imported_can_be_staged_without_the_folder() {
    let (lab, dir) = lab();
    let store = import(&lab, &dir).unwrap();
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(store.versions(), [version("1.1")]);
    let release = store.release(&version("1.1"), lab.trusted()).unwrap();
    lab.stage(&release).unwrap();
    assert!(lab.is_safe(&release.manifest));
    store.remove_old(&version("1.0.5"));
    assert_eq!(store.versions(), [version("1.1")]);
    // What runs is in its slot; the rest stays for members that take it from here.
    store.remove_old(&version("1.1"));
    assert!(left_in_store(&lab) == ["1.1"] && !store.has_image(&version("1.1")));
    store.remove_old(&version("1.2"));
    assert_eq!(left_in_store(&lab), [""; 0]);
}

#[test]
fn whatever_is_wrong_is_named_and_nothing_is_left() {
    let (lab, dir) = lab();
    let files = lab.open(&dir).manifest.files();
    let signature = format!("manifest.json.{}.sig", key().public().id());
    let flip = |name: &str, at: usize| {
        let mut content = fs::read(dir.join(name)).unwrap();
        content[at] ^= 1;
        fs::write(dir.join(name), content).unwrap();
    };
    let cut = |name: &str| {
        let content = fs::read(dir.join(name)).unwrap();
        fs::write(dir.join(name), &content[..content.len() - 1]).unwrap();
    };
    let remove = |name: &str| fs::remove_file(dir.join(name)).unwrap();
    let link = |name: &str| {
        fs::rename(dir.join(name), lab.path("elsewhere")).unwrap();
        std::os::unix::fs::symlink(lab.path("elsewhere"), dir.join(name)).unwrap();
    };
    let sign = |with: &SecretKey| {
        make::sign(&dir.join("manifest.json"), with).unwrap();
    };
    type Change<'a> = Box<dyn Fn() + 'a>;
    let cases: Vec<(&str, Change<'_>)> = vec![
        ("does not match", Box::new(|| flip("manifest.json", 30))),
        ("does not match", Box::new(|| flip(&signature, 3))),
        ("must have 64 bytes", Box::new(|| cut(&signature))),
        ("not signed", Box::new(|| remove(&signature))),
        ("trusted are", Box::new(|| (remove(&signature), sign(&SecretKey::from_seed(&[9; 32]))).1)),
        ("failed to open `manifest.json`", Box::new(|| remove("manifest.json"))),
        ("block 7 of", Box::new(|| flip(&files.root, 7 * BLOCK_BYTES))),
        ("was cut off", Box::new(|| cut(&files.root))),
        ("does not lead to the root hash", Box::new(|| flip(&files.tree, BLOCK_BYTES + 40))),
        ("was cut off", Box::new(|| cut(&files.tree))),
        ("from byte 1048576 on", Box::new(|| flip(&files.uki, 1_200_000))),
        ("block list of the UKI", Box::new(|| flip(&files.uki_blocks, 5))),
        ("damaged or changed", Box::new(|| flip(&files.boot_loader, 5))),
        ("failed to open", Box::new(|| remove(&files.boot_loader))),
        ("failed to open", Box::new(|| link(&files.root))),
        ("failed to accept `root.2.json`", Box::new(|| fs::write(dir.join("root.2.json"), "{}").unwrap())),
    ];
    let good = lab.path("good");
    copy(&dir, &good);
    for (wanted, change) in cases {
        change();
        let error = format!("{:#}", import(&lab, &dir).err().unwrap_or_else(|| panic!("accepted: {wanted}")));
        assert!(error.contains(wanted), "`{wanted}` is not in: {error}");
        assert_eq!(left_in_store(&lab), [""; 0], "{wanted}");
        fs::remove_dir_all(&dir).unwrap();
        copy(&good, &dir);
    }
    assert!(import(&lab, &dir).is_ok());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The image of a node that slept through a rotation knows the first key only.
#[test]
fn a_rotation_that_comes_with_a_release_is_followed_and_kept() {
    let (lab, dir) = lab();
    let new = SecretKey::from_seed(&[2; 32]);
    copy(&lab.path("root"), &lab.path("roots"));
    make::next_root(&lab.path("roots"), &[new.public()], 1, true, &[key()]).unwrap_err();
    make::next_root(&lab.path("roots"), &[new.public()], 1, true, &[key(), SecretKey::from_seed(&[2; 32])])
        .unwrap();
    make::sign(&dir.join("manifest.json"), &new).unwrap();
    let error = format!(
        "{:#}",
        OpenRelease::open(Folder::open(&dir).unwrap(), {
            fs::remove_file(dir.join(format!("manifest.json.{}.sig", key().public().id()))).unwrap();
            lab.trusted()
        })
        .err()
        .unwrap()
    );
    assert!(error.contains("trusted are"), "{error}");

    copy(&lab.path("roots"), &dir);
    // Nobody has checked this one; it must not stand in the way of the real one later.
    fs::write(dir.join("root.4.json"), "junk").unwrap();
    let store = import(&lab, &dir).unwrap();
    assert_eq!(store.trusted(&lab.path("root")).unwrap().document().version, 2);
    assert!(!lab.path("store/root/root.4.json").exists());
    let old = lab.release("1.2", &bytes(22, 300 * BLOCK_BYTES));
    let error = format!("{:#}", import(&lab, &old).err().unwrap());
    assert!(error.contains("trusted are"), "a key that was rotated out: {error}");

    // Whoever still has the first key cannot have it count again by damage, nor by what lies beside a genuine release.
    let kept = fs::read(lab.path("store/root/root.2.json")).unwrap();
    let repacked = lab.path("repacked");
    copy(&dir, &repacked);
    fs::write(repacked.join("root.2.json"), "junk").unwrap();
    for number in 0..40 {
        fs::write(repacked.join(format!("root.2.json.{number:016x}.sig")), [0; 64]).unwrap();
    }
    let store = import(&lab, &repacked).unwrap();
    assert_eq!(store.trusted(&lab.path("root")).unwrap().document().version, 2);
    assert_eq!(fs::read(lab.path("store/root/root.2.json")).unwrap(), kept);
    fs::write(lab.path("store/root/root.2.json"), "junk").unwrap();
    let error = format!("{:#}", import(&lab, &old).err().unwrap());
    assert!(error.contains("root document 2 was accepted before"), "{error}");
    fs::remove_file(lab.path("store/root/root.2.json")).unwrap();
    assert!(store.trusted(&lab.path("root")).is_err());
    // The remedy that the message names.
    fs::remove_dir_all(lab.path("store/root")).unwrap();
    import(&lab, &dir).unwrap();
    assert_eq!(store.trusted(&lab.path("root")).unwrap().document().version, 2);
}

/// A node that begins with the second document cannot tell whether the first one is genuine: it passes on what it checked.
#[test]
fn root_documents_that_this_node_did_not_check_are_not_passed_on() {
    let (lab, dir) = lab();
    let new = SecretKey::from_seed(&[2; 32]);
    copy(&lab.path("root"), &lab.path("roots"));
    make::next_root(&lab.path("roots"), &[new.public()], 1, true, &[key(), SecretKey::from_seed(&[2; 32])])
        .unwrap();
    make::sign(&dir.join("manifest.json"), &new).unwrap();
    copy(&lab.path("roots"), &dir);
    fs::write(dir.join("root.1.json"), "junk").unwrap();
    let image = lab.path("image");
    copy(&lab.path("roots"), &image);
    let store = Store::open(&lab.path("store")).unwrap();
    store.keep_anchor(&image).unwrap();
    store.keep_anchor(&image).unwrap();
    let release = OpenRelease::open(Folder::open(&dir).unwrap(), store.trusted(&image).unwrap()).unwrap();
    store.import(&release, &mut |_| {}).unwrap();
    let kept = lab.path("store/releases/1.1");
    assert!(!kept.join("root.1.json").exists());
    // With it, a node that begins with the first one follows.
    let behind = Folder::open(&lab.path("root")).unwrap().anchor().unwrap();
    let followed = OpenRelease::open(Folder::open(&kept).unwrap(), behind).unwrap();
    assert_eq!(followed.root.document().version, 2);
}

#[test]
fn of_a_root_document_only_signatures_that_count_are_kept() {
    let (lab, dir) = lab();
    copy(&lab.path("root"), &lab.path("roots"));
    let new = SecretKey::from_seed(&[2; 32]);
    make::next_root(&lab.path("roots"), &[new.public()], 1, true, &[key(), SecretKey::from_seed(&[2; 32])])
        .unwrap();
    copy(&lab.path("roots"), &dir);
    make::sign(&dir.join("manifest.json"), &new).unwrap();
    let bogus = "root.2.json.00112233445566aa.sig";
    fs::write(dir.join(bogus), [0; 64]).unwrap();
    // Left by somebody beside a document that was never accepted.
    fs::create_dir_all(lab.path("store/root")).unwrap();
    for number in 0..40 {
        fs::write(lab.path("store/root").join(format!("root.2.json.{number:016x}.sig")), [0; 64]).unwrap();
    }
    let store = import(&lab, &dir).unwrap();
    assert_eq!(store.trusted(&lab.path("root")).unwrap().document().version, 2);
    let signatures = |folder: &str| {
        let names = fs::read_dir(lab.path(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("root.2.json.")).count()
    };
    assert_eq!((signatures("store/root"), signatures("store/releases/1.1")), (2, 2));
}

#[test]
fn root_image_tree_and_uki_of_different_builds_make_no_release() {
    let (lab, dir) = lab();
    let files = lab.open(&dir).manifest.files();
    let parts = |root: PathBuf, tree: PathBuf, uki: PathBuf| make::Parts {
        root,
        tree,
        uki,
        boot_loader: dir.join(&files.boot_loader),
    };
    let about = |number: &str| make::About {
        version: version(number),
        minimum_version: version("1.0"),
        architecture: "x86-64".into(),
        created: 0,
        severity: cluster_updater_core::manifest::Severity::Normal,
        notes: String::new(),
        components: Vec::new(),
    };
    let other = lab.release("1.3", &bytes(23, 300 * BLOCK_BYTES));
    let others = lab.open(&other).manifest.files();
    let at = |name: &str| dir.join(name);
    let cases = [
        ("1.1", parts(at(&files.root), at(&files.tree), other.join(&others.uki)), "different builds"),
        ("1.1", parts(at(&files.root), other.join(&others.tree), at(&files.uki)), "is not the tree of"),
        ("1.1", parts(at(&files.root), at(&files.root), at(&files.uki)), "superblock"),
        ("1.2", parts(at(&files.root), at(&files.tree), at(&files.uki)), "no IMAGE_VERSION of 1.2"),
    ];
    for (number, parts, wanted) in cases {
        let error = make::release(&parts, about(number), &lab.path("out")).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
        assert!(!lab.path("out").exists());
    }
}

#[test]
fn history_keeps_the_newest() {
    let lab = Lab::new();
    let store = Store::open(&lab.path("store")).unwrap();
    for time in 0..205 {
        store.note(&cluster_updater::store::Event {
            time,
            boot: "b".into(),
            what: "staged".into(),
            version: "1".into(),
            detail: String::new(),
        });
    }
    let history = store.history();
    assert_eq!((history.len(), history[0].time, history[199].time), (200, 5, 204));
}
