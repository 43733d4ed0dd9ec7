// SPDX-License-Identifier: Apache-2.0
//! What members say to each other in URLs, ranges and lists.

use cluster_updater_core::{
    serving::{Asked, MAX_FILES, MAX_PARTS, Range, is_name, list, parse_list, parse_path, path},
    sources::MAX_RANGE,
};

use super::Script;

pub(super) fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    // Sizes of files near what is asked for, and the largest.
    let size =
        if script.u8() & 1 == 1 { u64::from_be_bytes(script.array()) } else { u64::from(script.u32()) };
    // Inputs of the corpus had a range here.
    let _ = (script.u32(), script.u16());
    let Ok(text) = std::str::from_utf8(script.0) else { return };
    if let Some((prefix, name)) = parse_path(text) {
        assert_eq!(path(prefix, name), text);
        assert!(name.is_empty() || (is_name(name) && !name.contains('/') && name != ".."), "{name}");
    }
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    if let Some(asked) = Asked::parse_query(query, size) {
        let ranges = match &asked {
            Asked::Parts(ranges) => &ranges[..],
            Asked::Outline(range) => std::slice::from_ref(range),
        };
        assert!(
            (1..=MAX_PARTS).contains(&ranges.len()) && (1..=MAX_RANGE).contains(&asked.bytes()),
            "{asked:?}"
        );
        let is_inside = |range: &Range| range.first.checked_add(range.bytes).is_some_and(|end| end <= size);
        assert!(ranges.iter().all(|range| range.bytes > 0 && is_inside(range)), "{asked:?} of {size}");
        assert!(asked.work() >= asked.bytes());
        if let Some((prefix, name)) = parse_path(path) {
            let again = asked.path(prefix, name);
            let (_, query) = again.split_once('?').expect("a query follows");
            assert_eq!(Asked::parse_query(query, size), Some(asked));
        }
    }
    if let Some(files) = parse_list(text) {
        assert!(files.len() <= MAX_FILES && files.iter().all(|(name, _)| is_name(name)));
        let again = list(files.iter().map(|(name, bytes)| (name.as_str(), *bytes)));
        assert_eq!(parse_list(&again), Some(files));
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // A file of 20000 bytes.
    let seed = |text: &str| [&[0][..], &20_000_u32.to_be_bytes(), &[0; 6], text.as_bytes()].concat();
    [
        "/1/1a1a1a1a1a1a1a1a/manifest.json",
        "/1/1a1a1a1a1a1a1a1a/",
        "/1/1a1a1a1a1a1a1a1a/../../etc/passwd",
        "/1/1a1a1a1a1a1a1a1a/%2e%2e",
        "/1/1a1a1a1a1a1a1a1a/a.efi?bytes=0-0",
        "/1/1a1a1a1a1a1a1a1a/a.efi?bytes=4096-8191,0-4095",
        "/1/1a1a1a1a1a1a1a1a/a.efi?bytes=0-19999,0-0,",
        "/1/1a1a1a1a1a1a1a1a/a.efi.blocks?outline=0-19999",
        "/1/1a1a1a1a1a1a1a1a/a.efi.blocks?outline=0-0,1-1",
        "/1/1a1a1a1a1a1a1a1a/?bytes=0-0",
        "/1/1a1a1a1a1a1a1a1a/..?bytes=00-18446744073709551615",
        "bytes=0-0",
        "bytes=4096-12287",
        "bytes=0-19999",
        "bytes=0-20000",
        "bytes=0-18446744073709551615",
        "bytes=+1-+2",
        "bytes=0-0,2-2",
        "manifest.json 700\ncluster-os_1.1.efi 46000000\n",
        "manifest.json 700\r\n",
        "a 18446744073709551615\n",
        "",
        "a 1\na 1\n",
        ".hidden 1\n",
    ]
    .map(seed)
    .into()
}
