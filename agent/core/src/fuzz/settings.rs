// SPDX-License-Identifier: Apache-2.0
//! `cluster.toml`: valid settings, or problems that point into the file.

use crate::consts::MAX_CLUSTER_TOML;
use crate::settings::Settings;

pub(super) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
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
                assert!(!problem.message.is_empty() && !problem.fix.is_empty());
                assert!(problem.to_string().len() < 4096, "a problem of {} bytes", problem.to_string().len());
                assert!(
                    !problem.to_string().chars().any(|c| c.is_control()),
                    "control characters: {problem:?}"
                );
            }
        }
    }
}
