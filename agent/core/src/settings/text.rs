// SPDX-License-Identifier: Apache-2.0
//! Bytes of a file that a person wrote, as text: byte order marks, UTF-16, line ends of all systems.

use std::borrow::Cow;

/// How much of a file says whether it is UTF-16 without a byte order mark.
const LOOKED_AT: usize = 1024;

/// Why bytes are no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoText {
    /// Zero bytes: a program, a picture, or a file that was never wholly written.
    Binary,
    /// Not UTF-8, at this line and column.
    NotUtf8(u32, u32),
    /// UTF-16 with half a character.
    HalfUtf16,
}

/// Whether this is UTF-16, which Windows writes: by its mark, or because every other byte of it is zero.
pub(super) fn is_utf16(bytes: &[u8]) -> bool {
    big_endian(bytes).is_some()
}

fn big_endian(bytes: &[u8]) -> Option<bool> {
    match bytes {
        [0xff, 0xfe, ..] => return Some(false),
        [0xfe, 0xff, ..] => return Some(true),
        _ => {}
    }
    let (pairs, _) = bytes[..bytes.len().min(LOOKED_AT)].as_chunks::<2>();
    let zeros = |half: usize| pairs.iter().filter(|pair| pair[half] == 0).count();
    match (zeros(0), zeros(1)) {
        (0, low) if low * 2 > pairs.len() => Some(false),
        (high, 0) if high * 2 > pairs.len() => Some(true),
        _ => None,
    }
}

/// The text without its byte order mark.
pub(super) fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, NoText> {
    let text = match big_endian(bytes) {
        Some(big_endian) => Cow::Owned(utf16(bytes, big_endian)?),
        None => Cow::Borrowed(utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes))?),
    };
    if text.contains('\0') { Err(NoText::Binary) } else { Ok(text) }
}

fn utf8(bytes: &[u8]) -> Result<&str, NoText> {
    std::str::from_utf8(bytes).map_err(|error| {
        if bytes.contains(&0) {
            return NoText::Binary;
        }
        let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let (line, column) = place(&unix_lines(&before), before.len());
        NoText::NotUtf8(line, column)
    })
}

fn utf16(bytes: &[u8], big_endian: bool) -> Result<String, NoText> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let unit =
        |pair: &[u8; 2]| if big_endian { u16::from_be_bytes(*pair) } else { u16::from_le_bytes(*pair) };
    let text: Result<String, _> = char::decode_utf16(pairs.iter().map(unit)).collect();
    match text {
        Ok(text) if rest.is_empty() => Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
        _ => Err(NoText::HalfUtf16),
    }
}

/// The same text where lines that end in a lone carriage return (old Mac) end in a line feed. Offsets stay as they are.
pub(crate) fn unix_lines(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let lone = |at: usize| bytes[at] == b'\r' && bytes.get(at + 1) != Some(&b'\n');
    if !(0..bytes.len()).any(lone) {
        return Cow::Borrowed(text);
    }
    let changed = text.char_indices().map(|(at, c)| if lone(at) { '\n' } else { c });
    Cow::Owned(changed.collect())
}

/// Line and column, both from 1, of an offset in a text whose lines end in line feeds.
pub(super) fn place(text: &str, offset: usize) -> (u32, u32) {
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let count = |n: usize| u32::try_from(n + 1).unwrap_or(u32::MAX);
    (count(before.matches('\n').count()), count(before[line_start..].chars().count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_of_a_text_gives_that_text() {
        let text = "# Schlüssel\r\nssh-ed25519 AAAA me\n";
        let units: Vec<u16> = text.encode_utf16().collect();
        let little: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let big: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
        for bytes in [
            text.as_bytes().to_vec(),
            [b"\xef\xbb\xbf", text.as_bytes()].concat(),
            little.clone(),
            big.clone(),
            [b"\xff\xfe", &little[..]].concat(),
            [b"\xfe\xff", &big[..]].concat(),
        ] {
            assert_eq!(decode(&bytes).as_deref(), Ok(text), "{:x?}", &bytes[..4]);
        }
        assert_eq!(decode(b"").as_deref(), Ok(""));
    }

    #[test]
    fn what_is_no_text_is_said_to_be_none() {
        for binary in [&[0; 600][..], b"\x7fELF\x02\x01\x01\0\0\0\0\0", b"abc\0\0\0\0", b"\xff\xfea\0\0\0"] {
            assert_eq!(decode(binary), Err(NoText::Binary), "{binary:?}");
        }
        assert_eq!(decode(b"\xff\xfea\0b"), Err(NoText::HalfUtf16));
        assert_eq!(decode(b"\xff\xfe\x00\xd8a\0"), Err(NoText::HalfUtf16));
        for line_end in ["\n", "\r\n", "\r"] {
            let bytes = [b"one", line_end.as_bytes(), b"t\xfc"].concat();
            assert_eq!(decode(&bytes), Err(NoText::NotUtf8(2, 2)), "{line_end:?}");
        }
    }

    #[test]
    fn line_ends_of_old_macs_become_line_feeds_and_no_offset_moves() {
        assert_eq!(unix_lines("a\rb\r\nc\nd\r"), "a\nb\r\nc\nd\n");
        assert_eq!(unix_lines("a\r\r\nb"), "a\n\r\nb");
        assert!(matches!(unix_lines("a\r\nb\n"), Cow::Borrowed(_)));
    }
}
