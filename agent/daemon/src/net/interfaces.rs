// SPDX-License-Identifier: Apache-2.0
//! Interfaces and their addresses, read from the kernel now and at every change.
//!
//! Nothing waits for the network to be "online": whatever comes up later is a change like any other.

use std::{collections::BTreeMap, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkMessage},
    },
};
use tokio::{sync::watch, time::sleep};
use tracing::{debug, warn};

/// Changes come in bursts (link, address, duplicate address detection): one reading serves them all.
const SETTLE: Duration = Duration::from_millis(50);

/// Which interfaces count as the physical network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Physical {
    /// Those with a device behind them in sysfs: no bridges, tunnels, veth ends of containers.
    #[default]
    WithDevice,
    /// Every one but loopback and the mesh itself.
    All,
    /// Those whose name matches; `*` at the end stands for anything.
    Named(String),
}

/// One interface as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Kernel index; not used again for another interface while the node runs.
    pub index: u32,
    /// Kernel name.
    pub name: String,
    /// Administratively up and with carrier.
    pub up: bool,
    /// Part of the physical network.
    pub physical: bool,
    /// Addresses that can be sent from now (tentative ones left out), with prefix length, sorted.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// Starts watching; the receiver holds the newest reading, sorted by index.
///
/// # Errors
/// When the kernel's routing socket cannot be opened or read at all.
pub async fn watch(physical: Physical, mesh_name: &str) -> Result<watch::Receiver<Vec<Interface>>> {
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut changes) =
        new_multicast_connection(&groups).context("failed to open a netlink socket (needs AF_NETLINK)")?;
    tokio::spawn(connection);
    let mesh_name = mesh_name.to_owned();
    let first = read(&handle, &physical, &mesh_name).await?;
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        while changes.next().await.is_some() {
            sleep(SETTLE).await;
            // The rest of the burst is covered by the reading below.
            while changes.try_recv().is_ok() {}
            match read(&handle, &physical, &mesh_name).await {
                Ok(now) => {
                    sender.send_if_modified(|before| {
                        let changed = *before != now;
                        *before = now;
                        changed
                    });
                }
                Err(error) => debug!("failed to read interfaces, waiting for the next change: {error:#}"),
            }
            if sender.is_closed() {
                return;
            }
        }
        warn!("the kernel closed the netlink socket: changes of network interfaces are no longer noticed");
    });
    Ok(receiver)
}

async fn read(handle: &Handle, physical: &Physical, mesh_name: &str) -> Result<Vec<Interface>> {
    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.context("failed to list interfaces")?;
    let addresses: Vec<AddressMessage> =
        handle.address().get().execute().try_collect().await.context("failed to list addresses")?;
    Ok(combine(&links, &addresses, |name| match physical {
        _ if name == mesh_name => false,
        Physical::WithDevice => Path::new("/sys/class/net").join(name).join("device").exists(),
        Physical::All => true,
        Physical::Named(pattern) => matches(pattern, name),
    }))
}

fn combine(
    links: &[LinkMessage],
    addresses: &[AddressMessage],
    is_physical: impl Fn(&str) -> bool,
) -> Vec<Interface> {
    let mut interfaces = BTreeMap::new();
    for link in links {
        let flags = link.header.flags;
        let Some(name) = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        }) else {
            continue;
        };
        let interface = Interface {
            index: link.header.index,
            up: flags.contains(LinkFlags::Up) && flags.contains(LinkFlags::LowerUp),
            physical: !flags.contains(LinkFlags::Loopback) && is_physical(&name),
            name,
            addresses: Vec::new(),
        };
        interfaces.insert(interface.index, interface);
    }
    for message in addresses {
        let Some(interface) = interfaces.get_mut(&message.header.index) else { continue };
        if is_unusable(message) {
            continue;
        }
        // Local is the node's own end where the two differ (point-to-point links).
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let remote_or_own = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        if let Some(address) = local.or(remote_or_own) {
            interface.addresses.push((address, message.header.prefix_len));
        }
    }
    interfaces
        .into_values()
        .map(|mut interface| {
            interface.addresses.sort();
            interface
        })
        .collect()
}

/// Duplicate address detection is still running, or found a duplicate: the kernel will not send from it.
fn is_unusable(message: &AddressMessage) -> bool {
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = flags.unwrap_or_else(|| AddressFlags::from_bits_retain(message.header.flags.bits().into()));
    flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
        && !flags.contains(AddressFlags::Optimistic)
}

fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(name == pattern, |start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn reads_loopback_as_up_and_not_physical() {
        let interfaces = watch(Physical::All, "cluster0").await.unwrap().borrow().clone();
        let lo = interfaces.iter().find(|interface| interface.name == "lo").unwrap();
        assert!(!lo.physical);
        assert!(lo.addresses.contains(&("127.0.0.1".parse().unwrap(), 8)), "{lo:?}");
    }

    #[test]
    fn patterns_match_whole_names_or_a_start() {
        assert!(matches("eth*", "eth0"));
        assert!(matches("eth0", "eth0"));
        assert!(!matches("eth0", "eth01"));
        assert!(!matches("eth*", "wlan0"));
    }

    #[test]
    fn tentative_addresses_wait_for_duplicate_detection() {
        let mut link = LinkMessage::default();
        link.header.index = 7;
        link.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
        link.attributes.push(LinkAttribute::IfName("eth0".to_owned()));
        let address = |text: &str, flags| {
            let mut message = AddressMessage::default();
            message.header.index = 7;
            message.header.prefix_len = 64;
            message.attributes.push(AddressAttribute::Address(text.parse().unwrap()));
            message.attributes.push(AddressAttribute::Flags(flags));
            message
        };
        let addresses =
            [address("fe80::2", AddressFlags::Tentative), address("fe80::1", AddressFlags::Permanent)];
        let interfaces = combine(&[link], &addresses, |_| true);
        assert_eq!(interfaces[0].addresses, [("fe80::1".parse().unwrap(), 64)]);
        assert!(interfaces[0].up && interfaces[0].physical);
    }
}
