// SPDX-License-Identifier: Apache-2.0
//! Files of the node call and import each other in one direction only, so that each can be read without those above it.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Which file needs which, and what of it.
type Needs = BTreeMap<String, BTreeMap<String, String>>;

/// Source of all files of a folder without tests and comments, by module.
fn sources(folder: &Path) -> BTreeMap<String, String> {
    let files = std::fs::read_dir(folder).expect("the folder can be listed").flatten();
    let read = |file: std::fs::DirEntry| {
        let name = file.file_name().into_string().ok()?.strip_suffix(".rs")?.to_owned();
        let text = std::fs::read_to_string(file.path()).ok()?;
        let code = text.split("#[cfg(test)]\nmod tests").next()?;
        let code = code.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n");
        Some((name, code.collect()))
    };
    files.filter_map(read).collect()
}

/// What stands in the `impl Node` blocks of a file.
fn of_node(code: &str) -> impl Iterator<Item = &str> {
    code.split("\nimpl Node {").skip(1).filter_map(|rest| rest.split("\n}").next())
}

/// The words that follow a text, as far as they are names.
fn names_after<'a>(code: &'a str, text: &str) -> Vec<&'a str> {
    let name =
        |rest: &'a str| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
    code.split(text).skip(1).map(name).collect()
}

/// Methods that a block of code calls on `self`, or on `node` as a constructor does. Calls may be broken over lines.
fn calls(block: &str) -> Vec<String> {
    let block: String = block.split_whitespace().collect();
    let called = ["self.", "node."].into_iter().flat_map(|on| block.split(on).skip(1));
    let names = called.filter_map(|rest| rest.split_once('(')).map(|(name, _)| name.to_owned());
    names.filter(|name| name.chars().all(|c| c.is_alphanumeric() || c == '_')).collect()
}

/// Modules that a file imports from its own folder.
fn imports(code: &str) -> Vec<&str> {
    let mut found = names_after(code, "super::");
    for group in code.split("use super::{").skip(1) {
        let group = group.split(';').next().unwrap_or_default();
        found.extend(
            group.split([',', '{', '}']).map(|item| item.trim().split("::").next().unwrap_or_default()),
        );
    }
    found
}

fn needs(sources: &BTreeMap<String, String>) -> Needs {
    let mut defined = BTreeMap::new();
    for (file, code) in sources {
        let methods = of_node(code).flat_map(|block| names_after(block, "fn "));
        defined.extend(methods.map(|method| (method, file.as_str())));
    }
    let mut needs = Needs::new();
    for (file, code) in sources {
        let calls = of_node(code).flat_map(calls);
        let calls = calls.filter_map(|name| Some((*defined.get(name.as_str())?, name)));
        let imported = imports(code).into_iter().filter(|name| sources.contains_key(*name));
        let imported = imported.map(|name| (name, "an import".to_owned()));
        let of_this = needs.entry(file.clone()).or_default();
        for (other, what) in calls.chain(imported).filter(|(other, _)| other != file) {
            of_this.entry(other.to_owned()).or_insert(what);
        }
    }
    needs
}

/// A way from a file back to itself.
fn circle(needs: &Needs) -> Option<String> {
    fn go<'a>(needs: &'a Needs, way: &mut Vec<&'a str>, done: &mut BTreeSet<&'a str>) -> bool {
        let Some(here) = way.last().copied() else { return false };
        for next in needs.get(here).into_iter().flat_map(BTreeMap::keys) {
            if let Some(first) = way.iter().position(|file| file == next) {
                way.drain(..first);
                way.push(next);
                return true;
            }
            if !done.contains(next.as_str()) {
                way.push(next);
                if go(needs, way, done) {
                    return true;
                }
                way.pop();
            }
        }
        done.insert(here);
        false
    }
    let mut done = BTreeSet::new();
    needs.keys().find_map(|start| {
        let mut way = vec![start.as_str()];
        go(needs, &mut way, &mut done).then(|| {
            let step = |pair: &[&str]| format!("{} needs {} ({})", pair[0], pair[1], needs[pair[0]][pair[1]]);
            way.windows(2).map(step).collect::<Vec<_>>().join(", ")
        })
    })
}

#[test]
fn no_file_of_the_node_is_part_of_a_circle() {
    let sources = sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/node")));
    let needs = needs(&sources);
    assert!(needs.values().map(BTreeMap::len).sum::<usize>() > 50, "calls and imports are found: {needs:?}");
    assert_eq!(circle(&needs), None);
}

#[test]
fn a_circle_of_calls_and_imports_is_found() {
    let file = |name: &str, code: &str| (name.to_owned(), code.to_owned());
    let mut sources = BTreeMap::from([
        file("high", "use super::{Node, low::Low};\nimpl Node {\n    fn upper(&self) { self.lower() }\n}\n"),
        file("low", "struct Low;\nimpl Node {\n    fn lower(&self) {}\n}\n"),
    ]);
    assert_eq!(circle(&needs(&sources)), None);
    sources.insert(
        "low".into(),
        "\nimpl Node {\n    fn lower(&self) {\n        self\n            .upper()\n    }\n}\n".into(),
    );
    assert!(circle(&needs(&sources)).is_some());
}
