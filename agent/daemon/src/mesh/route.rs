// SPDX-License-Identifier: Apache-2.0
//! What leads to the mesh. An interface of the LAN can have an address of the mesh's own range: a person's choice, or a router
//! advertisement of whoever is on that LAN. Its route would be the better one, and packets for members would leave the machine
//! unencrypted, or not arrive. So the mesh has a routing table that is asked before all others, what leads to members is
//! looked up as the kernel would, and whoever else has the range is named.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv6Addr,
};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use nix::libc;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        address::AddressMessage,
        link::LinkAttribute,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
        rule::RuleAction,
    },
};

use super::link::{Links, errno, ipv6_address};

/// The routing table that has nothing but the mesh; its number is that of WireGuard's port.
pub(super) const TABLE: u32 = 41411;
/// Priority of the rule that leads there: after the machine's own addresses (0), before every usual rule and table (32766).
const RULE: u32 = 1000;
/// Members whose route is looked up in one round; the next round takes the next ones.
const LOOKED_UP: usize = 32;
/// Things named in one problem.
const MAX_NAMED: usize = 4;

/// A range of addresses.
pub(super) type Network = (Ipv6Addr, u8);

/// What else than the mesh interface has addresses of the mesh's range, or leads to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    /// By interface.
    addresses: BTreeSet<(u32, Ipv6Addr, u8)>,
    routes: BTreeSet<(u32, Ipv6Addr, u8)>,
    /// Members whose packets do not go through the mesh interface, and where they go instead.
    astray: BTreeMap<Ipv6Addr, Option<u32>>,
}

impl Links {
    /// Has the kernel ask the mesh's own table first for addresses of the mesh.
    ///
    /// # Errors
    /// As the kernel reports them, save that a kernel without routing policies is left as it is.
    pub(super) async fn prefer_mesh(&self, (network, prefix): Network) -> Result<()> {
        let rule = self.handle.rule().add().v6().destination_prefix(network, prefix);
        match rule.table_id(TABLE).priority(RULE).action(RuleAction::ToTable).execute().await {
            Err(error)
                if matches!(errno(&error), Some(libc::EEXIST | libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) =>
            {
                Ok(())
            }
            outcome => outcome.context("failed to add the routing rule of the mesh"),
        }
    }

    /// Names what else than the interface `index` has addresses of the mesh, or takes packets for some of `members`: one
    /// sentence for people, empty if there is nothing. `turn` counts the calls.
    ///
    /// # Errors
    /// As the kernel reports them.
    pub(super) async fn intruders(
        &self,
        index: u32,
        network: Network,
        members: &[Ipv6Addr],
        turn: usize,
    ) -> Result<String> {
        let addresses: Vec<AddressMessage> =
            self.handle.address().get().execute().try_collect().await.context("failed to list addresses")?;
        let mut found = search(index, network, &addresses, &self.routes().await?);
        let start = if members.is_empty() { 0 } else { turn * LOOKED_UP % members.len() };
        for member in members.iter().cycle().skip(start).take(members.len().min(LOOKED_UP)) {
            let by = self.leads_to(*member).await?;
            if by != Some(index) {
                found.astray.insert(*member, by);
            }
        }
        if found == Found::default() {
            return Ok(String::new());
        }
        Ok(describe(&found, network, &self.names().await?))
    }

    /// The interface through which the kernel sends to an address; `None` if through none.
    async fn leads_to(&self, address: Ipv6Addr) -> Result<Option<u32>> {
        let question = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build();
        match self.handle.route().get(question).execute().try_next().await {
            Ok(answer) => Ok(answer.as_ref().and_then(interface_of)),
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            Err(error) => Err(error).context("failed to look up a route"),
        }
    }

    async fn names(&self) -> Result<BTreeMap<u32, String>> {
        let links: Vec<_> =
            self.handle.link().get().execute().try_collect().await.context("failed to list interfaces")?;
        let name = |attributes: &[LinkAttribute]| {
            attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })
        };
        Ok(links.iter().filter_map(|link| Some((link.header.index, name(&link.attributes)?))).collect())
    }
}

fn search(index: u32, network: Network, addresses: &[AddressMessage], routes: &[RouteMessage]) -> Found {
    let mut found = Found::default();
    for message in addresses.iter().filter(|message| message.header.index != index) {
        if let Some(address) = ipv6_address(message).filter(|address| is_within(*address, network)) {
            found.addresses.insert((message.header.index, address, message.header.prefix_len));
        }
    }
    for route in routes.iter().filter(|route| route.header.kind == RouteType::Unicast) {
        let to = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some(*to),
            _ => None,
        });
        let (Some(to), Some(by)) = (to, interface_of(route)) else { continue };
        let length = route.header.destination_prefix_length;
        // The route of an address says nothing that the address did not.
        let is_of_address = found
            .addresses
            .iter()
            .any(|(at, address, prefix)| *at == by && *prefix == length && is_within(*address, (to, length)));
        if by != index && length >= network.1 && is_within(to, network) && !is_of_address {
            found.routes.insert((by, to, length));
        }
    }
    found
}

fn describe(found: &Found, (network, prefix): Network, names: &BTreeMap<u32, String>) -> String {
    let name = |index: &u32| names.get(index).cloned().unwrap_or_else(|| format!("interface {index}"));
    let addresses = found
        .addresses
        .iter()
        .map(|(index, address, length)| format!("{} has {address}/{length}", name(index)));
    let routes = found
        .routes
        .iter()
        .map(|(index, to, length)| format!("{} has a route to {to}/{length}", name(index)));
    let astray = found.astray.iter().map(|(member, by)| match by {
        Some(by) => format!("packets for member {member} go to {}", name(by)),
        None => format!("packets for member {member} go nowhere"),
    });
    let all: Vec<String> = addresses.chain(routes).chain(astray).collect();
    let more = all.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    format!(
        "{}{more}: {network}/{prefix} belongs to the mesh alone",
        all[..all.len().min(MAX_NAMED)].join(", ")
    )
}

fn interface_of(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn is_within(address: Ipv6Addr, (network, prefix): Network) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
    address.to_bits() & mask == network.to_bits() & mask
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use rtnetlink::packet_route::address::AddressAttribute;

    use super::*;

    const MESH: u32 = 9;

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn network() -> Network {
        (ip("fdc1:505::"), 48)
    }

    fn address(index: u32, address: &str, prefix: u8) -> AddressMessage {
        let mut message = AddressMessage::default();
        (message.header.index, message.header.prefix_len) = (index, prefix);
        message.attributes.push(AddressAttribute::Address(IpAddr::V6(ip(address))));
        message
    }

    fn route(index: u32, to: &str, prefix: u8) -> RouteMessage {
        RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(ip(to), prefix)
            .output_interface(index)
            .build()
    }

    fn said(found: &Found) -> String {
        describe(found, network(), &[(2, "eth0".to_owned()), (3, "eth1".to_owned())].into())
    }

    #[test]
    fn our_own_and_foreign_addresses_are_no_matter() {
        let addresses =
            [address(MESH, "fdc1:505:0:1::1", 128), address(2, "fe80::1", 64), address(2, "fdc1:506::1", 48)];
        let routes = [route(MESH, "fdc1:505::", 48), route(2, "fd00::", 8), route(2, "fdc1:506::", 48)];
        assert_eq!(search(MESH, network(), &addresses, &routes), Found::default());
    }

    #[test]
    fn an_address_of_the_range_is_named_with_its_interface_and_not_again_by_its_route() {
        let found = search(
            MESH,
            network(),
            &[address(2, "fdc1:505::7", 48)],
            &[route(2, "fdc1:505::", 48), route(MESH, "fdc1:505::", 48)],
        );
        assert!(found.routes.is_empty());
        let said = said(&found);
        assert!(said.contains("eth0 has fdc1:505::7/48") && said.contains("belongs to the mesh"), "{said}");
    }

    #[test]
    fn a_route_without_an_address_is_named_however_narrow() {
        for (to, prefix) in [("fdc1:505::", 48), ("fdc1:505:0:7::", 64), ("fdc1:505:0:7::1", 128)] {
            let found = search(MESH, network(), &[], &[route(3, to, prefix)]);
            assert!(said(&found).contains(&format!("eth1 has a route to {to}/{prefix}")), "{}", said(&found));
        }
    }

    #[test]
    fn members_that_are_not_reached_through_the_mesh_are_named_with_the_way_they_take() {
        let mut found = Found::default();
        found.astray.insert(ip("fdc1:505::1"), Some(2));
        found.astray.insert(ip("fdc1:505::2"), None);
        let said = said(&found);
        assert!(said.contains("fdc1:505::1 go to eth0") && said.contains("fdc1:505::2 go nowhere"), "{said}");
    }
}
