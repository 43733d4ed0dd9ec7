// SPDX-License-Identifier: Apache-2.0
//! The boot loader on the ESP: when the running version's takes the place of what is there, and in which order.
//!
//! The firmware knows one of two paths, mostly the second one, and on a disk that was written with an image no other leads to a
//! boot. So at no moment may either be missing or half there: the new one is written under another name, flushed, read back
//! and put in place by one rename, whose old content is freed when the new name is on the medium ([`Loaders::replace`]). One
//! path is finished before the other is begun.

use std::{collections::BTreeMap, io};

use crate::{digest::Digest, entry::Entry, version::Version};

/// Where firmware finds it: by a boot variable, or without one (UEFI specification, 3.5.1.1). In this order they are replaced.
pub const PLACES: [&str; 2] = ["EFI/systemd/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI"];
/// Larger ones are not read.
pub const MAX_BYTES: u64 = 4 << 20;
/// In every systemd-boot, with its version behind it (`.sdmagic`).
const MARK: &[u8] = b"#### LoaderInfo: systemd-boot ";
/// Left free on the ESP.
const MARGIN: u64 = 1 << 20;
/// Names that are tried beside a place. A power cut within a few milliseconds uses one up.
const SPARES: usize = 8;

/// The boot loader's files on an ESP. Paths begin at its root.
pub trait Loaders {
    /// The content; `None` if there is no such file, and no more than [`MAX_BYTES`] and one byte of a longer one.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&mut self, path: &str) -> io::Result<Option<Vec<u8>>>;
    /// Writes a file anew. When this returns it survives a power cut, and is read from the medium.
    ///
    /// # Errors
    /// When it cannot be written or flushed.
    fn write(&mut self, path: &str, bytes: &[u8]) -> io::Result<()>;
    /// Renames a file over another. Whatever happens meanwhile, `to` is the old one or the new one: the old one's content is
    /// freed only when the new name is on the medium.
    ///
    /// # Errors
    /// When it cannot be renamed or flushed.
    fn replace(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file that was just written and did not become what it should.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    fn remove(&mut self, path: &str) -> io::Result<()>;
    /// Bytes free on the ESP.
    ///
    /// # Errors
    /// When the file system does not say.
    fn free(&mut self) -> io::Result<u64>;
}

/// A boot loader, or what is in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loader {
    /// Of the file.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// It says that it is systemd-boot.
    pub is_systemd_boot: bool,
}

impl Loader {
    /// Looks at a file's content.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self {
            digest: Digest::of(content),
            bytes: content.len() as u64,
            is_systemd_boot: content.windows(MARK.len()).any(|window| window == MARK),
        }
    }
}

/// What is known before anything is written.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// What runs.
    pub running: &'a Version,
    /// `rollback` gave the running version up.
    pub given_up: bool,
    /// Names in `EFI/Linux/`.
    pub entries: &'a [String],
    /// The version whose boot loader was put in place last, if any was.
    pub newest: Option<&'a Version>,
    /// The boot loader in the running image.
    pub image: Loader,
    /// What lies at [`PLACES`] and at [`spares`].
    pub files: &'a BTreeMap<String, Loader>,
    /// Bytes free on the ESP.
    pub free: u64,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the image's boot loader under this name.
    Write(String),
    /// Read this file from the medium: it must be the image's boot loader.
    Check(String),
    /// Rename one over the other.
    Replace {
        /// Its name.
        from: String,
        /// Its new name.
        to: String,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In order; none if everything is as it should be. An effect that fails ends it.
    pub effects: Vec<Effect>,
    /// Places that hold something else than systemd-boot, which is left alone: somebody put it there.
    pub foreign: Vec<&'static str>,
}

/// Why the boot loader stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Kept {
    /// Not blessed.
    #[error("version {0} is not marked good")]
    Trial(Version),
    /// A newer version put its own there before this one was gone back to; it starts older versions, too.
    #[error("it came with the newer version {0}")]
    Newer(Version),
    /// The image's own is none.
    #[error("what the image has is no systemd-boot")]
    NoLoader,
    /// The ESP is too full.
    #[error("the ESP is too full: the boot loader needs {needed} bytes, {free} are free")]
    EspFull {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// Every name for the new one is taken.
    #[error(
        "power cuts left files beside `{0}`, and no name is free: check the ESP with fsck.vfat from another system"
    )]
    NoSpare(&'static str),
}

/// Names that the new boot loader of a place may have until it is whole.
pub fn spares(place: &str) -> impl Iterator<Item = String> {
    (1..=SPARES).map(move |number| format!("{place}.new{number}"))
}

impl Plan {
    /// Decides.
    ///
    /// # Errors
    /// When the boot loader stays as it is.
    pub fn new(facts: &Facts<'_>) -> Result<Self, Kept> {
        let own = facts.entries.iter().filter_map(|name| Entry::parse(name));
        let blessed =
            own.filter(|entry| entry.version == *facts.running).any(|entry| entry.counter.is_none());
        if !blessed || facts.given_up {
            return Err(Kept::Trial(facts.running.clone()));
        }
        if let Some(newest) = facts.newest.filter(|newest| *newest > facts.running) {
            return Err(Kept::Newer(newest.clone()));
        }
        if !facts.image.is_systemd_boot || facts.image.bytes > MAX_BYTES {
            return Err(Kept::NoLoader);
        }
        let mut plan = Self { effects: Vec::new(), foreign: Vec::new() };
        for place in PLACES {
            match facts.files.get(place) {
                Some(there) if there.digest == facts.image.digest => {}
                Some(there) if !there.is_systemd_boot => plan.foreign.push(place),
                _ => {
                    let from = spare(place, facts.files).ok_or(Kept::NoSpare(place))?;
                    let to = place.to_owned();
                    plan.effects.extend([
                        Effect::Write(from.clone()),
                        Effect::Check(from.clone()),
                        Effect::Replace { from, to: to.clone() },
                        Effect::Check(to),
                    ]);
                }
            }
        }
        let needed = facts.image.bytes + MARGIN;
        if !plan.effects.is_empty() && facts.free < needed {
            return Err(Kept::EspFull { needed, free: facts.free });
        }
        Ok(plan)
    }
}

/// A name that is free. A power cut during the rename can leave two names for one file, and later the second one leads to clusters
/// that are another file's by then: what lies there is never written to and never removed.
fn spare(place: &str, files: &BTreeMap<String, Loader>) -> Option<String> {
    spares(place).find(|name| !files.contains_key(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loader(text: &str) -> Loader {
        Loader::of(format!("MZ #### LoaderInfo: systemd-boot {text} ####").as_bytes())
    }

    struct Case {
        entries: Vec<String>,
        newest: Option<Version>,
        files: BTreeMap<String, Loader>,
        given_up: bool,
        free: u64,
    }

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    impl Case {
        fn new() -> Self {
            let files = PLACES.map(|place| (place.to_owned(), loader("257")));
            let entries = vec!["cluster-os_1.1.efi".to_owned(), "cluster-os_1.0.efi".to_owned()];
            Self { entries, newest: None, files: files.into(), given_up: false, free: 1 << 30 }
        }

        fn plan(&self) -> Result<Plan, Kept> {
            let Self { entries, newest, files, given_up, free } = self;
            Plan::new(&Facts {
                running: &version("1.1"),
                given_up: *given_up,
                entries,
                newest: newest.as_ref(),
                image: loader("258"),
                files,
                free: *free,
            })
        }
    }

    #[test]
    fn each_place_is_finished_before_the_other_is_begun() {
        let plan = Case::new().plan().unwrap();
        assert!(plan.foreign.is_empty());
        let [write, check, replace, done, rest @ ..] = plan.effects.as_slice() else { panic!("{plan:?}") };
        let (spare, place) = ("EFI/systemd/systemd-bootx64.efi.new1", PLACES[0]);
        assert_eq!((write, check), (&Effect::Write(spare.into()), &Effect::Check(spare.into())));
        assert_eq!(replace, &Effect::Replace { from: spare.into(), to: place.into() });
        assert_eq!(done, &Effect::Check(place.into()));
        assert_eq!(rest.len(), 4);
        assert_eq!(rest[3], Effect::Check(PLACES[1].into()));
    }

    #[test]
    fn nothing_is_done_where_all_is_right_and_only_what_is_not_is_done() {
        let mut case = Case::new();
        case.files.insert(PLACES[0].into(), loader("258"));
        assert_eq!(case.plan().unwrap().effects.len(), 4);
        case.files.insert(PLACES[1].into(), loader("258"));
        assert_eq!(case.plan().unwrap().effects, []);
        // One that is gone is put there again.
        case.files.remove(PLACES[1]);
        assert_eq!(case.plan().unwrap().effects.len(), 4);
    }

    #[test]
    fn a_version_that_is_not_marked_good_changes_nothing() {
        let mut case = Case::new();
        case.entries[0] = "cluster-os_1.1+2-1.efi".into();
        assert_eq!(case.plan(), Err(Kept::Trial(version("1.1"))));
        // A power cut during the blessing left both names.
        case.entries.push("cluster-os_1.1.efi".into());
        assert!(case.plan().is_ok());
        case.given_up = true;
        assert_eq!(case.plan(), Err(Kept::Trial(version("1.1"))));
    }

    #[test]
    fn whoever_goes_back_keeps_the_newer_boot_loader() {
        let mut case = Case::new();
        case.newest = Some(version("1.2"));
        assert_eq!(case.plan(), Err(Kept::Newer(version("1.2"))));
        case.newest = Some(version("1.1"));
        assert!(case.plan().is_ok());
    }

    #[test]
    fn what_is_no_systemd_boot_is_left_alone() {
        let mut case = Case::new();
        case.files.insert(PLACES[1].into(), Loader::of(b"shim"));
        let plan = case.plan().unwrap();
        assert_eq!((plan.foreign, plan.effects.len()), (vec![PLACES[1]], 4));
    }

    #[test]
    fn a_name_that_may_lead_to_another_files_content_is_not_written_to() {
        let mut case = Case::new();
        let names: Vec<String> = spares(PLACES[1]).collect();
        case.files.insert(names[0].clone(), loader("257"));
        case.files.insert(names[1].clone(), Loader::of(b"what came to lie there since"));
        let effects = case.plan().unwrap().effects;
        assert_eq!(effects[4], Effect::Write(names[2].clone()));
        for name in names {
            case.files.insert(name, loader("257"));
        }
        assert_eq!(case.plan(), Err(Kept::NoSpare(PLACES[1])));
    }

    #[test]
    fn a_full_esp_is_named_before_anything_is_written() {
        let mut case = Case::new();
        case.free = MARGIN;
        assert!(matches!(case.plan(), Err(Kept::EspFull { .. })));
        for place in PLACES {
            case.files.insert(place.into(), loader("258"));
        }
        assert!(case.plan().is_ok());
    }
}
