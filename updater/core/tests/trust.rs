// SPDX-License-Identifier: Apache-2.0
//! Who is believed: signatures, thresholds, rotation, and that OpenSSL agrees.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::{fs, path::Path, process::Command};

use cluster_updater_core::{
    Digest, Manifest, SignatureError, Signatures, TrustedRoot, Version,
    gpt::Guid,
    keys::SecretKey,
    manifest::{BootLoader, ManifestError, RootImage, Severity, Uki},
    root::{Key, RootDocument, RootError},
    signed::{signature_name, signature_of},
    verity,
};

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

fn sign(bytes: &[u8], seeds: &[u8]) -> Signatures {
    seeds.iter().map(|&seed| (key(seed).public().id(), key(seed).sign(bytes))).collect()
}

fn root(version: u32, threshold: u32, seeds: &[u8]) -> Vec<u8> {
    let keys = seeds.iter().map(|&seed| Key::from(key(seed).public())).collect();
    serde_json::to_vec(&RootDocument { format: 1, version, development: false, threshold, keys }).unwrap()
}

fn anchor(version: u32, threshold: u32, seeds: &[u8]) -> TrustedRoot {
    let bytes = root(version, threshold, seeds);
    TrustedRoot::anchor(&bytes, &sign(&bytes, seeds)).unwrap()
}

fn manifest() -> Manifest {
    Manifest {
        format: 1,
        image: "cluster-os".into(),
        version: Version::parse("1.2").unwrap(),
        architecture: "x86-64".into(),
        created: 1_767_225_600,
        minimum_version: Version::parse("1").unwrap(),
        severity: Severity::Important,
        notes: "two\nlines".into(),
        components: Vec::new(),
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
    }
}

#[test]
fn a_manifest_comes_back_only_with_a_signature_that_counts() {
    let trusted = anchor(1, 1, &[1, 2]);
    let bytes = manifest().to_bytes().unwrap();
    assert_eq!(*trusted.verify(&bytes, &sign(&bytes, &[2])).unwrap(), manifest());
    assert_eq!(
        trusted.verify(&bytes, &Signatures::new()),
        Err(ManifestError::Signature(SignatureError::Unsigned))
    );
    assert!(matches!(
        trusted.verify(&bytes, &sign(&bytes, &[3])),
        Err(ManifestError::Signature(SignatureError::Strangers { .. }))
    ));
    let mut changed = bytes.clone();
    changed[20] ^= 1;
    assert_eq!(
        trusted.verify(&changed, &sign(&bytes, &[1])),
        Err(ManifestError::Signature(SignatureError::Mismatch(key(1).public().id())))
    );
    // Another's good signature under the name of a key that counts.
    let forged = [(key(1).public().id(), key(3).sign(&bytes))].into();
    assert!(trusted.verify(&bytes, &forged).is_err());
}

#[test]
fn a_threshold_counts_keys_not_signatures() {
    let trusted = anchor(1, 2, &[1, 2, 3]);
    let bytes = manifest().to_bytes().unwrap();
    assert!(matches!(
        trusted.verify(&bytes, &sign(&bytes, &[1, 9])),
        Err(ManifestError::Signature(SignatureError::TooFew { found: 1, threshold: 2 }))
    ));
    assert!(trusted.verify(&bytes, &sign(&bytes, &[1, 3])).is_ok());
    let twice = RootDocument {
        format: 1,
        version: 1,
        development: false,
        threshold: 2,
        keys: vec![key(1).public().into(); 2],
    };
    let bytes = serde_json::to_vec(&twice).unwrap();
    assert!(matches!(
        TrustedRoot::anchor(&bytes, &sign(&bytes, &[1])),
        Err(RootError::Senseless("a key is named twice"))
    ));
}

#[test]
fn a_rotation_needs_the_old_and_the_new_keys() {
    let first = anchor(1, 1, &[1]);
    let next = root(2, 1, &[2]);
    for signers in [&[1][..], &[2], &[3]] {
        assert!(first.advance(&next, &sign(&next, signers)).is_err(), "{signers:?}");
    }
    let second = first.advance(&next, &sign(&next, &[1, 2])).unwrap();

    let bytes = manifest().to_bytes().unwrap();
    assert!(second.verify(&bytes, &sign(&bytes, &[1])).is_err(), "a rotated-out key signs nothing");
    assert!(second.verify(&bytes, &sign(&bytes, &[2])).is_ok());
    // Neither back nor over a gap.
    let back = root(1, 1, &[1]);
    assert_eq!(
        second.advance(&back, &sign(&back, &[1, 2])),
        Err(RootError::OutOfOrder { found: 1, wanted: 3 })
    );
    let gap = root(4, 1, &[2]);
    assert!(second.advance(&gap, &sign(&gap, &[2])).is_err());
}

#[test]
fn nothing_of_a_successor_is_read_before_its_signatures_are_checked() {
    let first = anchor(1, 1, &[1]);
    let long = vec![b' '; 16 * 1024 + 1];
    assert_eq!(first.advance(&long, &sign(&long, &[1])), Err(RootError::TooLong(long.len())));
    for unread in [&b"[[[["[..], b"{\"format\": 9}", &root(7, 1, &[2])] {
        for signers in [&[][..], &[2]] {
            let error = first.advance(unread, &sign(unread, signers)).unwrap_err();
            assert!(matches!(error, RootError::Signature { version: 1, .. }), "{error}");
        }
        let error = first.advance(unread, &sign(unread, &[1])).unwrap_err();
        assert!(!matches!(error, RootError::Signature { version: 1, .. }), "{error}");
    }
}

#[test]
fn development_keys_never_follow_real_ones() {
    let next = RootDocument {
        format: 1,
        version: 2,
        development: true,
        threshold: 1,
        keys: vec![key(2).public().into()],
    };
    let bytes = serde_json::to_vec(&next).unwrap();
    assert!(matches!(
        anchor(1, 1, &[1]).advance(&bytes, &sign(&bytes, &[1, 2])),
        Err(RootError::Senseless(_))
    ));
}

#[test]
fn a_manifest_that_is_not_understood_is_refused() {
    let text = String::from_utf8(manifest().to_bytes().unwrap()).unwrap();
    let cases = [
        (text.replace("\"format\": 1", "\"format\": 2"), "format is 2"),
        (text.replace("\"notes\"", "\"surprise\": 1, \"notes\""), "surprise"),
        (text.replace("\"extensions\": []", "\"extensions\": [\"x\"]"), "cannot be read"),
        (text.replace("\"important\"", "\"urgent\""), "urgent"),
        (text.replace("\"data_blocks\": 2", "\"data_blocks\": 3"), "differ"),
        (text.replace("\"data_blocks\": 2", "\"data_blocks\": 9999999999"), "impossible size"),
        (text.replace("\"tree_bytes\": 8192", "\"tree_bytes\": 4096"), "hash tree"),
        (text.replace("\"image\": \"cluster-os\"", "\"image\": \"other\""), "another image"),
        (text.replace("\"minimum_version\": \"1\"", "\"minimum_version\": \"2\""), "newer than the release"),
        (text.replace("\"version\": \"1.2\"", "\"version\": \"1.2-x\""), "numbers with dots"),
        (text.replace("two\\nlines", "\\u001b[2J"), "control"),
        (text.replace("0505", "ZZ05"), "hex"),
        (text.replace("two", &"x".repeat(70_000)), "at most"),
        ("{}".into(), "format"),
        ("[".into(), "cannot be read"),
    ];
    for (text, wanted) in cases {
        let error = Manifest::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    assert!(Manifest::parse(text.as_bytes()).is_ok());
}

#[test]
fn signature_files_are_named_by_their_keys() {
    let id = key(1).public().id();
    let name = signature_name("manifest.json", id);
    assert_eq!(signature_of("manifest.json", &name), Some(id));
    for other in [
        "manifest.json.sig",
        "manifest.json..sig",
        "root.1.json.0011223344556677.sig",
        "manifest.json.XX.sig",
    ] {
        assert_eq!(signature_of("manifest.json", other), None, "{other}");
    }
}

/// Whoever has a release and a key can check it without anything of ours.
#[test]
fn openssl_accepts_our_signatures_and_we_accept_its() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openssl");
    fs::create_dir_all(&dir).unwrap();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(&dir).output();
        output.expect("the toolbox has openssl").status.success()
    };
    let bytes = manifest().to_bytes().unwrap();
    let write = |name: &str, content: &[u8]| fs::write(dir.join(name), content).unwrap();
    write("manifest.json", &bytes);
    write("key.pem", key(1).to_pem().as_bytes());
    write("key.pub", key(1).public().to_pem().as_bytes());
    write("ours.sig", &key(1).sign(&bytes));
    let verify = [
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        "key.pub",
        "-rawin",
        "-in",
        "manifest.json",
        "-sigfile",
        "ours.sig",
    ];
    assert!(openssl(&verify));
    write("manifest.json", b"other");
    assert!(!openssl(&verify), "OpenSSL accepts anything here");

    write("manifest.json", &bytes);
    assert!(openssl(&[
        "pkeyutl",
        "-sign",
        "-inkey",
        "key.pem",
        "-rawin",
        "-in",
        "manifest.json",
        "-out",
        "theirs.sig"
    ]));
    let theirs = fs::read(dir.join("theirs.sig")).unwrap().try_into().unwrap();
    assert!(key(1).public().verifies(&bytes, &theirs));
    assert!(openssl(&["genpkey", "-algorithm", "ed25519", "-out", "new.pem"]));
    assert!(openssl(&["pkey", "-in", "new.pem", "-pubout", "-out", "new.pub"]));
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let new = SecretKey::from_pem(&read("new.pem")).unwrap();
    assert_eq!(new.public().to_pem(), read("new.pub"));
}
