//! Who else is on a node's networks: a full picture when the link comes up, then what changed.
//!
//! Apart from the desired set, since it changes with every container of any node: it makes no new generation, is written to no
//! store, and an agent that lost it keeps what its kernel has until the next full picture.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::names::{Called, Named};
use crate::id::{Name, NodeId};
use crate::model::{HostNumber, Protocol, Vni, WireGuard};

/// Endpoints of one network on other nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// Which network.
    pub vni: Vni,
    /// Nodes, and which endpoints are there.
    pub nodes: Vec<There>,
}

/// Endpoints on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct There {
    /// The node.
    pub node: NodeId,
    /// The endpoints.
    pub hosts: Vec<HostNumber>,
}

/// Where a node's networks are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The node.
    pub node: NodeId,
    /// Its address.
    pub address: IpAddr,
}

impl Reached {
    /// Nodes with their addresses, as a list.
    pub fn list(nodes: &BTreeMap<NodeId, IpAddr>) -> Vec<Self> {
        let pairs = nodes.iter();
        pairs
            .map(|(node, address)| Self {
                node: *node,
                address: *address,
            })
            .collect()
    }
}

/// A node of another site: packets of networks travel to and from it through WireGuard or not at all. Nodes may be among these with
/// which there is no network in common, where requests to published ports are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sealed {
    /// The node.
    pub node: NodeId,
    /// Its address.
    pub address: IpAddr,
    /// How it is reached there.
    pub wireguard: WireGuard,
}

/// Endpoints of one network that are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// Which network.
    pub vni: Vni,
    /// Which endpoints.
    pub hosts: Vec<HostNumber>,
}

impl Published {
    /// The ports at the node and the first in the containers; none of what makes no sense: no port, or ports beyond the last.
    pub fn ports(&self) -> Option<(RangeInclusive<u16>, u16)> {
        let more = self.count.checked_sub(1)?;
        self.target.checked_add(more)?;
        let last = self.first.checked_add(more)?;
        (self.protocol != Protocol::Unknown).then_some((self.first..=last, self.target))
    }
}

/// Ports in a row at which the world reaches a service at a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The first at the node.
    pub first: u16,
    /// How many in a row.
    pub count: u16,
    /// The first in the containers.
    pub target: u16,
    /// The service.
    pub service: Name,
    /// The network on which its containers are reached.
    pub vni: Vni,
    /// Other nodes that have replicas, where this one passes requests on to them.
    #[serde(default)]
    pub elsewhere: Vec<PublishedOn>,
}

/// A node with replicas of a published service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedOn {
    /// Its address.
    pub address: IpAddr,
    /// How many take requests.
    pub replicas: u32,
    /// Its IPv6 address, for what came in over IPv6; none: such requests are not passed on to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
}

/// What a node needs to know of others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Given", into = "Given")]
pub struct Neighbours {
    /// Nodes it has networks in common with, and where they are reached.
    pub nodes: BTreeMap<NodeId, IpAddr>,
    /// The networks that it has endpoints on, with those of other nodes.
    pub networks: BTreeMap<Vni, BTreeMap<HostNumber, NodeId>>,
    /// Who takes requests on these networks, also on the node itself, and is called what; and services' own addresses.
    pub names: BTreeMap<Vni, BTreeSet<Named>>,
    /// What is published at the node.
    pub published: Vec<Published>,
    /// Nodes of other sites.
    pub sealed: BTreeSet<Sealed>,
}

/// As sent and stored: lists, to whose members a newer version may add, grouped, since a node has many endpoints.
#[derive(Serialize, Deserialize)]
struct Given {
    #[serde(default)]
    nodes: Vec<Reached>,
    #[serde(default)]
    networks: Vec<Elsewhere>,
    #[serde(default)]
    names: Vec<Called>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    published: Vec<Published>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    sealed: BTreeSet<Sealed>,
}

impl From<Given> for Neighbours {
    fn from(given: Given) -> Self {
        let mut networks: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for elsewhere in given.networks {
            networks
                .entry(elsewhere.vni)
                .or_default()
                .extend(elsewhere.endpoints());
        }
        let nodes = given.nodes.into_iter().map(|at| (at.node, at.address));
        let names = given.names.into_iter();
        Self {
            nodes: nodes.collect(),
            networks,
            names: names
                .map(|called| (called.vni, called.names().collect()))
                .collect(),
            published: given.published,
            sealed: given.sealed,
        }
    }
}

impl From<Neighbours> for Given {
    fn from(held: Neighbours) -> Self {
        let networks = held.networks.into_iter();
        Self {
            nodes: Reached::list(&held.nodes),
            networks: networks
                .map(|(vni, endpoints)| Elsewhere::new(vni, endpoints))
                .collect(),
            names: held
                .names
                .into_iter()
                .map(|(vni, names)| Called::new(vni, names))
                .collect(),
            published: held.published,
            sealed: held.sealed,
        }
    }
}

impl Elsewhere {
    /// Groups endpoints by node.
    pub fn new(vni: Vni, endpoints: impl IntoIterator<Item = (HostNumber, NodeId)>) -> Self {
        let mut on: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (host, node) in endpoints {
            on.entry(node).or_default().push(host);
        }
        let nodes = on.into_iter().map(|(node, hosts)| There { node, hosts });
        Self {
            vni,
            nodes: nodes.collect(),
        }
    }

    fn endpoints(self) -> impl Iterator<Item = (HostNumber, NodeId)> {
        let nodes = self.nodes.into_iter();
        nodes.flat_map(|there| there.hosts.into_iter().map(move |host| (host, there.node)))
    }
}

/// A change to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "snake_case")]
pub enum NeighboursUpdate {
    /// Everything.
    Full {
        /// It.
        neighbours: Neighbours,
    },
    /// What changed since the last update on this connection.
    Delta {
        /// The nodes, where they changed: all of them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nodes: Option<Vec<Reached>>,
        /// Endpoints that are new or elsewhere, by network; a network named for the first time is a new one.
        #[serde(default)]
        added: Vec<Elsewhere>,
        /// Endpoints that are gone.
        #[serde(default)]
        gone: Vec<Gone>,
        /// Networks that the node has nothing on any more.
        #[serde(default)]
        left: Vec<Vni>,
        /// Names that are new.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        named: Vec<Called>,
        /// Names that are gone.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unnamed: Vec<Called>,
        /// What is published at the node, where that changed: all of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        published: Option<Vec<Published>>,
        /// Nodes of other sites, where they changed: all of them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sealed: Option<BTreeSet<Sealed>>,
    },
    /// A form of a newer brain: nothing is changed by it.
    #[serde(other)]
    Unknown,
}

impl Neighbours {
    /// Takes an update; whether anything changed.
    pub fn apply(&mut self, update: NeighboursUpdate) -> bool {
        let before = self.clone();
        match update {
            NeighboursUpdate::Full { neighbours } => *self = neighbours,
            NeighboursUpdate::Delta {
                nodes,
                added,
                gone,
                left,
                named,
                unnamed,
                published,
                sealed,
            } => {
                if let Some(sealed) = sealed {
                    self.sealed = sealed;
                }
                if let Some(published) = published {
                    self.published = published;
                }
                for vni in left {
                    self.networks.remove(&vni);
                    self.names.remove(&vni);
                }
                for gone in unnamed {
                    let held = self.names.entry(gone.vni).or_default();
                    for name in gone.names() {
                        held.remove(&name);
                    }
                }
                for new in named {
                    self.names.entry(new.vni).or_default().extend(new.names());
                }
                self.names.retain(|_, names| !names.is_empty());
                for Gone { vni, hosts } in gone {
                    let endpoints = self.networks.entry(vni).or_default();
                    for host in hosts {
                        endpoints.remove(&host);
                    }
                }
                for new in added {
                    self.networks.entry(new.vni).or_default().extend(new.endpoints());
                }
                if let Some(nodes) = nodes {
                    self.nodes = nodes.into_iter().map(|at| (at.node, at.address)).collect();
                }
            }
            NeighboursUpdate::Unknown => {}
        }
        *self != before
    }

    /// Where the endpoints of a network are reached; one whose node nobody can reach, or may not now, is left out.
    pub fn reachable(&self, vni: Vni, shut: &BTreeSet<NodeId>) -> BTreeMap<HostNumber, IpAddr> {
        let endpoints = self.networks.get(&vni).into_iter().flatten();
        endpoints
            .filter(|(_, node)| !shut.contains(*node))
            .filter_map(|(host, node)| Some((*host, *self.nodes.get(node)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_bytes([n; 10])
    }
    fn vni(n: u32) -> Vni {
        Vni::try_from(n).unwrap()
    }

    fn name(service: &str, replica: u32, host: u32) -> Named {
        let service = service.parse().unwrap();
        match replica {
            0 => Named::service(service, HostNumber(host)),
            replica => Named::replica(service, replica, HostNumber(host)),
        }
    }

    fn published(first: u16) -> Published {
        Published {
            protocol: Protocol::Tcp,
            first,
            count: 1,
            target: 8080,
            service: "web".parse().unwrap(),
            vni: vni(7),
            elsewhere: vec![PublishedOn {
                address: [192, 0, 2, 1].into(),
                replicas: 2,
                address6: None,
            }],
        }
    }

    #[test]
    fn changes_lead_to_the_whole() {
        let mut held = Neighbours::default();
        let idle = Named::idle("db".parse().unwrap(), 2, HostNumber(5));
        let at = |n: u8| IpAddr::from([192, 0, 2, n]);
        let sealed = Sealed {
            node: node(2),
            address: at(2),
            wireguard: WireGuard {
                key: crate::model::WireGuardKey([7; 32]),
                port: 51_821,
            },
        };
        let full = Neighbours {
            nodes: BTreeMap::from([(node(1), at(1))]),
            networks: BTreeMap::from([
                (vni(7), BTreeMap::from([(HostNumber(2), node(1))])),
                (vni(8), BTreeMap::new()),
            ]),
            names: BTreeMap::from([
                (vni(7), [name("web", 1, 2)].into()),
                (vni(8), [name("web", 1, 2)].into()),
            ]),
            published: vec![published(80)],
            sealed: BTreeSet::new(),
        };
        assert!(held.apply(NeighboursUpdate::Full {
            neighbours: full.clone()
        }));
        assert!(!held.apply(NeighboursUpdate::Full { neighbours: full }));
        assert!(held.apply(NeighboursUpdate::Delta {
            nodes: Some(Reached::list(&BTreeMap::from([
                (node(1), at(1)),
                (node(2), at(2))
            ]))),
            added: vec![Elsewhere::new(
                vni(7),
                [(HostNumber(3), node(2)), (HostNumber(4), node(9))]
            )],
            gone: vec![Gone {
                vni: vni(7),
                hosts: vec![HostNumber(2)]
            }],
            left: vec![vni(8)],
            named: vec![Called::new(
                vni(7),
                [
                    name("web", 2, 4),
                    name("db", 1, 3),
                    name("db", 0, 9),
                    idle.clone()
                ]
            )],
            unnamed: vec![Called::new(vni(7), [name("web", 1, 2)])],
            published: Some(vec![published(443)]),
            sealed: Some([sealed].into()),
        }));
        assert_eq!(held.sealed, [sealed].into());
        assert_eq!(held.published, [published(443)]);
        assert_eq!(published(443).ports(), Some((443..=443, 8080)));
        let senseless = |count, protocol| Published {
            count,
            protocol,
            ..published(65_000)
        };
        for (count, protocol) in [(0, Protocol::Tcp), (600, Protocol::Tcp), (1, Protocol::Unknown)] {
            assert_eq!(senseless(count, protocol).ports(), None, "{count} {protocol}");
        }
        assert_eq!(
            held.names,
            BTreeMap::from([(
                vni(7),
                [name("db", 0, 9), name("db", 1, 3), idle, name("web", 2, 4)].into()
            )])
        );
        assert_eq!(held.networks.keys().collect::<Vec<_>>(), [&vni(7)]);
        assert_eq!(
            held.reachable(vni(7), &BTreeSet::new()),
            BTreeMap::from([(HostNumber(3), at(2))]),
            "node 9 is nowhere"
        );
        assert_eq!(held.reachable(vni(7), &[node(2)].into()), BTreeMap::new());
        let text = serde_json::to_string(&held).unwrap();
        assert_eq!(serde_json::from_str::<Neighbours>(&text).unwrap(), held);
        // As it comes over the link: inside two enums with tags.
        let message = crate::protocol::BrainMessage::Neighbours(NeighboursUpdate::Full {
            neighbours: held.clone(),
        });
        let text = serde_json::to_string(&message).unwrap();
        assert_eq!(
            serde_json::from_str::<crate::protocol::BrainMessage>(&text).unwrap(),
            message
        );
        let unknown: NeighboursUpdate = serde_json::from_str(r#"{"form":"newer"}"#).unwrap();
        assert!(!held.apply(unknown));
    }
}
