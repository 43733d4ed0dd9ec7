// SPDX-License-Identifier: Apache-2.0
//! How things look: tables, durations, sizes, colour.

use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
};

use cluster_agent_core::{MemberState, Phase, Problem, Status};

use super::Failure;

/// What a node without `cluster.toml` tells, on the console and in `status`.
const HOW_TO_PROVISION: &str = "\
This node has no cluster.toml, so it joins no cluster. To provision it:
  1. Get a cluster.toml: copy the one of another stick of the cluster, or, for
     a new cluster, run on a PC: clusterctl join-key generate > cluster.toml
  2. Copy it to the partition CLUSTER-OS of this stick or disk, which any
     computer shows. README.txt there says more.
  3. Restart this node. Nodes with the same file join the same cluster.
";

/// What to tell of a node that has no settings: how to provision it, unless a problem says what keeps it from its file.
pub(crate) fn unprovisioned(status: &Status) -> &'static str {
    how_to_provision(status.phase, &status.problems)
}

fn how_to_provision(phase: Phase, problems: &[Problem]) -> &'static str {
    let has_file = problems.iter().any(Problem::is_about_cluster_toml);
    if phase == Phase::Unprovisioned && !has_file { HOW_TO_PROVISION } else { "" }
}

/// Writes to stdout; a reader that has had enough (`| head`) is no failure.
pub(crate) fn out(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// Columns as wide as their widest cell, two spaces apart, nothing trailing.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(visible(cell));
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (cell, width) in cells.zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 2 - visible(cell)));
        }
        format!("{}\n", text.trim_end())
    };
    let mut text = line(&mut header.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// Width on the screen: colour codes take none.
fn visible(cell: &str) -> usize {
    let mut width = 0;
    let mut in_code = false;
    for c in cell.chars() {
        match (in_code, c) {
            (false, '\x1b') => in_code = true,
            (true, 'm') => in_code = false,
            (true, _) => {}
            (false, _) => width += 1,
        }
    }
    width
}

/// The state's word, coloured on a terminal.
pub(crate) fn state(state: MemberState, colour: bool) -> String {
    let code = match state {
        MemberState::Up => "32",
        MemberState::Suspect => "33",
        MemberState::Down => "31",
        MemberState::Left => "2",
    };
    if colour { format!("\x1b[{code}m{}\x1b[0m", state.as_str()) } else { state.as_str().to_owned() }
}

/// Whether stdout is a terminal that wants colour (<https://no-color.org>).
pub(crate) fn colour() -> bool {
    let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !refused && env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// `5 s`, `3 min`, `2 h`, `9 d`.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// `870 B`, `12.3 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A problem with its place and the way out, on two lines.
pub(crate) fn problem(problem: &Problem) -> String {
    let place = match (problem.line, problem.column) {
        (Some(line), Some(column)) => format!(" line {line}, column {column}"),
        (Some(line), None) => format!(" line {line}"),
        _ => String::new(),
    };
    let mut text = format!("  {}{place}: {}\n", problem.area, problem.message);
    if !problem.fix.is_empty() {
        text.push_str(&format!("    fix: {}\n", problem.fix));
    }
    text
}

#[cfg(test)]
mod tests {
    use cluster_agent_core::PARTITION_AREA;

    use super::*;

    #[test]
    fn a_node_that_cannot_read_its_file_is_not_told_that_it_has_none() {
        assert!(how_to_provision(Phase::Unprovisioned, &[]).contains("no cluster.toml"));
        assert_eq!(how_to_provision(Phase::Member, &[]), "");
        for (area, told) in [(PARTITION_AREA, false), ("cluster.toml", false), ("mesh", true)] {
            let problems = [Problem::new(area, "", "")];
            assert_eq!(!how_to_provision(Phase::Unprovisioned, &problems).is_empty(), told, "{area}");
        }
    }

    #[test]
    fn columns_line_up_with_and_without_colour() {
        let plain = table(
            &["NAME", "STATE", "X"],
            &[
                vec!["a".to_owned(), state(MemberState::Suspect, false), "1".to_owned()],
                vec!["node-long".to_owned(), state(MemberState::Up, false), String::new()],
            ],
        );
        assert_eq!(plain, "NAME       STATE    X\na          suspect  1\nnode-long  up\n");
        let coloured = table(
            &["STATE", "X"],
            &[
                vec![state(MemberState::Up, true), "1".to_owned()],
                vec![state(MemberState::Suspect, true), "2".to_owned()],
            ],
        );
        let without: String = coloured.replace("\x1b[32m", "").replace("\x1b[33m", "").replace("\x1b[0m", "");
        assert_eq!(without, "STATE    X\nup       1\nsuspect  2\n");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        assert_eq!(
            [age(0), age(119), age(120), age(7200), age(999_999)],
            ["0 s", "119 s", "2 min", "2 h", "11 d"]
        );
        assert_eq!([size(0), size(1023), size(1536), size(5 << 30)], ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
    }

    #[test]
    fn a_problem_says_where_what_and_how_to_mend_it() {
        let mut wrong = Problem::new("cluster.toml", "unknown key `nmae`", "write `name`");
        wrong.line = Some(3);
        assert_eq!(problem(&wrong), "  cluster.toml line 3: unknown key `nmae`\n    fix: write `name`\n");
    }
}
