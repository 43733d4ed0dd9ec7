// SPDX-License-Identifier: Apache-2.0
//! Ours: a server that serves the new release as `cluster-releases` does, and a process that takes it as `cluster-updater`
//! and `cluster-releases` of a node together do, onto a disk in a file. The ESP is a folder: a loop device would need rights.

use std::{
    fs::{self, File},
    io::{self, Seek as _, SeekFrom, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::{
        fd::AsFd as _,
        unix::{fs::FileExt as _, net::UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use cluster_updater::{
    disk::BlockDisk,
    esp::{ENTRIES, Folder as EspFolder},
    folder::Folder,
    host::ARCHITECTURE,
    lists,
    obtain::{Wanted, obtain},
    peers::{PeerSource, Taking},
    releases::{
        Releases,
        seam::{Link, Offer},
        server,
    },
    store::Store,
    writer::{self, Devices, Release as Parts},
};
use cluster_updater_core::{
    Digest, Esp as _, Version,
    slot::{Facts, Slots, Staging},
    sources::{Holder, Patience, Prefix, Sources},
};
use tokio::runtime::{Builder, Handle};

use crate::{Pair, Release, Row, measure::measured, web::Web};

/// Partitions of the slot that runs, on [`prepare`]'s disk.
const UNDER_ROOT: [u32; 2] = [2, 3];
const SECTOR: u64 = 512;

pub(crate) fn bench(pair: &Pair, dir: &Path) -> Result<Row> {
    prepare(&pair.old, &pair.new, dir)?;
    let manifest = &pair.new.open.manifest;
    let prefix = Prefix::of(&manifest.root.hash);
    let web = Web::before(serve(&pair.new.dir, prefix)?)?;
    let old = &pair.old.open.manifest;
    let cost = measured(&[
        "self",
        "node",
        &dir.to_string_lossy(),
        &web.address.to_string(),
        &old.version.to_string(),
        &old.root.hash.to_string(),
        &manifest.version.to_string(),
        &prefix.to_string(),
    ])?;
    check(pair, dir)?;
    Ok(Row { name: String::new(), moved: web.sent(), cost, made: None, kinds: web.kinds() })
}

/// The disk of a node on which `old` runs, its boot entry, and the root documents that it trusts.
fn prepare(old: &Release, new: &Release, dir: &Path) -> Result<()> {
    let manifest = &old.open.manifest;
    let (data, tree) = manifest.root.partition_uuids();
    let version = &manifest.version;
    let verity = "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5";
    let root = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
    let table = format!(
        "label: gpt\n\
         size=1MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=ESP\n\
         size=64MiB, type={verity}, name=cluster-os_{version}_verity, uuid={tree}, attrs=\"GUID:60\"\n\
         size=4GiB, type={root}, name=cluster-os_{version}, uuid={data}, attrs=\"GUID:60\"\n\
         size=64MiB, type={verity}, name=_empty\n\
         size=4GiB, type={root}, name=_empty\n"
    );
    let path = dir.join("disk");
    File::create(&path)?.set_len((8 << 30) + (140 << 20))?;
    let mut sfdisk = Command::new("sfdisk").arg("-q").arg(&path).stdin(Stdio::piped()).spawn()?;
    sfdisk.stdin.take().context("sfdisk reads nothing")?.write_all(table.as_bytes())?;
    ensure!(sfdisk.wait()?.success(), "sfdisk could not partition `{}`", path.display());
    let active = slots(&path)?.active;
    let files = manifest.files();
    let mut disk = File::options().write(true).open(&path)?;
    for (name, offset) in [(&files.root, active.data.offset), (&files.tree, active.tree.offset)] {
        disk.seek(SeekFrom::Start(offset))?;
        io::copy(&mut File::open(old.dir.join(name))?, &mut disk)?;
    }
    disk.sync_all()?;
    let entries = dir.join("esp").join(ENTRIES);
    fs::create_dir_all(&entries)?;
    fs::copy(old.uki(), entries.join(format!("cluster-os_{version}.efi")))?;
    fs::copy(old.dir.join(&files.boot_loader), dir.join("boot-loader"))?;
    // What the old image would carry: the new release must be signed by its keys or their successors.
    fs::create_dir(dir.join("root"))?;
    let newest = new.trusted.document().version;
    for name in Folder::open(&new.dir)?.root_files(newest)? {
        fs::copy(new.dir.join(&name), dir.join("root").join(&name))?;
    }
    Ok(())
}

fn slots(disk: &Path) -> Result<Slots> {
    let table = writer::read_table(&mut BlockDisk::open(disk, SECTOR)?)?;
    Ok(Slots::find(&table, &UNDER_ROOT)?)
}

/// A loop that never ends, on a thread of its own.
fn runtime() -> Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
    let handle = runtime.handle().clone();
    thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    Ok(handle)
}

fn link(releases: Releases, runtime: Handle) -> Result<Link> {
    let (ours, theirs) = UnixStream::pair()?;
    thread::spawn(move || releases.converse(&theirs, &runtime));
    Ok(Link::over(ours))
}

fn serve(dir: &Path, prefix: Prefix) -> Result<SocketAddr> {
    let runtime = runtime()?;
    let releases = Releases::default();
    let (mut sizes, mut open) = (Vec::new(), Vec::new());
    for name in Folder::open(dir)?.names()? {
        let file = File::open(dir.join(&name))?;
        sizes.push((name, file.metadata()?.len()));
        open.push(file);
    }
    let files: Vec<_> = open.iter().map(|file| file.as_fd()).collect();
    link(releases.clone(), runtime.clone())?.serve(&Offer { prefix, files: sizes }, &files)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        releases.serve(listener, server::Limits::default()).await
    });
    Ok(address)
}

/// In the measured process: everything that `stage` of a node does, from the first question to the last flush.
pub(crate) fn receive(words: &[&str]) -> Result<()> {
    let [dir, member, running, hash, version, prefix] = words else { bail!("node needs six words") };
    let dir = Path::new(dir);
    let parse = |text: &str| Version::parse(text).context("not a version");
    let (running, version) = (parse(running)?, parse(version)?);
    let hash = Digest::parse(hash).context("not a root hash")?;
    let prefix = Prefix::parse(prefix).context("not a prefix")?;
    let holder = Holder { name: "n1".to_owned(), address: member.parse()?, version: version.clone(), prefix };
    let mut sources = Sources::new([holder], 0, Patience::LONG);
    let mut link = link(Releases::default(), runtime()?)?;
    let store = Store::open(&dir.join("state"))?;
    let trusted = Folder::open(&dir.join("root"))?.anchor()?;
    let entry = dir.join("esp").join(ENTRIES).join(format!("cluster-os_{running}.efi"));
    let wanted = Wanted {
        version: &version,
        prefix,
        trusted: &trusted,
        accept: &|_| Ok(()),
        running_uki: Some(File::open(entry)?),
        running_leaves: Some(lists::leaves(&dir.join("disk"), &slots(&dir.join("disk"))?.active)?),
        boot_loader: &dir.join("boot-loader"),
    };
    let mut taking = Taking { link: &mut link, sources: &mut sources, told: &|_| {} };
    let release = obtain(&store, &mut taking, &wanted, &mut |_| {})?;
    release.check_rest(|_, _, _| Ok(()))?;

    let mut disk = BlockDisk::open_to_write(&dir.join("disk"), SECTOR)?;
    let mut esp = EspFolder::of(&dir.join("esp"));
    let table = writer::read_table(&mut disk)?;
    let facts = Facts {
        table: &table,
        under_root: &UNDER_ROOT,
        entries: &esp.list()?,
        esp_free: esp.free()?,
        running: &running,
        architecture: ARCHITECTURE,
    };
    let mut staging = Staging::new(&facts, &release.manifest)?;
    let tree = writer::running_tree(&mut disk, &staging.slots.active, hash)?;
    let files = release.manifest.files();
    let mut source = PeerSource {
        taking: Taking { link: &mut link, sources: &mut sources, told: &|_| {} },
        root: files.root,
        tree: &release.tree,
        uki: release.folder.file_of(&files.uki, release.manifest.uki.bytes)?,
    };
    let parts = Parts { manifest: &release.manifest, tree: &release.tree, uki: &release.uki };
    let mut devices = Devices { disk: &mut disk, esp: &mut esp };
    writer::stage(&mut staging, &mut devices, &parts, &mut source, Some(&tree), &mut |_| {})?;
    Ok(())
}

/// What is in slot and ESP is the new release.
fn check(pair: &Pair, dir: &Path) -> Result<()> {
    let manifest = &pair.new.open.manifest;
    let other = slots(&dir.join("disk"))?.other;
    ensure!(other.is_labelled(manifest), "the other slot is not labelled with the new release");
    let mut image = vec![0; usize::try_from(manifest.root.data_bytes)?];
    File::open(dir.join("disk"))?.read_exact_at(&mut image, other.data.offset)?;
    ensure!(image == fs::read(pair.new.root())?, "the other slot does not hold the new root image");
    let entry = dir.join("esp").join(ENTRIES).join(format!("cluster-os_{}+3-0.efi", manifest.version));
    ensure!(fs::read(entry)? == fs::read(pair.new.uki())?, "the boot entry is not the new UKI");
    Ok(())
}
