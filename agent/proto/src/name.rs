// SPDX-License-Identifier: Apache-2.0
//! What a name and a label may be.

/// A DNS label in lower case.
pub fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether a label is one that records may carry.
pub fn is_label(key: &str, value: &str) -> bool {
    let key_ok = (1..=63).contains(&key.len())
        && key.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._/-".contains(&c));
    let value_ok =
        value.len() <= 63 && value.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c));
    key_ok && value_ok
}
