// SPDX-License-Identifier: Apache-2.0
//! Archives as GNU tar writes them, whichever format somebody chose.

use std::{fs, process::Command};

use cluster_updater_core::archive::Reader;

#[test]
fn what_tar_writes_is_read() {
    let dir = std::env::temp_dir().join(format!("cluster-os-archive-{}", std::process::id()));
    fs::create_dir_all(dir.join("folder")).unwrap();
    fs::write(dir.join("folder/manifest.json"), "abc").unwrap();
    for format in ["ustar", "gnu", "pax"] {
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&dir).args([&format!("--format={format}"), "-cf", "-", "folder"]);
        let archive = tar.output().unwrap().stdout;
        let mut reader = Reader::new(archive.len() as u64);
        while let Some(at) = reader.wants() {
            reader.take(archive[at as usize..].first_chunk().unwrap()).unwrap();
        }
        let part = reader.parts()["manifest.json"];
        assert_eq!(&archive[part.offset as usize..][..part.bytes as usize], b"abc", "{format}");
    }
    fs::remove_dir_all(dir).unwrap();
}
