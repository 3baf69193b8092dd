//! Looks at what carries packets to other sites, and carries the plan's steps out, in the host's namespace. Thin.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt as _;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol};
use rtnetlink::{IpVersion, LinkUnspec, LinkWireguard, RouteMessageBuilder};

use super::wireguard::Device;
use super::{MARK, Rule, Seal, Seen, Step, Way, device};
use crate::network::egress::HOST_ADDRESS;
use crate::network::links;
use crate::network::namespace::Namespace;
use crate::network::netlink::{Result, Within, errno, failed, namespace_failed};

/// Before everybody else's rules but the kernel's own first one: what belongs into the device goes nowhere else.
const PRIORITY: u32 = 478;
/// Metrics of routes through the device and nowhere: the lower is taken.
const THROUGH: u32 = 10;
const NOWHERE: u32 = 1000;

/// Whether this host's kernel has WireGuard. Tried, since nothing else says so of one that has it built in.
///
/// # Errors
/// When the kernel can't be asked.
pub async fn is_there(host: &Namespace, vxlan_port: u16) -> Result<bool> {
    let within = Within::open(host)?;
    // Its name is another than the real one's: that may be carrying packets.
    let name = format!("wgtry{vxlan_port}");
    let tried = within.handle.link().add(LinkWireguard::new(&name).build());
    match tried.execute().await {
        Ok(()) => {}
        Err(error) => match errno(&error) {
            Some(nix::libc::EEXIST) => {}
            Some(nix::libc::EOPNOTSUPP) => return Ok(false),
            _ => return Err(failed("trying whether there is WireGuard", error)),
        },
    }
    within.delete_link(&name).await?;
    Ok(true)
}

/// What is there.
///
/// # Errors
/// When the kernel can't be asked.
pub async fn observe(host: &Namespace, vxlan_port: u16) -> Result<Seen> {
    let within = Within::open(host)?;
    let name = device(vxlan_port);
    let links = within.links().await?;
    let link = links.iter().find(|link| links::name(link) == Some(&name));
    let mut seen = Seen::default();
    if let Some(link) = link {
        let mut found = Device::open(host, &name)?.observe(link).await?;
        if !within.has_host_address(link.header.index).await? {
            found.mtu = 0;
        }
        seen.device = Some(found);
    }
    let index = link.map(|link| link.header.index);
    for message in ways(&within, vxlan_port).await? {
        seen.ways.extend(way(&message, index));
    }
    for (rule, _) in rules(&within, vxlan_port).await? {
        seen.rules.insert(rule);
    }
    Ok(seen)
}

/// Carries out steps in their order, as far as they go. `wanted` and its secret: for what is set.
///
/// # Errors
/// The first that failed. What was done stays: the next plan goes on from there.
pub async fn apply(
    host: &Namespace,
    vxlan_port: u16,
    wanted: Option<(&Seal, [u8; 32])>,
    steps: &[Step],
) -> Result<()> {
    let (within, name) = (Within::open(host)?, device(vxlan_port));
    let mut device = Device::open(host, &name)?;
    for step in steps {
        match step {
            Step::Make => {
                let made = within.handle.link().add(LinkWireguard::new(&name).build());
                made.execute()
                    .await
                    .map_err(|source| failed(format!("making {name}"), source))?;
            }
            Step::Configure => {
                let Some((seal, secret)) = wanted else { continue };
                device.configure(secret, seal.listen).await?;
            }
            Step::Forget(key) => device.forget(*key).await?,
            Step::Have(key, peer) => device.have(*key, *peer).await?,
            Step::Up => {
                let Some((seal, _)) = wanted else { continue };
                let index = within.needed(&name).await?;
                let up = LinkUnspec::new_with_index(index).mtu(seal.mtu).up().build();
                within.change(&format!("setting {name} up"), up).await?;
                // A link without any address takes no packet whose way back is another's (fib_validate_source), however loose.
                within.add_address(index, HOST_ADDRESS.into(), 32).await?;
                switch(host, &name)?;
            }
            Step::AddWay(way) => {
                let index = match way {
                    Way::Through(_) => Some(within.needed(&name).await?),
                    Way::Nowhere(_) => None,
                };
                let added = within.handle.route().add(route(*way, vxlan_port, index));
                added
                    .replace()
                    .execute()
                    .await
                    .map_err(|source| failed(format!("adding the way {way:?}"), source))?;
            }
            Step::DeleteWay(gone) => {
                let index = within.index(&name).await?;
                for message in ways(&within, vxlan_port).await? {
                    if way(&message, index) == Some(*gone) {
                        let deleted = within.handle.route().del(message).execute().await;
                        deleted.map_err(|source| failed(format!("deleting the way {gone:?}"), source))?;
                    }
                }
            }
            Step::AddRule(rule) => {
                let mut request = within.handle.rule().add();
                *request.message_mut() = rule_message(*rule, vxlan_port);
                match request.execute().await {
                    Err(error) if errno(&error) == Some(nix::libc::EEXIST) => {}
                    added => added.map_err(|source| failed(format!("adding the rule {rule:?}"), source))?,
                }
            }
            Step::DeleteRule(gone) => {
                for (rule, message) in rules(&within, vxlan_port).await? {
                    if rule == *gone {
                        let deleted = within.handle.rule().del(message).execute().await;
                        deleted.map_err(|source| failed(format!("deleting the rule {gone:?}"), source))?;
                    }
                }
            }
            Step::Delete => within.delete_link(&name).await?,
        }
    }
    Ok(())
}

/// Where packets come from through the device is not where the main table would send theirs: loose reverse paths (RFC 3704), and what
/// is passed on to a published port goes on to its container.
fn switch(host: &Namespace, name: &str) -> Result<()> {
    let folder = std::path::PathBuf::from("/proc/sys/net/ipv4/conf").join(name);
    let done = host.within(move || {
        std::fs::write(folder.join("rp_filter"), "2")?;
        std::fs::write(folder.join("forwarding"), "1")
    });
    done.and_then(std::convert::identity)
        .map_err(|source| namespace_failed("letting packets of other sites in", source))
}

fn route(way: Way, table: u16, index: Option<u32>) -> RouteMessage {
    let (to, kind, metric, scope) = match way {
        Way::Through(to) => (to, RouteType::Unicast, THROUGH, RouteScope::Link),
        Way::Nowhere(to) => (to, RouteType::Unreachable, NOWHERE, RouteScope::Universe),
    };
    macro_rules! build {
        ($family:ty, $to:expr, $length:expr) => {{
            let route = RouteMessageBuilder::<$family>::new()
                .destination_prefix($to, $length)
                .table_id(u32::from(table))
                .kind(kind)
                .scope(scope)
                .priority(metric);
            match index {
                Some(index) => route.output_interface(index).build(),
                None => route.build(),
            }
        }};
    }
    match to {
        IpAddr::V4(to) => build!(Ipv4Addr, to, 32),
        IpAddr::V6(to) => build!(Ipv6Addr, to, 128),
    }
}

/// What is in berth's table.
async fn ways(within: &Within, table: u16) -> Result<Vec<RouteMessage>> {
    let mut found = Vec::new();
    for all in [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ] {
        let listed = within
            .handle
            .route()
            .get(all)
            .execute()
            .try_collect::<Vec<_>>()
            .await;
        let listed = listed.map_err(|source| failed("listing routes", source))?;
        let ours = |route: &RouteMessage| {
            route
                .attributes
                .contains(&RouteAttribute::Table(u32::from(table)))
        };
        found.extend(listed.into_iter().filter(ours));
    }
    Ok(found)
}

fn way(route: &RouteMessage, device: Option<u32>) -> Option<Way> {
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(IpAddr::V4(*to)),
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some(IpAddr::V6(*to)),
        _ => None,
    })?;
    let whole = if to.is_ipv4() { 32 } else { 128 };
    if route.header.destination_prefix_length != whole {
        return None;
    }
    let has = |attribute| route.attributes.contains(&attribute);
    match route.header.kind {
        RouteType::Unreachable if has(RouteAttribute::Priority(NOWHERE)) => Some(Way::Nowhere(to)),
        RouteType::Unicast if has(RouteAttribute::Priority(THROUGH)) => device
            .is_some_and(|index| has(RouteAttribute::Oif(index)))
            .then_some(Way::Through(to)),
        _ => None,
    }
}

fn rule_message(rule: Rule, vxlan_port: u16) -> RuleMessage {
    let mut message = RuleMessage::default();
    let (Rule::Vxlan(six) | Rule::Marked(six)) = rule;
    message.header.family = if six {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Table(u32::from(vxlan_port)),
        RuleAttribute::Priority(PRIORITY),
    ];
    message.attributes.extend(match rule {
        Rule::Vxlan(_) => vec![
            RuleAttribute::IpProtocol(IpProtocol::Udp),
            RuleAttribute::DestinationPortRange(ports(vxlan_port)),
        ],
        Rule::Marked(_) => vec![RuleAttribute::FwMark(MARK), RuleAttribute::FwMask(MARK)],
    });
    message
}

fn ports(one: u16) -> RulePortRange {
    RulePortRange { start: one, end: one }
}

/// Rules of berth's that are there.
async fn rules(within: &Within, vxlan_port: u16) -> Result<Vec<(Rule, RuleMessage)>> {
    let mut found = Vec::new();
    for (version, six) in [(IpVersion::V4, false), (IpVersion::V6, true)] {
        let listed = within
            .handle
            .rule()
            .get(version)
            .execute()
            .try_collect::<Vec<_>>()
            .await;
        for message in listed.map_err(|source| failed("listing routing rules", source))? {
            for rule in [Rule::Vxlan(six), Rule::Marked(six)] {
                let right = rule_message(rule, vxlan_port).attributes;
                if right
                    .iter()
                    .all(|attribute| message.attributes.contains(attribute))
                {
                    found.push((rule, message.clone()));
                }
            }
        }
    }
    Ok(found)
}
