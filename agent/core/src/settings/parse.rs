// SPDX-License-Identifier: Apache-2.0
//! The schema of `cluster.toml`.

use std::collections::BTreeMap;

use toml::de::DeTable;

use super::fields::{self, Refusal};
use super::scan::scan;
use super::ssh_key::SshKey;
use super::table::{self, At, Report, Section, unknown};
use super::text::{self, NoText, place, unix_lines};
use super::{AREA, Problem, Settings, formats, odd};
use crate::consts::MAX_CLUSTER_TOML;

/// Tables that exist, in the order in which documentation has them.
const SECTIONS: &[&str] = &["cluster", "node", "ssh", "admin"];

/// What people may expect here and get in a later release: table, what to do instead.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("wifi", "remove it and connect the node by cable"),
    ("network", "remove it; addresses come from DHCP or IPv6 router advertisements, or are link-local"),
    ("addressing", "remove it; addresses come from DHCP or IPv6 router advertisements, or are link-local"),
    ("install", "remove it; a node runs from the disk that it boots from"),
];

const MAX_LIST: usize = 64;
const MAX_LABELS: usize = 16;
const MAX_LABEL_BYTES: usize = 256;
const MAX_EXPECT: i64 = 1000;

/// The text of a file.
pub(super) fn decode(bytes: &[u8]) -> Result<String, Problem> {
    let fail = |message, fix| Err(table::problem(AREA, None, Refusal::new(message, fix)));
    if text::is_utf16(bytes) {
        return fail("the file is UTF-16", "save it as UTF-8 (in Notepad: Save as, Encoding)");
    }
    match text::decode(bytes) {
        Ok(text) => Ok(text.into_owned()),
        Err(NoText::NotUtf8(line, column)) => {
            let fix = "save the file as UTF-8, without special characters";
            Err(table::problem(AREA, Some((line, column)), Refusal::new("the line is not UTF-8 text", fix)))
        }
        Err(NoText::Binary | NoText::HalfUtf16) => fail(
            "the file is not text, it has zero bytes in it",
            "it may be damaged or another file than was meant: copy the right one again",
        ),
    }
}

pub(super) fn parse(text: &str) -> Result<Settings, Vec<Problem>> {
    let length = text.len();
    let text = unix_lines(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut report = Report::new(&text);
    if length > MAX_CLUSTER_TOML {
        report.add(0, format!("file has {length} bytes"), format!("keep it below {MAX_CLUSTER_TOML} bytes"));
        return Err(report.finish());
    }
    let root = match DeTable::parse(&text) {
        Ok(root) => root,
        Err(error) => {
            not_toml(&text, &error, &mut report);
            return Err(report.finish());
        }
    };
    let settings = read(root.get_ref(), &mut report);
    match settings {
        Some(settings) if report.is_empty() => Ok(settings),
        _ => Err(report.finish()),
    }
}

/// The parser's own word counts where nothing else explains it, or what does comes later.
fn not_toml(text: &str, error: &toml::de::Error, report: &mut Report<'_>) {
    if let Some(refusal) = formats::foreign(text) {
        return report.found(refusal);
    }
    if SshKey::parse(text.lines().next().unwrap_or_default()).is_ok() {
        return report.add(
            0,
            "this is an SSH public key, not a cluster.toml",
            "`clusterctl join-key generate --ssh-key FILE.pub` makes a cluster.toml with it",
        );
    }
    let offset = error.span().map_or(0, |span| span.start).min(text.len());
    let line = |offset: usize| place(text, offset).0;
    let found = scan(text);
    let before = |refusal: &Refusal| refusal.at.is_some_and(|at| at <= offset);
    let explained = found.open.as_ref().is_some_and(before)
        || found.odd.iter().any(|odd| odd.at.is_some_and(|at| line(at) <= line(offset)));
    let open = found.open.filter(|open| before(open) || !found.odd.is_empty());
    for refusal in found.odd.into_iter().chain(open) {
        report.found(refusal);
    }
    if !explained {
        let message = error.message().trim().replace('\n', ", ");
        report.add(
            offset,
            format!("this is not valid TOML: {message}"),
            "check the quotes, brackets and `=` on this line; README.txt beside the file has an example",
        );
    }
}

/// `None` only when something was reported.
fn read(root: &DeTable<'_>, report: &mut Report<'_>) -> Option<Settings> {
    for (key, _) in root {
        let name = key.get_ref().as_ref();
        if let Some((_, fix)) = UNSUPPORTED.iter().find(|(unsupported, _)| *unsupported == name) {
            report.add(key.span().start, format!("`[{name}]` is not supported in this release"), *fix);
        } else if !SECTIONS.contains(&name) {
            unknown(name, key.span(), "at the top level", SECTIONS, report);
        }
    }
    let cluster = Section::find(root, "cluster", report);
    let node = Section::find(root, "node", report);
    let ssh = Section::find(root, "ssh", report);
    let admin = Section::find(root, "admin", report);
    cluster.only(&["name", "join_key", "expect", "seeds"], report);
    node.only(&["hostname", "labels"], report);
    ssh.only(&["authorized_keys"], report);
    admin.only(&["keys"], report);

    let cluster_name = required(cluster, "name", "my-cluster", report)
        .and_then(|value| accept(value, |text| fields::name("name", text), report));
    let join_key = required(cluster, "join_key", "cos1-…", report)
        .and_then(|value| accept(value, fields::join_key, report));
    let expect = cluster.integer("expect", "3", report).and_then(|(number, at)| {
        let valid = (1..=MAX_EXPECT).contains(&number);
        if !valid {
            report.add(
                at.start,
                format!("`expect` is {number}"),
                format!("write how many nodes start together, 1 to {MAX_EXPECT}"),
            );
        }
        valid.then_some(number as u32)
    });
    let seeds = list(cluster.strings("seeds", "192.0.2.7", report), fields::seed, report);
    let hostname = node
        .string("hostname", "node-a", report)
        .and_then(|value| accept(value, |text| fields::name("hostname", text), report));
    let labels = labels(node, report);
    let authorized_keys = list(
        ssh.strings("authorized_keys", "ssh-ed25519 AAAA…", report),
        |text| SshKey::parse(text).map(|key| key.line),
        report,
    );
    let admin_keys = list(
        admin.strings("keys", "ssh-ed25519 AAAA…", report),
        |text| SshKey::parse_admin(text).map(|key| key.line),
        report,
    );
    Some(Settings {
        cluster_name: cluster_name?,
        join_key: join_key?,
        expect,
        seeds,
        hostname,
        labels,
        authorized_keys,
        admin_keys,
    })
}

fn required<'a>(
    cluster: Section<'a, '_>,
    key: &str,
    example: &str,
    report: &mut Report<'_>,
) -> Option<At<&'a str>> {
    let value = cluster.string(key, example, report);
    if !cluster.has(key) {
        report.add(
            cluster.start,
            format!("`{key}` is missing in `[cluster]`"),
            format!("add a line `{key} = \"{example}\"` below `[cluster]`"),
        );
    }
    value
}

fn labels(node: Section<'_, '_>, report: &mut Report<'_>) -> BTreeMap<String, String> {
    let pairs = node.pairs("labels", report);
    let bytes: usize = pairs.iter().map(|((key, _), (value, _))| key.len() + value.len() + 2).sum();
    if pairs.len() > MAX_LABELS || bytes > MAX_LABEL_BYTES {
        report.add(
            node.start,
            "too many labels",
            format!("keep at most {MAX_LABELS} labels with {MAX_LABEL_BYTES} characters in all"),
        );
    }
    let mut labels = BTreeMap::new();
    for ((key, at), (value, value_at)) in pairs {
        match fields::label(key, value) {
            Ok(()) => {
                labels.insert(key.to_owned(), value.to_owned());
            }
            Err(refusal) => match odd::first(value) {
                Some(odd) => report.refused(value, &value_at, odd),
                None => report.refused(key, &at, refusal.unless_odd(key)),
            },
        }
    }
    labels
}

fn list<T>(
    texts: Vec<At<&str>>,
    check: impl Fn(&str) -> Result<T, Refusal>,
    report: &mut Report<'_>,
) -> Vec<T> {
    if let Some((_, at)) = texts.get(MAX_LIST) {
        report.add(at.start, "list is too long", format!("keep at most {MAX_LIST} entries"));
    }
    texts.into_iter().take(MAX_LIST).filter_map(|text| accept(text, &check, report)).collect()
}

fn accept<T>(
    (text, at): At<&str>,
    check: impl Fn(&str) -> Result<T, Refusal>,
    report: &mut Report<'_>,
) -> Option<T> {
    check(text).map_err(|refusal| report.refused(text, &at, refusal)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join_key::JoinKey;
    use proptest::prelude::*;

    const SSH: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFgjyoMQvwq8M4lZ7Y2BUnBwjx2NlEvX0d0sSZm2Cw3R me@laptop";

    fn key() -> String {
        JoinKey::generate(&[3; 37]).to_text()
    }

    #[test]
    fn problems_carry_no_control_characters_to_a_console() {
        for text in
            ["\"\\u001b[2J\" = 1\n", "\"\t\" = 1\n", "[cluster]\nname = \"\\u0007\"\n", "a = \u{1b}[2J\n"]
        {
            for problem in parse(text).unwrap_err() {
                assert!(!problem.to_string().contains(char::is_control), "{problem:?}");
            }
        }
    }

    fn good() -> String {
        format!(
            "[cluster]\nname = \"lab\"\njoin_key = \"{}\"\nexpect = 3\nseeds = [\"192.0.2.7\", \"a.example.org:5000\", \"[2001:db8::1]:7\"]\n\
             [node]\nhostname = \"alpha\"\nlabels = {{ rack = \"a1\" }}\n[ssh]\nauthorized_keys = [\"{SSH}\"]\n[admin]\nkeys = [\"{SSH}\"]\n",
            key()
        )
    }

    fn problems(text: &str) -> Vec<Problem> {
        Settings::parse(text).expect_err("the file has a mistake")
    }

    #[test]
    fn reads_a_full_file() {
        let settings = Settings::parse(&good()).unwrap();
        assert_eq!(settings.cluster_name, "lab");
        assert_eq!(settings.expect, Some(3));
        assert_eq!(settings.seeds.len(), 3);
        assert_eq!(settings.hostname.as_deref(), Some("alpha"));
        assert_eq!(settings.labels["rack"], "a1");
        assert_eq!(settings.authorized_keys, [SSH]);
    }

    #[test]
    fn points_at_a_mistyped_join_key() {
        let text = good().replacen("cos1-a", "cos1-b", 1);
        let found = problems(&text);
        assert_eq!((found[0].line, found[0].column), (Some(3), Some(12)));
        assert!(found[0].message.contains("checksum"));
        assert!(found[0].fix.contains("copy the whole line"));
        assert!(!found[0].to_string().contains(&key()[10..20]));
    }

    #[test]
    fn asks_whether_a_near_key_was_meant() {
        let found = problems(&good().replace("hostname", "hostnam"));
        assert_eq!(found[0].line, Some(7));
        assert_eq!(found[0].fix, "did you mean `hostname`?");
        let found = problems(&good().replace("[node]", "[nodes]"));
        assert_eq!(found[0].fix, "did you mean `node`?");
    }

    #[test]
    fn refuses_by_name_what_comes_later() {
        for table in ["wifi", "network", "install"] {
            let found = problems(&format!("{}[{table}]\nx = 1\n", good()));
            assert!(found[0].message.contains("not supported in this release"), "{found:?}");
        }
    }

    #[test]
    fn reports_all_mistakes_in_the_order_of_lines() {
        let found =
            problems("[cluster]\nname = \"No Good\"\nexpect = \"3\"\n[ssh]\nauthorized_keys = [\"x\"]\n");
        let lines: Vec<_> = found.iter().filter_map(|problem| problem.line).collect();
        assert_eq!(lines, [1, 2, 3, 5]);
    }

    #[test]
    fn names_the_line_of_broken_toml() {
        let found = problems("[cluster]\nname = lab\n");
        assert_eq!(found[0].line, Some(2));
        assert!(found[0].message.contains("not valid TOML"));
    }

    #[test]
    fn tells_a_private_key_from_a_public_one() {
        let found = problems(&good().replacen(SSH, "-----BEGIN OPENSSH PRIVATE KEY-----", 1));
        assert!(found[0].message.contains("private key"));
    }

    #[test]
    fn says_what_an_empty_file_lacks() {
        let found = problems("");
        assert!(found.iter().any(|problem| problem.message.contains("`name` is missing")));
        assert!(found.iter().any(|problem| problem.message.contains("`join_key` is missing")));
    }

    #[test]
    fn refuses_seeds_inside_the_mesh_and_link_local_ones() {
        for seed in ["fdc1:505::1", "fe80::1", "169.254.7.1", "0.0.0.0", "bad host", "a:b:c"] {
            assert_eq!(problems(&good().replace("192.0.2.7", seed)).len(), 1, "{seed}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = Settings::parse(&text);
        }

        #[test]
        fn never_panics_on_a_damaged_file(at in 0usize..400, byte in any::<u8>()) {
            let mut bytes = good().into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Settings::parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
