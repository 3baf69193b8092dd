//! The pair of links between a network's namespace and the host's, and the host's switches. Thin: [`super::egress`] decides.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;

use futures::TryStreamExt as _;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{InfoData, InfoVeth, LinkFlags};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use nix::ifaddrs::getifaddrs;
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::egress::{Forwarding, HOST_ADDRESS, HOST_ADDRESS6, Switches, Transit, UPLINK};
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
    /// The same over IPv6.
    pub six: bool,
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
            && self.leads_to(number.address().into(), index).await?;
        let six = self.has_address(index, HOST_ADDRESS6.into()).await?
            && self.leads_to(number.address6().into(), index).await?;
        let number = Some(number);
        Ok(HostEnd { number, whole, six })
    }

    pub(super) async fn has_host_address(&self, index: u32) -> Result<bool> {
        self.has_address(index, HOST_ADDRESS.into()).await
    }

    async fn has_address(&self, index: u32, address: IpAddr) -> Result<bool> {
        let request = self.handle.address().get().set_address_filter(address);
        let held = request.execute().try_collect::<Vec<_>>().await;
        let held = held.map_err(|source| failed("listing addresses", source))?;
        Ok(held.iter().any(|address| address.header.index == index))
    }

    async fn leads_to(&self, address: IpAddr, index: u32) -> Result<bool> {
        let to = to_one(address).build();
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
    pub(super) async fn set_host_end(&self, number: Transit, mtu: u32, six: bool) -> Result<()> {
        let name = number.host_link();
        let index = self.needed(&name).await?;
        let up = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        self.change(&format!("setting {name} up"), up).await?;
        self.add_address(index, HOST_ADDRESS.into(), 32).await?;
        if six {
            self.add_address(index, HOST_ADDRESS6.into(), 128).await?;
        } else if self.has_address(index, HOST_ADDRESS6.into()).await? {
            self.take_address(index, HOST_ADDRESS6.into(), 128).await?;
        }
        let four = to_one(number.address().into()).scope(netlink_packet_route::route::RouteScope::Link);
        let six = six.then(|| to_one(number.address6().into()));
        for route in std::iter::once(four).chain(six) {
            let route = route.output_interface(index).build();
            let added = self.handle.route().add(route).replace().execute().await;
            added.map_err(|source| failed(format!("adding the way to {name}"), source))?;
        }
        Ok(())
    }

    /// The way out of a network, by an uplink's index.
    pub(super) async fn way_out(&self, index: u32, host: IpAddr) -> Result<Option<RouteMessage>> {
        let all = self
            .handle
            .route()
            .get(default_by(None, host))
            .execute()
            .try_collect::<Vec<_>>()
            .await;
        let all = all.map_err(|source| failed("listing routes", source))?;
        let (family, gateway) = match host {
            IpAddr::V4(four) => (AddressFamily::Inet, RouteAddress::Inet(four)),
            IpAddr::V6(six) => (AddressFamily::Inet6, RouteAddress::Inet6(six)),
        };
        let right = |route: &RouteMessage| {
            let has = |attribute| route.attributes.contains(&attribute);
            route.header.destination_prefix_length == 0
                && route.header.address_family == family
                && has(RouteAttribute::Oif(index))
                && has(RouteAttribute::Gateway(gateway.clone()))
        };
        Ok(all.into_iter().find(right))
    }

    /// Makes the way out of a network lead through an uplink.
    pub(super) async fn add_way_out(&self, index: u32, host: IpAddr) -> Result<()> {
        let added = self
            .handle
            .route()
            .add(default_by(Some(index), host))
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

/// The way to one address.
fn to_one(address: IpAddr) -> RouteMessageBuilder<IpAddr> {
    let prefix = if address.is_ipv4() { 32 } else { 128 };
    // Neither is longer than its family's addresses.
    RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(address, prefix)
        .unwrap_or_default()
}

/// The default route by an uplink and the host behind it; without an index: what such routes are asked for by.
fn default_by(index: Option<u32>, host: IpAddr) -> RouteMessage {
    match (host, index) {
        (IpAddr::V4(_), None) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        (IpAddr::V6(_), None) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        (IpAddr::V4(host), Some(index)) => RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(host)
            .output_interface(index)
            .onlink()
            .build(),
        (IpAddr::V6(host), Some(index)) => RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(host)
            .output_interface(index)
            .onlink()
            .build(),
    }
}

/// An address of the uplink, alone.
pub(super) fn outside(
    message: &netlink_packet_route::address::AddressMessage,
    uplink: u32,
) -> Option<IpAddr> {
    // IPv6 addresses have no `Local` of their own (inet6_fill_ifaddr).
    let found = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address @ IpAddr::V4(_))
        | AddressAttribute::Address(address @ IpAddr::V6(_)) => Some(*address),
        _ => None,
    })?;
    let alone = if found.is_ipv4() { 32 } else { 128 };
    (message.header.index == uplink && message.header.prefix_len == alone).then_some(found)
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
    let done = network.within(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        match std::fs::write(SIX.to_owned() + "/all/forwarding", "1") {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    });
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
            ..Forwarding::default()
        };
        seen.six =
            std::fs::read_to_string(SIX.to_owned() + "/all/forwarding").is_ok_and(|text| text.trim() != "0");
        for link in std::fs::read_dir(SIX).into_iter().flatten().flatten() {
            let takes = std::fs::read_to_string(link.path().join("accept_ra"));
            let takes = takes.ok().and_then(|text| text.trim().parse().ok());
            if let (Ok(name), Some(takes)) = (link.file_name().into_string(), takes)
                && !["all", "default", "lo"].contains(&name.as_str())
            {
                seen.announced.insert(name, takes);
            }
        }
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
            put(&file(name), value)?;
        }
        // What routers announced is forgotten in the moment in which packets are begun to be passed on, but where that is taken whatever
        // the host does (rt6_purge_dflt_routers); so this is last, and first where it ends.
        let all = PathBuf::from(SIX).join("all/forwarding");
        if plan.six == Some(false) {
            put(&all, "0")?;
        }
        for (name, takes) in &plan.announced {
            put(
                &PathBuf::from(SIX).join(name).join("accept_ra"),
                &takes.to_string(),
            )?;
        }
        if plan.six == Some(true) {
            put(&all, "1")?;
        }
        Ok(())
    })?
}

/// Where the kernel has its switches for IPv6.
const SIX: &str = "/proc/sys/net/ipv6/conf";

fn put(file: &std::path::Path, value: &str) -> io::Result<()> {
    match std::fs::write(file, value) {
        // A link that went meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
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
