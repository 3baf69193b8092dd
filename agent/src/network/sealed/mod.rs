//! Packets to and from nodes of other sites: through WireGuard or not at all.
//!
//! One WireGuard device of the host carries them. What other networks' packets look like does not change: VXLAN goes to the other
//! node's address as ever, and a routing rule leads what is VXLAN, and what is marked as passed on to a published port, into a
//! routing table that knows nodes of other sites alone: each through the device and, should that be gone, nowhere. Beside it stands
//! the packet filter ([`super::ruleset`]), which lets none of it leave or come in by any other link. What is too large for the device is
//! answered by the kernel as everywhere else on the way (VXLAN tells the sender since Linux 5.9), so networks keep their MTU.
//!
//! Here is what there must be and the steps there (pure); [`kernel`] looks and carries out, over [`wireguard`] what is WireGuard's,
//! [`key`] keeps the host's secret.

pub mod kernel;
pub mod key;
mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use berth_common::model::{Underlay, WireGuard, WireGuardKey};
use berth_common::protocol::Sealed;

use super::ruleset::VXLAN_PORT;

/// Says of a packet and of a connection that it belongs into the device: a bit outside of those that Kubernetes (0xc000), Calico
/// (0xffff0000), Tailscale (0xff0000) and Cilium (0xf00) use, and of wg-quick's number (0xca6c).
pub const MARK: u32 = 0x2000;

/// What WireGuard puts around a packet, with IPv4 or IPv6 and UDP, bytes (its paper, 5.4.6: 16 of header, 16 of tag).
const OVERHEAD: [u32; 2] = [60, 80];

/// What the device is called: not as the links of networks are, which the host's filter knows by their first letters. Several agents of
/// one host differ in their VXLAN port.
pub fn device(vxlan_port: u16) -> String {
    match vxlan_port {
        VXLAN_PORT => "wgberth".to_owned(),
        port => format!("wgberth{port}"),
    }
}

/// What there must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// The device.
    pub device: String,
    /// The public part of its key.
    pub public: WireGuardKey,
    /// The UDP port that it listens on.
    pub listen: u16,
    /// Its MTU, bytes.
    pub mtu: u32,
    /// The UDP port of VXLAN, which also numbers the routing table.
    pub vxlan_port: u16,
    /// Nodes of other sites.
    pub peers: BTreeMap<WireGuardKey, Peer>,
}

/// A node of another site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Where it listens. It may be heard from elsewhere later, when it is behind NAT; the kernel follows it.
    pub endpoint: SocketAddr,
    /// The address of its networks, and the only one that it may send from.
    pub address: IpAddr,
}

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The device; none: no link is called so.
    pub device: Option<SeenDevice>,
    /// Rules that lead into berth's table.
    pub rules: BTreeSet<Rule>,
    /// What is in it.
    pub ways: BTreeSet<Way>,
}

/// A device as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenDevice {
    /// The public part of its key; none of a link that is no WireGuard.
    pub public: Option<WireGuardKey>,
    /// The UDP port that it listens on.
    pub listen: u16,
    /// Its MTU, bytes; 0 while it is down or has no address.
    pub mtu: u32,
    /// Peers, and what they may send from.
    pub peers: BTreeMap<WireGuardKey, BTreeSet<(IpAddr, u8)>>,
}

/// A routing rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// VXLAN goes by berth's table; IPv6, else IPv4.
    Vxlan(bool),
    /// What is marked does.
    Marked(bool),
}

/// A route in berth's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Nowhere, should the next be gone: never in the clear.
    Nowhere(IpAddr),
    /// Through the device.
    Through(IpAddr),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the device.
    Make,
    /// Give it its key and port.
    Configure,
    /// Forget a peer.
    Forget(WireGuardKey),
    /// Have a peer so.
    Have(WireGuardKey, Peer),
    /// Set it up.
    Up,
    /// Add a route.
    AddWay(Way),
    /// Add a rule.
    AddRule(Rule),
    /// Delete a route.
    DeleteWay(Way),
    /// Delete a rule.
    DeleteRule(Rule),
    /// Delete the device.
    Delete,
}

impl Seal {
    /// What there must be for nodes of other sites; none without any. With it, what is wrong with some of them, which are then not
    /// reached: an address that several have, or that is this host's own. `near`: nodes of this site.
    pub fn new(
        at: Underlay,
        own: WireGuard,
        others: &BTreeSet<Sealed>,
        near: &BTreeSet<IpAddr>,
    ) -> (Option<Self>, Vec<String>) {
        let mut times: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for other in others {
            *times.entry(other.address).or_default() += 1;
        }
        let mut wrong = Vec::new();
        let mut peers = BTreeMap::new();
        for other in others {
            let (address, key) = (other.address, other.wireguard.key);
            let why = if times[&address] > 1 {
                "another node of another site has the same address"
            } else if near.contains(&address) {
                "a node of this site has the same address"
            } else if address == at.address || key == own.key {
                "that is this host's own"
            } else if address.is_ipv4() != at.address.is_ipv4() {
                "it is of another kind than this host's"
            } else {
                let endpoint = SocketAddr::new(address, other.wireguard.port);
                peers.insert(key, Peer { endpoint, address });
                continue;
            };
            wrong.push(format!(
                "node {} says that it is reached at {address} ({key}): {why}; nothing is sent there; set `underlay` in its agent.toml to an address that it alone has",
                other.node
            ));
        }
        let seal = (!peers.is_empty()).then(|| Self {
            device: device(at.port),
            public: own.key,
            listen: own.port,
            mtu: at.mtu.saturating_sub(OVERHEAD[usize::from(at.address.is_ipv6())]),
            vxlan_port: at.port,
            peers,
        });
        (seal, wrong)
    }

    fn ways(&self) -> BTreeSet<Way> {
        let addresses = self.peers.values().map(|peer| peer.address);
        addresses
            .flat_map(|address| [Way::Nowhere(address), Way::Through(address)])
            .collect()
    }

    fn rules(&self) -> BTreeSet<Rule> {
        let kinds = self.peers.values().map(|peer| peer.address.is_ipv6());
        kinds
            .flat_map(|six| [Rule::Vxlan(six), Rule::Marked(six)])
            .collect()
    }

    /// What there is once it is made.
    pub fn as_seen(&self) -> Seen {
        let whole = |address: IpAddr| (address, if address.is_ipv4() { 32 } else { 128 });
        let peers = self.peers.iter();
        Seen {
            device: Some(SeenDevice {
                public: Some(self.public),
                listen: self.listen,
                mtu: self.mtu,
                peers: peers
                    .map(|(key, peer)| (*key, [whole(peer.address)].into()))
                    .collect(),
            }),
            rules: self.rules(),
            ways: self.ways(),
        }
    }
}

/// The steps from what is seen to what is wanted; `before`: what was wanted last, to tell an endpoint that is another one from one
/// that the kernel followed.
pub fn plan(wanted: Option<&Seal>, before: Option<&Seal>, seen: &Seen) -> Vec<Step> {
    let mut steps = Vec::new();
    let (rules, ways) = wanted.map_or_else(Default::default, |seal| (seal.rules(), seal.ways()));
    let Some(wanted) = wanted else {
        // The rules first: without them nothing of the rest is used.
        steps.extend(seen.rules.iter().map(|rule| Step::DeleteRule(*rule)));
        steps.extend(seen.device.as_ref().map(|_| Step::Delete));
        let left = seen.ways.iter().filter(|way| matches!(way, Way::Nowhere(_)));
        steps.extend(left.map(|way| Step::DeleteWay(*way)));
        return steps;
    };
    // Nowhere before anywhere: whatever fails afterwards, nothing goes in the clear.
    let nowhere = |way: &&Way| matches!(way, Way::Nowhere(_));
    let new: Vec<_> = ways.difference(&seen.ways).collect();
    steps.extend(new.iter().copied().filter(nowhere).map(|way| Step::AddWay(*way)));
    steps.extend(rules.difference(&seen.rules).map(|rule| Step::AddRule(*rule)));

    let mut there = seen.device.clone();
    if there.as_ref().is_some_and(|device| device.public.is_none()) {
        steps.push(Step::Delete);
        there = None;
    }
    let fresh = there.is_none();
    if fresh {
        steps.push(Step::Make);
    }
    let there = there.unwrap_or_default();
    if there.public != Some(wanted.public) || there.listen != wanted.listen {
        steps.push(Step::Configure);
    }
    for key in there.peers.keys().filter(|key| !wanted.peers.contains_key(key)) {
        steps.push(Step::Forget(*key));
    }
    let right = wanted.as_seen().device.unwrap_or_default();
    for (key, peer) in &wanted.peers {
        let same = there.peers.get(key) == right.peers.get(key);
        let told = before.and_then(|before| before.peers.get(key));
        if !same || told.is_some_and(|told| told.endpoint != peer.endpoint) {
            steps.push(Step::Have(*key, *peer));
        }
    }
    if there.mtu != wanted.mtu {
        steps.push(Step::Up);
    }
    // Routes go with their device.
    let through = ways.iter().filter(|way| !nowhere(way));
    let through = through.filter(|way| fresh || !seen.ways.contains(way));
    steps.extend(through.map(|way| Step::AddWay(*way)));
    let old = seen.ways.difference(&ways).filter(|way| !fresh || nowhere(way));
    // Through before nowhere, the other way round than they are made.
    let mut old: Vec<_> = old.collect();
    old.sort_by_key(|way| matches!(way, Way::Nowhere(_)));
    steps.extend(old.into_iter().map(|way| Step::DeleteWay(*way)));
    steps.extend(seen.rules.difference(&rules).map(|rule| Step::DeleteRule(*rule)));
    steps
}

#[cfg(test)]
mod tests;
