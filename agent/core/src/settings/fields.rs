// SPDX-License-Identifier: Apache-2.0
//! Checks of single values: names, labels, seeds and SSH keys. Each gives the value or what is wrong and how to mend it.

use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Seed;
use crate::consts::AGENT_PORT;
use crate::id::is_mesh_address;

/// What is wrong and what to do.
pub(super) type Refusal = (String, String);

fn refuse<T>(message: impl Into<String>, fix: impl Into<String>) -> Result<T, Refusal> {
    Err((message.into(), fix.into()))
}

/// A DNS label in lower case.
pub(crate) fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// A cluster or host name.
pub(super) fn name(what: &str, text: &str) -> Result<String, Refusal> {
    if is_dns_label(text) {
        return Ok(text.to_owned());
    }
    refuse(
        format!("`{what}` is not a valid name"),
        "use 1 to 63 characters of a-z, 0-9 and `-`, with no `-` at either end",
    )
}

/// Whether a label is one that records may carry.
pub(crate) fn is_label(key: &str, value: &str) -> bool {
    let key_ok = (1..=63).contains(&key.len())
        && key.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._/-".contains(&c));
    let value_ok =
        value.len() <= 63 && value.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c));
    key_ok && value_ok
}

/// A label of a node.
pub(super) fn label(key: &str, value: &str) -> Result<(String, String), Refusal> {
    if is_label(key, value) {
        return Ok((key.to_owned(), value.to_owned()));
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
        _ => refuse(
            "seed is neither an address nor a host name",
            "write it like `192.0.2.7` or `node1.example.org:41410`",
        ),
    }
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

const SSH_KEY_TYPES: &[&str] = &[
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// A public key as in `~/.ssh/id_ed25519.pub`, without options in front. `only` limits the type.
pub(super) fn ssh_key(text: &str, only: Option<&str>) -> Result<String, Refusal> {
    let text = text.trim();
    if text.contains("PRIVATE KEY") {
        return refuse(
            "this is a private key",
            "paste the content of the file that ends in `.pub` and keep this one secret",
        );
    }
    if text.len() > 8192 || text.chars().any(char::is_control) {
        return refuse("SSH key has line breaks or is too long", "write one key per text, each in one line");
    }
    let mut parts = text.split_ascii_whitespace();
    let (kind, body) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    if !SSH_KEY_TYPES.contains(&kind) {
        return refuse(
            "this is not an SSH public key",
            "paste one line of a `.pub` file, like `ssh-ed25519 AAAA… you@laptop`; options in front are not allowed",
        );
    }
    if let Some(only) = only
        && kind != only
    {
        return refuse(
            format!("admin keys must be of type `{only}`"),
            "make one with `ssh-keygen -t ed25519`",
        );
    }
    let intact = STANDARD.decode(body).is_ok_and(|blob| {
        let length = blob.get(..4).map(|n| u32::from_be_bytes([n[0], n[1], n[2], n[3]]) as usize);
        let inner = length.and_then(|length| blob.get(4..length.checked_add(4)?));
        inner == Some(kind.as_bytes()) && blob.len() > 4 + kind.len() + 4
    });
    if !intact {
        return refuse("SSH key is damaged", "copy the whole line of the `.pub` file again");
    }
    Ok(text.to_owned())
}
