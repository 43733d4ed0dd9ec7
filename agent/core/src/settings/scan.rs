// SPDX-License-Identifier: Apache-2.0
//! Where the mistake is in a file that is not TOML. A parser names the place where it could not go on; a person wants the
//! one where it began: the quote that was never closed, the bracket left open, the curly quote of a word processor.

use super::fields::Refusal;
use super::odd;

/// More than these, and the file was written with such a program throughout.
const MAX_FOUND: usize = 16;

/// What was found, in the order of the file; places are offsets.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Characters that are not what they look like.
    pub(super) odd: Vec<Refusal>,
    /// A quote or bracket that is not closed: the first, what follows is a guess.
    pub(super) open: Option<Refusal>,
}

/// Looks through a text that is not valid TOML, lines ending in line feeds.
pub(super) fn scan(text: &str) -> Found {
    let mut scanner = Scanner { text, at: 0, open: Vec::new(), line_begins: true, found: Found::default() };
    while scanner.found.open.is_none() && scanner.found.odd.len() < MAX_FOUND && scanner.step() {}
    scanner.at_end();
    scanner.found
}

/// What a bracket began.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opened {
    /// The name of a table, in a line of its own.
    Header,
    List,
    Table,
}

struct Scanner<'t> {
    text: &'t str,
    at: usize,
    /// Brackets that are open, and where.
    open: Vec<(usize, Opened)>,
    /// Nothing but blanks was in this line yet.
    line_begins: bool,
    found: Found,
}

impl Scanner<'_> {
    /// `false` at the end of the text.
    fn step(&mut self) -> bool {
        let rest = &self.text[self.at..];
        let Some(c) = rest.chars().next() else { return false };
        let line_began = self.line_begins;
        self.line_begins = c == '\n' || (line_began && (c == ' ' || c == '\t' || c == '\r'));
        match c {
            '\n' => {
                if let Some((at, Opened::Header)) = self.open.last().copied() {
                    self.unclosed(
                        at,
                        "the name of this table is not closed",
                        "write it like `[cluster]`, alone in its line",
                    );
                }
                self.at += 1;
            }
            '#' => self.at += rest.find('\n').unwrap_or(rest.len()),
            '"' | '\'' => self.string(c),
            '[' | '{' => self.bracket(c, line_began),
            ']' | '}' => {
                let closes = |opened| (c == '}') == (opened == Opened::Table);
                if self.open.last().is_some_and(|(_, opened)| closes(*opened)) {
                    self.open.pop();
                }
                self.at += 1;
            }
            '=' => {
                // No list holds a `=`: the next key has begun.
                if let Some((at, Opened::List)) = self.open.last().copied() {
                    self.unclosed_list(at);
                }
                self.at += 1;
            }
            _ => match odd::first(&rest[..c.len_utf8()]) {
                Some(refusal) => {
                    self.found.odd.push(refusal.moved(self.at));
                    self.next_line();
                }
                None => self.at += c.len_utf8(),
            },
        }
        true
    }

    fn bracket(&mut self, c: char, line_began: bool) {
        let inside = self.open.last().copied();
        match (c, inside) {
            ('{', _) => self.open.push((self.at, Opened::Table)),
            // A key would stand here: the table in braces was left open.
            (_, Some((at, Opened::Table))) if line_began => self.unclosed_table(at),
            // `[[` opens two.
            (_, Some((_, Opened::Header))) => self.open.push((self.at, Opened::Header)),
            (_, None) if line_began => self.open.push((self.at, Opened::Header)),
            _ => self.open.push((self.at, Opened::List)),
        }
        self.at += 1;
    }

    /// A text in quotes, of one line or of several.
    fn string(&mut self, quote: char) {
        let start = self.at;
        let rest = &self.text[start..];
        let triple = [quote; 3].iter().collect::<String>();
        let long = rest.starts_with(&triple);
        let opening = if long { 3 } else { 1 };
        let mut escaped = false;
        let mut curly = None;
        for (at, c) in rest.char_indices().skip(opening) {
            if escaped {
                escaped = false;
            } else if c == '\\' && quote == '"' {
                escaped = true;
            } else if long && rest[at..].starts_with(&triple) {
                // Two more quotes may belong to the text.
                let extra = rest[at + 3..].chars().take(2).take_while(|c| *c == quote).count();
                self.at = start + at + 3 + extra;
                return;
            } else if !long && c == quote {
                self.at = start + at + 1;
                return;
            }
            if !long && c == '\n' {
                break;
            }
            if curly.is_none() && odd::is_quote(c) {
                curly = odd::first(&rest[at..at + c.len_utf8()]).map(|refusal| refusal.moved(start + at));
            }
        }
        match curly {
            // Where the straight quote was meant.
            Some(refusal) if !long => {
                self.found.odd.push(refusal);
                self.next_line();
            }
            _ if long => {
                let fix = format!("write {triple} at its end");
                self.unclosed(start, "the text that begins here is not closed", &fix);
            }
            _ => {
                let fix = format!(
                    "put a {quote} at its end, in the same line; where a long line was broken in two, join them again"
                );
                self.unclosed(start, "the text that begins here is not closed in its line", &fix);
            }
        }
    }

    fn next_line(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.find('\n').unwrap_or(rest.len());
    }

    fn at_end(&mut self) {
        if self.found.odd.len() >= MAX_FOUND {
            return;
        }
        match self.open.last().copied() {
            Some((at, Opened::Header)) => {
                self.unclosed(
                    at,
                    "the name of this table is not closed",
                    "write it like `[cluster]`, alone in its line",
                );
            }
            Some((at, Opened::List)) => self.unclosed_list(at),
            Some((at, Opened::Table)) => self.unclosed_table(at),
            None => {}
        }
    }

    fn unclosed_list(&mut self, at: usize) {
        self.unclosed(at, "the list that begins here is not closed", "put a `]` behind its last entry");
    }

    fn unclosed_table(&mut self, at: usize) {
        self.unclosed(at, "the table that begins here is not closed", "put a `}` behind its last entry");
    }

    /// Brackets of lines with odd characters were not all seen, so they prove nothing.
    fn unclosed(&mut self, at: usize, message: &str, fix: &str) {
        let is_text = self.text[at..].starts_with(['"', '\'']);
        if self.found.open.is_none() && (is_text || self.found.odd.is_empty()) {
            self.found.open = Some(Refusal::at(at, message, fix));
        }
        // Each is told once.
        self.open.retain(|(open, _)| *open != at);
    }
}
