//! Networks in the state: who is on them, on which nodes, and what a node has to know of that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_common::id::{ContainerId, Name, NodeId, TenantId};
use berth_common::model::{ContainerRecord, HostNumber, NetworkRecord, NodeRecord, Vni};
use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use super::{Change, State};
use crate::allocate::Hosts;

/// A network with what is kept about its numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// It.
    #[serde(flatten)]
    pub record: NetworkRecord,
    /// Which numbers rest, and where the round is.
    #[serde(default)]
    pub hosts: Hosts,
}

/// Endpoints of a network on nodes. A persistent map: whoever keeps an old one can tell cheaply what changed since.
pub type Placed = OrdMap<HostNumber, NodeId>;

/// The label that says where a node is. Nodes of different sites, and a private node and others, don't see each other's
/// networks: packets between them would go in the clear.
pub const SITE: &str = "site";

/// Where a node is, as far as networks are concerned: its owner if it is private, and its site.
fn site(node: &NodeRecord) -> (Option<TenantId>, Option<&str>) {
    let owner = match node.kind {
        berth_common::model::NodeKind::Private { tenant } => Some(tenant),
        berth_common::model::NodeKind::Shared => None,
    };
    (owner, node.labels.get(SITE).map(String::as_str))
}

/// Why the networks of two nodes can't be joined; none if they are.
pub fn apart(a: &NodeRecord, b: &NodeRecord) -> Option<String> {
    let reached = |node: &NodeRecord| match node.facts.underlay {
        None => Some(format!(
            "node {} has not said where its networks are reached; is its agent older?",
            node.name
        )),
        Some(at) if at.address.is_loopback() || at.address.is_unspecified() || at.address.is_multicast() => {
            Some(format!(
                "node {} says that its networks are reached at {}, where no other host can; set `underlay` in its agent.toml",
                node.name, at.address
            ))
        }
        Some(_) => None,
    };
    if let Some(why) = reached(a).or_else(|| reached(b)) {
        return Some(why);
    }
    let (of_a, of_b) = (a.facts.underlay, b.facts.underlay);
    if site(a) != site(b) {
        return Some(format!(
            "nodes {} and {} are at different sites, and traffic between sites is not encrypted yet",
            a.name, b.name
        ));
    }
    match (of_a, of_b) {
        (Some(one), Some(other)) if one.port != other.port => Some(format!(
            "nodes {} and {} use different VXLAN ports, {} and {}",
            a.name, b.name, one.port, other.port
        )),
        (Some(one), Some(other)) if one.address.is_ipv4() != other.address.is_ipv4() => Some(format!(
            "nodes {} and {} have addresses of different kinds, {} and {}",
            a.name, b.name, one.address, other.address
        )),
        _ => None,
    }
}

impl State {
    /// A network by tenant and name.
    pub fn network(&self, tenant: TenantId, name: &Name) -> Option<&Network> {
        let vni = self.network_names.get(&(tenant, name.clone()))?;
        self.networks.get(vni).map(|network| &**network)
    }

    /// Networks of a tenant, by identifier.
    pub fn networks_of(&self, tenant: TenantId) -> impl Iterator<Item = &Network> {
        let all = self.networks.values().map(|network| &**network);
        all.filter(move |network| network.record.tenant == tenant)
    }

    /// Who has which number on a network.
    pub fn endpoints_of(&self, vni: Vni) -> impl Iterator<Item = (HostNumber, ContainerId)> {
        let held = self.endpoints.get(&vni).into_iter().flatten();
        held.map(|(host, container)| (*host, *container))
    }

    /// Nodes with endpoints on a network.
    pub fn nodes_on(&self, vni: Vni) -> impl Iterator<Item = NodeId> {
        self.network_nodes
            .get(&vni)
            .into_iter()
            .flat_map(|nodes| nodes.keys().copied())
    }

    /// Networks that a node has endpoints on.
    pub fn networks_on(&self, node: NodeId) -> BTreeSet<Vni> {
        let endpoints = self.containers_on(node).flat_map(|c| &c.endpoints);
        endpoints.map(|endpoint| endpoint.vni).collect()
    }

    /// Where the nodes are reached that a node has networks in common with and may speak to.
    pub fn neighbours(&self, node: NodeId, networks: &BTreeSet<Vni>) -> BTreeMap<NodeId, IpAddr> {
        let Some(own) = self.nodes.get(&node) else {
            return BTreeMap::new();
        };
        let others: BTreeSet<NodeId> = networks.iter().flat_map(|vni| self.nodes_on(*vni)).collect();
        let others = others.into_iter().filter(|other| *other != node);
        others
            .filter_map(|other| {
                let record = self.nodes.get(&other)?;
                let underlay = record.facts.underlay?;
                apart(own, record).is_none().then_some((other, underlay.address))
            })
            .collect()
    }

    /// Puts a container's endpoints into the indexes, or takes them out.
    pub(super) fn index_endpoints(&mut self, container: &ContainerRecord, there: bool) {
        // One that is being removed is reachable until its node says that it is gone: what it does ends in order.
        let on = container.node;
        for endpoint in &container.endpoints {
            let mut held = self.endpoints.get(&endpoint.vni).cloned().unwrap_or_default();
            let mut placed = self.placed.get(&endpoint.vni).cloned().unwrap_or_default();
            let mut nodes = self.network_nodes.get(&endpoint.vni).cloned().unwrap_or_default();
            if there {
                held.insert(endpoint.host, container.id);
                if let Some(node) = on {
                    placed.insert(endpoint.host, node);
                    *nodes.entry(node).or_insert(0) += 1;
                }
            } else if held.get(&endpoint.host) == Some(&container.id) {
                held.remove(&endpoint.host);
                if let Some(node) = on {
                    placed.remove(&endpoint.host);
                    let left = nodes.get(&node).map_or(0, |count| count.saturating_sub(1));
                    if left == 0 {
                        nodes.remove(&node);
                    } else {
                        nodes.insert(node, left);
                    }
                }
            }
            put(&mut self.endpoints, endpoint.vni, held, OrdMap::is_empty);
            put(&mut self.placed, endpoint.vni, placed, OrdMap::is_empty);
            put(&mut self.network_nodes, endpoint.vni, nodes, OrdMap::is_empty);
        }
    }
}

fn put<V: Clone>(map: &mut OrdMap<Vni, V>, key: Vni, value: V, empty: impl Fn(&V) -> bool) {
    if empty(&value) {
        map.remove(&key);
    } else {
        map.insert(key, value);
    }
}

/// Nodes that have to hear of changes on their networks.
pub fn concerned(changes: &[Change], before: &State, after: &State) -> BTreeSet<NodeId> {
    let mut networks = BTreeSet::new();
    for change in changes {
        match change {
            Change::PutContainer(new) => {
                let old = before.containers.get(&new.id);
                let of = |c: &ContainerRecord| c.node.map(|node| (node, c.endpoints.clone()));
                let (old, new) = (old.and_then(|old| of(old)), of(new));
                if old != new {
                    let both = old.into_iter().chain(new);
                    networks.extend(both.flat_map(|(_, endpoints)| endpoints).map(|e| e.vni));
                }
            }
            Change::DeleteContainer(id) => {
                let old = before.containers.get(id);
                networks.extend(old.into_iter().flat_map(|c| c.endpoints.iter().map(|e| e.vni)));
            }
            Change::PutNode(new) => {
                let same = before
                    .nodes
                    .get(&new.id)
                    .is_some_and(|old| old.facts.underlay == new.facts.underlay && site(old) == site(new));
                if !same {
                    networks.extend(after.networks_on(new.id));
                }
            }
            _ => {}
        }
    }
    let nodes = |state: &State| -> Vec<NodeId> {
        networks
            .iter()
            .flat_map(|vni| state.nodes_on(*vni).collect::<Vec<_>>())
            .collect()
    };
    nodes(before).into_iter().chain(nodes(after)).collect()
}
