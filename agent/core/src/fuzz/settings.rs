// SPDX-License-Identifier: Apache-2.0
//! `cluster.toml`, and files of SSH keys: valid settings or keys, or problems that point into the file.

use crate::consts::MAX_CLUSTER_TOML;
use crate::settings::{Problem, Settings, read_key_file, unix_lines};

pub(super) fn run(bytes: &[u8]) {
    keys(bytes);
    if let Err(problem) = Settings::decode(bytes) {
        can_be_shown(&problem);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // As problems count them: a lone carriage return ends a line, too.
    let text = &*unix_lines(text);
    let lines = text.matches('\n').count() + 1;
    match Settings::parse(text) {
        Ok(settings) => {
            assert!(text.len() <= MAX_CLUSTER_TOML);
            assert!(crate::settings::is_dns_label(&settings.cluster_name));
            assert!(settings.hostname.as_deref().is_none_or(crate::settings::is_dns_label));
            assert!(settings.labels.iter().all(|(key, value)| crate::settings::is_label(key, value)));
            // One line each goes into files that other programs read.
            for key in settings.authorized_keys.iter().chain(&settings.admin_keys) {
                assert!(!key.chars().any(char::is_control), "{key:?}");
            }
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a word");
            for problem in problems {
                let line = problem.line.expect("every problem has a line") as usize;
                assert!((1..=lines).contains(&line), "line {line} of {lines}");
                let content = text.split('\n').nth(line - 1).expect("the line is there");
                let column = problem.column.expect("every problem has a column") as usize;
                assert!(
                    (1..=content.chars().count() + 1).contains(&column),
                    "column {column} of {content:?}"
                );
                can_be_shown(&problem);
            }
        }
    }
}

/// What was read is read the same again.
fn keys(bytes: &[u8]) {
    match read_key_file("keys", bytes) {
        Ok(keys) => {
            assert!(!keys.is_empty());
            for key in keys {
                assert!(!key.chars().any(char::is_control), "{key:?}");
                assert_eq!(read_key_file("keys", key.as_bytes()), Ok(vec![key]));
            }
        }
        Err(problems) => {
            assert!((1..=8).contains(&problems.len()));
            problems.iter().for_each(can_be_shown);
        }
    }
}

fn can_be_shown(problem: &Problem) {
    assert!(!problem.message.is_empty() && !problem.fix.is_empty());
    let text = problem.to_string();
    assert!(text.len() < 4096, "a problem of {} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "control characters: {problem:?}");
}
