// SPDX-License-Identifier: Apache-2.0
//! Searches traffic for what it must not show, in every form in which a program might write it: text as it is; bytes raw,
//! and in hexadecimal, base32 and base64, at any position within a longer value, and parts of them.
//!
//! Also compiled into the tests of agent/core, which have no VMs.

use std::collections::HashMap;

use data_encoding::{
    BASE32_NOPAD, BASE64_NOPAD, BASE64URL_NOPAD, Encoding, HEXLOWER, HEXUPPER, Specification,
};

/// This many bytes of a secret in a row are a find. Ciphertext brings eight given bytes by chance once in 2^64 places.
const PIECE: usize = 8;
/// Shorter words turn up in ciphertext by chance.
const SHORTEST: usize = 5;
/// After as many bytes base64 (3) and base32 (5) begin a character anew.
const GROUP: usize = 15;

/// What traffic must not show.
#[derive(Debug, Default)]
pub struct Secrets {
    /// Every piece of every form, with the name of the secret.
    pieces: HashMap<[u8; PIECE], String>,
    /// Words shorter than a piece.
    words: Vec<(Vec<u8>, String)>,
}

impl Secrets {
    /// Adds a word, which travels as it is written, if at all.
    ///
    /// # Panics
    /// If the word is too short to be searched for.
    pub fn text(&mut self, name: &str, word: &str) {
        assert!(word.len() >= SHORTEST, "`{word}` ({name}) may turn up by chance");
        if word.len() < PIECE {
            self.words.push((word.as_bytes().to_vec(), name.to_owned()));
        }
        self.form(name, word.as_bytes());
    }

    /// Adds bytes.
    ///
    /// # Panics
    /// If there are too few of them to be searched for.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) {
        assert!(bytes.len() >= PIECE, "{name} has {} bytes only", bytes.len());
        self.form(name, bytes);
        for encoding in
            [&HEXLOWER, &HEXUPPER, &base32_lower(), &BASE32_NOPAD, &BASE64_NOPAD, &BASE64URL_NOPAD]
        {
            // Within a longer value, behind this many bytes modulo a group of characters.
            (0..GROUP).for_each(|before| self.form(name, &encoded_behind(before, bytes, encoding)));
        }
    }

    /// Adds an id or key as text and as the bytes that it stands for.
    ///
    /// # Panics
    /// If the text is not lower-case base32.
    pub fn base32(&mut self, name: &str, text: &str) {
        self.encoded(name, text, &base32_lower());
    }

    /// The same for lower-case hexadecimal.
    ///
    /// # Panics
    /// If the text is not hexadecimal.
    pub fn hex(&mut self, name: &str, text: &str) {
        self.encoded(name, text, &HEXLOWER);
    }

    /// The same for base64.
    ///
    /// # Panics
    /// If the text is not base64.
    pub fn base64(&mut self, name: &str, text: &str) {
        self.encoded(name, text.trim_end_matches('='), &BASE64_NOPAD);
    }

    fn encoded(&mut self, name: &str, text: &str, encoding: &Encoding) {
        self.text(name, text);
        let bytes = encoding
            .decode(text.as_bytes())
            .unwrap_or_else(|error| panic!("`{text}` ({name}) is not in its encoding: {error}"));
        self.bytes(name, &bytes);
    }

    fn form(&mut self, name: &str, form: &[u8]) {
        for piece in form.windows(PIECE) {
            if let Ok(piece) = piece.try_into() {
                self.pieces.entry(piece).or_insert_with(|| name.to_owned());
            }
        }
    }

    /// Name of a secret that these bytes show.
    pub fn shown_in(&self, traffic: &[u8]) -> Option<&str> {
        let piece = traffic.windows(PIECE).find_map(|piece| self.pieces.get(piece));
        let word = || self.words.iter().find(|(word, _)| contains(traffic, word)).map(|(_, name)| name);
        piece.or_else(word).map(String::as_str)
    }
}

/// Whether `part` stands in `bytes`.
pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The bytes of lower-case base32 without padding.
pub fn decode_base32(text: &str) -> Option<Vec<u8>> {
    base32_lower().decode(text.as_bytes()).ok()
}

/// Lower-case base32 without padding, as ids are written.
fn base32_lower() -> Encoding {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("32 different characters are an alphabet")
}

/// The characters that depend on `bytes` alone when these stand behind `before` other bytes.
fn encoded_behind(before: usize, bytes: &[u8], encoding: &Encoding) -> Vec<u8> {
    let bits = encoding.specification().symbols.len().ilog2() as usize;
    let all = encoding.encode(&[&vec![0; before][..], bytes].concat());
    all.as_bytes()[(before * 8).div_ceil(bits)..(before + bytes.len()) * 8 / bits].to_vec()
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64;

    use super::*;

    const ID: [u8; 32] = [
        0xa1, 0x52, 0x03, 0xf4, 0x65, 0x16, 0xc7, 0x88, 0x39, 0x2a, 0xdb, 0x4c, 0x7d, 0x9e, 0xef, 0x10, 0x21,
        0xb2, 0x43, 0x54, 0xe5, 0x76, 0x87, 0x18, 0xa9, 0xba, 0x0b, 0xdc, 0x5d, 0x6e, 0xff, 0x30,
    ];

    fn secrets() -> Secrets {
        let mut secrets = Secrets::default();
        secrets.bytes("node id", &ID);
        secrets.text("cluster name", "lighthouse-e2e");
        secrets.text("version", "1.2.3");
        secrets
    }

    /// Something else around it, so that nothing is aligned.
    fn planted(what: &[u8]) -> Vec<u8> {
        [&[0x5a; 13][..], what, &[0xc3; 7]].concat()
    }

    #[test]
    fn finds_bytes_in_every_form_and_their_halves() {
        let longer = [&[7, 9][..], &ID, &[1]].concat();
        for form in [
            ID.to_vec(),
            ID[..16].to_vec(),
            ID[16..].to_vec(),
            ID[5..13].to_vec(),
            HEXLOWER.encode(&ID).into(),
            HEXUPPER.encode(&ID).into(),
            base32_lower().encode(&ID).into(),
            BASE64_NOPAD.encode(&ID).into(),
            BASE32_NOPAD.encode(&longer).into(),
            BASE64_NOPAD.encode(&longer).into(),
            BASE64URL_NOPAD.encode(&longer).into(),
        ] {
            assert_eq!(secrets().shown_in(&planted(&form)), Some("node id"), "{form:02x?}");
        }
        assert_eq!(secrets().shown_in(&planted(&ID[5..12])), None, "seven bytes are chance");
    }

    #[test]
    fn finds_words_and_parts_of_long_ones() {
        assert_eq!(secrets().shown_in(&planted(b"lighthouse-e2e")), Some("cluster name"));
        assert_eq!(secrets().shown_in(&planted(b"house-e2e")), Some("cluster name"));
        assert_eq!(secrets().shown_in(&planted(b"1.2.3")), Some("version"));
        assert_eq!(secrets().shown_in(&planted(b"")), None);
        assert_eq!(secrets().shown_in(b""), None);
    }

    #[test]
    fn a_text_stands_for_its_bytes() {
        for (text, add) in [
            (base32_lower().encode(&ID), Secrets::base32 as fn(&mut Secrets, &str, &str)),
            (HEXLOWER.encode(&ID), Secrets::hex),
            (BASE64.encode(&ID), Secrets::base64),
        ] {
            let mut secrets = Secrets::default();
            add(&mut secrets, "id", &text);
            assert_eq!(secrets.shown_in(&planted(&ID[16..])), Some("id"));
        }
    }
}
