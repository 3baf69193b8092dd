//! What a network needs on this host, and the steps there from what is seen. Pure.
//!
//! Everything but the links is an [`Entry`]; so what is missing and what is too much are two differences of sets, and a host is
//! right when what is seen equals what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use berth_common::model::{Bandwidth, HostNumber, Mac, Subnets, Vni};

use super::egress::{HOST_ADDRESS, HOST_ADDRESS6, Transit, UPLINK};
use super::publish::Inward;

/// The bridge of a network, in its namespace.
pub const BRIDGE: &str = "br0";
/// Its VXLAN device.
pub const TUNNEL: &str = "vx0";
/// What a container's end on its first, second … network (0, 1 …) is called, in the container.
pub fn inside(place: usize) -> String {
    format!("eth{place}")
}

/// What VXLAN puts around a packet: outer Ethernet, IPv4 or IPv6, UDP, VXLAN header (RFC 7348), bytes.
const OVERHEAD: [u32; 2] = [50, 70];

/// A network as this node must have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Its identifier on the wire.
    pub vni: Vni,
    /// Its addresses.
    pub subnets: Subnets,
    /// This node's address under it, and the MTU there, bytes.
    pub underlay: (IpAddr, u32),
    /// The UDP port that nodes speak VXLAN on.
    pub port: u16,
    /// Endpoints of containers here.
    pub local: BTreeSet<HostNumber>,
    /// Endpoints elsewhere, and the node they are on. None while nobody has said: what is there of them stays.
    pub remote: Option<BTreeMap<HostNumber, IpAddr>>,
    /// Its number on this host, for the way out; none: there is no way out.
    pub transit: Option<Transit>,
    /// The way out is one for IPv6, too.
    pub six: bool,
    /// Endpoints here that send and receive so much at most.
    pub rates: BTreeMap<HostNumber, Bandwidth>,
    /// Published ports that lead in.
    pub published: Vec<Inward>,
    /// Checksums within packets are left to the host's network card.
    pub offload: bool,
}

/// A link in a network's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// The bridge.
    Bridge {
        /// The gateway's hardware address: the same on every node, so that it stays right for a container that moves.
        mac: Mac,
        /// Bytes; 0 while it is down, for every link.
        mtu: u32,
    },
    /// The VXLAN device.
    Tunnel {
        /// Its identifier.
        vni: Vni,
        /// Where packets come from.
        local: IpAddr,
        /// The UDP port.
        port: u16,
        /// Bytes.
        mtu: u32,
        /// It is a port of the bridge that learns nothing and sends out nothing that no entry sends there.
        guarded: bool,
        /// Checksums within packets are left to the host's network card.
        offload: bool,
    },
    /// The bridge's end of a container's pair.
    Port {
        /// Bytes.
        mtu: u32,
        /// It is a port of the bridge that learns nothing and is answered by the bridge.
        guarded: bool,
    },
    /// The way out: a pair with the host.
    Uplink {
        /// Bytes.
        mtu: u32,
        /// The number that the host's end is called after; none of a pair with something else.
        number: Option<Transit>,
        /// The host's end is up and has its address, and packets to the network's go there.
        whole: bool,
        /// The same over IPv6.
        six: bool,
    },
    /// Something else.
    Other,
}

/// One entry in a table of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// An address of the bridge.
    Address(IpAddr, u8),
    /// An address of the uplink, alone.
    Outside(IpAddr),
    /// What is nowhere else is out there, by the host's end of the uplink, which has this address.
    WayOut(IpAddr),
    /// Who has an address: the bridge answers for it, so that no question is ever passed on.
    Neighbour(IpAddr, Mac),
    /// Behind which port of the bridge a hardware address is; none: behind the tunnel.
    Forward(Mac, Option<HostNumber>),
    /// At which node's address.
    Tunnel(Mac, IpAddr),
}

impl Entry {
    /// The link that it is on, and goes with.
    pub fn link(&self) -> String {
        match self {
            Self::Address(..) | Self::Neighbour(..) => BRIDGE.to_owned(),
            Self::Outside(_) | Self::WayOut(_) => UPLINK.to_owned(),
            Self::Forward(_, Some(host)) => port_name(*host),
            Self::Forward(_, None) | Self::Tunnel(..) => TUNNEL.to_owned(),
        }
    }
}

/// What is there of a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The links, by name, but for the loopback.
    pub links: BTreeMap<String, Link>,
    /// The entries that somebody made: what the kernel makes by itself is left out.
    pub entries: BTreeSet<Entry>,
}

/// One change. What it needs is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the namespace.
    MakeNamespace,
    /// Give it up with all that is in it.
    RemoveNamespace,
    /// Delete a link.
    DeleteLink(String),
    /// Make a link; a port can't be made without its container: see [`missing`].
    MakeLink(String, Link),
    /// Change a link that is there to be so.
    SetLink(String, Link),
    /// Delete an entry.
    Delete(Entry),
    /// Make an entry.
    Add(Entry),
}

/// What a port is called: it names its endpoint.
pub fn port_name(host: HostNumber) -> String {
    format!("ep{:x}", host.0)
}

/// The endpoint that a port is called after.
pub fn port_host(name: &str) -> Option<HostNumber> {
    let host = HostNumber(u32::from_str_radix(name.strip_prefix("ep")?, 16).ok()?);
    (port_name(host) == name).then_some(host)
}

/// The MTU of a network over a link, bytes.
pub(super) fn mtu_over(address: IpAddr, mtu: u32) -> u32 {
    mtu.saturating_sub(OVERHEAD[usize::from(address.is_ipv6())])
}

impl Overlay {
    /// The MTU of everything on it, bytes.
    pub fn mtu(&self) -> u32 {
        let (address, mtu) = self.underlay;
        mtu_over(address, mtu)
    }

    /// What there is when all that it needs was made, its containers attached, and nobody has touched it since.
    pub fn as_seen(&self) -> Seen {
        Seen {
            links: self.links(),
            entries: self.entries(),
        }
    }

    /// The links that it needs.
    pub fn links(&self) -> BTreeMap<String, Link> {
        let mtu = self.mtu();
        let bridge = Link::Bridge {
            mac: self.subnets.mac(Subnets::GATEWAY),
            mtu,
        };
        let tunnel = Link::Tunnel {
            vni: self.vni,
            local: self.underlay.0,
            port: self.port,
            mtu,
            guarded: true,
            offload: self.offload,
        };
        let ports = self
            .local
            .iter()
            .map(|host| (port_name(*host), Link::Port { mtu, guarded: true }));
        let uplink = self.transit.map(|number| {
            let (number, whole, six) = (Some(number), true, self.six);
            let link = Link::Uplink {
                mtu,
                number,
                whole,
                six,
            };
            (UPLINK.to_owned(), link)
        });
        let fixed = [(BRIDGE.to_owned(), bridge), (TUNNEL.to_owned(), tunnel)];
        fixed.into_iter().chain(uplink).chain(ports).collect()
    }

    /// The entries that it needs.
    pub fn entries(&self) -> BTreeSet<Entry> {
        let net = &self.subnets;
        let gateway = Subnets::GATEWAY;
        let mut entries = BTreeSet::from([
            Entry::Address(net.address(gateway).into(), net.v4().prefix_len()),
            Entry::Address(net.address6(gateway).into(), net.v6().prefix_len()),
        ]);
        if let Some(number) = self.transit {
            entries.extend([
                Entry::Outside(number.address().into()),
                Entry::WayOut(HOST_ADDRESS.into()),
            ]);
            if self.six {
                entries.extend([
                    Entry::Outside(number.address6().into()),
                    Entry::WayOut(HOST_ADDRESS6.into()),
                ]);
            }
        }
        let here = self.local.iter().map(|host| (*host, None));
        let there = self
            .remote
            .iter()
            .flatten()
            .map(|(host, node)| (*host, Some(*node)));
        for (host, node) in there.chain(here) {
            let mac = net.mac(host);
            entries.extend([
                Entry::Neighbour(net.address(host).into(), mac),
                Entry::Neighbour(net.address6(host).into(), mac),
                Entry::Forward(mac, node.is_none().then_some(host)),
            ]);
            entries.extend(node.map(|node| Entry::Tunnel(mac, node)));
        }
        entries
    }
}

/// The steps from what is seen to what is wanted; neither is `None` where there is nothing. Empty for a right host.
pub fn plan(wanted: Option<&Overlay>, seen: Option<&Seen>) -> Vec<Step> {
    let Some(wanted) = wanted else {
        return seen.map(|_| Step::RemoveNamespace).into_iter().collect();
    };
    let mut steps = Vec::new();
    if seen.is_none() {
        steps.push(Step::MakeNamespace);
    }
    let nothing = Seen::default();
    let seen = seen.unwrap_or(&nothing);
    let links = wanted.links();

    // Removal before addition. Entries die with their link.
    let mut gone = BTreeSet::new();
    for (name, link) in &seen.links {
        let keep = links.get(name).is_some_and(|want| can_become(link, want));
        if !keep {
            gone.insert(name.as_str());
            steps.push(Step::DeleteLink(name.clone()));
        }
    }
    // Changing a link's address, even to the same, or taking it down and up makes the kernel forget its neighbours.
    let unsettled = seen.links.get(BRIDGE).is_some_and(|link| link != &links[BRIDGE]);
    let lost = |entry: &Entry| {
        gone.contains(entry.link().as_str()) || (matches!(entry, Entry::Forward(..)) && gone.contains(BRIDGE))
    };
    let flushed = |entry: &Entry| unsettled && matches!(entry, Entry::Address(..) | Entry::Neighbour(..));
    let entries = wanted.entries();
    let there: BTreeSet<Entry> = seen
        .entries
        .iter()
        .filter(|entry| !lost(entry))
        .copied()
        .collect();
    // What is replaced needs no removal, which would leave a gap: adding an entry replaces one with its key.
    let keys: BTreeSet<_> = entries.iter().map(key).collect();
    let too_much = there
        .difference(&entries)
        .filter(|entry| !keys.contains(&key(entry)))
        .filter(|entry| wanted.remote.is_some() || !may_be_elsewhere(entry));
    steps.extend(too_much.map(|entry| Step::Delete(*entry)));

    // The bridge first: the others become its ports.
    for name in [BRIDGE, TUNNEL, UPLINK] {
        let Some(want) = links.get(name) else { continue };
        match seen.links.get(name).filter(|_| !gone.contains(name)) {
            None => steps.push(Step::MakeLink(name.to_owned(), want.clone())),
            // A new bridge has none of the old one's ports.
            Some(link) if link != want || (name == TUNNEL && gone.contains(BRIDGE)) => {
                steps.push(Step::SetLink(name.to_owned(), want.clone()));
            }
            Some(_) => {}
        }
    }
    for (name, want) in links.iter().filter(|(_, link)| matches!(link, Link::Port { .. })) {
        let there = seen.links.get(name).filter(|_| !gone.contains(name.as_str()));
        if there.is_some_and(|link| link != want || gone.contains(BRIDGE)) {
            steps.push(Step::SetLink(name.clone(), want.clone()));
        }
    }
    let absent = missing(wanted, seen);
    let addable = |entry: &&Entry| match entry {
        Entry::Forward(_, Some(host)) => !absent.contains(host),
        _ => true,
    };
    let to_add = entries
        .iter()
        .filter(|entry| !there.contains(entry) || flushed(entry));
    steps.extend(to_add.filter(addable).map(|entry| Step::Add(*entry)));
    steps
}

/// Endpoints whose pair is not there: their containers have to be attached (again).
pub fn missing(wanted: &Overlay, seen: &Seen) -> BTreeSet<HostNumber> {
    let there = |host: &HostNumber| matches!(seen.links.get(&port_name(*host)), Some(Link::Port { .. }));
    wanted.local.iter().filter(|host| !there(host)).copied().collect()
}

/// Whether a link can be changed into another while traffic goes on; else it has to be made anew.
fn can_become(link: &Link, want: &Link) -> bool {
    match (link, want) {
        (Link::Bridge { .. }, Link::Bridge { .. }) | (Link::Port { .. }, Link::Port { .. }) => true,
        (Link::Uplink { number, .. }, Link::Uplink { number: number2, .. }) => number == number2,
        (
            Link::Tunnel { vni, local, port, .. },
            Link::Tunnel {
                vni: vni2,
                local: local2,
                port: port2,
                ..
            },
        ) => (vni, local, port) == (vni2, local2, port2),
        _ => false,
    }
}

/// Whether an entry can be of an endpoint on another node.
const fn may_be_elsewhere(entry: &Entry) -> bool {
    matches!(
        entry,
        Entry::Neighbour(..) | Entry::Forward(_, None) | Entry::Tunnel(..)
    )
}

/// What two entries have in common of which only one can be.
fn key(entry: &Entry) -> (u8, IpAddr, Mac) {
    let (none, no_mac) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), Mac([0; 6]));
    match *entry {
        // The kernel has both where only the prefix differs.
        Entry::Address(address, prefix) => (prefix, address, no_mac),
        Entry::Outside(address) => (203, address, no_mac),
        Entry::WayOut(host) => (204, host, no_mac),
        Entry::Neighbour(address, _) => (200, address, no_mac),
        Entry::Forward(mac, _) => (201, none, mac),
        Entry::Tunnel(mac, _) => (202, none, mac),
    }
}
