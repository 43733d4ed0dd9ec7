// SPDX-License-Identifier: Apache-2.0
//! Every parser of bytes from outside gets bytes that somebody changed: it refuses or reads them, and never panics.

use cluster_updater_core::{
    Digest, Manifest,
    archive::{self, Reader},
    entry::Entry,
    gpt::{Copy, Guid, Table},
    keys::{PublicKey, SecretKey},
    manifest::RootImage,
    root::RootDocument,
    serving::{Asked, is_name, parse_list, parse_path, path},
    sources::{MAX_RANGE, Prefix},
    verity::{self, BLOCK_BYTES, Tree, hash_block},
};

const MANIFEST: &str = r#"{"format":1,"image":"cluster-os","version":"1.2","architecture":"x86-64","created":1,"minimum_version":"1",
"severity":"normal","notes":"n","components":[{"name":"linux","version":"6"}],"root":{"data_bytes":8192,"data_blocks":2,"tree_bytes":8192,
"hash":"0505050505050505050505050505050505050505050505050505050505050505","salt":"0606060606060606060606060606060606060606060606060606060606060606",
"uuid":"07070707-0707-0707-0707-070707070707"},"uki":{"bytes":10,"blocks":"0808080808080808080808080808080808080808080808080808080808080808"},
"boot_loader":{"bytes":10,"sha256":"0909090909090909090909090909090909090909090909090909090909090909"},"extensions":[]}"#;

/// splitmix64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// A few bytes changed, cut out, or put in again elsewhere.
    fn mutate(&mut self, bytes: &[u8], from: usize) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let at = from + self.below(bytes.len().saturating_sub(from));
            match self.below(4) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.next() as u8,
                2 => bytes.truncate(at + 1),
                _ => {
                    let end = (at + self.below(20)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    let to = from + self.below(bytes.len() - from);
                    bytes.splice(to..to, piece);
                }
            }
        }
        bytes
    }
}

fn mutations(seed: u64, count: usize, bytes: &[u8], mut read: impl FnMut(&[u8]) -> bool) {
    assert!(read(bytes), "what is not changed is not read either");
    let mut random = Random(seed);
    let refused = (0..count).filter(|_| !read(&random.mutate(bytes, 0))).count();
    assert!(refused > count / 4, "only {refused} of {count} were refused");
}

#[test]
fn manifests() {
    mutations(1, 20_000, MANIFEST.as_bytes(), |bytes| {
        let read = Manifest::parse(bytes);
        // What is read is written and read again the same.
        if let Ok(manifest) = &read {
            assert_eq!(Manifest::parse(&manifest.to_bytes().unwrap()).as_ref(), Ok(manifest));
        }
        read.is_ok()
    });
}

/// What is found lies in the archive, whatever its headers say, and takes no more than a bounded number of them.
#[test]
fn archives() {
    let mut bytes = Vec::new();
    for (name, content) in [("manifest.json", &b"{}"[..]), ("release/a.efi", &[7; 900]), ("b.raw", &[])] {
        bytes.extend(archive::header(name, content.len() as u64).unwrap());
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend(archive::END);
    let read = |bytes: &[u8]| {
        let mut reader = Reader::new(bytes.len() as u64);
        let mut headers = 0;
        while let Some(at) = reader.wants() {
            headers += 1;
            assert!(headers <= archive::MAX_HEADERS + 1);
            let block = usize::try_from(at).ok().and_then(|at| bytes.get(at..)?.first_chunk());
            if !block.is_some_and(|block| reader.take(block).is_ok()) {
                return false;
            }
        }
        for (name, part) in reader.parts() {
            assert!(is_name(name) && part.offset + part.bytes <= bytes.len() as u64);
        }
        true
    };
    assert!(read(&bytes));
    let mut random = Random(11);
    let mut refused = 0;
    for _ in 0..20_000 {
        let mut changed = random.mutate(&bytes, 0);
        // Half of them add up again, so that what is behind the checksum is met.
        if random.below(2) == 0 {
            let at = random.below(3) * 512;
            if let Some(block) = changed.get_mut(at..at + 512) {
                block[148..156].fill(b' ');
                let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        refused += usize::from(!read(&changed));
    }
    assert!((4_000..18_000).contains(&refused), "{refused} of 20000 were refused");
}

#[test]
fn what_members_say_to_each_other() {
    let prefix = Prefix([0x5a; 8]);
    mutations(11, 20_000, path(prefix, "cluster-os_1.1.efi").as_bytes(), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        // What is read is a name in no other folder, and the path of that name.
        parse_path(&text).inspect(|(prefix, name)| assert_eq!(path(*prefix, name), text)).is_some()
    });
    let size = 10 * MAX_RANGE;
    mutations(12, 20_000, b"bytes=4096-1052671", |bytes| {
        let Some(Asked::Parts(ranges)) = Asked::parse_query(&String::from_utf8_lossy(bytes), size) else {
            return false;
        };
        for range in &ranges {
            assert!((1..=MAX_RANGE).contains(&range.bytes) && range.first + range.bytes <= size);
        }
        true
    });
    mutations(14, 20_000, b"manifest.json 700\ncluster-os_1.1.efi 50000000\n", |bytes| {
        let files = parse_list(&String::from_utf8_lossy(bytes));
        files.inspect(|files| assert!(files.iter().all(|(name, _)| is_name(name)))).is_some()
    });
}

#[test]
fn root_documents_and_keys() {
    let key = SecretKey::from_seed(&[1; 32]);
    let document = RootDocument {
        format: 1,
        version: 1,
        development: false,
        threshold: 1,
        keys: vec![key.public().into(), SecretKey::from_seed(&[2; 32]).public().into()],
    };
    let bytes = serde_json::to_vec(&document).unwrap();
    mutations(2, 20_000, &bytes, |bytes| RootDocument::parse(bytes).is_ok());
    mutations(3, 20_000, key.public().to_pem().as_bytes(), |bytes| {
        std::str::from_utf8(bytes).is_ok_and(|text| PublicKey::from_pem(text).is_ok())
    });
    mutations(4, 20_000, b"cluster-os_1.2.3+3-0.efi", |bytes| {
        std::str::from_utf8(bytes).is_ok_and(|text| Entry::parse(text).is_some())
    });
}

#[test]
fn trees_and_superblocks() {
    let leaves: Vec<Digest> = (0..200).map(|n| hash_block(&[1; 32], &[n; BLOCK_BYTES])).collect();
    let (tree, hash) = Tree::build(&[1; 32], &leaves);
    let root = RootImage {
        data_bytes: 200 * 4096,
        data_blocks: 200,
        tree_bytes: verity::tree_bytes(200),
        hash,
        salt: [1; 32],
        uuid: Guid([2; 16]),
    };
    let file = [&verity::superblock(&root)[..], tree.bytes()].concat();
    let mut random = Random(5);
    for _ in 0..500 {
        let changed = random.mutate(&file, BLOCK_BYTES);
        assert_eq!(Tree::check(&changed, &root).is_ok(), changed == file);
    }
    mutations(6, 20_000, &file[..120], |bytes| verity::read_superblock(bytes).is_some());
}

/// The checksums of a changed table are made right again, so that it is looked at.
#[test]
fn partition_tables() {
    let mut disk = vec![0; 1 << 20];
    let seal = |disk: &mut [u8]| {
        for (header, entries) in [(512, 1024), (disk.len() - 512, disk.len() - 512 - 16384)] {
            let crc = crc32fast::hash(&disk[entries..entries + 16384]);
            disk[header + 88..header + 92].copy_from_slice(&crc.to_le_bytes());
            disk[header + 16..header + 20].fill(0);
            let crc = crc32fast::hash(&disk[header..header + 92]);
            disk[header + 16..header + 20].copy_from_slice(&crc.to_le_bytes());
        }
    };
    let last = disk.len() as u64 / 512 - 1;
    for (own, other, entries) in [(1, last, 2), (last, 1, last - 32)] {
        let header = &mut disk[own as usize * 512..];
        header[..16].copy_from_slice(b"EFI PART\0\0\x01\0\x5c\0\0\0");
        for (at, number) in [(24, own), (32, other), (40, 34), (48, last - 33), (72, entries)] {
            header[at..at + 8].copy_from_slice(&u64::to_le_bytes(number));
        }
        header[80..88].copy_from_slice(&[128, 0, 0, 0, 128, 0, 0, 0]);
        let entry = &mut disk[entries as usize * 512..];
        entry[..32].fill(7);
        entry[32..48].copy_from_slice(&[64, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0]);
    }
    seal(&mut disk);
    let load = |disk: &[u8]| {
        Table::load(512, disk.len() as u64, |at, buffer| {
            let at = at as usize;
            buffer.copy_from_slice(disk.get(at..at + buffer.len()).expect("nothing beyond the disk is read"));
            Ok(())
        })
    };
    assert_eq!(load(&disk).unwrap().partitions().len(), 1);
    let mut random = Random(7);
    let mut read = 0;
    for _ in 0..3000 {
        let mut changed = disk.clone();
        for _ in 0..=random.below(3) {
            let (header, entry) =
                [(512, 1024), (disk.len() - 512, disk.len() - 512 - 16384)][random.below(2)];
            let at = if random.below(2) == 0 { header + random.below(92) } else { entry + random.below(128) };
            changed[at] = [0, 1, 2, 0x40, 0xff, random.next() as u8][random.below(6)];
        }
        seal(&mut changed);
        let Ok(mut table) = load(&changed) else { continue };
        read += 1;
        for partition in table.partitions() {
            assert!(partition.offset >= 34 * 512 && partition.offset + partition.bytes <= (last - 32) * 512);
        }
        table.relabel(1, "a name that is longer than thirty-six characters", Guid([1; 16]), 0);
        table.relabel(0, "", Guid([1; 16]), 0);
        table.relabel(u32::MAX, "", Guid([1; 16]), 0);
        for copy in [Copy::Primary, Copy::Backup] {
            for (offset, bytes) in table.writes(copy) {
                let end = offset + bytes.len() as u64;
                assert!(offset >= 512 && end <= disk.len() as u64, "a write outside the tables");
                assert!(end <= 34 * 512 || offset >= (last - 32) * 512, "a write into a partition");
            }
        }
    }
    assert!(read > 500, "only {read} tables were read");
}
