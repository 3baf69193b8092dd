//! The pair of links between a network's namespace and the host's, and the host's switches. Thin: [`super::egress`] decides.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;

use futures::TryStreamExt as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkFlags};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use nix::ifaddrs::getifaddrs;
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::egress::{Forwarding, HOST_ADDRESS, Switches, Transit, UPLINK};
use super::links;
use super::namespace::Namespace;
use super::netlink::{Result, Within, errno, failed, namespace_failed};

/// The host's end of a pair, as the kernel has it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HostEnd {
    /// What it is called after; none of something else's.
    pub number: Option<Transit>,
    /// It is up and has its address, and packets to the network's go there.
    pub whole: bool,
}

impl Within {
    /// The host's link with an index, as the end of an uplink.
    pub(super) async fn host_end(&self, index: u32) -> Result<HostEnd> {
        let found = self
            .handle
            .link()
            .get()
            .match_index(index)
            .execute()
            .try_next()
            .await;
        let message = match found {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(HostEnd::default()),
            Err(error) if errno(&error) == Some(nix::libc::ENODEV) => return Ok(HostEnd::default()),
            Err(error) => return Err(failed("looking for the host's end of an uplink", error)),
        };
        let Some(number) = links::name(&message).and_then(Transit::of_host_link) else {
            return Ok(HostEnd::default());
        };
        let whole = message.header.flags.contains(LinkFlags::Up)
            && self.has_host_address(index).await?
            && self.leads_to(number, index).await?;
        let number = Some(number);
        Ok(HostEnd { number, whole })
    }

    pub(super) async fn has_host_address(&self, index: u32) -> Result<bool> {
        let request = self
            .handle
            .address()
            .get()
            .set_address_filter(HOST_ADDRESS.into());
        let held = request.execute().try_collect::<Vec<_>>().await;
        let held = held.map_err(|source| failed("listing addresses", source))?;
        Ok(held.iter().any(|address| address.header.index == index))
    }

    async fn leads_to(&self, number: Transit, index: u32) -> Result<bool> {
        let to = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(number.address(), 32)
            .build();
        match self.handle.route().get(to).execute().try_next().await {
            Ok(found) => {
                Ok(found.is_some_and(|route| route.attributes.contains(&RouteAttribute::Oif(index))))
            }
            Err(error) if errno(&error).is_some_and(|code| UNREACHABLE.contains(&code)) => Ok(false),
            Err(error) => Err(failed("looking for the way to a network", error)),
        }
    }

    /// Numbers that links of the host are called after.
    pub(super) async fn numbers(&self) -> Result<Vec<Transit>> {
        let links = self.links().await?;
        let names = links.iter().filter_map(links::name);
        Ok(names.filter_map(Transit::of_host_link).collect())
    }

    /// In the host's namespace: makes the pair, its other end in a network's namespace.
    pub(super) async fn make_uplink(&self, number: Transit, mtu: u32, network: &Namespace) -> Result<()> {
        let end = LinkUnspec::new_with_name(UPLINK)
            .mtu(mtu)
            .setns_by_fd(network.as_fd().as_raw_fd())
            .build();
        let pair = LinkVeth::new(&number.host_link(), UPLINK)
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(end)))
            .build();
        let made = self.handle.link().add(pair).execute().await;
        made.map_err(|source| failed(format!("making {}", number.host_link()), source))
    }

    /// In the host's namespace: sets its end up, with its address and the way to the network's.
    pub(super) async fn set_host_end(&self, number: Transit, mtu: u32) -> Result<()> {
        let name = number.host_link();
        let index = self.needed(&name).await?;
        let up = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        self.change(&format!("setting {name} up"), up).await?;
        self.add_address(index, HOST_ADDRESS.into(), 32).await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(number.address(), 32)
            .output_interface(index)
            .scope(netlink_packet_route::route::RouteScope::Link)
            .build();
        let added = self.handle.route().add(route).replace().execute().await;
        added.map_err(|source| failed(format!("adding the way to {name}"), source))
    }

    /// The way out of a network, by an uplink's index.
    pub(super) async fn way_out(&self, index: u32) -> Result<Option<RouteMessage>> {
        let all = self
            .handle
            .route()
            .get(default_by(None))
            .execute()
            .try_collect::<Vec<_>>()
            .await;
        let all = all.map_err(|source| failed("listing routes", source))?;
        let right = |route: &RouteMessage| {
            let has = |attribute| route.attributes.contains(&attribute);
            route.header.destination_prefix_length == 0
                && route.header.address_family == AddressFamily::Inet
                && has(RouteAttribute::Oif(index))
                && has(RouteAttribute::Gateway(RouteAddress::Inet(HOST_ADDRESS)))
        };
        Ok(all.into_iter().find(right))
    }

    /// Makes the way out of a network lead through an uplink.
    pub(super) async fn add_way_out(&self, index: u32) -> Result<()> {
        let added = self
            .handle
            .route()
            .add(default_by(Some(index)))
            .replace()
            .execute()
            .await;
        added.map_err(|source| failed("adding the way out of a network", source))
    }
}

/// What the kernel says of a place that no route leads to.
const UNREACHABLE: [i32; 4] = [
    nix::libc::ENETUNREACH,
    nix::libc::EHOSTUNREACH,
    nix::libc::ESRCH,
    nix::libc::EACCES,
];

fn default_by(index: Option<u32>) -> RouteMessage {
    let route = RouteMessageBuilder::<Ipv4Addr>::new();
    match index {
        None => route.build(),
        Some(index) => route
            .gateway(HOST_ADDRESS)
            .output_interface(index)
            .onlink()
            .build(),
    }
}

/// An address of the uplink.
pub(super) fn outside(
    message: &netlink_packet_route::address::AddressMessage,
    uplink: u32,
) -> Option<Ipv4Addr> {
    let found = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })?;
    (message.header.index == uplink && message.header.prefix_len == 32).then_some(found)
}

/// Lets the host's own packets to its published ports leave by its end of an uplink, also those to 127.0.0.1. Blocks for moments.
pub(super) fn pass_own(host: &Namespace, number: Transit) -> Result<()> {
    let file = PathBuf::from("/proc/sys/net/ipv4/conf")
        .join(number.host_link())
        .join("route_localnet");
    let done = host.within(move || std::fs::write(file, "1"));
    done.and_then(std::convert::identity)
        .map_err(|source| namespace_failed("letting the host reach a network's published ports", source))
}

/// Lets a network's namespace pass packets on, from its bridge to its uplink. Blocks for moments.
pub(super) fn pass_on(network: &Namespace) -> Result<()> {
    let done = network.within(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"));
    done.and_then(std::convert::identity)
        .map_err(|source| namespace_failed("letting a network pass packets on", source))
}

/// What the host passes on. Blocks for moments.
///
/// # Errors
/// When it can't be read.
pub(super) fn forwarding(host: &Namespace) -> io::Result<Forwarding> {
    host.within(|| {
        let mut seen = Forwarding {
            all: is_on("all")?,
            links: std::collections::BTreeMap::new(),
        };
        for address in getifaddrs()? {
            let four = address
                .address
                .as_ref()
                .is_some_and(|a| a.as_sockaddr_in().is_some());
            let loopback = address
                .flags
                .contains(nix::net::if_::InterfaceFlags::IFF_LOOPBACK);
            // One that went meanwhile is none.
            if four
                && !loopback
                && let Ok(on) = is_on(&address.interface_name)
            {
                seen.links.insert(address.interface_name, on);
            }
        }
        Ok(seen)
    })?
}

/// Carries out what was planned. Blocks for moments.
///
/// # Errors
/// The first that the kernel refused; a link that went meanwhile is none.
pub(super) fn switch(host: &Namespace, plan: Switches) -> io::Result<()> {
    host.within(move || {
        let off = plan.off.iter().map(|name| (name, "0"));
        for (name, value) in plan.on.iter().map(|name| (name, "1")).chain(off) {
            match std::fs::write(file(name), value) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    })?
}

fn file(link: &str) -> PathBuf {
    // A link's name has no slash, and `.` and `..` are none (dev_valid_name).
    PathBuf::from("/proc/sys/net/ipv4/conf")
        .join(link)
        .join("forwarding")
}

fn is_on(link: &str) -> io::Result<bool> {
    Ok(std::fs::read_to_string(file(link))?.trim() != "0")
}
