// SPDX-License-Identifier: Apache-2.0
//! Broken releases in seconds: a good release with some bytes of its root image, its command line and its initrd changed, and
//! everything that hangs on them made anew (hash tree, root hash, manifest, signature). What a build would refuse is not refused
//! here; what a node checks before it installs a release is in order.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use cluster_updater::make::{self, About, Parts};
use cluster_updater_core::manifest::{Manifest, RootImage};
use cluster_updater_core::verity::{BLOCK_BYTES, Tree, hash_block, superblock};
use cluster_updater_core::{Version, manifest};

use crate::uki::{self, Section};

/// How os-release begins.
const OS_RELEASE: &str = "PRETTY_NAME=\"Cluster-OS ";

/// What is changed.
#[derive(Clone, Debug, Default)]
pub struct Forgery<'a> {
    /// Version of the forged release, as long as that of the good one.
    pub version: &'a str,
    /// In the root image.
    pub files: Vec<Edit<'a>>,
    /// Added to the command line.
    pub words: &'a str,
    /// Files that are added to the initrd, with their content. They take the place of the microcode, and whatever the initrd has
    /// of the same name wins.
    pub initrd: Vec<(&'a str, &'a str)>,
}

/// A change of a text file in the root image that is shorter than a block: those are neither compressed nor cut.
#[derive(Clone, Copy, Debug)]
pub struct Edit<'a> {
    /// How the file begins; no other does.
    pub file: &'a str,
    /// What it has once.
    pub from: &'a str,
    /// What it gets, at most as long; spaces fill the rest.
    pub to: &'a str,
}

/// Writes to the folder `to` the release in the folder `from` with `forgery` in it, signed with the key in the file `key`.
///
/// # Errors
/// When the release does not have what is to be changed, or the changes do not fit.
pub fn forge(from: &Path, to: &Path, key: &Path, forgery: &Forgery<'_>) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("failed to read `{}`", path.display()));
    let good = Manifest::parse(&read(&from.join(manifest::FILE_NAME))?)?;
    let files = good.files();
    let version =
        Version::parse(forgery.version).with_context(|| format!("`{}` is no version", forgery.version))?;
    let (before, after) = (good.version.to_string(), forgery.version);
    ensure!(before.len() == after.len(), "version {after} is not as long as {before}");

    let mut root = read(&from.join(&files.root))?;
    renumber(block_of(&mut root, OS_RELEASE)?, &before, after)?;
    for edit in &forgery.files {
        replace(block_of(&mut root, edit.file)?, edit)
            .with_context(|| format!("in the file that begins with `{}`", edit.file))?;
    }
    let leaves: Vec<_> = root.chunks(BLOCK_BYTES).map(|block| hash_block(&good.root.salt, block)).collect();
    let (tree, hash) = Tree::build(&good.root.salt, &leaves);

    let mut image = read(&from.join(&files.uki))?;
    renumber(uki::content(&mut image, ".osrel")?, &before, after)?;
    let line = uki::text(&image, ".cmdline")?;
    let (old, new) = (format!("roothash={}", good.root.hash), format!("roothash={hash}"));
    ensure!(line.matches(&old).count() == 1, "the command line does not have `{old}` once: {line}");
    let line = format!("{} {}", line.replace(&old, &new).trim_end(), forgery.words);
    Section::find(&image, ".cmdline")?.set(&mut image, line.trim_end().as_bytes())?;
    if !forgery.initrd.is_empty() {
        Section::find(&image, ".ucode")?.set(&mut image, &uki::archive(&forgery.initrd))?;
    }

    let parts_in = to.with_extension("parts");
    fs::create_dir_all(&parts_in).with_context(|| format!("failed to make `{}`", parts_in.display()))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = parts_in.join(name);
        fs::write(&path, bytes).with_context(|| format!("failed to write `{}`", path.display()))?;
        anyhow::Ok(path)
    };
    let head = superblock(&RootImage { hash, ..good.root });
    let parts = Parts {
        root: write("root", &root)?,
        tree: write("tree", &[&head[..], tree.bytes()].concat())?,
        uki: write("uki", &image)?,
        boot_loader: from.join(&files.boot_loader),
    };
    let about = About {
        version,
        minimum_version: good.minimum_version,
        architecture: good.architecture,
        created: good.created,
        severity: good.severity,
        notes: good.notes,
        components: good.components,
    };
    make::release(&parts, about, to)?;
    fs::remove_dir_all(&parts_in)?;
    make::sign(&to.join(manifest::FILE_NAME), &make::secret_key(key)?)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("root.") {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// The block that begins with `start`. Files begin with a block.
fn block_of<'a>(root: &'a mut [u8], start: &str) -> Result<&'a mut [u8]> {
    let mut found = root.chunks_mut(BLOCK_BYTES).filter(|block| block.starts_with(start.as_bytes()));
    let block = found.next().with_context(|| format!("no file of the root image begins with `{start}`"))?;
    ensure!(found.next().is_none(), "more than one file of the root image begins with `{start}`");
    Ok(block)
}

fn replace(block: &mut [u8], edit: &Edit<'_>) -> Result<()> {
    let (from, to) = (edit.from.as_bytes(), edit.to.as_bytes());
    ensure!(to.len() <= from.len(), "`{}` is longer than `{}`", edit.to, edit.from);
    let at = places(block, from);
    let [at] = at[..] else { bail!("`{}` is there {} times, not once", edit.from, at.len()) };
    block[at..at + from.len()].fill(b' ');
    block[at..at + to.len()].copy_from_slice(to);
    Ok(())
}

/// Puts another version into os-release.
fn renumber(text: &mut [u8], before: &str, after: &str) -> Result<()> {
    let places = places(text, before.as_bytes());
    ensure!(!places.is_empty(), "os-release does not have version {before}");
    for at in places {
        text[at..at + after.len()].copy_from_slice(after.as_bytes());
    }
    Ok(())
}

fn places(bytes: &[u8], what: &[u8]) -> Vec<usize> {
    let windows = bytes.windows(what.len().max(1)).enumerate();
    windows.filter(|(_, window)| *window == what).map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use cluster_updater::folder::Folder;
    use cluster_updater::release::OpenRelease;
    use cluster_updater_core::TrustedRoot;
    use cluster_updater_core::gpt::Guid;
    use cluster_updater_core::keys::SecretKey;
    use cluster_updater_core::manifest::Severity;

    use super::*;
    use crate::uki::tests::pe;

    const UNIT: &str = "[Service]\nExecStart=/usr/lib/a-program\n";
    const SALT: [u8; 32] = [5; 32];

    struct Lab {
        dir: tempfile::TempDir,
        root: TrustedRoot,
    }

    impl Lab {
        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn open(&self, name: &str) -> OpenRelease {
            let folder = Folder::open(&self.path(name)).expect("a folder");
            OpenRelease::open(folder, self.root.clone()).expect("a release")
        }
    }

    /// A release of three blocks, in `good`, and its key.
    fn lab() -> Lab {
        let dir = tempfile::tempdir().expect("a folder");
        let key = SecretKey::from_seed(&[1; 32]);
        let at = |name: &str| dir.path().join(name);
        fs::write(at("key"), key.to_pem()).expect("a key");
        let root = make::next_root(&at("good"), &[key.public()], 1, true, &[key]).expect("a root document");
        let os_release = format!("{OS_RELEASE}7.1 (Debian)\"\nIMAGE_VERSION=\"7.1\"\n");
        let mut blocks = Vec::new();
        for text in [os_release.as_str(), UNIT, "something else"] {
            let mut block = text.as_bytes().to_vec();
            block.resize(BLOCK_BYTES, 0);
            blocks.extend(block);
        }
        let leaves: Vec<_> = blocks.chunks(BLOCK_BYTES).map(|block| hash_block(&SALT, block)).collect();
        let (tree, hash) = Tree::build(&SALT, &leaves);
        let image = RootImage {
            data_bytes: blocks.len() as u64,
            data_blocks: 3,
            tree_bytes: 0,
            hash,
            salt: SALT,
            uuid: Guid([3; 16]),
        };
        fs::write(at("root"), &blocks).expect("a root image");
        fs::write(at("tree"), [&superblock(&image)[..], tree.bytes()].concat()).expect("a tree");
        let line = format!("roothash={hash} ro");
        let sections =
            [(".osrel", os_release.as_bytes()), (".cmdline", line.as_bytes()), (".ucode", &[7; 1500][..])];
        fs::write(at("uki"), pe(&sections)).expect("a UKI");
        fs::write(at("loader"), "a boot loader").expect("a boot loader");
        let parts = Parts { root: at("root"), tree: at("tree"), uki: at("uki"), boot_loader: at("loader") };
        let about = About {
            version: Version::parse("7.1").expect("a version"),
            minimum_version: Version::parse("7").expect("a version"),
            architecture: "x86-64".to_owned(),
            created: 1,
            severity: Severity::Normal,
            notes: String::new(),
            components: Vec::new(),
        };
        make::release(&parts, about, &at("good")).expect("a release");
        make::sign(&at("good/manifest.json"), &make::secret_key(&at("key")).expect("a key"))
            .expect("a signature");
        Lab { dir, root }
    }

    #[test]
    fn a_forged_release_passes_every_check_of_a_node() {
        let lab = lab();
        let forgery = Forgery {
            version: "7.2",
            files: vec![Edit { file: "[Service]\n", from: "/usr/lib/a-program", to: "/usr/bin/false" }],
            words: "rdinit=/nothing",
            initrd: vec![("etc/a.conf", "text")],
        };
        forge(&lab.path("good"), &lab.path("bad"), &lab.path("key"), &forgery).expect("a forged release");
        let (good, bad) = (lab.open("good"), lab.open("bad"));
        assert_eq!(bad.manifest.version.to_string(), "7.2");
        assert_ne!(bad.manifest.root.hash, good.manifest.root.hash);
        let mut root = Vec::new();
        bad.check_all(|name, _, bytes| {
            if name.ends_with(".root.raw") {
                root.extend_from_slice(bytes);
            }
            Ok(())
        })
        .expect("whole");
        let text = String::from_utf8(root).expect("text");
        assert!(text.contains("IMAGE_VERSION=\"7.2\"") && !text.contains("7.1"), "{text}");
        assert!(text.contains("ExecStart=/usr/bin/false    \n"), "{text}");
        let image = fs::read(lab.path("bad").join(bad.manifest.files().uki)).expect("a UKI");
        let line = uki::text(&image, ".cmdline").expect("a command line");
        assert_eq!(line, format!("roothash={} ro rdinit=/nothing", bad.manifest.root.hash));
        assert!(!lab.path("bad.parts").exists());
    }

    #[test]
    fn what_is_not_there_once_is_not_changed() {
        let lab = lab();
        let with = |edit| {
            let forgery = Forgery { version: "7.2", files: vec![edit], ..Forgery::default() };
            forge(&lab.path("good"), &lab.path("bad"), &lab.path("key"), &forgery)
                .map_err(|e| format!("{e:#}"))
        };
        let edit = Edit { file: "[Service]\n", from: "/usr/lib/a-program", to: "/" };
        let refused = |edit, why: &str| {
            let error = with(edit).expect_err(why);
            assert!(error.contains(why), "{error}");
        };
        refused(Edit { file: "[Unit]", ..edit }, "no file of the root image begins with");
        refused(Edit { from: "/usr/lib/no-program", ..edit }, "is there 0 times, not once");
        refused(Edit { from: "e", to: "", ..edit }, "times, not once");
        refused(Edit { from: "usr", to: "long", ..edit }, "is longer than");
    }
}
