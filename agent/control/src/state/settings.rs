// SPDX-License-Identifier: Apache-2.0
//! What `clusterctl config` changes: typed, checked when it is read, with versions, history and undo.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cluster_agent_proto::wire::{Malformed, Reader, Writer};

use super::{Refusal, State};
use crate::consts::{MAX_HISTORY, MAX_HISTORY_BYTES, MAX_MEMBERS};
use crate::wire::{put_large, put_option, take_flag, take_large, take_option};

const MAX_SSH_KEYS: usize = 64;
const MAX_SSH_KEY: usize = 1024;
const MAX_SERVERS: usize = 8;
const MAX_CERTIFICATES: usize = 16;
const MAX_CERTIFICATE: usize = 8 * 1024;

/// Which setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SettingKind {
    /// `ssh-keys`
    SshKeys,
    /// `time-zone`
    TimeZone,
    /// `ntp`
    Ntp,
    /// `dns`
    Dns,
    /// `proxy`
    Proxy,
    /// `certificates`
    Certificates,
    /// `ipv4-range`
    Ipv4Range,
    /// `admission`
    Admission,
    /// `max-members`
    MaxMembers,
    /// `voters`
    Voters,
}

impl SettingKind {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::SshKeys,
        Self::TimeZone,
        Self::Ntp,
        Self::Dns,
        Self::Proxy,
        Self::Certificates,
        Self::Ipv4Range,
        Self::Admission,
        Self::MaxMembers,
        Self::Voters,
    ];

    pub(super) fn number(self) -> u8 {
        Self::ALL.iter().position(|kind| *kind == self).map_or(0, |at| at as u8 + 1)
    }

    pub(super) fn of_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// A value that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Lines of authorized_keys that may log in as root.
    SshKeys(Vec<String>),
    /// Of the tz database.
    TimeZone(String),
    /// Servers, by name or address.
    Ntp(Vec<String>),
    /// Servers, instead of what DHCP says.
    Dns(Vec<IpAddr>),
    /// `http://host:port`
    Proxy(String),
    /// PEM, one certificate each.
    Certificates(Vec<String>),
    /// Network and prefix length that members get addresses from.
    Ipv4Range(Ipv4Addr, u8),
    /// Whether a join key is enough.
    Admission {
        /// Else a person decides.
        automatic: bool,
    },
    /// Beyond so many a person decides.
    MaxMembers(u16),
    /// At most so many voters: 1, 3 or 5.
    Voters(u8),
}

/// Text of one line without control characters.
fn is_line(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn is_host(text: &str) -> bool {
    is_line(text, 253)
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || b".-:".contains(&c))
        && !text.starts_with('-')
}

impl Setting {
    /// Which it is.
    pub fn kind(&self) -> SettingKind {
        match self {
            Self::SshKeys(_) => SettingKind::SshKeys,
            Self::TimeZone(_) => SettingKind::TimeZone,
            Self::Ntp(_) => SettingKind::Ntp,
            Self::Dns(_) => SettingKind::Dns,
            Self::Proxy(_) => SettingKind::Proxy,
            Self::Certificates(_) => SettingKind::Certificates,
            Self::Ipv4Range(..) => SettingKind::Ipv4Range,
            Self::Admission { .. } => SettingKind::Admission,
            Self::MaxMembers(_) => SettingKind::MaxMembers,
            Self::Voters(_) => SettingKind::Voters,
        }
    }

    /// Whether the value can be one of this setting. An SSH key is looked at only as far as a line of a file goes.
    pub fn is_valid(&self) -> bool {
        match self {
            Self::SshKeys(keys) => {
                keys.len() <= MAX_SSH_KEYS && keys.iter().all(|key| is_line(key, MAX_SSH_KEY))
            }
            Self::TimeZone(zone) => {
                let letters = |c: u8| c.is_ascii_alphanumeric() || b"/_+-".contains(&c);
                is_line(zone, 64) && zone.bytes().all(letters) && !zone.starts_with('/')
            }
            Self::Ntp(servers) => {
                servers.len() <= MAX_SERVERS && servers.iter().all(|server| is_host(server))
            }
            Self::Dns(servers) => {
                let sound = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback();
                servers.len() <= MAX_SERVERS && servers.iter().all(sound)
            }
            Self::Proxy(url) => {
                let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
                is_line(url, 255)
                    && rest.is_some_and(|rest| !rest.is_empty())
                    && url.bytes().all(|c| c.is_ascii_graphic())
            }
            Self::Certificates(all) => {
                let sound = |pem: &String| {
                    pem.len() <= MAX_CERTIFICATE
                        && pem.is_ascii()
                        && pem.starts_with("-----BEGIN CERTIFICATE-----\n")
                        && pem.trim_end().ends_with("-----END CERTIFICATE-----")
                };
                all.len() <= MAX_CERTIFICATES && all.iter().all(sound)
            }
            Self::Ipv4Range(base, length) => {
                let private = base.is_private() || matches!(base.octets(), [100, 64..128, ..]);
                (8..=28).contains(length) && private && u32::from(*base) & (u32::MAX >> length) == 0
            }
            Self::Admission { .. } => true,
            Self::MaxMembers(max) => (1..=MAX_MEMBERS).contains(&usize::from(*max)),
            Self::Voters(voters) => [1, 3, 5].contains(voters),
        }
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.u8(self.kind().number());
        let texts = |w: &mut Writer, texts: &[String]| {
            w.u8(texts.len() as u8);
            for text in texts {
                put_large(w, text.as_bytes());
            }
        };
        match self {
            Self::SshKeys(all) | Self::Ntp(all) | Self::Certificates(all) => texts(w, all),
            Self::TimeZone(text) | Self::Proxy(text) => texts(w, std::slice::from_ref(text)),
            Self::Dns(servers) => {
                w.u8(servers.len() as u8);
                for server in servers {
                    match server {
                        IpAddr::V4(ip) => w.u8(4).raw(&ip.octets()),
                        IpAddr::V6(ip) => w.u8(6).raw(&ip.octets()),
                    };
                }
            }
            Self::Ipv4Range(base, length) => {
                w.raw(&base.octets()).u8(*length);
            }
            Self::Admission { automatic } => {
                w.u8(u8::from(*automatic));
            }
            Self::MaxMembers(max) => {
                w.u16(*max);
            }
            Self::Voters(voters) => {
                w.u8(*voters);
            }
        }
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let kind = SettingKind::of_number(r.u8()?).ok_or(r.malformed())?;
        let texts = |r: &mut Reader<'_>| {
            let count = r.u8()?;
            let text = |r: &mut Reader<'_>| {
                let bytes = take_large(r, MAX_CERTIFICATE)?;
                String::from_utf8(bytes.to_vec()).map_err(|_| r.malformed())
            };
            (0..count).map(|_| text(r)).collect::<Result<Vec<_>, _>>()
        };
        let one = |r: &mut Reader<'_>| match <[String; 1]>::try_from(texts(r)?) {
            Ok([text]) => Ok(text),
            Err(_) => Err(r.malformed()),
        };
        let ip = |r: &mut Reader<'_>| match r.u8()? {
            4 => Ok(IpAddr::V4(Ipv4Addr::from(r.array::<4>()?))),
            6 => Ok(IpAddr::V6(Ipv6Addr::from(r.array::<16>()?))),
            _ => Err(r.malformed()),
        };
        let setting = match kind {
            SettingKind::SshKeys => Self::SshKeys(texts(r)?),
            SettingKind::TimeZone => Self::TimeZone(one(r)?),
            SettingKind::Ntp => Self::Ntp(texts(r)?),
            SettingKind::Dns => {
                let count = r.u8()?;
                Self::Dns((0..count).map(|_| ip(r)).collect::<Result<_, _>>()?)
            }
            SettingKind::Proxy => Self::Proxy(one(r)?),
            SettingKind::Certificates => Self::Certificates(texts(r)?),
            SettingKind::Ipv4Range => Self::Ipv4Range(Ipv4Addr::from(r.array::<4>()?), r.u8()?),
            SettingKind::Admission => Self::Admission { automatic: take_flag(r)? },
            SettingKind::MaxMembers => Self::MaxMembers(r.u16()?),
            SettingKind::Voters => Self::Voters(r.u8()?),
        };
        if setting.is_valid() { Ok(setting) } else { Err(r.malformed()) }
    }

    fn size(&self) -> usize {
        let mut w = Writer::new();
        self.write(&mut w);
        w.finish().len()
    }
}

/// A setting and the number of its last change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// Of all changes of settings this one was the so-manieth.
    pub version: u64,
    /// `None`: taken back to what it is by itself.
    pub value: Option<Setting>,
}

/// One change of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Numbered through all settings.
    pub version: u64,
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// Which.
    pub kind: SettingKind,
    /// What it was.
    pub before: Option<Setting>,
}

impl Change {
    pub(super) fn write(&self, w: &mut Writer) {
        w.u64(self.version).u64(self.at).u8(self.kind.number());
        put_option(w, self.before.as_ref(), |w, setting| setting.write(w));
    }

    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            version: r.u64()?,
            at: r.u64()?,
            kind: SettingKind::of_number(r.u8()?).ok_or(r.malformed())?,
            before: take_option(r, Setting::read)?,
        })
    }

    fn size(&self) -> usize {
        self.before.as_ref().map_or(0, Setting::size)
    }
}

impl State {
    /// A setting, `None`: what it is by itself.
    pub fn setting(&self, kind: SettingKind) -> Option<&Setting> {
        self.settings.get(&kind)?.value.as_ref()
    }

    /// Number of its last change, 0 if there was none.
    pub fn setting_version(&self, kind: SettingKind) -> u64 {
        self.settings.get(&kind).map_or(0, |setting| setting.version)
    }

    /// The last changes, oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Change> {
        self.history.iter()
    }

    pub(super) fn set(&mut self, setting: Setting, if_version: Option<u64>) -> Result<(), Refusal> {
        if !setting.is_valid() {
            return Err(Refusal::BadValue);
        }
        let kind = setting.kind();
        if if_version.is_some_and(|version| version != self.setting_version(kind)) {
            return Err(Refusal::Conflict);
        }
        self.put(kind, Some(setting))
    }

    pub(super) fn unset(&mut self, kind: SettingKind) -> Result<(), Refusal> {
        self.put(kind, None)
    }

    pub(super) fn undo(&mut self, version: Option<u64>) -> Result<(), Refusal> {
        let change = match version {
            Some(version) => self.history.iter().find(|change| change.version == version),
            None => self.history.back(),
        };
        let change = change.ok_or(Refusal::NothingToUndo)?.clone();
        // Undoing what was changed again since would take back that change, too.
        if self.setting_version(change.kind) != change.version {
            return Err(Refusal::Conflict);
        }
        self.put(change.kind, change.before)
    }

    fn put(&mut self, kind: SettingKind, value: Option<Setting>) -> Result<(), Refusal> {
        let before = self.settings.get(&kind).and_then(|setting| setting.value.clone());
        if before == value {
            return Ok(());
        }
        let last = self.settings.values().map(|setting| setting.version).max().unwrap_or(0);
        let old = self.settings.insert(kind, Versioned { version: last + 1, value });
        if kind == SettingKind::Ipv4Range
            && let Err(refusal) = self.renumber()
        {
            match old {
                Some(old) => self.settings.insert(kind, old),
                None => self.settings.remove(&kind),
            };
            return Err(refusal);
        }
        self.history.push_back(Change { version: last + 1, at: self.time, kind, before });
        let mut size: usize = self.history.iter().map(Change::size).sum();
        while self.history.len() > MAX_HISTORY || size > MAX_HISTORY_BYTES {
            size -= self.history.pop_front().map_or(size, |change| change.size());
        }
        Ok(())
    }
}
