// SPDX-License-Identifier: Apache-2.0
//! Checks of single values: names, labels, seeds. Each gives the value or what is wrong and how to mend it.

use std::net::{IpAddr, SocketAddr};

use super::{Seed, is_dns_label, is_label, odd};
use crate::consts::AGENT_PORT;
use crate::id::is_mesh_address;
use crate::join_key::JoinKey;

/// What is wrong with a value and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) fix: String,
    /// Offset in the value, where a part of it is wrong.
    pub(super) at: Option<usize>,
}

impl Refusal {
    pub(super) fn new(message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { message: message.into(), fix: fix.into(), at: None }
    }

    pub(super) fn at(at: usize, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { at: Some(at), ..Self::new(message, fix) }
    }

    /// The same of a value that has so many bytes more in front.
    pub(super) fn moved(self, by: usize) -> Self {
        Self { at: self.at.map(|at| at + by), ..self }
    }

    /// A character that is not what it looks like is the mistake, wherever there is one.
    pub(super) fn unless_odd(self, value: &str) -> Self {
        odd::first(value).unwrap_or(self)
    }
}

pub(super) fn refuse<T>(message: impl Into<String>, fix: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(message, fix))
}

/// A cluster or host name.
pub(super) fn name(what: &str, text: &str) -> Result<String, Refusal> {
    if is_dns_label(text) {
        return Ok(text.to_owned());
    }
    let refusal = Refusal::new(
        format!("`{what}` is not a valid name"),
        "use 1 to 63 characters of a-z, 0-9 and `-`, with no `-` at either end",
    );
    Err(refusal.unless_odd(text))
}

/// A join key as it stands in the file.
pub(super) fn join_key(text: &str) -> Result<JoinKey, Refusal> {
    let key = odd::trim(text);
    JoinKey::parse(key).map_err(|error| {
        let fix = "copy the whole line again from the cluster.toml of another stick of this cluster";
        match key.find(char::is_whitespace) {
            Some(at) if odd::first(key).is_none() => {
                let at = at + text.len() - odd::trim_start(text).len();
                Refusal::at(
                    at,
                    "join key has a space or a line break in it",
                    "write it in one piece, without spaces",
                )
            }
            _ => Refusal::new(error.to_string(), fix).unless_odd(text),
        }
    })
}

/// A label of a node.
pub(super) fn label(key: &str, value: &str) -> Result<(), Refusal> {
    if is_label(key, value) {
        return Ok(());
    }
    let shown: String = key.chars().take(40).collect();
    refuse(
        format!("label `{shown}` is not valid"),
        "use a-z, 0-9 and `._/-` in its name and letters, digits and `._-` in its value, 63 characters each at most",
    )
}

/// `host`, `host:port`, an IP address, or an IP address with port.
pub(super) fn seed(text: &str) -> Result<Seed, Refusal> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = match (text.parse::<SocketAddr>(), bare.parse::<IpAddr>()) {
        (Ok(address), _) => Some(address),
        (_, Ok(ip)) => Some(SocketAddr::new(ip, AGENT_PORT)),
        _ => None,
    };
    if let Some(address) = address {
        return match address.ip() {
            IpAddr::V6(ip) if is_mesh_address(&ip) => refuse(
                "seed is a mesh address",
                "name the node's address on the physical network; the mesh exists only inside the cluster",
            ),
            ip if is_link_local(&ip) => refuse(
                "seed is a link-local address",
                "remove it; nodes on the same link find each other without seeds",
            ),
            ip if ip.is_unspecified() || ip.is_multicast() || address.port() == 0 => refuse(
                "seed is not the address of a machine",
                "write it like `192.0.2.7` or `node1.example.org:41410`",
            ),
            _ => Ok(Seed::Address(address)),
        };
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok().filter(|port| *port != 0)),
        None => (text, Some(AGENT_PORT)),
    };
    let host_ok = host.len() <= 253
        && host.split('.').all(|part| is_dns_label(&part.to_ascii_lowercase()))
        && host.bytes().any(|c| c.is_ascii_alphabetic());
    match port {
        Some(port) if host_ok => Ok(Seed::Name { host: host.to_owned(), port }),
        _ => {
            let refusal = Refusal::new(
                "seed is neither an address nor a host name",
                "write it like `192.0.2.7` or `node1.example.org:41410`",
            );
            Err(refusal.unless_odd(text))
        }
    }
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
