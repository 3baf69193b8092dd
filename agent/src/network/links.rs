//! What the kernel's messages say of links, addresses, neighbours and forwarding entries, in the plan's words. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use berth_common::model::{Mac, Vni};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};

use super::plan::{BRIDGE, Entry, Link, TUNNEL, port_host};

/// A link's name.
pub fn name(message: &LinkMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// A link's MTU, bytes.
pub fn mtu(message: &LinkMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(bytes) => Some(*bytes),
        _ => None,
    })
}

/// The index of a pair's other end, in whichever namespace that is.
pub fn peer(message: &LinkMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    })
}

/// What a link is; the bridge's index tells its ports. One that is down has an MTU of 0.
pub fn link(message: &LinkMessage, bridge: Option<u32>) -> Link {
    let (mut mtu, mut mac, mut infos, mut controller) = (0, None, &[][..], None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(&bytes[..]).ok().map(Mac),
            LinkAttribute::LinkInfo(all) => infos = all,
            LinkAttribute::Controller(index) => controller = Some(*index),
            _ => {}
        }
    }
    if !message.header.flags.contains(LinkFlags::Up) {
        mtu = 0;
    }
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    let held = |guard: &[InfoBridgePort]| {
        controller.is_some() && controller == bridge && infos.iter().any(|info| is_guarded(info, guard))
    };
    match (kind, mac) {
        (Some(InfoKind::Bridge), Some(mac)) => Link::Bridge { mac, mtu },
        (Some(InfoKind::Vxlan), _) => tunnel(infos, mtu, held(&TUNNEL_GUARD)).unwrap_or(Link::Other),
        (Some(InfoKind::Veth), _) => Link::Port {
            mtu,
            guarded: held(&PORT_GUARD),
        },
        _ => Link::Other,
    }
}

fn tunnel(infos: &[LinkInfo], mtu: u32, guarded: bool) -> Option<Link> {
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    })?;
    let (mut vni, mut local, mut port, mut learning) = (None, None, None, false);
    for info in data {
        match info {
            InfoVxlan::Id(id) => vni = Vni::try_from(*id).ok(),
            InfoVxlan::Local(address) => local = Some(IpAddr::from(*address)),
            InfoVxlan::Local6(address) => local = Some(IpAddr::from(*address)),
            InfoVxlan::Port(number) => port = Some(*number),
            InfoVxlan::Learning(on) => learning = *on,
            _ => {}
        }
    }
    // One that learns is not ours, whatever else it is: it has to be made anew.
    (!learning).then_some(())?;
    Some(Link::Tunnel {
        vni: vni?,
        local: local?,
        port: port?,
        mtu,
        guarded,
        // Asked for apart: netlink's messages of links don't say.
        offload: true,
    })
}

fn is_guarded(info: &LinkInfo, guard: &[InfoBridgePort]) -> bool {
    let LinkInfo::PortData(InfoPortData::BridgePort(data)) = info else {
        return false;
    };
    guard.iter().all(|want| data.contains(want))
}

/// How the tunnel is as a port of the bridge: nothing is learned, nothing goes out that no entry sends there. Where the bridge
/// answers for a neighbour it looks whether that one's port suppresses (br_do_proxy_suppress_arp, br_do_suppress_nd).
pub const TUNNEL_GUARD: [InfoBridgePort; 6] = [
    InfoBridgePort::Learning(false),
    InfoBridgePort::UnicastFlood(false),
    InfoBridgePort::MulticastFlood(false),
    InfoBridgePort::BroadcastFlood(false),
    InfoBridgePort::NeighSupress(true),
    InfoBridgePort::ProxyARP(false),
];

/// How an endpoint's port is: the bridge answers what it asks about endpoints elsewhere (a port that suppresses itself would not be
/// answered). What it shouts reaches the endpoints of the same network on this node, which answer for themselves.
pub const PORT_GUARD: [InfoBridgePort; 6] = [
    InfoBridgePort::Learning(false),
    InfoBridgePort::UnicastFlood(false),
    InfoBridgePort::MulticastFlood(true),
    InfoBridgePort::BroadcastFlood(true),
    InfoBridgePort::NeighSupress(false),
    InfoBridgePort::ProxyARP(false),
];

/// An address of the bridge that somebody gave it.
pub fn address(message: &AddressMessage, bridge: u32) -> Option<Entry> {
    if message.header.index != bridge {
        return None;
    }
    let found = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    let address = found(true).or_else(|| found(false))?;
    let by_kernel = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    (!by_kernel).then_some(Entry::Address(address, message.header.prefix_len))
}

/// A neighbour of the bridge that somebody entered for good.
pub fn neighbour(message: &NeighbourMessage, bridge: u32) -> Option<Entry> {
    if message.header.ifindex != bridge || message.header.state != NeighbourState::Permanent {
        return None;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::from(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    })?;
    Some(Entry::Neighbour(address, mac(message)?))
}

/// A forwarding entry of the bridge or of the tunnel; not those that the kernel makes for its own devices.
pub fn forward(message: &NeighbourMessage, names: &BTreeMap<u32, String>) -> Option<Entry> {
    if message.header.family != AddressFamily::Bridge {
        return None;
    }
    let (name, mac) = (names.get(&message.header.ifindex)?.as_str(), mac(message)?);
    let of_bridge = message
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, NeighbourAttribute::Controller(_)));
    if !of_bridge && name == TUNNEL {
        let node = message.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(address) => match address {
                NeighbourAddress::Inet(address) => Some(IpAddr::from(*address)),
                NeighbourAddress::Inet6(address) => Some(IpAddr::from(*address)),
                // In this family the kernel does not say which it is but by its length.
                NeighbourAddress::Other(bytes) => by_length(bytes),
                _ => None,
            },
            _ => None,
        });
        return Some(Entry::Tunnel(mac, node?));
    }
    // Permanent ones are the ports' own addresses; what was learned (by somebody's doing) is not left out.
    if !of_bridge || name == BRIDGE || message.header.state == NeighbourState::Permanent {
        return None;
    }
    match name {
        TUNNEL => Some(Entry::Forward(mac, None)),
        port => Some(Entry::Forward(mac, Some(port_host(port)?))),
    }
}

fn by_length(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => <[u8; 6]>::try_from(&bytes[..]).ok().map(Mac),
        _ => None,
    })
}
