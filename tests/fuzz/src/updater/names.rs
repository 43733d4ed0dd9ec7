// SPDX-License-Identifier: Apache-2.0
//! Names that stand on an ESP, on sticks and in documents: boot entries, versions, digests, signatures, keys.

use cluster_updater_core::{
    Digest, Version,
    entry::{Entry, hidden_name, is_temporary, temporary_name},
    gpt::Guid,
    keys::{PublicKey, SecretKey},
    manifest,
    signed::{signature_name, signature_of},
    sources::Prefix,
};

pub(super) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    entry(text);
    if let Some(version) = Version::parse(text) {
        assert_eq!(version.to_string(), text);
        assert_eq!(Entry::parse(&Entry::on_trial(&version).to_string()), Some(Entry::on_trial(&version)));
        let temporary = temporary_name(&version);
        assert!(is_temporary(&temporary) && Entry::parse(&temporary).is_none());
        // The longest partition name of a slot fits into a GPT entry.
        assert!(format!("cluster-os_{version}_verity").len() <= 36);
    }
    if let Some(uuid) = Guid::parse(text) {
        assert_eq!(uuid.to_string(), text.to_ascii_lowercase());
    }
    if let Some(digest) = Digest::parse(text) {
        assert_eq!(digest.to_string(), text);
    }
    if let Some(prefix) = Prefix::parse(text) {
        assert_eq!(prefix.to_string(), text);
    }
    if let Some(key) = signature_of(manifest::FILE_NAME, text) {
        assert_eq!(signature_name(manifest::FILE_NAME, key), text);
    }
    if let Ok(key) = PublicKey::from_pem(text) {
        assert_eq!(PublicKey::from_pem(&key.to_pem()), Ok(key));
    }
    if let Ok(key) = SecretKey::from_pem(text) {
        assert!(PublicKey::from_pem(text).is_err(), "a private key is taken for a public one");
        assert!(key.public().verifies(b"m", &key.sign(b"m")));
    }
}

fn entry(name: &str) {
    let Some(entry) = Entry::parse(name) else { return };
    assert!(!is_temporary(name), "a boot entry counts as left over");
    let hidden = hidden_name(name);
    assert!(is_temporary(&hidden) && Entry::parse(&hidden).is_none(), "the boot loader sees {hidden}");
    let plain = entry.to_string();
    assert_eq!(Entry::parse(&plain).as_ref(), Some(&entry), "{plain}");
    if entry.counter.is_none() {
        assert_eq!(plain, name);
    }
    let given_up = entry.given_up();
    assert!(given_up.is_bad() && given_up.version == entry.version);
    assert_eq!(Entry::parse(&given_up.to_string()), Some(given_up));
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let key = SecretKey::from_seed(&[1; 32]);
    let id = key.public().id();
    let mut seeds: Vec<String> = [
        "cluster-os_0.1.0.efi",
        "cluster-os_0.1.0+3-0.efi",
        "cluster-os_0.1.0+2.efi",
        "cluster-os_1+0-4294967295.efi",
        "cluster-os_1+03-0.efi",
        "cluster-os_1++3-0.efi",
        "cluster-os_1.efi.new",
        "cluster-os_1.new",
        "CLUSTE~1.EFI",
        "18446744073709551",
        "0.1.10",
        "07070707-0707-0707-0707-0707070707AB",
        "abababababababab",
        "root.4294967296.json",
    ]
    .map(str::to_owned)
    .into();
    seeds.extend([
        "ab".repeat(32),
        signature_name(manifest::FILE_NAME, id),
        key.to_pem(),
        key.public().to_pem(),
        key.public().to_pem().replace('\n', "\r\n"),
    ]);
    seeds.into_iter().map(String::into_bytes).collect()
}
