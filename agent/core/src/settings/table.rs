// SPDX-License-Identifier: Apache-2.0
//! Typed access to a parsed TOML table that reports every mistake with its place.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fields::Refusal;
use super::text::place;
use super::{AREA, Problem, odd};

/// Collects problems of one file.
pub(super) struct Report<'t> {
    text: &'t str,
    problems: Vec<(usize, Problem)>,
}

impl<'t> Report<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, problems: Vec::new() }
    }

    /// Adds a problem at a byte offset.
    pub(super) fn add(&mut self, offset: usize, message: impl Into<String>, fix: impl Into<String>) {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let problem = problem(AREA, Some(place(self.text, offset)), Refusal::new(message, fix));
        self.problems.push((offset, problem));
    }

    /// Adds what was found anywhere in the file.
    pub(super) fn found(&mut self, refusal: Refusal) {
        self.add(refusal.at.unwrap_or_default(), refusal.message, refusal.fix);
    }

    /// Adds what is wrong with a text at `span`, or with a part of it.
    pub(super) fn refused(&mut self, value: &str, span: &Range<usize>, refusal: Refusal) {
        let offset = refusal.at.and_then(|at| Some(self.start_of(value, span)? + at)).unwrap_or(span.start);
        self.add(offset, refusal.message, refusal.fix);
    }

    /// Where the content of a quoted text begins; `None` where the file writes it otherwise than it reads.
    fn start_of(&self, value: &str, span: &Range<usize>) -> Option<usize> {
        let raw = self.text.get(span.clone())?;
        let at = raw.find(value).filter(|_| !value.is_empty())?;
        Some(span.start + at)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// All problems in the order of the file.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|(offset, _)| *offset);
        self.problems.into_iter().map(|(_, problem)| problem).collect()
    }
}

/// A problem of the file `area`.
pub(super) fn problem(area: &str, place: Option<(u32, u32)>, refusal: Refusal) -> Problem {
    Problem {
        area: plain(area.to_owned()),
        line: place.map(|(line, _)| line),
        column: place.map(|(_, column)| column),
        message: plain(refusal.message),
        fix: plain(refusal.fix),
    }
}

/// Problems quote the file, and consoles and terminals show them: nothing of a file that steers those, or hides in them, may
/// reach them.
fn plain(text: String) -> String {
    let hidden = |c: char| c.is_control() || odd::invisible(c);
    if text.contains(hidden) { text.replace(hidden, "\u{fffd}") } else { text }
}

/// A value and where it stands.
pub(super) type At<T> = (T, Range<usize>);

/// One table of the file.
#[derive(Clone, Copy)]
pub(super) struct Section<'a, 'i> {
    name: &'a str,
    table: Option<&'a DeTable<'i>>,
    /// Where to point when a key is missing.
    pub(super) start: usize,
}

impl<'a, 'i> Section<'a, 'i> {
    /// The table `name` of the file, empty when absent.
    pub(super) fn find(root: &'a DeTable<'i>, name: &'a str, report: &mut Report<'_>) -> Self {
        match root.iter().find(|(key, _)| key.get_ref() == name) {
            None => Self { name, table: None, start: 0 },
            Some((key, value)) => match value.get_ref() {
                DeValue::Table(table) => Self { name, table: Some(table), start: key.span().start },
                _ => {
                    report.add(
                        key.span().start,
                        format!("`{name}` must be a table"),
                        format!("write it as a line `[{name}]` with its keys below"),
                    );
                    Self { name, table: None, start: key.span().start }
                }
            },
        }
    }

    /// Reports every key that is not in `known`.
    pub(super) fn only(&self, known: &[&str], report: &mut Report<'_>) {
        for (key, _) in self.table.into_iter().flatten() {
            if !known.contains(&key.get_ref().as_ref()) {
                unknown(key.get_ref(), key.span(), &format!("in `[{}]`", self.name), known, report);
            }
        }
    }

    /// Whether the key is there at all.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.table?.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn wrong_type(&self, key: &str, at: usize, wanted: &str, example: &str, report: &mut Report<'_>) {
        report.add(at, format!("`{key}` must be {wanted}"), format!("write it like `{key} = {example}`"));
    }

    /// A string.
    pub(super) fn string(&self, key: &str, example: &str, report: &mut Report<'_>) -> Option<At<&'a str>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some((text.as_ref(), value.span())),
            _ => {
                self.wrong_type(
                    key,
                    value.span().start,
                    "a text in quotes",
                    &format!("\"{example}\""),
                    report,
                );
                None
            }
        }
    }

    /// A whole number.
    pub(super) fn integer(&self, key: &str, example: &str, report: &mut Report<'_>) -> Option<At<i64>> {
        let value = self.get(key)?;
        let number = match value.get_ref() {
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        if number.is_none() {
            self.wrong_type(key, value.span().start, "a whole number without quotes", example, report);
        }
        number.map(|number| (number, value.span()))
    }

    /// A list of strings.
    pub(super) fn strings(&self, key: &str, example: &str, report: &mut Report<'_>) -> Vec<At<&'a str>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let example = format!("[\"{example}\"]");
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(key, value.span().start, "a list of texts", &example, report);
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in items.iter() {
            match item.get_ref() {
                DeValue::String(text) => texts.push((text.as_ref(), item.span())),
                _ => self.wrong_type(key, item.span().start, "a list of texts", &example, report),
            }
        }
        texts
    }

    /// A table of strings: keys and values.
    pub(super) fn pairs(&self, key: &str, report: &mut Report<'_>) -> Vec<(At<&'a str>, At<&'a str>)> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong_type(key, value.span().start, "a table of texts", "{ rack = \"a1\" }", report);
            return Vec::new();
        };
        let mut pairs = Vec::new();
        for (name, value) in table {
            match value.get_ref() {
                DeValue::String(text) => {
                    pairs.push(((name.get_ref().as_ref(), name.span()), (text.as_ref(), value.span())));
                }
                _ => {
                    self.wrong_type(name.get_ref(), value.span().start, "a text in quotes", "\"a1\"", report)
                }
            }
        }
        pairs
    }
}

/// Reports an unknown key, with the nearest known one if it is near.
pub(super) fn unknown(key: &str, span: Range<usize>, place: &str, known: &[&str], report: &mut Report<'_>) {
    let shown: String = key.chars().take(40).collect();
    let nearest = known
        .iter()
        .map(|name| (strsim::osa_distance(name, &key.to_lowercase()), name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4);
    let fix = match nearest {
        Some((_, name)) => format!("did you mean `{name}`?"),
        None => format!("remove it; known here: {}", known.join(", ")),
    };
    report.add(span.start, format!("unknown key `{shown}` {place}"), fix);
}
