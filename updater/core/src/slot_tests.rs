// SPDX-License-Identifier: Apache-2.0
//! What the plan refuses, and the order that it gives.

use super::*;
use crate::{
    gpt,
    keys::SecretKey,
    manifest::{BootLoader, RootImage, Severity, Uki},
    root::{Key, RootDocument, TrustedRoot},
    verity,
};

const MIB: u64 = 1 << 20;

fn version(text: &str) -> Version {
    Version::parse(text).unwrap()
}

fn manifest(number: &str) -> Manifest {
    Manifest {
        format: 1,
        image: "cluster-os".into(),
        version: version(number),
        architecture: "x86-64".into(),
        created: 0,
        minimum_version: version("1"),
        severity: Severity::Normal,
        notes: String::new(),
        components: Vec::new(),
        root: RootImage {
            data_bytes: 4096 * 200,
            data_blocks: 200,
            tree_bytes: verity::tree_bytes(200),
            hash: Digest([0x5a; 32]),
            salt: [1; 32],
            uuid: Guid([2; 16]),
        },
        uki: Uki { bytes: 3 * MIB, blocks: Digest([3; 32]) },
        boot_loader: BootLoader { bytes: 1, sha256: Digest([4; 32]) },
        extensions: Vec::new(),
    }
}

fn signed(manifest: &Manifest) -> Verified<Manifest> {
    let key = SecretKey::from_seed(&[1; 32]);
    let sign = |bytes: &[u8]| [(key.public().id(), key.sign(bytes))].into();
    let document = RootDocument {
        format: 1,
        version: 1,
        development: true,
        threshold: 1,
        keys: vec![Key::from(key.public())],
    };
    let root = serde_json::to_vec(&document).unwrap();
    let root = TrustedRoot::anchor(&root, &sign(&root)).unwrap();
    let bytes = manifest.to_bytes().unwrap();
    root.verify(&bytes, &sign(&bytes)).unwrap()
}

fn table() -> Table {
    table_of("cluster-os_2", EMPTY)
}

/// Labels of the root partitions.
fn table_of(active: &str, other: &str) -> Table {
    let mut disk = Vec::new();
    let parts = [
        (ROOT_VERITY, "cluster-os_2_verity", 64),
        (ROOT, active, 2048),
        (ROOT_VERITY, EMPTY, 64),
        (ROOT, other, 2048),
    ];
    gpt::tests::make(&mut disk, 8 * MIB, &parts);
    Table::load(512, disk.len() as u64, |at, buffer| {
        buffer.copy_from_slice(&disk[at as usize..at as usize + buffer.len()]);
        Ok(())
    })
    .unwrap()
}

fn slots(active: &str, other: &str) -> Slots {
    Slots::find(&table_of(active, other), &[1, 2]).unwrap()
}

fn stage(entries: &[&str], free: u64, manifest: &Manifest) -> Result<Staging, Refusal> {
    let entries: Vec<(String, u64)> = entries.iter().map(|name| ((*name).to_owned(), 2 * MIB)).collect();
    let facts = Facts {
        table: &table(),
        under_root: &[1, 2],
        entries: &entries,
        esp_free: free,
        running: &version("2"),
        architecture: "x86-64",
    };
    Staging::new(&facts, &signed(manifest))
}

const RUNNING: &str = "cluster-os_2.efi";

/// How a boot entry's removal begins.
fn hiding(name: &str) -> Effect {
    Effect::RenameEntry { from: name.to_owned(), to: entry::hidden_name(name) }
}

#[test]
fn what_goes_leaves_the_boot_loaders_sight_first_and_falls_on_nothing() {
    let entries = [RUNNING, "cluster-os_3+3-0.efi", "cluster-os_3+3-0.efi.new", "cluster-os_1.new"];
    let staging = stage(&entries, 9 * MIB, &manifest("4")).unwrap();
    let (moved, removed): (Vec<_>, Vec<_>) = staging.steps.effects[2..7]
        .iter()
        .partition(|effect| matches!(effect, Effect::RenameEntry { .. } | Effect::SyncEsp));
    let to = "cluster-os_3+3-0.efi.new.new";
    let hide = Effect::RenameEntry { from: "cluster-os_3+3-0.efi".into(), to: to.into() };
    assert_eq!(moved, [&hide, &Effect::SyncEsp]);
    assert_eq!(staging.steps.effects[2..4], [hide, Effect::SyncEsp]);
    let remove = |name: &str| Effect::RemoveEntry(name.to_owned());
    assert_eq!(removed, [&remove(to), &remove("cluster-os_3+3-0.efi.new"), &remove("cluster-os_1.new")]);
}

#[test]
fn the_entry_goes_first_and_comes_last() {
    let staging = stage(&[RUNNING, "cluster-os_1.efi", "cluster-os_3.new", "other.efi"], 0, &manifest("3"));
    let names: Vec<String> = staging
        .unwrap()
        .steps
        .effects
        .iter()
        .map(|effect| match effect {
            Effect::WriteTable(writes) if writes[1].0 == 512 => "primary".to_owned(),
            Effect::WriteTable(_) => "backup".to_owned(),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(
        names,
        [
            r#"CheckRunning { name: "cluster-os_2.efi", bytes: 2097152 }"#,
            "SyncEsp",
            r#"RenameEntry { from: "cluster-os_1.efi", to: "cluster-os_1.efi.new" }"#,
            "SyncEsp",
            r#"RemoveEntry("cluster-os_1.efi.new")"#,
            r#"RemoveEntry("cluster-os_3.new")"#,
            "SyncEsp",
            "backup",
            "FlushDisk",
            "primary",
            "FlushDisk",
            "WriteSlot",
            "FlushDisk",
            "VerifySlot",
            "backup",
            "FlushDisk",
            "primary",
            "FlushDisk",
            r#"WriteEntry("cluster-os_3.new")"#,
            r#"VerifyEntry("cluster-os_3.new")"#,
            r#"CheckRunning { name: "cluster-os_2.efi", bytes: 2097152 }"#,
            r#"RenameEntry { from: "cluster-os_3.new", to: "cluster-os_3+3-0.efi" }"#,
            "SyncEsp",
        ]
    );
}

#[test]
fn refuses_before_the_first_byte() {
    let ok = manifest("3");
    assert!(matches!(stage(&[RUNNING], 3 * MIB, &ok), Err(Refusal::EspFull { .. })));
    assert!(stage(&[RUNNING, "cluster-os_1.efi"], 2 * MIB, &ok).is_ok(), "what goes makes room");
    assert!(matches!(stage(&[], 9 * MIB, &ok), Err(Refusal::Entries(_))));
    for on_trial in [&["cluster-os_2+2-1.efi"][..], &["cluster-os_2+1-2.efi", "cluster-os_2+2-2.efi"]] {
        assert_eq!(stage(on_trial, 9 * MIB, &ok).err(), Some(Refusal::Trial(version("2"))));
    }

    let refused = |manifest: &Manifest| stage(&[RUNNING], 9 * MIB, manifest).unwrap_err();
    assert!(matches!(refused(&manifest("2")), Refusal::Runs(_)));
    assert!(matches!(refused(&manifest("1")), Refusal::Older { .. }));
    assert!(matches!(
        refused(&Manifest { minimum_version: version("2.1"), ..ok.clone() }),
        Refusal::Minimum { .. }
    ));
    assert!(matches!(
        refused(&Manifest { architecture: "arm64".into(), ..ok.clone() }),
        Refusal::Architecture { .. }
    ));
    let mut large = ok;
    large.root.data_blocks = 300;
    large.root.data_bytes = 300 * 4096;
    large.root.tree_bytes = verity::tree_bytes(300);
    assert!(matches!(refused(&large), Refusal::SlotTooSmall { what: "the root image", .. }));
}

#[test]
fn the_active_slot_is_what_the_root_device_lies_on() {
    let slots = Slots::find(&table(), &[4, 3]).unwrap();
    assert_eq!((slots.active.data.number, slots.other.data.number, slots.active_name), (4, 2, 'b'));
    for wrong in [&[2][..], &[], &[1, 2, 3], &[9, 10], &[1, 2, 3, 4]] {
        assert!(Slots::find(&table(), wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_lost_copy_of_the_table_is_made_again_first() {
    for (state, offset) in [(State::NoPrimary, 512), (State::NoBackup, 8 * MIB - 512)] {
        let mut table = table();
        table.state = state;
        let slots = Slots::find(&table, &[1, 2]).unwrap();
        let (own, _) = sort_entries(&[(RUNNING.to_owned(), MIB)], &version("2")).unwrap();
        let effects = stage_effects(&table, &slots, &own[0], Vec::new(), &manifest("3"));
        let Effect::WriteTable(writes) = &effects[0] else { panic!("{effects:?}") };
        assert_eq!((writes[1].0, &effects[1]), (offset, &Effect::FlushDisk));
    }
}

#[test]
fn rolls_back_what_runs_and_cancels_what_is_staged() {
    let entries =
        |names: &[&str]| -> Vec<(String, u64)> { names.iter().map(|name| ((*name).to_owned(), 1)).collect() };
    let before = slots("cluster-os_2", "cluster-os_1");
    let back = |names: &[&str]| rollback(&before, &entries(names), &version("2"));
    let Ok(Rollback::Return(to, steps)) = back(&[RUNNING, "cluster-os_1.efi"]) else { panic!() };
    let given_up = Effect::RenameEntry { from: RUNNING.into(), to: "cluster-os_2+0-4.efi".into() };
    assert_eq!((to, steps.current()), (version("1"), Some(&given_up)));
    let Ok(Rollback::Cancel(what, steps)) = back(&[RUNNING, "cluster-os_3+3-0.efi"]) else { panic!() };
    assert_eq!((what, steps.current()), (version("3"), Some(&hiding("cluster-os_3+3-0.efi"))));
    assert!(matches!(back(&[RUNNING]), Err(Refusal::NoWayBack(_))));
    assert!(matches!(back(&[RUNNING, "cluster-os_1+0-3.efi"]), Err(Refusal::NoWayBack(_))));
    assert!(matches!(back(&[RUNNING, "cluster-os_3+0-3.efi"]), Err(Refusal::NoWayBack(_))));
}

#[test]
fn entries_go_by_the_names_that_they_have() {
    for name in ["cluster-os_1+2.efi", "cluster-os_1+0.efi", "cluster-os_1+03-0.efi"] {
        let staging = stage(&[RUNNING, name], 9 * MIB, &manifest("3")).unwrap();
        assert!(staging.steps.effects.contains(&hiding(name)), "{name} stays");
    }
    let entries = [("cluster-os_2+2.efi".to_owned(), 1), ("cluster-os_1+3.efi".to_owned(), 1)];
    let before = slots("cluster-os_2", "cluster-os_1");
    let Ok(Rollback::Return(_, steps)) = rollback(&before, &entries, &version("2")) else { panic!() };
    let given_up =
        Effect::RenameEntry { from: "cluster-os_2+2.efi".into(), to: "cluster-os_2+0-1.efi".into() };
    assert_eq!(steps.current(), Some(&given_up));
    let entries = [(RUNNING.to_owned(), 1), ("cluster-os_3+03-0.efi".to_owned(), 1)];
    let Ok(Rollback::Cancel(_, steps)) = rollback(&before, &entries, &version("2")) else { panic!() };
    assert_eq!(steps.current(), Some(&hiding("cluster-os_3+03-0.efi")));
}

#[test]
fn nothing_is_changed_where_the_slot_of_what_runs_says_another_version() {
    let entries = [(RUNNING.to_owned(), MIB), ("cluster-os_1.efi".to_owned(), MIB)];
    for label in ["cluster-os_1", EMPTY, "root"] {
        let table = table_of(label, "cluster-os_1");
        let facts = Facts {
            table: &table,
            under_root: &[1, 2],
            entries: &entries,
            esp_free: 9 * MIB,
            running: &version("2"),
            architecture: "x86-64",
        };
        let refused = Staging::new(&facts, &signed(&manifest("3"))).unwrap_err();
        assert!(matches!(refused, Refusal::Label { .. }), "{refused}");
        let refused = rollback(&slots(label, "cluster-os_1"), &entries, &version("2")).unwrap_err();
        assert!(matches!(refused, Refusal::Label { .. }), "{refused}");
    }
    // The previous version's entry is there, and its slot holds another by now.
    for label in ["cluster-os_0.9", EMPTY] {
        let refused = rollback(&slots("cluster-os_2", label), &entries, &version("2")).unwrap_err();
        assert!(matches!(refused, Refusal::NoWayBack(_)), "{refused}");
    }
}

/// A power cut between the two halves of a rename on FAT: both names lead to the same clusters, and who removes one frees
/// those of the other.
#[test]
fn a_second_name_of_what_runs_is_never_removed() {
    let counted = "cluster-os_2+2-1.efi";
    for second in ["cluster-os_2.new", counted] {
        let names = [second, "cluster-os_2+1-2.efi", RUNNING, "cluster-os_1.efi"];
        let staging = stage(&names, 9 * MIB, &manifest("3")).unwrap();
        let removed: Vec<&Effect> =
            staging.steps.effects.iter().filter(|effect| matches!(effect, Effect::RemoveEntry(_))).collect();
        assert_eq!(removed, [&Effect::RemoveEntry("cluster-os_1.efi.new".into())], "beside {second}");
    }
    let before = slots("cluster-os_2", "cluster-os_1");
    let renames = |own: &[&str]| {
        let names = own.iter().copied().chain(["cluster-os_1.efi"]);
        let entries: Vec<(String, u64)> = names.map(|name| (name.to_owned(), MIB)).collect();
        let Ok(Rollback::Return(_, mut steps)) = rollback(&before, &entries, &version("2")) else { panic!() };
        assert_eq!(steps.effects.pop(), Some(Effect::SyncEsp));
        steps.effects
    };
    let rename = |from: &str, to: &str| Effect::RenameEntry { from: from.into(), to: to.into() };
    let good = rename(RUNNING, "cluster-os_2+0-4.efi");
    assert_eq!(renames(&[counted, RUNNING]), [good, rename(counted, "cluster-os_2+0-2.efi")]);
    let third = "cluster-os_2+1-3.efi";
    assert_eq!(
        renames(&[third, RUNNING])[1],
        rename(third, "cluster-os_2+0-5.efi"),
        "no name falls on another"
    );
    // While a try was given back, and while it was tried again.
    let given_back = ["cluster-os_2+1-2.efi", "cluster-os_2+2-2.efi", "cluster-os_2+0-3.efi"];
    assert_eq!(
        renames(&given_back),
        [
            rename(given_back[1], "cluster-os_2+0-4.efi"),
            rename(given_back[0], "cluster-os_2+0-5.efi"),
            rename(given_back[2], "cluster-os_2+0-6.efi"),
        ]
    );
}

/// Whoever cancels it must not leave a boot entry without content.
#[test]
fn each_name_of_what_is_staged_goes() {
    for staged in [
        ["cluster-os_3+2-1.efi", "cluster-os_3+3-0.efi"],
        // The last try was given back, and the power went.
        ["cluster-os_3+0-3.efi", "cluster-os_3+1-3.efi"],
    ] {
        let entries: Vec<(String, u64)> =
            [RUNNING, staged[0], staged[1]].iter().map(|name| ((*name).to_owned(), MIB)).collect();
        let before = slots("cluster-os_2", "cluster-os_3");
        let Ok(Rollback::Cancel(_, steps)) = rollback(&before, &entries, &version("2")) else { panic!() };
        assert_eq!(steps.effects[..3], [hiding(staged[0]), hiding(staged[1]), Effect::SyncEsp]);
    }
}

/// A name without its content is what a drive leaves that lost power before it had written what it said it had.
#[test]
fn staged_already_is_only_what_has_its_size() {
    let mut table = table();
    let release = signed(&manifest("3"));
    let (data, tree) = release.root.partition_uuids();
    table.relabel(4, "cluster-os_3", data, 0);
    table.relabel(3, "cluster-os_3_verity", tree, 0);
    let stage = |bytes| {
        let entries = [(RUNNING.to_owned(), MIB), ("cluster-os_3+3-0.efi".to_owned(), bytes)];
        let facts = Facts {
            table: &table,
            under_root: &[1, 2],
            entries: &entries,
            esp_free: 9 * MIB,
            running: &version("2"),
            architecture: "x86-64",
        };
        Staging::new(&facts, &release)
    };
    assert_eq!(stage(3 * MIB).err(), Some(Refusal::Staged(version("3"))));
    for bytes in [0, 3 * MIB - 1] {
        let again = stage(bytes).unwrap();
        assert!(again.steps.effects.contains(&hiding("cluster-os_3+3-0.efi")));
    }
}
