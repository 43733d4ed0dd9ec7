// SPDX-License-Identifier: Apache-2.0
//! The mesh interface as a link: made, addressed, routed and removed through rtnetlink.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use anyhow::{Context as _, Result, anyhow};
use futures_util::TryStreamExt as _;
use nix::libc;
use rtnetlink::{
    Error, Handle, LinkUnspec, LinkWireguard, RouteMessageBuilder, new_connection,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        link::{
            AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
            LinkMessage,
        },
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope},
    },
};

use super::route::TABLE;

/// The kernel's main routing table, where people look for routes.
const RT_TABLE_MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// What kind of link carries the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's WireGuard.
    WireGuard,
    /// A tun device, which is what `wireguard-go` makes.
    Tun,
    /// Anything else: not ours.
    Other,
}

/// A routing socket.
#[derive(Clone, Debug)]
pub struct Links {
    pub(super) handle: Handle,
}

impl Links {
    /// Opens the socket and drives it in a task.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn open() -> Result<Self> {
        let (connection, handle, _) = new_connection().context("failed to open a netlink socket")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Kernel index, `None` when there is no such interface.
    ///
    /// # Errors
    /// As the kernel reports them.
    pub async fn index_of(&self, name: &str) -> Result<Option<u32>> {
        Ok(self.get(name).await?.map(|link| link.header.index))
    }

    /// Kind of the interface, `None` when there is no such interface.
    ///
    /// # Errors
    /// As the kernel reports them.
    pub async fn kind_of(&self, name: &str) -> Result<Option<Kind>> {
        Ok(self.get(name).await?.map(|link| {
            let kind = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                }),
                _ => None,
            });
            match kind {
                Some(InfoKind::Wireguard) => Kind::WireGuard,
                Some(InfoKind::Tun) => Kind::Tun,
                _ => Kind::Other,
            }
        }))
    }

    /// True when made; false when this kernel has no WireGuard.
    ///
    /// # Errors
    /// Everything else the kernel refuses.
    pub async fn create_wireguard(&self, name: &str) -> Result<bool> {
        match self.handle.link().add(LinkWireguard::new(name).build()).execute().await {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(libc::EEXIST) => Ok(true),
            Err(error) if matches!(errno(&error), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("failed to create interface {name}")),
        }
    }

    /// Sets MTU, brings the link up, gives it `address` as its only IPv6 one and routes `network` to it, before other routes. Says nothing
    /// to the kernel when all that is so already: every change wakes whoever watches the network.
    ///
    /// # Errors
    /// Names the step.
    pub async fn address(
        &self,
        name: &str,
        mtu: u32,
        address: Ipv6Addr,
        (network, prefix): (Ipv6Addr, u8),
    ) -> Result<()> {
        let link = self.get(name).await?.with_context(|| format!("interface {name} disappeared"))?;
        let index = link.header.index;
        let is_up = link.header.flags.contains(LinkFlags::Up);
        let has_mtu = link.attributes.contains(&LinkAttribute::Mtu(mtu));
        if !(is_up && has_mtu) {
            // No link-local address: the mesh has no use for one, and its route would draw packets that wireguard-go
            // sends to a peer's link-local endpoint (it forgets the interface) into the tunnel itself.
            let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
            let up = LinkUnspec::new_with_index(index)
                .mtu(mtu)
                .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![none]))
                .up()
                .build();
            self.handle
                .link()
                .change(up)
                .execute()
                .await
                .with_context(|| format!("failed to bring {name} up"))?;
        }
        let mut has_address = false;
        for message in self.addresses_of(index).await? {
            match ipv6_address(&message) {
                Some(own) if own == address => has_address = true,
                // The node was given another identity while the interface stood, or the link was up before us.
                Some(_) => self.handle.address().del(message).execute().await?,
                None => {}
            }
        }
        if !has_address {
            let added = self.handle.address().add(index, IpAddr::V6(address), 128).replace().execute().await;
            added.map_err(|error| match errno(&error) {
                Some(libc::EACCES) => {
                    anyhow!("IPv6 is switched off: `sysctl -w net.ipv6.conf.all.disable_ipv6=0`")
                }
                _ => anyhow::Error::new(error).context(format!("failed to add {address} to {name}")),
            })?;
        }
        // The kernel drops routes with the link or the address, so that is when they are missing.
        let kept = is_up && has_address;
        let there = if kept { self.routes().await? } else { Vec::new() };
        for table in [RT_TABLE_MAIN, TABLE] {
            if has_route(&there, table, index, network, prefix) {
                continue;
            }
            // No preferred source: the kernel refuses one whose address is a moment old, and picks it anyway.
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(network, prefix)
                .output_interface(index)
                .scope(RouteScope::Link)
                .table_id(table)
                .build();
            self.handle
                .route()
                .add(route)
                .replace()
                .execute()
                .await
                .with_context(|| format!("failed to route {network}/{prefix} to {name}"))?;
        }
        self.prefer_mesh((network, prefix)).await
    }

    /// Makes each of these link-local addresses be reached through the interface with its index, and forgets `gone`. Only
    /// `wireguard-go` needs it. It drops the scope of an endpoint, and, when it takes datagrams in batches (UDP GRO), on which
    /// interface they came: so it answers a peer that speaks from another address through any interface.
    ///
    /// # Errors
    /// As the kernel reports them. An interface that is gone or down is none: its routes are of no use.
    pub async fn pin(
        &self,
        wanted: &BTreeMap<Ipv6Addr, u32>,
        gone: impl IntoIterator<Item = (Ipv6Addr, u32)>,
    ) -> Result<()> {
        let route = |address: Ipv6Addr, index: u32| {
            RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(address, 128)
                .output_interface(index)
                .scope(RouteScope::Link)
                .build()
        };
        for (address, index) in wanted {
            // Takes the place of one through another interface.
            match self.handle.route().add(route(*address, *index)).replace().execute().await {
                Err(error) if matches!(errno(&error), Some(libc::ENODEV | libc::ENETDOWN | libc::EINVAL)) => {
                }
                outcome => outcome.with_context(|| format!("failed to route {address}%{index}"))?,
            }
        }
        for (address, index) in gone {
            // An error says that it is gone already.
            let _ = self.handle.route().del(route(address, index)).execute().await;
        }
        Ok(())
    }

    /// Takes the interface away; fine when there is none. (`wireguard-go` ends when its tun is deleted.)
    ///
    /// # Errors
    /// As the kernel reports them.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let Some(index) = self.index_of(name).await? else { return Ok(()) };
        match self.handle.link().del(index).execute().await {
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(()),
            outcome => outcome.with_context(|| format!("failed to remove interface {name}")),
        }
    }

    async fn get(&self, name: &str) -> Result<Option<LinkMessage>> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        match links.try_next().await {
            Ok(link) => Ok(link),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("failed to look up interface {name}")),
        }
    }

    /// All IPv6 routes of all tables.
    pub(super) async fn routes(&self) -> Result<Vec<RouteMessage>> {
        let all = self.handle.route().get(RouteMessageBuilder::<Ipv6Addr>::new().build());
        all.execute().try_collect().await.context("failed to list routes")
    }

    async fn addresses_of(&self, index: u32) -> Result<Vec<AddressMessage>> {
        self.handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .context("failed to list the mesh interface's addresses")
    }
}

fn has_route(routes: &[RouteMessage], table: u32, index: u32, network: Ipv6Addr, prefix: u8) -> bool {
    routes.iter().any(|route| {
        route.header.destination_prefix_length == prefix
            && route.attributes.contains(&RouteAttribute::Table(table))
            && route.attributes.contains(&RouteAttribute::Oif(index))
            && route.attributes.contains(&RouteAttribute::Destination(RouteAddress::Inet6(network)))
    })
}

pub(super) fn ipv6_address(message: &AddressMessage) -> Option<Ipv6Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(IpAddr::V6(address)) => Some(*address),
        _ => None,
    })
}

/// The kernel's errno behind a netlink error.
pub(super) fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}
