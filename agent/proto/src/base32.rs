// SPDX-License-Identifier: Apache-2.0
//! Lower-case base32 (RFC 4648 alphabet) without padding; exactly one text for each byte string.

use std::sync::LazyLock;

use data_encoding::{Encoding, Specification};

static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("32 different characters are an alphabet")
});

pub(crate) fn encode(bytes: &[u8]) -> String {
    BASE32.encode(bytes)
}

/// `None` for a character outside the alphabet, a length no encoding has, or left-over bits that are not zero.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    BASE32.decode(text.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn encodes_the_examples_of_rfc_4648() {
        assert_eq!(encode(b""), "");
        assert_eq!(encode(b"f"), "my");
        assert_eq!(encode(b"foobar"), "mzxw6ytboi");
        assert_eq!(decode("mzxw6ytboi").as_deref(), Some(&b"foobar"[..]));
    }

    #[test]
    fn refuses_padding_upper_case_and_stray_bits() {
        for text in ["my======", "MY", "mz", "m", "mzxw6ytb0i"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn round_trips(bytes: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }

        #[test]
        fn has_one_text_per_byte_string(text in "[a-z2-7]{0,20}") {
            if let Some(bytes) = decode(&text) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
