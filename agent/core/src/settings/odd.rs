// SPDX-License-Identifier: Apache-2.0
//! Characters that look like plain ones, or like nothing: word processors, web pages and chats put them where a person
//! typed a quote, a space or a dash. No program reads them as what they look like.

use super::fields::Refusal;

/// What looks like a quote. Accents and primes too: they stand where somebody wanted one.
const QUOTES: &str = "‘’‚‛“”„‟′″‵‶«»‹›´＂＇｀";
/// What looks like a dash.
const DASHES: &str = "‐‑‒–—―−﹘﹣－";
/// What looks like another sign of TOML.
const SIGNS: &str = "＝［］｛｝＃，．";

/// What `c` is, for people; `None` for a character that is what it looks like.
fn name(c: char) -> Option<&'static str> {
    match c {
        _ if c.is_ascii() => None,
        _ if invisible(c) => Some("an invisible character"),
        '\u{a0}' | '\u{202f}' => Some("a non-breaking space"),
        '\u{2028}' | '\u{2029}' => Some("a line separator of a word processor"),
        _ if c.is_whitespace() => Some("a space of a word processor"),
        _ if QUOTES.contains(c) => Some("a curly or foreign quote"),
        _ if DASHES.contains(c) => Some("a long or foreign dash"),
        _ if SIGNS.contains(c) => Some("a full-width sign"),
        _ => None,
    }
}

/// Whether nothing, or no more than the direction of the text, shows where `c` is.
pub(super) fn invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Whether it looks like a quote and is none.
pub(super) fn is_quote(c: char) -> bool {
    QUOTES.contains(c)
}

/// `text` without what surrounds it unseen: blanks of every kind and invisible characters.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(unseen)
}

/// The same for its beginning alone.
pub(super) fn trim_start(text: &str) -> &str {
    text.trim_start_matches(unseen)
}

fn unseen(c: char) -> bool {
    c.is_whitespace() || invisible(c)
}

/// The first odd character of `text`: where it stands, as a refusal.
pub(super) fn first(text: &str) -> Option<Refusal> {
    let (at, c, name) = text.char_indices().find_map(|(at, c)| Some((at, c, name(c)?)))?;
    // What has a shape is shown; the rest has only its number.
    let shown = if QUOTES.contains(c) || DASHES.contains(c) || SIGNS.contains(c) {
        format!("{name} `{c}` (U+{:04X})", u32::from(c))
    } else {
        format!("{name} (U+{:04X})", u32::from(c))
    };
    let plain = if QUOTES.contains(c) {
        "a straight quote (`\"`)"
    } else if DASHES.contains(c) {
        "a plain `-`"
    } else if SIGNS.contains(c) {
        "the plain sign"
    } else if invisible(c) {
        "nothing: delete it"
    } else {
        "a plain space"
    };
    let fix =
        format!("there must be {plain}; use a plain text editor, word processors and web pages put these in");
    Some(Refusal::at(at, format!("{shown} stands here"), fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_each_kind_and_leaves_letters_alone() {
        for (c, named) in [
            ('“', "quote `“` (U+201C)"),
            ('’', "quote `’` (U+2019)"),
            ('«', "quote `«` (U+00AB)"),
            ('\u{a0}', "a non-breaking space (U+00A0)"),
            ('\u{3000}', "a space of a word processor (U+3000)"),
            ('\u{200b}', "an invisible character (U+200B)"),
            ('\u{feff}', "an invisible character (U+FEFF)"),
            ('\u{202e}', "an invisible character (U+202E)"),
            ('–', "dash `–` (U+2013)"),
            ('＝', "a full-width sign `＝` (U+FF1D)"),
        ] {
            let refusal = first(&format!("ok{c}")).unwrap();
            assert!(refusal.message.contains(named), "{refusal:?}");
            assert_eq!(refusal.at, Some(2));
        }
        for text in ["plain \"text\" - [x] = 'y'", "größe", "日本", "🙂", "\t\n"] {
            assert_eq!(first(text), None, "{text}");
        }
        assert_eq!(trim("\u{feff}\u{a0} x y\u{200b}\r\n"), "x y");
    }
}
