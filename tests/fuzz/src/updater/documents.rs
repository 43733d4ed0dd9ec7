// SPDX-License-Identifier: Apache-2.0
//! `manifest.json` and `root.N.json`. The target signs what it gets, so that what lies behind the signatures is reached.

use std::sync::OnceLock;

use cluster_updater_core::{
    Digest, Manifest, Signatures, TrustedRoot, Version,
    gpt::Guid,
    keys::SecretKey,
    manifest::{BootLoader, Component, ManifestError, RootImage, Severity, Uki},
    root::{Key, RootDocument},
    serving::is_name,
    signed::SignatureError,
    slot, verity,
};

fn sign(bytes: &[u8], seeds: &[u8]) -> Signatures {
    let keys = seeds.iter().map(|seed| SecretKey::from_seed(&[*seed; 32]));
    keys.map(|key| (key.public().id(), key.sign(bytes))).collect()
}

fn document(version: u32, development: bool, threshold: u32, seeds: &[u8]) -> Vec<u8> {
    let keys = seeds.iter().map(|seed| Key::from(SecretKey::from_seed(&[*seed; 32]).public())).collect();
    let document = RootDocument { format: 1, version, development, threshold, keys };
    serde_json::to_vec(&document).expect("it can be written")
}

/// Version 1: of keys 1 and 2 one must sign.
fn trusted() -> &'static TrustedRoot {
    static TRUSTED: OnceLock<TrustedRoot> = OnceLock::new();
    TRUSTED.get_or_init(|| {
        let bytes = document(1, false, 1, &[1, 2]);
        TrustedRoot::anchor(&bytes, &sign(&bytes, &[1])).expect("it is signed by its own key")
    })
}

pub(super) fn manifest(bytes: &[u8]) {
    let parsed = Manifest::parse(bytes);
    let signatures = sign(bytes, &[1]);
    match (&parsed, trusted().verify(bytes, &signatures)) {
        (Ok(parsed), Ok(verified)) => assert_eq!(*parsed, *verified),
        (Err(parsed), Err(verified)) => assert_eq!(*parsed, verified),
        (parsed, verified) => panic!("parsed: {parsed:?}, verified: {verified:?}"),
    }
    let stranger = trusted().verify(bytes, &sign(bytes, &[3]));
    assert!(
        matches!(
            stranger,
            Err(ManifestError::Signature(SignatureError::Strangers { .. }) | ManifestError::TooLong(_))
        ),
        "{stranger:?}"
    );
    let Ok(manifest) = parsed else { return };
    let mut changed = bytes.to_vec();
    changed[0] ^= 1;
    assert!(trusted().verify(&changed, &signatures).is_err(), "a changed manifest is accepted");
    let written = manifest.to_bytes().expect("what was read can be written");
    assert_eq!(Manifest::parse(&written).as_ref(), Ok(&manifest));

    // What others reckon with before they look again.
    let root = &manifest.root;
    assert_eq!(root.data_bytes, root.data_blocks * verity::BLOCK_BYTES as u64);
    assert!(root.tree_bytes > 0 && root.tree_bytes < 256 << 20, "a tree of {} bytes", root.tree_bytes);
    assert!(manifest.minimum_version <= manifest.version);
    assert!(manifest.notes.chars().all(|c| !c.is_control() || c == '\n'));
    let files = manifest.files();
    for name in [files.root, files.tree, files.uki, files.uki_blocks, files.boot_loader] {
        assert!(is_name(&name), "{name}");
    }
    for running in ["0", "1.0", "18446744073709551"] {
        let running = Version::parse(running).expect("a version");
        if slot::may_follow(&manifest, &running, "x86-64").is_ok() {
            assert!(manifest.version > running && running >= manifest.minimum_version);
        }
    }
}

pub(super) fn root(bytes: &[u8]) {
    let all = sign(bytes, &[1, 2, 3]);
    if let Ok(root) = TrustedRoot::anchor(bytes, &all) {
        let document = root.document();
        let threshold = document.threshold as usize;
        assert!(document.version > 0 && (1..=document.keys.len()).contains(&threshold));
        assert!(root.signers(bytes, &all).len() >= threshold);
        let written = serde_json::to_vec(document).expect("what was read can be written");
        assert_eq!(RootDocument::parse(&written).as_ref(), Ok(document));
        assert!(TrustedRoot::anchor(bytes, &Signatures::new()).is_err(), "nobody has signed it");
    }
    let before = trusted();
    assert!(before.advance(bytes, &Signatures::new()).is_err());
    // Key 3 is nobody's but perhaps the new document's own.
    assert!(before.advance(bytes, &sign(bytes, &[3])).is_err(), "the predecessor's keys have not signed it");
    if let Ok(next) = before.advance(bytes, &all) {
        let document = next.document();
        assert_eq!((document.version, document.development), (2, false));
        assert!(next.signers(bytes, &all).len() >= document.threshold as usize);
        assert!(next.advance(bytes, &all).is_err(), "a document follows itself");
    }
}

pub(super) fn manifests() -> Vec<Vec<u8>> {
    let version = |text| Version::parse(text).expect("a version");
    let plain = Manifest {
        format: 1,
        image: "cluster-os".into(),
        version: version("1.2"),
        architecture: "x86-64".into(),
        created: 1_767_225_600,
        minimum_version: version("1"),
        severity: Severity::Important,
        notes: "two\nlines".into(),
        components: vec![Component { name: "linux".into(), version: "6.12.57-1".into() }],
        root: RootImage {
            data_bytes: 8192,
            data_blocks: 2,
            tree_bytes: verity::tree_bytes(2),
            hash: Digest([5; 32]),
            salt: [6; 32],
            uuid: Guid([7; 16]),
        },
        uki: Uki { bytes: 10, blocks: Digest([8; 32]) },
        boot_loader: BootLoader { bytes: 10, sha256: Digest([9; 32]) },
        extensions: Vec::new(),
    };
    let large = verity::MAX_DATA_BLOCKS;
    let largest = Manifest {
        version: version("18446744073709551"),
        notes: "\u{e9}\n".repeat(500),
        severity: Severity::Critical,
        root: RootImage {
            data_bytes: large * verity::BLOCK_BYTES as u64,
            data_blocks: large,
            tree_bytes: verity::tree_bytes(large),
            ..plain.root.clone()
        },
        ..plain.clone()
    };
    let mut seeds: Vec<Vec<u8>> =
        [&plain, &largest].iter().map(|one| serde_json::to_vec(one).expect("it can be written")).collect();
    let text = String::from_utf8(seeds[0].clone()).expect("JSON");
    for (from, to) in [
        ("\"format\":1", "\"format\":2"),
        ("\"extensions\":[]", "\"extensions\":[{}]"),
        ("\"severity\":\"important\"", "\"severity\":null"),
        ("two\\nlines", "\\u001b[2J\\ud83d\\ude00"),
        ("8192", "8193"),
        ("\"1.2\"", "\"1.2+3-0\""),
        ("cluster-os", "cluster\\u002dos"),
        ("x86-64", "../../etc"),
    ] {
        seeds.push(text.replacen(from, to, 1).into_bytes());
    }
    seeds
}

pub(super) fn roots() -> Vec<Vec<u8>> {
    let mut seeds = vec![
        document(1, true, 1, &[1]),
        document(2, false, 1, &[1]),
        document(2, false, 2, &[2, 3]),
        document(2, false, 3, &[1, 2, 3]),
        document(2, true, 1, &[1]),
        document(3, false, 1, &[1, 2]),
        document(2, false, 1, &[9]),
        document(u32::MAX, false, 1, &[3]),
        document(2, false, 0, &[1]),
        document(2, false, 1, &[]),
    ];
    let text = String::from_utf8(seeds[1].clone()).expect("JSON");
    seeds.push(text.replace("\"version\":2", "\"version\":2.0").into_bytes());
    seeds.push(text.replace("\"format\":1", "\"format\":1,\"format\":1").into_bytes());
    seeds
}
