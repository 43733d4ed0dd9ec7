// SPDX-License-Identifier: Apache-2.0
//! State files: a node that starts from damaged ones is still the same node, or says that it is not, and never founds a
//! second cluster.

use std::time::Duration;

use super::forge;
use super::script::Script;
use super::subject::Subject;
use crate::command::StateItem;
use crate::input::Saved;
use crate::keys::{Keys, seal_file};
use crate::node::probe;
use crate::view::Phase;
use crate::wire::Writer;

/// How a file comes about.
pub(super) const ABSENT: u8 = 0;
pub(super) const RAW: u8 = 1;
pub(super) const SEALED: u8 = 2;
pub(super) const FORGED: u8 = 3;

pub(super) fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let saved = Saved {
        identity: file(&mut script, 0x11, |_| forge::keys(forge::SUBJECT).to_file()),
        generation: file(&mut script, 0x14, |script| seal_file(0x14, &script.array::<4>())),
        clock: file(&mut script, 0x15, |script| seal_file(0x15, &script.array::<8>())),
        membership: file(&mut script, 0x12, membership),
        records: file(&mut script, 0x13, records),
    };
    let readable = saved.identity.as_deref().map(|bytes| Keys::from_file(bytes).is_ok());
    let known = saved.membership.as_deref().map(|bytes| probe::read_membership(bytes).is_ok());
    let (mut subject, _) = Subject::start(forge::SUBJECT, saved.clone(), true);
    subject.alone(Duration::from_secs(15));
    let status = subject.node.status(subject.present());
    match readable {
        Some(true) => {
            assert!(!subject.disk.contains_key(&StateItem::Identity), "a good identity was replaced")
        }
        Some(false) => assert_eq!(subject.disk.get(&StateItem::DamagedIdentity), saved.identity.as_ref()),
        None => assert!(subject.disk.contains_key(&StateItem::Identity)),
    }
    if known == Some(false) {
        assert_eq!(subject.disk.get(&StateItem::DamagedMembership), saved.membership.as_ref());
        assert_ne!(status.phase, Phase::Member, "founded although it was in a cluster before");
    }
    subject.node.members(subject.present());
}

fn file(
    script: &mut Script<'_>,
    kind: u8,
    forge: impl FnOnce(&mut Script<'_>) -> Vec<u8>,
) -> Option<Vec<u8>> {
    match script.u8() % 4 {
        ABSENT => None,
        RAW => Some(script.bytes().to_vec()),
        SEALED => Some(seal_file(kind, script.bytes())),
        _ => Some(forge(script)),
    }
}

/// A membership whose signatures hold.
fn membership(script: &mut Script<'_>) -> Vec<u8> {
    let mut w = Writer::new();
    match script.u8() % 3 {
        0 => return probe::left_file(forge::roster(script.flag())),
        1 => w.u8(1).text(&forge::join_key().to_text()).bytes(forge::genesis().as_bytes()),
        _ => w
            .u8(script.u8())
            .text(&script.text())
            .bytes(forge::signed_genesis(script, forge::SUBJECT).as_bytes()),
    };
    let roster = forge::roster(script.flag());
    let mut objects: Vec<Vec<u8>> = roster.admissions().map(|one| one.as_bytes().to_vec()).collect();
    for _ in 0..script.u8() % 6 {
        let signer = script.u8() % 5;
        objects.push(forge::object(script, signer));
    }
    w.u32(objects.len() as u32);
    for object in objects {
        w.bytes(&object);
    }
    seal_file(0x12, &w.finish())
}

/// Records whose signatures hold.
fn records(script: &mut Script<'_>) -> Vec<u8> {
    let count = script.u8() % 6;
    let mut w = Writer::new();
    w.u32(u32::from(count));
    for _ in 0..count {
        let signer = script.u8() % 5;
        w.bytes(forge::signed_record(script, signer).as_bytes());
        match script.flag() {
            true => w.u8(1).socket(&script.socket()),
            false => w.u8(script.u8()),
        };
    }
    seal_file(0x13, &w.finish())
}
